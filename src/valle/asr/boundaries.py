"""How far an aligner's boundaries are from those of another one: pocketsphinx with its own English acoustic model.

``python -m valle.asr.boundaries SOURCE --split test --n 200 [--aligner DIR]``; ``pip install 'valle[boundaries]'``.

pocketsphinx aligns the words of the text, then their phones, at 10 ms a frame (``Decoder.set_align_text``, then the
second pass of ``Decoder.set_alignment``). Nobody knows the truth: what is told is how far two aligners disagree, of
which neither has seen times by hand.

The two write phones differently, IPA by espeak against ARPABET by the CMU dictionary, and espeak joins words ("of the"
is one). So the phones of a whole utterance are paired by least cost: a pair is a match where ARPABET has that phone for
the IPA (``_SAME``), a vowel may stand for another vowel and a consonant for another one, and phones may be left out.
Compared are:

- word boundaries: where a word begins, if its first phone and the last one of the word before are both paired, with
  neighbouring phones of espeak's. Where the utterance begins is not compared, since our aligner counts the silence
  there to the first phone; nor is where it ends;
- phone boundaries: where the phones of a word but its first begin, if all phones of the word are matches, one to one.

An error is our time less pocketsphinx's, whose frames are taken for the middle of their windows, as ours are. Left out,
and counted, are utterances with a word that its dictionary does not have, or which either aligner cannot align, and
words whose phones are not paired so. Both are given the recording at the same level; pocketsphinx with a quarter of a
second of near silence at both ends, without which it fails on speech that begins at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valle.asr.aligner import SAMPLE_RATE
from valle.asr.intervals import FRAME_S, PhonemeAligner
from valle.asr.pairing import pair_up
from valle.data.corpus import Utterance
from valle.errors import ValleError, exit_with
from valle.eval.bootstrap import LEVEL, N_RESAMPLES, Estimate, ratio_interval
from valle.text.inventory import DEFAULT_INVENTORY, MARK, PAUSE

WITHIN_S = (0.02, 0.05)
"""Errors up to these are counted."""

_SPHINX_RATE, _SPHINX_FRAME_S, _PAD_S = 16000, 0.01, 0.25
_LEAD_S = (0.0256 - _SPHINX_FRAME_S) / 2  # its windows of 25.6 ms begin with their frame; ours lie around theirs
_SILENCE = ("SIL", "+SPN+", "+NSN+")

# IPA as espeak writes English -> the phones of ARPABET that the CMU dictionary has for it. The longest is taken.
_SAME: dict[str, tuple[str, ...]] = {
    "aɪ": ("AY",), "aʊ": ("AW",), "eɪ": ("EY",), "oʊ": ("OW",), "əʊ": ("OW",), "ɔɪ": ("OY",), "tʃ": ("CH",),
    "dʒ": ("JH",), "ɑ": ("AA", "AO"), "ɒ": ("AA", "AO"), "ɔ": ("AO", "AA"), "o": ("OW", "AO"), "a": ("AE", "AA"),
    "æ": ("AE",), "ɛ": ("EH",), "e": ("EY", "EH"), "ɜ": ("ER",), "ɚ": ("ER",), "ɝ": ("ER",), "ə": ("AH", "IH", "EH"),
    "ɐ": ("AH",), "ʌ": ("AH",), "ᵻ": ("IH", "AH"), "ɪ": ("IH", "IY"), "i": ("IY", "IH"), "u": ("UW", "UH"),
    "ʊ": ("UH", "UW"), "b": ("B",), "d": ("D",), "ð": ("DH",), "f": ("F",), "ɡ": ("G",), "h": ("HH",), "j": ("Y",),
    "k": ("K",), "l": ("L",), "ɫ": ("L",), "m": ("M",), "n": ("N",), "ŋ": ("NG",), "p": ("P",), "ɹ": ("R",),
    "r": ("R",), "s": ("S",), "ʃ": ("SH",), "t": ("T",), "ɾ": ("T", "D"), "ʔ": ("T",), "θ": ("TH",), "v": ("V",),
    "w": ("W",), "z": ("Z",), "ʒ": ("ZH",),
}  # fmt: skip
_VOWELS = frozenset(["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"])
_LEFT_OUT, _OTHER = 1.0, 0.8  # costs: of a phone that only one of them has, and of another phone of the same class


class Phone(NamedTuple):
    """A phone and when it begins."""

    name: str
    """IPA or ARPABET, without stress and length."""
    start_s: float
    """In the recording."""


class Word(NamedTuple):
    """A word as pocketsphinx aligns it."""

    text: str
    """As the dictionary has it."""
    phones: tuple[Phone, ...]
    """At least one."""


@dataclass
class Comparison:
    """Errors of each utterance in seconds, and what was left out."""

    words: list[list[float]] = field(default_factory=list)
    """Of word boundaries."""
    phones: list[list[float]] = field(default_factory=list)
    """Of phone boundaries inside words, as many lists as ``words``."""
    n_words: int = 0
    """Words of the utterances that both could align."""
    n_words_compared: int = 0
    """Words whose beginning was compared."""
    n_words_matched: int = 0
    """Words whose phones are one to one."""
    n_phones: int = 0
    """Phones of pocketsphinx in these utterances."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Utterances left out, by reason."""

    def add(self, ours: Sequence[Phone], theirs: Sequence[Word]) -> None:
        """Another utterance."""
        flat = [phone for word in theirs for phone in word.phones]
        paired = pair([p.name for p in ours], [p.name for p in flat])
        starts: list[float] = []
        inside: list[float] = []
        j = 0
        for number, word in enumerate(theirs):
            own = paired[j : j + len(word.phones)]
            if number and own[0] is not None and j and paired[j - 1] == own[0] - 1:
                starts.append(ours[own[0]].start_s - word.phones[0].start_s)
                self.n_words_compared += 1
            first = own[0]
            if first is not None and own == list(range(first, first + len(own))):
                names = [ours[first + k].name for k in range(len(own))]
                if all(p.name in _SAME.get(name, ()) for name, p in zip(names, word.phones, strict=True)):
                    self.n_words_matched += 1
                    inside += [ours[first + k].start_s - word.phones[k].start_s for k in range(1, len(own))]
            j += len(own)
        self.words.append(starts)
        self.phones.append(inside)
        self.n_words += len(theirs)
        self.n_phones += len(flat)

    def leave_out(self, reason: str) -> None:
        """An utterance that cannot be compared."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def pair(ours: Sequence[str], theirs: Sequence[str]) -> list[int | None]:
    """For each ARPABET phone the position of the IPA phone that it is paired with, None for one that has none.

    Paired in order at least cost; a vowel is never paired with a consonant.
    """
    partners: list[int | None] = [None] * len(theirs)
    for i, j in pair_up([[_cost(a, b) for b in theirs] for a in ours], len(theirs), _LEFT_OUT).pairs:
        partners[j] = i
    return partners


def _cost(ipa: str, arpabet: str) -> float:
    same = _SAME.get(ipa, ())
    if arpabet in same:
        return 0.0
    is_vowel = same[0] in _VOWELS if same else None
    return _OTHER if is_vowel == (arpabet in _VOWELS) else np.inf


def our_phones(aligner: PhonemeAligner, wav: Tensor, symbols: Sequence[str]) -> list[Phone]:
    """The phones of ``symbols`` with their times in wav [1, N] at 24 kHz; diphthongs and affricates are one.

    Raises:
        ValleError: they cannot be aligned.
    """
    ids, kind_of = DEFAULT_INVENTORY.encode(symbols), DEFAULT_INVENTORY.kinds
    durations = aligner.align(wav, ids).durations
    starts = [0.0, *(n * FRAME_S for n in durations.cumsum(0).tolist())]
    kinds = [kind_of[i] for i in ids]
    phones: list[Phone] = []
    joins = False  # whether the symbol before is a phone of the same word
    for symbol, kind, start in zip(symbols, kinds, starts, strict=False):
        if kind == PAUSE:
            joins = False
        elif kind != MARK:
            if joins and phones[-1].name + symbol in _SAME:
                phones[-1] = Phone(phones[-1].name + symbol, phones[-1].start_s)
            else:
                phones.append(Phone(symbol, start))
            joins = True
    return phones


class Sphinx:
    """pocketsphinx and the English model that comes with it."""

    def __init__(self) -> None:
        """
        Raises:
            ValleError: it is not installed.
        """
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ValleError(
                f"comparing boundaries needs the Python package pocketsphinx ({error}); pip install 'valle[boundaries]'"
            ) from error
        # NOTE with wider beams it fails more often.
        self._decoder: Any = Decoder(lm=None, loglevel="FATAL")

    def knows(self, word: str) -> bool:
        """Whether the word is in its dictionary."""
        return self._decoder.lookup_word(word) is not None

    def align(self, wav: NDArray[np.float32], words: Sequence[str]) -> list[Word] | None:
        """wav [N] at 16 kHz -> the words with their phones' times, None where it does not succeed."""
        pad = np.random.default_rng(0).normal(0, 1e-4, round(_PAD_S * _SPHINX_RATE))
        samples = np.clip(np.concatenate([pad, wav, pad]), -1, 1)
        data = (samples * 32767).astype("<i2").tobytes()
        try:
            self._decoder.set_align_text(" ".join(words))
            self._hear(data)
            if self._decoder.hyp() is None:
                return None
            self._decoder.set_alignment()
            self._hear(data)
            alignment = self._decoder.get_alignment()
        except RuntimeError:
            return None
        found: list[Word] = []
        # NOTE what it yields is gone at the next step, and using it then ends the process.
        for word in alignment:
            phones = [Phone(phone.name, phone.start * _SPHINX_FRAME_S + _LEAD_S - _PAD_S) for phone in word]
            if phones and phones[0].name not in _SILENCE:
                found.append(Word(word.name.partition("(")[0], tuple(phones)))
        return found if [word.text for word in found] == list(words) else None

    def _hear(self, data: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(data, full_utt=True)
        self._decoder.end_utt()


def words_of(text: str, lang: str = "en-us") -> list[str]:
    """The words of a text as the CMU dictionary writes them: normalised, lower case, with apostrophes."""
    from valle.text.normalise import normalise

    said = normalise(text, lang).lower().replace("’", "'")
    words = "".join(c if c.isalnum() or c == "'" else " " for c in said).split()
    return [word for word in (w.strip("'") for w in words) if word]


def compare(
    utterances: Iterable[Utterance],
    aligner: PhonemeAligner,
    sphinx: Sphinx,
    phonemize: Callable[[str, str], Sequence[str]],
) -> Comparison:
    """Align each utterance by both; those without text are skipped."""
    from valle.audio import normalise_loudness, resample
    from valle.data.corpus import load_wav

    result = Comparison()
    for utterance in utterances:
        if not (utterance.text or "").strip():
            continue
        words = words_of(utterance.text or "")
        if not words or not all(map(sphinx.knows, words)):
            result.leave_out("a word that the dictionary does not have")
            continue
        try:
            wav = load_wav(utterance, SAMPLE_RATE)  # [1, N]
            wav = normalise_loudness(wav, SAMPLE_RATE)
            ours = our_phones(aligner, wav, phonemize(utterance.text or "", utterance.lang))
        except ValleError:
            result.leave_out("not aligned by our aligner")
            continue
        theirs = sphinx.align(resample(wav, SAMPLE_RATE, _SPHINX_RATE)[0].numpy(), words)
        if theirs is None:
            result.leave_out("not aligned by pocketsphinx")
            continue
        result.add(ours, theirs)
    return result


def quantile_interval(groups: Sequence[Sequence[float]], q: float, *, seed: int = 0) -> Estimate | None:
    """Quantile ``q`` of all values, its interval by drawing whole groups (utterances); None without values."""
    groups = [group for group in groups if group]
    if not groups:
        return None
    values = np.concatenate([np.asarray(group) for group in groups])
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = values.argsort()
    values, owners = values[order], owners[order]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(N_RESAMPLES):
        times = np.bincount(rng.integers(len(groups), size=len(groups)), minlength=len(groups))
        weight = times[owners].cumsum()
        drawn.append(values[np.searchsorted(weight, q * weight[-1])])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(np.quantile(values, q)), float(low), float(high), len(groups))


def table(result: Comparison) -> str:
    """Markdown: a row for word and one for phone boundaries, then what was compared and left out."""
    within = " | ".join(f"within {1000 * s:.0f} ms, %" for s in WITHIN_S)
    lines = [
        f"| boundaries | n | median, ms | 90th percentile, ms | {within} | mean of ours less theirs, ms |",
        "|---|---|---|---|" + "---|" * len(WITHIN_S) + "---|",
    ]
    for name, errors in (("of words", result.words), ("of phones inside words", result.phones)):
        counts = [float(len(group)) for group in errors]
        if not sum(counts):
            lines.append(f"| {name} | 0 | " + " | ".join("–" for _ in range(3 + len(WITHIN_S))) + " |")
            continue
        sizes = [[abs(e) for e in group] for group in errors]
        cells = [_cell(quantile_interval(sizes, q), 1000, 0) for q in (0.5, 0.9)]
        for limit in WITHIN_S:
            near = [float(sum(e <= limit + 1e-9 for e in group)) for group in sizes]
            cells.append(_cell(ratio_interval(near, counts), 100, 1))
        cells.append(_cell(ratio_interval([sum(group) for group in errors], counts), 1000, 1))
        lines.append(f"| {name} | {sum(map(len, errors))} | {' | '.join(cells)} |")
    left_out = "; ".join(f"{n} {reason}" for reason, n in sorted(result.left_out.items())) or "none"
    return "\n".join(
        [
            *lines,
            "",
            f"{len(result.words)} utterances, {result.n_words} words, {result.n_phones} phones. The beginning of "
            f"{result.n_words_compared} words was compared; {result.n_words_matched} words have phones that match one "
            f"to one, {result.n_words - result.n_words_matched} were left out of the second row. Utterances left out: "
            f"{left_out}.",
            "",
        ]
    )


def _cell(estimate: Estimate | None, factor: float, digits: int) -> str:
    assert estimate is not None, "there are values"
    mean, low, high = (f"{factor * x:.{digits}f}" for x in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m valle.asr.boundaries",
        description="How far an aligner's boundaries are from those of pocketsphinx, on English recordings.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a list, or KIND:PATH (see valle.data.sources)")
    parser.add_argument("--split", default="test", metavar="A,B", help="which recordings (test)")
    parser.add_argument("--n", type=int, default=100, metavar="N", help="how many of them, always the same (100)")
    parser.add_argument("--aligner", default="", metavar="DIR", help="which aligner (that of the embedded model)")
    parser.add_argument("--out", metavar="FILE", help="also write the table there")
    args = parser.parse_args(argv)
    from valle.asr.hybrid.model import load_aligner
    from valle.data.reading import espeak
    from valle.data.recognise import pick
    from valle.data.sources import read_split
    from valle.files import check_writable, write_atomic
    from valle.pretrained import find_model

    if args.n < 1:
        raise ValleError(f"--n is {args.n}; give how many utterances to compare, 100 or more are best")
    if args.out:
        check_writable(args.out)
    sphinx = Sphinx()
    aligner = load_aligner(args.aligner or find_model() / "aligner")
    utterances = read_split(args.source, args.split)
    with torch.inference_mode():
        result = compare(pick(utterances, args.n), aligner, sphinx, espeak())
    text = f"# Boundaries of aligner {aligner.fingerprint()} against pocketsphinx\n\n{table(result)}"
    if args.out:
        write_atomic(args.out, text.encode())
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    exit_with(main)
