"""What a measuring leaves: ``results.json`` for programs, ``report.md`` for people, both with data, judges and command.

Paths are shortened to their last part wherever they are absolute, since results are published and machines are not.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from valle.errors import ValleError
from valle.eval.bootstrap import Estimate

FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """One metric of a table."""

    key: str
    """Its name in ``results.json``."""
    title: str
    """Its heading; ↑ and ↓ say which way is better."""
    digits: int = 2
    """After the point."""
    percent: bool = False
    """A share, shown in per cent."""

    @property
    def name(self) -> str:
        """The heading without its arrow."""
        return self.title.rstrip(" ↑↓")

    def show(self, value: Estimate | float | None) -> str:
        """``12.3 [11.0, 13.7]``; a dash where nothing was measured."""
        if value is None:
            return "–"
        scale = 100 if self.percent else 1
        if not isinstance(value, Estimate):
            return f"{value * scale:.{self.digits}f}"
        mean, low, high = (f"{x * scale:.{self.digits}f}" for x in (value.mean, value.low, value.high))
        return f"{mean} [{low}, {high}]"


Row = Mapping[str, "Estimate | float | None"]


def table(first: str, rows: Mapping[str, Row], columns: Sequence[Column]) -> str:
    """Markdown: one line a row, in order. ``first`` heads the column of the rows' names."""
    lines = ["| " + " | ".join([first, *(c.title for c in columns)]) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append("| " + " | ".join([name, *(c.show(row.get(c.key)) for c in columns)]) + " |")
    return "\n".join(lines) + "\n"


def missing(rows: Mapping[str, Row], columns: Sequence[Column], n: int) -> str:
    """A sentence for every mean that is not taken over all n; empty when all are."""
    gaps = [
        f"{column.name} of {name}: {value.n} of {n}"
        for name, row in rows.items()
        for column in columns
        if isinstance(value := row.get(column.key), Estimate) and value.n != n
    ]
    return f"Not measurable on all: {'; '.join(gaps)}.\n" if gaps else ""


def rows_by_corpus(
    records: Mapping[str, Sequence[T]],
    corpora: Sequence[str],
    row: Callable[[Sequence[T]], Row],
) -> dict[str, Row]:
    """The rows of each corpus alone, as ``corpus: row``; none where there is but one corpus.

    Args:
        records: by row, one record an item.
        corpora: the corpus of each item.
        row: means over records.
    """
    if len(set(corpora)) < 2:
        return {}
    return {
        f"{corpus}: {name}": row([r for r, c in zip(own, corpora, strict=True) if c == corpus])
        for corpus in sorted(set(corpora))
        for name, own in records.items()
    }


def printable_command(argv: Sequence[str]) -> str:
    """The command as a reader may repeat it: ``valle eval ...``, absolute paths without their folders."""

    def shorten(arg: str) -> str:
        option, equals, value = arg.rpartition("=")
        kind = re.match("(hubert|wavlm|whisper):(?=/)|", value)
        assert kind is not None
        path = value[kind.end() :]
        if Path(path).is_absolute() and "{" not in path:
            return option + equals + kind[0] + Path(path).name
        return without_folders(arg)

    return shlex.join(["valle", "eval", *map(shorten, argv)])


def without_folders(command: str) -> str:
    """A command with the last part of every absolute path in it."""
    return re.sub(r"(?<![^\s='\"])/(?:[^\s/]*/)+(?=\S)", "", command)


def made_by(argv: Sequence[str]) -> dict[str, str]:
    """By which command and versions, and on which day."""
    import torch

    from valle import __version__

    return {
        "command": printable_command(argv),
        "valle": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def plain(value: Any) -> Any:
    """Estimates and mappings of them, ready for JSON."""
    if isinstance(value, Estimate):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(x) for key, x in value.items()}
    return [plain(x) for x in value] if isinstance(value, list | tuple) else value


def restored(value: Any) -> Any:
    """What ``plain`` made of estimates, as estimates again."""
    if isinstance(value, dict):
        if value.keys() == {"mean", "low", "high", "n"}:
            return Estimate(**value)
        return {key: restored(x) for key, x in value.items()}
    return [restored(x) for x in value] if isinstance(value, list) else value


def read_results(path: str | Path) -> dict[str, Any]:
    """What ``write_results`` wrote, by the folder or the file, with its estimates.

    Raises:
        ValleError: there is none, or it is not of this kind.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise ValleError(f"there is no {path}; give a folder that `valle eval codec | speech | lm | judges` wrote")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValleError(f"{path} is not JSON: {error}; measure again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT or "kind" not in values:
        raise ValleError(f"{path} holds no results of this version (format {FORMAT})")
    restored_values: dict[str, Any] = restored(values)
    return restored_values


def write_results(folder: str | Path, values: Mapping[str, Any], markdown: str) -> None:
    """Write ``results.json`` and ``report.md`` into a folder, which is made."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    body = json.dumps({"format": FORMAT, **plain(values)}, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "results.json").write_text(body + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown, encoding="utf-8")
