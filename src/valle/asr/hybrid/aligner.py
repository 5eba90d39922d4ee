"""When each phoneme and word of a known text is spoken, in steps of 30 ms: the aligner of ``valle asr align``.

``HybridAligner`` also stands in for ``valle.asr.aligner.Aligner`` where ``valle prepare`` needs durations.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valle.asr.aligner import HOP_LENGTH, Alignment
from valle.asr.aligner import SAMPLE_RATE as PACK_RATE
from valle.asr.hybrid.chain import NOWHERE, best_path, utterance_chain
from valle.asr.hybrid.corpus import units_and_gaps
from valle.asr.hybrid.features import SAMPLE_RATE, STEP_S, fbank
from valle.asr.hybrid.lexicon import Pronunciation, make_lexicon, words_of
from valle.asr.hybrid.model import HybridModel
from valle.asr.hybrid.words import Robust, align_words
from valle.errors import ValleError
from valle.text import DEFAULT_INVENTORY, PAUSE, PHONE


class TimedPhone(NamedTuple):
    """A phone and when it is spoken."""

    phone: str
    """IPA, with its length."""
    start_s: float
    """Where it begins."""
    end_s: float
    """Where it ends."""


class TimedWord(NamedTuple):
    """A word and when it is spoken."""

    word: str
    """Lower case."""
    start_s: float
    """Where it begins."""
    end_s: float
    """Where it ends."""
    phones: tuple[TimedPhone, ...]
    """Its phones."""


class TextAlignment(NamedTuple):
    """A text in a recording."""

    words: tuple[TimedWord, ...]
    """Those that are heard."""
    missing: tuple[tuple[int, str], ...]
    """Position and word of those that the text has and nobody says."""
    extra: tuple[tuple[float, float], ...]
    """From, to in seconds: speech that the text does not have."""


class HybridAligner:
    """A trained recogniser that is told what is said."""

    def __init__(self, model: HybridModel | str | Path, robust: Robust | None = None) -> None:
        """
        Args:
            model: a model, or its folder.
            robust: costs of text and speech that differ.

        Raises:
            ValleError: no such model.
        """
        self.model = model if isinstance(model, HybridModel) else HybridModel.load(model)
        self.robust = robust or Robust()

    @property
    def inventory_version(self) -> str:
        """``PhonemeInventory.version`` of the phonemes that it understands."""
        return self.model.config.inventory_version

    def fingerprint(self) -> str:
        """Twelve hex digits over the weights."""
        return self.model.fingerprint()

    def align_text(self, wav: NDArray[np.float32], text: str) -> TextAlignment:
        """When each word of ``text`` is spoken, which are not, and where something else is.

        Args:
            wav: [N] in [-1, 1] at 16 kHz.
            text: what should be said.

        Raises:
            ValleError: no word in the text that can be read, or too short a recording for any.
        """
        words = words_of(text, self.model.config.lang)
        if not words:
            raise ValleError("the text has no word to look for; give what is said in the recording")
        known = {w: self._pronunciations(w) for w in dict.fromkeys(words)}
        said = [known[w] for w in words]
        mels = fbank(wav)
        found = None
        if len(mels) >= 5:
            scores, noise = self.model.scores(mels), self.model.units.has_noise
            found = align_words(scores, said, self.model.pdfs, self.robust, noise)
        if found is None:
            raise ValleError(
                f"the recording of {len(mels) / 100:.2f} s is too short to look for words in; give a longer one"
            )
        names = self.model.units.names
        timed = tuple(
            TimedWord(
                words[w.word],
                *_seconds(w.start, w.end),
                tuple(
                    TimedPhone(names[p.unit], round(p.start * STEP_S, 2), round(p.end * STEP_S, 2)) for p in w.phones
                ),
            )
            for w in found.words
        )
        extra = tuple(_seconds(a, b) for a, b in found.extra)
        return TextAlignment(timed, tuple((i, words[i]) for i in found.missing), extra)

    def align(self, wav: Tensor, phonemes: Sequence[int]) -> Alignment:
        """Frames of each phoneme, as ``Aligner.align`` tells them: silence before the first phone is counted to it.

        Noise is counted as silence, since the inventory has no phoneme for it.

        Args:
            wav: [1, N] at 24 kHz.
            phonemes: S ids of the inventory ``inventory_version``.

        Raises:
            ValleError: fewer steps than phones, no phone at all, or an id that the inventory does not have.
        """
        import soxr

        symbols = DEFAULT_INVENTORY.decode(list(phonemes))
        kind_of = DEFAULT_INVENTORY.kinds
        kinds = [kind_of[i] for i in phonemes]
        if PHONE not in kinds:
            raise ValleError("the text has no phone, only marks and pauses; give one with words")
        mels = fbank(soxr.resample(wav[0].numpy(), PACK_RATE, SAMPLE_RATE))
        units, gaps = units_and_gaps(self.model.units, symbols)
        scores = self.model.scores(mels) if len(mels) >= 5 else np.zeros((0, self.model.config.n_pdfs), np.float32)
        chain = utterance_chain(units, gaps, self.model.pdfs, self.model.units.has_noise)
        found = best_path(chain.graph(), scores) if len(scores) >= len(units) else None
        if found is None:
            raise ValleError(
                f"the recording has {len(scores)} steps of 30 ms and its text {len(units)} phones, which need one "
                "each; give the text that is spoken in it"
            )
        return self._durations(found[0], [chain.owners[n] for n in found[0]], kinds, wav.shape[1], scores, found[1])

    def _durations(
        self,
        nodes: Sequence[int],
        owners: Sequence[int],
        kinds: Sequence[int],
        n_samples: int,
        scores: NDArray[np.float32],
        likelihood: float,
    ) -> Alignment:
        sounding = [s for s, kind in enumerate(kinds) if kind == PHONE]
        n_frames = -(-n_samples // HOP_LENGTH)
        step_frames = STEP_S * PACK_RATE / HOP_LENGTH
        symbol, at = sounding[0], 0
        starts: dict[int, int] = {}
        previous = None
        for step, (node, owner) in enumerate(zip(nodes, owners, strict=True)):
            if node == previous:
                continue
            previous = node
            if owner != NOWHERE:
                symbol, at = sounding[owner], owner
            elif step:  # silence is that of the mark there, the last phone's own where there is none
                following = sounding[at + 1] if at + 1 < len(sounding) else len(kinds)
                symbol = next((s for s in range(sounding[at] + 1, following) if kinds[s] == PAUSE), symbol)
            starts.setdefault(symbol, round(step * step_frames))
        starts[sounding[0]] = 0
        durations = torch.zeros(len(kinds), dtype=torch.int64)
        bounds = [*sorted(starts.items()), (len(kinds), n_frames)]
        begin = 0
        for (s, _), (_, end) in itertools.pairwise(bounds):
            end = min(max(end, begin + (kinds[s] == PHONE)), n_frames)
            durations[s] = end - begin
            begin = end
        fit = (likelihood - float(scores.max(1).sum())) / max(1, len(scores))
        return Alignment(durations, min(fit, 0.0))

    def _pronunciations(self, word: str) -> list[Pronunciation]:
        known = self.model.lexicon.get(word)
        if known is None:
            known = make_lexicon([word], self.model.units, lang=self.model.config.lang).get(word, [])
        return [p for p, _ in known] or [()]


def _seconds(start: int, end: int) -> tuple[float, float]:
    """Steps as seconds."""
    return round(start * STEP_S, 2), round(end * STEP_S, 2)
