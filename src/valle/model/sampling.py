"""From logits to a token: temperature, top-k, top-p and repetition-aware sampling, for a whole batch at once.

The paper samples and says no more. Repetition-aware sampling is VALL-E 2's (arXiv 2406.05370): a token that already
fills too much of the last frames is drawn again, from the model's whole distribution; loops end, nothing is penalised.

Each row has its own generator, so that what is drawn for an utterance does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from valle.errors import ValleError
from valle.native import sampling as native


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
    """Draw again, from all tokens and at temperature 1, when a token already fills too much of the last ones."""
    ras_window: int = 10
    """How many of the last tokens repetition-aware sampling looks at (K in VALL-E 2)."""
    ras_threshold: float = 0.1
    """The share of them that a token may fill (t_r in VALL-E 2)."""

    guidance: float = 1.0
    """How far the text pulls: logits without it, plus so many times what it changes (classifier-free guidance,
    arXiv 2207.12598). 1: off; above, what is said is more surely the text, at twice the work. The AR's part
    (``ARConfig.text_dropout``): ``sample`` gets logits that are guided already."""
    voice_guidance: float = 1.0
    """Likewise how far the prompt's voice pulls: the text is read without the prompt, too, as if anyone could say it.
    1: off. The embedded model gained nothing by it (docs/LOG.md)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValleError(f"guidance is {self.guidance}; it must be 0 or more; 1 is off, 1.5 to 3 are usual")
        if not (math.isfinite(self.voice_guidance) and self.voice_guidance >= 0):
            raise ValleError(
                f"voice_guidance is {self.voice_guidance}; it must be 0 or more; 1 is off, 1.5 to 2.5 have been tried"
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValleError(
                f"temperature is {self.temperature}; it must be 0 (always the likeliest) or more; 1 is usual"
            )
        if self.top_k < 0:
            raise ValleError(f"top_k is {self.top_k}; it must be 0 (off) or a number of tokens")
        if not 0 < self.top_p <= 1:
            raise ValleError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (off)")
        if self.ras_window < 1:
            raise ValleError(f"ras_window is {self.ras_window}; it must be at least 1 token; 10 is usual")
        if not 0 <= self.ras_threshold <= 1:
            raise ValleError(f"ras_threshold is {self.ras_threshold}; it must be between 0 and 1; 0.1 is usual")


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Apply temperature, top-k and top-p in this order.

    logits [B, V] -> [B, V] float32; -inf excludes a token, before and after.
    """
    assert config.temperature > 0, "at temperature 0 nothing is drawn"
    logits = logits.float() / config.temperature
    if config.top_k == 0 and config.top_p == 1:
        return logits
    ordered, tokens = logits.sort(dim=-1, descending=True)  # [B, V] each
    if config.top_k > 0:
        ordered[:, config.top_k :] = -torch.inf
    if config.top_p < 1:
        probs = ordered.softmax(dim=-1)
        # A token goes when those before it suffice: the one that crosses top_p stays, and the first always does.
        ordered = ordered.masked_fill(probs.cumsum(dim=-1) - probs >= config.top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, tokens, ordered)


def sample(
    logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator], recent: Tensor | None = None
) -> Tensor:
    """Draw one token a row.

    Args:
        logits: [B, V]; -inf excludes a token.
        config: how to draw.
        generators: one a row, on any device; always used, or at temperature 0 without repetition awareness never.
        recent: [B, ras_window] the last tokens, -1 where there are fewer; for repetition-aware sampling.

    Returns:
        tokens [B] int64.
    """
    logits = logits.float()
    is_greedy = config.temperature == 0
    tokens = logits.argmax(dim=-1) if is_greedy else _draw(logits, config, generators)  # [B]
    if not config.repetition_aware:
        return tokens
    assert recent is not None, "repetition-aware sampling needs the recent tokens"
    assert recent.shape[1] == config.ras_window, (
        f"recent holds {recent.shape[1]} tokens, ras_window is {config.ras_window}"
    )
    # In double precision, where a count over the window equals the decimal fraction the user wrote.
    share = (recent == tokens.unsqueeze(1)).sum(dim=1).double() / config.ras_window  # [B]
    return torch.where(share > config.ras_threshold, _draw(logits, SamplingConfig(), generators), tokens)


def log_probs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of one token each: logits [B, V], tokens [B] -> [B] float32."""
    if native.can_draw(logits):
        return native.log_probs(logits, tokens)
    return logits.float().log_softmax(dim=-1).gather(1, tokens.unsqueeze(1)).squeeze(1)


def _draw(logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw from softmax of what ``filter_logits`` leaves, [B, V] -> [B]: arg-max with Gumbel noise is such a draw.

    Unlike a search in cumulated probabilities it can never, by rounding, return an excluded token.
    """
    n = logits.shape[1]
    noise = torch.empty(len(logits), n, dtype=torch.float32, device=generators[0].device)
    for row, generator in zip(noise, generators, strict=True):
        row.exponential_(generator=generator)
    if native.can_draw(logits) and noise.device == logits.device:
        return native.draw(logits, noise, config.temperature, config.top_k, config.top_p)
    return (filter_logits(logits, config) - noise.to(logits.device).log()).argmax(dim=-1)
