"""Long recordings become utterances of their own: the same ones in every run, none of them listened to twice."""

import dataclasses
import itertools
import json
import re
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from fakes import INVENTORY, FakeCodec
from sounds import voiced
from valle.audio import load, normalise_loudness, trim_silence
from valle.data.corpus import Utterance, load_wav, read_manifest
from valle.data.cutting import Cutter, piece_of, pieces_in, transcribed
from valle.data.engine import Shard, Worker
from valle.data.pack import Pack
from valle.data.prepare import build_pack, main
from valle.data.quality import QualityConfig
from valle.data.reading import PrepareConfig
from valle.data.segment import EnergyDetector
from valle.data.transcripts import Transcript, TranscriptCache
from valle.errors import ValleError

RATE = 16000
TEXT = "what is said in a piece of it and some more words that are heard there"


class Listener:
    """Understands the same in every piece; counts."""

    name = "fake"

    def __init__(self):
        self.heard = []

    def transcribe(self, wav, sample_rate):
        self.heard.append(len(wav) / sample_rate)
        return Transcript(TEXT, confidence=0.5)


class Detector(EnergyDetector):
    def __init__(self):
        super().__init__()
        self.recordings = 0

    def reset(self):
        super().reset()
        self.recordings = getattr(self, "recordings", -1) + 1


def sentences(*seconds, pause=0.7):
    silence = np.zeros(round(pause * RATE), np.float32)
    return np.concatenate([x for s in seconds for x in (silence, voiced(s, RATE))] + [silence])


@pytest.fixture
def corpus(tmp_path):
    """Chapters of 60 and 45 s without text, one of 40 s with text, short ones of both kinds, and unusable ones."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    noise = np.random.default_rng(0)
    lines = []

    def add(name, wav, text=None, split="train"):
        if wav is not None:
            soundfile.write(folder / f"{name}.flac", wav + noise.normal(size=len(wav)) * 1e-4, RATE)
        seconds = 50.0 if wav is None else len(wav) / RATE
        record = {"id": name, "path": f"{name}.flac", "seconds": seconds, "split": split, "text": text}
        lines.append(json.dumps({**record, "speaker": "reader"}))

    add("one", sentences(7, 6, 8, 5, 9, 6, 7, 5))
    add("short", sentences(3), "a few words in here")
    add("two", sentences(6, 7, 8, 9, 5, 4))
    add("told", sentences(7, 6, 8, 5, 9), "a text of all of it")
    add("bare", sentences(4))
    add("hum", np.full(40 * RATE, 0.3, np.float32))
    add("noise", noise.normal(size=40 * RATE) * 0.05)
    add("missing", None)
    (folder / "torn.flac").write_bytes((folder / "one.flac").read_bytes()[:200000])
    lines.append(json.dumps({"id": "torn", "path": "torn.flac", "seconds": 55, "split": "train"}))
    (folder / "torn short.flac").write_bytes((folder / "short.flac").read_bytes()[:20000])
    lines.append(json.dumps({"id": "torn short", "path": "torn short.flac", "seconds": 3, "split": "train"}))
    add("dev", sentences(3), "a few words in here", split="dev")
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def build(corpus, out, codec=None, listener=None, detector=None, like=None, **config):
    config = {"shard_hours": 50 / 3600, **config}
    return build_pack(
        [corpus],
        codec or FakeCodec(),
        out,
        config=PrepareConfig(**config),
        inventory=INVENTORY,
        phonemize=lambda text, lang: list(text),
        recogniser=listener,
        detector=detector,
        like=like,
    )


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "transcripts.jsonl"}


def test_pieces_are_utterances_of_their_own(corpus, tmp_path):
    listener = Listener()
    info = build(corpus, tmp_path / "pack", listener=listener, detector=EnergyDetector())
    assert info.rejected["train"] == {
        "longer than 30 s": 1,  # told
        "silent audio": 1,  # hum: a constant
        "no such file": 1,
        "less audio than its header promises": 2,
        "no speech": 1,
    }
    train = Pack(tmp_path / "pack").split("train")
    pieces = pieces_in(train.ids)
    assert set(pieces) == {"one", "two"}
    assert [id for id in train.ids if "#" not in id] == ["short", "bare"]
    assert all(re.fullmatch(r"(one|two)#\d{8}-\d{8}", id) for id in train.ids if "#" in id)
    for name, spans in pieces.items():
        assert len(spans) >= 3
        assert all(5 <= end - start <= 20 for start, end in spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        # What is encoded is that part of the recording, made ready as any other.
        start, end = spans[1]
        i = train.ids.index(f"{name}#{round(1000 * start):08d}-{round(1000 * end):08d}")
        utterance = next(u for u in read_manifest(corpus) if u.id == name)
        wav = load_wav(piece_of(utterance, start, end), 24000)
        whole = load(utterance.path, 24000).waveform[:, round(start * 24000) : round(end * 24000)]
        assert abs(wav.shape[1] - whole.shape[1]) <= 2
        assert (wav[:, 2000:-2000] - whole[:, 2000 : wav.shape[1] - 2000]).abs().max() < 2e-3
        wav = normalise_loudness(trim_silence(wav, 24000), 24000)
        assert torch.equal(train.codes(i), FakeCodec().encode(wav.unsqueeze(0))[0])
        assert INVENTORY.decode(train.phonemes(i).tolist()) == list(TEXT)
        assert info.speakers[train.speakers[i]] == "reader"
    assert len(listener.heard) == sum(map(len, pieces.values())) + 1  # and "bare"
    assert max(listener.heard) <= 20


def test_a_stopped_run_goes_on_and_listens_to_nothing_twice(corpus, tmp_path):
    class Stopped(FakeCodec):
        def encode(self, wav):
            if self.encoded == 7:
                raise KeyboardInterrupt
            return super().encode(wav)

    listener, detector = Listener(), Detector()
    build(corpus, tmp_path / "whole", listener=listener, detector=detector)
    n_heard, n_cut = len(listener.heard), detector.recordings
    listener, detector, out = Listener(), Detector(), tmp_path / "pack"
    with pytest.raises(KeyboardInterrupt):
        build(corpus, out, Stopped(), listener, detector)
    assert 0 < len(list(out.glob("*.safetensors"))) < len(list((tmp_path / "whole").glob("*.safetensors")))
    build(corpus, out, FakeCodec(), listener, detector)
    assert contents(out) == contents(tmp_path / "whole")
    assert (len(listener.heard), detector.recordings) == (n_heard, n_cut)
    codec = FakeCodec()
    build(corpus, out, codec, listener, detector)
    assert (codec.encoded, len(listener.heard), detector.recordings) == (0, n_heard, n_cut)


def test_workers_that_share_the_shards_make_the_same(corpus, tmp_path, monkeypatch):
    """As those of Ray do (``test_engine``): shards in any order, a part of the transcripts each."""
    build(corpus, tmp_path / "one", listener=Listener(), detector=EnergyDetector())
    sent = {}

    def make_shards(recipe, shards, progress, **_):
        sent.update(recipe=recipe, shards=[shard.to_json() for shard in shards])
        raise KeyboardInterrupt

    monkeypatch.setattr("valle.data.prepare.make_shards", make_shards)
    with pytest.raises(KeyboardInterrupt):
        build(corpus, tmp_path / "two", listener=Listener(), detector=EnergyDetector())
    monkeypatch.undo()
    workers = [Worker(dataclasses.replace(sent["recipe"]), alone=False) for _ in range(2)]
    for i, text in enumerate(reversed(sent["shards"])):
        workers[i % 2].make(Shard.from_json(text))
    for worker in workers:
        worker.close()
    listener, detector = Listener(), Detector()
    build(corpus, tmp_path / "two", listener=listener, detector=detector)  # all is there
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert (listener.heard, detector.recordings) == ([], 0)


def test_which_recordings_are_cut(corpus, tmp_path):
    listener = Listener()
    info = build(corpus, tmp_path / "none", listener=listener, segment="none")
    assert info.rejected["train"]["longer than 30 s"] == 4
    reasons = [json.loads(line) for line in (tmp_path / "none" / "rejected.jsonl").read_text().splitlines()]
    assert "--segment all" in next(r["detail"] for r in reasons if r["id"] == "told")
    info = build(corpus, tmp_path / "deaf")
    assert info.rejected["train"]["no text"] == 8
    build(corpus, tmp_path / "all", listener=listener, detector=EnergyDetector(), segment="all")
    assert set(pieces_in(Pack(tmp_path / "all").split("train").ids)) == {"one", "two", "told"}
    with pytest.raises(ValleError, match="--segment all has the pieces"):
        main([str(corpus), "--codec", "x", "--out", str(tmp_path / "x"), "--segment", "all"])


def test_pieces_fit_a_smaller_limit(corpus, tmp_path):
    build(corpus, tmp_path / "pack", listener=Listener(), detector=EnergyDetector(), max_seconds=8.0)
    spans = [span for spans in pieces_in(Pack(tmp_path / "pack").split("train").ids).values() for span in spans]
    assert len(spans) > 8
    assert all(end - start <= 8.0 for start, end in spans)


def test_a_piece_with_hardly_any_speech_is_left_out(corpus, tmp_path):
    listener = Listener()
    quality = QualityConfig(min_snr_db=None, min_bandwidth_hz=None, max_clipped=None, min_speech_share=0.96)
    info = build(corpus, tmp_path / "pack", listener=listener, detector=EnergyDetector(), quality=quality)
    n_left_out = info.rejected["train"]["too little speech"]
    assert n_left_out > 0
    plain = Listener()
    build(corpus, tmp_path / "plain", listener=plain, detector=EnergyDetector())
    assert len(listener.heard) == len(plain.heard) - n_left_out


def test_a_pack_like_another_has_its_pieces_without_any_listening(corpus, tmp_path):
    class OtherCodec(FakeCodec):
        def fingerprint(self):
            return "other"

    build(corpus, tmp_path / "first", listener=Listener(), detector=EnergyDetector(), shard_hours=1)
    build(corpus, tmp_path / "again", OtherCodec(), like=Pack(tmp_path / "first"), shard_hours=1)
    first, again = (Pack(tmp_path / name).split("train") for name in ("first", "again"))
    assert first.ids == again.ids
    for i in range(len(first)):
        assert torch.equal(first.codes(i), again.codes(i))
        assert torch.equal(first.phonemes(i), again.phonemes(i))


def test_names_of_pieces_tell_where_they_are():
    book = Utterance("a#b", "x.wav", 36000.0, "train", text="all of it", speaker="s")
    piece = piece_of(book, 35999.0321, 36000.0)
    assert (piece.id, piece.text, piece.speaker) == ("a#b#35999032-36000000", None, "s")
    assert (piece.start_s, piece.end_s, piece.seconds) == (35999.032, 36000.0, 0.968)
    later = dataclasses.replace(book, id="a")
    ids = [piece_of(later, 200000.5, 200001).id, piece.id, piece_of(later, 3, 4).id, "a#1-2", "plain", f"{piece.id}~1"]
    assert pieces_in(ids) == {"a": [(3.0, 4.0), (200000.5, 200001.0)], "a#b": [(35999.032, 36000.0)]}


def test_an_id_like_a_piece_s_is_refused_where_recordings_are_cut(corpus, tmp_path):
    manifest = corpus / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"short"', '"one#00000000-00010000"'))
    with pytest.raises(ValleError, match="rename it"):
        build(corpus, tmp_path / "pack", listener=Listener(), detector=EnergyDetector())
    build(corpus, tmp_path / "pack", listener=Listener(), segment="none")


def test_cuts_are_kept_by_detector_and_lengths(corpus, tmp_path):
    one = read_manifest(corpus)[0]
    cache = TranscriptCache(tmp_path / "t.jsonl")
    config, detector = PrepareConfig(), Detector()
    pieces = Cutter(detector, config).cut(one, cache)
    assert Cutter(detector, config).cut(one, TranscriptCache(tmp_path / "t.jsonl")) == pieces
    n = detector.recordings
    assert Cutter(detector, PrepareConfig(max_seconds=10.0)).cut(one, cache) != pieces
    other = Detector()
    other.name = "other"
    assert Cutter(other, config).cut(one, cache) == pieces
    assert (detector.recordings, other.recordings) == (n + 1, n)


def test_memory_does_not_grow_with_the_recording(tmp_path, monkeypatch):
    monkeypatch.setattr("valle.data.segment._BLOCK_S", 10.0)
    config, peaks = PrepareConfig(), []
    for minutes in (2, 8):
        path = tmp_path / f"{minutes}.wav"
        soundfile.write(path, np.tile(np.append(voiced(6, 8000), np.zeros(4000)), 9 * minutes), 8000)
        book = Utterance("book", path, 60.0 * minutes, "train")
        cache = TranscriptCache(tmp_path / f"{minutes}.jsonl")
        tracemalloc.start()
        pieces, refused = transcribed([book], Cutter(EnergyDetector(), config), Listener(), cache, config)
        for piece in pieces:
            load_wav(piece)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        cache.close()
        assert not refused
        assert len(pieces) >= 3 * minutes
    assert peaks[1] < 1.3 * peaks[0]


def test_a_piece_beyond_the_end_is_an_error(corpus):
    one = read_manifest(corpus)[0]
    with pytest.raises(ValleError, match="nothing at 900 s"):
        load_wav(piece_of(one, 900, 910))
