"""The guard against spikes: skips what is far too large, the same steps after a resume, and ends when it goes on."""

import json
import math
import os
import signal

import pytest
import torch
from test_loop import FRAMES, config_file, last_tensors, log

from valle.errors import ValleError
from valle.train.config import load_train_config
from valle.train.loop import Trainer
from valle.train.spikes import WINDOW, SpikeGuard


def test_the_median_of_the_last_hundred_decides():
    guard = SpikeGuard(10)
    assert all(guard.accepts(1.0 + i % 3) for i in range(WINDOW - 1))
    assert guard.accepts(500.0)  # too few to compare with
    assert guard.limit == 20.0
    assert not guard.accepts(20.1)
    assert guard.accepts(20.0)
    assert guard.limit == 20.0  # what was refused is not remembered
    for norm in (math.nan, math.inf):
        assert not guard.accepts(norm)
    again = SpikeGuard(10)
    again.load(json.loads(json.dumps(guard.state())))
    assert again.norms == guard.norms
    assert len(again.norms) == WINDOW


def test_off_by_default_but_not_for_what_is_not_finite():
    guard = SpikeGuard()
    assert all(guard.accepts(10.0**i) for i in range(200))
    assert not guard.accepts(math.nan)


def spiky(trainer: Trainer, steps: set[int], stop_at: int = -1) -> Trainer:
    """Make its loss a thousand times larger at these steps; and stop it at one."""
    original, train_step = trainer.task.loss, trainer.train_step

    def loss(batch, device):
        value, metrics = original(batch, device)
        return value * (1000.0 if trainer.step in steps else 1.0), metrics

    def step(means):
        if trainer.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(means)

    trainer.task.loss, trainer.train_step = loss, step
    return trainer


def test_a_spike_is_skipped_after_a_resume_too(tmp_path, make_pack, monkeypatch):
    monkeypatch.setattr("valle.train.spikes.WINDOW", 3)
    pack = make_pack({"train": FRAMES, "dev": [40]})
    config = load_train_config(config_file(tmp_path, pack, max_spike=20.0))
    whole = spiky(Trainer("ar", config, tmp_path / "whole"), {4})
    whole.start(resume=False)
    whole.run()
    assert [event["train/skipped"] for event in log(tmp_path / "whole") if "train/skipped" in event] == [0] * 4 + [1, 1]

    for resume in (False, True):
        trainer = spiky(Trainer("ar", config, tmp_path / "stopped"), {4}, stop_at=-1 if resume else 3)
        trainer.start(resume=resume)
        trainer.run()
        assert (trainer.step, trainer.skipped) == ((6, 1) if resume else (4, 0))
    a, b = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "stopped")
    assert a.keys() == b.keys()
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert trainer.guard.norms == whole.guard.norms


def test_spikes_in_a_row_end_the_run(tmp_path, make_pack, monkeypatch):
    monkeypatch.setattr("valle.train.spikes.WINDOW", 2)
    pack = make_pack({"train": FRAMES, "dev": [40]})
    config = load_train_config(config_file(tmp_path, pack, max_spike=20.0, max_skipped=2))
    trainer = spiky(Trainer("ar", config, tmp_path / "run"), {3, 4, 5})
    trainer.start(resume=False)
    with pytest.raises(ValleError, match=r"2 steps in a row up to step 5 had a gradient above max_spike = 20 times"):
        trainer.run()


def test_a_limit_below_the_median_is_refused(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    with pytest.raises(ValleError, match=r"max_spike is 0.5; it must be 0 \(off\) or above 1"):
        load_train_config(config_file(tmp_path, pack, max_spike=0.5))
