"""A transformer over whole sequences in one compiled call: what is read before the AR speaks, and the NAR's pass.

Weights are in 8 bits, keys and values in half precision. Beside PyTorch's own kernels it saves what these cost for so
narrow a transformer, and nothing is copied before frames go on from it (``valle.native.frames``).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from valle.model.narrow import Narrowable
from valle.model.transformer import AdaptiveNorm, Block, KVCache, Transformer
from valle.native import library
from valle.native.matrix import (
    ACTIVATIONS,
    ATTEND_ALL,
    BLOCK,
    CHUNKS_PER_THREAD,
    COLUMNS,
    KEEP,
    LINEAR,
    PART,
    QUANTISE,
    Frame,
    Matrix,
    Phase,
    floats,
    halves,
    in_columns,
    pointer,
    room_for_quantised,
    rows_of,
)


@dataclass(frozen=True)
class Columns:
    """Keys and values of the columns that were read, in half precision, as ``frames.c`` reads them."""

    keys: list[Tensor]  # of each layer [B, H, ceil(n / 32), d, 32]
    values: list[Tensor]  # [B, H, n, d]
    length: int

    @classmethod
    def of(cls, cache: KVCache) -> Columns:
        """Those of a cache."""
        n = cache.length
        keys = [in_columns(x[:, :, :n]) for x in cache.keys]
        return cls(keys, [x[:, :, :n].half().contiguous() for x in cache.values], n)


def can_read(transformer: Transformer, x: Tensor) -> bool:
    """Whether ``read`` can take these: the library is there, the layers are in 8 bits and of fitting sizes."""
    if library() is None or transformer.training or transformer.norm is None or torch.is_grad_enabled():
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or not x.shape[0] or not x.shape[1]:
        return False
    block = transformer.blocks[0]
    assert isinstance(block, Block)
    if block.attention.head_dim % COLUMNS:
        return False
    return all(
        m.precision == "int8" and m.packed is not None for m in transformer.modules() if isinstance(m, Narrowable)
    )


def read(
    transformer: Transformer,
    x: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    condition: Tensor | None = None,
) -> tuple[Tensor, Columns]:
    """As ``Transformer.forward``; ask ``can_read`` first.

    Args:
        x: [B, L, D].
        mask: [B, L] bool, which places may be seen; None: all.
        causal: places see themselves and those before only.
        condition: [D] for an adaptive transformer.

    Returns:
        [B, L, D], and the keys and values of all places.
    """
    found = library()
    assert found is not None, "ask can_read first"
    n_rows, length, dim = x.shape
    rows = n_rows * length
    blocks = [block for block in transformer.blocks if isinstance(block, Block)]
    attention = blocks[0].attention
    n_heads, n_kv_heads, d = attention.n_heads, attention.n_kv_heads, attention.head_dim
    n_threads = torch.get_num_threads()
    room = -(-length // COLUMNS) * COLUMNS
    hidden = None
    if mask is not None and not bool(mask.all()):
        hidden = floats(n_rows, room).masked_fill_(~nn.functional.pad(mask, (0, room - length), value=True), -1e30)
    h = x.reshape(rows, dim).clone(memory_format=torch.contiguous_format)
    qkv = floats(rows, attention.qkv.out_features)
    attended = floats(rows, dim)
    inside = floats(rows, blocks[0].ff.up.out_features)
    widest = max(dim, inside.shape[1])
    quantised, at = room_for_quantised(rows, widest)
    columns = Columns(
        [halves(n_rows, n_kv_heads, room // COLUMNS, d, COLUMNS) for _ in blocks],
        [halves(n_rows, n_kv_heads, length, d) for _ in blocks],
        length,
    )
    phases: list[Phase] = []
    kept: list[Any] = [quantised]  # what pointers point at

    def multiply(
        layer: Narrowable, source: Tensor, out: Tensor, norm: nn.Module | None = None, activation: str | None = None
    ) -> None:
        matrix = layer.packed
        assert isinstance(matrix, Matrix)
        some = Phase(kind=QUANTISE, n=matrix.n_in, input=rows_of(source), quantised=at)
        some.n_chunks = min(rows, CHUNKS_PER_THREAD * n_threads)
        if norm is not None:
            weight, bias, some.eps = _norm(norm, condition)
            some.norm_weight, some.norm_bias = weight.data_ptr(), bias.data_ptr()
            kept.extend([weight, bias])
        phases.append(some)
        product = Phase(kind=LINEAR, n=matrix.n_in, out=rows_of(out), matrix=matrix.structure(), quantised=at, gain=1.0)
        product.n_chunks = min(-(-matrix.n_out // BLOCK), 2 * CHUNKS_PER_THREAD * n_threads)
        product.activation = ACTIVATIONS[activation]
        if out is h:
            product.residual = rows_of(h)
        phases.append(product)

    for layer, block in enumerate(blocks):
        keys, values = columns.keys[layer].data_ptr(), columns.values[layer].data_ptr()
        multiply(block.attention.qkv, h, qkv, block.attention_norm)
        phases.append(
            Phase(kind=KEEP, input=rows_of(qkv), own_keys=keys, own_values=values, n_chunks=n_rows * n_kv_heads)
        )
        phases.append(
            Phase(
                kind=ATTEND_ALL, input=rows_of(qkv), out=rows_of(attended), keys=keys, values=values, gain=d**-0.5,
                hidden=pointer(hidden), is_causal=causal, n_chunks=n_rows * n_kv_heads * -(-length // PART),
            )
        )  # fmt: skip
        multiply(block.attention.out, attended, h)
        multiply(block.ff.up, h, inside, block.ff_norm, block.ff.activation.__name__)
        multiply(block.ff.out, inside, h)
    scratch_floats = 3 * (room + 2 * d) + dim + 64
    scratch = floats(scratch_floats + 16)
    listed = (Phase * len(phases))(*phases)
    frame = Frame(
        n_phases=len(phases), n_rows=rows, n_copies=length, n_heads=n_kv_heads, n_grouped=n_heads // n_kv_heads, d=d,
        phases=ctypes.addressof(listed), scratch=-(-scratch.data_ptr() // 64) * 64, scratch_floats=scratch_floats,
    )  # fmt: skip
    found.valle_run(ctypes.addressof(frame), 0, n_threads)
    assert transformer.norm is not None
    y: Tensor = transformer.norm(h.view(n_rows, length, dim), condition)
    return y, columns


def _norm(norm: nn.Module, condition: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """Weight, bias and epsilon of a layer norm, be it adaptive."""
    if isinstance(norm, AdaptiveNorm):
        assert condition is not None, "an adaptive transformer needs the embedding of the stage"
        scale, shift = norm.project(condition).chunk(2)  # [D] each
        return scale.contiguous(), shift.contiguous(), 1e-5
    assert isinstance(norm, nn.LayerNorm)
    return norm.weight, norm.bias, norm.eps
