"""`valle eval compare A B`: how far two measurements on the same trials differ, trial by trial.

Two means whose intervals overlap may still differ surely: sentences differ more than models. Here the same sentence in
the same voice is compared with itself, and sentences are drawn again for the interval (paired bootstrap). A measurement
of several runs counts with the runs that both have.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from valle.errors import ValleError
from valle.eval.bootstrap import LEVEL, N_RESAMPLES, Estimate
from valle.eval.journal import read_records
from valle.eval.results import Column, Row, table

COLUMNS = (
    Column("wer", "WER %", 1, percent=True),
    Column("sim_o", "SIM-o", 3),
    Column("sim_r", "SIM-r", 3),
    Column("mos", "DNSMOS", 2),
    Column("pesq", "PESQ", 2),
    Column("stoi", "STOI", 3),
    Column("similarity", "speaker cosine", 3),
    Column("length", "length / recording", 2),
)
_OTHER = ("recording", "codec round trip")


class Side(NamedTuple):
    """One of the two."""

    name: str
    """Of the folder and the row."""
    records: dict[tuple[str, ...], Mapping[str, Any]]
    """Those of the row, by the rest of the key: utterance and seed."""


def read_side(folder: Path, row: str | None) -> Side:
    """A row of a measurement: the model's, or that of this name.

    Raises:
        ValleError: no measurement there, or no such row.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise ValleError(f"{folder} holds no results.json; give a folder that `valle eval` wrote")
    results = json.loads(path.read_text(encoding="utf-8"))
    rows = [str(name) for name in results.get("rows", {})]
    wanted = row or next((name for name in rows if name not in _OTHER), "")
    if wanted not in rows:
        raise ValleError(f"{folder} has no row {wanted!r}; its rows are {', '.join(rows) or 'none'}")
    records = read_records(folder / "utterances.jsonl")
    return Side(f"{folder.name}: {wanted}", {key[:-1]: r for key, r in records.items() if key[-1] == wanted})


def compare(first: Side, second: Side) -> tuple[dict[str, Row], int]:
    """The means of both over what both have measured, and second less first with its interval; and of how many.

    Raises:
        ValleError: nothing was measured by both.
    """
    common = [key for key in first.records if key in second.records]
    if not common:
        raise ValleError(f"{first.name} and {second.name} have no trial in common; measure both with one --trials list")
    groups: dict[str, list[tuple[str, ...]]] = {}  # an utterance's runs stand or fall together
    for key in common:
        groups.setdefault(key[0], []).append(key)
    drawn = np.random.default_rng(0).integers(len(groups), size=(N_RESAMPLES, len(groups)))
    rows: dict[str, dict[str, Estimate | float | None]] = {first.name: {}, second.name: {}, "difference": {}}
    for column in COLUMNS:
        sums = []  # of both, by utterance: numerator and denominator
        for side in (first, second):
            values = [[_value(side.records[key], column.key) for key in keys] for keys in groups.values()]
            sums.append(np.asarray([np.sum(own, axis=0) for own in values]))  # [n, 2]
        tops, bottoms = (np.stack([s[:, i] for s in sums]) for i in (0, 1))  # [2, n] each
        if not (bottoms.sum(1) > 0).all():
            continue
        means = tops.sum(1) / bottoms.sum(1)
        with np.errstate(invalid="ignore"):
            again = tops[:, drawn].sum(2) / bottoms[:, drawn].sum(2)  # [2, N_RESAMPLES]
        low, high = np.nanquantile(again[1] - again[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        rows[first.name][column.key], rows[second.name][column.key] = float(means[0]), float(means[1])
        difference = Estimate(float(means[1] - means[0]), float(low), float(high), len(groups))
        rows["difference"][column.key] = difference
    return dict(rows), len(groups)


def _value(record: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Numerator and denominator of one measurement; 0 and 0 where it is missing."""
    value = record.get(key)
    if value is None:
        return 0.0, 0.0
    if isinstance(value, Mapping):  # word errors
        return float(value["substitutions"] + value["deletions"] + value["insertions"]), float(value["words"])
    return float(value), 1.0


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
    """
    about = "How far two measurements on the same trials differ, with the interval of the difference."
    parser = argparse.ArgumentParser(prog="valle eval compare", description=about, allow_abbrev=False)
    parser.add_argument("first", type=Path, metavar="A", help="folder of a measurement")
    parser.add_argument("second", type=Path, metavar="B", help="folder of another, of the same trials")
    parser.add_argument("--row", action="append", default=[], help="of A, and of B when given twice (the model's)")
    args = parser.parse_args(argv)
    if len(args.row) > 2:
        raise ValleError(f"--row is given {len(args.row)} times; give it once for both, or once for each")
    sides = [read_side(args.first, args.row[0] if args.row else None)]
    sides.append(read_side(args.second, args.row[-1] if args.row else None))
    rows, n = compare(*sides)
    columns = [column for column in COLUMNS if column.key in rows["difference"]]
    sys.stdout.write(f"{n} utterances; B less A, and its 95 % interval over utterances.\n\n" + table("", rows, columns))
    return 0
