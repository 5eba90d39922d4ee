"""A causal transformer that goes on column by column, in as few calls as can be.

What ``Transformer.forward`` does over a KV cache, for one column a row. At this size the calls themselves take a good
part of the time, so that modules are taken apart once and nothing is looked up later.

Rows may begin alike: C rows then go on from each row that was read. What they have in common is kept once and read once
for all of them, which is most of what attention reads. Inside, their rows stand side by side, [B, H, C, ...]. A single
row has nothing in common with others: what comes is written behind what was there. Of H heads of keys and values each
serves G of the queries' heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.model.transformer import Block, KVCache, Transformer

_Function = Callable[[Tensor], Tensor]


class Decoder:
    """Goes on from a cache that a transformer has filled, by up to ``max_len`` columns."""

    def __init__(
        self, transformer: Transformer, cache: KVCache, max_len: int, n_copies: int = 1, mask: Tensor | None = None
    ) -> None:
        """
        Args:
            transformer: not an adaptive one, and in evaluation mode.
            cache: of B rows.
            max_len: most columns to come.
            n_copies: C, how many rows go on from each.
            mask: [B, cache.length] bool, which columns of the cache hold something; None: all do.
        """
        blocks = [block for block in transformer.blocks if isinstance(block, Block)]
        hidden = None
        if mask is not None:  # [B, 1, 1, n], to be added to scores
            hidden = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)[:, None, None]
        self._layers = [_Layer(block, cache, max_len, n_copies, hidden) for block in blocks]
        self._norm = None if transformer.norm is None else _norm(transformer.norm)
        self._max_len = max_len
        self.length = 0
        """Columns that came after those of the cache."""

    def step(self, x: Tensor) -> Tensor:
        """One more column of each row: x [B * C, D] -> [B * C, D]."""
        assert self.length < self._max_len, f"there is room for {self._max_len} more columns and no further one"
        for layer in self._layers:
            x = layer.step(x, self.length)
        self.length += 1
        return x if self._norm is None else self._norm(x)

    def keep(self, copies: Tensor) -> None:
        """Of the rows that go on from each one that was read, only this one goes on: copies [B] of 0 to C - 1."""
        for layer in self._layers:
            layer.keep(copies, self.length, self._max_len)


class _Layer:
    """A block of the transformer, with the keys and values that it has seen."""

    def __init__(self, block: Block, cache: KVCache, max_len: int, n_copies: int, hidden: Tensor | None) -> None:
        """``hidden`` [B, 1, 1, cache.length] is added to the scores of the cache's columns."""
        attention, ff = block.attention, block.ff
        self.norm_first = block.norm_first
        self.attention_norm, self.ff_norm = _norm(block.attention_norm), _norm(block.ff_norm)
        self.qkv, self.out = attention.qkv.multiplier(), attention.out.multiplier()
        self.up, self.activation, self.down = ff.up.multiplier(), ff.activation, ff.out.multiplier()
        n = cache.length
        self.columns_hidden = hidden
        first_keys, first_values = (x[attention.layer][:, :, :n] for x in (cache.keys, cache.values))  # [B, H, n, d]
        n_rows, n_heads, _, d = first_keys.shape
        self.shape = (n_rows, n_copies, n_heads, attention.n_heads // n_heads, d)
        self.n_queries = attention.n_heads * d
        self.scale = d**-0.5
        self.n_shared = n
        self.all: Tensor | None = None
        if n_copies == 1:
            self.all = first_keys.new_empty(2, n_rows, n_heads, n + max_len, d)  # keys and values
            self.all[0, :, :, :n], self.all[1, :, :, :n] = first_keys, first_values
            self.hidden = self._hidden_alone(n_heads, max_len)
            return
        self.shared_keys = first_keys.flatten(0, 1).transpose(1, 2)  # [B * H, d, n]
        self.shared_values = first_values.flatten(0, 1)  # [B * H, n, d]
        n_each = n_copies * self.shape[3]
        self.hidden = None if hidden is None else hidden.expand(-1, n_heads, n_each, -1).flatten(0, 1)
        self.own = first_keys.new_empty(2, n_rows, n_heads, n_copies, max_len, d)  # keys and values
        self.own_keys, self.own_values = self.own.flatten(1, 3).unbind(0)  # [B * H * C, max_len, d] each

    def _hidden_alone(self, n_heads: int, max_len: int) -> Tensor | None:
        """What is added to the scores of single rows, [B * H, 1, n_shared + max_len]."""
        hidden = self.columns_hidden
        return None if hidden is None else F.pad(hidden, (0, max_len)).expand(-1, n_heads, 1, -1).flatten(0, 1)

    def keep(self, copies: Tensor, length: int, max_len: int) -> None:
        """As ``Decoder.keep``, after ``length`` columns of at most ``max_len``."""
        n_rows, n_copies, n_heads, n_grouped, d = self.shape
        if n_copies == 1:
            return
        n = self.n_shared
        rows = torch.arange(n_rows, device=copies.device)
        self.all = self.own.new_empty(2, n_rows, n_heads, n + max_len, d)
        self.all[0, :, :, :n] = self.shared_keys.transpose(1, 2).view(n_rows, n_heads, n, d)
        self.all[1, :, :, :n] = self.shared_values.view(n_rows, n_heads, n, d)
        self.all[:, :, :, n : n + length] = self.own[:, rows, :, copies, :length].transpose(0, 1)
        self.hidden = self._hidden_alone(n_heads, max_len)
        self.shape = (n_rows, 1, n_heads, n_grouped, d)
        del self.own, self.own_keys, self.own_values, self.shared_keys, self.shared_values

    def step(self, x: Tensor, n: int) -> Tensor:
        """x [B * C, D] -> [B * C, D]; n columns came before it, besides the cache's."""
        if self.norm_first:
            x = x + self.attend(self.attention_norm(x), n)
            return x + self.down(self.activation(self.up(self.ff_norm(x))))
        x = self.attention_norm(x + self.attend(x, n))
        return self.ff_norm(x + self.down(self.activation(self.up(x))))

    def attend(self, x: Tensor, n: int) -> Tensor:
        """x [B * C, D] -> [B * C, D]."""
        n_rows, n_copies, n_heads, n_grouped, d = self.shape
        qkv = self.qkv(x)
        q = qkv[:, : self.n_queries].view(n_rows, n_copies, n_heads, n_grouped, d).transpose(1, 2) * self.scale
        new = qkv[:, self.n_queries :].view(n_rows, n_copies, 2, n_heads, d).permute(2, 0, 3, 1, 4)  # [2, B, H, C, d]
        if self.all is not None:
            return self._attend_alone(q.reshape(-1, n_grouped, d), new, self.all, self.n_shared + n + 1)
        self.own[:, :, :, :, n] = new
        keys, values = self.own_keys[:, : n + 1], self.own_values[:, : n + 1]  # [B * H * C, n + 1, d] each
        each = q.reshape(-1, n_grouped, d)  # [B * H * C, G, d]
        together = each.view(n_rows * n_heads, n_copies * n_grouped, d)
        if self.hidden is None:
            shared = torch.bmm(together, self.shared_keys)  # [B * H, C * G, n_shared]
        else:
            shared = torch.baddbmm(self.hidden, together, self.shared_keys)
        own = torch.bmm(each, keys.transpose(1, 2)).view(*together.shape[:2], n + 1)  # [B * H, C * G, n + 1]
        weights = torch.cat([shared, own], dim=2).softmax(dim=2)
        found = torch.bmm(weights[..., : self.n_shared], self.shared_values).view_as(each)  # [B * H * C, G, d]
        found = torch.baddbmm(found, weights[..., self.n_shared :].reshape(-1, n_grouped, n + 1), values)
        found = found.view(n_rows, n_heads, n_copies, n_grouped * d).transpose(1, 2)  # [B, C, H, G * d]
        return self.out(found.reshape(n_rows * n_copies, self.n_queries))

    def _attend_alone(self, q: Tensor, new: Tensor, all: Tensor, end: int) -> Tensor:
        """q [B * H, G, d], new [2, B, H, 1, d], all [2, B, H, n, d] of which ``end`` columns count -> [B, D].

        The new keys and values are the last of these columns.

        NOTE two products are twice as fast as ``scaled_dot_product_attention``, which shares nothing out for one query.
        """
        all[:, :, :, end - 1 : end] = new
        keys, values = all.flatten(1, 2)[:, :, :end].unbind(0)  # [B * H, end, d] each
        if self.hidden is None:
            scores = torch.bmm(q, keys.transpose(1, 2))  # [B * H, G, end]
        else:
            scores = torch.baddbmm(self.hidden[:, :, :end], q, keys.transpose(1, 2))
        found = torch.bmm(scores.softmax(dim=2), values)  # [B * H, G, d]
        return self.out(found.view(all.shape[1], -1))


def _norm(norm: nn.Module) -> _Function:
    assert isinstance(norm, nn.LayerNorm), "an adaptive transformer does not go column by column"
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
