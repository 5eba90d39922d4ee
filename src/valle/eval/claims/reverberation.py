"""Rooms: responses with a known reverberation time, and how long a room is guessed to ring from speech alone.

A response is the direct sound and noise that falls by 60 dB within T60 (Polack's model). Blind guessing looks at how
fast the level falls in octave bands wherever it falls for long: by a room's rate at the fastest, since a room goes on
sounding after the voice has stopped (Lebart et al., "A new method based on spectral subtraction for speech
dereverberation", Acta Acustica 87, 2001). The median over all falls is told. Speech alone falls too, so that the guess
for a dry recording is about 0.3 s; ``valle eval claims environment`` reports the error on rooms that are known.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import soxr
from numpy.typing import NDArray

RATE = 16000
"""Samples a second at which is guessed."""
_BANDS_HZ = (250, 500, 1000, 2000, 4000)
_WINDOW, _HOP = 400, 80  # 25 ms every 5 ms
_SMOOTH = 11  # frames: the level within a syllable goes up and down
_MIN_S = 0.08  # shortest fall that is believed
_MIN_DROP_DB = 8.0
_ONSET_DB = 2.0  # of a fall that are left out: there the voice has not stopped yet
_FLOOR_DB = 6.0  # above the noise a fall is over
_LOUD_DB = 32.0  # below the loudest frame no fall begins
_MIN_FALLS = 3


def room_response(t60_s: float, sample_rate: int, seed: int) -> NDArray[np.float64]:
    """A response [n], its first sample the direct sound of level 1; that alone for 0 s.

    The rest begins after 2.5 ms and has the direct sound's energy at 0.6 s, in proportion to T60 otherwise, as in rooms
    that differ in what their walls swallow alone.
    """
    if t60_s <= 0:
        return np.ones(1)
    t = np.arange(round(t60_s * sample_rate)) / sample_rate
    response = np.random.default_rng(seed).normal(size=len(t)) * 10 ** (-3 * t / t60_s)
    response[: round(0.0025 * sample_rate)] = 0
    response *= np.sqrt(t60_s / 0.6 / np.square(response).sum())
    response[0] = 1
    return response


def reverberate(wav: NDArray[np.float32], response: NDArray[np.float64]) -> NDArray[np.float32]:
    """wav [N], response [n] -> [N + n - 1], as loud at its peak as before."""
    if len(response) == 1:
        return wav
    n = len(wav) + len(response) - 1
    size = 1 << (n - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wav, size) * np.fft.rfft(response, size), size)[:n]
    peak = np.abs(wet).max()
    return (wet * (np.abs(wav).max() / peak if peak > 0 else 1.0)).astype(np.float32)


def reverberation_s(wav: NDArray[np.float32], sample_rate: int) -> float | None:
    """T60 guessed from speech [N]; None where its level hardly ever falls for long."""
    found = falls(wav, sample_rate)
    return float(np.median(found)) if len(found) >= _MIN_FALLS else None


def falls(wav: NDArray[np.float32], sample_rate: int) -> list[float]:
    """The seconds that 60 dB would take, of each fall of the level of speech [N] in each band."""
    if not len(wav) or not wav.any():
        return []
    x = np.pad(np.asarray(soxr.resample(wav, sample_rate, RATE), np.float64), _WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(x, _WINDOW)[::_HOP] * np.hanning(_WINDOW)  # [T, 400]
    power = np.square(np.abs(np.fft.rfft(frames, 512)))  # [T, 257]
    hz = np.arange(power.shape[1]) * RATE / 512
    found = []
    for low, high in pairwise(_BANDS_HZ):
        levels = 10 * np.log10(power[:, (hz >= low) & (hz < high)].sum(1) + 1e-12)
        found += _falls(np.convolve(levels, np.ones(_SMOOTH) / _SMOOTH, "valid"))
    return found


def _falls(levels: NDArray[np.float64]) -> list[float]:
    """Those of one band's levels [T] in dB."""
    if not len(levels):
        return []
    floor = max(np.quantile(levels, 0.03), levels.max() - 60) + _FLOOR_DB
    falling = np.concatenate([[False], np.diff(levels) < 0, [False]])
    edges = np.flatnonzero(np.diff(falling.astype(int)))
    found = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        run = levels[begin : end + 1]
        run = run[run > floor]
        if not len(run) or run[0] < levels.max() - _LOUD_DB:
            continue
        run = run[np.argmax(run < run[0] - _ONSET_DB) :]
        if len(run) * _HOP < _MIN_S * RATE or run[0] - run[-1] < _MIN_DROP_DB:
            continue
        t = np.arange(len(run)) * _HOP / RATE
        t -= t.mean()
        found.append(-60.0 / float(t @ run / (t @ t)))
    return found
