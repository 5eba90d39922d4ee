"""Packs: what went in comes out, in both forms, and a pack of another codec is refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from valle.data.pack import INFO_FILE, Pack, PackedUtterance, pack_bits, unpack_bits, write_shard
from valle.errors import ValleError


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 2**31))
def test_ten_bits_hold_every_code(n_frames, seed):
    codes = torch.randint(1024, (8, n_frames), generator=torch.Generator().manual_seed(seed)).to(torch.int16)
    octets = pack_bits(codes)
    assert octets.shape == (n_frames, 10)
    assert octets.dtype == torch.uint8
    assert torch.equal(unpack_bits(octets), codes)


def test_compact_and_plain_packs_hold_the_same(make_pack):
    lengths = {"train": [7, 1, 30], "dev": [12]}
    plain, compact = (Pack(make_pack(lengths, name=str(c), compact=c)) for c in (False, True))
    assert plain.splits == ("train", "dev")
    for split, frames in lengths.items():
        a, b = plain.split(split), compact.split(split)
        assert a.n_frames.tolist() == b.n_frames.tolist() == frames
        assert a.ids == [f"{split}{i}" for i in range(len(frames))]
        assert a.speakers.tolist() == [i % 2 for i in range(len(frames))]
        for i, n in enumerate(frames):
            assert a.codes(i).shape == (8, n)
            assert a.codes(i).dtype == torch.int64
            assert int(a.codes(i).max()) > 255  # the upper bits are there
            assert torch.equal(a.codes(i), b.codes(i))
            assert torch.equal(a.phonemes(i), b.phonemes(i))
            assert len(a.phonemes(i)) == a.n_phonemes[i]
    assert not torch.equal(plain.split("train").codes(0)[:, :1], plain.split("train").codes(1)[:, :1])


def test_another_codec_or_inventory_is_refused(make_pack):
    pack = Pack(make_pack({"train": [5]}))
    pack.require(codec_fingerprint="c0dec", inventory_version="1")
    with pytest.raises(ValleError, match="made with the codec c0dec, but 123 is needed"):
        pack.require(codec_fingerprint="123")
    with pytest.raises(ValleError, match="made with the phoneme inventory 1, but 2 is needed"):
        pack.require(inventory_version="2")


def test_errors_name_the_remedy(tmp_path, make_pack):
    with pytest.raises(ValleError, match="valle prepare"):
        Pack(tmp_path)
    folder = make_pack({"train": [5]})
    with pytest.raises(ValleError, match="no split 'dev'; it has train"):
        Pack(folder).split("dev")
    (folder / "train-00000.safetensors").unlink()
    with pytest.raises(ValleError, match="lacks its shard"):
        Pack(folder).split("train")
    values = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(ValleError, match="format 99"):
        Pack(folder)


def test_durations_are_kept_and_missed(make_pack):
    lengths = {"train": [7, 1, 30]}
    for compact in (False, True):
        pack = Pack(make_pack(lengths, name=f"a{compact}", compact=compact, aligned=True))
        assert pack.info.aligned
        assert pack.info.phoneme_kinds == (2,) + (0,) * 9
        split = pack.split("train")
        for i, n in enumerate(lengths["train"]):
            assert split.durations(i).dtype == torch.int64
            assert split.durations(i).shape == split.phonemes(i).shape
            assert int(split.durations(i).sum()) == n == split.codes(i).shape[1]
    old = make_pack(lengths)
    values = json.loads((old / INFO_FILE).read_text())
    del values["aligned"], values["phoneme_kinds"]  # as packs were before there were durations
    (old / INFO_FILE).write_text(json.dumps(values))
    assert Pack(old).info.aligned is False
    with pytest.raises(ValleError, match="--aligner"):
        Pack(old).split("train").durations(0)


def test_the_same_utterances_are_the_same_bytes(make_pack, tmp_path):
    """Whatever the order in which the library writes metadata down, and with any characters in them."""
    info = Pack(make_pack({"train": [3]})).info
    metadata = {"rejected": '[{"id": "ü\\u0001"}]', "key": "k", "n_frames": "3", "a": "日本"}
    utterance = PackedUtterance("é", torch.tensor([1, 2]), torch.arange(24).view(8, 3))
    written = set()
    for i in range(6):
        path = tmp_path / f"{i}.safetensors"
        write_shard(path, [utterance], info, metadata=dict(sorted(metadata.items(), reverse=bool(i % 2))))
        written.add(path.read_bytes())
    assert len(written) == 1
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"ids": json.dumps(["é"]), **metadata}
        assert torch.equal(file.get_tensor("codes"), torch.arange(24).view(8, 3).short())
