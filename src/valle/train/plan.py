"""What a training takes before it is begun: ``valle train plan CONFIG [ar|nar|both] [--gpus N] [--device NAME]``.

Operations are counted by the formulas that the log's ``train/mfu`` uses (``valle.train.flops``), memory by those of
``valle.train.memory``. What is assumed besides is printed with the result.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from valle.data.batches import BatchConfig, BatchSampler, collate
from valle.data.pack import INFO_FILE, Pack, PackInfo
from valle.errors import ValleError
from valle.model.ar import ARConfig
from valle.model.nar import NARConfig
from valle.train.config import Kind, TaskConfig, TrainConfig, load_train_config
from valle.train.devices import CPU, DEVICES, Device, Precision, find_device
from valle.train.distributed import batches_per_rank
from valle.train.flops import BatchShape, Work, row_length, training_flops
from valle.train.memory import Memory, activation_bytes, training_memory, weight_copy_bytes
from valle.train.tasks import Task, make_task
from valle.train.weights import model_values

MFU = 0.4
"""Share of the device's peak that a training is assumed to use. It has not been measured at the paper's size, and small
models reach far less."""

PHONEMES_PER_SECOND = 15.0
"""Symbols of the inventory a second of English, stress and word boundaries included; 15.1 were counted in 31 h."""

OVERHEAD = 1.1
"""Energy of all for that of the devices: the machines around them."""

FRAME_RATE = 75.0

N_LOOKED_AT = 60
"""Batches of the pack by which padding is told."""


@dataclass(frozen=True)
class Plan:
    """What training one of the two models takes."""

    kind: Kind
    """Which."""
    parameters: int
    """Trainable numbers, tied ones once."""
    embedding_parameters: int
    """Those of them that are looked up rather than multiplied by; a tied output layer multiplies by its table too."""
    row_seconds: float
    """Speech in a row."""
    rows_per_step: int
    """Rows of all devices in a step."""
    tokens_per_step: int
    """Frames of codebook 1."""
    positions_per_step: int
    """Places in the transformer: phonemes, prompt and frames."""
    tflops_per_step: float
    """Operations in 10¹², forward and backward."""
    exchanged_gb_per_step: float
    """What each device sends in 10⁹ bytes, by a ring: of its gradients; with FSDP those of each batch, and twice its
    weights; 0 for one device."""
    memory_gb: dict[str, float]
    """Of each device in 10⁹ bytes: weights, gradients, moments, average, activations, gathered, total."""
    memory_checkpointed_gb: dict[str, float]
    """The same with activation checkpointing."""
    steps: int
    """Of the whole run."""
    step_seconds: float
    """At the assumed MFU."""
    hours: float
    """Of the whole run."""
    energy_kwh: float | None
    """Of all devices at full power, and of the machines around them; None: the device's power is not known."""
    epochs: float | None
    """How often the run sees the data; None: it is not known how much there is."""
    padding: float | None
    """Share of the places that are padding in the pack's first batches; None: there is no pack, or nothing in it that
    fits. All else is told as if there were none."""


def plan(
    kind: Kind,
    config: TrainConfig,
    device: Device,
    *,
    n_devices: int = 1,
    mfu: float = MFU,
    data_hours: float | None = None,
    on_cpu: bool = False,
) -> Plan:
    """What training ``kind`` takes on ``n_devices`` of ``device``.

    Args:
        kind: which model.
        config: of the run; its pack tells the inventory and the hours if it is there.
        device: what it runs on.
        n_devices: how many of them.
        mfu: share of the peak, in (0, 1].
        data_hours: hours of speech to train on; by default what the pack has.
        on_cpu: whether the device is a processor, which keeps more for dropout.

    Raises:
        ValleError: a number that makes no sense, or a configuration that could not be trained.
    """
    if n_devices < 1:
        raise ValleError(f"--gpus is {n_devices}; at least 1 is needed")
    if not 0 < mfu <= 1:
        raise ValleError(f"--mfu is {mfu:g}; it is a share of the device's peak, above 0 and at most 1, such as {MFU}")
    if data_hours is not None and not 0 < data_hours < math.inf:
        raise ValleError(f"--hours is {data_hours:g}; give the hours of speech to train on, above 0")
    info = _pack_info(config)
    task_config: TaskConfig = getattr(config, kind)
    run = task_config.run
    values = model_values(kind, task_config)
    with torch.device("meta"):
        task = make_task(kind, values, info)
    model = task.model
    n_parameters = sum(p.numel() for p in model.parameters())
    n_embedding = sum(p.numel() for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters())

    precision = device.precision(config.precision)
    n_frames = _row_frames(task_config.batches, info.frame_rate)
    n_rows = math.ceil(task_config.batches.max_frames / n_frames)
    shape = _shape(model.config, n_rows, task_config.batches.max_frames // n_rows, info)
    n_own_batches = batches_per_rank(run.batches_per_step, run.accumulate, n_devices)
    n_batches = n_devices * n_own_batches
    is_shared_out = run.parallel == "fsdp" and n_devices > 1
    # Of each batch weights twice and gradients, each once round; or the gradients of a step alone, twice round.
    n_exchanges = 3 * n_own_batches if is_shared_out else 2
    n_block = sum(p.numel() for p in model.transformer.blocks[0].parameters())
    # What is in no block stays between forward and backward pass; one block is computed, and the next is on its way.
    n_absent = max(0, model.config.transformer.n_layers - 2) * n_block
    n_gathered = n_parameters - n_absent if is_shared_out else 0
    flops = n_batches * training_flops(model.config, shape)
    step_s = flops / (n_devices * mfu * device.peak_tflops(precision) * 1e12)
    steps = run.max_steps
    if run.budget_minutes > 0:
        steps = min(steps, math.ceil(run.budget_minutes * 60 / step_s))
    hours = steps * step_s / 3600

    def memory(checkpointing: bool) -> dict[str, float]:
        kept = activation_bytes(model.config, shape, precision, checkpointing=checkpointing, on_cpu=on_cpu)
        kept += weight_copy_bytes(n_parameters - n_embedding, precision)
        n_shares, has_average = n_devices if is_shared_out else 1, run.ema_decay > 0
        return _gigabytes(
            training_memory(n_parameters, kept, has_average=has_average, n_shares=n_shares, n_gathered=n_gathered)
        )

    tokens = n_batches * task_config.batches.max_frames
    data_hours = data_hours or info.hours(config.train_split) or None
    return Plan(
        kind=kind,
        parameters=n_parameters,
        embedding_parameters=n_embedding,
        row_seconds=task_config.batches.max_frames / shape.n_rows / info.frame_rate,
        rows_per_step=n_batches * shape.n_rows,
        tokens_per_step=tokens,
        positions_per_step=n_batches * shape.n_rows * row_length(model.config, shape),
        tflops_per_step=flops / 1e12,
        exchanged_gb_per_step=n_exchanges * (n_devices - 1) / n_devices * 4 * n_parameters / 1e9,
        memory_gb=memory(False),
        memory_checkpointed_gb=memory(True),
        steps=steps,
        step_seconds=step_s,
        hours=hours,
        energy_kwh=None if device.power_w is None else n_devices * device.power_w / 1000 * hours * OVERHEAD,
        epochs=None if data_hours is None else steps * tokens / info.frame_rate / 3600 / data_hours,
        padding=_padding(config, task, task_config.batches) if _has_pack(config) else None,
    )


def table(plans: Sequence[Plan]) -> str:
    """The plans beside one another, as text."""
    rows: list[tuple[str, list[str]]] = [
        ("", [p.kind.upper() for p in plans]),
        ("parameters", [f"{p.parameters / 1e6:.1f} M" for p in plans]),
        ("  of them embeddings", [f"{p.embedding_parameters / 1e6:.1f} M" for p in plans]),
        ("a step: frames of codebook 1", [f"{p.tokens_per_step:,}" for p in plans]),
        ("  places in the transformer", [f"{p.positions_per_step:,}" for p in plans]),
        ("  rows x seconds", [f"{p.rows_per_step} x {p.row_seconds:.1f}" for p in plans]),
        ("  TFLOP, forward and backward", [f"{p.tflops_per_step:,.1f}" for p in plans]),
        ("  GB that each device sends", [f"{p.exchanged_gb_per_step:.2f}" for p in plans]),
        ("  seconds", [f"{p.step_seconds:.3f}" for p in plans]),
        ("memory of a device, GB", ["" for _ in plans]),
    ]
    for name in ("weights", "gradients", "moments", "average", "activations", "gathered", "total"):
        if any(p.memory_gb[name] for p in plans):
            rows.append((f"  {name}", [f"{p.memory_gb[name]:.2f}" for p in plans]))
    rows += [
        ("with activation checkpointing", ["" for _ in plans]),
        ("  activations", [f"{p.memory_checkpointed_gb['activations']:.2f}" for p in plans]),
        ("  total", [f"{p.memory_checkpointed_gb['total']:.2f}" for p in plans]),
        ("steps", [f"{p.steps:,}" for p in plans]),
        ("time", [_time(p.hours) for p in plans]),
        ("energy, kWh", ["not known" if p.energy_kwh is None else f"{p.energy_kwh:,.1f}" for p in plans]),
        ("epochs", ["not known" if p.epochs is None else f"{p.epochs:.1f}" for p in plans]),
        ("padding in the pack's batches", ["not known" if p.padding is None else f"{p.padding:.1%}" for p in plans]),
    ]
    lines = (f"{name:<32}" + "".join(f"{value:>16}" for value in values) for name, values in rows)
    return "".join(line.rstrip() + "\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``valle train plan``; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
    """
    parser = argparse.ArgumentParser(prog="valle train plan", description="What a training takes, before it is begun.")
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, such as configs/paper.toml")
    parser.add_argument("kind", nargs="?", choices=("ar", "nar", "both"), default="both", help="which model (both)")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many devices (%(default)s)")
    parser.add_argument(
        "--device", default="h100", metavar="NAME", help=f"{', '.join(DEVICES)}, or {CPU}: measured here"
    )
    parser.add_argument("--mfu", type=float, default=MFU, metavar="F", help="share of the device's peak (%(default)s)")
    parser.add_argument("--hours", type=float, metavar="H", help="of speech to train on (by default what the pack has)")
    parser.add_argument("--json", action="store_true", help="as one line of JSON")
    args = parser.parse_args(argv)
    config = load_train_config(args.config)
    device = find_device(args.device, config.precision)
    precision = device.precision(config.precision)
    kinds: tuple[Kind, ...] = ("ar", "nar") if args.kind == "both" else (args.kind,)
    plans = [
        plan(
            kind, config, device,
            n_devices=args.gpus, mfu=args.mfu, data_hours=args.hours, on_cpu=args.device == CPU,
        )
        for kind in kinds
    ]  # fmt: skip
    assumed = _assumptions(config, device, precision, args.mfu)
    if args.json:
        told = {
            "config": args.config,
            "device": {"name": args.device, "number": args.gpus, "precision": precision, **asdict(device)},
            "mfu": args.mfu,
            "assumed": assumed,
            "plans": [asdict(p) for p in plans],
        }
        sys.stdout.write(json.dumps(told) + "\n")
        return 0
    sys.stdout.write(f"{args.config} on {args.gpus} x {args.device} in {precision}\n\n{table(plans)}\n")
    sys.stdout.write("".join(f"{line}\n" for line in (*_warnings(config, device, plans), "Assumed:", *assumed)))
    return 0


def _assumptions(config: TrainConfig, device: Device, precision: Precision, mfu: float) -> list[str]:
    peak = device.peak_tflops(precision)
    prepared = f"the inventory of valle prepare, since there is no pack {config.pack} here"
    lines = [
        f"- {mfu:.0%} of {peak:.4g} TFLOP/s a device; a run's log tells what it is: mfu x peak_tflops / {peak:.4g}",
        "- that share is for large models: the embedded model's came to 2% each, on an H100 that three runs shared",
        f"- full batches without padding, rows as long as is allowed, {PHONEMES_PER_SECOND:g} phonemes a second",
        "- memory without the driver, what kernels need as they run, and gaps: 1 to 3 GB on a GPU",
        "- no time for validation, nor for exchanging gradients: most of it passes beside the backward pass, if the",
        "  network is fast enough",
        f"- {f'inventory and hours of {config.pack}' if _has_pack(config) else prepared}",
    ]
    if device.power_w is not None:
        around = f"{OVERHEAD - 1:.0%} more for the machines around them"
        lines.append(f"- devices that draw {device.power_w:.0f} W throughout, and {around}")
    return lines


def _warnings(config: TrainConfig, device: Device, plans: Sequence[Plan]) -> list[str]:
    lines = []
    for p in plans:
        run = getattr(config, p.kind).run
        needed = (p.memory_checkpointed_gb if run.activation_checkpointing else p.memory_gb)["total"]
        if device.memory_gb is not None and needed > device.memory_gb:
            more = "batches_per_step" if run.batches_per_step else "accumulate"
            cure = f"lower batches.max_frames and raise run.{more} as much"
            if not run.activation_checkpointing:
                cure += ", or set run.activation_checkpointing"
            lines.append(
                f"The {p.kind.upper()} does not fit: it takes {needed:.1f} of {device.memory_gb:.0f} GB; {cure}."
            )
        if p.steps < run.max_steps:
            lines.append(f"The {p.kind.upper()} ends by budget_minutes = {run.budget_minutes:g}, before max_steps.")
    return [*lines, ""] if lines else []


def _row_frames(config: BatchConfig, frame_rate: float) -> float:
    """The longest row that a batch is filled with; with crops, one of the mean length.

    Raises:
        ValleError: a batch could not hold it.
    """
    longest = int(config.max_seconds * frame_rate)
    if longest > config.max_frames:
        raise ValleError(
            f"max_seconds {config.max_seconds:g} is {longest} frames, but a batch holds max_frames = "
            f"{config.max_frames}; lower the one or raise the other"
        )
    return sum(config.crop_seconds) / 2 * frame_rate if config.crop_seconds else longest


def _shape(config: ARConfig | NARConfig, n_rows: int, n_frames: int, info: PackInfo) -> BatchShape:
    """A batch of rows of equal length."""
    n_phonemes = round(n_frames / info.frame_rate * PHONEMES_PER_SECOND)
    if isinstance(config, ARConfig):
        return BatchShape(n_rows, n_phonemes, n_frames)
    n_prompt = min(config.prompt_frames, n_frames // 2)
    n_target = n_frames - n_prompt if config.prompt_mode == "prefix" else n_frames
    return BatchShape(n_rows, n_phonemes, n_target, n_prompt)


def _padding(config: TrainConfig, task: Task[Any], batches: BatchConfig) -> float | None:
    """Share of the places that are padding in the first batches of the run; None where there would be none."""
    split = Pack(config.pack).split(config.train_split)
    try:
        sampler = BatchSampler(split, batches, seed=config.seed)
    except ValleError:  # the run itself tells what is wrong
        return None
    generator = torch.Generator().manual_seed(config.seed)
    work = Work(0, 0, 0)
    for examples in islice(sampler, N_LOOKED_AT):
        work = work.plus(task.work(task.make_batch(collate(split, examples), generator)))
    return 1 - work.filled / work.positions


def _has_pack(config: TrainConfig) -> bool:
    return (Path(config.pack) / INFO_FILE).is_file()


def _pack_info(config: TrainConfig) -> PackInfo:
    """What the pack says, or would say were it made by ``valle prepare --aligner``."""
    if _has_pack(config):
        return Pack(config.pack).info
    from valle.text import DEFAULT_INVENTORY

    return PackInfo("", "", len(DEFAULT_INVENTORY), 0, FRAME_RATE, phoneme_kinds=DEFAULT_INVENTORY.kinds, aligned=True)


def _gigabytes(memory: Memory) -> dict[str, float]:
    return {name: size / 1e9 for name, size in (*memory._asdict().items(), ("total", memory.total))}


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
