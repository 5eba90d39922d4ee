"""How to speak: what a caller may ask for, with its bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from valle.errors import ValleError
from valle.model.sampling import SamplingConfig


@dataclass(frozen=True)
class SpeakOptions:
    """How to speak; the keyword arguments of ``VALLE.generate``, ``generate_batch`` and ``stream``."""

    seed: int | None = None
    """One seed, one wave; None draws one and reports it in ``Audio.info``."""
    temperature: float | None = None
    """Divides the logits: below 1 plays safe, above 1 is bolder, 0 takes the likeliest. None: the model's choice."""
    nar_temperature: float | None = None
    """The same for codebooks 2 to 8, where the paper has 0. None: the model's choice."""
    top_p: float | None = None
    """Draw only from the smallest set of codes whose probabilities reach this sum. None: the model's choice."""
    top_k: int | None = None
    """Draw only from the k likeliest codes; 0 for all. None: the model's choice."""
    repetition_aware: bool | None = None
    """Break loops by VALL-E 2's repetition-aware sampling. None: the model's choice."""
    guidance: float | None = None
    """How far the text pulls, 1 being off; for models that have learnt to go without. None: the model's choice."""
    voice_guidance: float | None = None
    """How far the prompt's voice pulls codebook 1, likewise."""
    nar_guidance: float | None = None
    """How far the prompt's voice pulls codebooks 2 to 8, likewise."""
    num_candidates: int | None = None
    """Speak each piece so many times and keep the best (see ``pieces.score``). None: the model's choice."""
    max_seconds: float | None = None
    """Cut the speech there; None leaves the bound to the length of the text."""
    lang: str = "en-us"
    """Language of text and transcript, as espeak names it."""

    def __post_init__(self) -> None:
        if self.num_candidates is not None and not 1 <= self.num_candidates <= 64:
            raise ValleError(f"num_candidates is {self.num_candidates}; it must be from 1 to 64")
        if self.max_seconds is not None and not (math.isfinite(self.max_seconds) and self.max_seconds >= 0.1):
            raise ValleError(f"max_seconds is {self.max_seconds}; it must be at least 0.1")
        if self.nar_temperature is not None and not (math.isfinite(self.nar_temperature) and self.nar_temperature >= 0):
            raise ValleError(f"nar_temperature is {self.nar_temperature}; it must be 0 (the likeliest codes) or more")
        if self.nar_guidance is not None and not (math.isfinite(self.nar_guidance) and self.nar_guidance >= 0):
            raise ValleError(f"nar_guidance is {self.nar_guidance}; it must be 0 or more; 1 is off")
        self.sampling(SamplingConfig())  # says what is wrong with the others

    def sampling(self, default: SamplingConfig) -> SamplingConfig:
        """What is given here, and the model's choice for the rest."""
        names = ("temperature", "top_p", "top_k", "repetition_aware", "guidance", "voice_guidance")
        return replace(default, **{n: getattr(self, n) for n in names if getattr(self, n) is not None})


def parse_options(options: dict[str, Any]) -> SpeakOptions:
    """The keyword arguments of a caller.

    Raises:
        TypeError: an unknown one.
        ValleError: one out of range.
    """
    known = [f.name for f in fields(SpeakOptions)]
    unknown = set(options) - set(known)
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    return SpeakOptions(**options)
