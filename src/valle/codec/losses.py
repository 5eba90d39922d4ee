"""How a reconstruction is compared: waveform, multi-scale mel, adversarial, feature matching (EnCodec §3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.codec.frames import mel_filterbank

FLOOR = 1e-5
"""Magnitudes below this count as silence in the logarithm."""


class MelScale(nn.Module):
    """Log-mel spectrogram of one window length: wav [B, 1, N] -> [B, n_mels, frames], hop = window / 4."""

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, window_length: int, n_mels: int) -> None:
        super().__init__()
        self.window_length = window_length
        self.register_buffer("window", torch.hann_window(window_length), persistent=False)
        # Stored transposed: one matrix product from the left gives [n_mels, frames].
        self.register_buffer(
            "filters", mel_filterbank(sample_rate, window_length, n_mels).t().contiguous(), persistent=False
        )

    def forward(self, wav: Tensor) -> Tensor:
        spectrum = torch.stft(
            wav.squeeze(1),
            self.window_length,
            self.window_length // 4,
            window=self.window,
            normalized=True,
            return_complex=True,
        )  # [B, F, frames]
        # The square root's gradient is infinite at zero, hence the small offset.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + FLOOR**2).sqrt()
        return (self.filters @ magnitude).clamp(min=FLOOR).log()


class MultiScaleMelLoss(nn.Module):
    """Mean absolute difference of log-mel spectrograms, averaged over several window lengths."""

    def __init__(
        self,
        sample_rate: int = 24000,
        window_lengths: Sequence[int] = (128, 256, 512, 1024, 2048),
        n_mels: Sequence[int] = (10, 20, 40, 80, 160),
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(MelScale(sample_rate, w, m) for w, m in zip(window_lengths, n_mels, strict=True))

    def forward(self, wav: Tensor, target: Tensor) -> Tensor:
        """wav, target [B, 1, N] -> scalar, in nepers."""
        return torch.stack([F.l1_loss(scale(wav), scale(target)) for scale in self.scales]).mean()

    def energy_distance(self, one: Tensor, other: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Spectral energy distance (Gritsenko et al., arXiv 2008.01160) of a decoder that draws noise.

        The distance alone is smallest for the median of all that could be, a speech without breath or grain; the mean
        distance less half of that between two draws is smallest when the draws are distributed as the recordings are.

        Args:
            one, other: wav [B, 1, N] each, decoded from the same codes with other noise.
            target: wav [B, 1, N], the recording.

        Returns:
            The loss, and the mean distance alone, in nepers.
        """
        losses, distances = [], []
        for scale in self.scales:
            a, b, c = scale(one), scale(other), scale(target)
            distance = (F.l1_loss(a, c) + F.l1_loss(b, c)) / 2
            losses.append(distance - F.l1_loss(a, b) / 2)
            distances.append(distance.detach())
        return torch.stack(losses).mean(), torch.stack(distances).mean()


def waveform_loss(wav: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the samples."""
    return F.l1_loss(wav, target)


def generator_loss(logits: Sequence[Tensor]) -> Tensor:
    """Hinge loss that asks every discriminator to take the reconstruction for real (EnCodec eq. 2)."""
    return torch.stack([F.relu(1 - x).mean() for x in logits]).mean()


def discriminator_loss(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the discriminators (EnCodec §3.4)."""
    return torch.stack([F.relu(1 + f).mean() + F.relu(1 - r).mean() for f, r in zip(fake, real, strict=True)]).mean()


def feature_matching_loss(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Relative difference of the discriminators' inner features (EnCodec eq. 3); no gradient flows to ``real``."""
    terms = [
        F.l1_loss(f, r.detach()) / r.detach().abs().mean().clamp(min=1e-6)
        for fs, rs in zip(fake, real, strict=True)
        for f, r in zip(fs, rs, strict=True)
    ]
    return torch.stack(terms).mean()
