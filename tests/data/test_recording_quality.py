"""Measures of pieces: right on sounds whose noise, clipping and bandwidth are known; thresholds refuse by name."""

import dataclasses
import math

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sounds import voiced
from valle.data import quality as q
from valle.data.quality import Quality, QualityConfig, judge, measure
from valle.errors import ValleError

GOOD = Quality(12.0, -25.0, 1e-4, 30.0, 8000.0, 13.0, 0.9, 0.9)


def speech_like(n, seed=0):
    """Amplitudes as WADA takes speech to have them: gamma of shape 0.4, either sign; [n]."""
    rng = np.random.default_rng(seed)
    return (rng.gamma(0.4, 1.0, n) * rng.choice([-1, 1], n)).astype(np.float32) * 0.02


@pytest.mark.parametrize("snr", [0, 5, 10, 15, 20, 30])
def test_the_noise_is_estimated(snr):
    wav = speech_like(400_000)
    noise = np.random.default_rng(1).normal(size=len(wav)).astype(np.float32)
    noise *= math.sqrt(np.square(wav).mean() / 10 ** (snr / 10))
    assert q.wada_snr_db(wav + noise) == pytest.approx(snr, abs=1)
    assert q.wada_snr_db((wav + noise) * 0.1 + 0.01) == pytest.approx(snr, abs=1)  # neither level nor offset matter


def test_clean_speech_and_noise_are_the_ends_of_the_scale():
    assert q.wada_snr_db(speech_like(400_000)) > 60
    assert q.wada_snr_db(np.random.default_rng(0).normal(size=400_000).astype(np.float32)) < -5
    assert q.wada_snr_db(np.zeros(5000, np.float32)) is None


@pytest.mark.parametrize("level", [0.05, 1.0])
def test_clipping_is_seen_at_any_level(level):
    wav = speech_like(48_000)
    wav /= np.abs(wav).max()
    assert q.clipped_share(wav * level) < 1e-3
    clipped = np.clip(wav, -0.2, 0.2)
    expected = (np.abs(wav) >= 0.99 * 0.2).mean()
    assert q.clipped_share(clipped * level) == pytest.approx(expected, rel=1e-3)
    assert expected > 0.005
    assert q.clipped_share(np.zeros(100, np.float32)) == 0


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_bandwidth_is_that_of_the_sound_not_of_the_file(rate):
    noise = np.random.default_rng(0).normal(size=4 * 48000).astype(np.float32) * 0.1
    wav = soxr.resample(noise, 48000, rate)
    assert q.bandwidth_hz(wav, rate) == pytest.approx(rate / 2, rel=0.05)
    narrow = soxr.resample(soxr.resample(wav, rate, 6000), 6000, rate)
    assert q.bandwidth_hz(narrow, rate) == pytest.approx(3000, rel=0.1)
    assert q.bandwidth_hz(np.zeros(rate, np.float32), rate) is None
    assert q.bandwidth_hz(wav[: rate // 10], rate) is None


def test_characters_a_second():
    assert q.chars_per_s("It's 5 o'clock!", 2.0) == 5
    assert q.chars_per_s("Привет, мир", 1.0) == 9
    assert q.chars_per_s("你好", 1.0) is None
    assert q.chars_per_s("", 1.0) == 0


def test_all_of_it_together():
    wav = torch.from_numpy(voiced(3, 16000)).unsqueeze(0)
    got = measure(wav, 16000, text="About forty characters are in this text, no?", confidence=0.8, speech_share=0.7)
    assert got.seconds == 3
    assert -30 < got.level_db < -10
    assert got.chars_per_s == pytest.approx(11.7, abs=0.1)
    assert (got.confidence, got.speech_share) == (0.8, 0.7)
    assert measure(wav, 16000).chars_per_s is None
    silent = measure(torch.zeros(1, 16000), 16000)
    assert silent.level_db == -math.inf
    assert silent.snr_db is silent.bandwidth_hz is None
    assert judge(silent) == q.QUIET


BAD = {
    q.QUIET: {"level_db": -60.0},
    q.CLIPPED: {"clipped": 0.02},
    q.NOISY: {"snr_db": 3.0},
    q.NARROW: {"bandwidth_hz": 2000.0},
    q.LITTLE_SPEECH: {"speech_share": 0.1},
    q.UNSURE: {"confidence": 0.1},
    q.TOO_SLOW: {"chars_per_s": 1.0},
    q.TOO_FAST: {"chars_per_s": 40.0},
}


def test_each_threshold_has_its_reason():
    config = QualityConfig(min_confidence=0.5)
    assert judge(GOOD, config) is None
    assert tuple(BAD) == q.REASONS
    off = QualityConfig(**{f.name: None for f in dataclasses.fields(QualityConfig)})
    for reason, change in BAD.items():
        bad = dataclasses.replace(GOOD, **change)
        assert judge(bad, config) == reason
        assert judge(bad, off) is None
    everything = {name: value for change in reversed(BAD.values()) for name, value in change.items()}
    assert judge(dataclasses.replace(GOOD, **everything), config) == q.QUIET  # the first counts
    unknown = dict.fromkeys(("snr_db", "bandwidth_hz", "chars_per_s", "confidence", "speech_share"))
    assert judge(dataclasses.replace(GOOD, **unknown), config) is None
    with pytest.raises(ValleError, match="leave nothing"):
        QualityConfig(min_chars_per_s=30)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 4000),
    rate=st.sampled_from([8000, 16000, 44100]),
    scale=st.sampled_from([0.0, 1e-30, 1e-4, 0.3, 1.0]),
    seed=st.integers(0, 100),
)
def test_any_sound_can_be_measured(n, rate, scale, seed):
    wav = np.random.default_rng(seed).normal(size=n).clip(-1, 1).astype(np.float32) * np.float32(scale)
    got = measure(torch.from_numpy(wav).unsqueeze(0), rate, text="a")
    assert judge(got) in (None, *q.REASONS)
    assert not any(isinstance(x, float) and math.isnan(x) for x in dataclasses.astuple(got))
