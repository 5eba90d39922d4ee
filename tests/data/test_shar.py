"""Shar: a pack goes to lhotse and comes back as it was, lhotse reads it, and what is no Shar is refused by name."""

import gzip
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from valle.data.pack import INFO_FILE, PHONEMES_FILE, Pack, PackedUtterance, write_info, write_shard
from valle.data.shar import main, read_shar, read_texts, write_shar
from valle.errors import ValleError

lhotse = pytest.importorskip("lhotse")

# lhotse leaves the closing of its archives to Python.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

LENGTHS = {"train": [30, 41, 7, 55], "dev": [12, 20]}


def tensors(folder: Path):
    """Everything in the shards of a pack, by file: tensors and what is written beside them."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found[path.name] = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    return found


def assert_same(a: Path, b: Path):
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    for name, (one, told) in first.items():
        two, told_too = second[name]
        assert told == told_too
        assert one.keys() == two.keys()
        for field, tensor in one.items():
            assert tensor.dtype == two[field].dtype
            assert torch.equal(tensor, two[field]), (name, field)
    assert (a / INFO_FILE).read_bytes() == (b / INFO_FILE).read_bytes()
    assert (a / PHONEMES_FILE).read_bytes() == (b / PHONEMES_FILE).read_bytes()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_there_and_back_is_the_same(make_pack, tmp_path, compact, aligned):
    pack = make_pack(LENGTHS, compact=compact, aligned=aligned)
    (pack / "rejected.jsonl").write_text('{"id": "x", "split": "dev", "reason": "clipped", "detail": ""}\n')
    write_info(pack, replace(Pack(pack).info, rejected={"train": {}, "dev": {"clipped": 1}}, aligner="a1" * aligned))
    write_shar(Pack(pack), tmp_path / "100% shar")
    assert read_shar(tmp_path / "100% shar", tmp_path / "back") == Pack(pack).info
    assert_same(pack, tmp_path / "back")
    assert (tmp_path / "back" / "rejected.jsonl").read_bytes() == (pack / "rejected.jsonl").read_bytes()
    assert not list(tmp_path.glob(".*.part"))


def test_shards_empty_ones_and_unknown_speakers_too(make_pack, tmp_path):
    pack = make_pack({"train": [30]}, aligned=True)
    info = Pack(pack).info
    utterance = PackedUtterance("b.c/d e~1", torch.tensor([1, 2]), torch.full((8, 9), 1023), -1, torch.tensor([4, 5]))
    for number, utterances in enumerate([[], [utterance]], start=1):
        write_shard(pack / f"train-{number:05d}.safetensors", utterances, info, metadata={"key": f"k{number}"})
    shards = info.shards + tuple(
        replace(info.shards[0], file=f"train-{n + 1:05d}.safetensors", utterances=n, hours=0.1234) for n in range(2)
    )
    shards = (shards[0], *(replace(s, file=f"train-{k:05d}.safetensors") for k, s in enumerate(shards[1:], start=1)))
    write_info(pack, replace(info, shards=shards))
    write_shar(Pack(pack), tmp_path / "shar")
    read_shar(tmp_path / "shar", tmp_path / "back")
    assert_same(pack, tmp_path / "back")
    assert [cut.id for cut in lhotse.CutSet.from_shar(in_dir=tmp_path / "shar" / "train")] == ["train0", "b.c/d e~1"]


def test_lhotse_reads_it(make_pack, tmp_path):
    pack = Pack(make_pack(LENGTHS, aligned=True))
    write_shar(pack, tmp_path / "shar", texts={"train0": "What is said.", "other": "x"})
    split = pack.split("train")
    cuts = list(lhotse.CutSet.from_shar(in_dir=tmp_path / "shar" / "train"))
    assert [cut.id for cut in cuts] == split.ids
    for i, cut in enumerate(cuts):
        codes = cut.load_codes()
        assert codes.dtype == "int16"
        assert codes.shape == (8, LENGTHS["train"][i])
        assert torch.equal(torch.from_numpy(codes).long(), split.codes(i))
        assert torch.equal(torch.from_numpy(cut.load_phonemes()).long(), split.phonemes(i))
        durations = cut.load_durations()
        assert durations.tolist() == split.durations(i).tolist()
        assert not cut.has_recording
        assert cut.duration == pytest.approx(LENGTHS["train"][i] / 75)
        (supervision,) = cut.supervisions
        lhotse.validate(supervision)
        assert supervision.speaker == "ab"[i % 2]
        assert supervision.split == "train"
        assert supervision.text == ("What is said." if i == 0 else None)
        assert supervision.ipa == "".join(" abcdefghi"[p] for p in split.phonemes(i).tolist())
        items = supervision.alignment["phone"]
        assert [round(item.duration * 75) for item in items] == [d for d in durations.tolist() if d]
        assert "".join(x.symbol for x in items) == "".join(
            c for c, d in zip(supervision.ipa, durations.tolist(), strict=True) if d
        )
        assert items[0].start == 0
        assert items[-1].end == pytest.approx(cut.duration)
        assert all(round(a.end * 75) == round(b.start * 75) for a, b in pairwise(items))
    sampler = lhotse.dataset.DynamicBucketingSampler(
        lhotse.CutSet.from_shar(in_dir=tmp_path / "shar" / "train"), max_duration=2.0, num_buckets=2
    )
    assert sorted(cut.id for batch in sampler for cut in batch) == split.ids


def test_dataset_json_tells_what_it_is(make_pack, tmp_path):
    pack = Pack(make_pack(LENGTHS, fingerprint="f1"))
    write_shar(pack, tmp_path / "shar")
    body = json.loads((tmp_path / "shar" / INFO_FILE).read_text())
    assert body["codec_fingerprint"] == "f1"
    assert body["inventory_version"] == "1"
    assert body["speakers"] == ["a", "b"]
    assert body["utterances"] == {"train": 4, "dev": 2}
    assert body["hours"]["train"] == round(133 / 75 / 3600, 4)
    assert body["rejected"] == {}
    assert body["settings"]["frame_rate"] == 75


def test_virtual_voices_say_what_their_utterance_says(make_pack, tmp_path):
    folder = make_pack({"train": [10, 12]})
    info = Pack(folder).info
    utterances = [PackedUtterance(name, torch.tensor([1]), torch.zeros(8, 5), 0) for name in ("u", "u~1")]
    write_shard(folder / "train-00000.safetensors", utterances, info)
    write_info(folder, replace(info, augment=1))
    write_shar(Pack(folder), tmp_path / "shar", texts={"u": "Yes."})
    cuts = lhotse.CutSet.from_shar(in_dir=tmp_path / "shar" / "train")
    assert [cut.supervisions[0].text for cut in cuts] == ["Yes.", "Yes."]


def test_what_is_no_shar_is_named(make_pack, tmp_path):
    pack = make_pack(LENGTHS)
    with pytest.raises(ValleError, match=r"is no Shar folder .* no dataset.json"):
        read_shar(tmp_path, tmp_path / "back")
    with pytest.raises(ValleError, match="is a pack and no Shar folder"):
        read_shar(pack, tmp_path / "back")
    write_shar(Pack(pack), tmp_path / "shar")
    with pytest.raises(ValleError, match="give the one above them"):
        read_shar(tmp_path / "shar" / "train", tmp_path / "back")
    path = tmp_path / "shar" / INFO_FILE
    body = json.loads(path.read_text())

    def saying(**values):
        path.write_text(json.dumps({k: v for k, v in (body | values).items() if v is not None}))
        return tmp_path / "shar"

    with pytest.raises(ValleError, match="does not tell the fingerprint of the codec"):
        read_shar(saying(codec_fingerprint=None), tmp_path / "back")
    with pytest.raises(ValleError, match="does not tell the fingerprint of the codec"):
        read_shar(saying(codec_fingerprint=""), tmp_path / "back")
    with pytest.raises(ValleError, match="has the format 7"):
        read_shar(saying(format=7), tmp_path / "back")
    with pytest.raises(ValleError, match="lacks or garbles 'settings'"):
        read_shar(saying(settings=None), tmp_path / "back")
    with pytest.raises(ValleError, match="unknown key 'shoes'"):
        read_shar(saying(settings=body["settings"] | {"shoes": 1}), tmp_path / "back")
    with pytest.raises(ValleError, match="no plain name"):
        read_shar(saying(shards=[body["shards"][0] | {"file": "../x"}]), tmp_path / "back")
    path.write_text("{")
    with pytest.raises(ValleError, match="is no JSON"):
        read_shar(tmp_path / "shar", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_damaged_shar_is_an_error(make_pack, tmp_path):
    whole = tmp_path / "whole"
    write_shar(Pack(make_pack(LENGTHS, aligned=True)), whole)

    def damaged(name, data):
        shutil.rmtree(tmp_path / "shar", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "shar")
        path = tmp_path / "shar" / "train" / name
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data(path.read_bytes()))
        return tmp_path / "shar"

    def without_last(data):
        return gzip.compress(b"".join(gzip.decompress(data).splitlines(keepends=True)[:-1]))

    with pytest.raises(ValleError, match=r"lacks its file .*durations\.000000\.tar"):
        read_shar(damaged("durations.000000.tar", None), tmp_path / "back")
    with pytest.raises(ValleError, match=r"holds 3 cuts, but dataset\.json says 4"):
        read_shar(damaged("cuts.000000.jsonl.gz", without_last), tmp_path / "back")
    for name, data in [
        ("codes.000000.tar", lambda d: d[:1500]),
        ("codes.000000.tar", lambda d: b"no archive"),
        ("cuts.000000.jsonl.gz", lambda d: d[:50]),
        ("durations.000000.tar", lambda d: (whole / "train" / "phonemes.000000.tar").read_bytes()),
    ]:
        with pytest.raises(ValleError, match=r"is damaged|holds \d cuts"):
            read_shar(damaged(name, data), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_nothing_is_overwritten(make_pack, tmp_path):
    pack = make_pack(LENGTHS)
    with pytest.raises(ValleError, match="is there already"):
        write_shar(Pack(pack), pack)
    (tmp_path / "empty").mkdir()
    write_shar(Pack(pack), tmp_path / "empty")
    with pytest.raises(ValleError, match="is there already"):
        read_shar(tmp_path / "empty", pack)


def test_packs_that_cannot_go(make_pack, tmp_path):
    folder = make_pack({"train": [10]})
    info = Pack(folder).info
    write_shard(
        folder / "train-00000.safetensors", [PackedUtterance("a//b", torch.tensor([1]), torch.zeros(8, 5))], info
    )
    with pytest.raises(ValleError, match="'a//b' cannot be the name of a file"):
        write_shar(Pack(folder), tmp_path / "shar")
    assert not (tmp_path / "shar").exists()
    write_info(folder, replace(info, inventory_version="2"))
    with pytest.raises(ValleError, match="made with 2 of 10"):
        write_shar(Pack(folder), tmp_path / "shar")


def test_without_lhotse_the_extra_is_named(make_pack, tmp_path, monkeypatch):
    pack = Pack(make_pack({"train": [10]}))
    write_shar(pack, tmp_path / "shar")
    monkeypatch.setitem(__import__("sys").modules, "lhotse", None)
    with pytest.raises(ValleError, match=r"Shar needs the Python package lhotse.* pip install 'valle\[sources\]'"):
        write_shar(pack, tmp_path / "other")
    with pytest.raises(ValleError, match=r"valle\[sources\]"):
        read_shar(tmp_path / "shar", tmp_path / "other")


def test_commands(make_pack, tmp_path, capsys):
    pack = make_pack(LENGTHS)
    (pack / "transcripts.jsonl").write_text('{"id": "dev0", "text": "Well?"}\n\n{"id": "dev1", "text": null}\n')
    assert main(["to", str(pack), "--out", str(tmp_path / "shar")]) == 0
    assert "train: 4 utterances" in capsys.readouterr().err
    cuts = lhotse.CutSet.from_shar(in_dir=tmp_path / "shar" / "dev")
    assert [cut.supervisions[0].text for cut in cuts] == ["Well?", None]
    assert main(["from", str(tmp_path / "shar"), "--out", str(tmp_path / "back")]) == 0
    assert_same(pack, tmp_path / "back")


def test_texts_that_cannot_be_read(tmp_path):
    with pytest.raises(ValleError, match="cannot be read"):
        read_texts(tmp_path / "none.jsonl")
    for line in ["{", "[]", '{"text": "a"}', "7"]:
        (tmp_path / "t.jsonl").write_text(f'{{"id": "a", "text": "b"}}\n{line}\n')
        with pytest.raises(ValleError, match="line 2, is no object"):
            read_texts(tmp_path / "t.jsonl")
