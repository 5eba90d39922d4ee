"""Preparing: codes and phonemes of each utterance alone, misfits left out with a reason, a stopped build goes on."""

import json
import threading

import numpy as np
import pytest
import soundfile
import torch

from valle.asr import Aligner, Alignment
from valle.audio import load, normalise_loudness, trim_silence
from valle.data.pack import Pack
from valle.data.prepare import PrepareConfig, Rejected, ahead, build_pack
from valle.errors import ValleError
from valle.text import PhonemeInventory

INVENTORY = PhonemeInventory("test", (" ", *"abcdefghijklmnopqrstuvwxyz"))


class FakeCodec:
    """Codes that follow the samples; counts what it encodes."""

    sample_rate, hop_length, n_quantizers, codebook_size, frame_rate = 24000, 320, 8, 1024, 75.0

    def __init__(self):
        self.encoded = 0

    def to(self, device):
        return self

    def eval(self):
        return self

    def fingerprint(self):
        return "fake"

    def encode(self, wav):
        self.encoded += 1
        assert wav.shape[:2] == (1, 1)
        wav = torch.nn.functional.pad(wav[0, 0], (0, -wav.shape[2] % 320)).view(-1, 320)
        level = (wav.square().mean(1).sqrt() * 1000).long().clamp(max=1000)  # [T]
        return (level + torch.arange(8).unsqueeze(1)).unsqueeze(0)  # [1, 8, T]


def phonemize(text, lang):
    if "?" in text:
        raise ValleError("what is this")
    return list(text)


@pytest.fixture
def corpus(tmp_path):
    """Six good utterances and one of each misfit."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []

    def add(name, seconds, text="a few words in here", split="train", speaker="s1", level=0.1):
        if seconds:
            soundfile.write(folder / f"{name}.wav", rng.normal(0, level, int(16000 * seconds)), 16000)
        record = {
            "id": name,
            "path": f"{name}.wav",
            "seconds": seconds,
            "split": split,
            "text": text,
            "speaker": speaker,
        }
        lines.append(json.dumps(record))

    for i in range(5):
        add(f"good{i}", 1 + i * 0.3, speaker=None if i == 2 else f"s{i}")
    add("dev", 1.5, split="dev")
    add("missing", 0)
    add("silent", 2, level=0.0)
    add("short", 0.2)
    add("long", 4)
    add("wordless", 1, text=None)
    add("strange", 1, text="what?")
    add("crowded", 1, text="x" * 60)
    add("empty", 2, text="ab")
    (folder / "broken.wav").write_bytes(b"RIFF but no more")
    lines.append(
        json.dumps({"id": "broken", "path": "broken.wav", "seconds": 1, "split": "train", "text": "some words"})
    )
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


class FakeAligner(Aligner):
    """All frames are the first phoneme's; longer recordings are likelier."""

    def __init__(self, version="test", name="one"):
        self.inventory_version_, self.name = version, name

    @property
    def inventory_version(self):
        return self.inventory_version_

    def fingerprint(self):
        return self.name

    def align(self, wav, phonemes):
        n_frames = -(-wav.shape[1] // 320)
        if n_frames < 90:
            raise ValleError("too short for this aligner")
        return Alignment(torch.tensor([n_frames] + [0] * (len(phonemes) - 1)), n_frames - 200.0)


def build(corpus, out, codec, aligner=None, **config):
    config = PrepareConfig(max_seconds=3.0, **config)
    return build_pack([corpus], codec, out, config=config, inventory=INVENTORY, phonemize=phonemize, aligner=aligner)


def test_builds_and_says_what_it_left_out(corpus, tmp_path):
    info = build(corpus, tmp_path / "pack", FakeCodec())
    assert info.rejected["train"] == {
        "unreadable audio": 2,
        "silent audio": 1,
        "shorter than 0.5 s": 1,
        "longer than 3 s": 1,
        "no text": 1,
        "text that cannot be phonemised": 1,
        "more text than its audio can hold": 1,
        "more audio than its text can fill": 1,
    }
    reasons = [json.loads(line) for line in (tmp_path / "pack" / "rejected.jsonl").read_text().splitlines()]
    assert next(r for r in reasons if r["id"] == "strange")["detail"] == "what is this"
    pack = Pack(tmp_path / "pack")
    assert (pack.info.codec_fingerprint, pack.info.inventory_version, pack.info.n_phonemes) == ("fake", "test", 27)
    train = pack.split("train")
    assert train.ids == [f"good{i}" for i in range(5)]
    assert [None if s < 0 else pack.info.speakers[s] for s in train.speakers] == ["s0", "s1", None, "s3", "s4"]
    assert INVENTORY.decode(train.phonemes(0).tolist()) == list("a few words in here")
    # As a reference is treated: trimmed and at one level.
    wav = normalise_loudness(trim_silence(load(corpus / "good3.wav", 24000).waveform, 24000), 24000)
    assert torch.equal(train.codes(3), FakeCodec().encode(wav.unsqueeze(0))[0])
    assert PhonemeInventory.load(tmp_path / "pack" / "phonemes.json") == INVENTORY


def test_a_stopped_build_goes_on_and_another_codec_starts_anew(corpus, tmp_path):
    codec = FakeCodec()
    build(corpus, tmp_path / "pack", codec, shard_hours=1.5 / 3600)
    assert len(list((tmp_path / "pack").glob("train-*.safetensors"))) > 3
    whole = codec.encoded
    (tmp_path / "pack" / "train-00001.safetensors").unlink()
    (tmp_path / "pack" / "train-00002.safetensors").write_bytes(b"broken")
    build(corpus, tmp_path / "pack", codec, shard_hours=1.5 / 3600)
    assert 0 < codec.encoded - whole < whole
    assert Pack(tmp_path / "pack").split("train").ids == [f"good{i}" for i in range(5)]
    other = FakeCodec()
    other.fingerprint = lambda: "other"
    info = build(corpus, tmp_path / "pack", other, shard_hours=1.5 / 3600)
    assert other.encoded == whole
    assert info.codec_fingerprint == "other"


def test_nothing_fit_is_an_error(corpus, tmp_path):
    with pytest.raises(ValleError, match="every utterance of the split 'train' was left out"):
        build(corpus, tmp_path / "pack", FakeCodec(), min_seconds=2.9)
    assert not (tmp_path / "pack" / "dataset.json").exists()
    with pytest.raises(ValleError, match="split 'test'"):
        build_pack([corpus], FakeCodec(), tmp_path / "x", splits=["test"], inventory=INVENTORY, phonemize=phonemize)


def test_an_aligner_adds_durations_and_rejects(corpus, tmp_path):
    codec, out = FakeCodec(), tmp_path / "pack"
    info = build(corpus, out, codec, aligner=FakeAligner(), min_fit=-90.0)
    assert info.aligned
    assert info.phoneme_kinds == INVENTORY.kinds
    assert info.rejected["train"]["text and audio that cannot be aligned"] == 1  # good0, of 75 frames
    assert info.rejected["train"]["text that is hardly what is said"] == 1  # good1, of 98
    split = Pack(out).split("train")
    assert split.ids == ["good2", "good3", "good4"]
    for i in range(3):
        assert split.durations(i).tolist() == [split.n_frames[i]] + [0] * (len(split.phonemes(i)) - 1)
    before = codec.encoded
    build(corpus, out, codec, aligner=FakeAligner(), min_fit=-90.0)
    assert codec.encoded == before  # all is kept
    build(corpus, out, codec, aligner=FakeAligner(name="another"), min_fit=-90.0)
    assert codec.encoded == 2 * before
    assert not build(corpus, out, codec).aligned  # made again, without
    assert len(Pack(out).split("train")) == 5
    with pytest.raises(ValleError, match="--aligner"):
        Pack(out).split("train").durations(0)


def test_an_aligner_of_other_phonemes_or_frames_is_refused(corpus, tmp_path):
    with pytest.raises(ValleError, match="inventory other, but test is used"):
        build(corpus, tmp_path / "pack", FakeCodec(), aligner=FakeAligner("other"))
    codec = FakeCodec()
    codec.hop_length = 240
    with pytest.raises(ValleError, match="every 240 samples"):
        build(corpus, tmp_path / "pack", codec, aligner=FakeAligner())


def test_a_pack_like_another_has_new_codes_and_the_old_durations(corpus, tmp_path):
    class OtherCodec(FakeCodec):
        def fingerprint(self):
            return "other"

        def encode(self, wav):
            return super().encode(wav) + 1

    first = build(corpus, tmp_path / "first", FakeCodec(), aligner=FakeAligner(), min_fit=-90.0)
    again = build_pack(
        [corpus],
        OtherCodec(),
        tmp_path / "again",
        config=PrepareConfig(),
        inventory=INVENTORY,
        phonemize=None,
        like=Pack(tmp_path / "first"),
    )
    assert (again.codec_fingerprint, again.aligner, again.aligned) == ("other", first.aligner, True)
    for name in ("train", "dev"):
        old, new = Pack(tmp_path / "first").split(name), Pack(tmp_path / "again").split(name)
        assert old.ids == new.ids
        for i in range(len(old)):
            assert torch.equal(old.codes(i) + 1, new.codes(i))
            assert torch.equal(old.phonemes(i), new.phonemes(i))
            assert torch.equal(old.durations(i), new.durations(i))
    FakeCodec.frame_rate, rate = 50.0, FakeCodec.frame_rate
    try:
        with pytest.raises(ValleError, match="frames a second"):
            build_pack([corpus], FakeCodec(), tmp_path / "x", inventory=INVENTORY, like=Pack(tmp_path / "first"))
    finally:
        FakeCodec.frame_rate = rate


def test_reading_ahead_keeps_the_order_and_raises_in_its_place():
    def slow(i):
        threading.Event().wait(0.003 * (i % 3))
        if i == 30:
            raise Rejected("thirty")
        return i * i

    assert list(ahead(slow, range(25), n_threads=3, depth=5)) == [i * i for i in range(25)]
    results = ahead(slow, range(40), n_threads=3)
    assert [next(results) for _ in range(30)] == [i * i for i in range(30)]
    with pytest.raises(Rejected, match="thirty"):
        next(results)
