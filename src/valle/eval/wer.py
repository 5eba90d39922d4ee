"""Word error rate: what a recogniser understands, against what should have been said (paper §5.1).

Both sides pass through Whisper's English normaliser (lower case, no punctuation, numbers and spellings made one), and
the rate is that of the corpus: all errors over all words. The paper's judge is HuBERT-Large with CTC
(``pretrained_judges``); here it is any ``Recogniser``, and a rate means something only beside the same judge's rate on
the original recordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from valle.errors import ValleError
from valle.eval.bootstrap import Estimate, ratio_interval

RECOGNISER_RATE = 16000
"""Samples a second that recognisers take."""


class Recogniser(Protocol):
    """Speech to text."""

    def transcribe(self, wav: NDArray[np.float32]) -> str:
        """wav [N] in [-1, 1] at ``RECOGNISER_RATE``, mono -> what is said."""


class WhisperRecogniser:
    """Whisper by faster-whisper: English, temperature 0 without fallback, no text carried over, no speech detector.

    Temperature 0 alone, because Whisper's usual retries at higher temperatures are random, and a judge must not be. The
    beam is 5, faster-whisper's default.
    """

    def __init__(self, model: str, *, beam_size: int = 5, threads: int = 0) -> None:
        """
        Args:
            model: folder of a CTranslate2 model, or a name such as "base" that faster-whisper downloads.
            beam_size: hypotheses kept; 1 is greedy.
            threads: of the processor; 0 leaves it to the library.

        Raises:
            ValleError: neither a folder with a model nor a known name.
        """
        from faster_whisper import WhisperModel, available_models

        names = available_models()
        if not (Path(model) / "model.bin").is_file() and model not in names:
            raise ValleError(
                f"{model} holds no Whisper model (no model.bin); give --whisper a folder with a CTranslate2 model, "
                f"or a name that faster-whisper can download, such as base ({len(names)} are known)"
            )
        self._beam_size = beam_size
        self._model = WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(self, wav: NDArray[np.float32]) -> str:
        segments, _ = self._model.transcribe(
            np.ascontiguousarray(wav, np.float32),
            language="en",
            beam_size=self._beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


@dataclass(frozen=True)
class WordErrors:
    """The alignment of one hypothesis with its reference, counted."""

    words: int
    """Words of the reference, normalised."""
    substitutions: int
    """Words understood as others."""
    deletions: int
    """Words not understood."""
    insertions: int
    """Words understood that were not there."""
    reference: str = ""
    """What should have been said, normalised."""
    hypothesis: str = ""
    """What was understood, normalised."""

    @property
    def errors(self) -> int:
        """All three kinds."""
        return self.substitutions + self.deletions + self.insertions

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; ``WordErrors(**...)`` reads it."""
        return asdict(self)


def normalise_words(text: str) -> str:
    """Whisper's English normalisation: "Mr. Smith has 20 dollars" -> "mister smith has 20 dollars"."""
    return " ".join(_normaliser()(text).split())


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Align two texts, as they come, after normalising both."""
    reference, hypothesis = normalise_words(reference), normalise_words(hypothesis)
    if not reference:  # jiwer refuses an empty reference; every word is then too many
        return WordErrors(0, 0, 0, len(hypothesis.split()), reference, hypothesis)
    import jiwer

    counted = jiwer.process_words([reference], [hypothesis])
    return WordErrors(
        len(reference.split()), counted.substitutions, counted.deletions, counted.insertions, reference, hypothesis
    )


class AlignedWord(NamedTuple):
    """One step of an alignment."""

    mark: Literal["", "S", "D", "I"]
    """Right, substituted, deleted or inserted."""
    reference: str
    """The word that should have been said; empty where one was inserted."""
    hypothesis: str
    """The word that was understood; empty where one was deleted."""


def align_words(reference: str, hypothesis: str) -> list[AlignedWord]:
    """Which word became which, of two normalised texts; the counts of ``word_errors`` are those of the marks."""
    said, heard = reference.split(), hypothesis.split()
    if not said:
        return [AlignedWord("I", "", word) for word in heard]
    import jiwer

    words = []
    for chunk in jiwer.process_words([reference], [hypothesis]).alignments[0]:
        a = said[chunk.ref_start_idx : chunk.ref_end_idx]
        b = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            words += [AlignedWord("D", word, "") for word in a]
        elif chunk.type == "insert":
            words += [AlignedWord("I", "", word) for word in b]
        else:
            mark: Literal["", "S"] = "S" if chunk.type == "substitute" else ""
            words += [AlignedWord(mark, x, y) for x, y in zip(a, b, strict=True)]
    return words


def error_rate(counts: Sequence[WordErrors], *, seed: int = 0) -> Estimate | None:
    """Word error rate of a corpus with its interval; None without words."""
    return ratio_interval([c.errors for c in counts], [c.words for c in counts], seed=seed)


@cache
def _normaliser() -> Any:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
