"""What there is to hear: the waves of ``valle eval speech``, or a list of files, as sentences spoken by systems."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valle.errors import ValleError
from valle.eval.listening.design import RECORDING

ROUND_TRIP = "codec round trip"

_LABELS = {"1-recording": RECORDING, "2-round-trip": ROUND_TRIP}  # of the files in wavs/
_PROMPT, _SPOKEN = "0-prompt", "3-spoken"


@dataclass
class Sentence:
    """One text in one voice, by several systems."""

    id: str
    """The trial's."""
    waves: dict[str, Path] = field(default_factory=dict)
    """By system."""
    prompt: Path | None = None
    """The voice; SMOS needs it."""
    text: str = ""
    """What is said, where it is known."""


def read_sources(sources: Sequence[str]) -> list[Sentence]:
    """The sentences of ``[NAME=]DIR`` (results of ``valle eval speech``; NAME is the model's) and of lists of files.

    A list is CSV with a heading, or JSON lines: ``trial``, ``system``, ``path``, and where they are known ``prompt``,
    ``reference`` (a person saying the same) and ``text``. Paths are relative to the list.

    Raises:
        ValleError: nothing is there, a file is missing, or two files are to be the same system and sentence.
    """
    sentences: dict[str, Sentence] = {}
    for source in sources:
        name, _, place = ("", "", source) if Path(source).exists() else source.rpartition("=")
        path = Path(place)
        if path.is_dir():
            _read_results(path, name, sentences)
        elif path.is_file() and name:
            raise ValleError(f"the list {path} names its systems itself; leave out {name}=")
        elif path.is_file():
            _read_list(path, sentences)
        else:
            raise ValleError(f"there is no {path}; give a folder that `valle eval speech` wrote, or a list of files")
    if not sentences:
        raise ValleError(f"there is nothing to hear in {', '.join(sources)}; measure with --listen, or give a list")
    return list(sentences.values())


def systems_of(sentences: Iterable[Sentence]) -> list[str]:
    """All systems: the recording first, then in the order in which they come."""
    names = list(dict.fromkeys(name for sentence in sentences for name in sentence.waves))
    return sorted(names, key=lambda name: name != RECORDING)


def _read_results(folder: Path, name: str, sentences: dict[str, Sentence]) -> None:
    """The folder of one ``valle eval speech``; recordings and round trips of an earlier folder stay."""
    wavs = folder / "wavs"
    found = sorted(wavs.glob(f"*-{_PROMPT}.*"))
    if not found:
        raise ValleError(f"{folder} holds no waves (wavs/*-{_PROMPT}.flac); run `valle eval speech` without --listen 0")
    texts = _texts(folder / "trials.jsonl")
    spoken_by = name or _model_name(folder)
    for prompt in found:
        stem = prompt.stem.removesuffix(f"-{_PROMPT}")
        sentence = sentences.setdefault(stem, Sentence(stem))
        sentence.prompt = sentence.prompt or prompt
        sentence.text = sentence.text or texts.get(stem, "")
        for label, system in {**_LABELS, _SPOKEN: spoken_by}.items():
            wave = wavs / f"{stem}-{label}{prompt.suffix}"
            if not wave.is_file():  # nothing was said
                continue
            if system == spoken_by and system in sentence.waves:
                raise ValleError(f"two folders have speech of {system!r}; name one with NAME={folder}")
            sentence.waves.setdefault(system, wave)


def _texts(path: Path) -> dict[str, str]:
    """Of ``trials.jsonl``, by the stem of the waves."""
    return (
        {str(line["id"]).replace("/", "-"): str(line["text"]) for line in _json_lines(path)} if path.is_file() else {}
    )


def _model_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "results.json").read_text(encoding="utf-8"))["model"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.resolve().name


def _read_list(path: Path, sentences: dict[str, Sentence]) -> None:
    rows: Iterable[Mapping[str, Any]]
    if path.suffix.lower() in (".jsonl", ".json"):
        rows = _json_lines(path)
    else:
        try:
            rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), skipinitialspace=True))
        except UnicodeDecodeError as error:
            raise ValleError(f"the list {path} is not UTF-8; save it in that encoding") from error
    for number, row in enumerate(rows, 1):
        where = f"{path}, entry {number}"
        lacking = [key for key in ("trial", "system", "path") if not row.get(key)]
        if lacking:
            raise ValleError(f"{where} lacks {', '.join(lacking)}; each needs trial, system and path")
        sentence = sentences.setdefault(str(row["trial"]), Sentence(str(row["trial"])))
        system = str(row["system"])
        if system in sentence.waves:
            raise ValleError(f"{where} is the second wave of {system!r} for {sentence.id!r}; leave one out")
        sentence.waves[system] = _existing(path.parent, row["path"], where)
        if row.get("prompt"):
            sentence.prompt = _existing(path.parent, row["prompt"], where)
        if row.get("reference"):
            sentence.waves.setdefault(RECORDING, _existing(path.parent, row["reference"], where))
        sentence.text = sentence.text or str(row.get("text") or "")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValleError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(line, dict):
            raise ValleError(f"{path}, line {number} is no table of trial, system and path")
        lines.append(line)
    return lines


def _existing(folder: Path, name: object, where: str) -> Path:
    path = folder / str(name)
    if not path.is_file():
        raise ValleError(f"{where}: there is no file {path}")
    return path
