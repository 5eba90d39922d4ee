"""A layer's weights as ``frames.c`` reads them, their product with many rows, and the structures that it is told by."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from valle.model.bits import GROUP, quantised_4, quantised_8
from valle.native import library

Precision = Literal["fp16", "int8", "int4"]

MULTIPLE = 8
"""Of this the inputs of a matrix must be, or of ``GROUP`` in 4 bits."""

BLOCK, COLUMNS = 16, 32  # as in frames.c
LINEAR, ATTEND, ROWS, QUANTISE, KEEP, ATTEND_ALL = range(6)
PART = 48
CHUNKS_PER_THREAD = 4
ACTIVATIONS = {None: 0, "gelu": 1, "relu": 2}
_KINDS = {"fp16": 0, "int8": 1, "int4": 2}


class Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("column", ctypes.c_int64)]


class MatrixStructure(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("n_in", ctypes.c_int32),
        ("n_out", ctypes.c_int32),
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class Phase(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("input", Rows),
        ("out", Rows),
        ("residual", Rows),
        ("n", ctypes.c_int32),
        ("n_chunks", ctypes.c_int32),
        ("gain", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("norm_weight", ctypes.c_void_p),
        ("norm_bias", ctypes.c_void_p),
        ("matrix", MatrixStructure),
        ("quantised", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("own_keys", ctypes.c_void_p),
        ("own_values", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p),
        ("is_causal", ctypes.c_int32),
    ]


class Frame(ctypes.Structure):
    _fields_ = [
        ("n_phases", ctypes.c_int32),
        ("n_rows", ctypes.c_int32),
        ("n_copies", ctypes.c_int32),
        ("n_heads", ctypes.c_int32),
        ("n_grouped", ctypes.c_int32),
        ("d", ctypes.c_int32),
        ("n_shared_most", ctypes.c_int32),
        ("own_most", ctypes.c_int32),
        ("n_shared", ctypes.c_void_p),
        ("phases", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("scratch_floats", ctypes.c_int64),
    ]


@dataclass(frozen=True)
class Matrix:
    """A layer's weights [n_out, n_in] as ``frames.c`` reads them, and its bias."""

    kind: int
    n_in: int
    n_out: int
    weights: Tensor
    scales: Tensor | None
    zeros: Tensor | None  # [n_out rounded up to a block]
    bias: Tensor | None  # likewise

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, precision: Precision) -> Matrix:
        """weight [n_out, n_in], bias [n_out]; fp16 takes what half precision holds exactly."""
        n_out, n_in = weight.shape
        more = -n_out % BLOCK
        weight = F.pad(weight.detach().float(), (0, 0, 0, more))
        bias = None if bias is None else F.pad(bias.detach().float(), (0, more)).contiguous()
        scales = zeros = None
        if precision == "fp16":
            packed = weight.half().view(-1, BLOCK, n_in).transpose(1, 2)  # [n / 16, n_in, 16]
        elif precision == "int8":
            numbers, scales = quantised_8(weight)  # [n, n_in], [n]
            zeros = 128 * scales * numbers.sum(1, dtype=torch.int32)
            fours = numbers.view(torch.int32)  # [n, n_in / 4]
            packed = fours.view(-1, BLOCK, n_in // 4).transpose(1, 2)  # [n / 16, n_in / 4, 16], each four numbers
        else:
            numbers, scales = quantised_4(weight)  # [n, n_in] of 0 to 15, half [n, n_in / 32]
            sums = numbers.view(len(numbers), -1, GROUP).sum(2, dtype=torch.int32) - 8 * GROUP
            zeros = 128 * (scales.float() * sums).sum(1)
            fours = numbers.view(torch.int32).view(-1, 2, BLOCK // 2, n_in // 4)  # each four numbers
            packed = (fours[:, 0] | fours[:, 1] << 4).transpose(1, 2)  # [n / 16, n_in / 4, 8], each four pairs
            scales = scales.view(-1, BLOCK, n_in // GROUP).transpose(1, 2).contiguous()
        return cls(_KINDS[precision], n_in, n_out, packed.contiguous(), scales, zeros, bias)

    def structure(self) -> MatrixStructure:
        """For ``frames.c``; good as long as this object lives."""
        return MatrixStructure(
            self.kind,
            self.n_in,
            self.n_out,
            self.weights.data_ptr(),
            pointer(self.scales),
            pointer(self.zeros),
            pointer(self.bias),
        )

    def multiply(self, x: Tensor) -> Tensor:
        """The product with many rows, in 8 or 4 bits: x [..., n_in] on the CPU -> [..., n_out] of x's number type."""
        found = library()
        assert found is not None, "without the library there is no matrix"
        assert self.kind != _KINDS["fp16"], "with many rows PyTorch is faster"
        assert x.device.type == "cpu", f"weights in fewer bits are for a CPU, and the input is on {x.device}"
        rows = x.detach().reshape(-1, self.n_in).to(torch.float32).contiguous()
        n_rows, n_threads = len(rows), torch.get_num_threads()
        out = floats(n_rows, self.n_out)
        if not n_rows:
            return out.view(*x.shape[:-1], self.n_out).to(x.dtype)
        _memory, at = room_for_quantised(n_rows, self.n_in)
        n_blocks = -(-self.n_out // BLOCK)
        phases = (Phase * 2)(
            Phase(
                kind=QUANTISE, n=self.n_in, input=rows_of(rows), quantised=at,
                n_chunks=min(n_rows, CHUNKS_PER_THREAD * n_threads),
            ),
            Phase(
                kind=LINEAR, n=self.n_in, out=rows_of(out), matrix=self.structure(), quantised=at, gain=1.0,
                n_chunks=min(n_blocks, CHUNKS_PER_THREAD * n_threads),
            ),
        )  # fmt: skip
        frame = Frame(n_phases=2, n_rows=n_rows, n_copies=1, phases=ctypes.addressof(phases))
        found.valle_run(ctypes.addressof(frame), 0, n_threads)
        return out.view(*x.shape[:-1], self.n_out).to(x.dtype)


def floats(*shape: int) -> Tensor:
    """Zeros that C can read and write, whatever torch makes by default: float32 on the CPU."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def halves(*shape: int) -> Tensor:
    """The same in half precision."""
    return torch.zeros(shape, dtype=torch.float16, device="cpu")


def room_for_quantised(n_rows: int, n: int) -> tuple[Tensor, int]:
    """Memory for rows of n numbers in 8 bits, which must live as long as it is used, and where in it they begin."""
    found = library()
    assert found is not None, "without the library nothing is quantised"
    memory = torch.empty(found.valle_quantised_size(n_rows, n) + 64, dtype=torch.uint8, device="cpu")
    return memory, -(-memory.data_ptr() // 64) * 64


def rows_of(x: Tensor | Rows, column: int = 0, offset: int = 0) -> Rows:
    """Where rows of x [rows, ...] begin; ``column`` and ``offset`` are numbers of float32."""
    if isinstance(x, Rows):
        return x
    return Rows(x.data_ptr() + 4 * offset, x.stride(0), column)


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def in_columns(keys: Tensor) -> Tensor:
    """keys [B, H, n, d] -> half [B, H, n / 32, d, 32]"""
    n_rows, n_heads, n, d = keys.shape
    keys = F.pad(keys, (0, 0, 0, -n % COLUMNS)).half()
    return keys.view(n_rows, n_heads, -1, COLUMNS, d).transpose(3, 4).contiguous()
