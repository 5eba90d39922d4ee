"""Means with 95 % intervals: percentile bootstrap over utterances, seeded, so that a table is the same every time.

What is resampled are utterances: an interval tells how far the mean would move with other utterances of these speakers,
not with other speakers, and not with another training of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
