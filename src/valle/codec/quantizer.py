"""Residual vector quantisation (EnCodec §3.2): K codebooks, each quantising what the ones before it left over.

Codebooks are learnt by exponential moving averages of the vectors assigned to them, start from k-means over the first
batches, and entries that nobody uses any more are moved onto live vectors. Learning them by gradient alone collapses to
a handful of entries on a small corpus, which is why the moving averages are not optional here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What the quantiser returns in training."""

    z: Tensor  # [B, D, T] quantised, straight-through gradient to the input
    codes: Tensor  # [B, K, T] int64
    commitment_loss: Tensor  # scalar, mean over the codebooks in use


def kmeans(x: Tensor, n_clusters: int, n_iters: int, generator: torch.Generator | None = None) -> Tensor:
    """Lloyd's algorithm. x [N, D] -> centroids [n_clusters, D]; empty clusters are re-seeded with random points."""
    centroids = x[_choose(len(x), n_clusters, generator, x.device)].clone()  # [C, D]
    for _ in range(n_iters):
        ids = nearest(x, centroids)  # [N]
        counts = torch.bincount(ids, minlength=n_clusters)  # [C]
        sums = torch.zeros_like(centroids).index_add_(0, ids, x)
        centroids = sums / counts.clamp(min=1).unsqueeze(1)
        empty = counts == 0
        if empty.any():
            centroids[empty] = x[_choose(len(x), int(empty.sum()), generator, x.device)]
    return centroids


def nearest(x: Tensor, embed: Tensor) -> Tensor:
    """Index of the closest codebook entry. x [N, D], embed [C, D] -> [N] int64."""
    # |x|² is the same for every entry, so it is left out of the comparison. In half precision near entries would tie.
    with torch.autocast(x.device.type, enabled=False):
        return (x @ embed.t()).mul_(2).sub_(embed.pow(2).sum(1)).argmax(dim=1)


def _choose(n: int, k: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """k indices below n, without repeats where n allows."""
    if n >= k:
        return torch.randperm(n, generator=generator)[:k].to(device)
    return torch.randint(n, (k,), generator=generator).to(device)


class Codebook(nn.Module):
    """One stage of the residual quantiser: ``embed`` [C, D] and the moving averages that train it."""

    embed: Tensor
    ema_sum: Tensor
    ema_count: Tensor

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("embed", torch.randn(codebook_size, dim) / dim**0.5)
        self.register_buffer("ema_sum", torch.zeros(codebook_size, dim))
        self.register_buffer("ema_count", torch.zeros(codebook_size))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}ema_count" not in state_dict:  # a stored codec has the entries only; training goes on from them
            self.ema_count.fill_(1)
            self.ema_sum.copy_(self.embed)

    def encode(self, x: Tensor) -> Tensor:
        """x [N, D] -> ids [N]."""
        return nearest(x, self.embed)

    def decode(self, ids: Tensor) -> Tensor:
        """ids [...] -> vectors [..., D]."""
        return F.embedding(ids, self.embed)

    @torch.no_grad()
    def update(
        self, x: Tensor, ids: Tensor, decay: float, dead_below: float, generator: torch.Generator | None
    ) -> None:
        """Move the entries towards the vectors assigned to them, and revive the dead.

        x [N, D], ids [N]; an entry is dead when its average use is below ``dead_below`` times the mean of all.
        """
        counts = torch.bincount(ids, minlength=len(self.embed)).to(x.dtype)
        sums = torch.zeros_like(self.embed).index_add_(0, ids, x)
        self.ema_count.mul_(decay).add_(counts, alpha=1 - decay)
        self.ema_sum.mul_(decay).add_(sums, alpha=1 - decay)
        self.embed.copy_(self.ema_sum / self.ema_count.clamp(min=1e-5).unsqueeze(1))
        threshold = dead_below * self.ema_count.mean()
        dead = self.ema_count < threshold
        n_dead = int(dead.sum())
        if n_dead:
            new = x[_choose(len(x), n_dead, generator, x.device)]
            self.embed[dead] = new
            # A little above the threshold: time to win some vectors before it is judged again.
            self.ema_count[dead] = threshold * 1.5
            self.ema_sum[dead] = new * (threshold * 1.5)

    @torch.no_grad()
    def initialise(self, x: Tensor, n_iters: int, generator: torch.Generator | None) -> None:
        """Set the entries by k-means over x [N, D]."""
        self.embed.copy_(kmeans(x, len(self.embed), n_iters, generator))
        counts = torch.bincount(self.encode(x), minlength=len(self.embed)).to(x.dtype)
        self.ema_count.copy_(counts.clamp(min=1))
        self.ema_sum.copy_(self.embed * self.ema_count.unsqueeze(1))


class ResidualVectorQuantizer(nn.Module):
    """K codebooks in a row. ``dim`` D, ``n_quantizers`` K, ``codebook_size`` C."""

    def __init__(self, dim: int, n_quantizers: int = 8, codebook_size: int = 1024) -> None:
        super().__init__()
        self.dim = dim
        self.codebook_size = codebook_size
        self.layers = nn.ModuleList(Codebook(dim, codebook_size) for _ in range(n_quantizers))

    @property
    def n_quantizers(self) -> int:
        return len(self.layers)

    def _codebook(self, k: int) -> Codebook:
        layer = self.layers[k]
        assert isinstance(layer, Codebook)
        return layer

    def codebooks(self) -> Tensor:
        """All entries, [K, C, D]."""
        return torch.stack([self._codebook(k).embed for k in range(self.n_quantizers)])

    @torch.no_grad()
    def encode(self, z: Tensor, n_quantizers: int | None = None) -> Tensor:
        """z [B, D, T] -> codes [B, K, T] int64, K = ``n_quantizers`` or all."""
        batch, _, frames = z.shape
        residual = z.to(self._codebook(0).embed.dtype).transpose(1, 2).reshape(-1, self.dim)  # [B*T, D]
        codes = []
        for k in range(n_quantizers or self.n_quantizers):
            ids = self._codebook(k).encode(residual)
            residual = residual - self._codebook(k).decode(ids)
            codes.append(ids.view(batch, frames))
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, K, T], K at most ``n_quantizers`` -> z [B, D, T], the sum of the entries."""
        if codes.shape[1] > self.n_quantizers:
            raise ValueError(f"codes have {codes.shape[1]} codebooks, but this quantizer has {self.n_quantizers}")
        z = torch.stack([self._codebook(k).decode(codes[:, k]) for k in range(codes.shape[1])]).sum(0)  # [B, T, D]
        return z.transpose(1, 2)

    def forward(
        self,
        z: Tensor,
        n_quantizers: Tensor | None = None,
        *,
        decay: float = 0.99,
        dead_below: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantise in training, updating the codebooks when the module is in training mode.

        Args:
            z: [B, D, T] the encoder's output.
            n_quantizers: [B] how many codebooks each item uses (quantizer dropout), all when None.
            decay: of the moving averages, per step.
            dead_below: an entry whose use falls below this share of an even use is replaced.
            generator: chooses the replacements.
        """
        batch, dim, frames = z.shape
        target = z.to(self._codebook(0).embed.dtype).transpose(1, 2)  # [B, T, D], autocast may give halves
        residual, total, losses, codes = target, torch.zeros_like(target), [], []
        for k in range(self.n_quantizers):
            codebook = self._codebook(k)
            flat = residual.detach().reshape(-1, dim)  # [B*T, D]
            ids = codebook.encode(flat)
            entry = codebook.decode(ids).view(batch, frames, dim)
            used = torch.ones(batch, dtype=torch.bool, device=z.device) if n_quantizers is None else n_quantizers > k
            if self.training:
                rows = used.repeat_interleave(frames)
                if rows.any():
                    codebook.update(flat[rows], ids[rows], decay, dead_below, generator)
            mask = used.to(z.dtype).view(batch, 1, 1)
            losses.append(
                (F.mse_loss(residual, entry, reduction="none").mean((1, 2)) * mask.view(-1)).sum()
                / mask.sum().clamp(min=1)
            )
            total = total + entry * mask
            residual = residual - entry
            codes.append(ids.view(batch, frames))
        z_q = target + (total - target).detach()  # straight through
        return Quantized(z_q.transpose(1, 2), torch.stack(codes, dim=1), torch.stack(losses).mean())

    @torch.no_grad()
    def initialise(self, z: Tensor, n_iters: int = 10, generator: torch.Generator | None = None) -> None:
        """k-means, codebook after codebook, over z [B, D, T]; ten times ``codebook_size`` frames are good."""
        residual = z.to(self._codebook(0).embed.dtype).transpose(1, 2).reshape(-1, self.dim)
        for k in range(self.n_quantizers):
            codebook = self._codebook(k)
            codebook.initialise(residual, n_iters, generator)
            residual = residual - codebook.decode(codebook.encode(residual))
