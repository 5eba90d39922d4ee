"""Small networks beside a transformer, for the departures ``local_layers`` (AR, NAR) and ``one_pass`` (NAR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Convolutions(nn.Module):
    """What both have: a norm, ``n_layers`` convolutions over 7 frames, and a way out beside the transformer."""

    kernel_size = 7

    def __init__(self, dim: int, n_layers: int, padding: int) -> None:
        super().__init__()
        self.scale = dim**-0.5  # what it says is as large as the transformer's output, embeddings are small beside it
        self.norm = nn.LayerNorm(dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, self.kernel_size, padding=padding) for _ in range(n_layers))
        self.out = nn.Linear(dim, dim)
        for layer in (*self.convs, self.out):
            assert isinstance(layer, nn.Conv1d | nn.Linear)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            nn.init.zeros_(layer.bias)


class LocalContext(_Convolutions):
    """Residual convolutions over time that never see padding."""

    def __init__(self, dim: int, n_layers: int) -> None:
        super().__init__(dim, n_layers, padding=self.kernel_size // 2)

    def forward(self, x: Tensor, is_frame: Tensor) -> Tensor:
        """x [B, T, D], is_frame [B, T] bool -> [B, T, D]."""
        x = self.norm(x)
        for conv in self.convs:
            y = x.masked_fill(~is_frame.unsqueeze(-1), 0)
            x = x + F.gelu(conv(y.transpose(1, 2))).transpose(1, 2)
        return x


class CausalContext(_Convolutions):
    """Residual convolutions over time that see a frame and those before it, at once or frame by frame."""

    def __init__(self, dim: int, n_layers: int) -> None:
        super().__init__(dim, n_layers, padding=0)

    def forward(self, x: Tensor, lens: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """
        Args:
            x: [B, T, D].
            lens: [B] frames of each row, after which ``step`` shall go on; all of them when None.

        Returns:
            [B, T, D], and for ``step`` the last ``kernel_size`` - 1 inputs of each convolution, as many [B, 6, D].
        """
        before = self.kernel_size - 1
        lens = torch.full((len(x),), x.shape[1], device=x.device) if lens is None else lens
        columns = (lens.unsqueeze(1) + torch.arange(before, device=x.device)).unsqueeze(-1)  # [B, before, 1]
        x = self.norm(x)
        pasts = []
        for conv in self.convs:
            padded = F.pad(x, (0, 0, before, 0))  # [B, before + T, D]
            pasts.append(padded.gather(1, columns.expand(-1, -1, x.shape[2])))
            x = x + F.gelu(conv(padded.transpose(1, 2))).transpose(1, 2)
        return x, pasts

    def step(self, x: Tensor, pasts: list[Tensor]) -> Tensor:
        """One more frame: x [B, D] -> [B, D]; ``pasts`` move on."""
        x = self.norm(x)
        for i, conv in enumerate(self.convs):
            window = torch.cat([pasts[i], x.unsqueeze(1)], dim=1)  # [B, kernel_size, D]
            pasts[i] = window[:, 1:]
            x = x + F.gelu(conv(window.transpose(1, 2))).squeeze(2)
        return x


class FrameHead(nn.Module):
    """What the transformer thinks of a frame, and the codes that it has by now, to what the next code is taken from."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = dim**0.5  # embeddings are small beside the transformer's output
        self.up = nn.Linear(2 * dim, 2 * dim)
        self.out = nn.Linear(2 * dim, dim)
        nn.init.normal_(self.up.weight, std=(2 * dim) ** -0.5)
        nn.init.zeros_(self.up.bias)
        nn.init.normal_(self.out.weight, std=(4 * dim) ** -0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        """h, known [B, T, D] -> [B, T, D]."""
        return h + self.out(F.gelu(self.up(torch.cat([h, known * self.scale], dim=-1))))  # type: ignore[no-any-return]
