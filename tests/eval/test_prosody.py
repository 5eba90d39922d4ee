"""Pitch and level of waves whose pitch and level are known, and DNSMOS where its networks are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from eval_helpers import speechlike

from valle.errors import ValleError
from valle.eval import dnsmos
from valle.eval.dnsmos import Dnsmos, log_mel
from valle.eval.prosody import prosody
from valle.eval.quality import SoundQuality

has_speechmos = importlib.util.find_spec("speechmos") is not None


@pytest.mark.parametrize("hz", [70.0, 120.0, 233.0, 400.0])
def test_pitch_of_syllables(hz: float) -> None:
    told = prosody(speechlike(2.0, hz), 24000)
    assert told["f0_hz"] == pytest.approx(hz, rel=0.01)
    assert told["f0_spread"] is not None
    assert told["f0_spread"] < 0.5
    assert told["voiced"] is not None
    assert told["voiced"] > 0.7


def test_spread_of_a_glide() -> None:
    t = np.arange(2 * 16000) / 16000
    hz = 100 * 2 ** (t / 2)  # an octave up in 2 s: twelve semitones, evenly
    phase = 2 * np.pi * np.cumsum(hz) / 16000
    wav = sum(np.sin(k * phase) / k for k in range(1, 10)).astype(np.float32)
    told = prosody(0.1 * wav, 16000)
    assert told["f0_hz"] == pytest.approx(100 * 2**0.5, rel=0.02)
    assert told["f0_spread"] == pytest.approx(0.68 * 12 / 2, rel=0.05)
    assert told["level_spread"] is not None
    assert told["level_spread"] < 1


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    told = prosody(noise, 16000)
    assert told["voiced"] is not None
    assert told["voiced"] < 0.1
    for nothing in (np.zeros(16000, np.float32), np.zeros(0, np.float32), noise[:100]):
        assert set(prosody(nothing, 16000).values()) == {None}


def test_level_of_two_halves() -> None:
    wav = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    wav[16000:] *= 0.1  # 20 dB down: half of the frames 10 dB above the mean, half below
    assert prosody(wav, 16000)["level_spread"] == pytest.approx(10, abs=0.3)


def test_log_mel_of_a_tone() -> None:
    t = np.arange(16000) / 16000
    features = log_mel((0.3 * np.sin(2 * np.pi * 1000 * t)).astype(np.float32))
    assert features.shape == (100, 120)
    assert features.max() == pytest.approx(1)  # 0 dB
    assert features.min() >= -1  # 80 dB below
    # Slaney's scale: 15 of the 45.25 mel up to 8 kHz lie below 1 kHz.
    assert features[50].argmax() == pytest.approx(15 / 45.245 * 121 - 1, abs=1)


def test_missing_networks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsmos, "find_spec", lambda name: None)
    with pytest.raises(ValleError, match=r"--quality needs the networks of the package speechmos: pip install 'valle"):
        Dnsmos()


@pytest.mark.skipif(not has_speechmos, reason="speechmos is not installed")
def test_noise_is_heard(tmp_path: Path) -> None:
    quality = SoundQuality(threads=1)
    clean = speechlike(3.0)
    noisy = clean + np.random.default_rng(0).normal(0, 0.05, len(clean)).astype(np.float32)
    a, b = quality(clean, 24000), quality(noisy, 24000)
    assert set(a) >= {"dnsmos", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808", "f0_hz"}
    assert a["dnsmos_bak"] is not None
    assert b["dnsmos_bak"] is not None
    assert 1 <= b["dnsmos_bak"] < a["dnsmos_bak"] <= 5
    assert set(quality(np.zeros(24000, np.float32), 24000).values()) == {None}
    assert quality.name.startswith("DNSMOS (")
