"""The learning curve of one or several runs, from their logs: ``python -m valle.train.curve RUN... [--out FILE.svg]``.

A table by step goes to the screen, markdown: loss and top-10 accuracy on the training batches (means since the line
before) and on dev. With ``--out`` a picture of the same is drawn, an SVG that needs nothing else.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from valle.errors import ValleError
from valle.files import write_atomic

METRICS = ("loss", "top10")
"""What is shown; each has ``train/`` and ``dev/`` before it in the log."""

_COLOURS = ("#0b6e99", "#c2571a", "#5b8c2a", "#8757a6", "#99830b")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 420, 300, 52, 42, 34


class Curve(NamedTuple):
    """One run."""

    name: str
    values: dict[str, dict[int, float]]  # metric, such as dev/loss -> step -> value


def read_curve(run: str | Path) -> Curve:
    """The log of a run's folder, ``runs/…/ar``.

    Raises:
        ValleError: there is none, or it has no step.
    """
    run = Path(run)
    path = run / "log.jsonl"
    if not path.is_file():
        raise ValleError(f"{run} has no log.jsonl; give the folder of a run, such as runs/small/ar")
    values: dict[str, dict[int, float]] = {f"{of}/{m}": {} for of in ("train", "dev") for m in METRICS}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that is being written, or was killed
            continue
        for name, by_step in values.items():
            if event.get(name) is not None:  # a loss that was not finite is null
                by_step[int(event["step"])] = float(event[name])
    if not any(values.values()):
        raise ValleError(f"{path} tells no step yet; wait until the run has logged one")
    return Curve("/".join(run.resolve().parts[-2:]), values)


def table(curve: Curve, n_rows: int = 12) -> str:
    """Markdown; rows are the validations, evenly chosen where there are many, and the last."""
    steps = sorted(curve.values["dev/loss"]) or sorted(curve.values["train/loss"])
    chosen = {steps[round(i * (len(steps) - 1) / max(1, n_rows - 1))] for i in range(n_rows)}
    lines = [
        f"| {curve.name}, step | training loss | top-10 | dev loss | top-10 |",
        "|---|---|---|---|---|",
    ]
    for step in sorted(chosen):
        cells = [curve.values[f"{of}/{m}"].get(step) for of in ("train", "dev") for m in METRICS]
        told = ["–" if v is None else f"{v:.2f}" if i % 2 == 0 else f"{v:.1%}" for i, v in enumerate(cells)]
        lines.append(f"| {step:,} | " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def picture(curves: Sequence[Curve]) -> str:
    """An SVG: loss to the left, top-10 accuracy to the right; training is a thin line, dev a thick one with dots."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDTH} {_HEIGHT + 18 * len(curves)}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{html.escape(_in_words(curves))}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for i, metric in enumerate(METRICS):
        parts.append(f'<g transform="translate({i * _WIDTH} 0)">{_panel(curves, metric)}</g>')
    for i, (curve, colour) in enumerate(zip(curves, _cycle(len(curves)), strict=True)):
        y = _HEIGHT + 18 * i + 8
        parts.append(f'<circle cx="{_LEFT}" cy="{y - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 10}" y="{y}">{html.escape(curve.name)}: training thin, dev thick</text>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(curves: Sequence[Curve], metric: str) -> str:
    series = [(c.values[f"train/{metric}"], c.values[f"dev/{metric}"]) for c in curves]
    points = [(s, v) for pair in series for by_step in pair for s, v in by_step.items() if math.isfinite(v)]
    last = max(s for s, _ in points)
    low, high = (0.0, 1.0) if metric == "top10" else (math.floor(min(v for _, v in points)), max(v for _, v in points))
    high = max(math.ceil(high), low + 1)

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + step / max(1, last) * (_WIDTH - _LEFT - 18)
        return x, _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    title = {"loss": "loss, nats a code", "top10": "top-10 accuracy"}[metric]
    parts = [f'<text x="{_LEFT}" y="18" font-weight="600">{title}</text>']
    for tick in [low + (high - low) * i / 5 for i in range(6)]:
        x0, y = place(0, tick)
        x1, _ = place(last, tick)
        told = f"{tick:.0%}" if metric == "top10" else f"{tick:.1f}"
        parts.append(f'<line x1="{x0:.1f}" y1="{y:.1f}" x2="{x1:.1f}" y2="{y:.1f}" stroke="#d8d8d8"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{told}</text>')
    for i in range(5):
        x, y = place(last * i / 4, low)
        anchor = "end" if i == 4 else "middle"
        parts.append(
            f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="{anchor}" fill="#555">{last * i / 4:,.0f}</text>'
        )
    x, y = place(last / 2, low)
    parts.append(f'<text x="{x:.1f}" y="{y + 36:.1f}" text-anchor="middle" fill="#555">step</text>')
    for (train, dev), colour in zip(series, _cycle(len(series)), strict=True):
        for by_step, width, opacity in ((train, 1, 0.6), (dev, 2.5, 1)):
            along = [place(s, v) for s, v in sorted(by_step.items()) if math.isfinite(v)]
            if len(along) > 1:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in along)
                parts.append(
                    f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
                    f'stroke-opacity="{opacity}"/>'
                )
            if by_step is dev:
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in along]
    return "".join(parts)


def _in_words(curves: Sequence[Curve]) -> str:
    told = []
    for curve in curves:
        dev = curve.values["dev/loss"]
        if dev:
            first, last = min(dev), max(dev)
            told.append(f"{curve.name}: dev loss {dev[first]:.2f} at step {first}, {dev[last]:.2f} at step {last}")
    return "Learning curves. " + "; ".join(told)


def _cycle(n: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(n)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m valle.train.curve", description="The learning curve of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, such as runs/small/ar")
    parser.add_argument("--out", metavar="FILE", help="draw it too, as an SVG")
    args = parser.parse_args(argv)
    try:
        curves = [read_curve(run) for run in args.runs]
        sys.stdout.write("\n".join(map(table, curves)))
        if args.out:
            write_atomic(Path(args.out), picture(curves).encode())
    except ValleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
