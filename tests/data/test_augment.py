"""Virtual voices: one key, one voice; each part of one does what its field says."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from valle.data.augment import EQ_HZ, VirtualVoice, scale_durations, version_name, voice_of

RATE = 24000


def noise(seconds=2.0, seed=0):
    """Steady white noise [1, N] at -20 dB."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, 0.1, round(seconds * RATE)).astype(np.float32)).unsqueeze(0)


def tone(hz, seconds=2.0):
    return 0.1 * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * RATE)) / RATE).unsqueeze(0)


def power_db(wav, low, high):
    """Mean power of wav [1, N] for each Hz between two frequencies."""
    f = torch.fft.rfftfreq(wav.shape[1], 1 / RATE)
    power = torch.fft.rfft(wav[0].double()).abs().square()
    return 10 * math.log10(float(power[(f >= low) & (f < high)].mean()) + 1e-12)


def test_a_key_is_a_voice_on_every_machine():
    assert VirtualVoice.draw("anna~1") == VirtualVoice.draw("anna~1")
    assert VirtualVoice.draw("anna~1") == VirtualVoice(
        speed=1.0,
        low_pass_hz=0.0,
        high_pass_hz=120.0,
        tilt_db=(0.57, -1.54, 0.68, -1.7, 7.93, 0.31),
        noise_db=21.4,
        noise_slope=1.56,
        reverb_s=0.0,
        reverb_db=16.7,
        room=931540416,
    )
    assert len({VirtualVoice.draw(key, seed) for key in ("anna~1", "anna~2", "bob~1") for seed in (0, 1)}) == 6
    assert voice_of("anna", "a1", 2) == voice_of("anna", "a2", 2) == VirtualVoice.draw("anna~2")
    assert voice_of(None, "a1", 2) == VirtualVoice.draw("a1~2")
    assert [version_name("a1", v) for v in (0, 1)] == ["a1", "a1~1"]


def test_what_is_drawn():
    voices = [VirtualVoice.draw(f"s{i}~1") for i in range(2000)]

    def share(is_so):
        return sum(map(is_so, voices)) / len(voices)

    for voice in voices:
        assert voice.speed == 1 or 0.86 <= voice.speed <= 0.96 or 1.04 <= voice.speed <= 1.16
        assert voice.low_pass_hz == 0 or 3400 <= voice.low_pass_hz <= 8000
        assert voice.high_pass_hz == 0 or 50 <= voice.high_pass_hz <= 200
        assert voice.noise_db == math.inf or 15 <= voice.noise_db <= 45
        assert 0 <= voice.noise_slope <= 2
        assert voice.reverb_s == 0 or 0.1 <= voice.reverb_s <= 0.5
        assert 5 <= voice.reverb_db <= 20
    assert share(lambda v: v.speed == 1) == pytest.approx(0.2, abs=0.04)
    assert share(lambda v: v.speed > 1) == pytest.approx(0.4, abs=0.04)
    assert share(lambda v: v.low_pass_hz == 0) == pytest.approx(0.5, abs=0.04)
    assert share(lambda v: v.low_pass_hz >= 7000) == pytest.approx(0.4, abs=0.04)
    assert share(lambda v: v.noise_db == math.inf) == pytest.approx(0.5, abs=0.04)
    assert share(lambda v: v.reverb_s == 0) == pytest.approx(0.6, abs=0.04)
    assert np.std([v.tilt_db for v in voices]) == pytest.approx(3, abs=0.2)


def test_an_utterance_is_the_same_again_and_only_its_noise_is_its_own():
    voice = VirtualVoice(noise_db=20, reverb_s=0.3, reverb_db=8, room=5)
    wav = noise()
    assert torch.equal(voice.apply(wav, RATE, "a"), voice.apply(wav, RATE, "a"))
    assert not torch.equal(voice.apply(wav, RATE, "a"), voice.apply(wav, RATE, "b"))
    still = dataclasses.replace(voice, noise_db=math.inf)
    assert torch.equal(still.apply(wav, RATE, "a"), still.apply(wav, RATE, "b"))
    elsewhere = dataclasses.replace(still, room=6)
    assert not torch.equal(still.apply(wav, RATE, "a"), elsewhere.apply(wav, RATE, "a"))


def test_a_voice_without_anything_changes_nothing():
    wav = noise()
    before = wav.clone()
    assert torch.allclose(VirtualVoice().apply(wav, RATE, "a"), wav, atol=1e-6)
    assert torch.equal(wav, before)


@pytest.mark.parametrize("speed", [0.86, 0.9573, 1.0, 1.0411, 1.16])
def test_speed_scales_length_and_pitch(speed):
    for n in (1, 12345, 48000):
        assert VirtualVoice(speed=speed).apply(tone(1000)[:, :n], RATE, "a").shape == (1, round(n / speed))
    out = VirtualVoice(speed=speed).apply(tone(1000), RATE, "a")
    loudest = torch.fft.rfft(out[0]).abs().argmax() * RATE / out.shape[1]
    assert float(loudest) == pytest.approx(1000 * speed, abs=1)
    assert float(out.square().mean()) == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize("noise_db", [math.inf, 15])
def test_nothing_is_left_above_a_low_pass(noise_db):
    out = VirtualVoice(low_pass_hz=7000, noise_db=noise_db).apply(noise(), RATE, "a")
    assert power_db(out, 7050, 12000) < power_db(out, 1000, 6400) - 60
    assert power_db(out, 5000, 6400) == pytest.approx(power_db(out, 1000, 3000), abs=0.5)


def test_a_high_pass_takes_the_lows():
    out = VirtualVoice(high_pass_hz=200).apply(noise(10), RATE, "a")
    assert power_db(out, 45, 55) < power_db(out, 1000, 3000) - 20
    assert power_db(out, 195, 205) == pytest.approx(power_db(out, 1000, 3000) - 3, abs=1.5)


def test_the_equaliser_has_its_gains_and_is_smooth_between():
    tilt = (-6.0, 3.0, 0.0, 4.0, -4.0, 2.0)
    gains = 20 * VirtualVoice(tilt_db=tilt)._channel(torch.arange(12001.0).double()).log10()
    assert torch.allclose(gains[[int(hz) for hz in EQ_HZ]], torch.tensor(tilt), atol=1e-4)
    assert float(gains[:50].min()) == float(gains[:50].max()) == pytest.approx(-6)
    assert gains[100:].diff().abs().max() < 0.15  # dB a Hz


@pytest.mark.parametrize("noise_db", [15, 30, 45])
@pytest.mark.parametrize("slope", [0, 2])
def test_noise_is_as_far_below_the_speech_as_asked(noise_db, slope):
    speech = tone(1000)
    voice = VirtualVoice(noise_db=noise_db, noise_slope=slope, high_pass_hz=100, low_pass_hz=7500)
    out = voice.apply(speech, RATE, "a")
    clean = dataclasses.replace(voice, noise_db=math.inf).apply(speech, RATE, "a")
    gain = (out * clean).sum() / clean.square().sum()
    rest = out - gain * clean
    assert 10 * torch.log10((gain * clean).square().mean() / rest.square().mean()) == pytest.approx(noise_db, abs=1)
    tilt = power_db(rest, 300, 600) - power_db(rest, 1200, 2400)
    assert tilt == pytest.approx(3 * slope * 2, abs=1.5)  # two octaves


def test_a_room_rings_after_the_sound_and_does_not_delay_it():
    n = round(0.2 * RATE)
    wav = torch.zeros(1, RATE)
    wav[0, n] = 0.1
    voice = VirtualVoice(reverb_s=0.4, reverb_db=8, room=3)
    out = voice.apply(wav, RATE, "a")[0]
    assert out[:n].abs().max() < 1e-5
    assert out.abs().argmax() == n
    tail = out[n + 1 :].square()
    assert 10 * torch.log10(out[n].square() / tail.sum()) == pytest.approx(8, abs=0.1)
    early, late = tail[:2400].mean(), tail[4800:7200].mean()  # 0.2 s apart: half of the 60 dB
    assert 10 * torch.log10(early / late) == pytest.approx(30, abs=1.5)
    assert tail[round(0.4 * RATE) + 1 :].max() < 1e-10


def test_any_voice_gives_finite_samples_that_are_not_clipped_at_the_power_given():
    wav = noise(0.7)
    loud = wav / wav.abs().max()
    for i in range(60):
        voice = VirtualVoice.draw(f"s{i}")
        out = voice.apply(wav, RATE, "a")
        assert out.dtype == torch.float32
        assert out.isfinite().all()
        assert out.shape == (1, round(wav.shape[1] / voice.speed))
        power = float(out.square().mean() / wav.square().mean())
        assert power == pytest.approx(1, abs=1e-3)
        assert voice.apply(loud, RATE, "a").abs().max() <= 0.9901
        assert voice.apply(torch.zeros(1, 5000), RATE, "a").abs().max() == 0
        assert voice.apply(wav[:, :1], RATE, "a").isfinite().all()


def test_scaled_durations_sum_and_keep_what_sounds():
    durations = torch.tensor([3, 0, 5, 1, 0, 11])
    assert scale_durations(durations, 20).tolist() == durations.tolist()
    assert scale_durations(durations, 40).tolist() == [6, 0, 10, 2, 0, 22]
    assert scale_durations(durations, 17).tolist() == [3, 0, 4, 1, 0, 9]
    rng = np.random.default_rng(0)
    for _ in range(300):
        durations = torch.from_numpy(rng.poisson(rng.uniform(0.5, 4), 30)) * torch.from_numpy(rng.integers(0, 2, 30))
        durations[rng.integers(30)] += 5
        total, n = int(durations.sum()), int((durations > 0).sum())
        n_frames = max(n, round(total / rng.uniform(0.86, 1.16)))
        scaled = scale_durations(durations, n_frames)
        assert scaled.sum() == n_frames
        assert torch.equal(scaled > 0, durations > 0)
        if n_frames >= total:
            assert (scaled.cumsum(0) - durations.cumsum(0) * n_frames / total).abs().max() <= 1
    assert scale_durations(torch.tensor([1, 1, 1, 1]), 2).sum() == 2  # too few frames for all
    assert scale_durations(torch.tensor([0, 0]), 3).tolist() == [0, 0]
