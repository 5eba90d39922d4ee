"""Statistics of ratings: intervals over raters and sentences at once, signed ranks, agreement.

- Intervals: raters and sentences are drawn anew, each with replacement and independently (the crossed or "pigeonhole"
  bootstrap, Owen 2007); a rating weighs as often as its rater times as often as its sentence. They tell how far a mean
  would move with other raters *and* other sentences, and are a little too wide rather than too narrow.
- Wilcoxon's signed-rank test is over sentences, or over raters, never over single ratings, which are not independent.
  Zeros are left out (Wilcoxon), ties share their rank, and the distribution is exact for these very ranks.
- Agreement is Krippendorff's alpha for interval data (Krippendorff 2011): 1 is perfect, 0 is chance.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valle.eval.bootstrap import LEVEL, N_RESAMPLES, Estimate

MAX_EXACT = 200
"""Differences up to which the distribution is exact; beyond, the normal one with ties and continuity accounted for."""


@dataclass(frozen=True)
class Rating:
    """A number that a rater gave to a sentence: a score, or the difference of two."""

    rater: str
    """Who."""
    item: str
    """The sentence."""
    value: float
    """Higher is better."""


def crossed_interval(ratings: Sequence[Rating], *, seed: int = 0) -> Estimate | None:
    """Mean and 95 % interval over raters and sentences; ``n`` counts the ratings. None without any."""
    if not ratings:
        return None
    raters, r = np.unique([x.rater for x in ratings], return_inverse=True)
    items, i = np.unique([x.item for x in ratings], return_inverse=True)
    values = np.asarray([x.value for x in ratings], np.float64)
    sums, counts = np.zeros((2, len(raters), len(items)))  # [R, I] each
    np.add.at(sums, (r, i), values)
    np.add.at(counts, (r, i), 1.0)
    rng = np.random.default_rng(seed)
    of_raters = rng.multinomial(len(raters), np.full(len(raters), 1 / len(raters)), N_RESAMPLES)  # [B, R]
    of_items = rng.multinomial(len(items), np.full(len(items), 1 / len(items)), N_RESAMPLES)  # [B, I]
    tops, bottoms = ((of_raters @ table * of_items).sum(1) for table in (sums, counts))  # [B] each
    drawn = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def means_by(ratings: Sequence[Rating], key: str) -> list[float]:
    """The mean of each rater's (``"rater"``) or each sentence's (``"item"``) ratings."""
    groups: dict[str, list[float]] = {}
    for rating in ratings:
        groups.setdefault(getattr(rating, key), []).append(rating.value)
    return [float(np.mean(own)) for own in groups.values()]


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test that the differences lie symmetrically around 0; None without any.

    Differences of 0 are left out; 1 where nothing else is there.
    """
    if not len(differences):
        return None
    given: NDArray[np.float64] = np.asarray(differences, np.float64)
    values = given[np.abs(given) > 1e-9]
    n = len(values)
    if n == 0:
        return 1.0
    ranks = midranks(np.abs(values).round(9))
    positive = float(ranks[values > 0].sum())
    if n > MAX_EXACT:
        mean, deviation = ranks.sum() / 2, math.sqrt(np.square(ranks).sum() / 4)
        z = max(0.0, abs(positive - mean) - 0.5) / deviation
        return math.erfc(z / math.sqrt(2))
    doubled = np.rint(2 * ranks).astype(int)  # whole numbers
    ways = np.zeros(
        int(doubled.sum()) + 1
    )  # probability of each sum of the positive ones, all signs being equally likely
    ways[0] = 1.0
    for rank in doubled.tolist():
        shifted = np.zeros_like(ways)
        shifted[rank:] = ways[: len(ways) - rank]
        ways = (ways + shifted) / 2
    at = round(2 * positive)
    return float(min(1.0, 2 * min(ways[: at + 1].sum(), ways[at:].sum())))


def midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1 on of values [n]; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction for asking several times; those that are None stay so and do not count."""
    present = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for order, (p, i) in enumerate(present):
        least = max(least, min(1.0, (len(present) - order) * p))
        corrected[i] = least
    return corrected


def alpha(units: Mapping[Hashable, Sequence[float]]) -> float | None:
    """Krippendorff's alpha for interval data.

    Args:
        units: the values that each thing rated got, one a rater, in any order. Things with one value do not count.

    Returns:
        1 for agreement, 0 for what chance would give, below where raters agree less; None where nothing varies or
        nothing was rated twice.
    """
    pairable = [np.asarray(values, np.float64) for values in units.values() if len(values) > 1]
    if not pairable:
        return None
    # Sums of squared differences over ordered pairs: of n values, 2 n^2 times their variance.
    observed = sum(2 * len(v) ** 2 * float(v.var()) / (len(v) - 1) for v in pairable)
    everything = np.concatenate(pairable)
    n = len(everything)
    expected = 2 * n**2 * float(everything.var()) / (n - 1)
    return None if expected < 1e-12 else 1 - observed / expected
