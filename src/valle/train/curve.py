"""The learning curve of one or several runs, from their logs: ``python -m valle.train.curve RUN... [--out FILE.svg]``.

A table by step goes to the screen, markdown: loss and top-10 accuracy on the training batches (means since the line
before) and on dev. With ``--out`` a picture of the same is drawn (matplotlib).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from valle.errors import ValleError
from valle.files import write_atomic
from valle.plots import as_bytes, new_figure

METRICS = ("loss", "top10")
"""What is shown; each has ``train/`` and ``dev/`` before it in the log."""


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


def picture(curves: Sequence[Curve]) -> Any:
    """A figure: loss to the left, top-10 accuracy to the right; training is a thin line, dev a thick one with dots.

    Raises:
        ValleError: there is no matplotlib.
    """
    try:
        figure = new_figure(8.5, 3.4)
    except ModuleNotFoundError as error:
        raise ValleError("a picture needs matplotlib; pip install matplotlib, or leave --out away") from error
    labels = {"loss": "loss, nats a code", "top10": "top-10 accuracy"}
    for ax, metric in zip(figure.subplots(1, 2), METRICS, strict=True):
        for i, curve in enumerate(curves):
            for of, width, marker in (("train", 0.8, None), ("dev", 2.0, "o")):
                by_step = dict(sorted(curve.values[f"{of}/{metric}"].items()))
                label = f"{curve.name}, {'training' if of == 'train' else of}"
                style = {"color": f"C{i}", "linewidth": width, "marker": marker, "markersize": 3}
                ax.plot(list(by_step), list(by_step.values()), label=label, **style)
        ax.set_xlabel("step")
        ax.set_ylabel(labels[metric])
        ax.grid(visible=True, alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.axes[1].set_ylim(0, 1)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m valle.train.curve", description="The learning curve of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, such as runs/small/ar")
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw it too: .svg or .png")
    args = parser.parse_args(argv)
    try:
        if args.out and args.out.suffix not in (".svg", ".png"):
            raise ValleError(f"--out is {args.out}; give a name that ends in .svg or .png")
        curves = [read_curve(run) for run in args.runs]
        sys.stdout.write("\n".join(map(table, curves)))
        if args.out:
            write_atomic(args.out, as_bytes(picture(curves), args.out.suffix[1:]))
    except ValleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
