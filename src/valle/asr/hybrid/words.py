"""Words in a recording: the chain of what may be said, and when each word and each of its phones is.

A transcript is often not quite what is said. With ``Robust`` each word may be left out at a cost, and before, between
and after words there may be speech that is not in the transcript: a filler, which in every step scores as the best
state of all less a fixed amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from valle.asr.hybrid.chain import Chain, best_path
from valle.asr.hybrid.lexicon import Pronunciation
from valle.asr.hybrid.units import SILENCE_ID

FILLER = -2
"""The owner of a node of speech that is not in the text."""

_PAUSE_COST = 0.7


@dataclass(frozen=True)
class Robust:
    """What it costs, in log-likelihood without a scale, that text and speech differ."""

    skip_cost: float = 5.0
    """Of leaving out a word; much more, and a word that nobody says hides in two steps of silence."""
    filler_cost: float = 10.0
    """Of speech that is not in the text, once."""
    filler_step: float = 0.8
    """And for each step of 30 ms of it."""


class Phone(NamedTuple):
    """A unit that is heard."""

    unit: int
    """Which."""
    start: int
    """Its first step."""
    end: int
    """The step after its last."""


class HeardWord(NamedTuple):
    """A word of the text that is heard."""

    word: int
    """Its position in the text."""
    phones: tuple[Phone, ...]
    """Its units in order."""

    @property
    def start(self) -> int:
        """Its first step."""
        return self.phones[0].start

    @property
    def end(self) -> int:
        """The step after its last."""
        return self.phones[-1].end


class WordAlignment(NamedTuple):
    """A text in a recording."""

    words: tuple[HeardWord, ...]
    """Those that are heard, in order."""
    missing: tuple[int, ...]
    """Positions of the words that are not heard."""
    extra: tuple[tuple[int, int], ...]
    """Steps from, to: speech that is not in the text."""
    likelihood: float
    """Of the path."""
    units: tuple[int, ...]
    """The unit of each step; silence also where there is noise, or the speech is not in the text."""


def align_words(
    scores: NDArray[np.float32],
    words: Sequence[Sequence[Pronunciation]],
    pdfs: NDArray[np.int32],
    robust: Robust | None = None,
    noise: bool = False,
) -> WordAlignment | None:
    """The best way to say ``words`` in a recording; None where it has too few steps.

    Args:
        scores: [S, pdfs] log-likelihoods.
        words: of each word, its pronunciations.
        pdfs: [units, left, 2].
        robust: None where the text is exactly what is said.
        noise: whether a unit is noise (``Units.has_noise``), which may be wherever silence may.
    """
    filler = scores.shape[1]
    if robust is not None:
        best = scores.max(1, keepdims=True) - robust.filler_step
        scores = np.concatenate([scores, best], axis=1)
    chain, said = _chain(words, pdfs, robust, filler, noise)
    found = best_path(chain.graph(), scores)
    if found is None:
        return None
    return _read(chain, said, found[0], found[1], len(words))


class _Said(NamedTuple):
    word: int
    unit: int
    position: int


def _chain(
    words: Sequence[Sequence[Pronunciation]],
    pdfs: NDArray[np.int32],
    robust: Robust | None,
    filler: int,
    noise: bool,
) -> tuple[Chain, list[_Said]]:
    """What may be said, with as many ways as words: where words may be left out, ways from one unit meet in a joint."""
    chain = Chain()
    said: list[_Said] = []
    Way = tuple[int, int, float]  # node, its unit, cost so far

    def enter(ways: Sequence[Way], node: int, cost: float) -> int:
        chain.ways += [(n, node, c + cost) for n, _, c in ways]
        return node

    def joined(ways: Sequence[Way]) -> list[Way]:
        of_unit: dict[int, list[Way]] = {}
        for way in ways:
            of_unit.setdefault(way[1], []).append(way)
        return [(enter(same, chain.add_joint(), 0.0), unit, 0.0) for unit, same in of_unit.items()]

    def pause(ways: Sequence[Way]) -> list[Way]:
        nodes = chain.add_pause([(n, c + _PAUSE_COST) for n, _, c in ways], pdfs, noise)
        return [(n, SILENCE_ID, 0.0) for n in nodes]

    def between(ways: list[Way]) -> list[Way]:
        after: list[Way] = [(n, u, c + _PAUSE_COST) for n, u, c in ways]
        after += pause(ways)
        if robust is not None:
            other = enter(after, chain.add(filler, filler, FILLER), robust.filler_cost)
            after += [(other, SILENCE_ID, _PAUSE_COST), *pause([(other, SILENCE_ID, 0.0)])]
        return after if robust is None else joined(after)

    ways: list[Way] = between([(-1, SILENCE_ID, 0.0)])
    for number, pronunciations in enumerate(words):
        if robust is not None:  # as the search drops what costs much, all words that are left have one cost at the end
            rest = (len(words) - number) * (robust.skip_cost + _PAUSE_COST)
            chain.ends += [(n, rest) for n, _, _ in ways]
        after: list[Way] = []
        for pronunciation in dict.fromkeys(pronunciations):
            at = ways
            for position, unit in enumerate(pronunciation):
                made: dict[tuple[int, int], int] = {}  # states of a unit -> node
                for node, left, cost in at:
                    states = (int(pdfs[unit, left, 0]), int(pdfs[unit, left, 1]))
                    if states not in made:
                        said.append(_Said(number, unit, position))
                        made[states] = chain.add(*states, len(said) - 1)
                    chain.ways.append((node, made[states], cost))
                at = [(node, unit, 0.0) for node in made.values()]
            after += at if pronunciation else []
        if robust is not None:
            after += [(n, u, c + robust.skip_cost) for n, u, c in ways]
        ways = between(after)
    chain.ends += [(n, c) for n, _, c in ways if n >= 0]
    return chain, said


def _read(chain: Chain, said: Sequence[_Said], nodes: Sequence[int], likelihood: float, n_words: int) -> WordAlignment:
    phones: list[tuple[int, Phone]] = []  # word, phone
    extra: list[tuple[int, int]] = []
    units: list[int] = []
    start = 0
    for step in range(1, len(nodes) + 1):
        if step < len(nodes) and nodes[step] == nodes[start]:
            continue
        owner = chain.owners[nodes[start]]
        if owner == FILLER:
            extra.append((start, step))
        if owner >= 0:
            phones.append((said[owner].word, Phone(said[owner].unit, start, step)))
        units += [said[owner].unit if owner >= 0 else SILENCE_ID] * (step - start)
        start = step
    of_word: dict[int, list[Phone]] = {}
    for word, phone in phones:
        of_word.setdefault(word, []).append(phone)
    heard = tuple(HeardWord(word, tuple(p)) for word, p in of_word.items())
    missing = tuple(w for w in range(n_words) if w not in of_word)
    return WordAlignment(heard, missing, tuple(extra), likelihood, tuple(units))
