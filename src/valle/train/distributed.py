"""Several processes, one model: sums over ranks, as ``torchrun`` starts them.

Gradients are summed once a step, after all micro-batches, and weighted by tokens before. No wrapper is around the
model: the NAR uses other weights at every stage, and a parameter without a gradient here counts as zero.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among the others."""

    rank: int = 0
    """Its number."""
    size: int = 1
    """How many there are."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    """The device that this process computes on."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all ranks."""
        if self.size == 1:
            return [float(v) for v in values]
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        return [float(v) for v in summed]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all ranks; none at all becomes zero, on one rank as on many."""
        grads: list[Tensor] = []
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            grads.append(p.grad)
        if self.size == 1:
            return
        flat = torch.cat([g.flatten() for g in grads])
        torch.distributed.all_reduce(flat)
        for g, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))

    def wait(self) -> None:
        """Wait until all ranks have come here.

        At a run's end the main rank still judges and writes. One that ended meanwhile was seen to be aborted, once, as
        it left the group.
        """
        self.total([1.0])

    def leave(self) -> None:
        """Tell the others that this process is done."""
        if self.size > 1:
            torch.distributed.destroy_process_group()


def join_ranks(device: torch.device) -> Ranks:
    """Join the processes that ``torchrun`` started, each on its own GPU; alone without ``torchrun``."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(device=device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(int(os.environ["RANK"]), size, device)
