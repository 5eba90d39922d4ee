"""From logits to tokens on the CPU in one call each: what ``valle.model.sampling`` does step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from valle.native import library
from valle.native.matrix import floats


def can_draw(logits: Tensor) -> bool:
    """Whether the functions below can take these."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and library() is not None


def draw(logits: Tensor, noise: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The largest of probability / noise among those that are kept: a draw, when the noise is exponential.

    Args:
        logits: [B, V] float32; -inf excludes a token.
        noise: [B, V] float32, positive.
        temperature, top_k, top_p: as in ``SamplingConfig``; temperature above 0.

    Returns:
        tokens [B] int64.
    """
    found = library()
    assert found is not None, "ask can_draw first"
    n_rows, n = logits.shape
    assert noise.shape == logits.shape, f"noise {tuple(noise.shape)} for logits {tuple(logits.shape)}"
    noise = noise.to(torch.float32).contiguous()
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    tokens, scratch = (
        torch.empty(n_rows, dtype=torch.int64, device="cpu"),
        floats(2 * n + 32),
    )
    found.valle_draw(
        logits.data_ptr(), logits.stride(0), n_rows, n, temperature, top_k, top_p, noise.data_ptr(), tokens.data_ptr(),
        scratch.data_ptr(),
    )  # fmt: skip
    return tokens


def log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of one token each: logits [B, V] float32, tokens [B] int64 -> [B] float32."""
    found = library()
    assert found is not None, "ask can_draw first"
    n_rows, n = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    tokens, result = tokens.contiguous(), floats(n_rows)
    found.valle_log_probs(logits.data_ptr(), logits.stride(0), n_rows, n, tokens.data_ptr(), result.data_ptr())
    return result
