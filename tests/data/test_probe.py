"""Damaged recordings of every kind: each is refused with its reason, none is fatal, none passes."""

import os
import struct
from collections import Counter

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sounds import voiced
from valle.data import probe as p
from valle.data.probe import BadAudio, Probe, probe, try_probe

RATE = 16000
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def write(path, samples, kind="wav", rate=RATE, subtype=None):
    container, encoding = KINDS[kind]
    soundfile.write(path, samples, rate, format=container, subtype=subtype or encoding)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bytes of 6 s of sound in every format."""
    folder = tmp_path_factory.mktemp("whole")
    noise = np.random.default_rng(0).normal(size=6 * RATE).astype(np.float32) * 0.02  # so that nothing packs well
    return {kind: write(folder / f"a.{kind}", voiced(6, RATE) + noise, kind).read_bytes() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_of_every_format_pass(tmp_path, whole, kind):
    for name in (f"a.{kind}", "b.txt", "c.raw", "d", "e.wav"):  # the content counts, not the name
        (tmp_path / name).write_bytes(whole[kind])
        got = probe(tmp_path / name)
        assert got == Probe(pytest.approx(6, abs=0.1), RATE, 1, "/".join(KINDS[kind]))


def damaged(whole):
    """(name, content, reason) of 200 damaged files."""
    rng = np.random.default_rng(1)
    for kind, data in whole.items():
        for i, share in enumerate((0.15, 0.35, 0.5, 0.65, 0.8, 0.9)):
            # libsndfile opens no caf of which much is missing
            yield f"cut{i}.{kind}", data[: int(share * len(data))], p.NOT_AUDIO if kind == "caf" else p.TRUNCATED
        yield f"zero.{kind}", b"", p.EMPTY
        yield f"zeros.{kind}", bytes(len(data)), p.NOT_AUDIO
        for i in range(3):
            yield f"noise{i}.{kind}", b"\x07" + rng.bytes(3000), p.NOT_AUDIO
        yield f"text.{kind}", b"It is a text, not a sound.\n" * 100, p.NOT_AUDIO
    for kind in ("flac", "ogg", "opus"):
        for i in range(8):
            bad = bytearray(whole[kind])
            at = int((0.3 + 0.05 * i) * len(bad))
            bad[at : at + 40] = bytes(b ^ 0x5A for b in bad[at : at + 40])
            yield f"hole{i}.{kind}", bytes(bad), p.DAMAGED
    for i in range(8):  # headers that promise more, up to two gigabytes
        bad = bytearray(whole["wav"])
        at = bad.index(b"data") + 4
        bad[at : at + 4] = struct.pack("<I", len(bad) + 1000 * 8**i)
        yield f"promise{i}.wav", bytes(bad), p.TRUNCATED


def samples():
    """(name, samples, format, rate, encoding, reason) of files that are whole, but of no use."""
    sound = voiced(0.5, RATE)
    for i, (rate, kind) in enumerate(((1, "wav"), (100, "flac"), (7999, "wav"), (200001, "wav"), (384000, "flac"))):
        yield f"rate{i}.{kind}", sound, kind, rate, None, p.SAMPLE_RATE
    for n, kind in ((3, "wav"), (5, "wav"), (5, "flac"), (6, "ogg"), (64, "wav"), (5, "opus")):
        yield f"channels{n}.{kind}", np.stack([sound] * n, 1), kind, RATE, None, p.CHANNELS
    for i, value in enumerate((np.nan, np.inf, -np.inf)):
        for at in (0, 4000, -1):
            bad = sound.copy()
            bad[at] = value
            yield f"nan{i}{at}.wav", bad, "wav", RATE, "FLOAT", p.NOT_NUMBERS
    for i, scale in enumerate((200, 32768, 1e30)):
        yield f"scale{i}.wav", sound * scale, "wav", RATE, "FLOAT", p.BEYOND_SCALE
    for kind in ("wav", "rf64", "aiff", "au"):
        yield f"none.{kind}", sound[:0], kind, RATE, None, p.NO_SAMPLES
        yield f"one.{kind}", sound[1000:1001], kind, RATE, None, p.TOO_SHORT
        yield f"some.{kind}", sound[:800], kind, RATE, None, p.TOO_SHORT
    for kind in KINDS:
        yield f"silent.{kind}", np.zeros(RATE), kind, RATE, None, p.SILENT
    yield "faint.wav", sound / 1000, "wav", RATE, None, p.SILENT
    yield "constant.wav", np.full(RATE, 0.5), "wav", RATE, None, p.SILENT
    yield "against.wav", np.stack([sound, -sound], 1), "wav", RATE, None, p.SILENT


def test_damaged_files_are_all_refused_for_their_reasons(tmp_path, whole):
    expected = {}
    for name, content, reason in damaged(whole):
        (tmp_path / name).write_bytes(content)
        expected[name] = reason
    for name, wav, kind, rate, encoding, reason in samples():
        write(tmp_path / name, wav, kind, rate, encoding)
        expected[name] = reason
    assert len(expected) >= 200
    got = {name: try_probe(tmp_path / name) for name in expected}
    assert all(isinstance(x, BadAudio) for x in got.values()), [n for n, x in got.items() if isinstance(x, Probe)]
    wrong = {name: (got[name].reason, expected[name]) for name in expected if got[name].reason != expected[name]}
    assert not wrong
    assert set(Counter(x.reason for x in got.values())) == set(p.REASONS) - {p.MISSING, p.NOT_A_FILE, p.NO_ACCESS}


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for name, reason in {
        "nothing.wav": p.MISSING,
        "nothing/a.wav": p.MISSING,
        "link.wav": p.MISSING,
        ".": p.NOT_A_FILE,
        "pipe.wav": p.NOT_A_FILE,
        "/dev/zero": p.NOT_A_FILE,
        "loop.wav": p.NO_ACCESS,
        "a\0b.wav": p.NO_ACCESS,
        "a" * 300: p.NO_ACCESS,
    }.items():
        with pytest.raises(BadAudio) as error:
            probe(tmp_path / name)
        assert error.value.reason == reason, name
        assert str(error.value)


def test_what_is_odd_but_whole_passes(tmp_path, whole):
    data = bytearray(whole["wav"])
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff" * 4  # written to a pipe
    (tmp_path / "pipe.wav").write_bytes(data)
    (tmp_path / "tail.ogg").write_bytes(whole["ogg"] + b"TAG" + bytes(125))
    (tmp_path / "tail.wav").write_bytes(whole["wav"] + b"TAG" + bytes(125))
    for path in tmp_path.iterdir():
        assert probe(path).seconds == pytest.approx(6, abs=0.1)
    assert probe(write(tmp_path / "two.wav", np.stack([voiced(1), voiced(1) * 0], 1))).channels == 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(list(KINDS)), edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=60))))
def test_no_content_is_fatal(tmp_path, whole, kind, edits):
    data = bytearray(whole[kind])
    for at, content in edits:
        at %= len(data) + 1
        at = at if at % 2 else at % 200  # half of them in the header
        data[at : at + len(content)] = content
    (tmp_path / "x").write_bytes(data)
    got = try_probe(tmp_path / "x")
    assert isinstance(got, Probe) or got.reason in p.REASONS
