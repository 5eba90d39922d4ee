"""The harmonic decoder's sources and filters against what they are by definition."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from valle.codec.harmonic import MAX_HZ, MIN_HZ, HarmonicDecoder, pitch_hz, pulse_train
from valle.codec.spectral import SpectralCodecConfig

SMALL = SpectralCodecConfig(decoder="harmonic", decoder_dim=24, decoder_layers=1, codebook_dim=12)


def test_a_steady_pulse_train_is_the_sum_of_its_harmonics() -> None:
    hz = 200.0
    wave, phase = pulse_train(torch.full((1, 30), hz), 160, 24000)
    t = torch.arange(1, 30 * 160 + 1, dtype=torch.float64) / 24000
    k = torch.arange(1, 61, dtype=torch.float64).unsqueeze(1)  # 60 harmonics lie up to half the sample rate
    expected = (2 * math.pi * hz * k * t).cos().sum(0) * (2 / 60) ** 0.5
    torch.testing.assert_close(wave[0].double(), expected, atol=2e-2, rtol=0)
    assert wave.square().mean() == pytest.approx(1.0, abs=0.05)
    assert float(phase) == pytest.approx(hz * 30 * 160 / 24000)


def test_a_pulse_train_goes_on_without_a_break() -> None:
    decoder = HarmonicDecoder(SMALL)
    hz = torch.linspace(90, 160, 40).unsqueeze(0)
    pulses, noise, _ = decoder.excite(hz)
    first = decoder.excite(hz[:, :13])
    second = decoder.excite(hz[:, 13:], first[2])
    torch.testing.assert_close(torch.cat([first[0], second[0]], dim=1), pulses, atol=1e-3, rtol=0)
    assert torch.equal(torch.cat([first[1], second[1]], dim=1), noise)


def test_open_filters_give_the_sources_back() -> None:
    decoder = HarmonicDecoder(SMALL)
    hz = torch.full((1, 20), 150.0)
    pulses, noise, _ = decoder.excite(hz)
    filters = torch.zeros(1, 20, 3, decoder.n_bins)
    wav = decoder.synthesise(filters, hz)
    torch.testing.assert_close(wav[:, 0, 160:-160], (pulses + noise)[:, 160:-160], atol=1e-4, rtol=1e-4)
    filters[:, :, 0] = -30.0  # pulses off
    torch.testing.assert_close(decoder.synthesise(filters, hz)[:, 0, 160:-160], noise[:, 160:-160], atol=1e-4, rtol=0)


def test_the_pitch_stays_in_its_range() -> None:
    hz = pitch_hz(torch.tensor([-1e4, 0.0, 1e4]))
    assert hz.tolist() == [MIN_HZ, pytest.approx((MIN_HZ * MAX_HZ) ** 0.5, abs=0.1), MAX_HZ]


def test_the_loss_of_the_pitch_is_in_octaves_and_of_voiced_places_only() -> None:
    decoder = HarmonicDecoder(SMALL)
    span = math.log(MAX_HZ / MIN_HZ)
    logits = torch.tensor([[math.log(200 / MIN_HZ) / span, 0.9]]).logit()
    voiced = torch.tensor([[True, False]])
    assert float(decoder.pitch_loss(logits, torch.tensor([[100.0, 100.0]]), voiced)) == pytest.approx(1.0, abs=1e-4)
    assert float(decoder.pitch_loss(logits, torch.tensor([[100.0, 100.0]]), ~voiced & False)) == 0.0


def test_an_unknown_decoder_is_refused() -> None:
    from valle.codec.spectral import SpectralCodec
    from valle.errors import ValleError

    with pytest.raises(ValleError, match="decoder"):
        SpectralCodec.from_config({**SpectralCodec(replace(SMALL, encoder_dim=8)).config_dict(), "decoder": "magic"})
