"""A corpus on disk: ``manifest.jsonl``, one utterance a line, and the audio files it names.

Every line is an object with ``id``, ``path`` (relative to the manifest's folder), ``dataset``, ``speaker`` (null when
not known), ``lang``, ``seconds``, ``text`` (null when not transcribed), ``split``, ``licence`` and ``synthetic``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from valle.errors import ValleError


@dataclass(frozen=True)
class Utterance:
    """One recording and what is known about it."""

    id: str
    """Unique within its manifest."""
    path: Path
    """The audio file."""
    seconds: float
    """Its length as the manifest tells it."""
    split: str
    """``train``, ``dev``, ``test`` ...; splits share no speaker."""
    text: str | None = None
    """What is said, None when not transcribed."""
    speaker: str | None = None
    """Who says it, None when not known."""
    lang: str = "en"
    """Language code."""
    dataset: str = ""
    """The corpus it comes from."""
    licence: str = ""
    """The licence of the recording."""
    synthetic: bool = False
    """True for speech that a machine made."""
    start_s: float = 0.0
    """Where in the file it begins: above 0 only for a piece of a long recording (``valle.data.cutting``)."""
    end_s: float | None = None
    """Where in the file it ends; None for all of the file."""


_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "path": (str,),
    "seconds": (int, float),
    "split": (str,),
    "text": (str, type(None)),
    "speaker": (str, type(None)),
    "lang": (str,),
    "dataset": (str,),
    "licence": (str,),
    "synthetic": (bool,),
}
_REQUIRED = ("id", "path", "seconds", "split")


def read_manifest(path: str | Path, splits: Iterable[str] | None = None) -> list[Utterance]:
    """The utterances of a manifest in its order, those of ``splits`` only when given.

    Fields that this project does not know are ignored, so that a manifest may carry more.

    Raises:
        ValleError: no such file, a line that is no utterance (the line is named), an id told twice, or a split without
            utterances.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "manifest.jsonl"
    if not path.is_file():
        raise ValleError(f"there is no manifest {path}; it is a file with one JSON object a line (docs/training.md)")
    utterances: dict[str, Utterance] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                utterance = _parse(line, path.parent, f"{path}, line {number}")
                if utterance.id in utterances:
                    raise ValleError(f"{path}, line {number}: the id {utterance.id!r} was used before; ids must differ")
                utterances[utterance.id] = utterance
    if splits is None:
        return list(utterances.values())
    wanted, present = set(splits), {u.split for u in utterances.values()}
    if wanted - present:
        missing, have = ", ".join(sorted(wanted - present)), ", ".join(sorted(present)) or "none"
        raise ValleError(f"{path} has no utterance in the split {missing}; its splits are {have}")
    return [u for u in utterances.values() if u.split in wanted]


def load_wav(utterance: Utterance, sample_rate: int = 24000) -> Tensor:
    """The utterance's audio as wav [1, N] float32 in [-1, 1], mono, resampled to ``sample_rate``.

    Of a piece of a long recording only that piece is read.

    Raises:
        ValleError: the file is missing, empty, or not audio.
    """
    import torch

    from valle.audio import load

    if utterance.end_s is None:
        return load(utterance.path, sample_rate).waveform
    from valle.data.segment import Segment, read_segment

    wav, _ = read_segment(utterance.path, Segment(utterance.start_s, utterance.end_s, 1.0), sample_rate)  # [N]
    return torch.from_numpy(wav).unsqueeze(0)


def _parse(line: str, folder: Path, where: str) -> Utterance:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValleError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValleError(f"{where} must be a JSON object with {', '.join(_REQUIRED)}, not {line.strip()[:60]}")
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise ValleError(f"{where} lacks {', '.join(missing)}")
    known = {name: value for name, value in record.items() if name in _TYPES}
    for name, value in known.items():
        if not isinstance(value, _TYPES[name]):
            needed = " or ".join("null" if t is type(None) else t.__name__ for t in _TYPES[name])
            raise ValleError(f"{where}: {name} is {value!r}; it must be {needed}")
    return Utterance(**{**known, "path": folder / known["path"], "seconds": float(known["seconds"])})
