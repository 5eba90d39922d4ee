"""Pitch and level of speech, as a few numbers that tell a monotone or a robot from a person (not in the paper).

The pitch is Praat's (``valle.codec.pitch``), tracked twice: the second time within the range that the first found for
this speaker, which leaves out most octave errors (De Looze and Hirst, Speech Prosody 2008).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from valle.codec.pitch import track_pitch

RATE = 16000
"""Samples a second at which all this is computed."""
RANGE_HZ = (60.0, 500.0)
"""Lowest and highest pitch that is looked for."""
STEP_S = 0.01
"""From one pitch and level to the next."""
_STEP, _WINDOW = 160, 640  # samples from frame to frame, and of a frame whose level is told
_SOUNDING_DB = 30.0  # below the loudest frame there is no speech
_MIN_VOICED = 5  # frames, without which no pitch is told


class Intonation(NamedTuple):
    """Of a recording, every ``STEP_S``."""

    hz: NDArray[np.float64]
    """[T] the pitch, 0 where there is none."""
    levels: NDArray[np.float64]
    """[T] root mean square in dB relative to full scale, -120 at least."""

    @property
    def sounding(self) -> NDArray[np.bool_]:
        """[T] where something is said: less than 30 dB below the loudest; nowhere in silence."""
        if not len(self.levels) or self.levels.max() <= -100:
            return np.zeros(len(self.levels), bool)
        sounding: NDArray[np.bool_] = self.levels > self.levels.max() - _SOUNDING_DB
        return sounding


def intonation(wav: NDArray[np.float32], sample_rate: int) -> Intonation:
    """Pitch and level of wav [N]; T is 0 where it is shorter than a frame of 40 ms."""
    x = np.asarray(soxr.resample(wav, sample_rate, RATE), np.float64) if len(wav) else np.zeros(0)
    if len(x) < _WINDOW:
        return Intonation(np.zeros(0), np.zeros(0))
    frames = np.lib.stride_tricks.sliding_window_view(x, _WINDOW)[::_STEP]  # [T, 640]
    levels = 10 * np.log10(np.maximum(np.square(frames).mean(1), 1e-12))
    hz = _pitch(x, len(levels), *RANGE_HZ)
    if np.count_nonzero(hz) >= _MIN_VOICED:
        low, high = np.quantile(hz[hz > 0], [0.35, 0.65])
        hz = _pitch(x, len(levels), max(RANGE_HZ[0], 0.6 * float(low)), min(RANGE_HZ[1], 1.8 * float(high)))
    return Intonation(hz, levels)


def prosody(wav: NDArray[np.float32], sample_rate: int) -> dict[str, float | None]:
    """Statistics of wav [N]: None where nothing sounds, or nothing is voiced.

    Returns:
        ``f0_hz``: median pitch; ``f0_spread``: half of what lies between its 16th and 84th percentile, in semitones (a
        standard deviation that octave errors do not move); ``voiced``: share of the sounding frames; ``level_spread``:
        standard deviation of their level in dB.
    """
    told = intonation(wav, sample_rate)
    if not told.sounding.any():
        return dict.fromkeys(("f0_hz", "f0_spread", "voiced", "level_spread"))
    track = told.hz[told.sounding]
    hz = track[track > 0]
    level_spread, voiced = float(told.levels[told.sounding].std()), len(hz) / len(track)
    if len(hz) < _MIN_VOICED:
        return {"f0_hz": None, "f0_spread": None, "voiced": voiced, "level_spread": level_spread}
    median = float(np.median(hz))
    low, high = np.quantile(hz, [0.16, 0.84])
    spread = float(6 * np.log2(high / low))
    return {"f0_hz": median, "f0_spread": spread, "voiced": voiced, "level_spread": level_spread}


def _pitch(x: NDArray[np.float64], n: int, floor_hz: float, ceiling_hz: float) -> NDArray[np.float64]:
    """x [N] at 16 kHz -> the pitch at the middles of n frames, [n]."""
    first_s, track = track_pitch(x, RATE, STEP_S, floor_hz, ceiling_hz)
    if not len(track):
        return np.zeros(n)
    at = np.rint(((np.arange(n) * _STEP + _WINDOW / 2) / RATE - first_s) / STEP_S).astype(int)
    return np.where((at >= 0) & (at < len(track)), track[at.clip(0, len(track) - 1)], 0.0).astype(np.float64)
