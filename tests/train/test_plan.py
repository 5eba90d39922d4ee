"""`valle train plan`: the formulas of the log, numbers that follow from one another, one sentence for what is wrong."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from test_loop import config_file

from valle import cli
from valle.errors import ValleError
from valle.model.ar import AR, ARConfig
from valle.text import DEFAULT_INVENTORY
from valle.train.config import load_train_config
from valle.train.devices import DEVICES, Device, find_device
from valle.train.flops import BatchShape, training_flops
from valle.train.plan import plan

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER = str(CONFIGS / "paper.toml")


def test_the_papers_plan(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no pack
    assert cli.main(["train", "plan", PAPER, "--gpus", "16", "--device", "h100", "--hours", "60000", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    ar, nar = told["plans"]
    config = ARConfig(len(DEFAULT_INVENTORY))
    flops = 16 * training_flops(config, BatchShape(4, 300, 1500))
    assert ar["tflops_per_step"] == pytest.approx(flops / 1e12)
    assert (ar["tokens_per_step"], ar["positions_per_step"]) == (96_000, 16 * 4 * 1801)
    assert nar["positions_per_step"] == 16 * 4 * 2025
    seconds = flops / (16 * 989e12 * 0.4)
    assert ar["step_seconds"] == pytest.approx(seconds)
    assert ar["hours"] == pytest.approx(800_000 * seconds / 3600)
    assert ar["energy_kwh"] == pytest.approx(16 * 0.7 * ar["hours"] * 1.1)
    assert ar["epochs"] == pytest.approx(800_000 * 96_000 / 75 / 3600 / 60_000)
    memory = ar["memory_gb"]
    assert memory["weights"] == pytest.approx(4e-9 * ar["parameters"])
    assert memory["total"] == pytest.approx(sum(memory[k] for k in ("weights", "gradients", "moments", "activations")))
    assert ar["memory_checkpointed_gb"]["activations"] < memory["activations"] / 3

    assert cli.main(["train", "plan", PAPER, "ar", "--gpus", "16"]) == 0
    out = capsys.readouterr().out
    assert "152.4 M" in out
    assert "NAR" not in out
    assert "40% of 989 TFLOP/s" in out
    assert out.isascii()


def test_parameters_are_those_of_the_model():
    config = load_train_config(CONFIGS / "tiny.toml")
    model = AR(ARConfig(len(DEFAULT_INVENTORY), **_transformer(config.ar.model)))
    told = plan("ar", config, DEVICES["l4"])
    assert told.parameters == model.n_parameters
    tables = (model.phoneme_emb, model.code_emb)
    assert told.embedding_parameters == sum(table.weight.numel() for table in tables)


def _transformer(values):
    from valle.config import from_dict
    from valle.model.transformer import TransformerConfig

    return {"transformer": from_dict(TransformerConfig, values["transformer"])}


@pytest.mark.parametrize("name", ["tiny", "small", "normal", "default", "v1", "v2", "v3", "my-voice", "paper"])
def test_every_configuration_has_a_plan(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_train_config(CONFIGS / f"{name}.toml")
    for kind in ("ar", "nar"):
        for device in DEVICES.values():
            told = plan(kind, config, device, n_devices=2)
            assert 0 < told.memory_checkpointed_gb["total"] <= told.memory_gb["total"]
            assert told.hours > 0
            assert told.epochs is None


def test_the_clock_may_end_a_run_first(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "plan", str(CONFIGS / "default.toml")]) == 0
    out = capsys.readouterr().out
    assert "The AR ends by budget_minutes = 8, before max_steps." in out
    assert "8.0 min" in out


def test_a_pack_tells_its_hours_and_inventory(tmp_path, make_pack):
    pack = make_pack({"train": [7500] * 4, "dev": [40]}, aligned=True)
    config = load_train_config(config_file(tmp_path, pack, max_steps=6, accumulate=3, alignment=True))
    told = plan("ar", config, DEVICES["a100"], n_devices=2)
    assert told.tokens_per_step == 2 * 3 * 130
    assert told.padding is None  # all of it is longer than a batch
    assert told.epochs == pytest.approx(6 * 2 * 3 * 130 / 30_000)
    assert plan("ar", config, DEVICES["a100"], data_hours=1.0).epochs == pytest.approx(6 * 3 * 130 / 75 / 3600)


def test_a_pack_tells_the_padding_of_its_batches(tmp_path, make_pack):
    pack = make_pack({"train": [100, 100, 100], "dev": [40]})
    config = load_train_config(config_file(tmp_path, pack, join_same_speaker=0.0))
    ar, nar = (plan(kind, config, DEVICES["a100"]).padding for kind in ("ar", "nar"))
    assert ar == pytest.approx(1 / (16 + 1 + 100 + 1))  # a row a batch, and the place of what is past the end
    assert nar == 0


def test_precision_is_what_the_device_has(tmp_path, make_pack):
    config = dataclasses.replace(load_train_config(PAPER), pack=str(tmp_path))
    assert plan("ar", config, DEVICES["v100"]).step_seconds > 5 * plan("ar", config, DEVICES["a100"]).step_seconds


def test_this_machine_is_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cpu = find_device("cpu", "fp32")
    assert cpu.fp32_tflops > 0
    assert cpu.bf16_tflops is None
    assert cli.main(["train", "plan", str(CONFIGS / "tiny.toml"), "ar", "--device", "cpu"]) == 0
    assert re.search("energy, kWh +not known", capsys.readouterr().out)


def test_what_does_not_fit_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DEVICES, "toy", Device(1.0, 2.0, 4.0, 10.0))
    assert cli.main(["train", "plan", PAPER, "ar", "--device", "toy"]) == 0
    out = capsys.readouterr().out
    assert "The AR does not fit" in out
    assert "run.activation_checkpointing" in out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--device", "abacus"], "there is no device 'abacus' in the table; it has h100, "),
        (["--gpus", "0"], "--gpus is 0; at least 1 is needed"),
        (["--gpus", "-3"], "--gpus is -3"),
        (["--mfu", "0"], "--mfu is 0; it is a share"),
        (["--mfu", "40"], "--mfu is 40; it is a share"),
        (["--mfu", "nan"], "--mfu is nan"),
        (["--hours", "-1"], "--hours is -1"),
        (["--hours", "inf"], "--hours is inf"),
    ],
)
def test_wrong_arguments(capsys, args, sentence):
    assert cli.main(["train", "plan", PAPER, *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("valle: error: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_wrong_configurations(capsys, tmp_path):
    for text, sentence in (
        ('pack = "p"\nout = "o"\nprecision = "bf16"', "bf16"),
        ('pack = "p"\nout = "o"\n[ar.batches]\nmax_frames = 900', "max_seconds 20 is 1500 frames"),
    ):
        (tmp_path / "config.toml").write_text(text)
        assert cli.main(["train", "plan", str(tmp_path / "config.toml"), "--device", "v100"]) == 2
        assert sentence in capsys.readouterr().err
    assert cli.main(["train", "plan", "missing.toml"]) == 2
    assert cli.main(["train", "plan"]) == 2


def test_a_model_that_is_shared_out_takes_less_of_each_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_train_config(PAPER)
    whole = plan("nar", config, DEVICES["h100"], n_devices=8)
    run = dataclasses.replace(config.nar.run, parallel="fsdp")
    shared_out = plan(
        "nar", dataclasses.replace(config, nar=dataclasses.replace(config.nar, run=run)), DEVICES["h100"], n_devices=8
    )
    for name in ("weights", "gradients", "moments"):
        assert shared_out.memory_gb[name] == pytest.approx(whole.memory_gb[name] / 8)
    assert whole.memory_gb["gathered"] == 0 < shared_out.memory_gb["gathered"] < whole.memory_gb["weights"]
    assert shared_out.memory_gb["total"] < whole.memory_gb["total"]
    assert shared_out.exchanged_gb_per_step == pytest.approx(3 * whole.exchanged_gb_per_step)
    assert shared_out.tokens_per_step == whole.tokens_per_step == 96_000  # 16 batches a step, two on each
    with pytest.raises(ValleError, match="which 3 ranks cannot share evenly"):
        plan("ar", config, DEVICES["h100"], n_devices=3)
