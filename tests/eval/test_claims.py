"""The paper's claims measured on voices that keep and voices that lose what is claimed, and on rooms that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_helpers import RATE, FakeRecogniser, KnownCodec, judges, speechlike, write_corpus

from valle.audio import Audio
from valle.codec import pitch
from valle.codec.pitch import require_praat, shift_pitch
from valle.data.corpus import read_manifest
from valle.errors import ValleError
from valle.eval import report
from valle.eval.claims.diversity import contour_distance, contour_of, measure_diversity, warped_distance
from valle.eval.claims.emotion import measure_emotion
from valle.eval.claims.environment import measure_environment
from valle.eval.claims.reverberation import reverberate, reverberation_s, room_response
from valle.eval.claims.scene import Stage, Voice, n_phones, phones_per_s
from valle.eval.journal import Journal
from valle.eval.prosody import prosody
from valle.eval.trials import draw_trials, save_trials

pytest.importorskip("parselmouth")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(
        tmp_path_factory.mktemp("corpus"), {"ann": [1.6, 2.0, 1.8], "bob": [1.7, 1.9], "cat": [2.1, 1.5]}
    )


class FakeVoice:
    """Says everything by one function of text, prompt [N], seed and temperature."""

    name = "fake"

    def __init__(self, say: Any) -> None:
        self._say, self.n_said = say, 0

    def say(self, text: str, prompt: Audio, prompt_text: str, seed: int, **options: Any) -> Audio:
        self.n_said += 1
        assert prompt.sample_rate == RATE
        wav = np.asarray(self._say(prompt.waveform[0].numpy(), seed, options.get("temperature", 1.0)), np.float32)
        return Audio(torch.from_numpy(wav)[None], RATE, info={"stop": "eos", "synthetic": True})


def stage(manifest: Path, out: Path, voice: Voice, n: int = 4) -> Stage:
    trials = draw_trials(read_manifest(manifest), n, folder=manifest.parent, seed=0)
    journal = Journal(out / "j.jsonl", {})
    return Stage(voice, KnownCodec(), trials, manifest.parent, journal, out, judges(FakeRecogniser(default="a")))


# Rooms


def phrases(pitch: float, seed: int) -> np.ndarray:
    """Four phrases with half a second between them."""
    gap = np.zeros(RATE // 2)
    parts = [np.concatenate([speechlike(0.5 + 0.1 * i, pitch, seed=seed + i), gap]) for i in range(4)]
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize("t60", [0.3, 0.6, 0.9])
def test_a_known_room_is_guessed(t60: float) -> None:
    rng = np.random.default_rng(0)
    bursts = np.concatenate([np.concatenate([rng.normal(0, 0.1, RATE // 4), np.zeros(RATE)]) for _ in range(4)])
    waves = [bursts.astype(np.float32), *(phrases(100 + 20 * i, 10 * i) for i in range(6))]
    guesses = [reverberation_s(reverberate(wav, room_response(t60, RATE, i)), RATE) for i, wav in enumerate(waves)]
    assert guesses[0] == pytest.approx(t60, rel=0.1)
    assert np.mean(np.asarray(guesses[1:], float)) == pytest.approx(t60, rel=0.25)  # long rooms are told short
    assert guesses[1:] == pytest.approx([t60] * 6, rel=0.4)


def test_no_room_and_no_sound() -> None:
    wav = speechlike(2.0)
    assert np.array_equal(reverberate(wav, room_response(0.0, RATE, 0)), wav)
    assert reverberation_s(np.zeros(RATE, np.float32), RATE) is None
    assert reverberation_s(np.zeros(0, np.float32), RATE) is None
    response = room_response(0.6, RATE, 0)
    assert response[0] == 1
    assert np.square(response[1:]).sum() == pytest.approx(1)  # as much as the direct sound
    level = [np.square(response[a : a + 2400]).mean() for a in (1200, 1200 + round(0.2 * RATE))]
    assert 10 * np.log10(level[0] / level[1]) == pytest.approx(20, abs=1)  # 60 dB in 0.6 s


def test_a_voice_that_keeps_the_room_and_one_that_does_not(manifest: Path, tmp_path: Path) -> None:
    rooms_s = (0.0, 0.3, 0.9)
    echo = FakeVoice(lambda prompt, seed, temperature: prompt)
    results, text = measure_environment(stage(manifest, tmp_path / "a", echo), rooms_s=rooms_s)
    kept = results["kept"]["what was said, against the prompt"]
    assert (kept["slope"].mean, kept["correlation"].mean) == pytest.approx((1, 1))
    assert results["kept"]["the prompt, against the room itself"]["correlation"].mean > 0.8
    dry, live = results["rooms"]["0.3 s"], results["rooms"]["0.9 s"]
    assert dry["prompt"].mean < live["prompt"].mean - 0.2
    assert live["error"].mean == pytest.approx(0.9 - live["prompt"].mean)  # each is told short
    assert results["rooms"]["none"]["error"] is None
    assert live["sim"].mean == pytest.approx(1)
    assert "| 0.9 s |" in text
    studio = FakeVoice(
        lambda prompt, seed, temperature: reverberate(phrases(120, seed % 7), room_response(0.5, RATE, 0))
    )
    results, _ = measure_environment(stage(manifest, tmp_path / "b", studio), rooms_s=rooms_s)
    assert results["kept"]["what was said, against the prompt"]["slope"].mean == pytest.approx(0, abs=0.1)
    assert results["rooms"]["0.3 s"]["spoken"] == results["rooms"]["0.9 s"]["spoken"]


def test_rooms_are_resumed(manifest: Path, tmp_path: Path) -> None:
    voice = FakeVoice(lambda prompt, seed, temperature: prompt)
    first, _ = measure_environment(stage(manifest, tmp_path, voice, 2), rooms_s=(0.0, 0.4))
    assert voice.n_said == 4
    second, _ = measure_environment(stage(manifest, tmp_path, voice, 2), rooms_s=(0.0, 0.4, 0.9))
    assert voice.n_said == 6
    assert second["rooms"]["none"] == first["rooms"]["none"]
    assert (tmp_path / "rooms.png").read_bytes().startswith(b"\x89PNG")


# Diversity


def glide(semitones: float, seconds: float = 1.2, hz: float = 120.0) -> np.ndarray:
    """A voice whose pitch rises evenly by so much."""
    t = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(hz * 2 ** (semitones / 12 * t / seconds)) / RATE
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 10))).astype(np.float32)


def test_contours_by_hand() -> None:
    up = np.asarray(contour_of(glide(6.0), RATE))
    assert up.shape == (100,)
    assert up[-1] - up[0] == pytest.approx(6, abs=0.5)
    assert contour_of(np.zeros(RATE, np.float32), RATE) is None
    n = np.arange(100.0)
    a, b = np.stack([np.sin(n / 8)] * 2), np.stack([np.sin(n / 8) + 5, np.sin((n - 4) / 8)])
    assert contour_distance(a, a) == pytest.approx([0, 0])
    apart, warped = contour_distance(a, b), warped_distance(a, b)
    assert (apart[0], warped[0]) == pytest.approx((0, 0), abs=1e-9)  # higher by an even interval is the same contour
    assert 0 < warped[1] < 0.3 * apart[1]  # a little later is nearly the same when warped
    assert warped_distance(b, a) == pytest.approx(warped)
    slopes = np.stack([n, -n])
    assert warped_distance(slopes[:1], slopes[1:])[0] > 10  # but no warping makes up down


def test_spread_of_a_voice_whose_spread_is_known(manifest: Path, tmp_path: Path) -> None:
    lengths = iter([1.0, 1.2, 1.4] * 8)

    def say(prompt: np.ndarray, seed: int, temperature: float) -> np.ndarray:
        return speechlike(1.0, 150) if temperature == 0 else glide(2.0, next(lengths), 100 + seed % 50)

    voice = FakeVoice(say)
    told = stage(manifest, tmp_path, voice)
    results, text = measure_diversity(told, read_manifest(manifest), n_seeds=3)
    rows = results["rows"]
    sampled, greedy = rows["fake, 3 seeds"], rows["fake, greedy, 2 seeds"]
    assert sampled["seconds"].mean == pytest.approx(0.2, abs=0.02)  # of 1.0, 1.2 and 1.4 s
    assert sampled["rate"].mean == pytest.approx(np.std([1 / 1.0, 1 / 1.2, 1 / 1.4], ddof=1) / 0.849, rel=0.1)
    assert sampled["pitch"].mean > 0.5
    for column in ("seconds", "rate", "pitch", "contour", "warped"):
        assert greedy[column].mean == pytest.approx(0, abs=1e-9)
    assert greedy["cosine"].mean == pytest.approx(1)
    assert sampled["cosine"].mean < 0.99
    assert "recordings, same text" not in rows
    own, others = rows["recordings of one speaker, other texts"], rows["recordings of several speakers, other texts"]
    assert own["pitch"].mean < 0.2  # the corpus has a pitch for each speaker
    assert others["pitch"].mean > 2
    assert own["cosine"].mean > others["cosine"].mean
    assert own["seconds"] is None  # other texts have other lengths
    assert "No text of these is said twice" in text
    n_said = voice.n_said
    again, _ = measure_diversity(stage(manifest, tmp_path, voice), read_manifest(manifest), n_seeds=3)
    assert voice.n_said == n_said == 4 * (3 + 2)
    assert again["rows"] == rows
    assert "![Pitch contours" in text
    assert (tmp_path / "contours.png").is_file()


def test_same_texts_are_a_reference_where_there_are_some(manifest: Path, tmp_path: Path) -> None:
    voice = FakeVoice(lambda prompt, seed, temperature: prompt)
    told = stage(manifest, tmp_path, voice, 2)
    utterances = [replace(u, text=told.trials[0].text) for u in read_manifest(manifest)]
    results, text = measure_diversity(told, utterances, n_seeds=2)
    assert results["rows"]["recordings, same text"]["seconds"].mean > 0.1
    assert "said twice" not in text


# Emotion


def test_a_voice_that_keeps_the_pitch_and_one_that_does_not(manifest: Path, tmp_path: Path) -> None:
    echo = FakeVoice(lambda prompt, seed, temperature: prompt)
    results, text = measure_emotion(stage(manifest, tmp_path / "a", echo, 6))
    said = results["correlation"]["what was said"]
    assert said["pitch"].mean == pytest.approx(1)
    assert said["level_spread"].mean == pytest.approx(1)
    moved = results["shifts"]["rows"]["what was said"]
    assert moved["kept"].mean == pytest.approx(1)
    assert moved["moved"].mean == pytest.approx(6, abs=0.5)
    assert results["shifts"]["by_shift"]["-3"]["spoken"].mean == pytest.approx(-3, abs=0.4)
    assert results["shifts"]["by_shift"]["+3"]["spoken"].mean == pytest.approx(3, abs=0.4)
    assert results["shifts"]["rows"]["codec round trip"]["kept"].mean == pytest.approx(1, abs=0.1)
    assert results["correlation"]["recording of the text"]["pitch"].mean > 0.9  # each speaker has a pitch
    assert "give --emotion the folder or hub id" in text
    flat = FakeVoice(lambda prompt, seed, temperature: speechlike(2.0, 140 + seed % 5))
    results, _ = measure_emotion(stage(manifest, tmp_path / "b", flat, 6))
    assert results["shifts"]["rows"]["what was said"]["kept"].mean == pytest.approx(0, abs=0.05)
    assert abs(results["correlation"]["what was said"]["pitch"].mean) < 0.9


class Weather:
    """Names a wave by its length."""

    def probabilities(self, wav: np.ndarray, sample_rate: int) -> dict[str, float]:
        happy = 0.8 if len(wav) < 1.75 * sample_rate else 0.3
        return {"happy": happy, "sad": 1 - happy}


def test_emotions_are_those_of_the_prompt(manifest: Path, tmp_path: Path) -> None:
    voice = FakeVoice(lambda prompt, seed, temperature: prompt)
    results, text = measure_emotion(stage(manifest, tmp_path, voice, 4), shifts=(), emotions=Weather())
    assert results["emotions"]["what was said"]["same"].mean == 1
    assert results["emotions"]["what was said"]["probability"].mean >= 0.7
    assert "give --emotion" not in text
    assert results["shifts"]["rows"] == {}


def test_refused_is_told(manifest: Path, tmp_path: Path) -> None:
    def refuse(prompt: np.ndarray, seed: int, temperature: float) -> np.ndarray:
        raise ValleError("I will not say that")

    results, text = measure_emotion(stage(manifest, tmp_path, FakeVoice(refuse), 2))
    assert results["refused"] == 6
    assert "6 of 6 were refused" in text
    assert results["correlation"]["what was said"]["pitch"] is None


@pytest.mark.parametrize("semitones", [-3.0, 3.0])
def test_pitch_is_shifted_and_length_kept(semitones: float) -> None:
    wav = speechlike(2.0, 130)
    shifted = shift_pitch(wav, RATE, semitones)
    assert shifted.shape == wav.shape
    before, after = prosody(wav, RATE)["f0_hz"], prosody(shifted, RATE)["f0_hz"]
    assert before is not None
    assert after is not None
    assert 12 * np.log2(after / before) == pytest.approx(semitones, abs=0.2)


def test_missing_praat_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pitch, "find_spec", lambda name: None)
    with pytest.raises(ValleError, match=r"the pitch of the speech is needed: pip install 'valle\[eval\]'"):
        require_praat("eval")


def test_speaking_rate() -> None:
    assert n_phones("hello") == 5  # h ə l o ʊ
    assert n_phones("...") == 0
    wav = np.concatenate([np.zeros(RATE), glide(0.0, 1.0), np.zeros(RATE)]).astype(np.float32)
    assert phones_per_s("hello", wav, RATE) == pytest.approx(5, rel=0.05)  # silence around it does not count
    assert phones_per_s("hello", np.zeros(RATE, np.float32), RATE) is None


# The commands


@pytest.mark.parametrize(
    ("claim", "extra", "plot"),
    [
        ("diversity", ["--seeds", "2"], "contours.png"),
        ("environment", ["--rooms", "0,0.5"], "rooms.png"),
        ("emotion", ["--shifts=-2,2"], "prosody.png"),
    ],
)
def test_commands_with_a_random_model(
    manifest: Path, tiny_model_dir: Path, tmp_path: Path, claim: str, extra: list[str], plot: str
) -> None:
    argv = ["claims", claim, "--model", str(tiny_model_dir), "--manifest", str(manifest), "--n", "2", "--listen", "1"]
    argv += ["--out", str(tmp_path), "--device", "cpu", *extra]
    argv += [] if claim == "emotion" else ["--whisper", "none", "--speaker", "none"]
    assert report.main(argv) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["kind"], results["claim"], results["n_trials"]) == ("claims", claim, 2)
    text = (tmp_path / "report.md").read_text()
    assert plot in text
    assert (tmp_path / plot).is_file()
    assert str(manifest.parent.parent) not in text
    assert list((tmp_path / "wavs").glob("*-prompt.flac"))
    lines = (tmp_path / "utterances.jsonl").read_text()
    assert report.main(argv) == 0
    assert (tmp_path / "utterances.jsonl").read_text() == lines


def test_lists_that_continue_recordings_are_refused(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    trials = draw_trials(read_manifest(manifest), 1, folder=manifest.parent)
    save_trials(tmp_path / "list.jsonl", [replace(trials[0], prompt=trials[0].target)])
    argv = ["--model", str(tiny_model_dir), "--manifest", str(manifest), "--trials", str(tmp_path / "list.jsonl")]
    with pytest.raises(ValleError, match="the prompt must be another utterance of the speaker"):
        report.main(["claims", "emotion", *argv, "--device", "cpu", "--out", str(tmp_path / "out")])
