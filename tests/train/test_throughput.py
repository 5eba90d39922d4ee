"""What the log tells of speed: exact counts, shares of time that cannot be off, and nothing random disturbed."""

import time

import pytest
import torch
from small_models import MODELS, a_batch, a_task, shape_of
from test_loop import FRAMES, config_file, log

from valle.train.config import load_train_config
from valle.train.devices import measure_peak
from valle.train.flops import Work, training_flops
from valle.train.loop import Trainer, train
from valle.train.tasks import MeanMetrics
from valle.train.throughput import Throughput


def test_rates_are_of_all_ranks_and_begin_anew(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("valle.train.throughput.time.monotonic", lambda: clock[0])
    throughput = Throughput(n_ranks=2)
    throughput.peak = 4e12
    throughput.add(300, Work(6e12, 500, 400), 1.0)
    throughput.add(100, Work(2e12, 500, 500), 0.5)
    clock[0] += 5
    assert throughput.take() == pytest.approx(
        {
            "train/tokens_per_s": 80,
            "train/padding": 0.1,
            "train/data_wait": 0.15,
            "train/mfu": 0.2,  # 8e12 in 5 s, on two devices of 4e12 a second
            "train/peak_tflops": 4,
        }
    )
    throughput.add(300, Work(6e12, 500, 400), 1.0)
    throughput.restart()  # as after a validation
    throughput.add(10, Work(1e12, 8, 4), 0.0)
    clock[0] += 1
    values = throughput.take()
    assert values["train/tokens_per_s"] == 10
    assert values["train/padding"] == 0.5
    throughput.peak = None
    assert "train/mfu" not in throughput.take()


@pytest.mark.parametrize("name", MODELS)
def test_work_of_a_batch(name):
    task = a_task(name)
    batch = a_batch(task)
    work, shape = task.work(batch), shape_of(task, batch)
    rows = batch if task.kind == "ar" else batch[0]
    parts = [rows.phoneme_lens, rows.code_lens, rows.prompt_lens if task.kind == "nar" else torch.ones(3)]
    assert work.filled == sum(int(lens.sum()) for lens in parts)
    length = shape.max_places + (0 if task.kind == "nar" else 2)
    assert work.positions == shape.n_rows * length > work.filled
    assert length <= shape.n_phonemes + shape.n_frames + shape.n_prompt + 2
    assert work.flops == training_flops(task.model.config, shape)


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_the_log_tells_padding_waiting_and_mfu(kind, tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    steps = {"accumulate": 2, "log_every": 2, "eval_every": 100}
    run = train(kind, config_file(tmp_path, pack, max_steps=2, **steps))
    run = train(kind, config_file(tmp_path, pack, max_steps=4, **steps), resume=True)
    trainer = Trainer(kind, load_train_config(config_file(tmp_path, pack, max_steps=4, **steps)), tmp_path / "again")
    events = [event for event in log(run) if "train/loss" in event]
    assert [event["step"] for event in events] == [2, 4]
    for i, event in enumerate(events):
        works = [trainer._make_input(2 * i + j).work for j in range(2)]
        padding = 1 - sum(work.filled for work in works) / sum(work.positions for work in works)
        assert event["train/padding"] == padding
        assert 0 < event["train/data_wait"] < 1
        assert 0 < event["train/mfu"] < 1
        assert event["train/peak_tflops"] > 0


def test_waiting_is_what_the_batch_took_to_come(tmp_path, make_pack, monkeypatch):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    trainer = Trainer("ar", load_train_config(config_file(tmp_path, pack)), tmp_path / "run")
    make_input = trainer._make_input
    monkeypatch.setattr(trainer, "_make_input", lambda step: (time.sleep(0.1), make_input(step))[1])
    trainer.throughput.restart()
    began = time.monotonic()
    trainer.train_step(MeanMetrics())
    took = time.monotonic() - began
    values = trainer.throughput.take()
    assert 0.1 / (took + 0.05) < values["train/data_wait"] < 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_the_peak_disturbs_nothing_random(precision):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert measure_peak(torch.device("cpu"), precision) > 1e6
    assert torch.equal(torch.get_rng_state(), before)
