"""AdamW with linear warm-up and linear decay (paper §5.1: 32 k steps up to 5e-4, then down to 0 at step 800 k).

The paper does not state betas, weight decay or clipping; the defaults are those usual for language models. Only
matrices decay: embeddings, norms and biases have no reason to be small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from valle.errors import ValleError


@dataclass(frozen=True)
class OptimiserConfig:
    """How weights move."""

    lr: float = 5e-4
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 32_000
    """Steps over which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the gradient's mean and of its square."""
    eps: float = 1e-8
    """Keeps the division by the square's root finite."""
    weight_decay: float = 0.01
    """Share of lr by which matrices shrink each step."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup_steps < 0 or self.max_grad_norm < 0:
            raise ValleError(f"lr must be above 0, warmup_steps and max_grad_norm at least 0, not {self}")


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on the weights of linear and convolutional layers only."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = name.endswith("weight") and parameter.dim() >= 2 and not isinstance(module, nn.Embedding)
            if parameter.requires_grad:
                (decayed if is_matrix else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # One pass over the memory in place of some twenty: on a CPU too, where torch would not choose it by itself.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def lr_at(step: int, total_steps: float, config: OptimiserConfig) -> float:
    """The learning rate of the step that has ``step`` others behind it: linear up to ``lr``, linear down to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    return config.lr * max(0.0, total_steps - step) / max(1.0, total_steps - config.warmup_steps)
