"""Paired comparison: what two measurements share, the difference and its interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valle import cli
from valle.errors import ValleError
from valle.eval.bootstrap import Estimate
from valle.eval.compare import COLUMNS, compare, read_side
from valle.eval.journal import Journal


def write(folder: Path, sims: dict[tuple[str, str], float], errors: int = 1, **more: Any) -> Path:
    journal = Journal(folder / "utterances.jsonl", {})
    for (name, seed), sim in sims.items():
        wer = {"words": 10, "substitutions": errors, "deletions": 0, "insertions": 0}
        journal.add((name, seed, "mine"), {"wer": wer, "sim_o": sim, **more})
        journal.add((name, seed, "recording"), {"wer": wer, "sim_o": 1.0})
    rows: dict[str, Any] = {"recording": {}, "mine": {}}
    (folder / "results.json").write_text(json.dumps({"rows": rows}))
    return folder


def test_pairs_tell_what_means_alone_do_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = {(f"u{i}", "7"): float(x) for i, x in enumerate(rng.normal(0.5, 0.2, 40))}
    better = {key: x + 0.02 + 0.01 * float(rng.normal()) for key, x in base.items()}
    a, b = write(tmp_path / "a", base), write(tmp_path / "b", {**better, ("other", "7"): 9.0}, errors=2)
    rows, n = compare(read_side(a, None), read_side(b, None))
    assert n == 40
    difference = rows["difference"]["sim_o"]
    assert isinstance(difference, Estimate)
    assert difference.mean == pytest.approx(np.mean([better[k] - base[k] for k in base]))
    assert 0.015 < difference.low < difference.mean < difference.high < 0.03
    assert rows["A, a: mine"]["sim_o"] == pytest.approx(np.mean(list(base.values())))
    wer = rows["difference"]["wer"]
    assert isinstance(wer, Estimate)
    assert (wer.mean, wer.low, wer.high) == pytest.approx((0.1, 0.1, 0.1))
    assert "sim_r" not in rows["difference"]
    assert {c.key for c in COLUMNS} >= {"dnsmos", "pesq", "speaker", "f0_shift"}


def test_a_codec_is_compared_by_all_its_codebooks_and_other_systems_by_name(tmp_path: Path) -> None:
    for name, pesq in (("a", 2.0), ("b", 2.5)):
        journal = Journal(tmp_path / name / "utterances.jsonl", {})
        for row in ("original", "1", "8"):
            values = {} if row == "original" else {"pesq": pesq + (row == "8"), "speaker": 0.8, "stoi": None}
            wer = {"words": 4, "substitutions": 0, "deletions": 1, "insertions": 0}
            journal.add(("u", row), {**values, "wer": wer})
        rows: dict[str, Any] = {"original": {}, "1": {}, "8": {}}
        (tmp_path / name / "results.json").write_text(json.dumps({"rows": rows}))
    rows, _ = compare(read_side(tmp_path / "a", None), read_side(tmp_path / "b", None))
    assert (rows["A, a: 8"]["pesq"], rows["B, b: 8"]["pesq"]) == (3.0, 3.5)
    assert set(rows["difference"]) == {"pesq", "speaker", "wer"}
    folder = write(tmp_path / "c", {("u", "1"): 0.2})
    with (folder / "utterances.jsonl").open("a") as file:
        file.write(json.dumps({"key": ["u", "1", "say -o /tmp/x/out"], "sim_o": 0.3}) + "\n")
    systems = {"rows": {"recording": {}, "mine": {}, "theirs": {}}, "systems": {"theirs": "say -o out"}}
    (folder / "results.json").write_text(json.dumps(systems))
    rows, _ = compare(read_side(folder, None), read_side(folder, "theirs"))
    assert (rows["A, c: mine"]["sim_o"], rows["B, c: theirs"]["sim_o"]) == (0.2, 0.3)


def test_runs_that_only_one_has_do_not_count(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {("u", "1"): 0.2, ("u", "2"): 0.8, ("v", "1"): 0.4, ("v", "2"): 0.9})
    b = write(tmp_path / "b", {("u", "1"): 0.3, ("v", "1"): 0.6})
    rows, n = compare(read_side(a, None), read_side(b, None))
    assert n == 2
    assert rows["A, a: mine"]["sim_o"] == pytest.approx(0.3)
    assert rows["B, b: mine"]["sim_o"] == pytest.approx(0.45)


def test_the_command_prints_a_table_and_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", {("u", "1"): 0.2}), write(tmp_path / "b", {("w", "1"): 0.2})
    assert cli.main(["eval", "compare", str(a), str(a), "--row", "mine", "--row", "recording"]) == 0
    out = capsys.readouterr().out
    assert "| difference | 0.0 [0.0, 0.0] | 0.800 [0.800, 0.800] |" in out
    with pytest.raises(ValleError, match="no trial in common"):
        compare(read_side(a, None), read_side(b, None))
    with pytest.raises(ValleError, match="has no row 'x'; its rows are recording, mine"):
        read_side(a, "x")
    with pytest.raises(ValleError, match=r"holds no results\.json"):
        read_side(tmp_path, None)
    assert cli.main(["eval", "compare", str(a), str(a), *["--row", "mine"] * 3]) == 2
