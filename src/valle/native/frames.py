"""A causal transformer that goes on frame by frame, in one call a frame: the Python side of ``frames.c``.

It does what ``valle.model.decoder`` does call by call, and what stands around the transformer in a frame besides: the
convolutions before it and the outputs behind it. Matrices are packed once a model, the list of phases is made once an
utterance.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from valle.model.bits import GROUP
from valle.model.frame_layers import CausalContext
from valle.model.narrow import Narrowable
from valle.model.transformer import Block, Transformer
from valle.native import library
from valle.native.matrix import (
    ACTIVATIONS,
    ATTEND,
    BLOCK,
    CHUNKS_PER_THREAD,
    COLUMNS,
    LINEAR,
    MULTIPLE,
    ROWS,
    Frame,
    Matrix,
    Phase,
    Rows,
    floats,
    halves,
    rows_of,
)
from valle.native.sequence import Columns


def can_run(transformer: Transformer, local: CausalContext | None, outputs: Sequence[nn.Module]) -> bool:
    """Whether ``Frames`` can take these: the library is there, they are on the CPU, narrowed, and of fitting sizes."""
    if library() is None or transformer.training or transformer.norm is None:
        return False
    layers = [m for m in transformer.modules() if isinstance(m, Narrowable)]
    layers += [] if local is None else [m for m in local.modules() if isinstance(m, Narrowable)]
    layers += [m for m in outputs if isinstance(m, Narrowable)]
    if any(layer.precision is None or layer.weight.device.type != "cpu" for layer in layers):
        return False
    block = transformer.blocks[0]
    assert isinstance(block, Block)
    return block.attention.head_dim % COLUMNS == 0 and all(_fits(layer) for layer in layers)


def _fits(layer: Narrowable) -> bool:
    n_in = layer.weight[0].numel()
    return n_in % (GROUP if layer.precision == "int4" else MULTIPLE) == 0


class Frames:
    """Goes on from a cache that a transformer has filled, by up to ``max_len`` frames (``can_run``).

    Rows are as in ``valle.model.decoder``: C go on from each of B that were read. Keys and values are kept in half
    precision.
    """

    def __init__(
        self,
        transformer: Transformer,
        cache: Columns,
        lens: Tensor,
        max_len: int,
        n_copies: int = 1,
        *,
        local: CausalContext | None = None,
        pasts: Sequence[Tensor] = (),
        outputs: Sequence[nn.Module],
    ) -> None:
        """
        Args:
            transformer: not an adaptive one, and in evaluation mode.
            cache: what was read, of B rows.
            lens: [B] how many columns of the cache each row has; the others do not count.
            max_len: most frames to come.
            n_copies: C.
            local: convolutions before the transformer, which pass on to the outputs beside it.
            pasts: what each of them has read last, as many [B * C, D, 6].
            outputs: layers behind the transformer, each of which makes what ``step`` returns.
        """
        found = library()
        assert found is not None, "ask can_run first"
        self._run = found.valle_run
        self._transformer, self._local, self._outputs = transformer, local, list(outputs)
        self._max_len = max_len
        self.length = 0
        """Frames that came after those of the cache."""
        n_rows, n_heads, n, d = cache.values[0].shape
        self._n_shared = lens.to(torch.int32).contiguous()
        self._n_shared_most = n
        self._keys, self._values = cache.keys, cache.values
        n_blocks = -(-max_len // COLUMNS)
        rows = n_rows * n_copies
        layers = len(transformer.blocks)
        # Zeros cost nothing before they are written to.
        self._own_keys = halves(layers, rows, n_heads, n_blocks, d, COLUMNS)
        self._own_values = halves(layers, rows, n_heads, max_len, d)
        self._histories = []  # what each convolution reads, [B * C, 6 + max_len, D]
        for past in pasts:
            history = past.new_zeros(rows, past.shape[2] + max_len, past.shape[1])
            history[:, : past.shape[2]] = past.transpose(1, 2)
            self._histories.append(history)
        self._n_copies = n_copies
        self._plan()

    def step(self, x: Tensor) -> list[Tensor]:
        """One more frame of each row: x [B * C, D] -> of each output [B * C, n]."""
        assert self.length < self._max_len, f"there is room for {self._max_len} more frames and no further one"
        self._x.copy_(x)
        self._run(self._frame_at, self.length, torch.get_num_threads())
        self.length += 1
        return [result.clone() for result in self._results]

    def keep(self, copies: Tensor) -> None:
        """Of the rows that go on from each one that was read, only this one goes on: copies [B] of 0 to C - 1."""
        rows = torch.arange(len(copies)) * self._n_copies + copies
        self._own_keys, self._own_values = self._own_keys[:, rows], self._own_values[:, rows]
        self._histories = [history[rows] for history in self._histories]
        self._n_copies = 1
        self._plan()

    # The list of phases

    def _plan(self) -> None:
        blocks = [block for block in self._transformer.blocks if isinstance(block, Block)]
        attention = blocks[0].attention
        n_rows = len(self._n_shared) * self._n_copies
        dim = attention.out.in_features
        self._phases: list[Phase] = []
        self._kept: list[Any] = []  # what pointers point at
        self._scratch_floats = 0
        self._n_rows, self._d = n_rows, attention.head_dim
        self._x = floats(n_rows, dim)
        found = self._plan_local() if self._local is not None else None
        qkv = floats(n_rows, attention.qkv.out_features)
        attended = floats(n_rows, dim)
        inside = floats(n_rows, blocks[0].ff.up.out_features)
        for layer, block in enumerate(blocks):
            self._linear(block.attention.qkv, self._x, qkv, norm=block.attention_norm)
            self._attend(layer, qkv, attended)
            self._linear(block.attention.out, attended, self._x, residual=self._x)
            self._linear(block.ff.up, self._x, inside, norm=block.ff_norm, activation=block.ff.activation.__name__)
            self._linear(block.ff.out, inside, self._x, residual=self._x)
        h = torch.zeros_like(self._x)
        self._add(self._x, h, norm=self._transformer.norm)
        if found is not None:
            assert self._local is not None
            self._linear(self._local.out, found, h, residual=h)
        self._results = []
        for output in self._outputs:
            assert isinstance(output, Narrowable)
            result = floats(n_rows, len(output.weight))
            self._linear(output, h, result)
            self._results.append(result)
        phases = (Phase * len(self._phases))(*self._phases)
        scratch = floats(self._scratch_floats + 64)
        self._kept += [phases, scratch]
        self._frame = Frame(
            len(self._phases), n_rows, self._n_copies, attention.n_kv_heads, attention.n_heads // attention.n_kv_heads,
            self._d, self._n_shared_most, self._max_len, self._n_shared.data_ptr(), ctypes.addressof(phases),
            -(-scratch.data_ptr() // 64) * 64, self._scratch_floats,
        )  # fmt: skip
        self._frame_at = ctypes.addressof(self._frame)

    def _plan_local(self) -> Tensor:
        """The convolutions; what they find, [B * C, D], is added to the transformer's input."""
        assert self._local is not None
        dim = self._x.shape[1]
        size = self._local.kernel_size
        found = torch.zeros_like(self._x)
        places = [rows_of(history, column=dim, offset=(size - 1) * dim) for history in self._histories] + [
            rows_of(found)
        ]
        self._add(self._x, places[0], norm=self._local.norm)
        for i, conv in enumerate(self._local.convs):
            window = rows_of(self._histories[i], column=dim)
            self._linear(conv, window, places[i + 1], residual=places[i], activation="gelu")
        self._add(found, self._x, residual=self._x, gain=self._local.scale)
        return found

    def _linear(
        self,
        layer: nn.Module,
        x: Tensor | Rows,
        out: Tensor | Rows,
        residual: Tensor | Rows | None = None,
        norm: nn.Module | None = None,
        activation: str | None = None,
    ) -> None:
        matrix = _packed(layer)
        blocks = -(-matrix.n_out // BLOCK)
        phase = self._phase(LINEAR, x, out, residual, matrix.n_in, norm)
        phase.n_chunks = max(1, min(blocks, CHUNKS_PER_THREAD * torch.get_num_threads()))
        phase.activation = ACTIVATIONS[activation]
        phase.matrix = matrix.structure()
        self._kept.append(matrix)
        n = matrix.n_in
        self._need(self._n_rows * (2 * n + n // GROUP + 2) + 256)

    def _attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        phase = self._phase(ATTEND, qkv, out, None, qkv.shape[1], None)
        phase.gain = self._d**-0.5
        own = self._own_keys[layer], self._own_values[layer]
        tensors = self._keys[layer], self._values[layer], *own
        phase.keys, phase.values, phase.own_keys, phase.own_values = (x.data_ptr() for x in tensors)
        phase.n_chunks = len(self._n_shared) * self._keys[layer].shape[1]
        self._need(3 * (self._n_shared_most + self._max_len + 2 * COLUMNS + 2 * self._d))

    def _add(
        self,
        x: Tensor,
        out: Tensor | Rows,
        residual: Tensor | None = None,
        norm: nn.Module | None = None,
        gain: float = 1.0,
    ) -> None:
        phase = self._phase(ROWS, x, out, residual, x.shape[1], norm)
        phase.gain = gain
        self._need(self._n_rows * x.shape[1])

    def _phase(
        self,
        kind: int,
        x: Tensor | Rows,
        out: Tensor | Rows,
        residual: Tensor | Rows | None,
        n: int,
        norm: nn.Module | None,
    ) -> Phase:
        phase = Phase(kind=kind, n=n, n_chunks=1, gain=1.0)
        phase.input, phase.out = rows_of(x), rows_of(out)
        if residual is not None:
            phase.residual = rows_of(residual)
        if norm is not None:
            assert isinstance(norm, nn.LayerNorm)
            phase.norm_weight, phase.norm_bias = norm.weight.data_ptr(), norm.bias.data_ptr()
            phase.eps = norm.eps
        self._kept.append((x, out, residual, norm))
        self._phases.append(phase)
        return phase

    def _need(self, n_floats: int) -> None:
        self._scratch_floats = max(self._scratch_floats, n_floats)


def pack(model: nn.Module) -> None:
    """Pack all layers of a model that are narrowed, which else happens when it speaks first."""
    for layer in model.modules():
        if isinstance(layer, Narrowable) and layer.precision is not None and _fits(layer):
            _packed(layer)


def _packed(layer: nn.Module) -> Matrix:
    """The layer's matrix, packed once."""
    assert isinstance(layer, Narrowable), "only these are narrowed"
    assert layer.precision is not None, "ask can_run first"
    if layer.packed is None:
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if isinstance(layer, nn.Conv1d):
            weight = weight.transpose(1, 2)  # frame by frame, as its input lies
        layer.packed = Matrix.pack(weight.flatten(1), bias, layer.precision)
    packed: Matrix = layer.packed
    return packed
