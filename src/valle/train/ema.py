"""A moving average of a model's weights, often better than the last of them on a short run (not in the paper)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from valle.train.distributed import own, placed_like


class MovingAverage:
    """Shadow weights: each step they move by 1 - ``decay`` towards the model's.

    Early on the decay is lower, (1 + n) / (10 + n) after n steps, so that the random initialisation is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.n_updates = 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Follow the model by one step."""
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        self.n_updates += 1
        # All in a few kernels; the weights stand in the order of the parameters. Each rank has its own rows of both.
        torch._foreach_lerp_(list(map(own, self.weights.values())), list(map(own, self.model.parameters())), 1 - decay)

    def load(self, weights: dict[str, Tensor], n_updates: int) -> None:
        """Go on from a checkpoint."""
        self.n_updates = n_updates
        for name, weight in self.weights.items():
            own(weight).copy_(own(placed_like(weights[name], weight)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile, and its own again afterwards."""
        own = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._put(self.weights)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])
