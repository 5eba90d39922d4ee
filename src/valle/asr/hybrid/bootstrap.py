"""From a flat start to labels: a monophone, a tree, and tied left biphones, all by Viterbi training.

Rounds take the three phases of the steps in turn, so that three rounds have seen every frame.

Where there is a unit for noise, it begins half-way through the monophone (``valle.asr.hybrid.noise``); from then on the
best path chooses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from valle.asr.hybrid.chain import Chain, best_path, utterance_chain
from valle.asr.hybrid.features import SUBSAMPLING, cepstra, n_steps, spliced
from valle.asr.hybrid.gmm import Gmm, discriminant
from valle.asr.hybrid.noise import first_noise
from valle.asr.hybrid.tree import ContextStatistics, grow_tree, monophone_table
from valle.asr.hybrid.units import SILENCE_ID, Units
from valle.errors import ValleError


@dataclass(frozen=True)
class BootstrapConfig:
    """How the Gaussians learn."""

    max_hours: float = 20.0
    """Hours that they learn from; the rest is only labelled by them."""
    mono_rounds: tuple[int, ...] = (8, 4, 4)
    """Rounds of the monophone with 1, 2, 4 ... Gaussians a state."""
    tied_rounds: tuple[int, ...] = (3, 3, 3, 3)
    """Rounds of the tied states with 1, 2, 4 ... Gaussians each."""
    n_pdfs: int = 800
    """Tied states at most."""
    n_features: int = 40
    """Directions of the discriminant analysis."""
    min_count: int = 60
    """Steps that a tied state must have seen."""
    noise: bool = False
    """Whether noise between words, such as breaths and clicks, has a unit of its own; without, it is silence."""

    def __post_init__(self) -> None:
        if sum(self.mono_rounds) < 1 or min(self.mono_rounds + self.tied_rounds) < 0:
            raise ValleError(
                f"the rounds {list(self.mono_rounds)} and {list(self.tied_rounds)} must be 0 or more, and the "
                "monophone needs one at least"
            )
        if not 1 <= self.n_features <= 117:
            raise ValleError(f"n_features is {self.n_features}; it must be 1 to 117, nine frames of 13 cepstra")
        if not 1 <= self.n_pdfs < 2**15:  # they are stored in 16 bits
            raise ValleError(f"n_pdfs is {self.n_pdfs}; it must be 1 to {2**15 - 1}")
        if self.max_hours <= 0 or self.min_count < 1:
            raise ValleError(
                f"max_hours is {self.max_hours:g} and min_count {self.min_count}; the first must be above 0, the "
                "other at least 1"
            )


class Spoken(NamedTuple):
    """A recording whose words are known."""

    mels: Tensor
    """[T, 80]"""
    units: tuple[int, ...]
    """What is said."""
    gaps: tuple[bool, ...]
    """After which units there may be silence."""


class Bootstrap(NamedTuple):
    """What comes of it."""

    gmm: Gmm
    pdfs: NDArray[np.int32]
    """[units, left, 2]"""


def bootstrap(examples: Sequence[Spoken], units: Units, config: BootstrapConfig) -> Bootstrap:
    """Learn Gaussians and a tree; what each round brought goes to standard error.

    Raises:
        ValleError: no recording is long enough for its text.
    """
    fit = [e for e in examples if e.units and len(e.units) <= n_steps(len(e.mels), SUBSAMPLING - 1)]
    if not fit:
        raise ValleError(
            f"none of the {len(examples)} recordings has a step of 30 ms for each phone; check their texts"
        )
    run = _Run(fit, units, config)
    mono = run.monophone()
    return run.tied(mono)


def pdfs_of_path(chain: Chain, nodes: Sequence[int]) -> list[int]:
    """The pdf of each step of a path."""
    before = -1
    out = []
    for node in nodes:
        out.append(chain.rest[node] if node == before else chain.first[node])
        before = node
    return out


def label(gmm: Gmm, pdfs: NDArray[np.int32], example: Spoken, noise: bool = False) -> Tensor | None:
    """The pdf of every frame [T] int16, from the three phases; None where the text does not fit in."""
    n_frames = len(example.mels)
    if n_steps(n_frames, SUBSAMPLING - 1) < len(example.units):
        return None
    chain = utterance_chain(example.units, example.gaps, pdfs, noise)
    graph = chain.graph()
    out = torch.zeros(n_frames, dtype=torch.int16)
    for phase in range(SUBSAMPLING):
        found = best_path(graph, gmm.scores(gmm.features(example.mels, phase)).numpy())
        if found is None:
            return None
        out[1 + phase :: SUBSAMPLING] = torch.tensor(pdfs_of_path(chain, found[0]), dtype=torch.int16)
    out[0] = out[1]
    return out


class _Run:
    """The recordings and how far they are labelled."""

    def __init__(self, examples: Sequence[Spoken], units: Units, config: BootstrapConfig) -> None:
        self.examples, self.units, self.config = examples, units, config
        self.cepstra = [cepstra(e.mels).half() for e in examples]
        self.started = time.monotonic()
        self.noise = False  # until it has begun

    def monophone(self) -> Gmm:
        table = monophone_table(len(self.units), self.units.has_noise)
        gmm = Gmm.blank(2 * len(self.units), 39)
        n_rounds, number = sum(self.config.mono_rounds), 0
        rows: list[Tensor] = []
        for doubled, rounds in enumerate(self.config.mono_rounds):
            for repeat in range(rounds):
                phase = number % SUBSAMPLING
                x = [gmm.features(e.mels, phase) for e in self.examples]
                if not number:
                    rows = [_flat(f, e, table) for f, e in zip(x, self.examples, strict=True)]
                else:
                    begun = None
                    if self.units.has_noise and number == max(1, n_rounds // 2):
                        self.noise = True
                        begun = first_noise(x, self._align(gmm, x, table, "noise"), self.config.min_count)
                        self.noise = begun is not None
                    rows = begun or self._align(gmm, x, table, f"monophone {number + 1}/{n_rounds}")
                if doubled and not repeat:
                    gmm.grow()
                gmm.estimate(torch.cat(x), torch.cat(rows))
                number += 1
        return gmm

    def tied(self, mono: Gmm) -> Bootstrap:
        config = self.config
        mono_table = monophone_table(len(self.units), self.units.has_noise)
        x = [mono.features(e.mels, 1) for e in self.examples]
        rows = self._align(mono, x, mono_table, "labels for the tree", contexts=True)
        lefts = self.lefts
        wide = [spliced(c.float())[2::SUBSAMPLING] for c in self.cepstra]
        n_some = max(1, sum(map(len, wide)) // 400_000)
        all_rows, all_wide = torch.cat(rows), torch.cat([w.half() for w in wide])
        usable = (all_rows >= 0).nonzero()[:, 0][::n_some]
        transform = discriminant(all_wide[usable].float(), all_rows[usable], config.n_features)
        projected = [w @ transform for w in wide]
        statistics = self._statistics(projected, rows, lefts)
        table = grow_tree(self.units, statistics, config.n_pdfs, config.min_count)
        n_pdfs = int(table.max()) + 1
        _tell(f"{n_pdfs} tied states of {len(self.units)} units")
        gmm = Gmm.blank(n_pdfs, config.n_features, transform)
        tied = [
            torch.where(r >= 0, torch.from_numpy(table)[r.clamp(min=0) // 2, left, r.clamp(min=0) % 2].long(), -1)
            for r, left in zip(rows, lefts, strict=True)
        ]
        del wide, all_wide
        gmm.estimate(torch.cat(projected), torch.cat(tied))
        n_rounds, number = sum(config.tied_rounds), 0
        for doubled, rounds in enumerate(config.tied_rounds):
            for repeat in range(rounds):
                phase = number % SUBSAMPLING
                x = [spliced(c.float())[1 + phase :: SUBSAMPLING] @ transform for c in self.cepstra]
                tied = self._align(gmm, x, table, f"tied states {number + 1}/{n_rounds}")
                if doubled and not repeat:
                    gmm.grow()
                gmm.estimate(torch.cat(x), torch.cat(tied))
                number += 1
        return Bootstrap(gmm, table)

    def _align(
        self, gmm: Gmm, x: Sequence[Tensor], table: NDArray[np.int32], what: str, contexts: bool = False
    ) -> list[Tensor]:
        """The row of each step of each recording; -1 throughout where the text does not fit in."""
        rows: list[Tensor] = []
        self.lefts: list[Tensor] = []
        total, n, n_lost = 0.0, 0, 0
        for features, example in zip(x, self.examples, strict=True):
            chain = utterance_chain(example.units, example.gaps, table, self.noise)
            found = best_path(chain.graph(), gmm.scores(features).numpy())
            if found is None:
                rows.append(torch.full((len(features),), -1))
                self.lefts.append(torch.zeros(len(features), dtype=torch.int64))
                n_lost += 1
                continue
            rows.append(torch.tensor(pdfs_of_path(chain, found[0])))
            total, n = total + found[1], n + len(features)
            if contexts:
                self.lefts.append(_lefts(chain, found[0], example.units))
        lost = f", {n_lost} recordings lost" if n_lost else ""
        _tell(f"{what}: log-likelihood {total / max(1, n):.3f} a step{lost}, {time.monotonic() - self.started:.0f} s")
        return rows

    def _statistics(self, x: Sequence[Tensor], rows: Sequence[Tensor], lefts: Sequence[Tensor]) -> ContextStatistics:
        n, d = len(self.units), x[0].shape[1]
        statistics = ContextStatistics.blank(n, d)
        r, left, f = torch.cat(list(rows)), torch.cat(list(lefts)), torch.cat(list(x)).double()
        keep = r >= 0
        r, left, f = r[keep], left[keep], f[keep]
        place = (r // 2 * n + left) * 2 + r % 2
        size = n * n * 2
        statistics.counts[:] = torch.bincount(place, minlength=size).double().view(n, n, 2).numpy()
        sums = torch.zeros(size, d, dtype=torch.float64)
        statistics.sums[:] = sums.index_add(0, place, f).view(n, n, 2, d).numpy()
        statistics.squares[:] = sums.index_add(0, place, f.square()).view(n, n, 2, d).numpy()
        return statistics


def _lefts(chain: Chain, nodes: Sequence[int], units: Sequence[int]) -> Tensor:
    """The unit to the left of each step's own."""
    left, last, out = SILENCE_ID, SILENCE_ID, []
    before = -1
    for node in nodes:
        if node != before:
            left = last
            owner = chain.owners[node]
            last = SILENCE_ID if owner < 0 else units[owner]
            before = node
        out.append(left)
    return torch.tensor(out)


def _flat(x: Tensor, example: Spoken, table: NDArray[np.int32]) -> Tensor:
    """The row of each step [S] when all units last equally long and both ends, where they are soft, are silence."""
    energy = x[:, 0]
    low, high = energy.quantile(0.02), energy.quantile(0.98)
    loud = (energy > low + 0.25 * (high - low)).nonzero()[:, 0]
    begin, end = (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(x))
    if end - begin < len(example.units):
        begin, end = 0, len(x)
    which = torch.arange(end - begin) * len(example.units) // max(1, end - begin)
    inside = torch.tensor(example.units)[which] * 2
    inside[1:] += which[1:] == which[:-1]
    rows = torch.full((len(x),), int(table[SILENCE_ID, SILENCE_ID, 1]))
    rows[begin:end] = inside
    if begin:
        rows[0] = int(table[SILENCE_ID, SILENCE_ID, 0])
    if end < len(x):
        rows[end] = int(table[SILENCE_ID, SILENCE_ID, 0])
    return rows


def _tell(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
