"""What listens to speech: the aligner, which tells when each phoneme is spoken (paper §4.1, the recogniser's part)."""

from valle.asr.aligner import Aligner, Alignment
from valle.asr.intervals import Interval, PhonemeAligner, align_at

__all__ = ["Aligner", "Alignment", "Interval", "PhonemeAligner", "align_at"]
