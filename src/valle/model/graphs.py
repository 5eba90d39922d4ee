"""A causal transformer that goes on column by column as a CUDA graph: for GPUs, where launching costs more than work.

What ``valle.model.decoder`` does call by call is recorded once and then replayed, a launch a column. A graph has fixed
addresses and shapes: keys and values lie in buffers that are kept for the next utterance with as many rows, and
attention reads them up to the next multiple of 256 columns, for each of which there is a graph. Where each row has
something to see stands in a mask. Candidates have copies of what they have in common.

All utterances of a process are to run on one stream: buffers go from one to the next without a wait. On a CPU the same
steps run without a graph; that is for tests. A model whose weights still change must not use this:
in another number type they are copies.

Source: CUDA graphs in PyTorch, https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import weakref
from threading import Lock, RLock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.model.transformer import Block, KVCache, Transformer

_STEP = 256
"""Columns between the sizes that there are graphs for."""
_WARM_UPS = 2
"""Runs before recording, in which libraries choose their kernels and take their memory."""

_RECORDING = Lock()
_LOCK = RLock()  # a finaliser may run while it is held
_free: weakref.WeakKeyDictionary[Transformer, list[_Recorded]] = weakref.WeakKeyDictionary()


class GraphDecoder:
    """As ``Decoder``: goes on from a cache that a transformer has filled, by up to ``max_len`` columns."""

    def __init__(
        self, transformer: Transformer, cache: KVCache, lens: Tensor, max_len: int, n_copies: int, dtype: torch.dtype
    ) -> None:
        """
        Args:
            transformer: not an adaptive one, and in evaluation mode.
            cache: of B rows.
            lens: [B] how many columns of the cache each row has; the others do not count.
            max_len: most columns to come.
            n_copies: C, how many rows go on from each.
            dtype: in which it computes, float32 or bfloat16.
        """
        self._transformer = transformer
        self._n_copies, self._max_len = n_copies, max_len
        n = cache.length
        self._recorded = _take(transformer, len(lens) * n_copies, n + max_len, dtype, lens.device)
        seen = torch.arange(self._recorded.capacity, device=lens.device) < lens.unsqueeze(1)  # [B, capacity]
        self._recorded.begin(
            [x[:, :, :n].repeat_interleave(n_copies, dim=0) for x in cache.keys],
            [x[:, :, :n].repeat_interleave(n_copies, dim=0) for x in cache.values],
            seen.repeat_interleave(n_copies, dim=0),
        )
        self._columns = n
        self.length = 0
        """Columns that came after those of the cache."""
        # Another utterance may have the buffers as soon as this one is forgotten.
        self._give_back = weakref.finalize(self, _give_back, weakref.ref(transformer), self._recorded)

    def step(self, x: Tensor) -> Tensor:
        """One more column of each row: x [B * C, D] -> [B * C, D] float32."""
        assert self.length < self._max_len, f"there is room for {self._max_len} more columns and no further one"
        self.length += 1
        return self._recorded.run(x, self._columns + self.length)

    def keep(self, copies: Tensor) -> None:
        """Of the rows that go on from each one that was read, only this one goes on: copies [B] of 0 to C - 1."""
        n_rows, old = len(copies), self._recorded
        rows = torch.arange(n_rows, device=copies.device) * self._n_copies + copies
        new = _take(self._transformer, n_rows, old.capacity, old.dtype, copies.device)
        n = self._columns + self.length
        seen = F.pad(old.seen[rows, 0, 0, :n], (0, new.capacity - n))
        new.begin([x[rows, :, :n] for x in old.keys], [x[rows, :, :n] for x in old.values], seen)
        self._give_back()
        self._recorded, self._n_copies = new, 1
        self._give_back = weakref.finalize(self, _give_back, weakref.ref(self._transformer), new)


class _Recorded:
    """The buffers of so many rows and columns, and a graph for each size of what attention reads."""

    @torch.inference_mode(False)  # else they could not be written to outside of it
    @torch.no_grad()
    def __init__(
        self, transformer: Transformer, n_rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype, self.capacity, self.n_rows = dtype, capacity, n_rows
        blocks = [block for block in transformer.blocks if isinstance(block, Block)]
        self._layers, self._norm = _apart(transformer, dtype)
        attention = blocks[0].attention
        self._heads = (attention.n_heads, attention.n_kv_heads, attention.n_kv_heads)
        dim, d = attention.out.in_features, attention.head_dim
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        shape = (n_rows, attention.n_kv_heads, capacity, d)
        self.keys = [torch.zeros(shape, **options) for _ in blocks]
        self.values = [torch.zeros(shape, **options) for _ in blocks]
        self.seen = torch.zeros(n_rows, 1, 1, capacity, dtype=torch.bool, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)  # of the next column
        self._x = torch.zeros(n_rows, dim, **options)
        self._h = torch.zeros(n_rows, dim, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.no_grad()
    def begin(self, keys: list[Tensor], values: list[Tensor], seen: Tensor) -> None:
        """Begin an utterance: keys and values of its first n columns, [rows, H, n, d] a layer; seen [rows, capacity]"""
        n = keys[0].shape[2]
        for ours, theirs in zip((*self.keys, *self.values), (*keys, *values), strict=True):
            ours[:, :, :n] = theirs
        self.seen.copy_(seen[:, None, None])
        self._place.fill_(n)

    @torch.no_grad()
    def run(self, x: Tensor, n_columns: int) -> Tensor:
        """x [rows, D], after which there are ``n_columns`` -> [rows, D] float32."""
        self._x.copy_(x)
        size = min(-(-n_columns // _STEP) * _STEP, self.capacity)
        if not self._x.is_cuda:
            self._column(size)
            return self._h.clone()
        with torch.cuda.device(self._x.device):
            if size not in self._graphs:
                with _RECORDING:
                    self._graphs[size] = self._record(size)
            self._graphs[size].replay()
            return self._h.clone()

    def _record(self, size: int) -> torch.cuda.CUDAGraph:
        place, seen = self._place.clone(), self.seen.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._column(size)
                self._place.copy_(place)
                self.seen.copy_(seen)  # what was written to the columns to come is written again before it is seen
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._column(size)
        return graph

    def _column(self, size: int) -> None:
        """One column, on nothing but the buffers."""
        n_rows = self.n_rows
        self.seen.index_fill_(3, self._place, True)
        x, seen = self._x, self.seen[..., :size]
        for layer, keys, values in zip(self._layers, self.keys, self.values, strict=True):

            def attend(x: Tensor, layer: _Layer = layer, keys: Tensor = keys, values: Tensor = values) -> Tensor:
                q, k, v = layer["qkv"](x).view(n_rows, sum(self._heads), -1).split(self._heads, dim=1)
                keys.index_copy_(2, self._place, k.unsqueeze(2))
                values.index_copy_(2, self._place, v.unsqueeze(2))
                y = F.scaled_dot_product_attention(
                    q.unsqueeze(2), keys[:, :, :size], values[:, :, :size], attn_mask=seen,
                    enable_gqa=self._heads[0] > self._heads[1],
                )  # fmt: skip
                return layer["out"](y.reshape(n_rows, -1))  # type: ignore[no-any-return]

            def feed(x: Tensor, layer: _Layer = layer) -> Tensor:
                return layer["down"](layer["activation"](layer["up"](x)))  # type: ignore[no-any-return]

            if layer["norm_first"]:
                x = x + attend(layer["attention_norm"](x))
                x = x + feed(layer["ff_norm"](x))
            else:
                x = layer["attention_norm"](x + attend(x))
                x = layer["ff_norm"](x + feed(x))
        self._h.copy_(x if self._norm is None else self._norm(x))
        self._place.add_(1)


_Layer = dict[str, Any]
_parts: weakref.WeakKeyDictionary[Transformer, dict[torch.dtype, tuple[list[_Layer], Any]]] = (
    weakref.WeakKeyDictionary()
)


def _apart(transformer: Transformer, dtype: torch.dtype) -> tuple[list[_Layer], Any]:
    """A transformer's blocks and its last norm taken apart, their weights in ``dtype``: once, for all buffers."""
    with _LOCK:
        known = _parts.setdefault(transformer, {})
        if dtype not in known:
            blocks = [_layer(block, dtype) for block in transformer.blocks if isinstance(block, Block)]
            known[dtype] = blocks, None if transformer.norm is None else _norm(transformer.norm, dtype)
        return known[dtype]


def _layer(block: Block, dtype: torch.dtype) -> _Layer:
    """A block taken apart, its weights in ``dtype``."""
    return {
        "norm_first": block.norm_first,
        "attention_norm": _norm(block.attention_norm, dtype),
        "ff_norm": _norm(block.ff_norm, dtype),
        "qkv": _linear(block.attention.qkv, dtype),
        "out": _linear(block.attention.out, dtype),
        "up": _linear(block.ff.up, dtype),
        "down": _linear(block.ff.out, dtype),
        "activation": block.ff.activation,
    }


def _linear(layer: nn.Linear, dtype: torch.dtype) -> Any:
    weight, bias = layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
    return lambda x: F.linear(x, weight, bias)


def _norm(norm: nn.Module, dtype: torch.dtype) -> Any:
    assert isinstance(norm, nn.LayerNorm), "an adaptive transformer does not go column by column"
    shape, eps = norm.normalized_shape, norm.eps
    weight, bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _take(transformer: Transformer, n_rows: int, n_columns: int, dtype: torch.dtype, device: torch.device) -> _Recorded:
    """Buffers for so many rows and columns that nobody uses, or new ones."""
    with _LOCK:
        free = _free.setdefault(transformer, [])
        for i, recorded in enumerate(free):
            fits = recorded.n_rows == n_rows and recorded.capacity >= n_columns and recorded.dtype == dtype
            if fits and recorded.seen.device == device:
                return free.pop(i)
    return _Recorded(transformer, n_rows, -(-n_columns // _STEP) * _STEP, dtype, device)


_MOST_FREE = 4
"""Buffers that wait for another utterance; more are let go."""


def _give_back(of: weakref.ref[Transformer], recorded: _Recorded) -> None:
    transformer = of()
    if transformer is not None:
        with _LOCK:
            free = _free.setdefault(transformer, [])
            free.insert(0, recorded)
            del free[_MOST_FREE:]
