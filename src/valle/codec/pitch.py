"""Pitch of the training speech, by Praat's autocorrelation method, once for a whole corpus.

Only training needs it: it teaches the harmonic decoder which pitch the codes hold. ``praat-parselmouth`` is GPL-3 and
comes with the extra ``train``; nothing that the package ships or runs afterwards depends on it.

Source: Boersma, "Accurate short-term analysis of the fundamental frequency", IFA Proceedings 17, 1993.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from valle.codec.crops import PITCH_STEP, WaveCache
from valle.codec.harmonic import MAX_HZ, MIN_HZ
from valle.errors import ValleError


def build_pitch(cache: WaveCache, path: Path, sample_rate: int = 24000) -> np.ndarray:
    """Pitch at every ``PITCH_STEP``-th sample of ``cache.samples``: float32 [n] in Hz, 0 where unvoiced.

    Written to ``path`` once, and read from there afterwards.

    Raises:
        ValleError: praat-parselmouth is not installed.
    """
    n = len(cache.samples) // PITCH_STEP + 1
    if path.is_file():
        stored: np.ndarray = np.load(path)
        if len(stored) == n:
            return stored
    try:
        import parselmouth  # noqa: F401
    except ImportError as error:
        raise ValleError("the pitch of the speech is needed: pip install 'valle[train]'") from error
    from tqdm import tqdm

    hz = np.zeros(n, dtype=np.float32)
    bounds = [(int(a), int(b)) for a, b in zip(cache.starts[:-1], cache.starts[1:], strict=True)]
    jobs = ((cache.samples[a:b], sample_rate) for a, b in bounds)
    with ProcessPoolExecutor() as pool:
        tracks = pool.map(_track, jobs, chunksize=16)
        for (a, b), (first_s, step_s, track) in zip(bounds, tqdm(tracks, total=len(bounds), desc="pitch"), strict=True):
            if not len(track):
                continue
            marks = np.arange(-(-a // PITCH_STEP), -(-b // PITCH_STEP))
            at = ((marks * PITCH_STEP - a) / sample_rate - first_s) / step_s
            inside = (at >= -0.5) & (at < len(track) - 0.5)
            hz[marks[inside]] = track[np.floor(at[inside] + 0.5).astype(int)]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npy")
    np.save(part, hz)
    part.rename(path)
    return hz


def fill(hz: np.ndarray) -> np.ndarray:
    """Bridge the unvoiced stretches (zeros) of a track [n], evenly in the logarithm; 120 Hz where all is unvoiced."""
    voiced = np.flatnonzero(hz)
    if not len(voiced):
        return np.full_like(hz, 120.0)
    bridged: np.ndarray = np.exp(np.interp(np.arange(len(hz)), voiced, np.log(hz[voiced]))).astype(np.float32)
    return bridged


def _track(job: tuple[np.ndarray, int]) -> tuple[float, float, np.ndarray]:
    """Time of the first pitch and step between them in seconds, and the pitches in Hz, 0 where unvoiced."""
    import parselmouth

    samples, sample_rate = job
    step = PITCH_STEP / sample_rate
    if len(samples) < 0.06 * sample_rate:
        return 0.0, step, np.zeros(0, dtype=np.float32)
    sound = parselmouth.Sound(samples.astype(np.float64) / 32768, sample_rate)
    pitch = sound.to_pitch_ac(time_step=step, pitch_floor=MIN_HZ, pitch_ceiling=MAX_HZ)
    return float(pitch.t1), step, pitch.selected_array["frequency"].astype(np.float32)
