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
from valle.eval import codec_table, synthesis
from valle.eval.bootstrap import Estimate, ratio_difference
from valle.eval.journal import read_records
from valle.eval.results import Column, Row, table, without_folders

COLUMNS = tuple({c.key: c for c in (*synthesis.COLUMNS, *synthesis.QUALITY_COLUMNS, *codec_table.COLUMNS)}.values())
"""Of speech and of codecs; those that both sides have are told."""
_GIVEN = (synthesis.RECORDING, synthesis.ROUND_TRIP, codec_table.ORIGINAL)


class Side(NamedTuple):
    """One of the two."""

    name: str
    """Of the folder and the row."""
    records: dict[tuple[str, ...], Mapping[str, Any]]
    """Those of the row, by the rest of the key: utterance and seed."""


def read_side(folder: Path, row: str | None) -> Side:
    """A row of a measurement: that of this name, or else the model's, or that of all of a codec's codebooks.

    Raises:
        ValleError: no measurement there, or no such row.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise ValleError(f"{folder} holds no results.json; give a folder that `valle eval` wrote")
    results = json.loads(path.read_text(encoding="utf-8"))
    rows = [str(name) for name in results.get("rows", {})]
    own = [name for name in rows if name not in _GIVEN and name not in results.get("systems", {})]
    wanted = row or (own[-1] if own else "")
    if wanted not in rows:
        raise ValleError(f"{folder} has no row {wanted!r}; its rows are {', '.join(rows) or 'none'}")
    key = results.get("systems", {}).get(wanted, wanted)
    records = read_records(folder / "utterances.jsonl")
    return Side(f"{folder.name}: {wanted}", {k[:-1]: r for k, r in records.items() if without_folders(k[-1]) == key})


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
    of_first: dict[str, Estimate | float | None] = {}
    of_second: dict[str, Estimate | float | None] = {}
    difference: dict[str, Estimate | float | None] = {}
    for column in COLUMNS:
        sums = [
            np.asarray([np.sum([_value(side.records[k], column.key) for k in keys], 0) for keys in groups.values()])
            for side in (first, second)
        ]
        if (found := ratio_difference(*sums)) is not None:
            of_first[column.key], of_second[column.key], difference[column.key] = found
    # Two folders of one name are told apart all the same.
    names = [f"A, {first.name}", f"B, {second.name}"]
    return {names[0]: of_first, names[1]: of_second, "difference": difference}, len(groups)


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
    parser.add_argument("--row", action="append", default=[], help="of A, of B when given twice (default: the model's)")
    args = parser.parse_args(argv)
    if len(args.row) > 2:
        raise ValleError(f"--row is given {len(args.row)} times; give it once for both, or once for each")
    sides = [read_side(args.first, args.row[0] if args.row else None)]
    sides.append(read_side(args.second, args.row[-1] if args.row else None))
    rows, n = compare(*sides)
    columns = [Column(c.key, c.name, c.digits, c.percent) for c in COLUMNS if c.key in rows["difference"]]
    sys.stdout.write(f"{n} utterances; B less A, and its 95 % interval over utterances.\n\n" + table("", rows, columns))
    return 0
