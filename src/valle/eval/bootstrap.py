"""Means with 95 % intervals: percentile bootstrap over utterances, seeded, so that a table is the same every time.

What is resampled are utterances: an interval tells how far the mean would move with other utterances of these speakers,
not with other speakers, and not with another training of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Share of the resampled means that lie inside an interval."""
N_RESAMPLES = 2000
"""Enough for the second digit of a bound."""


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is."""

    mean: float
    """Over the utterances, or over all their words or tokens."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Utterances that it is taken over."""


def mean_interval(values: Sequence[float | None], *, seed: int = 0) -> Estimate | None:
    """Mean of the values that are there; None when there is none."""
    present = [value for value in values if value is not None]
    return ratio_interval(present, [1.0] * len(present), seed=seed)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Estimate | None:
    """Sum by sum, as an error rate over a corpus: errors and words of each utterance; None when there are no words."""
    tops, bottoms = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)  # [n] each
    assert tops.shape == bottoms.shape
    if bottoms.sum() == 0:
        return None
    n = len(tops)
    drawn = np.random.default_rng(seed).integers(n, size=(N_RESAMPLES, n))
    sums = bottoms[drawn].sum(1)  # [N_RESAMPLES]
    ratios = tops[drawn].sum(1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(tops.sum() / bottoms.sum()), float(low), float(high), n)


def ratio_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int = 0
) -> tuple[float, float, Estimate] | None:
    """Two ratios over the same utterances, and the second less the first; what is drawn are utterances with both.

    Args:
        first: [n, 2] numerator and denominator of each utterance.
        second: likewise.
        seed: of the draws.

    Returns:
        both ratios and their difference; None where one of them has nothing below the line.
    """
    both = np.stack([first, second])  # [2, n, 2]
    tops, bottoms = both[..., 0], both[..., 1]
    if not (bottoms.sum(1) > 0).all():
        return None
    n = both.shape[1]
    drawn = np.random.default_rng(seed).integers(n, size=(N_RESAMPLES, n))
    sums = bottoms[:, drawn].sum(2)  # [2, N_RESAMPLES]
    is_told = (sums > 0).all(0)
    ratios = tops[:, drawn].sum(2)[:, is_told] / sums[:, is_told]
    low, high = np.quantile(ratios[1] - ratios[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    a, b = tops.sum(1) / bottoms.sum(1)
    return float(a), float(b), Estimate(float(b - a), float(low), float(high), n)


def statistic_interval(
    groups: Sequence[NDArray[np.float64]], statistic: Callable[[NDArray[np.float64]], float], *, seed: int = 0
) -> Estimate | None:
    """A statistic of all rows of all groups, with the interval of drawing groups, such as the trials.

    Args:
        groups: [m_i, ...] each, the rows that stand or fall together.
        statistic: of rows [M, ...]; NaN where they do not tell it.
        seed: of the draws.

    Returns:
        the statistic, which takes the place of a mean; None where it cannot be told.
    """
    groups = [group for group in groups if len(group)]
    whole = statistic(np.concatenate(groups)) if groups else np.nan
    if not np.isfinite(whole):
        return None
    draws = np.random.default_rng(seed).integers(len(groups), size=(N_RESAMPLES, len(groups)))
    values = np.asarray([statistic(np.concatenate([groups[i] for i in drawn])) for drawn in draws])
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(whole), float(low), float(high), len(groups))


def correlation(pairs: NDArray[np.float64]) -> float:
    """Pearson's, of pairs [n, 2]; NaN for fewer than three, or where one of the two never changes."""
    if len(pairs) < 3:
        return np.nan
    x, y = (pairs - pairs.mean(0)).T
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 1e-12 else np.nan


def slope(pairs: NDArray[np.float64]) -> float:
    """By how much the second of pairs [n, 2] changes with the first (least squares); NaN where that never changes."""
    if len(pairs) < 2:
        return np.nan
    x, y = (pairs - pairs.mean(0)).T
    return float(x @ y) / float(x @ x) if float(x @ x) > 1e-12 else np.nan
