"""One training loop for both models: ``python -m valle.train.loop ar|nar CONFIG [--resume]`` (paper §5.1).

A step is ``accumulate`` batches on every rank, their losses weighted by tokens so that the gradient is that of one
large batch. Whatever is random in it (dropout, stages, prompts) is seeded by the run's seed, the step, and the batch's
number within the step. Nothing random lives longer than a batch, and the position in the data is two numbers: a resumed
run equals an uninterrupted one bit for bit, and two ranks equal one with accumulation.

A run leaves in ``out/ar`` or ``out/nar``: ``config.json``, ``checkpoints/``, ``log.jsonl``, ``tensorboard/``,
``samples/``, and the weights that were best on dev in ``best/``. Given a pack, it needs torch, safetensors and tqdm
only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from valle.config import from_dict, require_same, to_dict
from valle.data.ahead import ahead
from valle.data.batches import BatchConfig, BatchSampler, Example, collate
from valle.data.pack import PHONEMES_FILE, Pack
from valle.device import choose_device, choose_precision
from valle.errors import ValleError
from valle.files import write_atomic
from valle.model.nar import NAR
from valle.pretrained import part_of
from valle.train.checkpoint import (
    CheckpointWriter,
    latest_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
)
from valle.train.config import Kind, TaskConfig, TrainConfig, load_train_config
from valle.train.devices import measure_peak
from valle.train.distributed import (
    Learner,
    batches_per_rank,
    is_one_of_several,
    join_ranks,
    load_whole,
    placed_like,
    torchrun_job,
    whole_state,
)
from valle.train.ema import MovingAverage
from valle.train.flops import Work
from valle.train.lora import LoraConfig, add_lora, whole_weights
from valle.train.optimiser import lr_at, make_optimiser
from valle.train.signals import stop_signals
from valle.train.spikes import SpikeGuard
from valle.train.spoken import SpokenEvaluation
from valle.train.tasks import MeanMetrics, Task, make_task, pair_to_speak, validate
from valle.train.throughput import Throughput
from valle.train.tracking import Tracker
from valle.train.weights import begin_with, load_weights, model_values

logger = logging.getLogger(__name__)

SHOWN = ("train/loss", "train/top10", "train/lr", "train/tokens_per_s", "train/mfu")
"""What stands beside the progress bar."""

_STEPS_AHEAD = 4  # read while a GPU computes


def train(
    kind: Kind,
    config_path: str | Path,
    *,
    resume: bool = False,
    out: str | Path | None = None,
    init: str | None = None,
    lora: int | None = None,
) -> Path:
    """Run ``valle train ar|nar``.

    Args:
        kind: which model.
        config_path: a TOML file (``TrainConfig``).
        resume: continue from the newest checkpoint of the run.
        out: in place of the configuration's ``out``.
        init: in place of the configuration's model to begin with.
        lora: in place of the configuration's rank; 0 lets all weights learn.

    Returns:
        The run's folder, ``out/ar`` or ``out/nar``.

    Raises:
        ValleError: a wrong configuration or pack, a run that is already there (without ``resume``) or none (with it),
            or gradients that stay infinite.
    """
    config = load_train_config(config_path)
    task: TaskConfig = getattr(config, kind)
    task = replace(task, init=task.init if init is None else init)
    task = replace(task, lora=task.lora if lora is None else replace(task.lora, rank=lora))
    config = replace(config, ar=task) if kind == "ar" else replace(config, nar=task)
    trainer = Trainer(kind, config, Path(out or config.out) / kind)
    # What torchrun starts again after a failure goes on, without having been told so. The main rank decides for all.
    trainer.start(bool(trainer.ranks.of_main(resume or trainer.is_of_this_job())))
    trainer.run()
    trainer.ranks.wait()
    trainer.ranks.leave()  # NOTE not after an error: others may wait for this rank, and leaving waits for them
    return trainer.out


class _Input(NamedTuple):
    """What one rank reads in one step."""

    seeds: list[int]
    batches: list[Any]
    n_tokens: list[int]
    n_frames: int
    work: Work
    position: dict[str, Any]  # of the sampler afterwards


class Trainer:
    """The state of one run and its loop."""

    def __init__(self, kind: Kind, config: TrainConfig, out: Path) -> None:
        self.kind, self.config, self.out = kind, config, out
        self.task_config: TaskConfig = getattr(config, kind)
        self.run_config = self.task_config.run
        self.ranks = join_ranks(choose_device(config.device))
        self.device = self.ranks.device
        self.precision = choose_precision(config.precision, self.device)
        run = self.run_config
        self.n_batches = batches_per_rank(run.batches_per_step, run.accumulate, self.ranks.size)

        self.pack = Pack(config.pack)
        self.codec = self._load_codec()
        self.split = self.pack.split(config.train_split)
        self.dev = self.pack.split(config.dev_split)
        self.sampler = BatchSampler(
            self.split, self.task_config.batches, seed=config.seed, rank=self.ranks.rank, world_size=self.ranks.size
        )
        self.dev_batches = self._choose_dev()
        self.pair = pair_to_speak(self.dev)

        torch.manual_seed(config.seed)
        self.task: Task[Any] = make_task(kind, model_values(kind, self.task_config), self.pack.info)
        self.model: nn.Module = self.task.model.to(self.device)
        if self.task_config.codebooks and not self.task_config.init:
            self.task.model.begin_with(self._codebooks())
        if self.task_config.init:
            begin_with(self.model, kind, self.task_config.init)
        if isinstance(self.task.model, NAR) and self.task.model.config.codebook_dim:
            self.task.model.set_codebooks(self._codebooks())  # those of the pack's codec, also after init
        if self.task_config.lora.rank:
            add_lora(self.model, self.task_config.lora)
        # NOTE after all that is drawn: what judges and partners draw changes nothing then.
        self.spoken: SpokenEvaluation | None = None
        if config.spoken.every and self.ranks.is_main:
            self.spoken = SpokenEvaluation(
                config, self.task, self.pack, self.dev, self.codec, self.device, self.out.parent
            )
        self.task.model.transformer.checkpointing = self.run_config.activation_checkpointing
        if self.run_config.compile:
            self.task.model.transformer.compile_blocks()
        self.learner = Learner(self.task, self.ranks, self.run_config.parallel)
        self.optimizer = make_optimiser(self.model, self.task_config.optimiser)
        decay = self.run_config.ema_decay
        self.average = MovingAverage(self.model, decay) if decay else None
        self.writer = CheckpointWriter(self.out / "checkpoints", self.ranks, keep=self.run_config.keep)
        self.reads_ahead = self.device.type == "cuda"
        self.step = 0
        self.minutes = 0.0  # of all processes of this run, one after the other
        self.skipped = 0  # steps without a finite gradient
        self.skipped_in_a_row = 0
        self.best: float | None = None  # loss on dev
        self.position = self.sampler.state_dict()  # after the last step; the sampler may be ahead of it
        self.guard = SpikeGuard(self.run_config.max_spike)
        self.throughput = Throughput(self.ranks.size)
        self._heard = -1  # the last step that was judged by ear
        self._generator = torch.Generator()
        self._inputs: Iterator[_Input] | None = None

    # Starting and stopping

    def start(self, resume: bool) -> None:
        """Make the run's folder, or take up the run that is in it."""
        identity = self._identity()
        path = self.out / "config.json"
        if resume:
            checkpoint = load_checkpoint(self.out / "checkpoints")
            before = json.loads(path.read_text(encoding="utf-8"))["identity"]
            # Newer options at their defaults.
            batches = to_dict(from_dict(BatchConfig, before["batches"]))
            lora = to_dict(from_dict(LoraConfig, before.get("lora", {})))
            before = {**before, "model": self.task.complete(before["model"]), "batches": batches, "lora": lora}
            require_same(before, identity, self.out)
            self._restore(checkpoint.tensors, checkpoint.state)
        elif latest_checkpoint(self.out / "checkpoints") is not None:
            raise ValleError(
                f"{self.out} already holds a run; continue it with --resume, or give another folder as out"
            )
        if self.ranks.is_main:
            self.out.mkdir(parents=True, exist_ok=True)
            body = {"identity": identity, "config": to_dict(self.config), "job": torchrun_job()}
            write_atomic(path, (json.dumps(body, indent=1) + "\n").encode())
        steps = self.ranks.total([float(self.step * (rank == self.ranks.rank)) for rank in range(self.ranks.size)])
        if len(set(steps)) > 1:
            raise ValleError(
                f"ranks would go on from different steps, {', '.join(f'{step:.0f}' for step in steps)}; all need to "
                f"see the same folder {self.out}"
            )

    def is_of_this_job(self) -> bool:
        """Whether the run in the folder was begun, or last gone on with, by the torchrun that started this process."""
        job, path = torchrun_job(), self.out / "config.json"
        if not job or not path.is_file() or latest_checkpoint(self.out / "checkpoints") is None:
            return False
        return bool(json.loads(path.read_text(encoding="utf-8")).get("job") == job)

    def save(self) -> None:
        """Begin to write a checkpoint; training may go on meanwhile."""
        moments, optimizer_state = optimizer_tensors(self.optimizer)
        tensors: dict[str, dict[str, Tensor]] = {"model": self.model.state_dict(), "optimizer": moments}
        state: dict[str, Any] = {
            "step": self.step,
            "minutes": self.minutes,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "norms": self.guard.state(),
            "best": self.best,
            "sampler": self.position,
            "optimizer": optimizer_state,
        }
        if self.average is not None:
            tensors["average"] = self.average.weights
            state["average_updates"] = self.average.n_updates
        self.writer.save(tensors, state)

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        load_whole(self.model, tensors["model"])
        restore_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"], placed_like)
        self.sampler.load_state_dict(state["sampler"])
        self.position = state["sampler"]
        if self.average is not None:
            self.average.load(tensors["average"], state["average_updates"])
        self.step, self.minutes = state["step"], state["minutes"]
        self.skipped, self.skipped_in_a_row = state["skipped"]
        self.guard.load(state.get("norms", ()))  # older checkpoints have none
        self.best = state["best"]

    def _identity(self) -> dict[str, Any]:
        """What a run cannot change half-way without becoming another."""
        config, task, info = self.config, self.task_config, self.pack.info
        return {
            "kind": self.kind,
            "seed": config.seed,
            "codec_fingerprint": info.codec_fingerprint,
            "inventory_version": info.inventory_version,
            "splits": [config.train_split, config.dev_split],
            "model": self.task.config_dict(),
            "batches": to_dict(task.batches),
            "optimiser": to_dict(task.optimiser),
            "accumulate x ranks": self.n_batches * self.ranks.size,
            "ema_decay": task.run.ema_decay,
            "lora": to_dict(task.lora),
        }

    # The loop

    def run(self) -> None:
        """Train to the end, or until told to stop."""
        run = self.run_config
        means = MeanMetrics()
        minutes_before, saved_step, validated_step = self.minutes, self.step, -1
        with self._tracker() as tracker, stop_signals() as stop:
            self._greet(tracker)
            started, saved_minutes = time.monotonic(), self.minutes
            self.throughput.restart()
            while True:
                sitting = (time.monotonic() - started) / 60
                told = bool(stop) or 0 < run.max_minutes <= sitting
                stops, self.minutes = self.ranks.total([told, minutes_before + sitting if self.ranks.is_main else 0.0])
                is_done = self.step >= run.max_steps or 0 < run.budget_minutes <= self.minutes
                if stops or is_done:
                    break
                numbers = self.train_step(means)
                self.step += 1
                if tracker is not None:
                    tracker.advance(self.step)
                if self.step % run.log_every == 0:
                    learnt = means.take("train", self.task.metrics, self.ranks.total)
                    numbers |= {**self.throughput.take(), "train/epoch": self.position["epoch"]}
                    if tracker is not None:
                        tracker.log(self.step, learnt | numbers, show=SHOWN)
                if self.step % run.eval_every == 0:
                    self.validate(tracker)
                    validated_step = self.step
                # By the main rank's clock, which all ranks know: to save is an act of all of them.
                if self.step % run.checkpoint_every == 0 or self.minutes - saved_minutes > run.checkpoint_minutes:
                    self.save()
                    saved_step, saved_minutes = self.step, self.minutes
                self._hear(tracker)
            if is_done and validated_step != self.step:
                self.validate(tracker)
                saved_step = -1  # the best loss may have changed
            if saved_step != self.step:
                self.save()
            if is_done:
                self._hear(tracker, is_done=True)
            self.writer.wait()
            if tracker is not None:
                ended = "finished" if is_done else "stopped; continue with --resume"
                tracker.note(f"{self.kind}: {ended} at step {self.step} after {self.minutes:.1f} minutes")

    def train_step(self, means: MeanMetrics) -> dict[str, float]:
        """One optimiser step.

        Returns:
            Numbers for the log.

        Raises:
            ValleError: too many steps in a row had no finite gradient, or one that was too large.
        """
        config = self.task_config.optimiser
        began = time.perf_counter()
        seeds, batches, n_tokens, n_frames, work, self.position = self._next_input()
        waited = time.perf_counter() - began
        all_tokens, all_frames, *all_work, all_waited = self.ranks.total([sum(n_tokens), n_frames, *work, waited])
        self.throughput.add(all_frames, Work(*all_work), all_waited)

        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for i, (seed, batch, n) in enumerate(zip(seeds, batches, n_tokens, strict=True)):
            torch.manual_seed(seed)  # dropout
            share, is_last = n / max(1.0, all_tokens), i == len(batches) - 1
            means.add(self.learner.backward(batch, share, self._autocast(), is_last=is_last))
        # A loss that is not finite makes the norm so.
        norm = self._agreed(self.learner.clip(config.max_grad_norm or math.inf))
        lr = lr_at(self.step, self._total_steps(), config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.guard.accepts(norm):
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
            self.skipped_in_a_row = 0
        else:
            self._skip(norm)
        return {"train/lr": lr, "train/grad_norm": norm, "train/skipped": self.skipped}

    def _agreed(self, norm: float) -> float:
        """The gradient's norm, the same number on all ranks where it is compared with others."""
        # On devices of two kinds it might differ in the last digit, and one rank would make a step that another skips.
        return self.ranks.total([norm])[0] / self.ranks.size if self.guard.max_spike else norm

    def _skip(self, norm: float) -> None:
        """Count a step that is not made.

        Raises:
            ValleError: it is one too many in a row.
        """
        self.skipped += 1
        self.skipped_in_a_row += 1
        lr, max_spike = self.task_config.optimiser.lr, self.run_config.max_spike
        if math.isfinite(norm):
            what = f"a gradient above max_spike = {max_spike:g} times the median of those before"
            cure = f"lower the learning rate ({lr:g}), look at the data, or raise max_spike"
        else:
            what = "no finite gradient"
            cure = f"lower the learning rate ({lr:g}) or set precision to fp32 (it is {self.precision})"
        logger.warning("step %d has %s (its norm is %.3g) and is skipped", self.step + 1, what, norm)
        if self.skipped_in_a_row >= self.run_config.max_skipped:
            raise ValleError(f"{self.skipped_in_a_row} steps in a row up to step {self.step + 1} had {what}; {cure}")

    def _next_input(self) -> _Input:
        """What this rank reads in the present step; on a GPU it is made ready while the steps before are computed."""
        if not self.reads_ahead:
            return self._make_input(self.step)
        if self._inputs is None:
            self._inputs = ahead(self._make_input, itertools.count(self.step), n_threads=1, depth=_STEPS_AHEAD)
        return next(self._inputs)

    def _make_input(self, step: int) -> _Input:
        seeds, batches, n_frames, work = [], [], 0, Work(0, 0, 0)
        for micro in range(self.n_batches):
            seeds.append(self._seed(step, micro * self.ranks.size + self.ranks.rank))
            rows = collate(self.split, next(self.sampler))
            batch = self.task.make_batch(rows, self._generator.manual_seed(seeds[-1]))
            work = work.plus(self.task.work(batch))
            batches.append(self.task.pinned(batch) if self.device.type == "cuda" else batch)
            n_frames += int(rows.code_lens.sum())
        n_tokens = [self.task.n_tokens(batch) for batch in batches]
        return _Input(seeds, batches, n_tokens, n_frames, work, self.sampler.state_dict())

    def validate(self, tracker: Tracker | None) -> None:
        """Judge the weights on dev, keep them if they are the best, and let them speak."""
        run = self.run_config
        with self._judged() as task:
            if task is None or tracker is None:
                return
            values = validate(task, self.dev, self.dev_batches, self.device, self._autocast())
            tracker.log(self.step, values, show=False)
            summary = ", ".join(f"{name} {values[f'dev/{name}']:.4f}" for name in ("loss", "top1", "top10"))
            tracker.note(f"{self.kind} step {self.step} on dev: {summary}")
            if math.isfinite(values["dev/loss"]) and (self.best is None or values["dev/loss"] < self.best):
                self.best = values["dev/loss"]
                self._keep_best(task, values)
            if run.samples and self.codec is not None and self.pair is not None:
                try:
                    self._speak(task, tracker)
                except Exception as error:  # a sample is a comfort: no failure of it may end the run
                    tracker.note(f"no sample at step {self.step}: {error}")
        self.throughput.restart()

    @contextmanager
    def _judged(self) -> Iterator[Task[Any] | None]:
        """The task with the weights that are judged, the average if there is one; None but on the main rank.

        Where ranks hold parts of the model, the main one puts another together.
        """
        if not self.learner.is_sharded:
            with self.average.in_place() if self.average is not None else nullcontext():
                yield self.task if self.ranks.is_main else None
            return
        average = None if self.average is None else self.average.weights
        state = whole_state(self.model, average, is_kept=self.ranks.is_main)
        if not self.ranks.is_main:
            yield None
            return
        task: Task[Any] = make_task(self.kind, model_values(self.kind, self.task_config), self.pack.info)
        if self.task_config.lora.rank:
            add_lora(task.model, self.task_config.lora)
        task.model.load_state_dict(state)
        del state
        task.model.to(self.device)
        yield task

    def _hear(self, tracker: Tracker | None, *, is_done: bool = False) -> None:
        """Judge by ear what the weights say, where it is time to; the other ranks wait at their next step."""
        if self._heard == self.step or not self.config.spoken.due(self.step, is_done=is_done):
            return
        self._heard = self.step
        with self._judged() as task:
            if task is None or tracker is None or self.spoken is None:
                return
            self.spoken.run(self.step, tracker, task)
        self.throughput.restart()

    def _keep_best(self, task: Task[Any], values: dict[str, float]) -> None:
        """Write ``best/`` anew, as a model that ``load_weights`` reads."""
        from safetensors.torch import save

        best, new = self.out / "best", self.out / ".best.tmp"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        tensors = {name: tensor.cpu().contiguous() for name, tensor in whole_weights(task.model).items()}
        write_atomic(new / "model.safetensors", save(tensors))
        info = self.pack.info
        notes = {
            "step": self.step,
            "minutes": round(self.minutes, 1),
            "epoch": self.position["epoch"],
            "train_hours": round(info.hours(self.config.train_split), 2),
            "max_seconds": self.task_config.batches.max_seconds,
            "codec_fingerprint": info.codec_fingerprint,
            "inventory_version": info.inventory_version,
            "aligner": info.aligner,
            **{name: round(value, 5) for name, value in values.items()},
        }
        for name, body in (("config.json", task.config_dict()), ("training.json", notes)):
            (new / name).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(self.pack.folder / PHONEMES_FILE, new / PHONEMES_FILE)
        shutil.rmtree(best, ignore_errors=True)
        new.rename(best)

    @torch.no_grad()
    def _speak(self, task: Task[Any], tracker: Tracker) -> None:
        """The AR with the NAR of the same configuration if it is trained, else its codebook alone; the NAR alone."""
        assert self.codec is not None
        assert self.pair is not None
        task.model.eval()
        nar_folder = self.out.parent / "nar" / "best"
        has_nar = self.kind == "ar" and (nar_folder / "config.json").is_file()
        other = load_weights("nar", nar_folder).to(self.device) if has_nar else None
        codes = task.speak(self.dev, self.pair, self.device, other)  # [K, T]
        if not codes.shape[1]:
            tracker.note(f"step {self.step}: the sample ended before it began")
            return
        wav = self.codec.decode(codes.unsqueeze(0))
        info = {"synthetic": True, "model": f"{self.kind} in training, step {self.step}"}
        tracker.audio(self.step, f"dev/{self.kind}", wav, self.codec.sample_rate, info)

    # Small things

    def _tracker(self) -> AbstractContextManager[Tracker | None]:
        """Log and progress bar; only the main rank has them."""
        if not self.ranks.is_main:
            return nullcontext()
        return Tracker(self.out, self.run_config.max_steps, start_step=self.step, description=self.kind)

    def _greet(self, tracker: Tracker | None) -> None:
        if tracker is None:
            return
        n = sum(p.numel() for p in self.learner.parameters) / 1e6  # that learn
        hours = self.pack.info.hours(self.config.train_split)
        tracker.note(
            f"{self.kind}: {n:.1f} M parameters, {hours:.2f} h of speech, {self.device}, {self.precision}, "
            f"{self.ranks.size} x {self.n_batches} batches of up to {self.sampler.config.max_frames} frames"
        )
        self.throughput.peak = measure_peak(self.device, self.precision)
        tracker.note(f"mfu is a share of what products reach here, {self.throughput.peak / 1e12:.3g} TFLOP/s a device")
        if self.sampler.left_out:
            tracker.note(f"utterances left out as too short or too long: {self.sampler.left_out}")
        if self.spoken is not None:
            tracker.note(self.spoken.plan())
        if self.codec is not None and self.pair is None:
            tracker.note("no samples: dev has no two utterances of one speaker of a fit length")

    def _seed(self, step: int, number: int) -> int:
        """Of batch ``number`` of a step, counted over ranks and micro-batches."""
        return random.Random(f"{self.config.seed}/{step}/{number}").getrandbits(63)

    def _total_steps(self) -> float:
        """Where the learning rate reaches 0: ``max_steps``, or as far as the minutes bring the run at this pace."""
        run = self.run_config
        if run.budget_minutes > 0 and self.minutes > 0 and self.step:
            return float(min(run.max_steps, self.step * run.budget_minutes / self.minutes))
        return float(run.max_steps)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _load_codec(self) -> Any:
        """The codec for samples; only on the rank that speaks.

        Raises:
            ValleError: it is not the one that made the pack.
        """
        if not self.config.codec or not self.ranks.is_main:
            return None
        from valle.codec.base import load_codec

        codec = load_codec(part_of(self.config.codec, "codec"), self.device)
        self.pack.require(codec_fingerprint=codec.fingerprint())
        return codec

    def _codebooks(self) -> Tensor:
        """The entries of the codec's codebooks, [K, codebook_size, d].

        Raises:
            ValleError: no codec is named, or it is not the one that made the pack.
        """
        from valle.codec.base import load_codec

        if not self.config.codec:
            raise ValleError(
                f"[{self.kind}] codebooks = true and codebook_dim take the codec's codebooks; name its folder as codec"
            )
        codec = self.codec or load_codec(part_of(self.config.codec, "codec"), self.device)
        self.pack.require(codec_fingerprint=codec.fingerprint())
        codebooks: Tensor = codec.codebooks()
        return codebooks

    def _choose_dev(self) -> list[list[Example]]:
        """The batches of a validation: all of dev, or ``dev_frames`` taken evenly over all lengths."""
        plan = BatchSampler(self.dev, self.task_config.batches).sorted_plan()
        limit = self.run_config.dev_frames
        n_frames = sum(int(self.dev.n_frames[i]) for batch in plan for example in batch for i in example)
        every = max(1, round(n_frames / limit)) if limit else 1
        return plan[every // 2 :: every] or plan[:1]


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``python -m valle.train.loop``."""
    parser = argparse.ArgumentParser(
        prog="python -m valle.train.loop",
        description="Train the AR or the NAR model.",
        epilog="CONFIG's table [spoken] has sentences spoken and judged while the model trains (docs/training.md).",
    )
    parser.add_argument("kind", choices=("ar", "nar"))
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, such as configs/default.toml")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--out", help="folder of the runs, in place of the configuration's")
    parser.add_argument("--init", help="a model to begin with, in place of the configuration's")
    parser.add_argument("--lora", type=int, help="rank of what is learnt beside its weights; 0: all of them learn")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(args.kind, args.config, resume=args.resume, out=args.out, init=args.init, lora=args.lora)
    except ValleError as error:
        logger.error("error: %s", error)
        return _leave(2)
    except Exception:
        if not is_one_of_several():
            raise
        logger.exception("this rank ends")
        return _leave(1)
    return 0


def _leave(code: int) -> int:
    """End at once as one of several ranks: what is done at exit may wait for the others, and torchrun for this one."""
    if is_one_of_several():
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
