"""Configuration: TOML or JSON into frozen dataclasses and back; an unknown key is an error that names it."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from valle.errors import ValleError

T = TypeVar("T")


def load_config(path: str | Path, cls: type[T]) -> T:
    """Read a TOML file into the dataclass ``cls`` (nested dataclasses are TOML tables).

    Raises:
        ValleError: no such file, not TOML, an unknown key, or a value of the wrong type.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    path = Path(path)
    if not path.is_file():
        raise ValleError(f"there is no configuration file {path}; those of this project are in configs/")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValleError(f"{path} is not valid TOML: {error}") from error
    return from_dict(cls, values, str(path))


def from_dict(cls: type[T], values: dict[str, Any], where: str = "the configuration") -> T:
    """Build the dataclass ``cls`` from a dictionary, nested dataclasses included.

    Raises:
        ValleError: an unknown key or a value of the wrong type; ``where`` is named in the sentence.
    """
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise ValleError(f"{where} has the unknown key {key!r}; known are {', '.join(names)}")
        kwargs[key] = _convert(hints[key], value, f"{where}: {key}")
    try:
        return cls(**kwargs)
    except TypeError as error:
        missing = [
            f.name
            for f in dataclasses.fields(cls)
            if f.name not in kwargs and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        raise ValleError(f"{where} lacks {', '.join(missing)}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ValleError(f"{where} must be a table, not {value!r}")
        return from_dict(hint, value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            raise ValleError(f"{where} must be a list, not {value!r}")
        return tuple(
            _convert(args[0] if len(args) == 2 and args[1] is ... else args[i], v, where) for i, v in enumerate(value)
        )
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ValleError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
        return value
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(next(o for o in options if o is not type(None)), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ValleError(f"{where} is {value!r}; it must be of type {hint.__name__}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain dictionaries and lists, ready for JSON."""
    return dataclasses.asdict(config)


def require_same(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Refuse to resume another run than the one that was started.

    Args:
        before: what it was started with, by name.
        now: what the configuration has.
        out: its folder.

    Raises:
        ValleError: naming what differs.
    """
    before, now = (json.loads(json.dumps(x)) for x in (before, now))  # tuples become lists, as in the file
    for name, value in now.items():
        if before.get(name) != value:
            raise ValleError(
                f"{out} was started with {name} = {before.get(name)}, but the configuration now has {value}; "
                "resume with the old value, or start a new run in another folder"
            )
