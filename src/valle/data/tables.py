"""Lists of recordings as others write them: columns separated by ``|``, tabs or commas, or one JSON object a line.

The first line may name the columns, in any order and by any of the usual names (``COLUMNS``). Without such a header a
list is ``PATH|SPEAKER|TEXT`` or ``PATH|TEXT``, or, where its first column ends in no suffix of a sound file,
``NAME|TEXT`` or LJSpeech's ``NAME|WRITTEN|SPOKEN``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle.errors import ValleError

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64", ".sph")
"""Files that a folder is searched for; libsndfile reads them all."""

SPLIT_NAMES = {
    "training": "train",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "development": "dev",
    "eval": "dev",
    "testing": "test",
}
"""Names that others give to splits, and ours."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "file_name", "audio", "audio_path", "audio_file", "audio_filepath", "wav"),
    "speaker": ("speaker", "speaker_id", "speaker_name", "spk", "spk_id", "client_id"),
    "text": ("text", "normalized_text", "sentence", "transcript", "transcription"),
    "id": ("id", "utterance_id", "utt_id", "utterance", "utt"),
    "lang": ("lang", "language", "locale"),
    "split": ("split", "subset", "partition"),
    "seconds": ("seconds", "duration", "length_s"),
}
"""What columns of a list may be called; where two of them are there, the first counts."""


@dataclass(frozen=True)
class Row:
    """One line of a list, as it is written."""

    where: str
    path: str = ""
    id: str = ""
    text: str | None = None
    speaker: str | None = None
    lang: str = ""
    split: str = ""
    seconds: float = 0.0


def split_name(name: str) -> str:
    """Our name for a split: ``validation`` -> ``dev``."""
    name = name.strip().lower()
    return SPLIT_NAMES.get(name, name)


def read_rows(path: Path) -> list[Row]:
    """The rows of a list.

    Raises:
        ValleError: it is not UTF-8, is empty, or a line of it cannot be understood (the line is named).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValleError(f"the list {path} is not UTF-8 ({error}); save it in that encoding") from error
    first = next((line for line in lines if line.strip()), "")
    if not first:
        raise ValleError(f"the list {path} is empty; it must have a line for each recording, such as PATH|SPEAKER|TEXT")
    rows = _json_rows(path, lines) if first.lstrip().startswith("{") else _delimited_rows(path, lines, first)
    if not rows:
        raise ValleError(f"the list {path} has a header and nothing else; give a line for each recording")
    return rows


def _json_rows(path: Path, lines: list[str]) -> list[Row]:
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValleError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise ValleError(f'{path}, line {number} must be a JSON object such as {{"path": ..., "text": ...}}')
            values = {key.lower(): value for key, value in record.items()}
            rows.append(_row({c: _pick(values, c) for c in COLUMNS}, f"{path}, line {number}"))
    return rows


def _delimited_rows(path: Path, lines: list[str], first: str) -> list[Row]:
    delimiter = next((d for d in "|\t," if d in first), "|")
    reader = csv.reader(
        (f"{line}\n" for line in lines),
        delimiter=delimiter,
        # NOTE: a text may begin with a quotation mark; only in lists with commas does one quote a field.
        quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
    )
    rows: list[Row] = []
    columns: Sequence[str] | None = None
    try:
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(field.strip() for field in fields):
                continue
            if columns is None:
                names = [field.strip().lower() for field in fields]
                if any(name in COLUMNS["path"] + COLUMNS["id"] for name in names):
                    columns = names
                    continue
                columns = _usual_columns(fields, where)
            if len(fields) != len(columns):
                raise ValleError(
                    f"{where} has {len(fields)} columns in place of {len(columns)}; put texts with {delimiter!r} in "
                    "double quotes (with commas only), or separate the columns by |"
                )
            values = dict(zip(columns, (field.strip() for field in fields), strict=True))
            rows.append(_row({c: _pick(values, c) for c in COLUMNS}, where))
    except csv.Error as error:
        raise ValleError(f"{path}, line {reader.line_num} cannot be understood: {error}") from error
    return rows


def _usual_columns(fields: list[str], where: str) -> Sequence[str]:
    """Names of the columns of a list without a header."""
    if fields[0].strip().lower().endswith(AUDIO_SUFFIXES):
        usual = {1: ("path",), 2: ("path", "text"), 3: ("path", "speaker", "text")}
    else:
        usual = {2: ("id", "text"), 3: ("id", "written", "text")}
    if len(fields) not in usual:
        raise ValleError(
            f"{where} has {len(fields)} columns and no header; without one a list has PATH|SPEAKER|TEXT, PATH|TEXT or "
            f"NAME|TEXT, else its first line must name the columns: {', '.join(COLUMNS)}"
        )
    return usual[len(fields)]


def _pick(values: dict[str, Any], column: str) -> Any:
    return next((values[name] for name in COLUMNS[column] if values.get(name) not in (None, "")), None)


def _row(values: dict[str, Any], where: str) -> Row:
    path, id = values["path"], values["id"]
    if not isinstance(path or id, str) and not isinstance(id, int):
        raise ValleError(f"{where} names no recording; it needs a column {' or '.join(COLUMNS['path'][:4])}, or id")
    try:
        seconds = float(values["seconds"] or 0)
    except (TypeError, ValueError):
        seconds = 0.0
    return Row(
        where=where,
        path=str(path or ""),
        id=str(id if id is not None else ""),
        text=" ".join(str(values["text"] or "").split()) or None,
        speaker=None if values["speaker"] is None else str(values["speaker"]),
        lang=str(values["lang"] or ""),
        split=split_name(str(values["split"] or "")),
        seconds=seconds,
    )
