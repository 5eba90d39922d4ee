"""The network: log mel energies in, tied states out, one answer every 30 ms.

A time-delay network: the first layer sees nine frames and keeps every third step, then blocks with growing gaps between
what they see, each through a narrow middle as in Kaldi's factored ones, with a residual way around it. Norms are over
channels only, so that neither padding nor the batch changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.asr.hybrid.features import N_MELS, SUBSAMPLING
from valle.errors import ValleError

_KERNEL = 9  # frames that the first layer sees


@dataclass(frozen=True)
class NetworkConfig:
    """The size of the network."""

    width: int = 384
    """Channels between blocks."""
    middle: int = 128
    """Channels within a block."""
    dilations: tuple[int, ...] = (1, 1, 2, 2, 3, 3, 3, 3)
    """Of each block's three taps, in steps."""
    dropout: float = 0.1
    """Share of a block's channels that training silences."""

    def __post_init__(self) -> None:
        if min(self.width, self.middle, *self.dilations, 1) < 1 or not self.dilations:
            raise ValleError(f"width, middle and dilations of a network must be at least 1, not {self}")
        if not 0 <= self.dropout < 1:
            raise ValleError(f"the network's dropout is {self.dropout:g}; it must be at least 0 (off) and below 1")


class Network(nn.Module):
    """Log mel energies [B, T, 80] -> logits [B, S, pdfs], S = (T + 1) // 3."""

    def __init__(self, config: NetworkConfig, n_pdfs: int) -> None:
        super().__init__()
        self.config = config
        self.input = nn.Conv1d(N_MELS, config.width, _KERNEL, stride=SUBSAMPLING)
        self.blocks = nn.ModuleList(_Block(config, dilation) for dilation in config.dilations)
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, n_pdfs)

    def forward(self, mels: Tensor, lens: Tensor | None = None) -> Tensor:
        """
        Args:
            mels: [B, T, 80] of zero mean over each recording.
            lens: [B] frames of each recording; None where all are whole.
        """
        return self.layers(mels, lens)[-1]

    def layers(self, mels: Tensor, lens: Tensor | None = None) -> list[Tensor]:
        """What stands after each block [B, S, W], and last the logits; arguments as of ``forward``."""
        n_steps = (mels.shape[1] + 1) // SUBSAMPLING
        mask = None
        if lens is not None:
            inside = torch.arange(mels.shape[1], device=mels.device) < lens.unsqueeze(1)  # [B, T]
            mels = mels * inside.unsqueeze(2)
            steps = (lens + 1) // SUBSAMPLING
            mask = (torch.arange(n_steps, device=mels.device) < steps.unsqueeze(1)).unsqueeze(2)  # [B, S, 1]
        x = F.pad(mels.transpose(1, 2), (3, _KERNEL - 3))  # [B, 80, T + 9]
        x = F.relu(self.input(x))[:, :, :n_steps].transpose(1, 2)  # [B, S, W]
        after: list[Tensor] = []
        for block in self.blocks:
            x = block(x, mask)
            after.append(x)
        return [*after, self.output(self.norm(x))]


class _Block(nn.Module):
    def __init__(self, config: NetworkConfig, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.narrow = nn.Conv1d(config.width, config.middle, 3, dilation=dilation, padding=dilation)
        self.wide = nn.Linear(config.middle, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.norm(x)
        if mask is not None:
            y = y * mask
        y = F.gelu(self.narrow(y.transpose(1, 2)).transpose(1, 2))
        out: Tensor = x + self.dropout(self.wide(y))
        return out
