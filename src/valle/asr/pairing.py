"""The cheapest way to pair two sequences in order: for word errors, words that agree, and phones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Pairing(NamedTuple):
    """Which elements of a first and a second sequence belong together."""

    cost: float
    """Of all pairs and of all elements that are left over."""
    pairs: list[tuple[int, int]]
    """Positions in the first and in the second, in order."""


def pair_up(costs: Sequence[Sequence[float]], n_second: int, gap: float = 1.0) -> Pairing:
    """Pair two sequences in order at least cost; of equally cheap ways the one that pairs what is last.

    Args:
        costs: [first, second] of each pair; infinite where there may be none.
        n_second: elements of the second sequence.
        gap: of an element that has no partner.
    """
    n, m = len(costs), n_second
    total = [[gap * j for j in range(m + 1)]]
    for i in range(n):
        row = [gap * (i + 1)]
        for j in range(m):
            row.append(min(total[i][j] + costs[i][j], total[i][j + 1] + gap, row[j] + gap))
        total.append(row)
    pairs: list[tuple[int, int]] = []
    i, j = n, m
    while i and j:
        if total[i][j] == total[i - 1][j - 1] + costs[i - 1][j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif total[i][j] == total[i - 1][j] + gap:
            i -= 1
        else:
            j -= 1
    return Pairing(total[n][m], pairs[::-1])


def pair_words(words: Sequence[str], reference: Sequence[str]) -> Pairing:
    """Words as they are written; the cost is how many to change, leave out or put in to make one of the other.

    ``valle.eval.wer`` counts the same with jiwer, which the recogniser does without, after Whisper's normalisation.
    """
    return pair_up([[float(a != b) for b in reference] for a in words], len(reference))
