"""``report.html``: all that was measured is there, sounds are found, nothing gets in unescaped, again is the same."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from eval_helpers import write_corpus
from finished import Robot, codec_folder, speech_folder, with_field

from valle import cli
from valle.errors import ValleError
from valle.eval.report_page import mark_errors, write_report_page
from valle.eval.wer import AlignedWord

EVIL = "<script>alert('x')</script> & <img src=http://evil>"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A name with what has a meaning in addresses, and texts with what has one in pages."""
    path = write_corpus(tmp_path_factory.mktemp("corpus"), {"ann #1": [1.0, 1.2, 1.4], "bob?": [1.1, 1.3]})
    with_field(path, text=lambda line: f"{line['text']} {EVIL}")
    return path


class Tags(HTMLParser):
    """What a browser makes of a page: its tags with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def sources(page: str) -> list[str]:
    """The sounds of a page, which has nothing else from anywhere."""
    tags = Tags(page).found
    assert not {"script", "img", "iframe", "link"} & {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    found = [unquote(attributes["src"] or "") for tag, attributes in tags if tag == "audio"]
    assert sum("src" in attributes or "href" in attributes for _, attributes in tags) == len(found)
    return found


def test_the_page_of_speech(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    trials = speech_folder(folder, manifest, baselines=[Robot()])
    text = write_report_page(folder).read_text()
    assert text.count('class="utterance"') == 4
    assert len(sources(text)) == 4 * 5  # prompt, recording, round trip, parrot, robot
    for source in sources(text):
        assert (folder / source).is_file(), source
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in text
    assert text.count('class="dot"') == 2 * 4 * 4  # two plots of four rows of four sentences
    assert text.count('role="img"') == 2
    # The tables of report.md, all of them, and a row for each sentence.
    for line in (folder / "report.md").read_text().splitlines():
        if re.match(r"\| \w", line):
            assert f'<th scope="row">{line.strip("| ").split(" | ")[0]}</th>' in text
    assert all(f'<th scope="row">{t.id}</th>' in text for t in trials)
    assert "<del>" in text  # the parrot says another sentence
    assert "SIM-o 1.000" in text
    assert "Other system: <code>robot: robot {text} {out}</code>" in text


def test_as_many_players_as_asked_and_as_there_are_waves(manifest: Path, tmp_path: Path) -> None:
    some, none = tmp_path / "some", tmp_path / "none"
    trials = speech_folder(some, manifest, n_listen=3, runs=2)
    assert write_report_page(some).read_text().count('class="utterance"') == 3
    text = write_report_page(some, n_players=1).read_text()
    assert text.count('class="utterance"') == 1
    assert trials[0].seed in {int(seed) for seed in re.findall(r"seed (\d+)", text)}
    assert any(source.endswith("-3-spoken-1.flac") for source in sources(text))  # of two runs the first
    speech_folder(none, manifest, n_listen=0)
    text = write_report_page(none).read_text()
    assert not sources(text)
    assert "--listen 20" in text
    assert 'class="dot"' in text


def test_embedded_the_page_is_one_file(manifest: Path, tmp_path: Path) -> None:
    speech_folder(tmp_path / "out", manifest, n=1)
    assert cli.main(["eval", "report", str(tmp_path / "out"), "--embed_audio"]) == 0
    found = sources((tmp_path / "out" / "report.html").read_text())
    assert len(found) == 4
    assert all(source.startswith("data:audio/mpeg;base64,") for source in found)


def test_the_page_of_a_codec(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    codec_folder(folder, manifest)
    text = write_report_page(folder).read_text()
    assert text.count('role="img"') == 5  # mel, STOI, PESQ, cosine, WER
    assert text.count('class="guide"') == 1  # only words are known without the codec
    assert 'aria-label="STOI by codebooks. 1: ' in text  # in order, though asked as 3,1
    assert text.count('class="utterance"') == 2
    assert len(sources(text)) == 2 * 3
    for source in sources(text):
        assert (folder / source).is_file(), source
    assert "<h4>3 codebooks</h4>" in text


@pytest.mark.parametrize("kind", ["speech", "codec"])
def test_again_is_the_same(kind: str, manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    if kind == "speech":
        speech_folder(folder, manifest, runs=2, baselines=[Robot()])
    else:
        codec_folder(folder, manifest)
    write_report_page(folder)
    before = {name: (folder / name).read_bytes() for name in ("report.md", "report.html")}
    for name in before:
        (folder / name).unlink()
    assert cli.main(["eval", "report", str(folder)]) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_results_of_before_are_still_read(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    codec_folder(folder, manifest, n_listen=0)
    values = json.loads((folder / "results.json").read_text())
    for key in ("n_speakers", "seconds", "n_counted"):
        del values[key]
    (folder / "results.json").write_text(json.dumps(values))
    assert cli.main(["eval", "report", str(folder)]) == 0
    assert "Round trip of 5 recordings; mean" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("results.json", "there is no .*results.json; give a folder that"),
        ("trials.jsonl", "there is no .*trials.jsonl, the list of what was said"),
        ("utterances.jsonl", "there is no .*utterances.jsonl, the single measurements"),
    ],
)
def test_what_is_missing_is_told(
    missing: str, sentence: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speech_folder(tmp_path / "out", manifest, n=2, n_listen=0)
    (tmp_path / "out" / missing).unlink()
    capsys.readouterr()
    assert cli.main(["eval", "report", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert re.search(sentence, told)
    assert told.count("\n") == 1


def test_a_missing_measurement_is_told_by_name(manifest: Path, tmp_path: Path) -> None:
    trials = speech_folder(tmp_path / "out", manifest, n=2, n_listen=0)
    journal = tmp_path / "out" / "utterances.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValleError, match=f"the measurement of {re.escape(trials[1].id)} by parrot is missing"):
        write_report_page(tmp_path / "out")


def test_errors_are_marked_and_escaped() -> None:
    words = [AlignedWord("", "the", "the"), AlignedWord("S", "cat", "<b>"), AlignedWord("D", "sat", "")]
    marked = mark_errors([*words, AlignedWord("I", "", "a&b")])
    assert marked == "the <del>cat</del> <ins>&lt;b&gt;</ins> <del>sat</del> <ins>a&amp;b</ins>"
