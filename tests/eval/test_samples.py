"""Samples: the first of the list by rule, what may be passed on, each file marked and linked; those in docs too."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
from eval_helpers import write_corpus
from finished import speech_folder, with_field

from valle import cli
from valle.data.corpus import Utterance
from valle.errors import ValleError
from valle.eval.samples import MAX_BYTES, choose, write_samples
from valle.eval.trials import Trial
from valle.provenance import read_provenance

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "docs" / "samples"
TRIAL = Trial("a", "ann", "d", "A text.", "t.wav", 4.0, "p.wav", "Words.", 3.0, 5)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_corpus(tmp_path_factory.mktemp("corpus"), {"ann": [1.0, 1.2, 1.4], "bob": [1.1, 1.3]})
    with_field(
        path,
        dataset=lambda line: "librispeech-x" if line["speaker"] == "ann" else "secret",
        licence=lambda line: "CC BY 4.0" if line["speaker"] == "ann" else "all rights reserved",
        text=lambda line: f"{line['text']} <b>",
    )
    return path


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'src="([^"]+)"', text)


def test_the_first_that_may_be_passed_on_are_taken() -> None:
    def prompt(licence: str) -> Utterance:
        return Utterance("p", Path("p.wav"), 3.0, "test", licence=licence)

    trials = [replace(TRIAL, id=str(i), prompt=f"{i}.wav") for i in range(6)]
    licences = ["CC BY 4.0", "CC BY-NC 4.0", "apache-2.0", "", "CC0", "CC0"]
    prompts = {f"{i}.wav": prompt(licence) for i, licence in enumerate(licences)}
    chosen, refused = choose(trials, prompts, 3)
    assert [t.id for t in chosen] == ["0", "2", "4"]
    assert [t.id for t in refused] == ["1", "3"]
    del prompts["0.wav"]  # not known is not allowed
    assert [t.id for t in choose(trials, prompts, 1)[0]] == ["2"]


def test_samples_of_a_measurement(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials, out = speech_folder(tmp_path / "out", manifest), tmp_path / "samples"
    own = [t for t in trials if t.speaker == "ann"]
    assert 2 <= len(own) < len(trials)
    out.mkdir()
    (out / "09-spoken.mp3").write_bytes(b"of an earlier call")
    argv = ["eval", "samples", str(tmp_path / "out"), "--manifest", str(manifest), "--out", str(out)]
    assert cli.main([*argv, "--n", "2"]) == 0
    assert "2 samples" in capsys.readouterr().out
    sounds = sorted(path.name for path in out.glob("*.mp3"))
    assert sounds == ["01-prompt.mp3", "01-spoken.mp3", "02-prompt.mp3", "02-spoken.mp3"]
    readme, page = (out / "README.md").read_text(), (out / "index.html").read_text()
    for number, trial in enumerate(own[:2], 1):
        prompt, spoken = (out / f"{number:02d}-{label}.mp3" for label in ("prompt", "spoken"))
        assert soundfile.info(prompt).duration == pytest.approx(trial.prompt_s, abs=0.1)
        assert soundfile.info(prompt).samplerate == 24000
        assert read_provenance(prompt) is None
        assert (read_provenance(spoken) or {})["model"] == "parrot"
        assert trial.text in readme
        assert str(trial.seed) in page
    assert sorted(set(links(readme))) == sorted([*sounds, "index.html"])
    assert sorted(links(page)) == sounds
    for text in (readme, page):
        assert "LibriSpeech (Panayotov" in text
        assert "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/" in text
        assert "synthetic" in text
        assert "the first 2 of the list that seed 0 drew" in text
        assert "secret" not in text
        assert str(tmp_path) not in text
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_what_cannot_be_is_told(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = speech_folder(tmp_path / "out", manifest, n_listen=1)
    with pytest.raises(ValleError, match=r"keeps no waves of .*--listen"):
        write_samples(tmp_path / "out", manifest, tmp_path / "s", 2, "")
    first = next(i for i, t in enumerate(trials) if t.speaker == "ann")
    if first:  # its waves are needed for what follows
        (tmp_path / "out").rename(tmp_path / "less")
        speech_folder(tmp_path / "out", manifest)
    monkeypatch.setattr("valle.eval.samples.MAX_BYTES", 1000)
    with pytest.raises(ValleError, match="fewer --n"):
        write_samples(tmp_path / "out", manifest, tmp_path / "s", 1, "")
    closed = write_corpus(tmp_path / "corpus", {"ann": [1.0, 1.2, 1.4], "bob": [1.1, 1.3]})
    with pytest.raises(ValleError, match=r"no prompt of .* has a licence"):
        write_samples(tmp_path / "out", closed, tmp_path / "s", 1, "")
    assert not (tmp_path / "s").exists()


def test_the_samples_of_the_embedded_model_are_whole() -> None:
    readme, page = (SAMPLES / "README.md").read_text(), (SAMPLES / "index.html").read_text()
    sounds = sorted(path.name for path in SAMPLES.glob("*.mp3"))
    assert len(sounds) == 20
    assert sum((SAMPLES / name).stat().st_size for name in sounds) <= MAX_BYTES
    assert sorted(set(links(readme))) == sorted([*sounds, "index.html"])
    assert sorted(links(page)) == sounds
    told = [read_provenance(SAMPLES / name) for name in sounds]
    (model,) = {tags["model"] for tags in told if tags}
    assert sum(tags is not None for tags in told) == 10
    assert readme.startswith(f"# Samples of {model}\n")
    assert {name.split("-")[1] for name, tags in zip(sounds, told, strict=True) if tags} == {"spoken.mp3"}
