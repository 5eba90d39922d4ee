"""Speech measured: a system whose words and voice are known, one that refuses, and a random model by the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from eval_helpers import RATE, FakeRecogniser, KnownCodec, judges, speechlike, write_corpus

from valle.audio import Audio, load
from valle.data.corpus import read_manifest
from valle.errors import ValleError
from valle.eval import report
from valle.eval.journal import Journal
from valle.eval.synthesis import measure_speech
from valle.eval.trials import Trial, draw_trials, load_trials, save_trials
from valle.provenance import read_provenance
from valle.tts import VALLE


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"ann": [1.0, 1.2, 1.4], "bob": [1.1, 1.3]})


@pytest.fixture
def trials(manifest: Path) -> list[Trial]:
    return draw_trials(read_manifest(manifest), 4, folder=manifest.parent, seed=0)


class Parrot:
    """Speaks in the prompt's own wave, which is the voice exactly and the words not at all."""

    name = "parrot"

    def __init__(self) -> None:
        self.n_spoken = 0

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        self.n_spoken += 1
        return replace(load(prompt, RATE), info={"stop": "eos", "synthetic": True, "model": "parrot"})


class Stranger(Parrot):
    """Another voice, of 2.5 s, that refuses every second sentence."""

    name = "stranger"

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        self.n_spoken += 1
        if self.n_spoken % 2 == 0:
            raise ValleError("I will not say that")
        wav = speechlike(2.5, pitch=700, rate=16000)  # at a rate of its own
        return Audio(torch.from_numpy(wav)[None], 16000, info={"stop": "max_frames"})


def test_rows_of_a_known_system(manifest: Path, trials: list[Trial], tmp_path: Path) -> None:
    # Recordings are understood by their length; the parrot's wave has the length of the prompt, another sentence.
    heard = {round(10 * u.seconds): u.text or "" for u in read_manifest(manifest)}
    system = Parrot()
    results, text = measure_speech(
        system, KnownCodec(), trials, manifest.parent, judges(FakeRecogniser(heard)), Journal(tmp_path / "j.jsonl", {})
    )
    rows = results["rows"]
    assert list(rows) == ["recording", "codec round trip", "parrot"]
    assert rows["recording"]["wer"].mean == rows["codec round trip"]["wer"].mean == 0
    assert rows["recording"]["length"].mean == 1
    # "this is sentence a of ann" and "... b of ann" differ in one word of six.
    assert rows["parrot"]["wer"].mean == pytest.approx(1 / 6)
    assert rows["parrot"]["deletions"] == rows["parrot"]["insertions"] == 0
    assert rows["parrot"]["sim_o"].mean == pytest.approx(1, abs=1e-6)
    assert rows["parrot"]["sim_r"].mean == pytest.approx(1, abs=1e-3)
    assert rows["recording"]["sim_o"].mean < rows["parrot"]["sim_o"].mean
    assert rows["parrot"]["rtf"].mean > 0
    assert "rtf" not in rows["recording"]
    assert results["stops"] == {"eos": 4}
    assert "The speech ended by: eos 4." in text
    assert "0 of 4 within the protocol's 4 to 10 s" in text


def test_refused_is_silence_and_is_told(manifest: Path, trials: list[Trial], tmp_path: Path) -> None:
    system = Stranger()
    recogniser = FakeRecogniser({25: trials[0].text})
    results, text = measure_speech(
        system, KnownCodec(), trials, manifest.parent, judges(recogniser), Journal(tmp_path / "j.jsonl", {})
    )
    row = results["rows"]["stranger"]
    assert results["stops"] == {"max_frames": 2, "refused": 2}
    assert row["deletions"] == pytest.approx(0.5)  # nothing of two sentences of four is heard
    assert row["sim_o"].n == 2
    assert row["sim_o"].mean < results["rows"]["recording"]["sim_o"].mean
    assert "SIM-o of stranger: 2 of 4" in text


def test_resumed_speaks_nothing_twice(manifest: Path, trials: list[Trial], tmp_path: Path) -> None:
    def measure(number: int) -> Parrot:
        system = Parrot()
        journal = Journal(tmp_path / "j.jsonl", {})
        measure_speech(
            system,
            KnownCodec(),
            trials[:number],
            manifest.parent,
            judges(),
            journal,
            n_listen=2,
            wavs=tmp_path / "wavs",
        )
        return system

    assert measure(3).n_spoken == 3
    waves = sorted(p.name for p in (tmp_path / "wavs").iterdir())
    assert len(waves) == 8
    assert {name.rsplit("-", 2)[-1] for name in waves} >= {"spoken.flac", "prompt.flac", "recording.flac"}
    assert measure(4).n_spoken == 1
    assert measure(4).n_spoken == 0
    spoken = next((tmp_path / "wavs").glob("*-spoken.flac"))
    assert (read_provenance(spoken) or {}).get("model") == "parrot"


def test_command_with_a_random_model(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    argv = ["speech", "--model", str(tiny_model_dir), "--manifest", str(manifest), "--whisper", "none"]
    argv += ["--speaker", "none", "--listen", "1", "--device", "cpu", "--temperature", "0.5", "--out", str(out)]
    assert report.main([*argv, "--n", "2", "--seed", "3"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["n_trials"] == 2
    assert results["model"]["name"] == "tiny-random"
    assert results["model"]["options"] == {"temperature": 0.5}
    assert set(results["rows"]) == {"recording", "codec round trip", "tiny-random"}
    assert results["rows"]["tiny-random"]["wer"] is None
    assert sum(results["stops"].values()) == 2
    assert len(load_trials(out / "trials.jsonl")) == 2
    assert soundfile.info(next((out / "wavs").glob("*-spoken.flac"))).samplerate == RATE
    assert str(manifest.parent.parent) not in (out / "trials.jsonl").read_text() + (out / "report.md").read_text()
    page = (out / "report.html").read_text()
    assert page.count("<audio ") == 4  # prompt, recording, round trip, speech of the one whose waves were written
    assert str(manifest.parent.parent) not in page
    # The same list given back is the same measuring, which is there already.
    lines = (out / "utterances.jsonl").read_text()
    assert report.main([*argv, "--trials", str(out / "trials.jsonl")]) == 0
    assert (out / "utterances.jsonl").read_text() == lines
    with pytest.raises(ValleError, match="measurements with another options"):
        report.main([*argv, "--trials", str(out / "trials.jsonl"), "--temperature", "0.9"])


def test_a_stream_is_judged_as_it_is_heard(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    argv = ["speech", "--model", str(tiny_model_dir), "--manifest", str(manifest), "--whisper", "none", "--n", "1"]
    argv += ["--speaker", "none", "--device", "cpu", "--seed", "3", "--out", str(tmp_path)]
    assert report.main([*argv, "--stream"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["streamed"], results["stops"]) == ("early", {"streamed": 1})
    (trial,) = load_trials(tmp_path / "trials.jsonl")
    (prompt,) = tmp_path.glob("wavs/*-0-prompt.flac")
    options = {"ref_audio": manifest.parent / trial.prompt, "ref_text": trial.prompt_text, "seed": trial.seed}
    heard = sum(chunk.seconds for chunk in VALLE.from_pretrained(tiny_model_dir, "cpu").stream(trial.text, **options))
    assert load(prompt.with_name(prompt.name.replace("0-prompt", "3-spoken"))).seconds == pytest.approx(heard)
    with pytest.raises(ValleError, match="measurements with another streamed"):
        report.main(argv)


def test_another_seed_is_another_measurement(manifest: Path, trials: list[Trial], tmp_path: Path) -> None:
    system, other = Parrot(), [replace(t, seed=t.seed + 1) for t in trials]
    for some in (trials, other, trials):
        journal = Journal(tmp_path / "j.jsonl", {})
        measure_speech(system, KnownCodec(), some, manifest.parent, judges(), journal)
    assert system.n_spoken == 8


def test_list_of_elsewhere(manifest: Path, trials: list[Trial], tmp_path: Path) -> None:
    save_trials(tmp_path / "trials.jsonl", trials[:1])
    results, _ = measure_speech(
        Parrot(),
        KnownCodec(),
        load_trials(tmp_path / "trials.jsonl"),
        manifest.parent,
        judges(),
        Journal(tmp_path / "j.jsonl", {}),
    )
    assert results["n_trials"] == 1
    assert results["trials"]["targets_s"][0] == trials[0].target_s
