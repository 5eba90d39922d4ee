"""Recordings made ready to learn from: probed, read, trimmed, levelled, and their texts as phonemes.

What would teach nonsense is refused with a reason: unreadable or silent audio, too short or too long, no text, or a
text that its audio cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from valle.data.corpus import Utterance, load_wav
from valle.data.probe import SILENCE_PEAK, SILENT, BadAudio, probe
from valle.data.quality import QualityConfig, judge, measure
from valle.errors import ValleError

if TYPE_CHECKING:
    from valle.text import PhonemeInventory

Phonemize = Callable[[str, str], Sequence[str]]

MAX_PHONEMES_PER_S = 35.0
"""Nobody speaks faster (fast conversation has about 20): the text is not what is said."""
MIN_PHONEMES_PER_S = 1.5
"""Nobody speaks slower: the recording goes on after the text."""


@dataclass(frozen=True)
class PrepareConfig:
    """What decides which utterances enter a pack, and its form."""

    min_seconds: float = 0.5
    """Shorter recordings are left out."""
    max_seconds: float = 30.0
    """Longer recordings are cut in their pauses (``segment``) or left out."""
    shard_hours: float = 1.0
    """Length of one file of the pack; a stopped build loses at most this much."""
    trim: bool = True
    """Cut silence off both ends, as is done with references."""
    normalise: bool = True
    """Bring all to one level, that of references."""
    compact: bool = False
    """Store ten bits a code instead of sixteen."""
    min_fit: float | None = None
    """With an aligner: utterances whose text fits worse (``Alignment.fit``, -4 is hardly what is said) are left out; by
    default none."""
    augment: int = 0
    """Further versions of each utterance, by as many virtual voices of its speaker."""
    augment_splits: tuple[str, ...] = ("train",)
    """Splits that get them; others are to tell of real voices."""
    probe: bool = True
    """Look into each file first: a damaged one is left out with what is wrong with it, and not only as unreadable."""
    quality: QualityConfig | None = None
    """Thresholds for noise, clipping, bandwidth and the like; None leaves out nothing for its quality."""
    segment: Literal["auto", "all", "none"] = "auto"
    """Which recordings longer than ``max_seconds`` are cut where there is a recogniser: those without text; those with
    one too, which is then not used; or none (``valle.data.cutting``)."""

    def __post_init__(self) -> None:
        if self.augment < 0:
            raise ValleError(f"augment is {self.augment}; it is how many versions of an utterance to add, 0 or more")

    def n_versions(self, split: str) -> int:
        """Further versions of each utterance of a split."""
        return self.augment if split in self.augment_splits else 0


class Rejected(Exception):
    """This utterance stays out; the message is the reason."""


_CUTTING = ValleError("with a recogniser it is cut if it has no text, or with --segment all whatever it has")


def read_utterance(
    utterance: Utterance,
    sample_rate: int,
    inventory: PhonemeInventory,
    phonemize: Phonemize,
    config: PrepareConfig,
) -> tuple[list[int], Tensor]:
    """Phoneme ids and wav [1, N] of an utterance that is fit to learn from; an aligner learns from the same.

    Raises:
        Rejected: it is not.
    """
    if not (utterance.text or "").strip():
        raise Rejected("no text")
    assert utterance.text is not None
    try:
        ids = inventory.encode(list(phonemize(utterance.text, utterance.lang)))
    except ValleError as error:
        raise Rejected("text that cannot be phonemised") from error
    wav = load_utterance(utterance, sample_rate, config)  # [1, N]
    seconds = wav.shape[1] / sample_rate
    if len(ids) / seconds > MAX_PHONEMES_PER_S:
        raise Rejected("more text than its audio can hold")
    if len(ids) / seconds < MIN_PHONEMES_PER_S:
        raise Rejected("more audio than its text can fill")
    return ids, wav


def load_utterance(utterance: Utterance, sample_rate: int, config: PrepareConfig) -> Tensor:
    """wav [1, N], made ready as ``valle.audio.load_reference`` makes the prompts that the models will be given."""
    from valle.audio import normalise_loudness, trim_silence

    try:
        if config.probe and utterance.end_s is None:  # a long recording was looked at before it was cut
            probe(utterance.path)
        wav = load_wav(utterance, sample_rate)  # [1, N]
    except BadAudio as error:
        raise Rejected(error.reason) from error
    except ValleError as error:
        raise Rejected("unreadable audio") from error
    if float(wav.abs().max()) < SILENCE_PEAK:
        raise Rejected(SILENT)
    if config.quality is not None:
        reason = judge(measure(wav, sample_rate, text=utterance.text), config.quality)
        if reason is not None:
            raise Rejected(reason)
    if config.trim:
        wav = trim_silence(wav, sample_rate)
    seconds = wav.shape[1] / sample_rate
    if seconds < config.min_seconds:
        raise Rejected(f"shorter than {config.min_seconds:g} s")
    if seconds > config.max_seconds:
        raise Rejected(f"longer than {config.max_seconds:g} s") from _CUTTING
    if config.normalise:
        wav = normalise_loudness(wav, sample_rate)
    return wav


def espeak() -> Phonemize:
    """Normaliser and espeak, one phonemizer a language."""
    from valle.text import Phonemizer

    made: dict[str, Phonemizer] = {}

    def phonemize(text: str, lang: str) -> Sequence[str]:
        if lang not in made:
            made[lang] = Phonemizer(lang)
        return made[lang](text)

    return phonemize
