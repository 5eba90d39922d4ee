"""What listens to speech: the aligner, which tells when each phoneme is spoken (paper §4.1, the recogniser's part)."""

from valle.asr.aligner import Aligner, Alignment

__all__ = ["Aligner", "Alignment"]
