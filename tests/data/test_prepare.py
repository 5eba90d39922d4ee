"""Preparing: codes and phonemes of each utterance alone, misfits left out with a reason, a stopped build goes on."""

import dataclasses
import hashlib
import json
import threading

import numpy as np
import pytest
import soundfile
import torch

from fakes import INVENTORY, FakeCodec
from valle.asr import Aligner, Alignment
from valle.audio import load, normalise_loudness, trim_silence
from valle.data.ahead import ahead
from valle.data.augment import voice_of
from valle.data.corpus import read_manifest
from valle.data.pack import Pack
from valle.data.prepare import build_pack, main
from valle.data.quality import QualityConfig
from valle.data.reading import PrepareConfig, Rejected
from valle.data.shards import metadata_of
from valle.data.transcripts import Transcript
from valle.errors import ValleError
from valle.text import PhonemeInventory


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
        "no such file": 1,
        "less audio than its header promises": 1,
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


def test_what_another_pack_does_not_hold_is_aligned(corpus, tmp_path):
    """A part recalled and a part made anew are the same as all made anew."""
    build(corpus, tmp_path / "part", FakeCodec(), aligner=FakeAligner(), min_fit=-90.0)
    build(corpus, tmp_path / "all", FakeCodec(), aligner=FakeAligner())
    options = {"config": PrepareConfig(max_seconds=3.0), "inventory": INVENTORY, "like": Pack(tmp_path / "part")}
    build_pack([corpus], FakeCodec(), tmp_path / "both", phonemize=phonemize, aligner=FakeAligner(), **options)
    part, whole, both = (Pack(tmp_path / name).split("train") for name in ("part", "all", "both"))
    assert len(part) < len(whole)
    assert whole.ids == both.ids
    for i in range(len(whole)):
        assert torch.equal(whole.codes(i), both.codes(i))
        assert torch.equal(whole.phonemes(i), both.phonemes(i))
        assert torch.equal(whole.durations(i), both.durations(i))
    with pytest.raises(ValleError, match="another aligner's"):
        build_pack([corpus], FakeCodec(), tmp_path / "x", aligner=FakeAligner(name="two"), **options)


def test_splits_may_be_taken_as_one(corpus, tmp_path):
    build(corpus, tmp_path / "apart", FakeCodec())
    options = {"config": PrepareConfig(max_seconds=3.0), "inventory": INVENTORY, "phonemize": phonemize}
    info = build_pack([corpus], FakeCodec(), tmp_path / "one", splits=("train+dev",), **options)
    apart, one = Pack(tmp_path / "apart"), Pack(tmp_path / "one").split("train")
    assert {s.split for s in info.shards} == {"train"}
    assert sorted(one.ids) == sorted(apart.split("train").ids + apart.split("dev").ids)
    with pytest.raises(ValleError, match="'dev' more than once"):
        build_pack([corpus], FakeCodec(), tmp_path / "x", splits=("train+dev", "dev"), **options)


def test_recordings_without_text_are_transcribed(corpus, tmp_path):
    class Fake:
        name = "fake"

        def transcribe(self, wav, sample_rate):
            return Transcript("some words that were heard", confidence=0.5)

    options = {"config": PrepareConfig(max_seconds=3.0), "inventory": INVENTORY, "phonemize": phonemize}
    info = build_pack([corpus], FakeCodec(), tmp_path / "pack", recogniser=Fake(), **options)
    assert "no text" not in info.rejected["train"]
    plain = build(corpus, tmp_path / "plain", FakeCodec())
    new = set(Pack(tmp_path / "pack").split("train").ids) - set(Pack(tmp_path / "plain").split("train").ids)
    assert len(new) == plain.rejected["train"]["no text"]
    split = Pack(tmp_path / "pack").split("train")
    assert INVENTORY.decode(split.phonemes(split.ids.index(new.pop())).tolist()) == list("some words that were heard")
    assert (tmp_path / "pack" / "transcripts.jsonl").is_file()
    unsure = build_pack([corpus], FakeCodec(), tmp_path / "x", recogniser=Fake(), min_confidence=0.6, **options)
    assert unsure.rejected["train"]["no text"] == plain.rejected["train"]["no text"]


def test_bad_quality_is_left_out_if_asked(corpus, tmp_path):
    clipped = np.random.default_rng(0).normal(0, 0.2, 24000).clip(-0.2, 0.2)
    soundfile.write(corpus / "good3.wav", clipped, 24000)
    kept = build(corpus, tmp_path / "all", FakeCodec())
    judged = build(corpus, tmp_path / "good", FakeCodec(), quality=QualityConfig(min_snr_db=None))  # all is noise here
    assert "clipped" not in kept.rejected["train"]
    assert judged.rejected["train"]["clipped"] == 1


def names(split, info):
    return [None if s < 0 else info.speakers[s] for s in split.speakers.tolist()]


def test_virtual_voices_are_added_to_train_alone(corpus, tmp_path):
    plain = build(corpus, tmp_path / "plain", FakeCodec())
    info = build(corpus, tmp_path / "pack", FakeCodec(), augment=2)
    assert (plain.augment, info.augment) == (0, 2)
    assert info.rejected == plain.rejected  # one entry for all versions
    assert info.speakers == (*plain.speakers, *(f"s{i}~{v}" for i in (0, 1, 3, 4) for v in (1, 2)))
    pack, old = Pack(tmp_path / "pack"), Pack(tmp_path / "plain")
    assert pack.info == info  # read back
    train, before = pack.split("train"), old.split("train")
    assert train.ids == [f"good{i}{version}" for i in range(5) for version in ("", "~1", "~2")]
    speakers = ["s0", "s1", None, "s3", "s4"]
    assert names(train, info) == [s and s + version for s in speakers for version in ("", "~1", "~2")]
    for i in range(5):
        assert torch.equal(train.codes(3 * i), before.codes(i))
        for version in (1, 2):
            speed = voice_of(speakers[i], f"good{i}", version).speed
            assert abs(train.n_frames[3 * i + version] - before.n_frames[i] / speed) <= 1
            assert torch.equal(train.phonemes(3 * i + version), before.phonemes(i))
            assert not torch.equal(train.codes(3 * i + version)[:, :50], before.codes(i)[:, :50])
    assert pack.split("dev").ids == old.split("dev").ids == ["dev"]
    assert torch.equal(pack.split("dev").codes(0), old.split("dev").codes(0))
    # The level is set last.
    wav = voice_of("s3", "good3", 1).apply(
        trim_silence(load(corpus / "good3.wav", 24000).waveform, 24000), 24000, "good3"
    )
    codes = FakeCodec().encode(normalise_loudness(wav, 24000).unsqueeze(0))[0]
    assert (train.codes(10) - codes).abs().max() <= 1


def test_a_long_version_is_kept_and_a_loud_one_stays_so_without_normalising(corpus, tmp_path):
    build(corpus, tmp_path / "pack", FakeCodec(), augment=8, normalise=False)
    train = Pack(tmp_path / "pack").split("train")
    assert len(train) == 9 * 5
    assert train.n_frames.max() > 2.2 * 75 / 0.96


class SpreadingAligner(FakeAligner):
    """Every other symbol is a mark; the first has one frame, the last all that are left."""

    def align(self, wav, phonemes):
        durations = torch.tensor([i % 2 for i in range(len(phonemes) - 1)] + [0])
        durations[-1] = -(-wav.shape[1] // 320) - durations.sum()
        return Alignment(durations, -1.0)


def test_versions_stretch_the_durations_of_an_aligner_or_of_a_pack(corpus, tmp_path):
    build(corpus, tmp_path / "aligned", FakeCodec(), aligner=SpreadingAligner(), augment=3)
    build(corpus, tmp_path / "plain", FakeCodec(), aligner=SpreadingAligner())
    for out, like in (("recalled", "plain"), ("again", "aligned")):
        config = PrepareConfig(max_seconds=3.0, augment=3)
        info = build_pack(
            [corpus], FakeCodec(), tmp_path / out, config=config, inventory=INVENTORY, like=Pack(tmp_path / like)
        )
        assert info.aligned
        train, same = Pack(tmp_path / out).split("train"), Pack(tmp_path / "aligned").split("train")
        assert train.ids == same.ids
        assert len(train) == 4 * 5
        for i in range(len(train)):
            assert torch.equal(train.durations(i), same.durations(i))
            assert train.durations(i).sum() == train.n_frames[i] == train.codes(i).shape[1]
            assert torch.equal(train.durations(i) > 0, train.durations(i - i % 4) > 0)


def test_shards_are_kept_or_made_anew_by_what_augments_them(corpus, tmp_path):
    codec, out = FakeCodec(), tmp_path / "pack"

    def made(**config):
        before = codec.encoded
        build(corpus, out, codec, **config)
        return codec.encoded - before

    def keys():
        return {path.name: metadata_of(path)["key"] for path in out.glob("*.safetensors")}

    assert made() == 5 + 1
    plain = keys()
    assert plain["dev-00000.safetensors"] == keys_without_virtual_voices(corpus, "dev")
    assert plain["train-00000.safetensors"] == keys_without_virtual_voices(corpus, "train")
    assert made(augment=2) == 15
    assert keys()["dev-00000.safetensors"] == plain["dev-00000.safetensors"]
    assert made(augment=2) == 0
    assert made(augment=1) == 10
    assert made(augment=1, augment_splits=("train", "dev")) == 2
    assert made() == 5 + 1
    assert keys() == plain
    assert made(augment=2, shard_hours=4 / 3600) == 15 + 1  # shard_hours is in the key
    assert len([name for name in keys() if name.startswith("train")]) > 5
    (out / "train-00001.safetensors").unlink()
    assert made(augment=2, shard_hours=4 / 3600) == 3


def keys_without_virtual_voices(corpus, split):
    """As packs from before there were any have them."""
    config = dataclasses.asdict(PrepareConfig(max_seconds=3.0))
    for name in ("augment", "augment_splits", "min_fit", "probe", "quality", "segment"):
        del config[name]
    digest = hashlib.sha256(json.dumps(["fake", "test", config]).encode())
    for u in read_manifest(corpus, [split]):
        number = None if u.speaker is None else int(u.speaker[1])
        number = number if number is None or number < 2 else number - 1  # there is no s2
        digest.update(json.dumps([u.id, str(u.path), u.text, u.lang, number]).encode())
    return digest.hexdigest()[:16]


def test_names_and_numbers_that_versions_cannot_have_are_refused(corpus, tmp_path):
    with pytest.raises(ValleError, match="augment is -1"):
        PrepareConfig(augment=-1)
    manifest = corpus / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"good1"', '"good0~1"'))
    build(corpus, tmp_path / "pack", FakeCodec())
    with pytest.raises(ValleError, match="'good0~1' has a ~"):
        build(corpus, tmp_path / "pack", FakeCodec(), augment=1)
    with pytest.raises(ValleError, match="not among --splits"):
        main([str(corpus), "--codec", "x", "--out", str(tmp_path / "x"), "--augment", "1", "--splits", "dev"])


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
