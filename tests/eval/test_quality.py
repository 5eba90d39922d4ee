"""Signal metrics: at their maximum for equal signals, worse with every step of noise, silent where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from eval_helpers import RATE, speechlike

from valle.eval.quality import MelDistance, pesq, stoi

WAV = speechlike(3.0)


def noisy(level: float) -> np.ndarray:
    return WAV + level * np.random.default_rng(0).normal(size=len(WAV)).astype(np.float32)


def test_equal_signals_are_perfect() -> None:
    assert pesq(WAV, WAV, RATE) == pytest.approx(4.644, abs=0.001)
    assert stoi(WAV, WAV, RATE) == pytest.approx(1.0, abs=1e-4)
    assert MelDistance(RATE)(WAV, WAV) == 0


def test_more_noise_is_worse() -> None:
    levels = (0.0, 0.003, 0.03, 0.3)
    distance = MelDistance(RATE)
    by_pesq, by_stoi = ([metric(noisy(x), WAV, RATE) for x in levels] for metric in (pesq, stoi))
    by_mel = [distance(noisy(x), WAV) for x in levels]
    assert by_pesq == sorted(by_pesq, reverse=True)  # type: ignore[type-var]
    assert by_stoi == sorted(by_stoi, reverse=True)  # type: ignore[type-var]
    assert by_mel == sorted(by_mel)
    for values in (by_pesq, by_stoi, by_mel):
        assert len(set(values)) == len(levels)


def test_a_gain_moves_the_mel_distance_by_its_logarithm() -> None:
    loud = np.random.default_rng(0).normal(size=RATE).astype(np.float32)  # far above the floor everywhere
    assert MelDistance(RATE)(loud * np.float32(np.e), loud) == pytest.approx(1.0, abs=0.01)


def test_what_cannot_be_judged_is_none() -> None:
    short = WAV[: RATE // 10]
    assert pesq(short, short, RATE) is None
    assert stoi(short, short, RATE) is None
    assert pesq(np.zeros_like(WAV), np.zeros_like(WAV), RATE) is None
