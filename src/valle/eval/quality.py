"""How near a signal is to another of the same length: PESQ, STOI and the distance of their mel spectrograms.

They judge a codec, which should give back what it was given. They say nothing of synthesis, which may time its words
otherwise and still be right. Of that, ``SoundQuality`` tells what needs no other signal: DNSMOS, pitch and level.
"""

from __future__ import annotations

import warnings

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from valle.codec.losses import MultiScaleMelLoss
from valle.codec.pitch import require_praat
from valle.eval.dnsmos import Dnsmos
from valle.eval.prosody import prosody

PESQ_RATE = 16000
"""Samples a second of wide-band PESQ (ITU-T P.862.2)."""


class MelDistance:
    """Mean absolute difference of log-mel spectrograms over five window lengths, in nepers: what codecs train on."""

    def __init__(self, sample_rate: int) -> None:
        self._loss = MultiScaleMelLoss(sample_rate)

    @torch.no_grad()
    def __call__(self, wav: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
        """wav, reference [N]; 0 when equal."""
        a, b = (torch.from_numpy(np.ascontiguousarray(x))[None, None] for x in (wav, reference))  # [1, 1, N]
        return float(self._loss(a, b))


def pesq(wav: NDArray[np.float32], reference: NDArray[np.float32], sample_rate: int) -> float | None:
    """Wide-band PESQ, 1.0 (bad) to 4.64 (equal); None where it finds no speech. wav, reference [N]."""
    from pesq import BufferTooShortError, NoUtterancesError
    from pesq import pesq as wide_band

    a, b = (soxr.resample(x, sample_rate, PESQ_RATE) for x in (wav, reference))
    if not (a.any() and b.any()):
        return None
    try:
        return float(wide_band(PESQ_RATE, b, a, "wb"))
    except (NoUtterancesError, BufferTooShortError):
        return None


def stoi(wav: NDArray[np.float32], reference: NDArray[np.float32], sample_rate: int) -> float | None:
    """Short-time objective intelligibility, up to 1 (equal); None where less than 0.4 s sounds. wav, reference [N]."""
    from pystoi import stoi as short_time

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # pystoi's way to say that there is too little
        try:
            return float(short_time(reference, wav, sample_rate))
        except RuntimeWarning:
            return None


class SoundQuality:
    """DNSMOS and the statistics of pitch and level."""

    def __init__(self, *, threads: int = 0) -> None:
        """
        Raises:
            ValleError: a package is missing.
        """
        require_praat("eval")
        self._dnsmos = Dnsmos(threads=threads)
        self.name = f"{self._dnsmos.name}, pitch by Praat"

    def __call__(self, wav: NDArray[np.float32], sample_rate: int) -> dict[str, float | None]:
        """wav [N] -> the fields of ``Dnsmos`` and of ``prosody``; None where there is nothing to measure."""
        return {**self._dnsmos(wav, sample_rate), **prosody(wav, sample_rate)}

    def pitch_hz(self, wav: NDArray[np.float32], sample_rate: int) -> float | None:
        """The median alone."""
        return prosody(wav, sample_rate)["f0_hz"]
