"""Tracking: one line an event, none told twice after a resume, samples that can be played."""

import json
import math
import wave

import torch

from valle.provenance import read_provenance
from valle.train.tracking import Tracker


def events(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_log_is_truncated_on_resume(tmp_path):
    with Tracker(tmp_path, 10, tensorboard=False, progress=False) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"train/loss": 1 / step, "train/grad_norm": math.inf})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "tr')  # killed while writing
    with Tracker(tmp_path, 10, start_step=3, tensorboard=False, progress=False) as tracker:
        tracker.log(4, {"train/loss": 9.0})
    assert [e["step"] for e in events(tmp_path)] == [1, 2, 3, 4]
    assert events(tmp_path)[-1]["train/loss"] == 9.0
    assert events(tmp_path)[0]["train/grad_norm"] is None


def test_rate_counts_units(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("valle.train.tracking.time.monotonic", lambda: clock[0])
    with Tracker(tmp_path, 10, tensorboard=False, progress=False) as tracker:
        tracker.advance(1, 300)
        tracker.advance(2, 500)
        clock[0] += 4
        assert tracker.rate() == 200
        clock[0] += 1
        assert tracker.rate() == 0


def test_audio_and_tensorboard(tmp_path, capsys):
    with Tracker(tmp_path, 2) as tracker:
        tracker.advance(1, 10)
        tracker.log(1, {"dev/loss": 0.5})
        path = tracker.audio(1, "dev/spoken", torch.tensor([[[0.0, 2.0, -1.0, math.nan]]]), 24000)
        tracker.note("a remark")
        tracker.close()  # and again on leaving
    assert read_provenance(path) is None
    spoken = tmp_path / "spoken"
    with Tracker(spoken, 2, tensorboard=False, progress=False) as tracker:
        marked = tracker.audio(1, "said", torch.zeros(5), 24000, {"synthetic": True, "model": "tiny"})
    mark = read_provenance(marked)
    assert mark is not None
    assert mark["model"] == "tiny"
    with wave.open(str(path), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (24000, 1, 4)
        assert torch.frombuffer(bytearray(file.readframes(4)), dtype=torch.int16).tolist() == [0, 32767, -32767, 0]
    assert list((tmp_path / "tensorboard").iterdir())
    assert "a remark" in capsys.readouterr().err
