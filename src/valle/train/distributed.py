"""Several processes, one model, as ``torchrun`` starts them: who they are, and how they share gradients and weights.

Two ways, by ``run.parallel``: with DDP every rank holds all of the model, and gradients are summed while the backward
pass still computes others; with FSDP2 every rank holds a part of the weights, of their gradients and of the optimiser's
moments, and the weights of a block are gathered when it is computed. Either way the gradient is a sum weighted by
tokens, so that ranks that read unequal batches are as one that reads all of them.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from valle.errors import ValleError

if TYPE_CHECKING:
    from valle.train.tasks import Metrics, Task

Strategy = Literal["ddp", "fsdp"]


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

    def of_main(self, value: float) -> float:
        """The main rank's value, on all ranks."""
        return self.total([float(value) if self.is_main else 0.0])[0]

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
    """Join the processes that ``torchrun`` started, each on its own GPU; alone without ``torchrun``.

    Raises:
        ValleError: several machines were started again in a way that lets them find addresses of those that died.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(device=device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Others wait while the main rank validates and speaks, which may take longer than the usual ten minutes.
    patience = timedelta(hours=2)
    rank, backend = int(os.environ["RANK"]), "nccl" if device.type == "cuda" else "gloo"
    if not is_restart() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        torch.distributed.init_process_group(backend, timeout=patience)
        return Ranks(rank, size, device)
    # torchrun's store outlives a restart, with the addresses of processes that do not: others get names of their own.
    # Machines count restarts differently, so that this does for one alone.
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        raise ValleError(
            "this restart shares a store with the processes before it; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the "
            "environment of torchrun on every machine, and start it again"
        )
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=patience))
    store = PrefixStore(f"restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    return Ranks(rank, size, device)


def is_restart() -> bool:
    """Whether ``torchrun`` has started these processes again after some of them failed or left."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_one_of_several() -> bool:
    """Whether there are other ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def torchrun_job() -> str:
    """The name of the job that ``torchrun`` runs, the same after a restart; empty without ``torchrun``."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()}/{os.getppid()}" if name == "none" else name


def batches_per_rank(per_step: int, accumulate: int, n_ranks: int) -> int:
    """Batches that each rank reads in a step: ``accumulate``, or its share of ``per_step`` where that is above 0.

    Raises:
        ValleError: they cannot be shared out evenly.
    """
    if not per_step:
        return accumulate
    if per_step % n_ranks:
        fitting = [n for n in range(1, per_step + 1) if per_step % n == 0]
        raise ValleError(
            f"batches_per_step is {per_step}, which {n_ranks} ranks cannot share evenly; start one of "
            f"{', '.join(map(str, fitting))} ranks, or change batches_per_step (another run)"
        )
    return per_step // n_ranks


class Learner:
    """A task's model on its rank: losses whose gradients all ranks sum, and weights that may lie on several ranks."""

    def __init__(self, task: Task[Any], ranks: Ranks, strategy: Strategy) -> None:
        """Broadcast the main rank's weights (DDP), or keep this rank's part of them (FSDP)."""
        self.task, self.ranks, self.model = task, ranks, task.model
        self.is_sharded = ranks.size > 1 and strategy == "fsdp"
        self._loss: nn.Module = _Loss(task)
        self._ddp: nn.parallel.DistributedDataParallel | None = None
        if self.is_sharded:
            self._shard()
        elif ranks.size > 1:
            # Buffers are tables that each rank computes alike, and positions grow. Newer versions have other names for
            # that, which the oldest that is supported does not know.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*deprecated", category=FutureWarning)
            self._ddp = nn.parallel.DistributedDataParallel(
                self._loss, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def _shard(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        # What the models return may be a view; nobody writes into it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for parameter in self.model.parameters():  # as DDP does: what ranks have drawn may differ
            torch.distributed.broadcast(parameter.detach(), 0)
        mesh = init_device_mesh(self.ranks.device.type, (self.ranks.size,))
        for block in self.model.transformer.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        for name in ("outputs", "all_stages"):  # by which the tasks call their models
            if hasattr(self.model, name):
                register_fsdp_forward_method(self.model, name)

    def backward(self, batch: Any, share: float, autocast: AbstractContextManager[Any], *, is_last: bool) -> Metrics:
        """Add to the gradient that of a batch's loss, times ``share``; all ranks' after ``is_last``.

        Returns:
            The metrics of this rank's batch.
        """
        # Both ways average over ranks; a sum is wanted.
        scale = share * self.ranks.size
        # NOTE with FSDP after each batch: until then every rank would hold the gradient of the whole model.
        with self._ddp.no_sync() if self._ddp is not None and not is_last else nullcontext():
            with autocast:
                loss, metrics = (self._ddp or self._loss)(batch)
            torch.autograd.backward(loss * scale)
        return metrics  # type: ignore[no-any-return]

    def clip(self, max_norm: float) -> float:
        """The norm of the gradient of all ranks, which is then no longer than ``max_norm``.

        A parameter that had no gradient has one of zeros, on one rank as on many.
        """
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return float(whole(nn.utils.clip_grad_norm_(self.parameters, max_norm)))


class _Loss(nn.Module):
    """A task's loss as the forward pass of a module, which is what DDP wraps."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.model = task.model
        self._task = (task,)  # in a tuple, lest it be looked at as a part

    def forward(self, batch: Any) -> tuple[Tensor, Metrics]:
        """The mean loss of a batch, and its metrics."""
        return self._task[0].loss(batch, next(self.model.parameters()).device)


# Tensors of which each rank holds some rows


def own(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on each rank. All ranks must ask for it, in the same order."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def is_shared(tensor: Tensor) -> bool:
    """Whether other ranks hold rows of it."""
    return hasattr(tensor, "to_local")


def placed_like(values: Tensor, other: Tensor) -> Tensor:
    """``values``, whole and equal on all ranks, lying on ranks and device as ``other`` does."""
    values = values.to(other.device, other.dtype)
    if not is_shared(other):
        return values
    from torch.distributed.tensor import DTensor

    assert isinstance(other, DTensor)
    mesh = other.device_mesh
    rows = rows_of(len(values), mesh.get_local_rank(), mesh.size())
    part = values[rows].clone()
    return DTensor.from_local(
        part, mesh, other.placements, run_check=False, shape=values.shape, stride=values.contiguous().stride()
    )


def rows_of(n_rows: int, rank: int, size: int) -> slice:
    """The rows that a rank holds, as FSDP2 deals them out: equal numbers, the last ranks fewer or none."""
    each = -(-n_rows // size)
    return slice(min(rank * each, n_rows), min((rank + 1) * each, n_rows))


@torch.no_grad()
def load_whole(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put whole tensors, equal on all ranks, into a model of which each rank may hold a part.

    Raises:
        RuntimeError: names or shapes differ, as ``load_state_dict`` would say it.
    """
    state = model.state_dict()
    if not any(map(is_shared, state.values())):
        model.load_state_dict(tensors)
        return
    wrong = [k for k in state.keys() | tensors.keys() if k not in state or k not in tensors]
    wrong += [k for k in state.keys() & tensors.keys() if state[k].shape != tensors[k].shape]
    if wrong:
        raise RuntimeError(f"the model and what is loaded differ in {', '.join(sorted(wrong)[:3])}")
    for name, tensor in state.items():
        own(tensor).copy_(own(placed_like(tensors[name], tensor)))


def whole_state(
    model: nn.Module, weights: dict[str, Tensor] | None = None, *, is_kept: bool = True
) -> dict[str, Tensor]:
    """The state of a model in whole tensors on the CPU. All ranks must ask for it.

    Args:
        model: of which ranks may hold parts.
        weights: in place of its own, where given.
        is_kept: False for a rank that only gives its parts; it gets nothing.
    """
    state = {}
    for name, tensor in (model.state_dict() | (weights or {})).items():
        gathered = whole(tensor.detach())  # one at a time: no device needs room for all of them
        if is_kept:
            state[name] = gathered.cpu()
    return state
