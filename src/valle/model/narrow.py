"""Layers that read their weights in fewer bits, for a model that speaks on a CPU.

With a few rows at a time nearly all of a layer's time goes into reading its weights: half the bytes take half as long.

- ``fp16`` loses nothing: inputs, products and sums stay float32, and only weights that half precision holds exactly
  are taken, as those of a stored model are (``valle.pretrained``). Results differ by rounding alone.
- ``int8``, faster with many rows too: the inputs of linear layers become 8-bit numbers in each row by its own largest
  one, weights 7-bit ones in each output channel. The product is valle's own where that is compiled, else torch's
  FBGEMM. Rows stay independent: what one says does not depend on the batch. What it costs in loss and speech is in
  docs/performance.md. Embedding tables as output layers and convolutions stay in fp16.
- ``int4``, for large models: weights in 4 bits, 32 inputs sharing a scale, for what goes on frame by frame
  (``valle.native``); elsewhere what is left of them is multiplied in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.errors import ValleError
from valle.model.bits import GROUP, dequantised_4, quantised_8
from valle.native import library
from valle.native.matrix import MULTIPLE, Matrix, Precision

if TYPE_CHECKING:
    from typing_extensions import Self

_MANY_ROWS = 64
"""From here on fp32 is as fast as fp16: the work is no longer in reading weights."""

_SHARED_OUT = 1 << 18
"""Numbers of a matrix from which on threads share its product; below, they would wait for each other longer."""

_MOST_INPUT = 127
"""Largest 8-bit input."""


_ENGINE = Lock()
"""Held while torch's choice of an engine is another one: models may be read side by side."""


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


@cache
def can_int8() -> bool:
    """Whether 8-bit numbers can be multiplied on this machine's CPU: by what valle compiles, or by torch's FBGEMM."""
    return library() is not None or (
        "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
        and hasattr(torch, "_make_per_channel_quantized_tensor")
    )


class Narrowable(nn.Module):
    """A layer with weights [n, ...], seen as a matrix [n, m], and perhaps a bias [n]."""

    weight: Tensor
    narrowed: Callable[[Tensor], Tensor] | None = None
    """The product with the weights in fewer bits, in a layout that only torch understands."""
    precision: Precision | None = None
    """How ``narrow`` has them read; None: as they are."""
    packed: Matrix | None = None
    """The same for what valle compiles (``valle.native``), made when it is first asked for."""

    def narrow(self, precision: Precision = "fp16") -> None:
        """Read the weights in fewer bits from now on, in half precision where they lose nothing and the machine can.

        NOTE on the CPU, and when the weights no longer change: these are a copy. Training does not use it.
        """
        weight, bias = self.weight.detach().flatten(1), getattr(self, "bias", None)
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        self.narrowed = self.precision = self.packed = None
        if precision == "int4" and isinstance(self, nn.Linear) and weight.shape[1] % GROUP == 0:
            self.precision = precision
            coarse = dequantised_4(weight)
            self.narrowed = lambda x: F.linear(x, coarse, bias)
        elif precision == "int8" and isinstance(self, nn.Linear):
            self.precision = precision
            if library() is not None and weight.shape[1] % MULTIPLE == 0:
                self.packed = Matrix.pack(weight, bias, precision)
                self.narrowed = self.packed.multiply
            else:
                self.narrowed = _int8(weight, bias)
        elif torch.equal(weight, weight.half().float()):
            self.precision = "fp16"
            self.narrowed = _halved(weight, bias) if can_halve() else None

    def train(self, mode: bool = True) -> Self:
        """As ever; who trains changes the weights, of which others are copies: it takes back what ``narrow`` did."""
        if mode:
            self.narrowed = self.precision = self.packed = None
        return super().train(mode)

    def multiplier(self) -> Callable[[Tensor], Tensor]:
        """x [..., m] -> [..., n] as a function, which costs less to call than a module."""
        if self.narrowed is None or self.training:
            weight, bias = self.weight.flatten(1), getattr(self, "bias", None)
            return lambda x: F.linear(x, weight, bias)
        return self.narrowed


class Linear(Narrowable, nn.Linear):
    """A linear layer that can be narrowed."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        is_exact = self.precision == "fp16"
        learns = self.training or (torch.is_grad_enabled() and x.requires_grad)  # these products know no gradients
        if self.narrowed is None or learns or (is_exact and x.numel() > _MANY_ROWS * self.in_features):
            return super().forward(x)
        return self.narrowed(x)


class FrameConv(Narrowable, nn.Conv1d):
    """A convolution over frames, whose ``multiplier`` gives one: [B, in_channels * kernel_size] -> [B, out_channels]"""


def narrow(model: nn.Module, precision: Precision = "fp16") -> None:
    """Narrow all layers of a model that can be.

    Raises:
        ValleError: int8 on a machine whose torch has no such products.
    """
    if precision == "int8" and not can_int8():
        raise ValleError(
            "weights in int8 need an x86 processor with AVX2, for what valle compiles or for torch's FBGEMM; leave "
            "weights auto on this machine"
        )
    for module in model.modules():
        if isinstance(module, Narrowable):
            module.narrow(precision)


def _halved(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """x [..., m] -> [..., n], by weight [n, m] and bias [n] in half precision."""
    if weight.numel() >= _SHARED_OUT:
        shared_out = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        product = torch.ops.quantized.linear_dynamic_fp16.default
        return lambda x: product(x, shared_out)
    packed = torch.fbgemm_pack_gemm_matrix_fp16(weight)
    return lambda x: torch.fbgemm_linear_fp16_weight_fp32_activation(x, packed, bias)


def _int8(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """x [..., m] -> [..., n], by weight [n, m] in 8 bits."""
    numbers, scales = quantised_8(weight)  # torch's own function is ten times slower
    with _ENGINE, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's plans for its quantised tensors
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"  # or it might pack for oneDNN, which this product cannot read
        quantised = torch._make_per_channel_quantized_tensor(
            numbers, scales.double(), torch.zeros(len(weight), dtype=torch.int64), 0
        )
        packed = torch.ops.quantized.linear_prepack(quantised, None)
        torch.backends.quantized.engine = engine
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    step, zero = 1 / _MOST_INPUT, _MOST_INPUT + 1

    def multiply(x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp_(min=1e-20)  # [..., 1]
        return torch.addcmul(bias, product(x / largest, step, zero, packed), largest)

    return multiply
