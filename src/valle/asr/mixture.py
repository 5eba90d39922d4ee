"""Gaussian mixtures with diagonal covariances, as the aligner and the hybrid recogniser's bootstrap learn them."""

from __future__ import annotations

import torch
from torch import Tensor


def fit_mixture(
    x: Tensor,
    means: Tensor,
    variances: Tensor,
    weights: Tensor,
    *,
    least: Tensor | float,
    prior_frames: float,
    rounds: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Some rounds of expectation and maximisation.

    Args:
        x: [n, D] the frames of one state.
        means: [M, D] to begin with.
        variances: [M, D].
        weights: [M].
        least: variances do not fall below it; [D] or one for all.
        prior_frames: weight of the state's own variance in that of each of its Gaussians.
        rounds: how many; a single Gaussian needs one.

    Returns:
        means, variances and weights, in the same shapes; a Gaussian with hardly a frame keeps its mean.
    """
    least = torch.as_tensor(least)
    whole = torch.maximum(x.var(0, unbiased=False), least)  # [D]
    squares = x.square()
    for _ in range(rounds if len(weights) > 1 else 1):
        precision = 1 / variances
        logits = x @ (means * precision).t() - 0.5 * squares @ precision.t()  # [n, M]
        bias = weights.clamp(min=1e-6).log() - 0.5 * (variances.log() + means.square() * precision).sum(1)
        share = (logits + bias).softmax(1)  # [n, M]
        n = share.sum(0).unsqueeze(1)  # [M, 1]
        means = torch.where(n > 1, share.t() @ x / n.clamp(min=1e-6), means)
        spread = share.t() @ squares - n * means.square()
        variances = torch.maximum((spread + prior_frames * whole) / (n + prior_frames), least)
        weights = (n[:, 0] + 1) / (len(x) + len(weights))
    return means, variances, weights
