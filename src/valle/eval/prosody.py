"""Pitch and level of speech, as a few numbers that tell a monotone or a robot from a person (not in the paper).

The pitch is that of the autocorrelation, divided by the window's own (Boersma, "Accurate short-term analysis of the
fundamental frequency", IFA Proceedings 17, 1993), twice: the second time within the range that the first found for this
speaker, which leaves out most octave errors (De Looze and Hirst, Speech Prosody 2008). It needs no other package.
"""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

RATE = 16000
"""Samples a second at which all this is computed."""
RANGE_HZ = (60.0, 500.0)
"""Lowest and highest pitch that is looked for."""
_STEP = 160  # samples from frame to frame: 10 ms
_WINDOW = 640  # samples of a frame: 40 ms
_VOICED = 0.45  # of the autocorrelation of a perfectly periodic frame
_OCTAVE = 0.02  # what an octave higher is worth, or half of the periods would be found as often as the whole ones
_SOUNDING_DB = 30.0  # below the loudest frame there is no speech


def prosody(wav: NDArray[np.float32], sample_rate: int) -> dict[str, float | None]:
    """Statistics of wav [N]: None where nothing sounds, or nothing is voiced.

    Returns:
        ``f0_hz``: median pitch; ``f0_spread``: half of what lies between its 16th and 84th percentile, in semitones (a
        standard deviation that octave errors do not move); ``voiced``: share of the sounding frames; ``level_spread``:
        standard deviation of their level in dB.
    """
    frames = _frames(soxr.resample(wav, sample_rate, RATE)) if len(wav) else np.zeros((0, _WINDOW))  # [T, _WINDOW]
    levels = 10 * np.log10(np.maximum(np.square(frames).mean(1), 1e-12)) if len(frames) else np.zeros(0)  # [T]
    if not len(frames) or levels.max() <= -100:
        return dict.fromkeys(("f0_hz", "f0_spread", "voiced", "level_spread"))
    sounding = levels > levels.max() - _SOUNDING_DB  # [T]
    track = pitch_track(frames)[sounding]
    hz = track[track > 0]
    level_spread, voiced = float(levels[sounding].std()), len(hz) / len(track)
    if len(hz) < 5:
        return {"f0_hz": None, "f0_spread": None, "voiced": voiced, "level_spread": level_spread}
    median = float(np.median(hz))
    low, high = np.quantile(hz, [0.16, 0.84])
    spread = float(6 * np.log2(high / low))
    return {"f0_hz": median, "f0_spread": spread, "voiced": voiced, "level_spread": level_spread}


def pitch_track(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """frames [T, 640] at 16 kHz -> pitch in Hz [T], 0 where there is none."""
    track = _pitch(frames, *RANGE_HZ)
    hz = track[track > 0]
    if len(hz) < 5:
        return track
    low, high = np.quantile(hz, [0.35, 0.65])
    return _pitch(frames, max(RANGE_HZ[0], 0.6 * low), min(RANGE_HZ[1], 1.8 * high))


def _frames(wav: NDArray[np.float32]) -> NDArray[np.float64]:
    """wav [N] -> [T, 640], whole frames only."""
    if len(wav) < _WINDOW:
        return np.zeros((0, _WINDOW))
    return np.lib.stride_tricks.sliding_window_view(wav.astype(np.float64), _WINDOW)[::_STEP]


def _pitch(frames: NDArray[np.float64], floor: float, ceiling: float) -> NDArray[np.float64]:
    """frames [T, 640] -> [T]."""
    window = np.hanning(_WINDOW + 2)[1:-1]

    def correlate(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.fft.irfft(np.square(np.abs(np.fft.rfft(x, 2 * _WINDOW))))[..., : _WINDOW // 2]

    own = correlate(window)  # [320]
    r = correlate((frames - frames.mean(1, keepdims=True)) * window)  # [T, 320]
    r /= np.maximum(r[:, :1], 1e-12) * (own / own[0])
    lags = np.arange(max(2, int(RATE / ceiling)), min(_WINDOW // 2 - 1, int(RATE / floor) + 1))
    middle, before, after = r[:, lags], r[:, lags - 1], r[:, lags + 1]  # [T, lags] each
    peaks = (middle >= before) & (middle >= after)
    scores = np.where(peaks, middle - _OCTAVE * np.log2(lags * floor / RATE), -np.inf)
    best = scores.argmax(1)[:, None]
    top, a, b = (np.take_along_axis(x, best, 1)[:, 0] for x in (middle, before, after))  # [T] each
    bend = a - 2 * top + b
    shift = np.where(bend < 0, 0.5 * (a - b) / np.where(bend < 0, bend, -1.0), 0.0)
    is_peak = np.take_along_axis(peaks, best, 1)[:, 0]
    hz: NDArray[np.float64] = np.where(is_peak & (top > _VOICED), RATE / (lags[best[:, 0]] + shift), 0.0)
    return hz
