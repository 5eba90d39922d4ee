"""What there is to hear: the waves of ``valle eval speech``, or a list of files, as sentences spoken by systems."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valle.errors import ValleError
from valle.eval.listening.design import RECORDING
from valle.eval.systems import file_label

ROUND_TRIP = "codec round trip"

_LABELS = {RECORDING: "1-recording", ROUND_TRIP: "2-round-trip"}  # of the files in wavs/
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
    results = _results(folder)
    model = _model_name(results) or folder.resolve().name
    spoken_by = name or model
    labels = {**_LABELS, spoken_by: _SPOKEN}
    # Other systems of the same measurement; the number that their files begin with is their place in it.
    labels |= {o: f"[0-9]*-{file_label(o)}" for o in results.get("rows", ()) if o not in (*_LABELS, model)}
    for prompt in found:
        stem = prompt.stem.removesuffix(f"-{_PROMPT}")
        sentence = sentences.setdefault(stem, Sentence(stem))
        sentence.prompt = sentence.prompt or prompt
        sentence.text = sentence.text or texts.get(stem, "")
        for system, label in labels.items():
            wave = _wave(wavs, stem, label, prompt.suffix)
            if wave is None:  # nothing was said
                continue
            if system == spoken_by and system in sentence.waves:
                raise ValleError(f"two folders have speech of {system!r}; name one with NAME={folder}")
            sentence.waves.setdefault(system, wave)


def _wave(wavs: Path, stem: str, label: str, suffix: str) -> Path | None:
    """The file with a label, which may be a pattern; of several runs the first."""
    for run in ("", "-1"):
        if found := sorted(wavs.glob(f"{glob.escape(stem)}-{label}{run}{suffix}")):
            return found[0]
    return None


def _texts(path: Path) -> dict[str, str]:
    """Of ``trials.jsonl``, by the stem of the waves."""
    return (
        {str(line["id"]).replace("/", "-"): str(line["text"]) for line in _json_lines(path)} if path.is_file() else {}
    )


def _results(folder: Path) -> dict[str, Any]:
    """What ``results.json`` holds; nothing where it cannot be read."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def _model_name(results: Mapping[str, Any]) -> str:
    model = results.get("model")
    return str(model["name"]) if isinstance(model, dict) and "name" in model else ""


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
