"""Tables and what is written: nothing of the machine, nothing that is not a number, gaps told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valle.eval.bootstrap import Estimate
from valle.eval.results import Column, made_by, missing, printable_command, rows_by_corpus, table, write_results

WER, COSINE = Column("wer", "WER % ↓", 1, percent=True), Column("cosine", "cosine ↑", 2)


def test_table_by_hand() -> None:
    rows = {"a": {"wer": Estimate(0.125, 0.1, 0.15, 9), "cosine": 0.5}, "b": {"wer": None}}
    assert table("row", rows, [WER, COSINE]) == (
        "| row | WER % ↓ | cosine ↑ |\n|---|---|---|\n| a | 12.5 [10.0, 15.0] | 0.50 |\n| b | – | – |\n"
    )


def test_gaps_are_told() -> None:
    rows = {"a": {"wer": Estimate(0.1, 0.1, 0.1, 10)}, "b": {"wer": Estimate(0.1, 0.1, 0.1, 7), "cosine": None}}
    assert missing(rows, [WER, COSINE], 10) == "Not measurable on all: WER % of b: 7 of 10.\n"
    assert missing({"a": rows["a"]}, [WER, COSINE], 10) == ""


def test_rows_by_corpus() -> None:
    def total(records: object) -> dict[str, float]:
        return {"sum": sum(r["x"] for r in records)}  # type: ignore[attr-defined]

    records = {"m": [{"x": 1}, {"x": 2}, {"x": 4}]}
    assert rows_by_corpus(records, ["p", "q", "p"], total) == {"p: m": {"sum": 5}, "q: m": {"sum": 2}}
    assert rows_by_corpus(records, ["p", "p", "p"], total) == {}


def test_command_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    argv = ["codec", "--codec", str(tmp_path / "my codec"), "--manifest", "../speech/manifest.jsonl", "--n", "3"]
    command = printable_command(argv)
    assert command == "valle eval codec --codec 'my codec' --manifest ../speech/manifest.jsonl --n 3"
    assert str(tmp_path) not in json.dumps(made_by(argv))
    assert str(tmp_path) not in printable_command([f"--codec={tmp_path}/codec"])


def test_results_are_json_that_everybody_reads(tmp_path: Path) -> None:
    write_results(tmp_path / "new", {"rows": {"a": {"wer": Estimate(0.1, 0.0, 0.2, 3)}}, "n": (1, 2)}, "# Title\n")
    read = json.loads((tmp_path / "new" / "results.json").read_text())
    assert read["rows"]["a"]["wer"] == {"mean": 0.1, "low": 0.0, "high": 0.2, "n": 3}
    assert read["n"] == [1, 2]
    assert (tmp_path / "new" / "report.md").read_text() == "# Title\n"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "nan", {"x": float("nan")}, "")
    assert not (tmp_path / "nan" / "results.json").exists()
