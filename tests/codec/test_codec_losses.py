"""Losses, discriminators and balancer against answers known beforehand."""

from __future__ import annotations

import pytest
import torch

from valle.codec.balancer import Balancer
from valle.codec.discriminator import MultiScaleSTFTDiscriminator
from valle.codec.losses import (
    MultiScaleMelLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)


@pytest.fixture(scope="module")
def mel_loss() -> MultiScaleMelLoss:
    return MultiScaleMelLoss()


def test_mel_distance_is_zero_only_for_equal_waves(mel_loss: MultiScaleMelLoss) -> None:
    wav = torch.randn(2, 1, 4800) * 0.1
    assert mel_loss(wav, wav) == 0
    assert mel_loss(wav, -wav) < 1e-5  # a change of sign is inaudible
    assert mel_loss(wav, wav + 0.01 * torch.randn_like(wav)) < mel_loss(wav, wav + 0.05 * torch.randn_like(wav))


def test_mel_distance_of_a_gain_is_the_gain(mel_loss: MultiScaleMelLoss) -> None:
    """Noise ten decibels louder lies ln(10) / 2 nepers away at every scale."""
    wav = torch.randn(1, 1, 24000) * 0.05
    expected = torch.log(torch.tensor(10.0)) / 2
    torch.testing.assert_close(mel_loss(wav * 10**0.5, wav), expected, atol=0.02, rtol=0)


def test_mel_gradient_is_finite_at_silence(mel_loss: MultiScaleMelLoss) -> None:
    wav = torch.zeros(1, 1, 2400, requires_grad=True)
    mel_loss(wav, torch.randn(1, 1, 2400)).backward()
    assert wav.grad is not None
    assert torch.isfinite(wav.grad).all()


def test_hinge_losses() -> None:
    sure, fooled = [torch.full((1, 1, 3, 3), 2.0)], [torch.full((1, 1, 3, 3), -2.0)]
    assert generator_loss(sure) == 0
    assert generator_loss(fooled) == 3
    assert discriminator_loss(fake=fooled, real=sure) == 0
    assert discriminator_loss(fake=sure, real=fooled) == 6


def test_discriminators_learn_to_tell_tone_from_noise() -> None:
    torch.manual_seed(0)
    discriminator = MultiScaleSTFTDiscriminator((128, 64), channels=4)
    tone = torch.sin(torch.arange(1200) * 0.2).view(1, 1, -1) * 0.3
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    for _ in range(40):
        noise = torch.randn(1, 1, 1200) * 0.2
        loss = discriminator_loss([j.logits for j in discriminator(noise)], [j.logits for j in discriminator(tone)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.0  # 2 is chance


def test_feature_matching_sends_no_gradient_to_the_real_side() -> None:
    fake, real = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    feature_matching_loss([[fake]], [[real]]).backward()
    assert fake.grad is not None
    assert real.grad is None


def test_balancer_shares_the_gradient_by_weight_whatever_the_scale() -> None:
    balancer = Balancer({"a": 3.0, "b": 1.0})
    output = torch.zeros(2, 1, 4, requires_grad=True)
    first, second = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0])
    balancer.backward({"a": 1000 * (output * first).sum(), "b": 0.001 * (output * second).sum()}, output)
    assert output.grad is not None
    torch.testing.assert_close(output.grad[0, 0], torch.tensor([0.75, 0.25, 0, 0]))


def test_balancer_state_survives() -> None:
    a, b = Balancer({"a": 1.0}), Balancer({"a": 1.0})
    for scale in (1.0, 5.0):
        output = torch.zeros(1, 1, 2, requires_grad=True)
        a.backward({"a": scale * output.sum()}, output)
    b.load_state_dict(a.state_dict())
    grads = []
    for balancer in (a, b):
        output = torch.zeros(1, 1, 2, requires_grad=True)
        balancer.backward({"a": 2 * output.sum()}, output)
        grads.append(output.grad)
    assert torch.equal(grads[0], grads[1])


def test_the_energy_distance_prefers_noise_of_the_right_strength() -> None:
    """The mean distance is smallest for too little noise, the energy distance for as much as the recordings have."""
    torch.manual_seed(0)
    loss = MultiScaleMelLoss(window_lengths=(512,), n_mels=(40,))
    target = torch.randn(8, 1, 24000) * 0.1 + 0.05
    strengths = (0.25, 0.5, 0.75, 1.0, 1.33, 2.0)
    energies = []
    for strength in strengths:
        one, other = (torch.randn(8, 1, 24000) * 0.1 * strength + 0.05 for _ in range(2))
        energy, distance = loss.energy_distance(one, other, target)
        assert float(distance) > float(energy) > 0
        energies.append(float(energy))
    assert strengths[energies.index(min(energies))] == 1.0
