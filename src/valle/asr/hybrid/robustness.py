"""Does alignment notice what is wrong with a text? ``python -m valle.asr.hybrid.robustness SOURCE --model DIR``.

Each recording is aligned with its own text, with one word of it taken out, and with one that it does not have put in.
Told are false alarms on the first, and how often the change is found in the others. Where a word is, the alignment with
the whole text says.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from valle.asr.hybrid.aligner import HybridAligner, TextAlignment
from valle.asr.hybrid.features import SAMPLE_RATE
from valle.asr.hybrid.lexicon import words_of
from valle.asr.hybrid.words import Robust
from valle.data.corpus import load_wav
from valle.data.recognise import pick
from valle.errors import ValleError, exit_with

_LONG_ENOUGH = 4  # letters of a word that is taken out or put in: shorter ones are hardly to be heard


class Spoken(NamedTuple):
    """A recording and its words."""

    wav: NDArray[np.float32]
    """[N] at 16 kHz."""
    words: list[str]
    """What is said."""


class Found(NamedTuple):
    """Counts."""

    recordings: int
    """That were aligned."""
    words: int
    """In them."""
    false_missing: int
    """Words that are said and were told not to be."""
    false_extra: int
    """Pieces of speech told not to be in the whole text."""
    taken_out: int
    """Recordings aligned without one of their words."""
    found_extra: int
    """Of these, those in which speech where the word is was told not to be in the text."""
    put_in: int
    """Recordings aligned with a word too many."""
    found_missing: int
    """Of these, those in which that word was told to be missing."""


def measure_robustness(aligner: HybridAligner, spoken: Sequence[Spoken], seed: int = 0) -> Found:
    """Count."""
    rng = random.Random(seed)
    known = sorted({w for s in spoken for w in s.words if len(w) >= _LONG_ENOUGH})
    n = [0] * len(Found._fields)
    for s in spoken:
        whole = aligner.align_text(s.wav, " ".join(s.words))
        n[0] += 1
        n[1] += len(s.words)
        n[2] += len(whole.missing)
        n[3] += len(whole.extra)
        places = [i for i, w in enumerate(whole.words) if len(w.word) >= _LONG_ENOUGH]
        if not whole.missing and len(s.words) > 2 and places:
            place = rng.choice(places)
            rest = aligner.align_text(s.wav, " ".join(w for i, w in enumerate(s.words) if i != place))
            n[4] += 1
            n[5] += _overlaps(rest, whole.words[place].start_s, whole.words[place].end_s)
        other = [w for w in known if w not in s.words]
        if other:
            place = rng.randrange(len(s.words) + 1)
            more = [*s.words[:place], rng.choice(other), *s.words[place:]]
            n[6] += 1
            n[7] += any(i == place for i, _ in aligner.align_text(s.wav, " ".join(more)).missing)
    return Found(*n)


def _overlaps(found: TextAlignment, start: float, end: float) -> bool:
    return any(min(b, end) - max(a, start) > 0 for a, b in found.extra)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m valle.asr.hybrid.robustness", description="Does alignment notice what is wrong with a text?"
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a list, or KIND:PATH (see valle.data.sources)")
    parser.add_argument("--model", required=True, metavar="DIR", help="what `valle asr train` made")
    parser.add_argument("--split", default="dev", help="which recordings (dev)")
    parser.add_argument("--max", type=int, default=100, metavar="N", help="only N of them, always the same (100)")
    parser.add_argument("--skip-cost", type=float, default=Robust.skip_cost, metavar="F", help="of a word left out")
    parser.add_argument("--filler-cost", type=float, default=Robust.filler_cost, metavar="F", help="of other speech")
    parser.add_argument(
        "--filler-step", type=float, default=Robust.filler_step, metavar="F", help="and each 30 ms of it"
    )
    args = parser.parse_args(argv)
    if args.max < 1:
        raise ValleError(f"--max is {args.max}; give how many recordings to take, 1 or more")
    from valle.data.sources import read_split

    aligner = HybridAligner(args.model, Robust(args.skip_cost, args.filler_cost, args.filler_step))
    utterances = [u for u in read_split(args.source, args.split) if words_of(u.text or "")]
    spoken = [Spoken(load_wav(u, SAMPLE_RATE)[0].numpy(), words_of(u.text or "")) for u in pick(utterances, args.max)]
    found = measure_robustness(aligner, spoken)
    sys.stdout.write("".join(f"{name}\t{value}\n" for name, value in found._asdict().items()))
    return 0


if __name__ == "__main__":
    exit_with(main)
