"""Sounds made for the tests."""

from __future__ import annotations

import numpy as np


def voiced(seconds: float, rate: int = 24000, level: float = 0.1) -> np.ndarray:
    """Something like speech: syllables of a few harmonics with noise; float32 [N]."""
    t = np.arange(round(seconds * rate)) / rate
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)
    tone = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 8))
    noise = np.random.default_rng(0).normal(size=len(t)) * 0.05
    return (level * syllables * (tone + noise)).astype(np.float32)
