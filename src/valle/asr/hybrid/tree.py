"""Tied states: a phonetic decision tree that asks only for the unit on the left, as Kaldi's chain models do.

Each unit has two roots, its first step and the rest. A leaf is split by that question of all (``Units.questions``)
which gains most likelihood under one Gaussian a leaf, until there are as many leaves as wanted. The whole tree is then
a table.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from valle.asr.hybrid.units import NOISE_ID, SILENCE_ID, Units

N_PARTS = 2
"""The first step of a unit, and the rest."""


class ContextStatistics(NamedTuple):
    """Of each unit, left unit and part: how many steps, their sum and the sum of their squares."""

    counts: NDArray[np.float64]
    """[units, left, 2]"""
    sums: NDArray[np.float64]
    """[units, left, 2, D]"""
    squares: NDArray[np.float64]
    """[units, left, 2, D]"""

    @classmethod
    def blank(cls, n_units: int, n_features: int) -> ContextStatistics:
        """Nothing seen."""
        shape = (n_units, n_units, N_PARTS)
        return cls(np.zeros(shape), np.zeros((*shape, n_features)), np.zeros((*shape, n_features)))


def monophone_table(n_units: int, noise: bool = False) -> NDArray[np.int32]:
    """The table of states that do not look to the left: pdf 2 * unit + part; [units, left, 2].

    With ``noise`` both parts of that have its first pdf: it has no course of its own.
    """
    pairs = np.arange(N_PARTS * n_units, dtype=np.int32).reshape(n_units, 1, N_PARTS)
    if noise:
        pairs[NOISE_ID] = N_PARTS * NOISE_ID
    return np.repeat(pairs, n_units, axis=1)


def grow_tree(units: Units, statistics: ContextStatistics, n_leaves: int, min_count: float = 60.0) -> NDArray[np.int32]:
    """The pdf of each unit after each other: [units, left, 2], numbered from 0, silence's two first.

    Silence and noise are not split. Noise has one pdf for both parts, or, where it is hardly heard, those of silence.

    Args:
        units: what they are.
        statistics: of the labelled speech.
        n_leaves: how many pdfs at most.
        min_count: steps that a leaf must have seen.
    """
    n = len(units)
    questions = np.zeros((len(units.questions()), n), bool)  # [Q, left]
    for q, (_, members) in enumerate(units.questions()):
        questions[q, list(members)] = True
    floor = _variance_floor(statistics)
    hears_noise = units.has_noise and statistics.counts[NOISE_ID].sum() >= min_count
    leaves: list[tuple[int, int, NDArray[np.bool_]]] = []  # unit, part, lefts
    heap: list[tuple[float, int, int]] = []  # -gain, leaf, question

    def consider(leaf: int) -> None:
        unit, part, lefts = leaves[leaf]
        if unit < units.first_phone:
            return
        gain, question = _best_split(statistics, unit, part, lefts, questions, min_count, floor)
        if gain > 0:
            heapq.heappush(heap, (-gain, leaf, question))

    for unit in range(n):
        n_parts = int(hears_noise) if units.has_noise and unit == NOISE_ID else N_PARTS
        leaves += [(unit, part, np.ones(n, bool)) for part in range(n_parts)]
    for leaf in range(len(leaves)):
        consider(leaf)
    while heap and len(leaves) < n_leaves:
        _, leaf, question = heapq.heappop(heap)
        unit, part, lefts = leaves[leaf]
        leaves[leaf] = (unit, part, lefts & questions[question])
        leaves.append((unit, part, lefts & ~questions[question]))
        consider(leaf)
        consider(len(leaves) - 1)
    table = np.zeros((n, n, N_PARTS), np.int32)
    for pdf, (unit, part, lefts) in enumerate(leaves):
        table[unit, lefts, part] = pdf
    if units.has_noise:
        table[NOISE_ID] = table[NOISE_ID, :, :1] if hears_noise else table[SILENCE_ID]
    return table


def units_of_pdfs(table: NDArray[np.int32]) -> NDArray[np.int32]:
    """Which unit each pdf belongs to, the first of several: [pdfs]."""
    out = np.zeros(int(table.max()) + 1, np.int32)
    for unit in reversed(range(len(table))):
        out[table[unit]] = unit
    return out


def _likelihood(
    n: NDArray[np.float64], s: NDArray[np.float64], ss: NDArray[np.float64], floor: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log-likelihood of what n [Q], s [Q, D], ss [Q, D] sum up under its own Gaussian, without constants: [Q]."""
    safe = np.maximum(n, 1e-9)[:, None]
    variance = np.maximum(ss / safe - (s / safe) ** 2, floor)
    value: NDArray[np.float64] = -0.5 * n * np.log(variance).sum(1)
    return value


def _best_split(
    statistics: ContextStatistics,
    unit: int,
    part: int,
    lefts: NDArray[np.bool_],
    questions: NDArray[np.bool_],
    min_count: float,
    floor: NDArray[np.float64],
) -> tuple[float, int]:
    """(gain, question) of the best question at a leaf; no gain where none leaves enough on both sides."""
    yes = (questions & lefts).astype(np.float64)  # [Q, left]
    n, s, ss = (stat[unit, :, part] for stat in statistics)
    all_n, all_s, all_ss = n[lefts].sum(), s[lefts].sum(0), ss[lefts].sum(0)
    yes_n, yes_s, yes_ss = yes @ n, yes @ s, yes @ ss
    gain = (
        _likelihood(yes_n, yes_s, yes_ss, floor)
        + _likelihood(all_n - yes_n, all_s - yes_s, all_ss - yes_ss, floor)
        - _likelihood(np.array([all_n]), all_s[None], all_ss[None], floor)
    )
    gain[(yes_n < min_count) | (all_n - yes_n < min_count)] = 0.0
    best = int(gain.argmax())
    return float(gain[best]), best


def _variance_floor(statistics: ContextStatistics) -> NDArray[np.float64]:
    n = max(float(statistics.counts.sum()), 1.0)
    mean = statistics.sums.sum((0, 1, 2)) / n
    floor: NDArray[np.float64] = 0.01 * (statistics.squares.sum((0, 1, 2)) / n - mean**2) + 1e-6
    return floor
