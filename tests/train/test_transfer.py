"""A model for new codes from one for old codes of the same recordings."""

import dataclasses
import json

import pytest
import torch
from test_loop import config_file

from valle.data.pack import Pack, PackedUtterance, ShardInfo, write_info, write_shard
from valle.errors import ValleError
from valle.train.loop import train
from valle.train.transfer import main, transfer, translate
from valle.train.weights import load_weights


@pytest.fixture
def packs(make_pack):
    """A pack, and one of the same recordings whose codes are numbered the other way round."""
    old = make_pack({"train": [40, 50, 60, 45], "dev": [40]}, name="old")
    new = make_pack({}, name="new", fingerprint="other")
    pack, shards = Pack(old), []
    for name in ("train", "dev"):
        split = pack.split(name)
        rows = [
            PackedUtterance(split.ids[i], split.phonemes(i), 1023 - split.codes(i), int(split.speakers[i]))
            for i in range(len(split))
        ]
        write_shard(new / f"{name}-00000.safetensors", rows, Pack(new).info)
        shards.append(ShardInfo(f"{name}-00000.safetensors", name, len(rows), 0.1))
    write_info(new, dataclasses.replace(Pack(new).info, shards=tuple(shards)))
    return old, new


def test_new_codes_stand_for_what_the_old_ones_stood_for():
    tables = torch.randn(2, 6, 3)
    old = torch.cartesian_prod(torch.arange(6), torch.arange(6)).t()  # every pair of codes once
    order = torch.stack([torch.randperm(6), torch.randperm(6)])
    new = torch.stack([order[k][old[k]] for k in range(2)])
    made = translate(tables, old, new, 6)
    torch.testing.assert_close(made[0][order[0]], tables[0])
    torch.testing.assert_close(made[1][order[1]], tables[1], atol=1e-5, rtol=0)


def test_a_code_that_no_frame_has_gets_the_mean():
    made = translate(torch.randn(1, 4, 3), torch.tensor([[0, 1, 2]]), torch.tensor([[0, 0, 2]]), 4)
    assert torch.isfinite(made).all()
    torch.testing.assert_close(made[0, 1], made[0, 3])


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_a_run_goes_on_with_another_codec(kind, packs, tmp_path):
    first = train(kind, config_file(tmp_path, packs[0], max_steps=3), out=tmp_path / "first")
    config = config_file(tmp_path, packs[1], max_steps=3, local_layers=1)
    command = [kind, str(config), "--model", str(first / "best"), "--old-pack", str(packs[0])]
    assert main([*command, "--out", str(tmp_path / "begin")]) == 0
    old, new = load_weights(kind, first / "best"), load_weights(kind, tmp_path / "begin")
    assert torch.equal(old.phoneme_emb.weight, new.phoneme_emb.weight)
    codes = Pack(packs[0]).split("train").codes(0)[0].unique()
    if kind == "ar":
        torch.testing.assert_close(new.code_emb.weight[1023 - codes], old.code_emb.weight[codes])
        assert torch.equal(new.code_emb.weight[1024], old.code_emb.weight[1024])  # <eos>
    assert not new.local.out.weight.any()
    text = config.read_text().replace(f"[{kind}.model]", f'[{kind}]\ninit = "{tmp_path / "begin"}"\n[{kind}.model]')
    config.write_text(text)
    assert train(kind, config, out=tmp_path / "second").is_dir()


def test_what_does_not_belong_together_is_named(packs, make_pack, tmp_path):
    first = train("ar", config_file(tmp_path, packs[0], max_steps=3), out=tmp_path / "first")
    larger = config_file(tmp_path, packs[1], n_layers=3)
    with pytest.raises(ValleError, match="same sizes"):
        transfer("ar", larger, first / "best", packs[0], tmp_path / "begin")
    foreign = make_pack({"train": [30], "dev": [30]}, name="foreign")
    info = json.loads((foreign / "dataset.json").read_text())
    assert info["codec_fingerprint"] == "c0dec"
    config = config_file(tmp_path, packs[1])
    with pytest.raises(ValleError, match="no recording in common"):
        transfer("ar", config, first / "best", _renamed(foreign), tmp_path / "begin")


def _renamed(folder):
    """The same pack with other names of recordings."""
    split = Pack(folder).split("train")
    rows = [PackedUtterance("other", split.phonemes(0), split.codes(0), 0)]
    write_shard(folder / "train-00000.safetensors", rows, Pack(folder).info)
    return folder
