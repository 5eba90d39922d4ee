"""Pitch by Praat's autocorrelation method: of the training speech, once for a whole corpus, and of what is measured.

Training and measuring need it: it teaches the harmonic decoder which pitch the codes hold, and tells how speech is
intoned (``valle.eval.prosody``). ``praat-parselmouth`` is GPL-3 and comes with the extras ``train`` and ``eval``;
nothing that the package ships or that speaks depends on it.

Source: Boersma, "Accurate short-term analysis of the fundamental frequency", IFA Proceedings 17, 1993.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
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
    require_praat("train")
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


def require_praat(extra: str) -> None:
    """
    Raises:
        ValleError: praat-parselmouth is not installed; ``extra`` brings it.
    """
    if find_spec("parselmouth") is None:
        raise ValleError(f"the pitch of the speech is needed: pip install 'valle[{extra}]'")


def track_pitch(
    wav: np.ndarray, sample_rate: int, step_s: float, floor_hz: float, ceiling_hz: float
) -> tuple[float, np.ndarray]:
    """wav [N] -> the time of the first pitch in seconds, and pitches in Hz every ``step_s``: float32 [T], 0 unvoiced.

    T is 0 where there are not three periods of ``floor_hz``.
    """
    import parselmouth

    if len(wav) < (3 / floor_hz + 0.005) * sample_rate:
        return 0.0, np.zeros(0, dtype=np.float32)
    sound = parselmouth.Sound(wav.astype(np.float64), sample_rate)
    pitch = sound.to_pitch_ac(time_step=step_s, pitch_floor=floor_hz, pitch_ceiling=ceiling_hz)
    return float(pitch.t1), pitch.selected_array["frequency"].astype(np.float32)


def shift_pitch(wav: np.ndarray, sample_rate: int, semitones: float) -> np.ndarray:
    """wav [N] -> float32 [N] with its pitch so much higher, as long and with its formants, by Praat's PSOLA.

    Source: Moulines and Charpentier, Speech Communication 9, 1990.
    """
    import parselmouth
    from parselmouth.praat import call

    sound = parselmouth.Sound(wav.astype(np.float64), sample_rate)
    whole = call(sound, "To Manipulation", 0.01, MIN_HZ, MAX_HZ)
    tier = call(whole, "Extract pitch tier")
    call(tier, "Shift frequencies", sound.xmin, sound.xmax, semitones, "semitones")
    call([tier, whole], "Replace pitch tier")
    shifted = call(whole, "Get resynthesis (overlap-add)").values[0].astype(np.float32)
    return np.pad(shifted, (0, max(0, len(wav) - len(shifted))))[: len(wav)]


def fill(hz: np.ndarray) -> np.ndarray:
    """Bridge the unvoiced stretches (zeros) of a track [n], evenly in the logarithm; 120 Hz where all is unvoiced."""
    voiced = np.flatnonzero(hz)
    if not len(voiced):
        return np.full_like(hz, 120.0)
    bridged: np.ndarray = np.exp(np.interp(np.arange(len(hz)), voiced, np.log(hz[voiced]))).astype(np.float32)
    return bridged


def _track(job: tuple[np.ndarray, int]) -> tuple[float, float, np.ndarray]:
    """Time of the first pitch and step between them in seconds, and the pitches in Hz, 0 where unvoiced."""
    samples, sample_rate = job
    step = PITCH_STEP / sample_rate
    first_s, track = track_pitch(samples.astype(np.float64) / 32768, sample_rate, step, MIN_HZ, MAX_HZ)
    return first_s, step, track
