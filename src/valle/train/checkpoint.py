"""Checkpoints from which training continues bit for bit, in safetensors and JSON only (the paper is silent on this).

A checkpoint is a folder ``step-00001200/`` with one ``.safetensors`` file a group of tensors (model, optimizer,
random state ...) and ``state.json``. It is written beside its place, flushed to the disk and then renamed, so a run
killed in the middle of it leaves the previous checkpoint as the newest one. Random states travel as tensors, so that
nothing needs a pickle.

Where ranks hold parts of the tensors (FSDP), each writes its own: ``group-00001-of-00004.safetensors``, rows in the
order of the ranks. Reading puts them together, whatever the number of ranks that read; all need to see one folder.
``CheckpointWriter`` writes in a thread, from a copy in memory, while training goes on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from valle.errors import ValleError
from valle.train.distributed import Ranks, is_shared, own

Tensors = dict[str, Tensor]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)")
_STATE = "state.json"

_PATIENCE_S = 1800.0
"""How long the main rank waits for the parts of the others."""


@dataclass(frozen=True)
class Checkpoint:
    """What ``load_checkpoint`` returns; every tensor is on the CPU."""

    path: Path
    """The folder it was read from."""
    tensors: dict[str, Tensors]
    """By group, as given to ``save_checkpoint``; tensors that shared memory then share it again."""
    state: dict[str, Any]
    """The JSON side, ``step`` included."""

    @property
    def step(self) -> int:
        """The number of optimiser steps behind this checkpoint."""
        return int(self.state["step"])


def save_checkpoint(
    folder: str | Path, *, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write ``folder/step-<state["step"]>`` atomically and delete all but the newest ``keep`` checkpoints.

    Args:
        folder: the run's folder of checkpoints; made if absent.
        tensors: groups of named tensors, on any device; a tensor may appear under several names (tied weights).
        state: ready for JSON; ``state["step"]`` names the checkpoint.
        keep: how many checkpoints stay, 1 or more.

    Returns:
        The new checkpoint's folder.
    """
    temporary = _begin(Path(folder), int(state["step"]))
    aliases = {group: _write_group(temporary / f"{group}.safetensors", named) for group, named in tensors.items()}
    return _finish(temporary, {"state": dict(state), "groups": list(tensors), "aliases": aliases}, keep)


class CheckpointWriter:
    """Writes checkpoints of a run in a thread, one at a time; all ranks call it alike."""

    def __init__(self, folder: str | Path, ranks: Ranks, *, keep: int = 2) -> None:
        """``folder`` and ``keep`` as for ``save_checkpoint``."""
        self.folder, self.ranks, self.keep = Path(folder), ranks, keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Copy the tensors, and begin to write them; a checkpoint that is still being written is waited for.

        What other ranks hold rows of is written by each for its own, all else by the main rank.

        Raises:
            ValleError: the checkpoint before could not be written.
        """
        failed = self._join()
        if failed is not None:
            logger.warning("the checkpoint before could not be written (%s); this one is waited for", failed)
        is_shared_out = any(is_shared(t) for named in tensors.values() for t in named.values())
        if not (is_shared_out or self.ranks.is_main):
            return
        self._begin_to_save(tensors, state, is_shared_out)
        if failed is not None:
            self.wait()

    def _begin_to_save(
        self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], is_shared_out: bool
    ) -> None:
        copies: dict[str, Tensors] = {}
        aliases: dict[str, dict[str, str]] = {}
        for group, named in tensors.items():
            mine = {k: own(t) for k, t in named.items() if self.ranks.is_main or is_shared(t)}
            copies[group], aliases[group] = _copies(mine)
        body: dict[str, Any] = {"state": dict(state), "groups": list(tensors), "aliases": aliases}
        temporary = self.folder / _temporary_name(int(state["step"]))
        if self.ranks.is_main:
            _begin(self.folder, int(state["step"]))
        if not is_shared_out:
            self._start(temporary, lambda: self._write_all(temporary, copies, body))
            return
        self.ranks.wait()  # until there is a folder
        shapes = {g: {k: list(t.shape) for k, t in named.items() if is_shared(t)} for g, named in tensors.items()}
        body |= {"pieces": self.ranks.size, "shapes": shapes}
        self._start(temporary, lambda: self._write_piece(temporary, copies, body))

    def wait(self) -> None:
        """Until everything is on the disk.

        Raises:
            ValleError: it could not be written.
        """
        error = self._join()
        if error is not None:
            raise ValleError(
                f"the checkpoint in {self.folder} could not be written ({error}); the ones before it are whole: make "
                "room, and go on with --resume"
            ) from error

    def _join(self) -> Exception | None:
        """Wait for the thread; what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def _start(self, temporary: Path, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:  # told by the next wait or save
                self._error = error
                if self.ranks.is_main:
                    shutil.rmtree(temporary, ignore_errors=True)  # it takes the room that may be missing
                else:
                    with suppress(OSError):
                        (temporary / f"{self.ranks.rank}.failed").touch()

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def _write_all(self, temporary: Path, copies: dict[str, Tensors], body: dict[str, Any]) -> None:
        from safetensors.torch import save

        for group, named in copies.items():
            _write(temporary / f"{group}.safetensors", save(named))
        _finish(temporary, body, self.keep)

    def _write_piece(self, temporary: Path, copies: dict[str, Tensors], body: dict[str, Any]) -> None:
        from safetensors.torch import save

        rank, size = self.ranks.rank, self.ranks.size
        for group, named in copies.items():
            _write(temporary / _piece_name(group, rank, size), save(named))
        _write(temporary / f"{rank}.written", b"")
        if not self.ranks.is_main:
            return
        marks = [temporary / f"{r}.written" for r in range(size)]
        since = time.monotonic()
        while missing := [mark.stem for mark in marks if not mark.exists()]:
            if failed := [mark.stem for mark in marks if mark.with_suffix(".failed").exists()]:
                raise ValleError(f"rank {failed[0]} could not write its part")
            if time.monotonic() - since > _PATIENCE_S:
                raise ValleError(f"rank {missing[0]} has not written its part for {_PATIENCE_S / 60:.0f} minutes")
            time.sleep(0.02)
        for mark in marks:
            mark.unlink()
        _finish(temporary, body, self.keep)


def _temporary_name(step: int) -> str:
    return f".step-{step:08d}.tmp"


def _piece_name(group: str, rank: int, size: int) -> str:
    return f"{group}-{rank + 1:05d}-of-{size:05d}.safetensors"


def _begin(folder: Path, step: int) -> Path:
    """An empty folder to write a checkpoint into."""
    folder.mkdir(parents=True, exist_ok=True)
    for replaced in folder.glob(".step-*.old.tmp"):  # of a run that was killed between the two renames of _finish
        final = folder / replaced.name[1 : -len(".old.tmp")]
        if not final.exists():
            replaced.rename(final)
    for stale in folder.glob(".*.tmp"):  # left by a run that was killed while writing
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder / _temporary_name(step)
    temporary.mkdir()
    return temporary


def _finish(temporary: Path, body: dict[str, Any], keep: int) -> Path:
    """Give a folder that holds all tensors its state and its name, and delete all but the newest ``keep``."""
    assert keep >= 1, "a run must keep at least one checkpoint"
    folder, final = temporary.parent, temporary.with_name(temporary.name[1 : -len(".tmp")])
    _write(temporary / _STATE, json.dumps(body, indent=1).encode())
    _sync_folder(temporary)
    if final.exists():
        replaced = folder / f".{final.name}.old.tmp"
        final.rename(replaced)
        temporary.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        temporary.rename(final)
    _sync_folder(folder)
    for old in checkpoints(folder)[:-keep]:
        gone = old.with_name(f".{old.name}.gone.tmp")  # half a folder must not look like a checkpoint
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    return final


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the newest checkpoint of a run's folder, or the very checkpoint when ``folder`` is one.

    Raises:
        ValleError: there is none, or one of its files is missing or damaged.
    """
    folder = Path(folder)
    path = folder if (folder / _STATE).is_file() else latest_checkpoint(folder)
    if path is None:
        raise ValleError(f"{folder} holds no checkpoint to resume from; start the run without --resume")
    from safetensors import SafetensorError

    try:
        body = json.loads((path / _STATE).read_text(encoding="utf-8"))
        tensors: dict[str, Tensors] = {}
        for group in body["groups"]:
            named = _read_group(path, group, body)
            named.update({name: named[source] for name, source in body["aliases"][group].items()})
            tensors[group] = named
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, ValueError) as error:
        raise ValleError(
            f"the checkpoint {path} is damaged ({error}); delete it and resume from the one before"
        ) from error
    return Checkpoint(path, tensors, body["state"])


def checkpoints(folder: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) and (p / _STATE).is_file()]
    return [path for _, path in sorted(found)]


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """An optimiser's state as tensors ``"<parameter>.<name>"`` and a JSON-able rest, without a pickle."""
    whole = optimizer.state_dict()
    tensors: Tensors = {}
    values: dict[str, dict[str, Any]] = {}
    for index, entries in whole["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                values.setdefault(str(index), {})[name] = value
    groups = [
        {k: v.item() if isinstance(v, Tensor) else list(v) if isinstance(v, tuple) else v for k, v in group.items()}
        for group in whole["param_groups"]
    ]
    return tensors, {"values": values, "param_groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    place: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Put back what ``optimizer_tensors`` took out; moments go to the device of their parameters.

    Args:
        optimizer: over the same parameters.
        tensors: whole, whichever ranks their parameters lie on.
        state: the rest.
        place: lays a tensor out as another, its parameter, lies on the ranks.

    Raises:
        ValleError: the state belongs to an optimiser over other parameters.
    """
    entries: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in state["values"].items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        index = int(number)
        if index >= len(parameters) or (tensor.dim() > 0 and tensor.shape != parameters[index].shape):
            raise ValleError(
                f"the checkpoint's optimizer state {key} {list(tensor.shape)} fits no parameter of this model; "
                "resume with the configuration that the run was started with"
            )
        if place is not None and tensor.dim() > 0:
            tensor = place(tensor, parameters[index])
        # NOTE load_state_dict keeps a tensor that already fits, and what was loaded may be a view of a file.
        entries.setdefault(index, {})[name] = tensor.clone()
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in state["param_groups"]]
    for group, present in zip(groups, optimizer.param_groups, strict=False):
        if "fused" in present:
            group["fused"] = present["fused"]  # as this device has it, not the one that the checkpoint was written on
    try:
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except ValueError as error:
        raise ValleError(f"the checkpoint's optimizer does not fit this model: {error}") from error


def rng_state(**generators: torch.Generator) -> Tensors:
    """The random states of the process as tensors: torch (CPU, each GPU), Python, numpy, and ``generators`` by name."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        for i, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda.{i}"] = state
    _, words, gauss = random.getstate()
    tensors["python"] = torch.tensor(words, dtype=torch.int64)  # [625]
    tensors["python.gauss"] = torch.tensor([math.nan if gauss is None else gauss], dtype=torch.float64)
    if "numpy" in sys.modules:
        import numpy as np

        # The state of code that is not ours; nothing here draws from numpy's global generator.
        whole: Any = np.random.get_state(legacy=False)  # noqa: NPY002
        tensors["numpy"] = torch.from_numpy(whole["state"]["key"].astype("int64"))  # [624]
        rest = [whole["state"]["pos"], whole["has_gauss"], whole["gauss"]]
        tensors["numpy.rest"] = torch.tensor(rest, dtype=torch.float64)
    tensors.update({f"generator.{name}": generator.get_state() for name, generator in generators.items()})
    return tensors


def restore_rng(tensors: Mapping[str, Tensor], **generators: torch.Generator) -> None:
    """Put back what ``rng_state`` took. States of GPUs that this machine lacks are left out."""
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)
    gauss = float(tensors["python.gauss"])
    random.setstate((3, tuple(tensors["python"].tolist()), None if math.isnan(gauss) else gauss))
    if "numpy" in tensors:
        import numpy as np

        position, has_gauss, cached = tensors["numpy.rest"].tolist()
        key = tensors["numpy"].numpy().astype("uint32")
        np.random.set_state(("MT19937", key, int(position), int(has_gauss), cached))  # noqa: NPY002
    for name, generator in generators.items():
        generator.set_state(tensors[f"generator.{name}"])


def _write_group(path: Path, named: Mapping[str, Tensor]) -> dict[str, str]:
    """Write one safetensors file; returns which names are further names of a tensor that was written."""
    from safetensors.torch import save

    out, aliases = _copies(named)
    _write(path, save(out))
    return aliases


def _read_group(path: Path, group: str, body: dict[str, Any]) -> Tensors:
    """One group of a checkpoint, put together where it was written in pieces."""
    from safetensors.torch import load_file

    n_pieces = body.get("pieces", 1)
    if n_pieces == 1:
        return load_file(path / f"{group}.safetensors")
    pieces = [load_file(path / _piece_name(group, rank, n_pieces)) for rank in range(n_pieces)]
    shapes: dict[str, list[int]] = body["shapes"][group]
    named = {name: tensor for name, tensor in pieces[0].items() if name not in shapes}
    for name, shape in shapes.items():
        if name in body["aliases"][group]:
            continue
        named[name] = torch.cat([piece[name] for piece in pieces])
        if list(named[name].shape) != shape:
            raise ValueError(f"the pieces of {name} make {list(named[name].shape)}, not {shape}")
    return named


def _copies(named: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, str]]:
    """Tensors on the CPU that share nothing, and which names are further names of one of them."""
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    out: Tensors = {}
    for name, tensor in named.items():
        tensor = tensor.detach()
        key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        # NOTE safetensors refuses tensors that share memory, and two views of one buffer do: hence the copy.
        out[name] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    return out, aliases


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; not every system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
