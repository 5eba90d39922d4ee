"""Voices by name: the built-in ones, and those that a user has added.

A voice is a recording, its transcript, and where it comes from. Built-in: ``assets/voices/NAME.flac`` (or opus, wav)
with ``NAME.json``; added: a folder ``voices/NAME`` with ``audio.flac`` and ``voice.json`` in the user's data folder.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from valle.errors import ValleError

if TYPE_CHECKING:
    from valle.audio import Source

logger = logging.getLogger(__name__)

BUILT_IN = Path(__file__).parent / "assets" / "voices"


@dataclass(frozen=True)
class Voice:
    """A named voice."""

    name: str
    """By which `--voice` finds it."""
    path: Path
    """The recording."""
    text: str | None
    """What is said in it; None when whoever added it did not tell."""
    source: str | None = None
    """Where the recording comes from."""
    licence: str | None = None
    """Under which licence it may be used."""
    built_in: bool = False
    """True when it came with the package."""


def home() -> Path:
    """The user's data folder: ``VALLE_HOME``, or the system's usual place."""
    if os.environ.get("VALLE_HOME"):
        return Path(os.environ["VALLE_HOME"]).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "valle"


def list_voices() -> list[Voice]:
    """All voices by name, the built-in ones first."""
    return [*_built_in(), *_added()]


def find_voice(name: str | None = None) -> Voice:
    """The voice of that name; None for the default one.

    Raises:
        ValleError: there is no such voice; those there are, and a near one, are named.
    """
    voices = {voice.name: voice for voice in list_voices()}
    if name is None:
        name = _default()
        if name not in voices:
            raise ValleError("this installation has no built-in voice; give a recording (-r) with its transcript (-s)")
    if name not in voices:
        near = difflib.get_close_matches(name, voices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(voices) or 'none'}"
        raise ValleError(f"there is no voice {name!r}; {hint} Add one with `valle voice add {name} REF.wav -s TEXT`")
    return voices[name]


def add_voice(name: str, recording: Source, text: str | None = None, *, force: bool = False) -> Voice:
    """Check a recording as for cloning and keep it under ``name``.

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``.
        recording: 1 to 15 s of one speaker; it is stored as 24 kHz mono flac.
        text: what is said in it; without it the voice needs ``ref_text`` at every use.
        force: replace a voice of that name.

    Raises:
        ValleError: the name is taken or not fit to be one, the recording is no reference, or it cannot be stored.
    """
    _check_name(name)
    if any(voice.name == name for voice in _built_in()):
        raise ValleError(f"the voice {name!r} is built in; choose another name")
    folder = home() / "voices" / name
    if folder.exists() and not force:
        raise ValleError(f"there is a voice {name!r} already; choose another name or replace it with --force")
    text = text.strip() if text else None
    from valle.audio import load_reference

    data = load_reference(recording).to_bytes("flac")
    # Beside its place and then renamed: a voice is whole or not there.
    temporary = folder.with_name(f".{name}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir(parents=True)
        try:
            (temporary / "audio.flac").write_bytes(data)
            (temporary / "voice.json").write_text(json.dumps({"text": text}, ensure_ascii=False), encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise ValleError(
            f"the voice cannot be stored in {folder}: {reason}; set VALLE_HOME to another folder"
        ) from error
    return Voice(name, folder / "audio.flac", text)


def remove_voice(name: str) -> None:
    """Delete a voice that was added.

    Raises:
        ValleError: there is none of that name, or it is built in.
    """
    if find_voice(name).built_in:
        raise ValleError(f"the voice {name!r} is built in and cannot be removed")
    try:
        shutil.rmtree(home() / "voices" / name)
    except OSError as error:
        raise ValleError(f"the voice {name!r} cannot be removed: {error.strerror or error}") from error


def _built_in() -> Iterator[Voice]:
    for path in sorted(BUILT_IN.glob("*.json")):
        audio = [
            path.with_suffix(suffix) for suffix in (".flac", ".opus", ".wav") if path.with_suffix(suffix).is_file()
        ]
        if audio:
            values = json.loads(path.read_text(encoding="utf-8"))
            yield Voice(path.stem, audio[0], values["text"], values.get("source"), values.get("licence"), built_in=True)


def _added() -> Iterator[Voice]:
    for path in sorted((home() / "voices").glob("*/voice.json")):
        if not path.parent.name.startswith("."):
            try:
                text = json.loads(path.read_text(encoding="utf-8"))["text"]
            except (OSError, ValueError, KeyError, TypeError):
                logger.warning("%s is damaged and was left out; add the voice again", path)
                continue
            yield Voice(path.parent.name, path.parent / "audio.flac", text)


def _default() -> str | None:
    path = BUILT_IN / "default.json"
    if path.is_file():
        name: str = json.loads(path.read_text(encoding="utf-8"))["voice"]
        return name
    return next((voice.name for voice in _built_in()), None)


def _check_name(name: str) -> None:
    """A name becomes a folder, on any system: no separators, nothing hidden, no dot that Windows would drop."""
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)
    if reserved or not re.fullmatch(r"\w([\w.-]{0,62}\w)?", name):
        raise ValleError(f"{name!r} cannot be the name of a voice; use up to 64 letters, digits, '_', '-' and '.'")
