"""Intervals: hand-computed means, coverage of a known truth, and the same numbers every time."""

from __future__ import annotations

import numpy as np
import pytest

from valle.eval.bootstrap import correlation, mean_interval, ratio_interval, slope, statistic_interval


def test_mean_leaves_out_what_is_missing() -> None:
    estimate = mean_interval([1.0, None, 2.0, 6.0])
    assert estimate is not None
    assert estimate.mean == pytest.approx(3.0)
    assert estimate.n == 3
    assert 1.0 <= estimate.low < 3.0 < estimate.high <= 6.0


def test_ratio_is_sum_by_sum() -> None:
    estimate = ratio_interval([1, 0, 3], [10, 5, 5])
    assert estimate is not None
    assert estimate.mean == pytest.approx(4 / 20)  # and not the mean of 0.1, 0 and 0.6


def test_nothing_measured_is_no_number() -> None:
    assert mean_interval([]) is None
    assert mean_interval([None, None]) is None
    assert ratio_interval([1.0], [0.0]) is None


def test_equal_values_leave_no_doubt() -> None:
    estimate = mean_interval([2.5] * 7)
    assert estimate is not None
    assert (estimate.low, estimate.high) == (2.5, 2.5)


def test_seed_decides() -> None:
    values = list(np.random.default_rng(1).normal(size=20))
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_interval_covers_the_truth_as_often_as_it_says(kind: str) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    n_trials = 300
    for _ in range(n_trials):
        if kind == "mean":
            truth, estimate = 1.0, mean_interval(rng.exponential(1.0, size=80).tolist())
        else:  # words of an utterance, each of them wrong once in ten
            words = rng.integers(3, 30, size=80)
            truth, estimate = 0.1, ratio_interval(rng.binomial(words, 0.1).tolist(), words.tolist())
        assert estimate is not None
        covered += estimate.low <= truth <= estimate.high
    assert 0.90 <= covered / n_trials <= 0.98


def test_interval_narrows_with_the_root_of_the_number() -> None:
    values = np.random.default_rng(0).normal(size=1600)
    few, many = mean_interval(values[:100].tolist()), mean_interval(values.tolist())
    assert few is not None
    assert many is not None
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.25)


def test_slope_and_correlation_by_hand() -> None:
    pairs = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
    assert slope(pairs) == pytest.approx(2)
    assert correlation(pairs) == pytest.approx(1)
    assert correlation(pairs * [1, -1]) == pytest.approx(-1)
    assert np.isnan(correlation(pairs * [1, 0]))
    told = statistic_interval([p[None] for p in pairs], slope)
    assert told is not None
    assert (told.mean, told.low, told.high, told.n) == pytest.approx((2, 2, 2, 3))
    assert statistic_interval([pairs[:1]], correlation) is None
    assert statistic_interval([], slope) is None


def test_interval_draws_groups_not_rows() -> None:
    rng = np.random.default_rng(0)
    groups = [np.repeat(rng.normal(size=(1, 2)), 50, axis=0) for _ in range(12)]  # each row fifty times
    told, once = statistic_interval(groups, correlation), statistic_interval([g[:1] for g in groups], correlation)
    assert told is not None
    assert once is not None
    assert (told.low, told.high) == pytest.approx((once.low, once.high))  # rows of one group tell no more than one
