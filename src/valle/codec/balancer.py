"""The gradient balancer (EnCodec §3.4): a loss's weight is its share of the gradient, whatever its scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Balancer:
    """Rescales the gradient of each loss with respect to the codec's output, then sends their sum back.

    Each gradient is divided by a moving average of its norm and multiplied by its share of the weights, so that the sum
    has a norm of about ``total_norm``.
    """

    def __init__(self, weights: Mapping[str, float], total_norm: float = 1.0, decay: float = 0.999) -> None:
        self.weights = {k: w for k, w in weights.items() if w > 0}
        self.total_norm = total_norm
        self.decay = decay
        self.norms: dict[str, float] = {}  # bias-corrected averages are sums / counts
        self.counts: dict[str, float] = {}

    def backward(self, losses: Mapping[str, Tensor], output: Tensor, retain_graph: bool = False) -> dict[str, float]:
        """Back-propagate ``losses``, each a function of ``output`` [B, 1, N]; returns the average norm of each.

        Losses without a positive weight are left out.
        """
        gradients: dict[str, Tensor] = {}
        for name in self.weights:
            if name not in losses:
                continue
            (gradient,) = torch.autograd.grad(losses[name], [output], retain_graph=True)
            norm = float(gradient.flatten(1).norm(dim=1).mean())
            self.norms[name] = self.norms.get(name, 0.0) * self.decay + norm
            self.counts[name] = self.counts.get(name, 0.0) * self.decay + 1.0
            gradients[name] = gradient
        averages = {name: self.norms[name] / self.counts[name] for name in gradients}
        total_weight = sum(self.weights[name] for name in gradients)
        balanced = torch.zeros_like(output)
        for name, gradient in gradients.items():
            share = self.weights[name] / total_weight * self.total_norm
            balanced += gradient * (share / max(averages[name], 1e-12))
        torch.autograd.backward(output, balanced, retain_graph=retain_graph)
        return averages

    def state_dict(self) -> dict[str, dict[str, float]]:
        """JSON-able state."""
        return {"norms": dict(self.norms), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Restore ``state_dict``."""
        self.norms, self.counts = dict(state["norms"]), dict(state["counts"])
