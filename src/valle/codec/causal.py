"""Causal layers that give the same result on a whole signal and piece by piece (EnCodec §3.1, "streamable").

Each layer maps ``[B, C, T]`` to ``[B, C', T']`` and looks at the past only. ``stream()`` opens a run over one signal
that keeps what the next piece needs: the last inputs of a convolution, the state of an LSTM. One thing is not causal:
the published model pads the start of a signal by reflection, so a convolution that pads by p cannot begin before it has
seen p + 1 inputs. A stream holds these back, and is exact from the first sample on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Stream(ABC):
    """One signal's way through a layer; the outputs end to end are the layer's output for the inputs end to end."""

    @abstractmethod
    def __call__(self, x: Tensor, last: bool) -> Tensor:
        """x [B, C, t], t may be 0 -> the outputs that are final [B, C', t']; with ``last``, all that are left."""


class CausalLayer(nn.Module, ABC):
    """A layer that can run piece by piece."""

    @abstractmethod
    def stream(self) -> Stream:
        """A run over a new signal."""


def reflect_pad(x: Tensor, left: int, right: int) -> Tensor:
    """x [B, C, T] -> [B, C, left + T + right], mirrored at both ends without repeating the end itself.

    A signal too short to be mirrored is first lengthened by zeros on the right, which are cut off again, as in the
    published model.
    """
    if not left and not right:
        return x
    n_zeros = max(left, right) + 1 - x.shape[2]
    if n_zeros <= 0:
        return F.pad(x, (left, right), mode="reflect")
    padded = F.pad(F.pad(x, (0, n_zeros)), (left, right), mode="reflect")
    return padded[..., : padded.shape[2] - n_zeros]


class CausalConv1d(CausalLayer):
    """Convolution whose padding is all in the past: [B, C, T] -> [B, C', ceil(T / stride)].

    The input is mirrored on the right up to a multiple of the stride.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (kernel_size - 1) * dilation + 1 - stride
        self.conv = nn.Conv1d(dim_in, dim_out, kernel_size, stride, dilation=dilation)
        if weight_norm:
            parametrizations.weight_norm(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(reflect_pad(x, self.padding, -x.shape[2] % self.stride))  # [B, C', ceil(T / stride)]
        return y

    def stream(self) -> Stream:
        return _ConvStream(self)


class _ConvStream(Stream):
    def __init__(self, layer: CausalConv1d) -> None:
        assert layer.stride == 1, "only the decoder runs piece by piece, and it has no strided convolution"
        self.layer = layer
        self.inputs: Tensor | None = None  # the last ``padding`` inputs, or all of them before the start
        self.started = False

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        padding = self.layer.padding
        if self.inputs is not None:
            x = torch.cat([self.inputs, x], dim=2)
        if not self.started and x.shape[2] > (0 if last else padding):
            x, self.started = reflect_pad(x, padding, 0), True
        if not self.started or x.shape[2] == padding:  # nothing new
            self.inputs = x
            return x.new_zeros(x.shape[0], self.layer.conv.out_channels, 0)
        self.inputs = x[..., x.shape[2] - padding :]
        y: Tensor = self.layer.conv(x)
        return y


class CausalConvTranspose1d(CausalLayer):
    """Upsampling by ``stride``, the kernel's overhang on the right cut off: [B, C, T] -> [B, C', T * stride]."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, *, stride: int, weight_norm: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.n_past = (kernel_size - 1) // stride  # inputs before the present one that reach into its outputs
        self.conv = nn.ConvTranspose1d(dim_in, dim_out, kernel_size, stride)
        if weight_norm:
            # Its weight is [C, C', kernel]; the published model norms over dimension 0 here too, per input channel.
            parametrizations.weight_norm(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y[..., : x.shape[2] * self.stride]  # [B, C', T * stride]

    def stream(self) -> Stream:
        return _ConvTransposeStream(self)


class _ConvTransposeStream(Stream):
    def __init__(self, layer: CausalConvTranspose1d) -> None:
        self.layer = layer
        self.past: Tensor | None = None  # up to n_past inputs

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        if x.shape[2] == 0:
            return x.new_zeros(x.shape[0], self.layer.conv.out_channels, 0)
        n_past = 0 if self.past is None else self.past.shape[2]
        if self.past is not None:
            x = torch.cat([self.past, x], dim=2)
        self.past = x[..., max(0, x.shape[2] - self.layer.n_past) :]
        # Doing the past inputs again costs one frame and, unlike adding up overlaps, keeps every sum in its order.
        y: Tensor = self.layer(x)
        return y[..., n_past * self.layer.stride :]


class ResidualLSTM(CausalLayer):
    """LSTM over time, added to its input: [B, C, T] -> [B, C, T]."""

    def __init__(self, dim: int, n_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, n_layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, None)[0]

    def step(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, C, t] and the state (h, c), each [n_layers, B, C], None at the start -> output [B, C, t], new state."""
        y, state = self.lstm(x.permute(2, 0, 1), state)  # [t, B, C]
        assert state is not None
        return x + y.permute(1, 2, 0), state

    def stream(self) -> Stream:
        return _LSTMStream(self)


class _LSTMStream(Stream):
    def __init__(self, layer: ResidualLSTM) -> None:
        self.layer = layer
        self.state: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        if x.shape[2] == 0:
            return x
        y, self.state = self.layer.step(x, self.state)
        return y


class CausalSequential(nn.Sequential, CausalLayer):
    """Layers in a row; one that is no ``CausalLayer`` must work on each sample alone, like an activation."""

    def stream(self) -> Stream:
        return _SequentialStream(self)


class _SequentialStream(Stream):
    def __init__(self, layers: CausalSequential) -> None:
        self.layers = [layer.stream() if isinstance(layer, CausalLayer) else layer for layer in layers]

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        for layer in self.layers:
            x = layer(x, last) if isinstance(layer, Stream) else layer(x)
        return x


class ResidualUnit(CausalLayer):
    """A dilated and a 1×1 convolution, each after an ELU, beside a shortcut: [B, C, T] -> [B, C, T]."""

    def __init__(
        self, dim: int, hidden: int, kernel_size: int, dilation: int, *, conv_shortcut: bool, weight_norm: bool = False
    ) -> None:
        super().__init__()
        self.block = CausalSequential(
            nn.ELU(),
            CausalConv1d(dim, hidden, kernel_size, dilation=dilation, weight_norm=weight_norm),
            nn.ELU(),
            CausalConv1d(hidden, dim, 1, weight_norm=weight_norm),
        )
        self.shortcut: CausalLayer = CausalSequential()  # the identity
        if conv_shortcut:
            self.shortcut = CausalConv1d(dim, dim, 1, weight_norm=weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.block(x)
        return y

    def stream(self) -> Stream:
        return _ResidualStream(self)


class _ResidualStream(Stream):
    def __init__(self, unit: ResidualUnit) -> None:
        self.block, self.shortcut = unit.block.stream(), unit.shortcut.stream()
        self.ahead: Tensor | None = (
            None  # the shortcut's outputs that the block, held back at the start, has yet to match
        )

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        y, skip = self.block(x, last), self.shortcut(x, last)
        if self.ahead is not None:
            skip = torch.cat([self.ahead, skip], dim=2)
        self.ahead = skip[..., y.shape[2] :]
        return skip[..., : y.shape[2]] + y
