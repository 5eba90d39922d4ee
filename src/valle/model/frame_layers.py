"""Small networks beside a transformer, for the departures ``local_layers`` (AR, NAR), ``one_pass`` and
``prompt_heads`` (NAR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.model.narrow import FrameConv, Linear


class _Convolutions(nn.Module):
    """What both have: a norm, ``n_layers`` convolutions over 7 frames, and a way out beside the transformer."""

    kernel_size = 7

    def __init__(self, dim: int, n_layers: int, padding: int) -> None:
        super().__init__()
        self.scale = dim**-0.5  # what it says is as large as the transformer's output, embeddings are small beside it
        self.norm = nn.LayerNorm(dim)
        self.convs = nn.ModuleList(FrameConv(dim, dim, self.kernel_size, padding=padding) for _ in range(n_layers))
        self.out = Linear(dim, dim)
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
        if not x.shape[1]:
            return x
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
            [B, T, D], and for ``step`` the last ``kernel_size`` - 1 inputs of each convolution, as many [B, D, 6].
        """
        before = self.kernel_size - 1
        lens = torch.full((len(x),), x.shape[1], device=x.device) if lens is None else lens
        columns = (lens.unsqueeze(1) + torch.arange(before, device=x.device)).unsqueeze(-1)  # [B, before, 1]
        x = self.norm(x)
        pasts = []
        for conv in self.convs:
            padded = F.pad(x, (0, 0, before, 0))  # [B, before + T, D]
            pasts.append(padded.gather(1, columns.expand(-1, -1, x.shape[2])).transpose(1, 2))
            x = x + F.gelu(conv(padded.transpose(1, 2))).transpose(1, 2)
        return x, pasts

    def step(self, x: Tensor, pasts: list[Tensor]) -> Tensor:
        """One more frame: x [B, D] -> [B, D]; ``pasts`` move on."""
        x = self.norm(x)
        for i, conv in enumerate(self.convs):
            assert isinstance(conv, FrameConv)
            window = torch.cat([pasts[i], x.unsqueeze(2)], dim=2)  # [B, D, kernel_size]
            pasts[i] = window[:, :, 1:]
            x = x + F.gelu(conv.multiplier()(window.flatten(1)))
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


class PromptLookUp(nn.Module):
    """For each frame of the target what the prompt holds at the frames most like it: attention over the prompt alone.

    Likeness is the cosine of what convolutions made of codebook 1, the same for both; what is brought back has all the
    prompt's codebooks. With a voice of three seconds the codes after the first are largely a look-up, which a
    transformer takes long to find: it would have to bring what the prompt's frames are like and what they hold into two
    places of one vector.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.scale = dim**-0.5  # as in the convolutions: large beside the output, small beside embeddings
        self.like = nn.Linear(dim, dim, bias=False)  # of the prompt's frames, and of the target's
        self.norm = nn.LayerNorm(dim)
        self.value = nn.Linear(2 * dim, dim, bias=False)
        self.nothing_key = nn.Parameter(torch.zeros(dim))  # of what stands for the prompt where nothing is like
        self.nothing_value = nn.Parameter(torch.zeros(dim))
        self.sharpness = nn.Parameter(torch.full((n_heads, 1, 1), 2.5))  # log of what a cosine is multiplied by
        self.mix = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        for layer in (self.like, self.value, self.mix, self.out):
            nn.init.normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)
        nn.init.normal_(self.nothing_key, std=1.0)
        nn.init.zeros_(self.mix.bias)
        nn.init.zeros_(self.out.bias)

    def remember(self, features: Tensor, contents: Tensor, is_frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``forward`` looks things up in.

        Args:
            features: [B, T', D] of the prompt's frames.
            contents: [B, T', D] what they hold, the sum of embeddings of all their codes.
            is_frame: [B, T'] bool.
        """
        values = self.value(torch.cat([features, self.norm(contents)], dim=-1))  # [B, T', D]
        keys = torch.cat([self.nothing_key.expand(len(features), 1, -1), self.like(features)], dim=1)
        values = torch.cat([self.nothing_value.expand(len(features), 1, -1), values], dim=1)
        return self._split(keys, is_key=True), self._split(values), F.pad(is_frame, (1, 0), value=True)

    def forward(self, features: Tensor, memory: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """features [B, T, D] of the target's frames -> what was found [B, T, D]."""
        keys, values, is_frame = memory
        queries = self._split(self.like(features), is_key=True) * self.sharpness.exp()
        # The scale is in the queries.
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=is_frame[:, None, None], scale=1.0)
        return F.gelu(self.mix(found.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor, is_key: bool = False) -> Tensor:
        """x [B, T, D] -> [B, H, T, D / H], of length 1 when it ``is_key``."""
        x = x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)
        return F.normalize(x, dim=-1) if is_key else x
