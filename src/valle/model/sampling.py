"""From logits to a token: temperature, top-k, top-p and repetition-aware sampling, a whole batch at once.

The paper samples and says no more. Repetition-aware sampling is VALL-E 2's (arXiv 2406.05370, §3.3): a token that already fills
too much of the last frames is drawn again from the model's whole distribution, which breaks loops without a penalty.

Every row has its own generator, so that what is drawn for an utterance does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from valle.errors import ValleError


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn; the defaults draw from the model's distribution as it is."""

    temperature: float = 1.0
    """Divides the logits: below 1 plays safe, above 1 is bolder, 0 always takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens may be drawn; 0 for all."""
    top_p: float = 1.0
    """Only the smallest set of tokens whose probabilities reach this sum may be drawn; 1 for all."""
    repetition_aware: bool = False
    """Draw a token again, at temperature 1 and from all tokens, when it already fills more than ras_threshold of the last ones."""
    ras_window: int = 10
    """How many of the last tokens repetition-aware sampling looks at (K in VALL-E 2)."""
    ras_threshold: float = 0.1
    """The share of them that a token may fill (t_r in VALL-E 2)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValleError(f"temperature is {self.temperature}; it must be 0 (always the likeliest) or more, 1 is usual")
        if self.top_k < 0:
            raise ValleError(f"top_k is {self.top_k}; it must be 0 (off) or a number of tokens")
        if not 0 < self.top_p <= 1:
            raise ValleError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (off)")
        if self.ras_window < 1:
            raise ValleError(f"ras_window is {self.ras_window}; it must be at least 1 token, 10 is usual")
        if not 0 <= self.ras_threshold <= 1:
            raise ValleError(f"ras_threshold is {self.ras_threshold}; it must be a share between 0 and 1, 0.1 is usual")


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Apply temperature, top-k and top-p, in this order. logits [B, V] -> [B, V] float32, -inf where nothing may be drawn."""
    assert config.temperature > 0, "at temperature 0 there is nothing to draw"
    logits = logits.float() / config.temperature
    if config.top_k == 0 and config.top_p == 1:
        return logits
    ordered, tokens = logits.sort(dim=-1, descending=True)  # [B, V] each
    if config.top_k:
        ordered[:, config.top_k :] = -torch.inf
    if config.top_p < 1:
        probs = ordered.softmax(dim=-1)
        # A token goes when those before it suffice; the one that crosses top_p stays, and so always does the first.
        ordered = ordered.masked_fill(probs.cumsum(dim=-1) - probs >= config.top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, tokens, ordered)


def sample(
    logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator], recent: Tensor | None = None
) -> Tensor:
    """Draw one token a row.

    Args:
        logits: [B, V]; -inf excludes a token.
        config: how to draw.
        generators: one a row, on any device. At temperature 0 without repetition awareness they are not touched.
        recent: [B, ras_window] the last tokens of each row, -1 where there are fewer; for repetition-aware sampling.

    Returns:
        tokens [B] int64.
    """
    logits = logits.float()
    if config.temperature == 0:
        tokens = logits.argmax(dim=-1)  # [B]
    else:
        tokens = _draw(filter_logits(logits, config), generators)
    if not config.repetition_aware:
        return tokens
    assert recent is not None, "repetition-aware sampling needs the recent tokens"
    assert recent.shape == (len(logits), config.ras_window), f"recent is {tuple(recent.shape)}, not [B, ras_window]"
    share = (recent == tokens.unsqueeze(1)).sum(dim=1).double() / config.ras_window  # [B]
    return torch.where(share > config.ras_threshold, _draw(logits, generators), tokens)


def _draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw from softmax(logits) by the Gumbel-max trick: the arg-max of the logits with Gumbel noise is such a draw.

    Unlike a search in cumulated probabilities, rounding can never make it return an excluded token.
    """
    noise = torch.stack(
        [torch.empty(logits.shape[1], device=g.device).exponential_(generator=g).to(logits.device) for g in generators]
    )  # [B, V]
    return (logits - noise.log()).argmax(dim=-1)  # [B]
