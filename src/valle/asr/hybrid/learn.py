"""The network's training loop: a criterion, checkpoints, log, resume (``valle.train``'s parts).

First the criterion is cross-entropy on the labels; ``valle.asr.hybrid.sequence`` has the one that may follow.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.asr.hybrid.batches import IGNORE, Batch, Item, make_batch, plan
from valle.asr.hybrid.config import HybridConfig
from valle.asr.hybrid.network import Network
from valle.asr.hybrid.store import TensorStore
from valle.device import choose_device
from valle.errors import ValleError
from valle.train.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from valle.train.ema import MovingAverage
from valle.train.optimiser import lr_at, make_optimiser
from valle.train.signals import stop_signals
from valle.train.tracking import Tracker

logger = logging.getLogger(__name__)


class Criterion(Protocol):
    """What the network is trained by, and judged by on dev."""

    def loss(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of logits [B, S, pdfs], and sums for the log: ``steps``, and of each other name over these."""

    def judge(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Sums for dev, in the same way."""


class CrossEntropy:
    """How well each step's tied state is told, by itself."""

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """See ``Criterion``."""
        keep = batch.labels != IGNORE
        answers, labels = logits[keep], batch.labels[keep]
        loss = F.cross_entropy(answers, labels, label_smoothing=self.label_smoothing)
        n = int(keep.sum())
        right = float((answers.argmax(1) == labels).sum())
        return loss, {"loss": float(loss.detach()) * n, "accuracy": right, "steps": n}

    def judge(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """See ``Criterion``; without smoothing."""
        keep = batch.labels != IGNORE
        answers, labels = logits[keep], batch.labels[keep]
        total = float(F.cross_entropy(answers, labels, reduction="sum"))
        right = float((answers.argmax(1) == labels).sum())
        return {"loss": total, "accuracy": right, "steps": int(keep.sum())}


class NetworkTraining:
    """The state of the run and its loop."""

    def __init__(
        self,
        config: HybridConfig,
        folder: Path,
        n_pdfs: int,
        features: TensorStore,
        labels: TensorStore,
        train: Sequence[Item],
        dev: Sequence[Item],
        *,
        criterion: Criterion | None = None,
        start: Network | None = None,
    ) -> None:
        """
        Args:
            config: of the run; its ``optimiser`` and ``training`` say how.
            folder: of this training.
            n_pdfs: tied states.
            features: mels of each recording at each speed.
            labels: states of each recording's frames.
            train: what to learn from.
            dev: what to judge by.
            criterion: None for cross-entropy.
            start: the weights to begin with; None for random ones.

        Raises:
            ValleError: there is nothing to learn from, the checkpoint in ``folder`` is of another network, or there is
                no such device.
        """
        if not train:
            raise ValleError("no recording could be labelled, so there is nothing to train the network on")
        self.config, self.folder = config, folder
        self.features, self.labels = features, labels
        self.train, self.dev = train, dev
        torch.manual_seed(config.seed)
        self.device = choose_device(config.training.device)
        self.criterion = criterion or CrossEntropy(config.training.label_smoothing)
        self.network = Network(config.network, n_pdfs)
        if start is not None:
            self.network.load_state_dict(start.state_dict())
        self.network.to(self.device)
        self.optimizer = make_optimiser(self.network, config.optimiser)
        decay = config.training.ema_decay
        self.average = MovingAverage(self.network, decay) if decay else None
        self.step, self.epoch, self.place, self.minutes = 0, 0, 0, 0.0
        self.skipped, self.skipped_in_a_row = 0, 0  # steps without a finite gradient
        self.batches = self._plan()
        self.total_steps = max(1, round(config.training.epochs * len(self.batches)))
        if latest_checkpoint(folder / "checkpoints") is not None:
            self._restore()

    def run(self, max_minutes: float = 0.0) -> Network:
        """Train to the end, or for so many minutes; the averaged weights.

        Args:
            max_minutes: of this call; 0 for no bound.

        Raises:
            ValleError: too many steps in a row had no finite gradient.
            KeyboardInterrupt: the process was told to end; there is a checkpoint.
        """
        training = self.config.training
        started = last_save = time.monotonic()
        before = self.minutes
        if self.is_done():
            return self._averaged()
        with (
            Tracker(
                self.folder, self.total_steps, start_step=self.step, unit="s of speech", description=self.folder.name
            ) as tracker,
            stop_signals() as told_to_stop,
        ):
            sums: dict[str, float] = {}
            while not self.is_done():
                values, seconds = self.train_step()
                self.step += 1
                self.minutes = before + (time.monotonic() - started) / 60
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
                tracker.advance(self.step, seconds)
                if self.step % training.log_every == 0:
                    n = sums.pop("steps")
                    means = {f"train/{name}": value / n for name, value in sums.items()}
                    more = {"train/lr": self._lr(), "train/epoch": float(self.epoch), "train/speech_s": tracker.rate()}
                    more["train/skipped"] = self.skipped
                    tracker.log(self.step, means | more, show=("train/loss", "train/accuracy"))
                    sums = {}
                if self.dev and (self.step % training.eval_every == 0 or self.is_done()):
                    judged = self.judge()
                    tracker.log(self.step, judged, show=False)
                    told = ", ".join(f"{k.split('/')[1]} {v:.4f}" for k, v in judged.items())
                    tracker.note(f"step {self.step} of {self.total_steps} on dev: {told}, {self.minutes:.1f} minutes")
                stops = 0 < max_minutes <= (time.monotonic() - started) / 60
                due = time.monotonic() - last_save > training.checkpoint_minutes * 60
                if stops or told_to_stop or self.is_done() or due:
                    self.save()
                    last_save = time.monotonic()
                if told_to_stop:
                    tracker.note("stopped; continue with --resume")
                    raise KeyboardInterrupt
                if stops:
                    break
        return self._averaged()

    def is_done(self) -> bool:
        """Whether all steps or all minutes are used."""
        return self.step >= self.total_steps or 0 < self.config.training.budget_minutes <= self.minutes

    def train_step(self) -> tuple[dict[str, float], float]:
        """One step; sums for the log, and seconds of speech in the batch.

        Raises:
            ValleError: too many steps in a row had no finite gradient.
        """
        if self.place >= len(self.batches):
            self.epoch, self.place = self.epoch + 1, 0
            self.batches = self._plan()
        batch = self._batch(self.batches[self.place])
        self.place += 1
        self.network.train()
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # dropout
        here = batch.to(self.device)
        loss, sums = self.criterion.loss(self.network(here.mels, here.lens), here)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimiser.max_grad_norm or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
            self.skipped_in_a_row = 0
        else:
            self._skip()
        return sums, float(batch.lens.sum()) / 100

    def _skip(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        logger.warning("step %d has no finite gradient and is skipped", self.step + 1)
        if self.skipped_in_a_row >= self.config.training.max_skipped:
            raise ValleError(
                f"{self.skipped_in_a_row} steps in a row up to step {self.step + 1} had no finite gradient; remove "
                f"{self.folder} and resume with a lower learning rate than {self.config.optimiser.lr:g}"
            )

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """What the criterion says of the averaged weights on dev, a step."""
        self.network.eval()
        sums: dict[str, float] = {}
        generator = torch.Generator().manual_seed(0)
        with self.average.in_place() if self.average is not None else nullcontext():
            for chosen in plan(self.dev, self.config.training.batch_seconds, generator):
                batch = make_batch([self.dev[i] for i in chosen], self.features, self.labels, None, generator)
                batch = batch.to(self.device)
                for name, value in self.criterion.judge(self.network(batch.mels, batch.lens), batch).items():
                    sums[name] = sums.get(name, 0.0) + value
        n = max(1.0, sums.pop("steps"))
        return {f"dev/{name}": value / n for name, value in sums.items()}

    def save(self) -> None:
        """Write a checkpoint."""
        moments, optimizer_state = optimizer_tensors(self.optimizer)
        tensors: dict[str, dict[str, Tensor]] = {"model": self.network.state_dict(), "optimizer": moments}
        state = {
            "step": self.step,
            "epoch": self.epoch,
            "place": self.place,
            "minutes": self.minutes,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "optimizer": optimizer_state,
        }
        if self.average is not None:
            tensors["average"] = self.average.weights
            state["average_updates"] = self.average.n_updates
        save_checkpoint(self.folder / "checkpoints", tensors=tensors, state=state)

    def _restore(self) -> None:
        checkpoint = load_checkpoint(self.folder / "checkpoints")
        state = checkpoint.state
        try:
            self.network.load_state_dict(checkpoint.tensors["model"])
        except RuntimeError as error:
            raise ValleError(
                f"{checkpoint.path} is of another network or other labels; give another folder as out"
            ) from error
        restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"], state["optimizer"])
        if self.average is not None and "average" in checkpoint.tensors:
            self.average.load(checkpoint.tensors["average"], state["average_updates"])
        self.step, self.epoch, self.place = state["step"], state["epoch"], state["place"]
        self.minutes = state["minutes"]
        self.skipped, self.skipped_in_a_row = state.get("skipped", (0, 0))  # older checkpoints do not tell
        self.batches = self._plan()

    def _averaged(self) -> Network:
        """A copy on the CPU, with the weights that are judged."""
        out = Network(self.config.network, self.network.output.out_features)
        with self.average.in_place() if self.average is not None else nullcontext():
            out.load_state_dict({k: v.clone() for k, v in self.network.state_dict().items()})
        return out.eval()

    def _plan(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.config.seed * 7919 + self.epoch)
        return plan(self.train, self.config.training.batch_seconds, generator)

    def _batch(self, chosen: Sequence[int]) -> Batch:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        items = [self.train[i] for i in chosen]
        return make_batch(items, self.features, self.labels, self.config.training, generator)

    def _lr(self) -> float:
        """By steps, or by the clock where that is further on."""
        budget = self.config.training.budget_minutes
        step: float = self.step
        if budget and step >= self.config.optimiser.warmup_steps:
            step = max(step, self.total_steps * min(1.0, self.minutes / budget))
        return lr_at(int(step), self.total_steps, self.config.optimiser)
