"""Weights as numbers of few bits, and their scales."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Inputs whose 4-bit weights share a scale."""

_MOST_WEIGHT = 63
"""Largest 8-bit weight. AVX2 adds up products of two pairs in 16 bits, which hold 2 · (128 + 127) · 63."""


def quantised_8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [n, m] -> int8 [n, m] of -63 to 63 and their scales [n]."""
    scales = (weight.abs().amax(1) / _MOST_WEIGHT).clamp(min=1e-12)
    return (weight / scales.unsqueeze(1)).round_().to(torch.int8), scales


def quantised_4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [n, m], m a multiple of ``GROUP`` -> uint8 [n, m] of 0 to 15, 8 being zero, and scales [n, m / 32] half.

    Of several scales of a group that with the least squared error is taken: the largest weight may be cut a little.
    """
    groups = weight.view(len(weight), -1, GROUP)  # [n, m / 32, 32]
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))  # with its sign, since 8 values are below zero
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for steps in (8.5, 8.0, 7.5, 7.0, 6.5, 6.0, 5.5):
        scale = (-largest / steps).half().float()
        error = (groups - scale * _to_4_bits(groups, scale)).square().sum(2, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    numbers = _to_4_bits(groups, best) + 8
    return numbers.to(torch.uint8).flatten(1), best.squeeze(2).half()


def dequantised_4(weight: Tensor) -> Tensor:
    """What is left of weight [n, m] in 4 bits."""
    numbers, scales = quantised_4(weight)
    return ((numbers.float() - 8).view(len(numbers), -1, GROUP) * scales.float().unsqueeze(2)).flatten(1)


def _to_4_bits(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / torch.where(scale == 0, 1, scale)).round_().clamp_(-8, 7)
