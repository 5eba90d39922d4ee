"""Plots: dots where their values are, round ticks, words for those who do not see them."""

from __future__ import annotations

import re

import pytest

from valle.eval.bootstrap import Estimate
from valle.eval.plots import Lane, nice_ticks, series_plot, strip_plot, swarm
from valle.eval.results import Column

WER, COSINE = Column("wer", "WER % ↓", 1, percent=True), Column("cosine", "cosine ↑", 2)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.34, 0.78, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        (-0.2, 0.9, [-0.5, 0, 0.5, 1.0]),
        (3.0, 3.0, [2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6]),
    ],
)
def test_ticks_are_round_and_hold_everything(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_dots_at_one_place_are_all_seen() -> None:
    offsets = swarm([100.0] * 40 + [300.0])
    assert len(set(offsets[:40])) == 40
    assert max(map(abs, offsets)) <= 14.5
    assert offsets[-1] == 0


def test_strip_plot_has_a_dot_for_each_value_at_its_place() -> None:
    lanes = {
        "a <b>": Lane([(0.0, "one"), (0.5, "two"), (1.0, '"<three>"')], Estimate(0.5, 0.2, 0.9, 3)),
        "empty": Lane([], None),
    }
    text = strip_plot(lanes, WER, "caption <i>")
    places = [float(x) for x in re.findall(r'class="dot" cx="([\d.]+)"', text)]
    assert places == sorted(places)
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert 'aria-label="WER % of every sentence. a &lt;b&gt; 50.0 [20.0, 90.0], 3 sentences."' in text
    assert "<title>100.0: &quot;&lt;three&gt;&quot;</title>" in text
    assert "<figcaption>caption &lt;i&gt;</figcaption>" in text
    assert "empty" not in text
    assert "<b>" not in text
    assert strip_plot({"empty": Lane([], None)}, WER, "") == ""


def test_series_plot_joins_means_and_shows_what_to_compare_with() -> None:
    series = {"1": Estimate(0.5, 0.4, 0.7, 9), "2": Estimate(0.3, 0.2, 0.4, 9), "8": Estimate(0.1, 0.05, 0.2, 9)}
    text = series_plot(series, WER, "codebooks", Estimate(0.1, 0.05, 0.15, 9))
    heights = [float(y) for y in re.findall(r'class="mean" cx="[\d.]+" cy="([\d.]+)"', text)]
    assert heights == sorted(heights)  # lower rates are lower down
    assert len(set(heights)) == 3
    assert 'class="guide"' in text
    assert "1: 50.0 [40.0, 70.0]; 2: 30.0 [20.0, 40.0]" in text
    assert "nan" not in text
    assert 'class="guide"' not in series_plot(series, COSINE, "codebooks")
    assert series_plot({}, WER, "codebooks") == ""
