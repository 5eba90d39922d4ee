"""Multi-scale STFT discriminators (EnCodec §3.4): each judges the complex spectrogram of one window length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Judgement(NamedTuple):
    """One discriminator's opinion."""

    logits: Tensor  # [B, 1, frames, bins'] above 0 = real
    features: list[Tensor]  # the activations of every layer but the last


class STFTDiscriminator(nn.Module):
    """2-D convolutions over a complex spectrogram, dilated in time and strided in frequency."""

    window: Tensor

    def __init__(self, window_length: int, channels: int = 32, dilations: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__()
        self.window_length = window_length
        self.register_buffer("window", torch.hann_window(window_length), persistent=False)
        convs = [weight_norm(nn.Conv2d(2, channels, (3, 9), padding=(1, 4)))]
        for d in dilations:
            convs.append(
                weight_norm(nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4)))
            )
        convs.append(weight_norm(nn.Conv2d(channels, channels, (3, 3), padding=(1, 1))))
        self.convs = nn.ModuleList(convs)
        self.out = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, wav: Tensor) -> Judgement:
        """wav [B, 1, N] -> Judgement."""
        spectrum = torch.stft(
            wav.squeeze(1),
            self.window_length,
            self.window_length // 4,
            window=self.window,
            normalized=True,
            return_complex=True,
        )  # [B, F, frames]
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # [B, 2, frames, F]
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            features.append(x)
        return Judgement(self.out(x), features)


class MultiScaleSTFTDiscriminator(nn.Module):
    """One ``STFTDiscriminator`` for each window length."""

    def __init__(self, window_lengths: Sequence[int] = (2048, 1024, 512, 256, 128), channels: int = 32) -> None:
        super().__init__()
        self.scales = nn.ModuleList(STFTDiscriminator(w, channels) for w in window_lengths)

    def forward(self, wav: Tensor) -> list[Judgement]:
        """wav [B, 1, N] -> a judgement for each scale."""
        return [scale(wav) for scale in self.scales]
