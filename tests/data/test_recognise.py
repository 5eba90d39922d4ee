"""Recognisers: one protocol before several packages, and transcripts that outlive whoever makes them."""

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from valle.data.corpus import Utterance
from valle.data.recognise import cpu_time, load_recogniser, main, measure, pick
from valle.data.transcripts import Transcript, TranscriptCache, Word, fill_texts, transcribe_all
from valle.data.vosk_process import serve
from valle.errors import ValleError

HELLO = Transcript("hello you", (Word("hello", 0.1, 0.4, 0.9), Word("you", 0.5, 0.7, 0.7)), 0.8)


class Fake:
    """Understands the same in everything."""

    name = "fake"

    def __init__(self, transcript=HELLO, stop_after=None):
        self.transcript, self.stop_after, self.heard = transcript, stop_after, []

    def transcribe(self, wav, sample_rate):
        if len(self.heard) == self.stop_after:
            raise KeyboardInterrupt
        self.heard.append((wav.shape, wav.dtype, sample_rate))
        return self.transcript


@pytest.fixture
def utterances(tmp_path):
    made = []
    for i in range(4):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, np.full(8000 + i, 0.1), 8000)
        made.append(Utterance(f"u{i}", path, 1.0, "test", text=None if i == 3 else "Hello, you!", dataset="ab"[i % 2]))
    return made


def words_of(found):
    return [None if t is None else t.text for _, t in found]


# --- the cache


def test_a_run_that_was_stopped_goes_on(utterances, tmp_path):
    cache, stopped = tmp_path / "t.jsonl", Fake(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        list(transcribe_all(utterances, stopped, cache))
    n_kept = len(cache.read_text().splitlines())
    assert 1 <= n_kept <= 2
    second, third = Fake(), Fake()
    found = list(transcribe_all(utterances, second, cache))
    assert [u.id for u, _ in found] == ["u0", "u1", "u2", "u3"]
    assert all(t == HELLO for _, t in found)
    assert len(second.heard) == 4 - n_kept
    shape, dtype, rate = second.heard[-1]
    assert (dtype, rate) == (np.float32, 16000)
    assert abs(shape[0] - 16000) < 10
    assert list(transcribe_all(utterances, third, cache, threads=2)) == found
    assert not third.heard


def test_a_torn_line_is_transcribed_again(utterances, tmp_path):
    cache = tmp_path / "t.jsonl"
    list(transcribe_all(utterances, Fake(), cache))
    cache.write_bytes(cache.read_bytes()[:-30])
    again = Fake()
    assert words_of(transcribe_all(utterances, again, cache)) == ["hello you"] * 4
    assert len(again.heard) == 1
    assert len(TranscriptCache(cache)) == 4
    list(transcribe_all(utterances, again, cache))
    assert len(again.heard) == 1
    with cache.open("ab") as file:
        file.write(b"[1]\n\xff\n{}\n")
    assert len(TranscriptCache(cache)) == 4


def test_the_newest_line_counts_and_hashes_may_collide(utterances, tmp_path, monkeypatch):
    from valle.data import transcripts

    monkeypatch.setattr(transcripts, "_hash", lambda key: 7)
    path = tmp_path / "t.jsonl"
    for text in ("old", "new"):
        cache = TranscriptCache(path)
        for u in utterances[:2]:
            cache.put("fake", u, Transcript(f"{text} {u.id}"))
            assert cache.get("fake", u) == Transcript(f"{text} {u.id}")
        assert cache.get("fake", utterances[2]) is None
        cache.close()
    cache = TranscriptCache(path)
    assert [cache.get("fake", u) for u in utterances[:3]] == [Transcript("new u0"), Transcript("new u1"), None]
    cache.close()


def test_millions_of_transcripts_fit_into_memory():
    from valle.data.speed import _bytes_of_a_transcript

    in_memory, on_disk = _bytes_of_a_transcript(500)
    assert in_memory < 32
    assert on_disk > 1000


def test_another_recording_or_recogniser_is_another_transcript(utterances, tmp_path):
    cache, fake = tmp_path / "t.jsonl", Fake()
    list(transcribe_all(utterances[:1], fake, cache))
    soundfile.write(utterances[0].path, np.full(4000, 0.1), 8000)
    list(transcribe_all(utterances[:1], fake, cache))
    other = Fake()
    other.name = "other"
    list(transcribe_all(utterances[:1], other, cache))
    assert (len(fake.heard), len(other.heard)) == (2, 1)


def test_recordings_that_cannot_be_read(utterances, tmp_path, caplog):
    utterances[1].path.write_text("no audio")
    assert words_of(transcribe_all(utterances, Fake(), None)) == ["hello you", None, "hello you", "hello you"]
    assert "u1 is left out" in caplog.text
    with pytest.raises(ValleError, match=r"the transcripts .* cannot be kept"):
        list(transcribe_all(utterances, Fake(), tmp_path / "nowhere" / "t.jsonl"))


def test_only_missing_texts_are_filled(utterances):
    fake = Fake()
    assert [u.text for u in fill_texts(utterances, fake, None)] == ["Hello, you!"] * 3 + ["hello you"]
    assert len(fake.heard) == 1
    assert list(fill_texts(utterances, fake, None, min_confidence=0.9))[3] == utterances[3]
    assert list(fill_texts(utterances, Fake(Transcript("")), None))[3] == utterances[3]


# --- measuring


def test_measures_by_data_set(utterances):
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    results, table = measure(utterances, Fake(Transcript("hello there", HELLO.words, 0.8)))
    assert results["all"]["mean"] == results["a"]["mean"] == 0.5
    assert results["all"]["errors"] == [3, 0, 0]
    assert (results["all"]["n"], results["a"]["n"], results["b"]["n"]) == (3, 2, 1)
    assert results["real_time_factor"] >= 0
    assert "| all | 3 | 6 | 50.0 | 50.0 to 50.0 | 3 | 0 | 0 | 0.80 |" in table
    with pytest.raises(ValleError, match="none of the recordings has a text"):
        measure(utterances[3:], Fake())


def test_the_command(utterances, tmp_path, monkeypatch, capsys):
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    lines = [f"{u.path.name}|Hello, you.|test" for u in utterances]
    (tmp_path / "list.csv").write_text("\n".join(["path|text|split", *lines]))
    fake = Fake()
    monkeypatch.setattr("valle.data.recognise.load_recogniser", lambda spec, threads: fake)
    args = [str(tmp_path / "list.csv"), "--recogniser", "vosk:x", "--cache", str(tmp_path / "t.jsonl")]
    out = tmp_path / "report.md"
    assert main([*args, "--max", "2", "--out", str(out)]) == 0
    assert len(fake.heard) == 2
    assert capsys.readouterr().out == out.read_text()
    assert main([*args, "--max", "2"]) == 0
    assert "all of it from the cache" in capsys.readouterr().out
    with pytest.raises(ValleError, match="no recording with a text in the split 'dev'"):
        main([*args, "--split", "dev"])
    assert pick(utterances, 2) == pick(utterances[::-1], 2)


# --- the packages


class FakeVosk:
    """What Vosk's bindings do: a pause after the first piece, the rest at the end."""

    def __init__(self, broken=False):
        self.broken, self.pieces, fake = broken, [], self

        class KaldiRecognizer:
            def __init__(self, model, rate):
                assert rate == 16000.0

            def SetWords(self, yes):
                assert yes

            def AcceptWaveform(self, data):
                fake.pieces.append(len(data) // 2)
                return len(fake.pieces) == 1

            def Result(self):
                return json.dumps(
                    {"text": "hello", "result": [{"word": "hello", "start": 0.1, "end": 0.4, "conf": 0.9}]}
                )

            def FinalResult(self):
                if len(fake.pieces) == 1:
                    return json.dumps({"text": ""})
                return json.dumps({"text": "you", "result": [{"word": "you", "start": 0.5, "end": 0.7, "conf": 0.7}]})

        self.KaldiRecognizer = KaldiRecognizer

    def SetLogLevel(self, level):
        pass

    def Model(self, folder):
        if self.broken:
            raise Exception("Failed to create a model")


@pytest.fixture
def vosk_folder(tmp_path):
    (tmp_path / "small" / "am").mkdir(parents=True)
    (tmp_path / "small" / "am" / "final.mdl").touch()
    return tmp_path / "small"


def test_vosk_listens_in_pieces(monkeypatch):
    vosk = FakeVosk()
    monkeypatch.setitem(sys.modules, "vosk", vosk)
    asked = [bytes(2 * n) for n in (30 * 16000, 0, 100)]
    questions = io.BytesIO(b"".join(len(samples).to_bytes(8, "little") + samples for samples in asked))
    answers = io.BytesIO()
    serve("small", questions, answers)
    first, *told = map(json.loads, answers.getvalue().splitlines())
    assert first == {"error": None}
    assert [[w["word"] for w in t["heard"]] for t in told] == [["hello", "you"], ["you"], ["you"]]
    assert vosk.pieces == [20 * 16000, 10 * 16000, 100]


VOSK = """
import json

def SetLogLevel(level): print("a library's line, which is no answer")

class Model:
    def __init__(self, folder):
        if "broken" in folder: raise Exception("Failed to create a model")

class KaldiRecognizer:
    def __init__(self, model, rate): self.samples = 0
    def SetWords(self, yes): pass
    def AcceptWaveform(self, data):
        if len(data) == 2 * 666: raise SystemExit(3)
        self.samples += len(data) // 2
    def FinalResult(self):
        return json.dumps({"result": [{"word": str(self.samples), "start": 0.1, "end": 0.4, "conf": 0.9}]})
"""


@pytest.fixture
def vosk_package(tmp_path, monkeypatch):
    """A package ``vosk`` for the processes that this one starts."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "vosk.py").write_text(VOSK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "packages"), *sys.path]))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "vosk", raising=False)


def test_vosk_listens_in_a_process_of_its_own(vosk_folder, vosk_package):
    recogniser = load_recogniser(f"vosk:{vosk_folder}")
    assert "vosk" not in sys.modules  # kaldifst may follow
    assert recogniser.name == "vosk:small"
    before = cpu_time()
    heard = recogniser.transcribe(np.zeros(30 * 8000, np.float32), 8000)
    assert heard == Transcript("480000", (Word("480000", 0.1, 0.4, 0.9),), 0.9)
    assert recogniser.transcribe(np.zeros(7, np.float32), 16000).text == "7"
    assert cpu_time() > before
    for _ in range(2):
        with pytest.raises(ValleError, match="the process of vosk:small has ended with status 3"):
            recogniser.transcribe(np.zeros(666, np.float32), 16000)
    (vosk_folder.parent / "broken").symlink_to(vosk_folder)
    with pytest.raises(ValleError, match="cannot be loaded: Failed to create a model"):
        load_recogniser(f"vosk:{vosk_folder.parent / 'broken'}")


def test_the_process_of_vosk_ends_with_its_recogniser(vosk_folder, vosk_package):
    recogniser = load_recogniser(f"vosk:{vosk_folder}")
    process = recogniser._process
    del recogniser
    assert process.returncode is not None


def test_vosk_beside_the_hybrid_recogniser(vosk_folder):
    """The packages themselves: in one process, the import of one after the other never ends."""
    for package in ("vosk", "kaldifst"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    code = "import kaldifst, sys; from valle.data.recognise import load_recogniser; load_recogniser(sys.argv[1])"
    run = [sys.executable, "-c", code, f"vosk:{vosk_folder}"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(run, env=env, capture_output=True, text=True, timeout=60)
    assert "cannot be loaded: Failed to create a model" in ended.stderr  # so it was asked


class FakeWhisper:
    """A module ``faster_whisper``."""

    options = None

    @staticmethod
    def available_models():
        return ["base", "tiny"]

    class WhisperModel:
        def __init__(self, model, **options):
            if model == "tiny":
                raise OSError("no network")

        def transcribe(self, wav, **options):
            FakeWhisper.options = options
            words = [
                SimpleNamespace(word=" Hello,", start=np.float64(0.1), end=0.4, probability=0.9),
                SimpleNamespace(word=" you", start=0.5, end=0.7, probability=0.7),
            ]
            yes, no = SimpleNamespace(text=" Hello, you", words=words), SimpleNamespace(text="", words=None)
            return iter([yes, no]), None


def test_whisper(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", FakeWhisper)
    recogniser = load_recogniser("whisper:base")
    assert recogniser.name == "whisper:base"
    heard = recogniser.transcribe(np.zeros(100, np.float32), 16000)
    assert heard == Transcript("Hello, you", (Word("Hello,", 0.1, 0.4, 0.9), Word("you", 0.5, 0.7, 0.7)), 0.8)
    json.dumps(heard.words)
    assert (FakeWhisper.options["temperature"], FakeWhisper.options["word_timestamps"]) == (0.0, True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.bin").touch()
    assert load_recogniser(f"whisper:{tmp_path / 'mine'}").name == "whisper:mine"
    with pytest.raises(ValleError, match=r"there is no huge/model\.bin, and faster-whisper knows only base, tiny"):
        load_recogniser("whisper:huge")
    with pytest.raises(ValleError, match="the Whisper model tiny cannot be loaded: no network"):
        load_recogniser("whisper:tiny")


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("base", "give vosk:FOLDER, or whisper:NAME"),
        ("vosk:", "give vosk:FOLDER, or whisper:NAME"),
        ("kaldi:x", "give vosk:FOLDER, or whisper:NAME"),
        ("valle:x", "this project, which has none yet: it can align a text that is known"),
        ("vosk:nowhere", "nowhere holds no Vosk model"),
    ],
)
def test_what_is_no_recogniser(spec, match):
    with pytest.raises(ValleError, match=match):
        load_recogniser(spec)


def test_missing_packages_are_named(vosk_folder, monkeypatch):
    for package, spec in (("vosk", f"vosk:{vosk_folder}"), ("faster_whisper", "whisper:base")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValleError, match=rf"the Python package {package}, .*pip install 'valle\[recognise\]'"):
            load_recogniser(spec)
