"""The recogniser as a listener: its front end against Kaldi's, and what its loss sees."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from valle.asr.hybrid.features import fbank
from valle.asr.hybrid.network import Network, NetworkConfig
from valle.codec.perceptual import KaldiMel, RecogniserLoss
from valle.codec.train_config import CodecTrainConfig, DataConfig, LossConfig
from valle.errors import ValleError


def chirp(sample_rate: int, seconds: float = 0.8) -> Tensor:
    """Harmonics that glide, up to 6 kHz: the same sound at any rate, [1, 1, N]."""
    t = torch.arange(round(sample_rate * seconds), dtype=torch.float64) / sample_rate
    hz = 120 + 60 * t
    phase = 2 * math.pi * (120 * t + 30 * t.square())
    wav = sum(torch.sin(k * phase) / k * (k * hz < 6000) for k in range(1, 50))
    assert isinstance(wav, Tensor)
    return (0.1 * wav).float()[None, None]


@pytest.fixture
def loss() -> RecogniserLoss:
    torch.manual_seed(0)
    return RecogniserLoss(Network(NetworkConfig(width=24, middle=8, dilations=(1, 2)), 20), 24000)


@pytest.mark.parametrize("sample_rate", [16000, 24000, 48000])
def test_front_end_is_kaldis_at_any_rate(sample_rate: int) -> None:
    pytest.importorskip("kaldi_native_fbank")
    theirs = fbank(chirp(16000)[0, 0].numpy())
    ours = KaldiMel(sample_rate)(chirp(sample_rate))[0]
    assert ours.shape == theirs.shape
    ours = ours - ours.mean(0)
    difference = (ours - theirs)[3:-3, 3:65].abs()  # but for padded ends, offsets, and nothing above 6 kHz
    assert float(difference.mean()) < 0.05
    assert float(difference.quantile(0.99)) < 0.3


def test_front_end_refuses_a_rate_it_cannot_hear_at() -> None:
    with pytest.raises(ValleError, match="22050"):
        KaldiMel(22050)


def test_nothing_lost_is_no_loss_and_more_noise_is_more(loss: RecogniserLoss) -> None:
    wav = chirp(24000)
    noise = torch.randn(wav.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = [float(loss(wav + level * noise, wav)) for level in (0.0, 0.001, 0.01, 0.1)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    assert values[3] > 1.5 * values[1]


def test_gradient_reaches_the_wave_and_nothing_else(loss: RecogniserLoss) -> None:
    target = chirp(24000).requires_grad_()
    wav = (chirp(24000) * 0.5).detach().requires_grad_()
    torch.autograd.backward(loss(wav, target))
    assert wav.grad is not None
    assert bool(torch.isfinite(wav.grad).all())
    assert float(wav.grad.abs().sum()) > 0
    assert target.grad is None
    assert all(p.grad is None for p in loss.parameters())


def test_wave_that_is_optimised_comes_to_be_heard_as_the_target(loss: RecogniserLoss) -> None:
    target = chirp(24000, 0.3)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    wav = (target + 0.02 * noise).requires_grad_()
    before = float(loss(wav, target).detach())
    optimizer = torch.optim.Adam([wav], 1e-3)
    for _ in range(25):
        optimizer.zero_grad()
        torch.autograd.backward(loss(wav, target))
        optimizer.step()
    assert float(loss(wav, target).detach()) < 0.6 * before


def test_silence_is_finite(loss: RecogniserLoss) -> None:
    wav = torch.zeros(1, 1, 9600, requires_grad=True)
    value = loss(wav, torch.zeros(1, 1, 9600))
    torch.autograd.backward(value)
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert wav.grad is not None
    assert np.isfinite(wav.grad.numpy()).all()


def test_folder_and_weight_come_together(tmp_path: Path) -> None:
    config = CodecTrainConfig(out="x", data=DataConfig("m"))
    with pytest.raises(ValleError, match="give both"):
        replace(config, loss=LossConfig(recogniser=1.0))
    with pytest.raises(ValleError, match="give both"):
        replace(config, recogniser=str(tmp_path))
