"""The one transformer under both models (paper §4.1: 12 layers, 16 heads, width 1024, feed-forward 4096, dropout 0.1).

The AR runs it causally and, when it speaks, over a KV cache; the NAR runs it in both directions with layer norms adapted to
the stage. It maps vectors to vectors: embeddings and outputs belong to the models. Three small things both models need are
here too: sinusoidal positions, the mask of a padded batch, and the loss over tokens.

What the paper leaves open, and what is chosen here:

- Norm: before each branch and once at the end ("pre"), which trains at 12 layers without care; "post" is a config value.
- Activation: GELU.
- Dropout: on the input and on what each branch adds; not on attention weights, for which the fast kernels have no room.
- Initialisation: linear weights N(0, 1/fan_in), those that end a branch smaller by sqrt(2 n_layers) so that the sum of all
  branches starts no larger than the input; biases 0. Embeddings N(0, 1/dim), multiplied by sqrt(dim) on the way in: entries of
  unit size beside sinusoids of 0.7, and logits of unit size where the same table is the output.
- Adaptive norms start as plain ones, equal for all stages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.errors import ValleError

IGNORE_INDEX = -100
"""The target of a place that is not in the loss. Neither a token nor padding: no input ever holds it."""


@dataclass(frozen=True)
class TransformerConfig:
    """Size and shape of a transformer; the defaults are the paper's."""

    dim: int = 1024
    """Width D of the residual stream."""
    n_layers: int = 12
    """Blocks of attention and feed-forward."""
    n_heads: int = 16
    """Attention heads H; each has dim / n_heads channels d."""
    ff_dim: int = 4096
    """Width inside the feed-forward branch."""
    dropout: float = 0.1
    """Share of channels dropped in training, from the input and from what each branch adds."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each branch, or after each sum as in the first transformers; the paper does not say which."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Non-linearity of the feed-forward branch; the paper does not say which."""

    def __post_init__(self) -> None:
        if min(self.dim, self.n_layers, self.n_heads, self.ff_dim) < 1:
            raise ValleError(f"a transformer's dim, n_layers, n_heads and ff_dim must be at least 1, not {self}")
        if self.dim % self.n_heads or self.dim % 2:
            raise ValleError(f"dim is {self.dim} and n_heads {self.n_heads}; dim must be even and a multiple of n_heads")
        if not 0 <= self.dropout < 1:
            raise ValleError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


class KVCache:
    """Keys and values of all layers, allocated once: two lists of ``n_layers`` buffers [B, H, max_len, d].

    ``length`` columns are filled. All rows grow by the same columns, so that a step writes a slice instead of scattering;
    a row that began shorter than the others has a gap there, and whoever attends passes a mask that hides it.
    """

    def __init__(self, config: TransformerConfig, batch_size: int, max_len: int, like: Tensor) -> None:
        """``like`` gives device and dtype."""
        shape = (batch_size, config.n_heads, max_len, config.dim // config.n_heads)
        self.keys = [like.new_empty(shape) for _ in range(config.n_layers)]
        self.values = [like.new_empty(shape) for _ in range(config.n_layers)]
        self.max_len = max_len
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, n, d] after the filled columns; return all, [B, H, length + n, d].

        ``length`` itself moves when the last layer has written: see ``Transformer.forward``.
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
    """AdaLN(h, i) = a_i · LayerNorm(h) + b_i, where a_i and b_i are linear in the embedding of stage i (paper §4.2.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.project = nn.Linear(dim, 2 * dim)

    def initialise(self) -> None:
        """Start as a plain layer norm: a = 1, b = 0 at every stage."""
        nn.init.zeros_(self.project.weight)
        with torch.no_grad():
            self.project.bias.copy_(torch.cat([torch.ones(self.dim), torch.zeros(self.dim)]))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, L, D], condition [D] the stage's embedding -> [B, L, D]."""
        assert condition is not None, "an adaptive transformer needs the embedding of the stage"
        scale, shift = self.project(condition).chunk(2)  # [D] each
        return F.layer_norm(x, (self.dim,), scale.to(x.dtype), shift.to(x.dtype))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, cache: KVCache | None) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.n_heads, dim // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, L, d] each
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # [B, H, cache.length + L, d] each
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)  # [B, H, L, d]
        return self.out(y.transpose(1, 2).reshape(batch, length, dim))  # type: ignore[no-any-return]  # [B, L, D]


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.ff_dim)
        self.activation = F.gelu if config.activation == "gelu" else F.relu
        self.out = nn.Linear(config.ff_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.up(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: TransformerConfig, layer: int, adaptive: bool) -> None:
        super().__init__()
        norm = AdaptiveNorm if adaptive else Norm
        self.pre_norm = config.norm == "pre"
        self.attention_norm = norm(config.dim)
        self.attention = Attention(config, layer)
        self.ff_norm = norm(config.dim)
        self.ff = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, condition: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x, condition), mask, causal, cache))
            return x + self.dropout(self.ff(self.ff_norm(x, condition)))  # type: ignore[no-any-return]
        x = self.attention_norm(x + self.dropout(self.attention(x, mask, causal, cache)), condition)
        return self.ff_norm(x + self.dropout(self.ff(x)), condition)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Blocks, with a last norm when norms stand before the branches. ``adaptive``: every norm depends on a stage."""

    def __init__(self, config: TransformerConfig, adaptive: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, adaptive) for layer in range(config.n_layers))
        self.norm = (AdaptiveNorm if adaptive else Norm)(config.dim) if config.norm == "pre" else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, AdaptiveNorm):
                module.initialise()
            elif isinstance(module, Attention | FeedForward):
                with torch.no_grad():
                    module.out.weight.mul_((2 * config.n_layers) ** -0.5)

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
            mask: bool, broadcastable to [B, H, L, K] where K counts the cached columns and these; True: may be seen.
            causal: each place sees itself and those before it; only without a mask and with an empty cache.
            condition: [D] the stage's embedding; for an adaptive transformer.
            cache: filled with the keys and values of x, which then also sees those already there.
        """
        assert not causal or (mask is None and (cache is None or cache.length == 0)), "causal excludes a mask and a past"
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask, causal, condition, cache)
        if cache is not None:
            cache.length += x.shape[1]
        return x if self.norm is None else self.norm(x, condition)


class Embedding(nn.Embedding):
    """A table of tokens [n, D], N(0, 1/D), whose entries are multiplied by sqrt(D) on the way in."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., D]."""
        return super().forward(ids) * math.sqrt(self.embedding_dim)


class SinusoidalPositions(nn.Module):
    """The fixed positions of *Attention is all you need*: sines in the even channels, cosines in the odd ones.

    They have no parameters and are not stored; the table grows when a longer one is asked for.
    """

    table: Tensor

    def __init__(self, dim: int, n: int = 2048) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(n, dim), persistent=False)

    def forward(self, n: int) -> Tensor:
        """The vectors of positions 0 to n - 1, [n, D]."""
        if n > len(self.table):
            # NOTE a table made in inference mode could not be used in training afterwards.
            with torch.inference_mode(False):
                self.table = sinusoids(max(n, 2 * len(self.table)), self.table.shape[1]).to(self.table)
        return self.table[:n]


def sinusoids(n: int, dim: int) -> Tensor:
    """Positions [n, D] float32; wavelengths from 2π to 20000π."""
    frequencies = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))  # [D/2]
    angles = torch.arange(n).unsqueeze(1) * frequencies  # [n, D/2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [n, D]


def padding_mask(lens: Tensor, n: int) -> Tensor:
    """lens [B] -> [B, n] bool, True where row i holds something: below lens[i]."""
    return torch.arange(n, device=lens.device) < lens.unsqueeze(1)


def token_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy over the targets that are not ``IGNORE_INDEX``, and how often they were among the best guesses.

    Args:
        logits: [B, T, V].
        targets: [B, T] int64.

    Returns:
        The mean loss in nats, and detached scalars ``loss``, ``top1``, ``top10`` (shares in [0, 1]) and ``n_tokens``, by which
        means over several batches are weighted.
    """
    logits, targets = logits.flatten(0, 1).float(), targets.flatten()  # [B*T, V], [B*T]
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)
    with torch.no_grad():
        # No guess equals IGNORE_INDEX, so places outside the loss are never counted as hits.
        hits = logits.topk(min(10, logits.shape[1])).indices == targets.unsqueeze(1)  # [B*T, 10]
        n_tokens = (targets != IGNORE_INDEX).sum()
        metrics = {
            "loss": loss.detach(),
            "top1": hits[:, 0].sum() / n_tokens,
            "top10": hits.sum() / n_tokens,
            "n_tokens": n_tokens,
        }
    return loss, metrics
