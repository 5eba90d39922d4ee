"""Many workers make what one makes; whoever dies is replaced, what is complete stays, and progress is told."""

import builtins
import importlib.util
import io
import json
import os
import signal
import sys

import numpy as np
import pytest
import soundfile
import torch

import fakes
from fakes import INVENTORY, FakeCodec
from sounds import voiced
from valle.data import engine
from valle.data.pack import Pack
from valle.data.prepare import build_pack
from valle.data.progress import Done, Progress
from valle.data.reading import PrepareConfig
from valle.data.segment import EnergyDetector
from valle.data.transcripts import Transcript, TranscriptCache, merge_transcripts, parts_folder
from valle.errors import ValleError
from valle.text import PhonemeInventory

SHARD_HOURS = 2.5 / 3600


class DeadlyCodec(FakeCodec):
    """Dies by ``kill -9`` on recordings of a certain length; with ``once``, a file, only the first time."""

    def __init__(self, deadly_frames, once=None):
        super().__init__()
        self.deadly_frames, self.once = deadly_frames, once

    def encode(self, wav):
        if -(-wav.shape[2] // 320) == self.deadly_frames and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(wav)


class FakeRecogniser:
    """Hears how long a recording is."""

    name = "fake"

    def transcribe(self, wav, sample_rate):
        return Transcript("a few words" + " more" * (len(wav) // sample_rate), confidence=0.5)


def phonemize(text, lang):
    return list(text)


@pytest.fixture
def corpus(tmp_path):
    """Ten recordings of 1.0 to 1.9 s, every third without text, and a broken one."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for i in range(10):
        seconds = 1 + i / 10
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, int(24000 * seconds)), 24000)
        text = None if i % 3 == 0 else "some words that are said"
        split = "dev" if i == 9 else "train"
        record = {"id": f"u{i}", "path": f"{i}.wav", "seconds": seconds, "split": split, "text": text}
        lines.append(json.dumps({**record, "speaker": f"s{i % 4}"}))
    (folder / "broken.wav").write_bytes(b"RIFF but no more")
    lines.insert(3, json.dumps({"id": "b", "path": "broken.wav", "seconds": 1, "split": "train", "text": "no words"}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def build(corpus, out, codec=None, **options):
    config = PrepareConfig(shard_hours=SHARD_HOURS)
    options = {"config": config, "inventory": INVENTORY, "phonemize": phonemize, **options}
    return build_pack([corpus], codec or FakeCodec(), out, recogniser=FakeRecogniser(), **options)


def contents(out, but=()):
    """Every byte of a pack; transcripts as a set, since their order is nobody's."""
    found = {path.name: path.read_bytes() for path in out.iterdir() if path.name not in but}
    found["transcripts.jsonl"] = set(found["transcripts.jsonl"].splitlines())
    return found


@pytest.fixture(scope="module")
def two_workers():
    """Ray for all tests here: starting it takes seconds."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    engine.check_workers(2, None)  # before Ray is imported: so that it listens to this machine alone
    import ray
    import ray.data

    ours = (sys.modules[__name__], fakes)  # workers cannot import the tests
    for module in ours:
        ray.cloudpickle.register_pickle_by_value(module)
    with engine._ray(2, None):
        yield
    for module in ours:
        ray.cloudpickle.unregister_pickle_by_value(module)


def test_ray_listens_to_this_machine_alone(two_workers, monkeypatch):
    import psutil
    from ray._private import ray_constants

    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    heard = [c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert heard
    assert {ip.removeprefix("::ffff:") for ip in heard} == {"127.0.0.1"}
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)  # as it is when Ray was imported too soon
    with pytest.raises(ValleError, match="imported before"):
        engine._check_that_it_stays_here()


def test_two_workers_make_what_one_makes_and_one_that_dies_is_replaced(corpus, tmp_path, two_workers, capfd):
    one = build(corpus, tmp_path / "one")
    assert len(one.shards) > 4
    once = tmp_path / "died"
    n_frames = Pack(tmp_path / "one").split("train").n_frames
    codec = DeadlyCodec(int(n_frames[4]), once)
    assert build(corpus, tmp_path / "two", codec, workers=2) == one
    assert once.exists()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert "prepare: 0.00 of 0.00 h" in capfd.readouterr().err


def test_two_workers_cut_long_recordings_as_one_does(tmp_path, two_workers):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for i, lengths in enumerate(((7, 6, 8, 5, 9), (6, 7, 8, 9, 5, 4), (3,), (9, 8, 7, 6, 5))):
        silence = np.zeros(16000, np.float32)
        wav = np.concatenate([x for s in lengths for x in (silence, voiced(s, 16000))])
        soundfile.write(folder / f"{i}.flac", wav, 16000)
        lines.append({"id": f"u{i}", "path": f"{i}.flac", "seconds": len(wav) / 16000, "split": "train"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = {"config": PrepareConfig(shard_hours=20 / 3600), "splits": ["train"], "detector": EnergyDetector()}
    one = build(folder, tmp_path / "one", **options)
    once = tmp_path / "died"
    codec = DeadlyCodec(int(Pack(tmp_path / "one").split("train").n_frames[4]), once)
    assert build(folder, tmp_path / "two", codec, workers=2, **options) == one
    assert once.exists()
    assert sum("#" in id for id in Pack(tmp_path / "one").split("train").ids) > 6
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_one_who_always_dies_is_one_sentence_and_the_rest_is_kept(corpus, tmp_path, two_workers, monkeypatch):
    monkeypatch.setattr(engine, "TRIES", 1)  # to save time
    build(corpus, tmp_path / "one")
    pack, out = Pack(tmp_path / "one"), tmp_path / "two"
    n_frames = pack.split("train").n_frames
    with pytest.raises(ValleError, match=r"workers died .* train-0000\d.safetensors; all other shards are complete"):
        build(corpus, out, DeadlyCodec(int(n_frames[4])), workers=2)
    assert not (out / "dataset.json").exists()
    made = {path: path.stat().st_ino for path in out.glob("*.safetensors")}
    assert len(made) == len(pack.info.shards) - 1
    build(corpus, out)  # here, with what the workers left
    assert contents(tmp_path / "one") == contents(out)
    assert made.items() <= {path: path.stat().st_ino for path in out.glob("*.safetensors")}.items()


def test_what_the_user_got_wrong_comes_back_from_a_worker(corpus, tmp_path, two_workers):
    """A recogniser that only the worker finds missing."""
    with pytest.raises(ValleError, match="holds no Vosk model"):
        build_pack(
            [corpus],
            FakeCodec(),
            tmp_path / "pack",
            inventory=INVENTORY,
            phonemize=phonemize,
            splits=["train"],
            recogniser=f"vosk:{tmp_path}",
            workers=2,
        )
    with pytest.raises(ValleError, match="one GPU a worker, but this machine has 0 for 2 workers"):
        build(corpus, tmp_path / "pack", workers=2, device="cuda")


def test_a_worker_that_does_not_see_the_recordings_says_so(tmp_path, two_workers, monkeypatch):
    import ray

    monkeypatch.chdir(tmp_path)
    INVENTORY.save(tmp_path / "phonemes.json")
    recipe = ray.put(engine.Recipe(tmp_path, None, None, INVENTORY, phonemize, PrepareConfig()))
    worker = engine._RayWorker(recipe, None, 3, str(tmp_path), [tmp_path / "elsewhere.wav"])
    with pytest.raises(ValleError, match=r"does not see .*elsewhere\.wav"):
        worker._load()


def test_a_machine_with_another_detector_says_so(tmp_path):
    recipe = engine.Recipe(tmp_path, None, None, INVENTORY, phonemize, PrepareConfig(), detector="ears")
    with pytest.raises(ValleError, match=r"the others by ears; install the same packages"):
        engine._load_cutter(recipe)


def test_workers_that_cannot_be_had(corpus, tmp_path, monkeypatch):
    with pytest.raises(ValleError, match="--workers is 0"):
        build(corpus, tmp_path / "pack", workers=0)
    real = builtins.__import__

    def without_ray(name, *args, **kwargs):
        if name.partition(".")[0] == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(ValleError, match=r"--workers 2 needs .* pip install 'valle\[cluster\]'"):
        build(corpus, tmp_path / "pack", workers=2)
    with pytest.raises(ValleError, match="--ray-address auto needs"):
        build(corpus, tmp_path / "pack", ray_address="auto")
    build(corpus, tmp_path / "pack")


def test_a_shard_follows_from_its_utterances_and_not_from_threads(corpus, tmp_path):
    """One thread in each worker, and here, and afterwards as before."""
    seen = []

    class Codec(FakeCodec):
        def encode(self, wav):
            seen.append(torch.get_num_threads())
            return super().encode(wav)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        build(corpus, tmp_path / "pack", Codec())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_what_a_killed_run_leaves_is_no_pack_and_is_cleared_away(corpus, tmp_path):
    out = tmp_path / "pack"
    build(corpus, out)
    whole = contents(out)
    torn = out / ".train-00001.safetensors.0123abcd.part"
    torn.write_bytes(b"half")
    (out / "train-00002.safetensors").write_bytes((out / "train-00002.safetensors").read_bytes()[:-7])  # a bad disk

    class Stopped(FakeCodec):
        def encode(self, wav):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(corpus, out, Stopped())
    assert not torn.exists()
    build(corpus, out)
    assert contents(out) == whole
    other = PhonemeInventory("other", INVENTORY.symbols)
    with pytest.raises(KeyboardInterrupt):
        build(corpus, out, Stopped(), inventory=other)
    assert not (out / "dataset.json").exists()  # which would speak of the other phonemes


def test_transcripts_of_several_workers_are_merged_once(corpus, tmp_path):
    from valle.data.corpus import read_manifest

    utterances, path = read_manifest(corpus), tmp_path / "transcripts.jsonl"
    first = TranscriptCache(path)
    first.put("fake", utterances[0], Transcript("zero"))
    folder = parts_folder(path)
    folder.mkdir()
    for part in ("a", "b"):
        cache = TranscriptCache(folder / f"{part}.jsonl", base=first)
        assert cache.get("fake", utterances[0]) == Transcript("zero")
        assert cache.get("fake", utterances[1]) is None
        cache.put("fake", utterances[1], Transcript("one"))
        cache.close()
    with (folder / "b.jsonl").open("ab") as file:
        file.write(b'{"id": "u2", "recogn')  # killed while writing
    first.close()
    merge_transcripts(path)
    merge_transcripts(path)
    assert not folder.exists()
    assert len(path.read_text().splitlines()) == 2
    merged = TranscriptCache(path)
    assert [merged.get("fake", u) for u in utterances[:3]] == [Transcript("zero"), Transcript("one"), None]
    merged.close()


def test_progress_tells_hours_speed_rejected_and_time_left():
    now, file = [0.0], io.StringIO()
    progress = Progress(3600 * 10, file=file, clock=lambda: now[0])
    progress.note(0, Done(kept_s=3600 * 4, rejected=2))
    now[0] = 60.0
    progress.note(1, Done(3600 * 3, rejected=5))
    progress.note(2, Done(3600 * 1))
    now[0] = 61.0
    progress.note(1, Done(0.0))  # its worker died
    progress.note(2, Done(3600 * 1.5, rejected=1))
    assert file.getvalue() == "prepare: 7.00 of 10.00 h, 180.0 h/h, 7 rejected, 0:01:00 left\n"
    now[0] = 90.0
    progress.note(1, Done(3600 * 1.5))
    assert file.getvalue().splitlines()[1:] == ["prepare: 7.00 of 10.00 h, 120.0 h/h, 3 rejected, 0:01:30 left"]
    with progress:
        pass
    assert len(file.getvalue().splitlines()) == 3


def test_progress_is_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now, file = [0.0], Terminal()
    with Progress(7200, file=file, clock=lambda: now[0]) as progress:
        now[0] = 100.0  # the codec is loaded
        progress.note(0, Done())
        now[0] = 136.0
        progress.note(0, Done(3600))
    assert "50%" in file.getvalue()
    assert "1.00 of 2.00 h, 100.0 h/h, 0 rejected, 0:00:36 left" in file.getvalue()
    with Progress(0.0, file=Terminal()) as empty:  # a source that does not tell lengths
        empty.note(0, Done())
