"""Whether a piece of a recording is good enough to learn from: a few measures, and thresholds for them.

- Clipping: the share of samples within 1 % of the peak. Speech is hardly ever there (Gaussian or peakier amplitudes);
  a wave cut off at the top is, at whatever level it was stored.
- Signal-to-noise ratio: WADA (Kim and Stern, "Robust signal-to-noise ratio estimation based on waveform amplitude
  distribution analysis", Interspeech 2008): clean speech is taken to have amplitudes of a gamma distribution of shape
  0.4, noise to be Gaussian. It needs no pauses, and is blind to noise that is itself like speech, such as other voices.
- Bandwidth: the highest frequency at which the loudest twentieth of windows of about 40 ms has energy. A telephone
  has 3.4 kHz, a 40 kbit/s MP3 about 7 kHz, whatever the sample rate says.
- Level, by ``valle.audio.level_db``; characters a second; and what a recogniser and a speech detector said, if given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from valle.audio import level_db
from valle.errors import ValleError

CLIPPED = "clipped"
NOISY = "too much noise"
NARROW = "too little bandwidth"
QUIET = "too quiet"
TOO_SLOW = "too few characters a second"
TOO_FAST = "too many characters a second"
UNSURE = "a recogniser that is not sure"
LITTLE_SPEECH = "too little speech"

REASONS = (QUIET, CLIPPED, NOISY, NARROW, LITTLE_SPEECH, UNSURE, TOO_SLOW, TOO_FAST)
"""Every reason that ``judge`` gives, in the order in which it looks."""

# G = ln E|z| - E ln|z| of speech and noise together, every 5 dB from -20 to 100 dB of signal-to-noise ratio. Integrated
# numerically over the speech s (gamma distribution of shape 0.4, either sign); given s, z is normal with mean s, whose
# E|z| is known in closed form and whose E ln|z| is a Poisson mixture of digammas.
_WADA_DB = np.arange(-20.0, 101.0, 5.0)
_WADA_G = np.array(
    [
        *(0.40943, 0.40978, 0.41215, 0.42384, 0.46184, 0.54355, 0.66735, 0.81227, 0.95582, 1.08466, 1.19406, 1.28421),
        *(1.35726, 1.41594, 1.46284, 1.50022, 1.52997, 1.55363, 1.57243, 1.58737, 1.59924, 1.60867, 1.61616, 1.62211),
        1.62684,
    ]
)
_CLIP = 0.99  # of the peak
_BAND_DB = 60.0  # below the strongest frequency there is nothing
_LOUD_SHARE = 0.05  # of the windows, which hold the fricatives


@dataclass(frozen=True)
class QualityConfig:
    """What is good enough; None asks for nothing. The defaults only leave out what is plainly unusable."""

    max_clipped: float | None = 0.005
    """Largest share of samples at the peak."""
    min_snr_db: float | None = 10.0
    """Least signal-to-noise ratio by WADA."""
    min_bandwidth_hz: float | None = 3000.0
    """Least frequency up to which there is sound; 7000 leaves out telephones and low bit rates."""
    min_level_db: float | None = -50.0
    """Least level of what sounds, in dB relative to full scale: quieter is mostly the noise of 16 bits."""
    min_speech_share: float | None = 0.4
    """Least share of speech, where a detector told it."""
    min_confidence: float | None = None
    """Least confidence of the recogniser, where there is one; what it means depends on the recogniser."""
    min_chars_per_s: float | None = 2.0
    """Fewer letters and digits a second are not all that is said: learners have 4, fluent English 10 to 17."""
    max_chars_per_s: float | None = 30.0
    """More are not said."""

    def __post_init__(self) -> None:
        low, high = self.min_chars_per_s, self.max_chars_per_s
        if low is not None and high is not None and low >= high:
            raise ValleError(f"{low:g} characters a second at least and {high:g} at most leave nothing; swap them")


@dataclass(frozen=True)
class Quality:
    """What was measured; None where it could not be, which is never a reason to leave a piece out."""

    seconds: float
    """Length."""
    level_db: float
    """Level of what sounds, relative to full scale; minus infinity for digital silence."""
    clipped: float
    """Share of the samples within 1 % of the peak."""
    snr_db: float | None = None
    """Signal-to-noise ratio by WADA, -20 to 100."""
    bandwidth_hz: float | None = None
    """Up to where there is sound."""
    chars_per_s: float | None = None
    """Letters and digits of the text; None without one, and where its script writes syllables or words."""
    confidence: float | None = None
    """The recogniser's, as given."""
    speech_share: float | None = None
    """The detector's, as given."""


def measure(
    wav: Tensor,
    sample_rate: int,
    *,
    text: str | None = None,
    confidence: float | None = None,
    speech_share: float | None = None,
) -> Quality:
    """Measure a piece before its level is changed, at the rate at which it was recorded.

    Args:
        wav: [1, N] in [-1, 1], N at least 1.
        sample_rate: of wav.
        text: what is said, if known.
        confidence: what the recogniser that made the text thinks of it.
        speech_share: of the piece, by ``valle.data.segment``.
    """
    assert tuple(wav.shape) == (1, wav.numel()), "wav is [1, N]"
    assert wav.numel(), "wav is empty"
    samples: NDArray[np.float32] = wav[0].numpy()  # [N]
    seconds = len(samples) / sample_rate
    return Quality(
        seconds=seconds,
        level_db=level_db(wav, sample_rate),
        clipped=clipped_share(samples),
        snr_db=wada_snr_db(samples),
        bandwidth_hz=bandwidth_hz(samples, sample_rate),
        chars_per_s=None if text is None else chars_per_s(text, seconds),
        confidence=confidence,
        speech_share=speech_share,
    )


def judge(quality: Quality, config: QualityConfig | None = None) -> str | None:
    """The first of ``REASONS`` to leave a piece out, None when there is none."""
    config = config or QualityConfig()
    checks: tuple[tuple[str, float | None, float | None, float | None], ...] = (
        (QUIET, quality.level_db, config.min_level_db, None),
        (CLIPPED, quality.clipped, None, config.max_clipped),
        (NOISY, quality.snr_db, config.min_snr_db, None),
        (NARROW, quality.bandwidth_hz, config.min_bandwidth_hz, None),
        (LITTLE_SPEECH, quality.speech_share, config.min_speech_share, None),
        (UNSURE, quality.confidence, config.min_confidence, None),
        (TOO_SLOW, quality.chars_per_s, config.min_chars_per_s, None),
        (TOO_FAST, quality.chars_per_s, None, config.max_chars_per_s),
    )
    for reason, value, low, high in checks:
        if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
            return reason
    return None


def clipped_share(wav: NDArray[np.float32]) -> float:
    """wav [N] -> share of the samples within 1 % of the peak, of either sign; 0 for silence."""
    magnitude = np.abs(wav)
    peak = float(magnitude.max(initial=0))
    return float((magnitude >= _CLIP * peak).mean()) if peak > 0 else 0.0


def wada_snr_db(wav: NDArray[np.float32]) -> float | None:
    """wav [N] -> signal-to-noise ratio in dB, -20 to 100; None where fewer than 1000 samples differ from the middle."""
    magnitude = np.abs(wav.astype(np.float64) - wav.mean(dtype=np.float64))
    magnitude = magnitude[magnitude > 1e-9]  # digital silence is neither speech nor noise
    if len(magnitude) < 1000:
        return None
    g = math.log(magnitude.mean()) - float(np.log(magnitude).mean())
    return float(np.interp(g, _WADA_G, _WADA_DB))


def bandwidth_hz(wav: NDArray[np.float32], sample_rate: int) -> float | None:
    """wav [N] -> the highest frequency with energy: within 60 dB of the strongest one. None for silence or below 0.2 s.

    Of each frequency counts what it has in the loudest twentieth of the windows (95th percentile), so that a few
    fricatives are enough.
    """
    size = 1 << max(round(math.log2(0.043 * sample_rate)), 6)
    if len(wav) < 0.2 * sample_rate or len(wav) < size:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(wav, size)[:: size // 2]  # [windows, size]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(size).astype(np.float32), axis=1)))  # [windows, bins]
    loud = np.quantile(power, 1 - _LOUD_SHARE, axis=0)  # [bins]
    if loud.max() < 1e-9:
        return None
    top = int(np.flatnonzero(loud >= loud.max() * 10 ** (-_BAND_DB / 10))[-1])
    return top * sample_rate / size


def chars_per_s(text: str, seconds: float) -> float | None:
    """Letters and digits a second; None for scripts whose characters are syllables or words (Chinese, kana, Hangul)."""
    characters = [c for c in text if c.isalnum()]
    if any("\u3040" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3" for c in characters):
        return None
    return len(characters) / seconds
