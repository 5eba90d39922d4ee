"""Measurements as they are made, one JSON line each: what was stopped goes on, and every number can be traced.

The first line says what was measured with what; measurements of another model or judge never mix with these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from valle.errors import ValleError

Record = dict[str, Any]


class Journal:
    """``utterances.jsonl``: records by key. Keys are strings such as ("84-121123-0000", "8 codebooks")."""

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open or begin a journal.

        Args:
            path: the file; its folder is made.
            settings: everything that changes what a measurement gives, ready for JSON.
            overwrite: throw away what is there.

        Raises:
            ValleError: the file holds measurements made with other settings.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._records: dict[tuple[str, ...], Record] = {}
        header = json.loads(json.dumps({"settings": dict(settings)}))  # as it would come back from the file
        lines = [] if overwrite or not self.path.is_file() else _whole_lines(self.path)
        if lines and lines[0] != header:
            before = lines[0].get("settings", {})
            differing = ", ".join(k for k in {**before, **header["settings"]} if before.get(k) != settings.get(k))
            raise ValleError(
                f"{self.path} holds measurements with another {differing or 'format'}; "
                "give another --out, or --overwrite to measure anew"
            )
        for record in lines[1:]:
            self._records[tuple(record["key"])] = record
        # Written anew, so that a last line that was cut off is gone.
        kept = [header, *self._records.values()]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._records

    def __getitem__(self, key: tuple[str, ...]) -> Record:
        return self._records[key]

    def add(self, key: tuple[str, ...], record: Mapping[str, Any]) -> None:
        """Keep one measurement, on disk at once."""
        line = {"key": list(key), **record}
        self._records[key] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_records(path: str | Path) -> dict[tuple[str, ...], Record]:
    """The measurements in a journal, whatever they were made with.

    Raises:
        ValleError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValleError(
            f"there is no {path}, the single measurements that plots and players are made from; run the command that "
            "made the folder again"
        )
    return {tuple(record["key"]): record for record in _whole_lines(path)[1:]}


def digest(path: str | Path) -> str:
    """Twelve hex digits over the weights and configurations in a file or folder, wherever it lies."""
    path, total = Path(path), sha256()
    files = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.suffix in _WEIGHED and p.is_file()]
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:12]


_WEIGHED = (".safetensors", ".bin", ".onnx", ".json")


def _whole_lines(path: Path) -> list[Record]:
    """The lines of the file up to the first that is not whole."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
