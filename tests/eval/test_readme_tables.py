"""The README's tables are those of the figures in docs/results, and a figure that drifts is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from eval_helpers import write_corpus
from finished import speech_folder

from valle import cli
from valle.errors import ValleError
from valle.eval import codec_table, lm, synthesis
from valle.eval.bootstrap import Estimate
from valle.eval.publish import FOLDER, publish
from valle.eval.readme import FILES, fill
from valle.eval.results import read_results, table

ROOT = Path(__file__).parents[2]
COLUMNS = {"speech": synthesis.COLUMNS, "codec": codec_table.COLUMNS, "lm": lm.COLUMNS}
PUBLISHED = [p for p in sorted((ROOT / FOLDER).glob("*.json")) if json.loads(p.read_text()).get("kind") in COLUMNS]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the README with the figures that it is made from."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / FOLDER, tmp_path / FOLDER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES, ids=str)
def test_the_tables_are_what_the_command_writes(name: Path) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert fill(text, ROOT / FOLDER) == text


def test_the_readme_has_its_tables_and_they_are_about_the_embedded_model() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    embedded = json.loads((ROOT / "src/valle/assets/model/valle.json").read_text())["name"]
    assert text.count("<!-- results: speech ") == text.count("<!-- results: codec ") == 1
    assert f"| **{embedded}** | **" in text


def test_a_figure_that_drifts_is_found_and_mended(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (desk / "README.md").read_text(encoding="utf-8")
    assert cli.main(["eval", "readme", "--check"]) == 0
    (desk / "README.md").write_text(good.replace("| **10.5 [", "| **9.5 [", 1), encoding="utf-8")
    assert (desk / "README.md").read_text(encoding="utf-8") != good
    assert cli.main(["eval", "readme", "--check"]) == 1
    told = capsys.readouterr().out
    assert "-| **valle-v4.1** | **9.5 [" in told
    assert "+| **valle-v4.1** | **10.5 [" in told
    assert "valle eval readme --write" in told
    assert cli.main(["eval", "readme", "--write"]) == 0
    assert (desk / "README.md").read_text(encoding="utf-8") == good


def test_another_measurement_changes_the_table(desk: Path) -> None:
    path = desk / FOLDER / "speech-v4.1-test.json"
    values = json.loads(path.read_text())
    values["rows"]["recording"]["wer"] = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 50}
    path.write_text(json.dumps(values))
    assert cli.main(["eval", "readme", "--check"]) == 1
    assert cli.main(["eval", "readme", "--write"]) == 0
    assert "| recordings | 50.0 [25.0, 75.0] |" in (desk / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<!-- results: codec codec-v4.1-test -->\n", "does not end with <!-- end -->"),
        ("<!-- end -->\n", "does not end with"),
        ("<!-- results: codec nothing -->\n<!-- end -->\n", "there is no .*nothing.json"),
        ("<!-- results: codec speech-v4.1-test -->\n<!-- end -->\n", "holds results of speech"),
        ("<!-- results: codec -->\n<!-- end -->\n", "is not of the form"),
        ('<!-- results: speech speech-v4.1-test "x -->\n<!-- end -->\n', "is not of the form"),
        ("<!-- results: speech speech-v4.1-test mars=Mars -->\n<!-- end -->\n", "no corpus mars; they have kokoro"),
    ],
)
def test_a_comment_that_says_nothing_sensible_is_an_error(text: str, sentence: str) -> None:
    with pytest.raises(ValleError, match=sentence):
        fill(text, ROOT / FOLDER)


def test_without_any_table_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("# Nothing\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValleError, match="there is no table of results"):
        cli._run(["eval", "readme", "--check"])


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_figures_and_reports_agree(path: Path) -> None:
    """The report beside the figures has the same table, by the same command; and both are small."""
    results, report = read_results(path), path.with_suffix(".md").read_text(encoding="utf-8")
    first = "codebooks" if results["kind"] == "codec" else ""
    assert table(first, results["rows"], COLUMNS[results["kind"]]) in report
    assert results["made"]["command"] in report
    assert path.stat().st_size < 40_000
    assert "hard_cases" not in results


def test_publishing_keeps_figures_and_leaves_words_out(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", {"ann": [1.0, 1.2, 1.4], "bob": [1.1, 1.3]})
    speech_folder(tmp_path / "out", manifest, n_listen=0)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["hard_cases"]
    figures, text = publish(tmp_path / "out", "speech-x", tmp_path / "docs")
    assert "this is sentence" not in figures.read_text()
    whole, small = read_results(tmp_path / "out"), read_results(figures)
    assert small == {key: value for key, value in whole.items() if key != "hard_cases"}
    assert isinstance(small["rows"]["parrot"]["wer"], Estimate)
    assert text.read_text() == (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(ValleError, match="cannot be the name of a file"):
        publish(tmp_path / "out", "../x", tmp_path / "docs")


def test_pictures_of_a_report_go_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "rooms"
    folder.mkdir()
    (folder / "results.json").write_text('{"format": 1, "kind": "claims", "made": {}, "data": {}}', encoding="utf-8")
    (folder / "report.md").write_text("# Rooms\n\n![Guesses](rooms.png)\n", encoding="utf-8")
    with pytest.raises(ValleError, match="which is not there; measure again"):
        publish(folder, "rooms-test", tmp_path / "docs")
    (folder / "rooms.png").write_bytes(b"picture")
    _, text = publish(folder, "rooms-test", tmp_path / "docs")
    assert "![Guesses](rooms-test-rooms.png)" in text.read_text(encoding="utf-8")
    assert (tmp_path / "docs" / "rooms-test-rooms.png").read_bytes() == b"picture"
