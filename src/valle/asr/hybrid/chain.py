"""Chains: what may be said in a recording, as a small graph of units, and the best path through it.

A unit is entered for one step (its pdf "first") and may stay for any number more (pdf "rest"), Kaldi's topology for
steps of 30 ms. The search is kaldi-decoder's; which pdf a unit has after which other is in a table
``pdfs`` [units, left, 2] (``valle.asr.hybrid.tree``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle.asr.hybrid.units import NOISE_ID, SILENCE_ID
from valle.data.sources import need

NOWHERE = -1
"""The owner of a node that belongs to no position: silence or noise."""

NOISE_COST = 2.3
"""Of noise where there may be silence: one pause in ten begins with it, and so does one silence in ten end."""

_NO_PDF = -1  # of a joint: + 1, it is the label of a way that takes no step
_BEAM = 300.0
_SILENCE_COST, _SPEECH_COST = 0.7, 0.7  # of a pause, and of none, where one may be: a half each


@dataclass
class Chain:
    """Nodes (units in context) and the ways between them."""

    first: list[int] = field(default_factory=list)
    """Pdf of the step in which a node is entered."""
    rest: list[int] = field(default_factory=list)
    """Pdf of each further step."""
    owners: list[int] = field(default_factory=list)
    """What a node's steps are counted to."""
    ways: list[tuple[int, int, float]] = field(default_factory=list)
    """From, to, cost; from is -1 at the start."""
    ends: list[tuple[int, float]] = field(default_factory=list)
    """Nodes in which a path may end, and at what cost."""

    def add(self, first: int, rest: int, owner: int) -> int:
        """A node; returns its number."""
        self.first.append(first)
        self.rest.append(rest)
        self.owners.append(owner)
        return len(self.first) - 1

    def add_joint(self) -> int:
        """A node that takes no step: where ways meet and part again."""
        return self.add(_NO_PDF, _NO_PDF, NOWHERE)

    def add_pause(self, ways: Sequence[tuple[int, float]], pdfs: NDArray[np.int32], noise: bool) -> list[int]:
        """Silence, and with ``noise`` noise too, each of which may follow the other; returns their nodes.

        Args:
            ways: the nodes before it, and what each way costs.
            pdfs: [units, left, 2].
            noise: whether a unit is noise (``Units.has_noise``).
        """
        quiet, *loud = (
            self.add(int(pdfs[unit, SILENCE_ID, 0]), int(pdfs[unit, SILENCE_ID, 1]), NOWHERE)
            for unit in (SILENCE_ID, NOISE_ID)[: 1 + noise]
        )
        self.ways += [(before, quiet, cost) for before, cost in ways]
        for node in loud:
            self.ways += [(before, node, cost + NOISE_COST) for before, cost in [*ways, (quiet, 0.0)]]
            self.ways.append((node, quiet, 0.0))
        return [quiet, *loud]

    def graph(self) -> Any:
        """As a transducer from pdfs + 1 to nodes + 1; joints have no label."""
        kaldifst = need("kaldifst", "the hybrid recogniser", "asr")
        fst = kaldifst.StdVectorFst()
        for _ in range(len(self.first) + 1):
            fst.add_state()
        fst.start = 0
        arc = kaldifst.StdArc
        for node, rest in enumerate(self.rest):
            if rest != _NO_PDF:
                fst.add_arc(node + 1, arc(rest + 1, node + 1, 0.0, node + 1))
        for source, target, cost in self.ways:
            first = self.first[target]
            fst.add_arc(source + 1, arc(first + 1, 0 if first == _NO_PDF else target + 1, cost, target + 1))
        for node, cost in self.ends:
            fst.set_final(node + 1, cost)
        return fst


def best_path(graph: Any, scores: NDArray[np.float32], beam: float = _BEAM) -> tuple[list[int], float] | None:
    """The node of each step under log-likelihoods [S, pdfs], and the path's own; None where no path fits in."""
    decoder = need("kaldi_decoder", "the hybrid recogniser", "asr")
    search = decoder.FasterDecoder(graph, decoder.FasterDecoderOptions(beam=beam))
    search.decode(decoder.DecodableCtc(np.ascontiguousarray(scores, np.float32)))
    if not search.reached_final():
        return None
    found, path = search.get_best_path()
    kaldifst = need("kaldifst", "the hybrid recogniser", "asr")
    if not found:
        return None
    _, _, nodes, weight = kaldifst.get_linear_symbol_sequence(path)
    return [n - 1 for n in nodes], -(weight.value1 + weight.value2)


def utterance_chain(units: Sequence[int], gaps: Sequence[bool], pdfs: NDArray[np.int32], noise: bool = False) -> Chain:
    """The units of a text one after the other, with optional silence at both ends and where there is a gap.

    Args:
        units: S ids.
        gaps: S, whether silence may follow a unit; the last may always be followed.
        pdfs: [units, left, 2].
        noise: whether a unit is noise (``Units.has_noise``), which may be wherever silence may.
    """
    chain = Chain()

    def silence(after: Sequence[int]) -> list[tuple[int, int]]:
        nodes = chain.add_pause([(n, _SILENCE_COST) for n in after], pdfs, noise)
        return [(n, SILENCE_ID) for n in nodes]

    before: list[tuple[int, int]] = [(-1, SILENCE_ID), *silence([-1])]  # (node, the unit that it is)
    is_gap = True
    for s, unit in enumerate(units):
        made: dict[int, int] = {}  # left unit -> node
        for node, left in before:
            if left not in made:
                made[left] = chain.add(int(pdfs[unit, left, 0]), int(pdfs[unit, left, 1]), s)
            quiet = node >= 0 and chain.owners[node] == NOWHERE
            chain.ways.append((node, made[left], _SPEECH_COST if is_gap and not quiet else 0.0))
        before = [(node, unit) for node in made.values()]
        is_gap = gaps[s] or s == len(units) - 1
        if is_gap:
            before += silence([n for n, _ in before])
    chain.ends = [(node, 0.0) for node, _ in before]
    return chain
