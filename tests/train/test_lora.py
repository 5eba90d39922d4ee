"""Low-rank adaptation: nothing moves but the thin matrices, and what is kept is a model like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_export import tiny_codec
from test_loop import FRAMES, config_file, last_tensors

from valle.errors import ValleError
from valle.model.ar import AR, ARConfig
from valle.model.transformer import TransformerConfig
from valle.pretrained import load_pretrained, read_info
from valle.train.config import load_train_config
from valle.train.export import export, main
from valle.train.loop import Trainer, train
from valle.train.lora import LoraConfig, add_lora, whole_weights
from valle.train.weights import load_weights


@pytest.fixture
def ar() -> AR:
    torch.manual_seed(0)
    return AR(ARConfig(10, transformer=TransformerConfig(dim=16, n_layers=2, n_heads=2, ff_dim=32, dropout=0.0)))


def test_begins_as_the_model_itself_and_keeps_its_names(ar: AR) -> None:
    before = {name: tensor.clone() for name, tensor in ar.state_dict().items()}
    x = torch.randn(2, 5, 16)
    expected = ar.transformer(x, causal=True)
    add_lora(ar, LoraConfig(rank=4))
    assert torch.equal(ar.transformer(x, causal=True), expected)
    kept = whole_weights(ar)
    assert kept.keys() == before.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())


def test_few_numbers_learn_and_the_sum_is_kept(ar: AR) -> None:
    x = torch.randn(2, 5, 16)
    before = {name: tensor.clone() for name, tensor in ar.state_dict().items()}
    add_lora(ar, LoraConfig(rank=4))
    learning = [p for p in ar.parameters() if p.requires_grad]
    n_layers = 2 * 4  # qkv, out, up, out
    assert len(learning) == 2 * n_layers
    assert sum(p.numel() for p in learning) < sum(t.numel() for t in before.values()) / 2
    optimizer = torch.optim.SGD(learning, 0.1)
    for _ in range(2):  # `down` has no gradient while `up` is 0
        optimizer.zero_grad()
        torch.autograd.backward(ar.transformer(x, causal=True).square().mean())
        optimizer.step()
    expected = ar.transformer(x, causal=True)
    kept = whole_weights(ar)
    plain = AR(ar.config)
    plain.load_state_dict(kept)
    torch.testing.assert_close(plain.transformer(x, causal=True), expected, rtol=1e-5, atol=1e-6)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, kept[name])}
    assert len(changed) == n_layers
    assert all(name.startswith("transformer.blocks.") and name.endswith(".weight") for name in changed)


def test_wrong_ranks_are_refused(ar: AR, tmp_path: Path) -> None:
    with pytest.raises(ValleError, match="16"):
        add_lora(ar, LoraConfig(rank=16))
    with pytest.raises(ValleError, match="must be 0"):
        LoraConfig(rank=-1)
    path = tmp_path / "config.toml"
    path.write_text('pack = "p"\nout = "o"\n[ar.lora]\nrank = 4\n')
    with pytest.raises(ValleError, match="without init"):
        load_train_config(path)


def tuned_config(tmp_path: Path, pack: Path, init: Path, **changes: object) -> Path:
    """A configuration that says nothing of the model: it is that of ``init``."""
    text = config_file(tmp_path, pack, **changes).read_text()
    tables, skipping = [], False
    for line in text.splitlines():
        if line.startswith("["):
            skipping = ".model" in line
            if line in ("[ar.model]", "[nar.model]"):
                kind = line[1:].split(".")[0]
                tables += [f"[{kind}]", f"init = {json.dumps(str(init))}", f"[{kind}.lora]", "rank = 4"]
        if not skipping:
            tables.append(line)
    path = tmp_path / "tuned.toml"
    path.write_text("\n".join(tables))
    return path


def test_a_model_is_tuned_stopped_resumed_and_exported(tmp_path: Path, make_pack) -> None:  # type: ignore[no-untyped-def]
    codec = tiny_codec(0)
    codec.save(tmp_path / "codec")
    pack = make_pack({"train": FRAMES, "dev": [40, 50]}, fingerprint=codec.fingerprint())
    config = config_file(tmp_path, pack, max_steps=1)
    runs = {kind: train(kind, config) for kind in ("ar", "nar")}
    base = export(runs["ar"], runs["nar"], tmp_path / "codec", tmp_path / "base", name="base", num_candidates=2)

    tuned = tuned_config(tmp_path, pack, base, max_steps=4, checkpoint_every=2, eval_every=4)
    whole = train("ar", tuned, out=tmp_path / "whole")
    trainer = Trainer("ar", load_train_config(tuned), tmp_path / "stopped" / "ar")
    trainer.start(resume=False)
    trainer.run_config = trainer.run_config.__class__(**{**vars(trainer.run_config), "max_steps": 2})
    trainer.run()
    stopped = train("ar", tuned, resume=True, out=tmp_path / "stopped")
    ours, theirs = last_tensors(stopped), last_tensors(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    before, after = load_weights("ar", base / "ar").state_dict(), load_weights("ar", whole / "best").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("transformer.blocks.") for name in changed)

    mine = tmp_path / "mine"
    assert main(["--ar", str(whole), "--like", str(base), "--out", str(mine)]) == 0
    model = load_pretrained(mine)
    assert (model.info.name, read_info(mine).num_candidates) == ("mine", 2)
    assert torch.equal(model.ar.state_dict()[min(changed)], after[min(changed)].half().float())
    assert main(["--ar", str(whole), "--out", str(tmp_path / "none")]) == 2
    assert main(["--ar", str(whole), "--like", str(base), "--out", str(base)]) == 2


def test_rank_and_model_can_be_given_on_the_command_line(tmp_path: Path, make_pack) -> None:  # type: ignore[no-untyped-def]
    pack = make_pack({"train": FRAMES, "dev": [40, 50]})
    config = config_file(tmp_path, pack, max_steps=1, eval_every=1)
    base = train("nar", config) / "best"
    run = train("nar", config, out=tmp_path / "tuned", init=str(base), lora=2)
    kept = json.loads((run / "config.json").read_text())
    assert kept["identity"]["lora"] == {"rank": 2, "scale": 2.0}
    with pytest.raises(ValleError, match="lora"):
        train("nar", config, resume=True, out=tmp_path / "tuned", init=str(base), lora=0)
