"""Plots as SVG inside a page: dots of single sentences with their mean, and means with intervals along a series.

They take their colours from the page (``valle.page``), so that they are readable in light and dark, and say in words
what they show to those who do not see them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from valle.eval.bootstrap import Estimate
from valle.eval.results import Column

STYLE = """
figure { margin: 1.2rem 0 } figcaption { color: var(--soft); font-size: .92rem }
svg { display: block; width: 100%; max-width: 44rem; height: auto; font: 14px system-ui, sans-serif }
svg text { fill: var(--ink); stroke: var(--paper); stroke-width: 4px; paint-order: stroke }
svg .soft { fill: var(--soft) } svg line, svg path { stroke: var(--line); fill: none }
svg .key { stroke: var(--key); stroke-width: 2 } svg .mean { fill: var(--key); stroke: none }
svg .dot { fill: var(--key); fill-opacity: .35; stroke: none } svg .band { fill: var(--soft); fill-opacity: .18 }
svg .guide { stroke: var(--soft); stroke-dasharray: 4 3 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem }
.plots figure { margin: 0 }
"""

_WIDE, _LANE, _RADIUS = 560, 58, 4  # of a strip plot, in its own units
_MARGIN = 14
_SERIES = (320, 220)


@dataclass(frozen=True)
class Lane:
    """One row of a strip plot."""

    values: Sequence[tuple[float, str]]
    """Each sentence's, and what it is called."""
    mean: Estimate | None
    """Of all."""


def strip_plot(lanes: Mapping[str, Lane], column: Column, caption: str) -> str:
    """A dot for every sentence, a line of dots for every row, under each its mean with the interval."""
    shown = {name: lane for name, lane in lanes.items() if lane.values}
    if not shown:
        return ""
    values = [v for lane in shown.values() for v, _ in lane.values]
    ends = [x for lane in shown.values() if lane.mean for x in (lane.mean.low, lane.mean.high)]
    ticks = nice_ticks(min(*values, *ends, 0.0) if column.percent else min(values + ends), max(values + ends))
    height = len(shown) * _LANE + 34
    parts = []
    for tick in ticks:
        x = _place(tick, ticks, _MARGIN, _WIDE - _MARGIN)
        anchor = {ticks[0]: "start", ticks[-1]: "end"}.get(tick, "middle")
        parts.append(f'<line x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{height - 28}"/>')
        parts.append(
            f'<text class="soft" x="{x:.1f}" y="{height - 10}" text-anchor="{anchor}">{_tick(tick, column)}</text>'
        )
    told = []
    for number, (name, lane) in enumerate(shown.items()):
        top = number * _LANE
        mean = column.show(lane.mean)
        parts.append(f'<text x="{_MARGIN}" y="{top + 17}">{html.escape(name)}</text>')
        parts.append(f'<text class="soft" x="{_WIDE - _MARGIN}" y="{top + 17}" text-anchor="end">{mean}</text>')
        places = [_place(v, ticks, _MARGIN, _WIDE - _MARGIN) for v, _ in lane.values]
        for x, dy, (value, what) in zip(places, swarm(places), lane.values, strict=True):
            title = html.escape(f"{column.show(value)}: {what}")
            at = f'cx="{x:.1f}" cy="{top + 35 + dy:.1f}"'
            parts.append(f'<circle class="dot" {at} r="{_RADIUS}"><title>{title}</title></circle>')
        if lane.mean:
            low, x, high = (
                _place(v, ticks, _MARGIN, _WIDE - _MARGIN) for v in (lane.mean.low, lane.mean.mean, lane.mean.high)
            )
            y = top + _LANE - 5
            parts.append(f'<line class="key" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>')
            parts.append(f'<circle class="mean" cx="{x:.1f}" cy="{y}" r="4"/>')
        told.append(f"{name} {mean}, {len(lane.values)} sentences")
    return _figure(_WIDE, height, f"{column.name} of every sentence. {'; '.join(told)}.", parts, caption)


def series_plot(series: Mapping[str, Estimate], column: Column, along: str, guide: Estimate | None = None) -> str:
    """Means with intervals, side by side; ``guide`` is what they are compared with, a dashed line over all."""
    if not series:
        return ""
    wide, height = _SERIES
    every = [*series.values(), *([guide] if guide else [])]
    low = min(e.low for e in every)
    ticks = nice_ticks(min(low, 0.0) if column.percent else low, max(e.high for e in every))
    left, right, top, bottom = 54, wide - 10, 12, height - 40

    def y(value: float) -> float:
        return _place(value, ticks, bottom, top)

    parts = []
    for tick in ticks:
        parts.append(f'<line x1="{left}" y1="{y(tick):.1f}" x2="{right}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="soft" x="{left - 6}" y="{y(tick) + 5:.1f}" text-anchor="end">{_tick(tick, column)}</text>'
        )
    told = [f"{name}: {column.show(e)}" for name, e in series.items()]
    if guide:
        parts.append(
            f'<rect class="band" x="{left}" y="{y(guide.high):.1f}" width="{right - left}" '
            f'height="{y(guide.low) - y(guide.high):.1f}"/>'
        )
        parts.append(
            f'<line class="guide" x1="{left}" y1="{y(guide.mean):.1f}" x2="{right}" y2="{y(guide.mean):.1f}"/>'
        )
        told.append(f"dashed, without the codec: {column.show(guide)}")
    step = (right - left) / len(series)
    xs = [left + step * (i + 0.5) for i in range(len(series))]
    joined = " L".join(f"{x:.1f} {y(e.mean):.1f}" for x, e in zip(xs, series.values(), strict=True))
    parts.append(f'<path d="M{joined}"/>')
    for x, (name, e) in zip(xs, series.items(), strict=True):
        parts.append(f'<line class="key" x1="{x:.1f}" y1="{y(e.low):.1f}" x2="{x:.1f}" y2="{y(e.high):.1f}"/>')
        title = html.escape(f"{name}: {column.show(e)}")
        parts.append(
            f'<circle class="mean" cx="{x:.1f}" cy="{y(e.mean):.1f}" r="4.5"><title>{title}</title></circle>'
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{html.escape(name)}</text>'
        )
    middle = (left + right) / 2
    parts.append(f'<text class="soft" x="{middle}" y="{height - 4}" text-anchor="middle">{html.escape(along)}</text>')
    return _figure(wide, height, f"{column.name} by {along}. {'; '.join(told)}.", parts, column.title)


def nice_ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers from below ``low`` to above ``high``."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def swarm(places: Sequence[float]) -> list[float]:
    """How far each dot is moved up or down so that dots at one place are all seen; within 14 units either way."""
    columns: dict[int, list[int]] = {}
    for i, place in enumerate(places):
        columns.setdefault(round(place / (2 * _RADIUS)), []).append(i)
    offsets = [0.0] * len(places)
    for own in columns.values():
        step = min(_RADIUS * 1.5, 28 / max(len(own) - 1, 1))
        for turn, i in enumerate(own):
            offsets[i] = (turn + 1) // 2 * step * (1 if turn % 2 else -1)
    return offsets


def _place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    """Where a value is on an axis that goes over the ticks."""
    return start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)


def _tick(value: float, column: Column) -> str:
    return f"{round(100 * value, 6):g} %" if column.percent else f"{round(value, 9):g}"


def _figure(width: int, height: int, alt: str, parts: Sequence[str], caption: str) -> str:
    inner = "\n".join(parts)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(alt)}">\n{inner}\n</svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
