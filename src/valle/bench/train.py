"""How fast it trains here: our trainer (``valle.train.loop``) beside a plain one of the same size, by turns.

The plain trainer (``valle.bench.plain``) is measured in three forms, each less plain than the one before: utterances
drawn in random order; batches sorted by length; and no dropout on attention weights, which ours does not have either.
So it shows what comes from the batches, what from the fast attention kernels, and what from all else.

The model is the AR as in the paper, at two sizes; the departures of configs/default.toml (alignment, convolutions,
noise) are off, since the plain model has none. Precision, threads, utterances, frames a batch on average, and clipping
are the same for all.

Tokens are frames of codebook 1 without padding. A round measures each trainer once, so that a machine that gets slower
does so for all of them, and ratios are taken within rounds. MFU is that of ``valle.train.flops``: padding counts as
work, so that it tells how busy the device is, and tokens a second what comes of it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from valle.bench.plain import PlainAR, PlainBatch, PlainTrainer, collate_plain, plain_batches
from valle.bench.speak import configs, machine
from valle.data.ahead import ahead
from valle.data.batches import BatchConfig
from valle.data.pack import (
    PHONEMES_FILE,
    Pack,
    PackedUtterance,
    PackInfo,
    PackSplit,
    ShardInfo,
    write_info,
    write_shard,
)
from valle.device import choose_device, choose_precision
from valle.errors import ValleError
from valle.model.ar import AR
from valle.model.transformer import TransformerConfig
from valle.train.config import TaskConfig, TrainConfig
from valle.train.devices import Precision, measure_peak
from valle.train.flops import Work
from valle.train.loop import Trainer
from valle.train.tasks import MeanMetrics
from valle.train.throughput import Throughput

SIZES = ("default", "paper")
MAX_FRAMES = {
    "cuda": {"default": 16_000, "paper": 6000},  # configs/default.toml; the paper
    "cpu": {"default": 3000, "paper": 1200},  # for a step of seconds
}
"""By kind of device and by size: most frames in a batch of ours, padding included."""
MAX_SECONDS = 16.0
"""Longer utterances are left out."""
MAX_SHARE = 1 / 2
"""Also those above this share of a batch of ours: batches of single utterances would have no padding."""
WARM_UP = {"cuda": 10, "cpu": 1}
"""Steps before the clock runs, for each trainer."""

N_UTTERANCES = 2000
MIN_S, MEDIAN_S, SIGMA = 2.0, 6.7, 0.5
PHONEMES_PER_S, PHONEMES_SPREAD = 13.0, 1.5
FRAME_RATE = 75.0

OURS, PLAIN, SORTED = "valle", "plain", "plain, sorted by length"
NO_ATTENTION_DROPOUT = "plain, sorted, no attention dropout"


class Counter(Throughput):
    """Takes the place of a trainer's own; counts what its steps do."""

    def __init__(self) -> None:
        super().__init__()
        self.n_tokens = 0.0
        self.work = Work(0, 0, 0)

    def add(self, n_tokens: float, work: Work, wait_s: float) -> None:
        self.n_tokens += n_tokens
        self.work = self.work.plus(work)


class Round(NamedTuple):
    """One measurement of one trainer."""

    n_steps: int
    n_tokens: float
    work: Work
    seconds: float
    memory_mb: float | None  # most that was held while it ran, of everything

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.n_tokens / self.seconds


@dataclass
class Runner:
    """A trainer with its batches."""

    step: Callable[[], object]
    """Makes a step and counts it."""
    counter: Counter
    model: nn.Module
    optimizer: torch.optim.Optimizer
    rounds: list[Round] = field(default_factory=list)

    def measure(self, device: torch.device, n_steps: int, seconds: float) -> None:
        """Add a round: so many steps, or if that is 0 as many as ``seconds`` hold, at least one."""
        self.counter.n_tokens, self.counter.work = 0.0, Work(0, 0, 0)
        reset_peak_memory(device)
        # A single thread has a clock of its own, on which other work does not show.
        clock = process_time if _has_own_clock(device) else perf_counter
        began = clock()
        done = 0
        while done < n_steps or (not n_steps and (not done or clock() - began < seconds)):
            self.step()
            done += 1
        _synchronise(device)
        took = clock() - began
        memory = peak_memory_mb(device)
        self.rounds.append(Round(done, self.counter.n_tokens, self.counter.work, took, memory))
        self.optimizer.zero_grad(set_to_none=True)  # the memory is for who comes next

    def held_mb(self) -> float:
        """Weights and moments, which stay while others are measured."""
        states = [x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
        return sum(x.nbytes for x in [*self.model.parameters(), *states]) / 2**20


@dataclass(frozen=True)
class Options:
    """How to measure."""

    device: torch.device
    precision: Precision
    repeats: int = 3
    n_steps: int = 0
    seconds: float = 4.0


def bench_size(transformer: TransformerConfig, pack: Path, max_frames: int, options: Options) -> dict[str, Any]:
    """Measure the trainers at one size.

    Args:
        transformer: the size.
        pack: a packed dataset; its split ``train`` is learnt from.
        max_frames: most frames in a batch of ours; what ``MAX_SECONDS`` and ``MAX_SHARE`` of it exclude is left out.
        options: how.

    Returns:
        ``parameters`` by trainer, ``peak_tflops``, what the batches are, and ``trainers``: by name the ``rates`` of all
        rounds and ``tokens_per_s``, their median; ``padding`` and ``mfu``; ``ratio``, how many times as fast ours is,
        the median over rounds; ``steps``; and ``peak_memory_mb`` without what the other model holds.
    """
    device = options.device
    ours = _our_trainer(transformer, pack, max_frames, options)
    model = ours.task.model
    assert isinstance(model, AR)
    optimiser = ours.task_config.optimiser
    plain = PlainTrainer(PlainAR(model.config), optimiser.lr, optimiser.max_grad_norm, device, options.precision)

    usable, n_frames = ours.sampler.learnt, ours.sampler.frames
    n_batches = len(ours.sampler.plan(0))
    n_rows = max(1, round(len(usable) / n_batches))
    our_runner = _our_runner(ours)
    runners = {OURS: our_runner}
    for name in (PLAIN, SORTED, NO_ATTENTION_DROPOUT):
        examples = plain_batches(usable, n_frames, n_rows, by_length=name != PLAIN, seed=ours.config.seed)
        share = 0.0 if name == NO_ATTENTION_DROPOUT else transformer.dropout
        runners[name] = _plain_runner(plain, _read(ours.split, examples, model, device), share)
    peak = measure_peak(device, options.precision)
    for name in (OURS, PLAIN) if device.type == "cpu" else runners:  # the plain ones are one model
        for _ in range(WARM_UP[device.type]):
            runners[name].step()
    for runner in runners.values():
        runner.optimizer.zero_grad(set_to_none=True)
    for number in range(options.repeats):
        for name, runner in runners.items():
            _tell(f"round {number + 1} of {options.repeats}: {name}")
            runner.measure(device, options.n_steps, options.seconds)
    _tell("")

    trainers = {}
    for name, runner in runners.items():
        other = runners[PLAIN] if name == OURS else our_runner
        trainers[name] = _summary(runner.rounds, our_runner.rounds, peak, other.held_mb())
    return {
        "parameters": {name: sum(p.numel() for p in runner.model.parameters()) for name, runner in runners.items()},
        "peak_tflops": peak / 1e12,
        "max_frames": max_frames,
        "frames_per_batch": sum(n_frames[i] for i in usable) / n_batches,
        "utterances": len(usable),
        "left_out": len(n_frames) - len(usable),
        "max_seconds": ours.sampler.config.max_seconds,
        "plain_utterances_per_batch": n_rows,
        "trainers": trainers,
    }


def synthetic_pack(folder: Path, n_utterances: int = N_UTTERANCES, seed: int = 0) -> Path:
    """A packed dataset of random codes and phonemes whose lengths are like those of a corpus of read speech.

    Lengths are log-normal around ``MEDIAN_S``, drawn again outside of ``MIN_S`` to ``MAX_SECONDS``.
    """
    from valle.text import DEFAULT_INVENTORY

    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    info = PackInfo(
        "synthetic",
        DEFAULT_INVENTORY.version,
        n_phonemes=len(DEFAULT_INVENTORY),
        separator_id=0,
        frame_rate=FRAME_RATE,
    )
    shards = []
    for split, n in (("train", n_utterances), ("dev", 2)):
        utterances = []
        for i in range(n):
            seconds = 0.0
            while not MIN_S <= seconds <= MAX_SECONDS:
                seconds = MEDIAN_S * rng.lognormvariate(0, SIGMA)
            n_phonemes = max(1, round(seconds * rng.gauss(PHONEMES_PER_S, PHONEMES_SPREAD)))
            phonemes = torch.randint(info.n_phonemes, (n_phonemes,), generator=generator)
            shape = (info.n_quantizers, int(seconds * FRAME_RATE))
            codes = torch.randint(info.codebook_size, shape, generator=generator)
            utterances.append(PackedUtterance(f"{split}{i}", phonemes, codes))
        name = f"{split}-00000.safetensors"
        write_shard(folder / name, utterances, info)
        n_total = sum(u.codes.shape[1] for u in utterances)
        shards.append(ShardInfo(name, split, n, n_total / FRAME_RATE / 3600))
    DEFAULT_INVENTORY.save(folder / PHONEMES_FILE)
    write_info(folder, replace(info, shards=tuple(shards)))
    return folder


def _has_own_clock(device: torch.device) -> bool:
    """Whether it is measured in the process's own time: on one thread of a processor."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def reset_peak_memory(device: torch.device) -> None:
    """Let ``peak_memory_mb`` begin at what is held now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what others have freed is no longer held
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError, TypeError):  # not Linux, or another C library
        return


def peak_memory_mb(device: torch.device) -> float | None:
    """Most memory held since ``reset_peak_memory``; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), None)


def main(argv: Sequence[str]) -> int:
    """``valle bench train``; prints markdown, or JSON."""
    parser = argparse.ArgumentParser(
        prog="valle bench train", description="Measure how fast the AR model trains here, beside a plain trainer."
    )
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all", help="of the model (%(default)s)")
    parser.add_argument("--pack", metavar="DIR", help="data of `valle prepare`; synthetic by default")
    parser.add_argument("--max-frames", type=int, default=0, metavar="N", help="in a batch; 0: by size and device")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(%(default)s)")
    parser.add_argument("--precision", choices=["auto", *get_args(Precision)], default="auto", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0: torch's choice")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which medians are taken (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="a measurement, at least one step (%(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="a measurement, in place of --seconds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    for name, least in (("repeats", 1), ("steps", 0), ("max_frames", 0), ("threads", 0)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise ValleError(f"--{option} is {getattr(args, name)}; it must be at least {least}")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    options = Options(device, choose_precision(args.precision, device), args.repeats, args.steps, args.seconds)
    sizes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(args.pack) if args.pack else synthetic_pack(Path(folder))
        split = Pack(pack).split("train")
        results = {
            "machine": machine()
            | {"device": _name(device), "precision": options.precision, "own_clock": _has_own_clock(device)},
            "data": _data(split, bool(args.pack)),
            "repeats": args.repeats,
            "sizes": sizes,
        }
        for size in SIZES if args.size == "all" else [args.size]:
            max_frames = args.max_frames or MAX_FRAMES[device.type][size]
            sizes[size] = bench_size(configs(size)[0].transformer, pack, max_frames, options)
        del split  # a file that is mapped cannot be deleted on Windows
    sys.stdout.write(json.dumps(results, indent=1) + "\n" if args.json else markdown(results))
    return 0


def markdown(results: dict[str, Any]) -> str:
    """The results as a table, with what they rest on."""
    where, data, sizes = results["machine"], results["data"], results["sizes"]
    place = "" if where["device"] == "cpu" else f"{where['device']}; "
    lines = [
        f"{place}{where['cpu']}, {where['cores']} cores, {where['threads']} threads, torch {where['torch']}, "
        f"{where['precision']}, eager.",
        f"Data: {data['kind']}, {data['utterances']:,} utterances of {data['min_s']:.1f} to {data['max_s']:.1f} s, "
        f"{data['mean_s']:.1f} s and {data['phonemes_per_s']:.1f} phonemes a second on average. The AR as in the paper "
        "(no alignment, convolutions or noise).",
        "Tokens are frames of codebook 1 without padding; median and range of measurements by turns, in "
        f"{'processor time' if results['machine']['own_clock'] else 'wall-clock time'}, "
        f"{results['repeats']} each.",
        "",
    ]
    for size, r in sizes.items():
        out = f" (above {r['max_seconds']:.1f} s: {r['left_out']:,} left out)" if r["left_out"] else ""
        lines.append(
            f"- {size}: {r['parameters'][OURS] / 1e6:.1f} M parameters, plain {r['parameters'][PLAIN] / 1e6:.1f} M; "
            f"ours fills batches of up to {r['max_frames']:,} frames, {r['frames_per_batch']:,.0f} without padding; "
            f"plain takes batches of {r['plain_utterances_per_batch']}{out}. Products reach {r['peak_tflops']:.3g} "
            "TFLOP/s here."
        )
    lines += [
        "",
        "| size | trainer | tokens/s | range | ours is faster | padding | MFU | peak memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, r in sizes.items():
        for name, of in r["trainers"].items():
            memory = of["peak_memory_mb"]
            ratio = "" if name == OURS else f"{of['ratio']:.2f} times"
            lines.append(
                f"| {size} | {name} | {of['tokens_per_s']:,.0f} | {min(of['rates']):,.0f} to {max(of['rates']):,.0f} "
                f"| {ratio} | {of['padding']:.1%} | {of['mfu']:.1%} | {'–' if memory is None else f'{memory:,.0f}'} |"
            )
    return "\n".join(lines) + "\n"


def _our_trainer(transformer: TransformerConfig, pack: Path, max_frames: int, options: Options) -> Trainer:
    """The trainer of ``valle train ar``; nothing is written, since its run is never started."""
    opened, out = Pack(pack), pack / "run"
    max_seconds = min(MAX_SECONDS, MAX_SHARE * max_frames / opened.info.frame_rate)
    task = TaskConfig(
        model={"transformer": asdict(transformer)},
        batches=BatchConfig(max_frames=max_frames, max_seconds=max_seconds),
    )
    config = TrainConfig(
        pack=str(pack),
        out=str(out),
        dev_split="dev" if "dev" in opened.splits else "train",
        device="cuda" if options.device.type == "cuda" else "cpu",
        precision=options.precision,
        ar=task,
    )
    return Trainer("ar", config, out)


def _our_runner(trainer: Trainer) -> Runner:
    counter = Counter()
    trainer.throughput = counter
    means = MeanMetrics()

    def step() -> None:
        trainer.train_step(means)
        trainer.step += 1

    return Runner(step, counter, trainer.model, trainer.optimizer)


def _plain_runner(trainer: PlainTrainer, batches: Iterator[PlainBatch], attention_dropout: float) -> Runner:
    counter = Counter()

    def step() -> None:
        batch = next(batches)
        counter.add(batch.n_frames, batch.work, 0.0)
        trainer.model.drop_attention(attention_dropout)  # the forms share a model
        trainer.step(batch)

    return Runner(step, counter, trainer.model, trainer.optimizer)


def _read(split: PackSplit, examples: Iterator[list[int]], model: AR, device: torch.device) -> Iterator[PlainBatch]:
    """The batches of ``examples``, on a GPU read ahead as ours are."""

    def read(utterances: list[int]) -> PlainBatch:
        batch = collate_plain(split, utterances, model.config)
        return batch.pinned() if device.type == "cuda" else batch

    return ahead(read, examples, n_threads=1, depth=4) if device.type == "cuda" else map(read, examples)


def _summary(rounds: list[Round], ours: list[Round], peak: float, others_mb: float) -> dict[str, Any]:
    flops, positions, filled = (sum(values) for values in zip(*(r.work for r in rounds), strict=True))
    memory = [r.memory_mb for r in rounds if r.memory_mb is not None]
    return {
        "tokens_per_s": statistics.median(r.rate for r in rounds),
        "rates": [r.rate for r in rounds],
        "ratio": statistics.median(our.rate / r.rate for our, r in zip(ours, rounds, strict=True)),
        "padding": 1 - filled / positions,
        "mfu": flops / (sum(r.seconds for r in rounds) * peak),
        "steps": [r.n_steps for r in rounds],
        "peak_memory_mb": max(memory) - others_mb if memory else None,
    }


def _data(split: PackSplit, is_given: bool) -> dict[str, Any]:
    seconds = split.n_frames / split.info.frame_rate
    return {
        "kind": "the pack given" if is_given else "synthetic",
        "utterances": len(split),
        "min_s": float(seconds.min()),
        "mean_s": float(seconds.mean()),
        "max_s": float(seconds.max()),
        "phonemes_per_s": float(split.n_phonemes.sum() / seconds.sum()),
    }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tell(text: str) -> None:
    """Where it is, for who waits at a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
