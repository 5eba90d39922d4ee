"""The training loop: learns, stops and resumes bit for bit, accumulates exactly, survives what goes wrong."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from valle.config import from_dict
from valle.data.pack import PackInfo
from valle.errors import ValleError
from valle.train.config import TrainConfig, load_train_config
from valle.train.loop import Trainer, train
from valle.train.tasks import MeanMetrics, make_task
from valle.train.weights import load_weights

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = {"dim": 32, "n_layers": 2, "n_heads": 2, "ff_dim": 64}
FRAMES = [30, 41, 38, 55, 47, 33, 62, 29]


def config_file(tmp_path: Path, pack: Path, **changes) -> Path:
    """A small run as a TOML file; ``changes`` are keys of the tables run, batches, optimiser, transformer and model."""
    tables = {
        "model": {"alignment": False, "local_layers": 0},
        "transformer": {**SIZE, "dropout": 0.1},
        "batches": {"max_frames": 130, "max_seconds": 1.5, "min_seconds": 0.1, "join_same_speaker": 0.4},
        "optimiser": {"lr": 3e-3, "warmup_steps": 2, "betas": [0.9, 0.95], "eps": 1e-8},
        "run": {"max_steps": 6, "eval_every": 3, "log_every": 1, "checkpoint_every": 100, "ema_decay": 0.9},
    }
    for key, value in changes.items():
        table = next(name for name, fields in tables.items() if key in fields or name == "run")
        tables[table][key] = value
    lines = [f'pack = "{pack}"', f'out = "{tmp_path / "runs"}"', 'device = "cpu"', 'precision = "fp32"']
    for kind in ("ar", "nar"):
        for name, fields in tables.items():
            lines.append(f"[{kind}.{'model.transformer' if name == 'transformer' else name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
            if name == "model" and kind == "nar" and fields["alignment"]:
                lines += ["prompt_summary = true", "stage_weights = [3, 2, 1, 1, 1, 1, 1]"]
    path = tmp_path / "config.toml"
    path.write_text("\n".join(lines))
    return path


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint."""
    folder = sorted((run / "checkpoints").iterdir())[-1]
    return {f"{f.stem}/{k}": v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def untimed(run: Path) -> list[dict]:
    """The log without what depends on how fast the machine is."""
    timed = {"time", "train/tokens_per_s", "train/data_wait", "train/mfu", "train/peak_tflops"}
    return [{k: v for k, v in event.items() if k not in timed} for event in log(run)]


@pytest.mark.parametrize(("alignment", "reads_ahead"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_stop_and_resume_equals_uninterrupted(kind, alignment, reads_ahead, tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40, 50]}, aligned=alignment)
    whole = train(kind, config_file(tmp_path, pack, accumulate=2, alignment=alignment), out=tmp_path / "whole")

    config = config_file(tmp_path, pack, accumulate=2, checkpoint_every=3, alignment=alignment)
    stopped = tmp_path / "stopped" / kind
    trainer = Trainer(kind, load_train_config(config), stopped)
    trainer.reads_ahead = reads_ahead  # as on a GPU
    trainer.start(resume=False)
    original = trainer.train_step

    def step_then_stop(means):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # as a cluster does before it takes the machine away
        return original(means)

    trainer.train_step = step_then_stop
    trainer.run()
    assert trainer.step == 3
    torch.rand(7)  # whatever happens to the random state in between
    train(kind, config, resume=True, out=tmp_path / "stopped")

    a, b = last_tensors(whole), last_tensors(stopped)
    assert a.keys() == b.keys()
    assert any(name.startswith("average/") for name in a)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
    # The event of the step it stopped at is told by the resumed run too, but not twice.
    assert untimed(whole) == untimed(stopped)


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_tiny_overfits_a_few_utterances(kind, tmp_path, make_pack):
    pack = make_pack({"train": [41, 47, 53], "dev": [50]})
    config = dataclasses.replace(load_train_config(CONFIGS / "tiny.toml"), pack=str(pack), device="cpu")
    trainer = Trainer(kind, config, tmp_path / kind)
    trainer.start(resume=False)
    trainer.run()
    first, last = log(tmp_path / kind)[0], log(tmp_path / kind)[-2]  # the last line is the validation
    assert first["train/loss"] > 2
    assert last["train/top1"] > 0.95, last
    assert last["train/loss"] < 0.5, last
    assert load_weights(kind, tmp_path / kind / "best").config.transformer.dim == 64


@pytest.mark.parametrize("name", ["tiny", "small", "default", "v1", "paper"])
@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_configurations_are_whole(name, kind):
    config = load_train_config(CONFIGS / f"{name}.toml")
    kinds = (2,) + (0,) * 99
    info = PackInfo("c", "1", n_phonemes=100, separator_id=0, frame_rate=75.0, phoneme_kinds=kinds, aligned=True)
    with torch.device("meta"):
        task = make_task(kind, getattr(config, kind).model, info)
    millions = sum(p.numel() for p in task.model.parameters()) / 1e6
    low, high = {"tiny": (0.1, 1), "small": (4, 12), "default": (15, 35), "v1": (4, 14), "paper": (150, 220)}[name]
    assert low < millions < high


@pytest.mark.parametrize("alignment", [False, True])
def test_accumulated_batches_equal_one_large_batch(alignment, tmp_path, make_pack):
    pack = make_pack({"train": [40, 40, 40, 40], "dev": [40]}, aligned=alignment)
    gradients = []
    for max_frames, accumulate in ((160, 1), (80, 2)):
        changes = {"dropout": 0.0, "join_same_speaker": 0.0, "max_frames": max_frames, "accumulate": accumulate}
        changes["alignment"] = alignment
        trainer = Trainer(
            "ar", load_train_config(config_file(tmp_path, pack, max_seconds=0.8, **changes)), tmp_path / "run"
        )
        trainer.train_step(MeanMetrics())
        gradients.append([p.grad.clone() for p in trainer.learner.parameters])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-3  # not vacuous


@pytest.mark.parametrize("alignment", [False, True])
def test_token_weights_not_batch_weights(alignment, tmp_path, make_pack):
    """A batch of 20 frames and one of 60 count 1 to 3, as they would in one batch."""
    pack = make_pack({"train": [20, 60], "dev": [40]}, aligned=alignment)
    gradients = []
    for max_frames, accumulate in ((120, 1), (60, 2)):
        changes = {"dropout": 0.0, "join_same_speaker": 0.0, "max_frames": max_frames, "accumulate": accumulate}
        changes["alignment"] = alignment
        trainer = Trainer(
            "ar", load_train_config(config_file(tmp_path, pack, max_seconds=0.8, **changes)), tmp_path / "run"
        )
        trainer.train_step(MeanMetrics())
        gradients.append([p.grad.clone() for p in trainer.learner.parameters])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_run_is_not_overwritten_nor_changed(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    config = config_file(tmp_path, pack, max_steps=2)
    with pytest.raises(ValleError, match="without --resume"):
        train("ar", config, resume=True)
    train("ar", config)
    with pytest.raises(ValleError, match="--resume"):
        train("ar", config)
    with pytest.raises(ValleError, match="optimiser"):
        train("ar", config_file(tmp_path, pack, max_steps=2, lr=1e-3), resume=True)
    run = train("ar", config_file(tmp_path, pack, max_steps=4), resume=True)  # longer is allowed
    assert log(run)[-1]["step"] == 4
    other = make_pack({"train": FRAMES[:5], "dev": [40]}, name="other")
    with pytest.raises(ValleError, match="same pack"):
        train("ar", config_file(tmp_path, other, max_steps=6), resume=True)


def test_infinite_gradients_are_skipped_then_an_error(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    trainer = Trainer("ar", load_train_config(config_file(tmp_path, pack, max_skipped=3)), tmp_path / "run" / "ar")
    trainer.start(resume=False)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    original = trainer.task.loss

    def broken(batch, device):
        loss, metrics = original(batch, device)
        return loss * float("nan"), metrics

    trainer.task.loss = broken
    with pytest.raises(ValleError, match=r"3 steps in a row .* precision"):
        trainer.run()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_activation_checkpointing_may_change_on_resume_and_changes_nothing(kind, tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    whole = train(kind, config_file(tmp_path, pack, max_steps=3), out=tmp_path / "whole")
    trainer = Trainer(kind, load_train_config(config_file(tmp_path, pack, max_steps=3)), tmp_path / "parts" / kind)
    trainer.start(resume=False)
    trainer.train_step(MeanMetrics())
    trainer.step = 1
    trainer.save()
    trainer.writer.wait()
    config = config_file(tmp_path, pack, max_steps=3, activation_checkpointing=True)
    parts = train(kind, config, resume=True, out=tmp_path / "parts")
    a, b = last_tensors(whole), last_tensors(parts)
    assert a.keys() == b.keys()
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_max_minutes_stops_with_a_checkpoint(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    run = train("ar", config_file(tmp_path, pack, max_steps=10**6, eval_every=10**6, max_minutes=0.005))
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert 0 < json.loads((checkpoint / "state.json").read_text())["state"]["step"] < 10**6
    assert not (run / "best").exists()  # it is not the end of the run


def test_budget_brings_the_learning_rate_to_its_end(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    run = train("ar", config_file(tmp_path, pack, max_steps=10**6, eval_every=10**6, budget_minutes=0.02))
    rates = [e["train/lr"] for e in log(run) if "train/lr" in e]
    assert max(rates) > 2e-3
    assert rates[-1] < 3e-4
    assert (run / "best").exists()


@pytest.mark.parametrize("alignment", [False, True])
@pytest.mark.parametrize("kind", ["ar", "nar", "both"])
def test_a_sample_is_spoken_and_a_broken_one_is_not_fatal(kind, alignment, tmp_path, make_pack, monkeypatch):
    pack = make_pack({"train": [30, 40], "dev": [160, 170, 180, 190]}, aligned=alignment)
    options = {"max_seconds": 4.0, "max_frames": 400, "max_steps": 2, "eval_every": 1, "alignment": alignment}
    config = load_train_config(config_file(tmp_path, pack, **options))
    n_quantizers = 1 if kind == "ar" else 8
    if kind == "both":  # the AR with a NAR that is trained already
        kind = "ar"
        trainer = Trainer("nar", config, tmp_path / "nar")
        trainer.start(resume=False)
        trainer.run()

    class FakeCodec:
        sample_rate = 24000

        def decode(self, codes):
            assert codes.shape[1] == n_quantizers
            return codes[:, :1].float().repeat_interleave(320, dim=2) / 1024

    monkeypatch.setattr(Trainer, "_load_codec", lambda self: FakeCodec())
    trainer = Trainer(kind, config, tmp_path / kind)
    trainer.start(resume=False)
    trainer.run()
    assert len(list((tmp_path / kind / "samples").glob(f"dev-{kind}-*.wav"))) == 2

    trainer = Trainer(kind, load_train_config(config_file(tmp_path, pack, samples=False, **options)), tmp_path / "mute")
    trainer.start(resume=False)
    trainer.run()
    assert trainer.step == 2
    assert not (tmp_path / "mute" / "samples").exists()

    monkeypatch.setattr(FakeCodec, "decode", lambda self, codes: 1 / 0)
    trainer = Trainer(kind, config, tmp_path / f"second-{kind}")
    trainer.start(resume=False)
    trainer.run()
    assert trainer.step == 2


def test_validation_tells_every_stage(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40, 50]})
    run = train("nar", config_file(tmp_path, pack, max_steps=1))
    values = log(run)[-1]
    for stage in range(2, 9):
        assert 0 <= values[f"dev/top1_{stage}"] <= values[f"dev/top10_{stage}"] <= 1
    mean = sum(values[f"dev/loss_{stage}"] for stage in range(2, 9)) / 7
    assert values["dev/loss"] == pytest.approx(mean, rel=1e-5)


def test_one_pass_is_validated_as_it_learns(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40, 50]})
    path = config_file(tmp_path, pack, max_steps=1, local_layers=1)
    path.write_text(path.read_text().replace("[nar.model]", "[nar.model]\none_pass = true"))
    values = log(train("nar", path))[-1]
    mean = sum(values[f"dev/loss_{stage}"] for stage in range(2, 9)) / 7
    assert values["dev/loss"] == pytest.approx(mean, rel=1e-4)


def test_codebooks_need_a_codec(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    path = config_file(tmp_path, pack, max_steps=1)
    for kind in ("ar", "nar"):
        path.write_text(path.read_text() + f"\n[{kind}]\ncodebooks = true\n")
        with pytest.raises(ValleError, match="name its folder as codec"):
            train(kind, path)


def test_alignment_needs_an_aligned_pack(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    for kind in ("ar", "nar"):
        with pytest.raises(
            ValleError, match=rf"\[{kind}.model\] needs a pack with an alignment.*valle prepare --aligner"
        ):
            train(kind, config_file(tmp_path, pack, alignment=True))


def test_alignment_is_learnt_and_told(tmp_path, make_pack):
    pack = make_pack({"train": [41, 47, 53], "dev": [41, 47, 53]}, aligned=True)
    changes = {"max_steps": 120, "eval_every": 1000, "dropout": 0.0, "lr": 1e-2, "alignment": True}
    run = train("ar", config_file(tmp_path, pack, **changes))
    first, last = log(run)[0], log(run)[-2]
    assert first["train/move_loss"] > 3 * last["train/move_loss"]
    assert last["train/move_top1"] > 0.95
    assert log(run)[-1]["dev/move_top1"] > 0.5
    assert load_weights("ar", run / "best").config.phoneme_kinds == (2,) + (0,) * 9


def test_a_run_of_an_older_program_goes_on(tmp_path, make_pack):
    """Options that it did not know have their defaults."""
    pack = make_pack({"train": FRAMES, "dev": [40]})
    run = train("nar", config_file(tmp_path, pack, max_steps=2))
    kept = json.loads((run / "config.json").read_text())
    for name in ("alignment", "prompt_summary", "stage_weights"):
        del kept["identity"]["model"][name]
    del kept["identity"]["batches"]["crop_seconds"]
    (run / "config.json").write_text(json.dumps(kept))
    train("nar", config_file(tmp_path, pack, max_steps=3), resume=True)
    assert log(run)[-1]["step"] == 3


def test_unknown_model_field_is_named(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    values = {"pack": str(pack), "out": str(tmp_path), "ar": {"model": {"layers": 3}}}
    with pytest.raises(ValleError, match="layers"):
        Trainer("ar", from_dict(TrainConfig, values), tmp_path)


def test_a_model_begins_with_another_and_new_modules_at_random(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40, 50]})
    config = config_file(tmp_path, pack, max_steps=2)
    given = train("nar", config, out=tmp_path / "first") / "best"
    before, table = config.read_text().split("[nar.model]")
    text = f'{before}[nar]\ninit = "{given}"\n[nar.model]{table}'
    config.write_text(text.replace("local_layers = 0", "local_layers = 1"))
    trainer = Trainer("nar", load_train_config(config), tmp_path / "second" / "nar")
    own, old = trainer.model.state_dict(), load_file(given / "model.safetensors")
    assert all(torch.equal(own[name], tensor) for name, tensor in old.items())
    assert {name.split(".")[0] for name in own.keys() - old.keys()} == {"local"}
    # The other way round: what the new model has no use for is left out.
    larger = train("nar", config, out=tmp_path / "larger") / "best"
    config.write_text(text.replace(str(given), str(larger)))
    without = Trainer("nar", load_train_config(config), tmp_path / "without" / "nar").model.state_dict()
    old = load_file(larger / "model.safetensors")
    assert {name.split(".")[0] for name in old.keys() - without.keys()} == {"local"}
    assert all(torch.equal(old[name], tensor) for name, tensor in without.items() if name in old)
    config.write_text(text.replace('"n_layers": 2', '"n_layers": 3').replace("n_layers = 2", "n_layers = 3"))
    with pytest.raises(ValleError, match="another form"):
        Trainer("nar", load_train_config(config), tmp_path / "third" / "nar")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler, whose matter they are
@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_compiled_blocks_learn_the_same(kind, tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    losses = []
    for name, compiled in (("plain", False), ("compiled", True)):
        config = config_file(tmp_path, pack, max_steps=4, compile=compiled, dropout=0.0)
        run = train(kind, config, out=tmp_path / name)
        losses.append([event["train/loss"] for event in log(run) if "train/loss" in event])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
