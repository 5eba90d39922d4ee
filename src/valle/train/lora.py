"""Low-rank adaptation (LoRA, Hu et al., arXiv 2106.09685): a trained model learns a voice by few numbers.

Each linear layer of the transformer keeps its weights and learns the product of two thin matrices that is added to
them. With minutes of speech to learn from, fewer numbers forget less of what the model knew. What is kept of a run is
the sum: a model like any other, of the same size and as fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from valle.errors import ValleError
from valle.model.narrow import Linear


@dataclass(frozen=True)
class LoraConfig:
    """What learns in a model that is trained already."""

    rank: int = 0
    """Width of the two matrices; 8 to 32 are usual. 0: off, all weights learn."""
    scale: float = 2.0
    """What their product is multiplied by (alpha / rank in the paper)."""

    def __post_init__(self) -> None:
        if self.rank < 0 or not (math.isfinite(self.scale) and self.scale > 0):
            raise ValleError(
                f"lora.rank is {self.rank} and lora.scale {self.scale:g}; rank must be 0 (off) or above, such as 16, "
                "and scale above 0"
            )


class LowRank(nn.Module):
    """A weight [n, m] -> itself + scale · up · down; at first itself, since ``up`` is 0."""

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.down = nn.Parameter(torch.randn(config.rank, weight.shape[1]) * weight.shape[1] ** -0.5)  # [r, m]
        self.up = nn.Parameter(torch.zeros(weight.shape[0], config.rank))  # [n, r]

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Freeze a model and let the linear layers of its transformer learn by ``LowRank``, in place.

    Raises:
        ValleError: the rank is no smaller than a layer, or there is no such layer.
    """
    layers = [m for m in model.modules() if isinstance(m, Linear)]
    if not layers:
        raise ValleError("this model has no linear layer that could learn by low rank; leave lora out")
    least = min(min(m.weight.shape) for m in layers)
    if config.rank >= least:
        raise ValleError(f"lora.rank is {config.rank}, but the smallest layer has a width of {least}; choose a lower")
    model.requires_grad_(False)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, config).to(layer.weight.device))


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model as one without ``add_lora`` has it: what was learnt is in the weights."""
    kept = {name: tensor.detach() for name, tensor in model.state_dict().items() if ".parametrizations." not in name}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            kept[f"{name}.weight"] = module.weight.detach()
    return kept
