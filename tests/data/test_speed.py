"""Speed by step: each is told once, by the processor's time; and what a corpus of any size would take."""

import json

import pytest
import soundfile
import torch

from fakes import INVENTORY, FakeCodec
from sounds import voiced
from valle.asr import Alignment
from valle.data.corpus import Utterance
from valle.data.segment import EnergyDetector
from valle.data.speed import Plan, Speed, Step, main, measure_speed, plan_table
from valle.data.transcripts import Transcript
from valle.errors import ValleError


class Listener:
    name = "fake"

    def transcribe(self, wav, sample_rate):
        return Transcript("words")


class FakeAligner:
    inventory_version = "test"

    def fingerprint(self):
        return "fake"

    def align(self, wav, phonemes):
        return Alignment(torch.tensor([-(-wav.shape[1] // 320)] + [0] * (len(phonemes) - 1)), 0.0)


@pytest.fixture
def utterances(tmp_path):
    made = []
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", voiced(2 + i, 16000), 16000)
        made.append(Utterance(f"u{i}", tmp_path / f"{i}.wav", 2.0 + i, "test", text="some words"))
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    return [*made, Utterance("b", tmp_path / "broken.wav", 9.0, "test", text="some words")]


def phonemize(text, lang):
    return list(text)


def test_every_step_is_measured_on_what_is_fit(utterances):
    tools = {"detector": EnergyDetector(), "recogniser": Listener(), "aligner": FakeAligner()}
    speed = measure_speed(utterances, FakeCodec(), INVENTORY, phonemize, **tools)
    assert [step.name for step in speed.steps] == [
        "probe (decoding)",
        "speech detection",
        "transcription",
        "text and phonemes",
        "decoding, resampling, level",
        "quality",
        "alignment",
        "codec",
        "writing",
    ]
    assert (speed.n_utterances, speed.hours) == (3, pytest.approx(9 / 3600))
    assert all(step.audio_s == pytest.approx(9) and step.cpu_s >= 0 for step in speed.steps)
    assert speed.source_mb_per_hour == pytest.approx(16000 * 2 * 3600 / 1e6, rel=0.01)
    assert speed.rate < min(step.rate for step in speed.steps)
    speed = measure_speed(utterances, FakeCodec(), INVENTORY, phonemize)
    assert len(speed.steps) == 6
    with pytest.raises(ValleError, match="none of the recordings is fit"):
        measure_speed(utterances[3:], FakeCodec(), INVENTORY, phonemize)


SPEED = Speed((Step("codec", 10.0, 1000.0), Step("transcription", 100.0, 1000.0)), 1000 / 3600, 70, 5.0, 60.0, "x")


def test_the_table_and_the_plan():
    assert SPEED.rate == pytest.approx(1000 / 110)
    assert "| transcription | 10 | 360 | 90.9 |" in SPEED.table()
    assert "| all | 9.09 | 396 | 100 |" in SPEED.table()
    told = plan_table(SPEED, Plan(1000.0, cores=10, cores_per_machine=8, price=0.1, efficiency=1.0))
    assert "| work | 110 core hours" in told
    assert "| machines | 2 of 8 cores |" in told
    assert "| time | 11 h, 0.5 days |" in told
    assert "| cost of the work | 11 at 0.1 a core hour |" in told
    assert "| of it the most | transcription, 100 core hours |" in told
    assert "1,000 files, 5 GB" in told
    for values in ({"hours": 0.0}, {"efficiency": 1.5}, {"memory_gb": -1.0}):
        with pytest.raises(ValleError):
            Plan(**values)


def test_the_command_line(tmp_path, capsys):
    from valle.config import to_dict

    path = tmp_path / "speed.json"
    path.write_text(json.dumps(to_dict(SPEED)))
    assert main(["--plan", "60000", "--measured", str(path), "--memory-gb", "8"]) == 0
    told = capsys.readouterr().out
    assert "60,000 h" in told
    assert "1. " in told
    assert "indices of transcripts" in told.partition("1. ")[2].partition("\n")[0]
    assert main(["--measured", str(path)]) == 0
    assert capsys.readouterr().out == SPEED.table()
    for name, text in (("list", "[]"), ("empty", json.dumps({**to_dict(SPEED), "steps": []}))):
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(ValleError):
            main(["--measured", str(tmp_path / f"{name}.json")])
    wrong = [[], ["x", "--measured", "y"], ["--measured", str(path), "--json", "z"]]
    for arguments in (*wrong, ["--measured", str(tmp_path / "none.json")]):
        with pytest.raises(ValleError):
            main(arguments)
