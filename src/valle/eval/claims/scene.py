"""What all three claims are measured with: something that speaks with a prompt in memory, and what it said as numbers.

A system of ``valle.eval.synthesis`` is given a file; here the prompt may have been changed before it is heard.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from valle.audio import Audio, load, resample, trim_silence
from valle.codec.base import Codec
from valle.errors import ValleError
from valle.eval.journal import Journal
from valle.eval.judges import Judges
from valle.eval.systems import file_label
from valle.eval.trials import Trial
from valle.files import write_atomic
from valle.plots import as_bytes, new_figure

if TYPE_CHECKING:
    from valle.tts import VALLE

logger = logging.getLogger(__name__)

Measured = tuple[dict[str, Any], str]
"""Results ready for JSON, and markdown."""
REFUSED = "refused"
"""Why there is no speech: the voice would not say it."""


class Voice(Protocol):
    """Whatever turns a text and a recording into speech."""

    name: str

    def say(self, text: str, prompt: Audio, prompt_text: str, seed: int, **options: Any) -> Audio:
        """The text in the voice of the recording; ``options`` are those of ``VALLE.generate``.

        Raises:
            ValleError: this one cannot be spoken.
        """


class ValleVoice:
    """A model of this project."""

    def __init__(self, tts: VALLE, **options: Any) -> None:
        """``options`` are those of ``VALLE.generate``, for all that is said."""
        self.name, self._tts, self._options = tts.model.info.name, tts, options

    def say(self, text: str, prompt: Audio, prompt_text: str, seed: int, **options: Any) -> Audio:
        return self._tts.generate(
            text, ref_audio=prompt, ref_text=prompt_text, seed=seed, **{**self._options, **options}
        )


@dataclass(frozen=True)
class Stage:
    """Who speaks, who listens, and where it is written down."""

    voice: Voice
    codec: Codec
    """For round trips; the voice's own."""
    trials: Sequence[Trial]
    folder: Path
    """The manifest's, to which the trials' paths are relative."""
    journal: Journal
    out: Path
    """For plots and waves."""
    judges: Judges = field(default_factory=lambda: Judges(None, None, {}))
    n_listen: int = 0
    """Of how many trials the waves are written, as they are spoken."""

    @property
    def rate(self) -> int:
        """Samples a second of all waves."""
        return self.codec.sample_rate

    def load(self, path: str | Path) -> NDArray[np.float32]:
        """A recording as wav [N], by its path from the manifest's folder."""
        return load(self.folder / path, self.rate).waveform[0].numpy()

    def say(
        self, trial: Trial, prompt: NDArray[np.float32], label: str, *, seed: int | None = None, **options: Any
    ) -> tuple[NDArray[np.float32], str]:
        """The trial's text after a prompt [N] -> wav [N'], and why it ended; no samples where it was refused."""
        heard = Audio(torch.from_numpy(np.ascontiguousarray(prompt))[None], self.rate)
        try:
            spoken = self.voice.say(
                trial.text, heard, trial.prompt_text, trial.seed if seed is None else seed, **options
            )
        except ValleError as error:
            logger.warning("%s: %s", trial.id, error)
            return np.zeros(0, np.float32), REFUSED
        if any(t.id == trial.id for t in self.trials[: self.n_listen]):
            self._write(trial, label, spoken)
            self._write(trial, f"{label}-prompt", heard)
        wav = resample(spoken.waveform.float().cpu(), spoken.sample_rate, self.rate)[0].numpy()
        return wav, str(spoken.info.get("stop", "unknown"))

    def _write(self, trial: Trial, label: str, audio: Audio) -> None:
        if audio.waveform.shape[1]:
            (self.out / "wavs").mkdir(parents=True, exist_ok=True)
            audio.save(self.out / "wavs" / f"{file_label(trial.id)}-{file_label(label)}.flac")


def speech_of(wav: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """wav [N] without the silence at its ends."""
    return trim_silence(torch.from_numpy(wav)[None], sample_rate, keep_s=0.0)[0].numpy() if len(wav) else wav


@cache
def n_phones(text: str) -> int:
    """Phones of an English text, 0 where it holds nothing that can be spoken."""
    from valle.text import DEFAULT_INVENTORY, PHONE, Phonemizer

    try:
        ids = DEFAULT_INVENTORY.encode(Phonemizer("en-us")(text))
    except ValleError:
        return 0
    return sum(DEFAULT_INVENTORY.kinds[i] == PHONE for i in ids)


def phones_per_s(text: str, wav: NDArray[np.float32], sample_rate: int) -> float | None:
    """How fast the text is spoken in wav [N], pauses within it included; None for silence."""
    n = len(speech_of(wav, sample_rate))
    return n_phones(text) * sample_rate / n if n and wav.any() and n_phones(text) else None


def semitones(hz: float | None) -> float | None:
    """Above 100 Hz."""
    return 12 * float(np.log2(hz / 100)) if hz else None


def draw(path: Path, paint: Callable[[Any], None], alt: str, *, inches: tuple[float, float]) -> str:
    """Write a plot as PNG, and return the markdown that shows it or says why there is none.

    Args:
        path: beside ``report.md``.
        paint: draws into a ``Figure`` of matplotlib.
        alt: what is to be seen.
        inches: width and height.
    """
    try:
        figure = new_figure(*inches)
    except ModuleNotFoundError:
        return "\nNo plot: matplotlib is not installed (pip install 'valle[eval]').\n"
    paint(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, as_bytes(figure))
    return f"\n![{alt}]({path.name})\n"
