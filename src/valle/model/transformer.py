"""The one transformer under both models (paper §5.1: 12 layers, 16 heads, width 1024, feed-forward 4096, dropout 0.1).

The AR runs it causally and, when it speaks, over a KV cache; the NAR runs it in both directions, with layer norms
adapted to the stage. It maps vectors to vectors: embeddings and outputs belong to the models. What both models need
besides is here too: embedding tables, sinusoidal positions, the mask of a padded batch, the loss over tokens.

What the paper leaves open, and what is chosen here:

- Norm: before each branch and once at the end ("pre"), which trains deep stacks without care; "post" is a config value.
- Activation: GELU.
- Dropout: on the input and on what each branch adds; not on attention weights, which the fast kernels would not allow.
- Initialisation: linear weights N(0, 1/fan_in), those that end a branch smaller by sqrt(2 n_layers), so that the sum of
  all branches is no larger than one; biases 0. Adaptive norms start as plain ones, equal for all stages.
- Size of the input: embeddings N(0, 1/D) and positions of amplitude 1/sqrt(D), small as in GPT-2. Multiplying both by
  sqrt(D), the other custom, lets the input outweigh what the branches add, and a tied output then begins by repeating
  its input with near certainty. This way logits start at unit size, and the loss near log(codebook_size).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from valle.errors import ValleError
from valle.model.narrow import Linear, Narrowable

IGNORE_INDEX = -100
"""The target of a place that is not in the loss. Neither a token nor padding: no input holds it."""


@dataclass(frozen=True)
class TransformerConfig:
    """Size and shape of a transformer; the defaults are the paper's."""

    dim: int = 1024
    """Width D of the residual stream."""
    n_layers: int = 12
    """Blocks of attention and feed-forward."""
    n_heads: int = 16
    """Attention heads H, each of d = dim / n_heads channels."""
    ff_dim: int = 4096
    """Width inside the feed-forward branch."""
    dropout: float = 0.1
    """Share of channels dropped in training, from the input and from what each branch adds."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each branch, or after each sum as in the first transformers; the paper does not say which."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Non-linearity of the feed-forward branch; the paper does not say which."""
    n_kv_heads: int = 0
    """Heads of keys and values, each for n_heads / n_kv_heads of the queries (grouped-query attention, arXiv
    2305.13245): that many times less to keep and to read for every frame. 0: n_heads, as in the paper."""

    def __post_init__(self) -> None:
        sizes = {"dim": self.dim, "n_layers": self.n_layers, "n_heads": self.n_heads, "ff_dim": self.ff_dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValleError(f"the transformer's {name} is {size}; it must be at least 1")
        if self.dim % self.n_heads or self.dim % 2:
            raise ValleError(
                f"dim is {self.dim} and n_heads {self.n_heads}; dim must be even and a multiple of n_heads"
            )
        if self.n_kv_heads < 0 or self.n_heads % (self.n_kv_heads or 1):
            raise ValleError(f"n_kv_heads is {self.n_kv_heads}; it must be 0 or divide n_heads, {self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise ValleError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads


class KVCache:
    """Keys and values of all layers, allocated once: two lists of ``n_layers`` buffers [B, ``kv_heads``, max_len, d].

    ``length`` columns are filled. All rows grow by the same columns, so that a step writes a slice and scatters
    nothing; a row that began shorter than the others has a gap there, which a mask must hide.
    """

    def __init__(self, config: TransformerConfig, batch_size: int, max_len: int, like: Tensor) -> None:
        """``like`` gives device and dtype."""
        shape = (batch_size, config.kv_heads, max_len, config.dim // config.n_heads)
        self.keys = [like.new_empty(shape) for _ in range(config.n_layers)]
        self.values = [like.new_empty(shape) for _ in range(config.n_layers)]
        self.max_len = max_len
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, n, d] behind the filled columns; return all of them, [B, H, length + n, d] each.

        ``length`` moves only when every layer has written: ``Transformer.forward`` does that.
        """
        n = keys.shape[2]
        end = self.length + n
        assert end <= self.max_len, f"the KV cache holds {self.max_len} columns, {end} are needed"
        self.keys[layer].narrow(2, self.length, n).copy_(keys)
        self.values[layer].narrow(2, self.length, n).copy_(values)
        return self.keys[layer].narrow(2, 0, end), self.values[layer].narrow(2, 0, end)


class Norm(nn.LayerNorm):
    """A plain layer norm, called like an adaptive one."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        return super().forward(x)


class AdaptiveNorm(nn.Module):
    """AdaLN(h, i) = a_i · LayerNorm(h) + b_i; a_i and b_i are linear in the embedding of stage i (paper §4.2.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.project = nn.Linear(dim, 2 * dim)

    def initialise(self) -> None:
        """Start as a plain layer norm: a = 1, b = 0 at every stage."""
        nn.init.zeros_(self.project.weight)
        nn.init.ones_(self.project.bias[: self.dim])
        nn.init.zeros_(self.project.bias[self.dim :])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, L, D], condition [D] the embedding of the stage -> [B, L, D]."""
        assert condition is not None, "an adaptive transformer needs the embedding of the stage"
        scale, shift = self.project(condition).to(x.dtype).chunk(2)  # [D] each; autocast would leave them in half
        return F.layer_norm(x, (self.dim,), scale, shift)


class Attention(nn.Module):
    """Multi-head self-attention, of which several heads may share keys and values."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads = config.n_heads, config.kv_heads
        self.head_dim = config.dim // config.n_heads
        self.qkv = Linear(config.dim, (self.n_heads + 2 * self.n_kv_heads) * self.head_dim)
        self.out = Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, cache: KVCache | None) -> Tensor:
        batch_size, length, dim = x.shape
        qkv = self.qkv(x).view(batch_size, length, -1, self.head_dim)  # [B, L, H + 2 H', d]
        # NOTE taken apart first, and then turned: the gradients are put together in one copy fewer.
        heads = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.split(heads, dim=2))  # [B, H, L, d], twice [B, H', L, d]
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # [B, H', cache.length + L, d] each
        if self.n_kv_heads < self.n_heads:
            k, v = (x.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1) for x in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)  # [B, H, L, d]
        x = self.out(y.transpose(1, 2).reshape(batch_size, length, dim))  # [B, L, D]
        return x


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = F.gelu if config.activation == "gelu" else F.relu
        self.up = Linear(config.dim, config.ff_dim)
        self.out = Linear(config.ff_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.up(x))  # [B, L, ff_dim]
        x = self.out(x)  # [B, L, D]
        return x


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: TransformerConfig, layer: int, adaptive: bool) -> None:
        super().__init__()
        norm = AdaptiveNorm if adaptive else Norm
        self.norm_first = config.norm == "pre"
        self.attention_norm = norm(config.dim)
        self.attention = Attention(config, layer)
        self.ff_norm = norm(config.dim)
        self.ff = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, condition: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x, condition), mask, causal, cache))
            x = x + self.dropout(self.ff(self.ff_norm(x, condition)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, mask, causal, cache)), condition)
            x = self.ff_norm(x + self.dropout(self.ff(x)), condition)
        return x


class Transformer(nn.Module):
    """The blocks, and a last norm when norms stand before the branches. ``adaptive``: all norms depend on a stage."""

    def __init__(self, config: TransformerConfig, adaptive: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, adaptive) for layer in range(config.n_layers))
        self.norm = (AdaptiveNorm if adaptive else Norm)(config.dim) if config.norm == "pre" else None
        self.checkpointing = False
        """Keep only the input of each block in training, and compute the rest again for the gradient: less memory, more
        time, the same numbers, dropout included. A matter of the run, not of the model."""
        self.graph_dtype: torch.dtype | None = None
        """In which number type it goes on column by column as a CUDA graph (``valle.model.graphs``); None: it does not.
        For weights that no longer change."""
        self._compiled: Callable[..., Tensor] | None = None
        self._initialise(config.n_layers)

    @property
    def _is_in_8_bits(self) -> bool:
        block = self.blocks[0]
        return isinstance(block, Block) and block.attention.qkv.precision == "int8"

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the blocks for training: one program for all layers and all lengths.

        In evaluation all stays as it is: what speaks grows by one place at a time.
        """
        self._compiled = torch.compile(_run_block, dynamic=True, backend=backend)

    @torch.no_grad()
    def _initialise(self, n_layers: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention | FeedForward):
                module.out.weight.mul_((2 * n_layers) ** -0.5)
            elif isinstance(module, AdaptiveNorm):
                module.initialise()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        condition: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x [B, L, D] -> [B, L, D].

        Args:
            x: embeddings with their positions.
            mask: bool, broadcastable to [B, H, L, n] where n counts the cached columns and these; True: may be seen.
            causal: each place sees itself and those before it; without a mask, and only on an empty cache.
            condition: [D] the embedding of the stage, for an adaptive transformer.
            cache: takes the keys and values of x, which sees those already there as well.
        """
        assert not causal or mask is None, "causal and a mask exclude each other"
        assert not causal or cache is None or cache.length == 0, "causal needs an empty cache"
        if cache is None and self._is_in_8_bits and (mask is None or mask.shape == (len(x), 1, 1, x.shape[1])):
            from valle.native.sequence import can_read, read  # which needs this module

            if can_read(self, x):
                places = None if mask is None else mask[:, 0, 0]
                return read(self, x, mask=places, causal=causal, condition=condition)[0]
        x = self.dropout(x)
        learns = self.training and torch.is_grad_enabled()
        run: Callable[..., Tensor] = self._compiled if self._compiled is not None and learns else _run_block
        for block in self.blocks:
            if self.checkpointing and learns:
                x = checkpoint(run, block, x, mask, causal, condition, cache, use_reentrant=False)
            else:
                x = run(block, x, mask, causal, condition, cache)
        if cache is not None:
            cache.length += x.shape[1]
        return x if self.norm is None else self.norm(x, condition)


def _run_block(block: nn.Module, *args: Any) -> Tensor:
    return block(*args)  # type: ignore[no-any-return]


class Embedding(Narrowable, nn.Embedding):
    """A table of vectors [n, D], N(0, 1/D) at the start."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)

    def scores(self, x: Tensor) -> Tensor:
        """The table as an output layer: x [..., D] -> [..., n]."""
        return self.multiplier()(x)


def code_vectors(codebooks: Tensor, dim: int) -> Tensor:
    """A codec's codebooks as embeddings to begin with: codes that sound alike then start alike.

    Each is centred, rotated at random (all by the same rotation; if ``dim`` is the smaller one, projected), and scaled
    to the size of ``Embedding``'s vectors, a mean square norm of 1.

    Args:
        codebooks: [K, C, d] the entries of each codebook.
        dim: D.

    Returns:
        [K, C, D].
    """
    d = codebooks.shape[2]
    rotation = torch.linalg.qr(torch.randn(max(d, dim), max(d, dim)))[0][:d, :dim]  # [d, D]
    vectors = (codebooks - codebooks.mean(dim=1, keepdim=True)) @ rotation.to(codebooks)
    scale: Tensor = vectors.square().sum(dim=2).mean(dim=1).sqrt().clamp(min=1e-8)  # [K]
    return vectors / scale.view(-1, 1, 1)  # type: ignore[no-any-return]


class SinusoidalPositions(nn.Module):
    """A table of ``sinusoids``: no parameters, not stored, longer when a longer one is asked for."""

    table: Tensor

    def __init__(self, dim: int, n: int = 2048) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(n, dim), persistent=False)

    def forward(self, n: int) -> Tensor:
        """The vectors of positions 0 to n - 1, [n, D]."""
        if n > len(self.table):
            # NOTE what is made in inference mode could not be used in training afterwards.
            with torch.inference_mode(False):
                self.table = sinusoids(max(n, 2 * len(self.table)), self.table.shape[1]).to(self.table)
        return self.table[:n]


def sinusoids(n: int, dim: int) -> Tensor:
    """Positions of *Attention is all you need*: [n, D] float32, sines in even channels, cosines in odd ones.

    Wavelengths go from 2π to 20000π frames; the amplitude is 1/sqrt(D), that of the embeddings.
    """
    frequencies = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))  # [D/2]
    angles = torch.arange(n).unsqueeze(1) * frequencies  # [n, D/2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1) / math.sqrt(dim)  # [n, D]


def padding_mask(lens: Tensor, n: int) -> Tensor:
    """lens [B] -> [B, n] bool, True below the length of the row: where there is no padding."""
    return torch.arange(n, device=lens.device) < lens.unsqueeze(1)


def token_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy over the targets other than ``IGNORE_INDEX``, and how often these were among the best guesses.

    Args:
        logits: [B, T, V].
        targets: [B, T] int64.

    Returns:
        The mean loss in nats; and detached scalars: ``loss``, ``top1`` and ``top10`` (shares in [0, 1]), and
        ``n_tokens``, the weight of this batch in a mean over several.
    """
    logits, targets = logits.flatten(0, 1).float(), targets.flatten()  # [B*T, V], [B*T]
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)
    with torch.no_grad():
        # No guess equals IGNORE_INDEX: what is not in the loss is never a hit.
        hits = logits.topk(min(10, logits.shape[1])).indices == targets.unsqueeze(1)  # [B*T, 10]
        n_tokens = (targets != IGNORE_INDEX).sum()
        top1, top10 = hits[:, 0].sum() / n_tokens, hits.sum() / n_tokens
    return loss, {"loss": loss.detach(), "top1": top1, "top10": top10, "n_tokens": n_tokens}
