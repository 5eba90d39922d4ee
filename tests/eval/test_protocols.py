"""Several runs, the continual protocol, and the table of the sound."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_helpers import RATE, FakeRecogniser, KnownCodec, judges, speechlike, write_corpus
from test_synthesis import Parrot

from valle.audio import Audio, load, trim_silence
from valle.data.corpus import read_manifest
from valle.errors import ValleError
from valle.eval import report
from valle.eval.journal import Journal
from valle.eval.listening.source import read_sources
from valle.eval.lists import read_list
from valle.eval.synthesis import measure_speech
from valle.eval.systems import parse_systems
from valle.eval.trials import Trial, draw_continual, draw_trials, of_run


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"ann": [4.6, 5.0, 1.4, 4.2], "bob": [4.5, 2.0]})


class Moody(Parrot):
    """Speaks for as many tenths of a second as its seed says; understood by the length."""

    name = "moody"

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        self.seeds.append(trial.seed)
        seconds = 1.0 + trial.seed % 3
        return Audio(torch.from_numpy(speechlike(seconds))[None], RATE, info={"stop": "eos", "synthetic": True})


class Continuing(Parrot):
    """Gives the beginning back and goes on in another voice."""

    name = "continuing"

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        head = trim_silence(load(prompt, RATE).waveform, RATE)[:, : round(trial.prompt_s * RATE)]
        rest = torch.from_numpy(speechlike(2.0, pitch=700))[None]
        info = {"stop": "eos", "synthetic": True, "recorded_s": trial.prompt_s}
        return Audio(torch.cat([head, rest], 1), RATE, info=info)


def test_runs_are_means_over_seeds_with_their_spread(manifest: Path, tmp_path: Path) -> None:
    trials = draw_trials(read_manifest(manifest), 3, folder=manifest.parent, seed=0)
    text = "alpha beta gamma delta"
    trials = [replace(t, text=text, seed=3 * i) for i, t in enumerate(trials)]
    recogniser = FakeRecogniser({10: text, 20: "alpha beta gamma", 30: "alpha beta"}, default=text)

    def measure(runs: int) -> tuple[Moody, dict[str, object], str]:
        system = Moody()
        results, told = measure_speech(
            system,
            KnownCodec(),
            trials,
            manifest.parent,
            judges(recogniser),
            Journal(tmp_path / "j.jsonl", {}),
            runs=runs,
            wavs=tmp_path / "wavs",
        )
        return system, results, told

    _, one, _ = measure(1)
    assert one["rows"]["moody"]["wer"].mean == 0
    assert "runs" not in one
    system, three, told = measure(3)
    assert len(system.seeds) == 6  # the first run was there
    assert three["rows"]["recording"] == one["rows"]["recording"]
    seeds = [[of_run(t, r).seed for r in range(3)] for t in trials]
    assert [own[0] for own in seeds] == [0, 3, 6]
    assert len({seed for own in seeds for seed in own}) == 9
    missed = np.array([[seed % 3 for seed in own] for own in seeds]) / 4  # [trials, runs]: of four words
    row = three["rows"]["moody"]
    assert row["wer"].mean == pytest.approx(missed.mean())
    assert row["wer"].n == row["sim_o"].n == 3
    assert [run["wer"].mean for run in three["by_run"]["moody"]] == pytest.approx(list(missed.mean(0)))
    assert three["spread_over_runs"]["moody"]["wer"] == pytest.approx(missed.mean(0).std(ddof=1))
    assert "| moody, run 3 |" in told
    assert "| moody, standard deviation |" in told
    assert three["stops"] == {"eos": 9}
    assert len(list((tmp_path / "wavs").glob("*-3-spoken.flac"))) == 3
    assert len(list((tmp_path / "wavs").glob("*-3-spoken-3.flac"))) == 3


def test_continual_trials_are_recordings_with_something_to_continue(manifest: Path) -> None:
    utterances = read_manifest(manifest)
    trials = draw_continual(utterances, 10, folder=manifest.parent, seed=0)
    assert {t.target_s for t in trials} == {4.6, 5.0, 4.5}
    assert all(t.continual and t.prompt == t.target and t.text == t.prompt_text and t.prompt_s == 3 for t in trials)
    assert draw_continual(utterances, 2, folder=manifest.parent, seed=0) == trials[:2]
    with pytest.raises(ValleError, match=r"none of the 6 utterances with a text is 9\.5 s long"):
        draw_continual(utterances, 2, folder=manifest.parent, prompt_s=8.0)


def test_continual_judges_the_words_of_all_and_the_voice_of_the_rest(manifest: Path, tmp_path: Path) -> None:
    trials = draw_continual(read_manifest(manifest), 3, folder=manifest.parent, seed=0)
    recogniser = FakeRecogniser({50: trials[0].text})
    results, told = measure_speech(
        Continuing(), KnownCodec(), trials, manifest.parent, judges(recogniser), Journal(tmp_path / "j.jsonl", {})
    )
    row, recording = results["rows"]["continuing"], results["rows"]["recording"]
    journal = Journal(tmp_path / "j.jsonl", {})
    record = journal[(trials[0].id, str(trials[0].seed), "continuing")]
    assert record["wer"]["substitutions"] + record["wer"]["deletions"] == 0  # 3 s given and 2 s said
    assert record["seconds"] == pytest.approx(2)
    assert row["sim_o"].mean < recording["sim_o"].mean - 0.1  # were the beginning judged, it would be near itself
    assert recording["length"].mean == 1
    assert "continued from its first 3 s" in told
    with pytest.raises(ValleError, match="cannot continue a recording"):
        measure_speech(
            Continuing(),
            KnownCodec(),
            trials,
            manifest.parent,
            judges(),
            Journal(tmp_path / "k.jsonl", {}),
            baselines=parse_systems(["espeak"], []),
        )
    mixed = [*trials, *draw_trials(read_manifest(manifest), 1, folder=manifest.parent)]
    with pytest.raises(ValleError, match="mixes both protocols"):
        measure_speech(Continuing(), KnownCodec(), mixed, manifest.parent, judges(), Journal(tmp_path / "l.jsonl", {}))


def test_command_with_protocol_runs_and_espeak(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    argv = ["speech", "--model", str(tiny_model_dir), "--manifest", str(manifest), "--recogniser", "none"]
    argv += ["--speaker", "none", "--listen", "1", "--device", "cpu", "--n", "1"]
    out = tmp_path / "continual"
    assert report.main([*argv, "--protocol", "continual", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["rows"]["tiny-random"]["length"]["n"] == 1
    assert "refused" not in results["stops"]
    assert load(next((out / "wavs").glob("*-spoken.flac"))).seconds > 3
    out = tmp_path / "cross"
    assert report.main([*argv, "--runs", "2", "--system", "espeak", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["runs"] == 2
    assert list(results["rows"]) == ["recording", "codec round trip", "tiny-random", "espeak"]
    assert results["systems"]["espeak"].startswith("espeak: espeak-ng")
    assert "Other system: `espeak: espeak-ng" in (out / "report.md").read_text()
    (sentence,) = read_sources([str(out)])  # of a listening test: all rows, of several runs the first
    assert list(sentence.waves) == ["recording", "codec round trip", "tiny-random", "espeak"]
    assert sentence.waves["tiny-random"].name.endswith("-3-spoken-1.flac")
    assert "mine" in read_sources([f"mine={out}"])[0].waves


def test_command_with_a_list_of_others(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "meta.lst"
    path.write_text("u1|this is sentence b of bob|bob/1.wav|this is a text|bob/0.wav\n")
    assert len(read_list(path, manifest.parent)) == 1
    argv = ["speech", "--model", str(tiny_model_dir), "--manifest", str(manifest.parent), "--whisper", "none"]
    argv += ["--speaker", "none", "--listen", "0", "--device", "cpu", "--trials", str(path)]
    assert report.main([*argv, "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["trials"]["by_dataset"] == {"seed-tts-eval": 1}


def test_sound_is_a_table_of_its_own(manifest: Path, tmp_path: Path) -> None:
    class Sound:
        def __call__(self, wav: np.ndarray, sample_rate: int) -> dict[str, float | None]:
            hz = self.pitch_hz(wav, sample_rate)
            return {"dnsmos": 3.0, "f0_hz": hz, "f0_spread": 1.0, "voiced": 0.5, "level_spread": 4.0}

        def pitch_hz(self, wav: np.ndarray, sample_rate: int) -> float | None:
            return 200.0 if len(wav) == 2 * RATE else 100.0

    drawn = draw_trials(read_manifest(manifest), 6, folder=manifest.parent, seed=0)
    trials = [replace(t, prompt="bob/1.wav") for t in drawn if t.target != "bob/1.wav"]  # of 2 s, as no other
    results, told = measure_speech(
        Parrot(),
        KnownCodec(),
        trials,
        manifest.parent,
        judges(),
        Journal(tmp_path / "j.jsonl", {}),
        quality=Sound(),  # type: ignore[arg-type]
    )
    assert results["rows"]["parrot"]["f0_shift"].mean == pytest.approx(12)
    assert results["rows"]["recording"]["f0_shift"].mean == 0
    assert "| parrot | 3.00 [3.00, 3.00] |" in told
