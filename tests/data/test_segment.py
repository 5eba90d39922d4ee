"""Pieces of long recordings: their lengths, that cuts lie in pauses, and that memory does not grow with the file."""

import itertools
import logging
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from sounds import voiced
from valle.data.segment import (
    FRAME,
    FRAME_S,
    Activity,
    EnergyDetector,
    Segment,
    SegmentConfig,
    SileroDetector,
    cut,
    detect,
    load_detector,
    read_segment,
    segment,
)
from valle.errors import ValleError


def heard(*parts):
    """Activity of (seconds, is speech) in a row; speech is louder in its middle than at its ends."""
    probability, level = [], []
    for seconds, is_speech in parts:
        n = round(seconds / FRAME_S)
        probability += [0.95 if is_speech else 0.02] * n
        level += list(-20 - 5 * np.abs(np.linspace(-1, 1, n))) if is_speech else [-70.0] * n
    return Activity(np.array(probability, np.float32), np.array(level, np.float32))


def sentences(*seconds, pause=0.5):
    return [part for s in seconds for part in ((s, True), (pause, False))]


def test_what_is_short_enough_stays_whole():
    assert cut(heard((3, False), (12, True), (3, False))) == [Segment(2.816, 15.2, pytest.approx(0.968, abs=0.002))]
    assert cut(heard((30, False))) == cut(heard()) == []
    assert cut(heard((3, False), (0.2, True), (3, False), (0.6, True), (9, False))) == []  # noise, and hardly a word
    assert len(cut(heard((0.2, False), (1.2, True), (0.1, False)))) == 1


def test_cuts_lie_in_the_pauses_nearest_to_the_target():
    pieces = cut(heard(*sentences(6, 6, 6, 6, 6, 6, 6)))  # 45 s
    assert [round(p.start_s, 1) for p in pieces] == [0.0, 12.9, 32.4]
    assert all(p.whole and 12 < p.seconds < 20 for p in pieces)
    for a, b in itertools.pairwise(pieces):
        assert 0 <= b.start_s - a.end_s <= 0.2  # what the padding leaves of a pause is dropped


def test_long_pauses_separate():
    pieces = cut(heard((5, True), (4, False), (5, True), (1, False), (6, True)))
    assert [(round(p.start_s, 1), round(p.end_s, 1)) for p in pieces] == [(0.0, 5.2), (8.8, 21.0)]
    assert pieces[0].speech_share == pytest.approx(5 / 5.2, abs=0.01)


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    activity = heard((35, True))
    activity.level_db[round(16 / FRAME_S) + np.arange(-2, 3)] = -40
    pieces = cut(activity)
    assert [p.whole for p in pieces] == [False, False]
    assert pieces[0].end_s == pieces[1].start_s == pytest.approx(16, abs=0.07)


def test_a_pause_is_better_than_the_shortest_length():
    pieces = cut(heard((9, True), (1.5, False), (10.5, True)))
    assert [round(p.seconds, 1) for p in pieces] == [9.2, 10.7]
    assert all(p.whole for p in pieces)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.05, 40), st.floats(0.05, 4)), max_size=25))
def test_pieces_keep_their_bounds_and_lose_no_speech(parts):
    config = SegmentConfig()
    activity = heard(*[x for speech, pause in parts for x in ((speech, True), (pause, False))])
    pieces = cut(activity, config)
    n = len(activity.level_db)
    taken = np.zeros(n, int)
    for p in pieces:
        assert 0 <= p.start_s < p.end_s <= n * FRAME_S + 1e-3
        assert p.seconds <= config.max_s + 1e-3
        assert 0.1 < p.speech_share <= 1
        taken[round(p.start_s / FRAME_S) : round(p.end_s / FRAME_S)] += 1
    assert taken.max(initial=0) <= 1
    edges = np.flatnonzero(np.diff(np.pad(activity.probability > 0.5, 1).astype(int))).reshape(-1, 2)
    for start, stop in edges:
        if (stop - start) * FRAME_S >= config.shortest_s:
            assert taken[start:stop].all()
    assert pieces == sorted(pieces, key=lambda p: p.start_s)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """80 s at 22050 Hz in two channels: nine sentences over faint noise; and where each begins and ends."""
    rate, wav, spans = 22050, [], []
    for i, seconds in enumerate((7, 6, 8, 5, 9, 6, 7, 8, 6)):
        pause = 3.0 if i == 4 else 0.6
        start = sum(map(len, wav)) / rate + pause
        wav += [np.zeros(round(pause * rate)), voiced(seconds, rate)]
        spans.append((start, start + seconds))
    mono = np.concatenate([*wav, np.zeros(rate)])
    mono += np.random.default_rng(0).normal(size=len(mono)) * 1e-4
    path = tmp_path_factory.mktemp("long") / "long.flac"
    soundfile.write(path, np.stack([mono, mono], 1), rate)
    return path, spans, mono


def test_a_file_is_heard_in_blocks(recording, monkeypatch):
    path, spans, mono = recording
    activity = detect(path, EnergyDetector())
    assert len(activity.level_db) == len(activity.probability) == pytest.approx(len(mono) / 22050 / FRAME_S, abs=2)
    truth = np.zeros(len(activity.probability), bool)
    for start, stop in spans:
        truth[round(start / FRAME_S) : round(stop / FRAME_S)] = True
    assert ((activity.probability > 0.5) == truth).mean() > 0.97
    # The resampler keeps its state: small blocks give the same levels.
    monkeypatch.setattr("valle.data.segment._BLOCK_S", 1.7)
    again = detect(path, EnergyDetector())
    assert np.abs(again.level_db - activity.level_db).max() < 0.01


def test_pieces_of_a_file(recording):
    path, spans, mono = recording
    pieces = segment(path, EnergyDetector())
    assert 4 <= len(pieces) <= 7
    assert all(7 <= p.seconds <= 20 and p.whole for p in pieces)
    for p in pieces:  # no cut inside a sentence
        assert not any(start + 0.1 < edge < stop - 0.1 for start, stop in spans for edge in (p.start_s, p.end_s))
    wav, rate = read_segment(path, pieces[1])
    assert rate == 22050
    start = round(pieces[1].start_s * rate)
    assert len(wav) == round(pieces[1].end_s * rate) - start
    assert np.abs(wav - mono[start : start + len(wav)]).max() < 1e-3
    wav, rate = read_segment(path, pieces[1], 24000)
    assert (rate, len(wav)) == (24000, pytest.approx(pieces[1].seconds * 24000, abs=2))


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("valle.data.segment._BLOCK_S", 10.0)
    rate, peaks = 8000, []
    for minutes in (1, 8):
        soundfile.write(tmp_path / "a.wav", np.tile(voiced(6, rate), 10 * minutes), rate)
        tracemalloc.start()
        detect(tmp_path / "a.wav", EnergyDetector())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_silero(recording):
    pytest.importorskip("onnxruntime")
    try:
        detector = SileroDetector()
    except ModuleNotFoundError:
        pytest.skip("silero-vad is not installed")
    assert load_detector().name == "silero-vad"
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(90, FRAME)).astype(np.float32) * 0.01
    whole = detector(frames)
    assert whole.shape == (90,)
    assert (whole < 0.5).mean() > 0.9  # noise, however loud, is no speech
    detector.reset()
    parts = np.concatenate([detector(frames[:1]), detector(frames[1:50]), detector(frames[50:])])
    assert np.abs(whole - parts).max() < 1e-4


def test_errors(tmp_path, caplog, monkeypatch):
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    for path in (tmp_path / "x.wav", tmp_path / "y.wav"):
        with pytest.raises(ValleError):
            segment(path, EnergyDetector())
    soundfile.write(tmp_path / "x.flac", np.random.default_rng(0).normal(size=90000) * 0.1, 16000)
    (tmp_path / "x.flac").write_bytes((tmp_path / "x.flac").read_bytes()[:90000])
    with pytest.raises(ValleError, match="damaged"):
        segment(tmp_path / "x.flac", EnergyDetector())
    with pytest.raises(ValleError, match="twice the shortest"):
        SegmentConfig(min_s=12)
    with pytest.raises(ValleError, match="threshold"):
        SegmentConfig(threshold=1.5)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert load_detector().name == "level"
    assert "pip install" in caplog.text


def test_a_wrong_network_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValleError, match="no speech detector"):
        SileroDetector(tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(ValleError, match="not a readable ONNX file"):
        SileroDetector(tmp_path / "x.onnx")
