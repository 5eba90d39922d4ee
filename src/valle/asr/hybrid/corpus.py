"""Recordings and texts made ready: features on disk, the units that are said, and where there may be silence."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import soxr
import torch
from torch import Tensor
from tqdm import tqdm

from valle.asr.hybrid.bootstrap import Spoken
from valle.asr.hybrid.features import SAMPLE_RATE, fbank
from valle.asr.hybrid.store import TensorStore
from valle.asr.hybrid.units import Units
from valle.data.corpus import Utterance, load_wav
from valle.errors import ValleError
from valle.text import DEFAULT_INVENTORY, PAUSE, Phonemizer


class Phonemised(NamedTuple):
    """An utterance and its phonemes."""

    utterance: Utterance
    symbols: list[str]


def phonemise(utterances: Iterable[Utterance]) -> list[Phonemised]:
    """Those that have a text that can be read."""
    made: dict[str, Phonemizer] = {}
    out = []
    for u in utterances:
        if not (u.text or "").strip():
            continue
        try:
            if u.lang not in made:
                made[u.lang] = Phonemizer(u.lang)
            out.append(Phonemised(u, made[u.lang](u.text or "")))
        except ValleError:
            continue
    return out


def units_and_gaps(units: Units, symbols: Sequence[str]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """What is said, and after which units there is a pause in the text."""
    kinds = DEFAULT_INVENTORY.kinds
    is_pause = [kinds[i] == PAUSE for i in DEFAULT_INVENTORY.encode(symbols)]
    said = units.of(symbols)
    ends = [s.position for s in said[1:]] + [len(symbols)]
    gaps = tuple(any(is_pause[s.position : end]) for s, end in zip(said, ends, strict=True))
    return tuple(s.unit for s in said), gaps


def name_of(utterance: Utterance, speed: float = 1.0) -> str:
    """Under which its features are stored."""
    return utterance.id if speed == 1.0 else f"{utterance.id}@{speed:g}"


def store_features(store: TensorStore, utterances: Sequence[Utterance], speed: float = 1.0) -> None:
    """Log mel energies [T, 80] half precision of each recording that can be read, played so fast."""
    by_name = {name_of(u, speed): u for u in utterances}
    often = 0.2 if sys.stderr.isatty() else 30.0
    with tqdm(total=len(by_name), desc=f"features x{speed:g}", file=sys.stderr, mininterval=often) as bar:

        def make(names: Sequence[str]) -> Iterable[Tensor | None]:
            for name in names:
                bar.update()
                yield _features(by_name[name], speed)

        store.fill(list(by_name), make, f"fbank80 {speed:g}")


def spoken(store: TensorStore, units: Units, phonemised: Iterable[Phonemised]) -> list[Spoken]:
    """With features and units, for those whose features are stored."""
    return [
        Spoken(store[name_of(u)], *units_and_gaps(units, symbols)) for u, symbols in phonemised if name_of(u) in store
    ]


def _features(utterance: Utterance, speed: float) -> Tensor | None:
    try:
        wav = load_wav(utterance, SAMPLE_RATE)[0].numpy()  # [N]
    except ValleError:
        return None
    if speed != 1.0:
        wav = soxr.resample(wav, SAMPLE_RATE * speed, SAMPLE_RATE).astype(np.float32)
    mels = fbank(wav)
    if len(mels) < 5 or not bool(torch.isfinite(mels).all()):
        return None
    return mels.half()
