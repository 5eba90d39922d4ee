"""Layers that read their weights in half precision, for a model that speaks frame by frame on a CPU.

With a few rows at a time nearly all of a layer's time goes into reading its weights, and half the bytes take half as
long. Inputs, products and sums stay float32, and only weights that half precision holds exactly are halved, as those of
a stored model are (``valle.pretrained``): results differ by rounding alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MANY_ROWS = 64
"""From here on fp32 is as fast: the work is no longer in reading weights."""

_SHARED_OUT = 1 << 18
"""Numbers of a matrix from which on threads share its product; below, they would wait for each other longer."""


@cache
def can_halve() -> bool:
    """Whether torch can multiply by weights in half precision on this machine's CPU.

    It can by FBGEMM, on x86 with AVX2. Of its two products one shares the work out over threads, the other costs less
    to call. The functions for the latter are announced to go from torch, which names no others as fast; without them
    weights are read as they are.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    if not hasattr(torch, "fbgemm_linear_fp16_weight_fp32_activation"):
        return False
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # each tells once that it will go
        one = torch.ones(1, 1)
        torch.fbgemm_linear_fp16_weight_fp32_activation(one, torch.fbgemm_pack_gemm_matrix_fp16(one), one[0])
        torch.ops.quantized.linear_dynamic_fp16(one, torch.ops.quantized.linear_prepack_fp16(one, one[0]))
    return True


class Halvable(nn.Module):
    """A layer with weights [n, ...], seen as a matrix [n, m], and perhaps a bias [n]."""

    weight: Tensor
    halved: Callable[[Tensor], Tensor] | None = None
    """The product with the weights in half precision, in a layout that only torch understands."""

    def halve(self) -> None:
        """Read the weights in half precision from now on, where they lose nothing by it and the machine can.

        NOTE on the CPU, and when the weights no longer change: these are a copy. Training does not use it.
        """
        weight, bias = self.weight.detach().flatten(1), getattr(self, "bias", None)
        if can_halve() and torch.equal(weight, weight.half().float()):
            self.halved = _halved(weight, weight.new_zeros(len(weight)) if bias is None else bias.detach())

    def multiplier(self) -> Callable[[Tensor], Tensor]:
        """x [..., m] -> [..., n] as a function, which costs less to call than a module."""
        if self.halved is None or self.training:
            weight, bias = self.weight.flatten(1), getattr(self, "bias", None)
            return lambda x: F.linear(x, weight, bias)
        return self.halved


class Linear(Halvable, nn.Linear):
    """A linear layer that can be halved."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        if self.halved is None or self.training or x.numel() > _MANY_ROWS * self.in_features:
            return super().forward(x)
        return self.halved(x)


class FrameConv(Halvable, nn.Conv1d):
    """A convolution over frames, whose ``multiplier`` gives one: [B, in_channels * kernel_size] -> [B, out_channels]"""


def _halved(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """x [..., m] -> [..., n], by weight [n, m] and bias [n] in half precision."""
    if weight.numel() >= _SHARED_OUT:
        shared_out = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        product = torch.ops.quantized.linear_dynamic_fp16.default
        return lambda x: product(x, shared_out)
    packed = torch.fbgemm_pack_gemm_matrix_fp16(weight)
    return lambda x: torch.fbgemm_linear_fp16_weight_fp32_activation(x, packed, bias)


def halve(model: nn.Module) -> None:
    """Halve all layers of a model that can be."""
    for module in model.modules():
        if isinstance(module, Halvable):
            module.halve()
