"""The codec's table from end to end: known codecs and judges, and a random codec through the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from eval_helpers import FakeRecogniser, KnownCodec, judges, write_corpus

from valle import cli
from valle.codec.base import load_codec
from valle.data.corpus import Utterance, read_manifest
from valle.errors import ValleError
from valle.eval import report
from valle.eval.codec_table import codebook_use, measure_codec
from valle.eval.journal import Journal
from valle.eval.judges import measure_judges


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, {"ann": [1.0, 1.2, 1.4], "bob": [1.1, 1.3]}, corpora={"ann": "p", "bob": "q"})


@pytest.fixture
def utterances(manifest: Path) -> list[Utterance]:
    return read_manifest(manifest)


def test_more_codebooks_are_better_in_every_column(utterances: list[Utterance], tmp_path: Path) -> None:
    heard = {round(10 * u.seconds): u.text or "" for u in utterances}
    journal = Journal(tmp_path / "j.jsonl", {})
    results, text = measure_codec(
        KnownCodec(), utterances, judges(FakeRecogniser(heard)), journal, n_quantizers=(1, 2, 3)
    )
    rows = results["rows"]
    assert list(rows) == ["original", "1", "2", "3"]
    for key, better in (("mel", -1), ("stoi", 1), ("pesq", 1), ("speaker", 1)):
        means = [better * rows[k][key].mean for k in ("1", "2", "3")]
        assert means == sorted(means), key
        assert len(set(means)) == 3, key
        assert rows["3"][key].n == 5
    assert rows["original"]["wer"].mean == 0
    assert rows["original"].get("mel") is None
    assert rows["2"]["bitrate_kbps"] == pytest.approx(2 * 75 * 3 / 1000)
    assert list(results["by_corpus"]) == ["p: original", "p: 3", "q: original", "q: 3"]
    assert results["by_corpus"]["p: 3"]["stoi"].n == 3
    assert text.count("\n| ") >= 13


def test_errors_are_those_of_the_corpus(utterances: list[Utterance], tmp_path: Path) -> None:
    # Of "this is sentence a of ann" two of six words are understood: 4 deletions each.
    recogniser = FakeRecogniser(default="this is")
    results, _ = measure_codec(
        KnownCodec(), utterances, judges(recogniser), Journal(tmp_path / "j.jsonl", {}), n_quantizers=(1,)
    )
    assert results["rows"]["1"]["wer"].mean == pytest.approx(4 / 6)
    assert results["rows"]["original"]["wer"].mean == pytest.approx(4 / 6)


def test_use_of_codebooks_is_counted(utterances: list[Utterance]) -> None:
    use = codebook_use(KnownCodec(), utterances)
    assert use["n_frames"] == sum(math.ceil(round(u.seconds * 24000) / 320) for u in utterances)
    for k, row in enumerate(use["by_codebook"]):
        assert row["used"] == pytest.approx((k + 1) / 8)
        assert row["perplexity"] == pytest.approx(k + 1, rel=1e-3)


def test_stopped_and_resumed_is_as_uninterrupted(utterances: list[Utterance], tmp_path: Path) -> None:
    class Stops(FakeRecogniser):
        def transcribe(self, wav: np.ndarray) -> str:
            if self.n_calls == 4:
                raise KeyboardInterrupt
            return super().transcribe(wav)

    path = tmp_path / "j.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure_codec(KnownCodec(), utterances, judges(Stops()), Journal(path, {}), n_quantizers=(1, 3))
    rest = FakeRecogniser()
    resumed, text = measure_codec(KnownCodec(), utterances, judges(rest), Journal(path, {}), n_quantizers=(1, 3))
    assert rest.n_calls == 3 * 5 - 4
    whole = measure_codec(KnownCodec(), utterances, judges(), Journal(tmp_path / "w.jsonl", {}), n_quantizers=(1, 3))
    assert (resumed, text) == whole


def test_too_many_codebooks_are_refused(utterances: list[Utterance], tmp_path: Path) -> None:
    with pytest.raises(ValleError, match="9 codebooks were asked for; this codec has 3"):
        measure_codec(KnownCodec(), utterances, judges(), Journal(tmp_path / "j", {}), n_quantizers=(9,))


def test_command_with_a_random_codec(
    manifest: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("valle.eval.judges.load_judges", lambda *_, **__: judges(FakeRecogniser(default="this is")))
    out = tmp_path / "results"
    argv = ["codec", "--codec", str(tiny_model_dir / "codec"), "--manifest", str(manifest), "--out", str(out)]
    argv += ["--n_quantizers", "1,8", "--max_utterances", "2", "--listen", "1", "--whisper", "w", "--speaker", "s"]
    assert report.main(argv) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["kind"] == "codec"
    assert results["codec"]["fingerprint"] == load_codec(tiny_model_dir / "codec").fingerprint()
    assert set(results["rows"]) == {"original", "1", "8"}
    assert results["rows"]["8"]["mel"]["n"] == results["n_utterances"] == 2
    assert results["judges"] == {"recogniser": "fake", "speaker": "fake"}
    assert results["data"] == {"source": manifest.parent.name, "split": "test"}
    assert len(results["codebooks"]["by_codebook"]) == 8
    report_text = (out / "report.md").read_text()
    assert report_text.startswith("# Codec ")
    assert "--n-quantizers 1,8" in report_text
    page = (out / "report.html").read_text()
    assert page.count("<audio ") == 3
    assert page.count('role="img"') == 5
    for written in (out / "results.json", out / "report.md", out / "report.html", out / "utterances.jsonl"):
        assert str(tmp_path) not in written.read_text()
        assert str(tiny_model_dir) not in written.read_text()
    waves = sorted(p.name for p in (out / "wavs").iterdir())
    assert waves == ["ann-0-0-original.flac", "ann-0-1-codebooks.flac", "ann-0-8-codebooks.flac"]
    assert soundfile.info(out / "wavs" / waves[1]).frames == 24000
    assert "written: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("--whisper", "needs a recogniser; give --whisper"), ("--speaker", "needs a network; give --speaker")],
)
def test_missing_judge_is_one_sentence(manifest: Path, tiny_model_dir: Path, missing: str, sentence: str) -> None:
    argv = ["codec", "--codec", str(tiny_model_dir / "codec"), "--manifest", str(manifest)]
    argv += [] if missing == "--whisper" else ["--whisper", "none"]
    with pytest.raises(ValleError, match=sentence):
        report.main(argv)


@pytest.mark.parametrize("door", [["eval", "codec"], ["codec", "eval"]])
def test_both_doors_tell_a_mistake_in_a_sentence(
    door: list[str], manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*door, "--codec", "nowhere", "--manifest", str(manifest), "--whisper", "none", "--speaker", "none"]
    assert cli.main(argv) == 2
    assert "nowhere is not a codec" in capsys.readouterr().err
    assert cli.main([*argv, "--max-utterances", "0"]) == 2
    assert "must be a whole number of at least 1" in capsys.readouterr().err


def test_judges_are_judged(utterances: list[Utterance], tmp_path: Path) -> None:
    heard = {round(10 * u.seconds): (u.text or "") + " and more" for u in utterances}
    results, text = measure_judges(
        utterances,
        judges(FakeRecogniser(heard)),
        Journal(tmp_path / "j.jsonl", {}),
        max_utterances=None,
        n_pairs=4,
        seed=0,
    )
    row = results["rows"]["recordings"]
    assert row["wer"].mean == pytest.approx(2 / 6)
    assert row["same"].mean > row["different"].mean
    assert row["eer"] == 0
    assert results["n_pairs"] == [4, 4]
    assert "5 recordings, 4 pairs of one speaker and 4 of two" in text


def test_random_codec_measures_the_same_twice(
    utterances: list[Utterance], tiny_model_dir: Path, tmp_path: Path
) -> None:
    codec = load_codec(tiny_model_dir / "codec")
    tables = [
        measure_codec(codec, utterances[:2], judges(), Journal(tmp_path / name, {}), n_quantizers=(2,)) for name in "ab"
    ]
    assert tables[0] == tables[1]
    assert torch.is_grad_enabled()
