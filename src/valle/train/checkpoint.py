"""Checkpoints from which training continues bit for bit, in safetensors and JSON only (the paper is silent on this).

A checkpoint is a folder ``step-00001200/`` with one ``.safetensors`` file a group of tensors (model, optimizer,
random state ...) and ``state.json``. It is written beside its place, flushed to the disk and then renamed, so a run
killed in the middle of it leaves the previous checkpoint as the newest one. Random states travel as tensors, so that
nothing needs a pickle.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from valle.errors import ValleError

Tensors = dict[str, Tensor]

_NAME = re.compile(r"step-(\d+)")
_STATE = "state.json"


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
    assert keep >= 1, "a run must keep at least one checkpoint"
    folder, step = Path(folder), int(state["step"])
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".*.tmp"):  # left by a run that was killed while writing
        shutil.rmtree(stale, ignore_errors=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    temporary.mkdir()
    aliases: dict[str, dict[str, str]] = {}
    for group, named in tensors.items():
        aliases[group] = _write_group(temporary / f"{group}.safetensors", named)
    body = {"state": dict(state), "groups": list(tensors), "aliases": aliases}
    _write(temporary / _STATE, json.dumps(body, indent=1).encode())
    _sync_folder(temporary)
    if final.exists():
        replaced = folder / f".{final.name}.old.tmp"
        final.rename(replaced)
        temporary.rename(final)
        shutil.rmtree(replaced)
    else:
        temporary.rename(final)
    _sync_folder(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
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
    from safetensors.torch import load_file

    try:
        body = json.loads((path / _STATE).read_text(encoding="utf-8"))
        tensors: dict[str, Tensors] = {}
        for group in body["groups"]:
            named: Tensors = load_file(path / f"{group}.safetensors")
            named.update({name: named[source] for name, source in body["aliases"][group].items()})
            tensors[group] = named
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
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
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Put back what ``optimizer_tensors`` took out; moments go to the device of their parameters.

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
        # NOTE load_state_dict keeps a tensor that already fits, and what was loaded may be a view of a file.
        entries.setdefault(index, {})[name] = tensor.clone()
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in state["param_groups"]]
    for group, own in zip(groups, optimizer.param_groups, strict=False):
        if "fused" in own:
            group["fused"] = own["fused"]  # as this device has it, not the one that the checkpoint was written on
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
    _write(path, save(out))
    return aliases


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
