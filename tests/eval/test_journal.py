"""A measuring that was stopped goes on, and never with other settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from valle.errors import ValleError
from valle.eval.journal import Journal, digest


def test_records_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "utterances.jsonl"
    journal = Journal(path, {"judge": "a", "n": (1, 2)})
    journal.add(("u1", "8"), {"stoi": 0.5})
    again = Journal(path, {"judge": "a", "n": (1, 2)})
    assert ("u1", "8") in again
    assert ("u1", "4") not in again
    assert again[("u1", "8")]["stoi"] == 0.5


def test_half_a_line_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "utterances.jsonl"
    journal = Journal(path, {})
    journal.add(("u1",), {"x": 1})
    journal.add(("u2",), {"x": 2})
    path.write_text(path.read_text()[:-5])
    again = Journal(path, {})
    assert ("u1",) in again
    assert ("u2",) not in again
    again.add(("u2",), {"x": 3})
    assert [json.loads(line).get("x") for line in path.read_text().splitlines()] == [None, 1, 3]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "utterances.jsonl"
    Journal(path, {"judge": "a", "codec": "x"}).add(("u1",), {})
    with pytest.raises(ValleError, match=r"measurements with another judge; give another --out"):
        Journal(path, {"judge": "b", "codec": "x"})
    assert ("u1",) not in Journal(path, {"judge": "b", "codec": "x"}, overwrite=True)


def test_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "sub" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "a" / "config.json").write_text("{}")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    (tmp_path / "b" / "notes.txt").write_text("no weights")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    (tmp_path / "b" / "sub" / "model.safetensors").write_bytes(b"others")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")
    assert len(digest(tmp_path / "a" / "config.json")) == 12
