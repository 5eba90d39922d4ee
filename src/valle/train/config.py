"""The configuration of a training run: one TOML file for both models, ``[ar]`` and ``[nar]`` (configs/*.toml)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from valle.config import load_config
from valle.data.batches import BatchConfig
from valle.errors import ValleError
from valle.train.lora import LoraConfig
from valle.train.optimiser import OptimiserConfig

Kind = Literal["ar", "nar"]


@dataclass(frozen=True)
class RunConfig:
    """How long a run takes and what it leaves; all but ``accumulate`` x ranks and ``ema_decay`` may change on
    --resume."""

    max_steps: int = 800_000
    """Optimiser steps of the whole run; the learning rate reaches 0 here."""
    budget_minutes: float = 0.0
    """Minutes of the whole run, 0 for no bound; it ends, and the learning rate reaches 0, here or at max_steps,
    whichever comes first. For a machine that is lent or shared: a run that follows the clock cannot be repeated bit for
    bit."""
    max_minutes: float = 0.0
    """Minutes until this process stops with a checkpoint, 0 for no bound; --resume goes on as if nothing had been."""
    accumulate: int = 1
    """Batches a step and a rank: a large batch on a small machine."""
    batches_per_step: int = 0
    """Batches a step of all ranks together, in place of accumulate: the run is then the same on any number of ranks
    that divides it, and may change ranks on --resume. 0: accumulate holds."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What several ranks do. ddp: each has the whole model, and gradients are summed while others are computed. fsdp:
    weights, gradients and moments are shared out, for models that a device cannot hold. Either continues the other."""
    compile: bool = False
    """Compile the transformer's blocks in training, once for all lengths (torch.compile; needs a C++ compiler, or a GPU
    and Triton). Numbers change in the last digits."""
    ema_decay: float = 0.0
    """0: off. Otherwise the weights that are judged and kept are a moving average with this decay per step."""
    log_every: int = 50
    """Steps between log lines."""
    eval_every: int = 1000
    """Steps between validations on dev; the best weights so far are kept in best/."""
    dev_frames: int = 0
    """Frames of dev that a validation sees, taken evenly over all lengths; 0 for all of it."""
    samples: bool = True
    """Speak at every validation, where the configuration names a codec."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints; whichever comes first."""
    keep: int = 2
    """Checkpoints that stay."""
    max_skipped: int = 20
    """So many steps in a row without a finite loss and gradient, or above max_spike, each of them skipped, end the run
    with an error."""
    max_spike: float = 0.0
    """A step whose gradient has a norm above so many times the median of the last 100 accepted is skipped; 0: none is.
    Norms in the logs of healthy runs stayed below 2.5 times it; 10 is ample."""
    activation_checkpointing: bool = False
    """Keep only what enters each block of the transformer, and compute the rest again for the gradient: a third more
    work for a small part of the memory (``valle train plan`` tells how much). Losses and gradients stay the same."""

    def __post_init__(self) -> None:
        if min(self.max_steps, self.accumulate, self.log_every, self.eval_every, self.checkpoint_every, self.keep) < 1:
            raise ValleError(f"max_steps, accumulate, keep and the *_every of a run must be at least 1, not {self}")
        if self.batches_per_step < 0 or (self.batches_per_step and self.accumulate > 1):
            raise ValleError(
                f"batches_per_step is {self.batches_per_step} and accumulate {self.accumulate}; set one of them: the "
                "batches a step of all ranks together, or those of each"
            )
        if self.parallel not in ("ddp", "fsdp"):
            raise ValleError(f'parallel is "{self.parallel}"; it must be "ddp" or "fsdp"')
        if not 0 <= self.ema_decay < 1:
            raise ValleError(f"ema_decay is {self.ema_decay}; it must be 0 (off) or below 1, such as 0.999")
        if self.max_spike and not self.max_spike > 1:
            raise ValleError(f"max_spike is {self.max_spike}; it must be 0 (off) or above 1, such as 10")


@dataclass(frozen=True)
class SpokenConfig:
    """Evaluation by ear while a model trains (``valle.train.spoken``); all of it may change on --resume."""

    every: int = 0
    """Steps between evaluations, 0 for none; there is one at the end of the run, too."""
    n: int = 10
    """Sentences, pairs of utterances of dev that the seed draws: one is the voice, the other tells the words."""
    whisper: str = ""
    """Who counts the words: a Whisper by name (``base``, which faster-whisper fetches) or folder. Empty: no word error
    rate."""
    speaker: str = ""
    """Who compares the voices: an ONNX file, or ``wavlm:`` and a folder or hub id (docs/evaluation.md). Empty: no
    speaker cosine."""
    texts: tuple[str, ...] = ()
    """What the utterances of dev say, since a pack holds phonemes only: the sources given to ``valle prepare``, or
    files with a line ``{"id": ..., "text": ...}`` for each. ``transcripts.jsonl`` of the pack counts without being
    named."""
    partner: str = ""
    """The NAR that completes what an AR in training says: best/ of a run, a model folder, or ``embedded``. Empty: that
    of the same configuration once it has a best/, until then the AR's codebook is heard alone."""
    temperature: float = 0.9
    """How the AR samples (``SamplingConfig``)."""
    top_p: float = 0.95
    """Likewise."""
    guidance: float = 1.0
    """Likewise; above 1 for a model with text_dropout only, such as 2.5 for the embedded one."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.n < 1:
            raise ValleError(f"spoken.every is {self.every} and spoken.n {self.n}; they must be at least 0 and 1")

    def due(self, step: int, *, is_done: bool = False) -> bool:
        """Whether to speak after this step, which is the run's last if ``is_done``."""
        return self.every > 0 and step > 0 and (is_done or step % self.every == 0)


@dataclass(frozen=True)
class TaskConfig:
    """What one of the two models is and how it is trained."""

    model: dict[str, Any] = field(default_factory=dict)
    """The fields of ARConfig or NARConfig; n_phonemes, codebook_size and n_quantizers come from the pack. Empty, with
    ``init``: those of the model to start from."""
    init: str = ""
    """A model to start from instead of random weights: best/ of another run, a model folder, or ``embedded``."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Of a model to start from, learn only this."""
    codebooks: bool = False
    """Begin with the codec's own codebooks as embeddings of the codes, so that codes that sound alike start alike; the
    paper does not. Needs ``codec``, and has no effect with ``init``."""
    batches: BatchConfig = field(default_factory=BatchConfig)
    """What a batch is."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """How weights move."""
    run: RunConfig = field(default_factory=RunConfig)
    """How long, how often."""

    def __post_init__(self) -> None:
        if self.lora.rank and not self.init:
            raise ValleError("lora.rank is set without init; name a model that is trained already, or leave lora out")


@dataclass(frozen=True)
class TrainConfig:
    """One TOML file."""

    pack: str
    """Folder of the packed dataset (``valle prepare``)."""
    out: str
    """Folder of the runs: out/ar and out/nar."""
    codec: str = ""
    """Folder of the codec that made the pack, or of a model that has it, or ``embedded``; with it a sample is spoken at
    every validation. Empty: none."""
    train_split: str = "train"
    """The split to learn from."""
    dev_split: str = "dev"
    """The split to judge by."""
    seed: int = 0
    """Of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What matrix products are computed in; weights are fp32. auto: bf16 where the hardware has it, fp32 elsewhere."""
    spoken: SpokenConfig = field(default_factory=SpokenConfig)
    """What is judged by ear while a model trains."""
    ar: TaskConfig = field(default_factory=TaskConfig)
    """The autoregressive model."""
    nar: TaskConfig = field(default_factory=TaskConfig)
    """The non-autoregressive model."""


def load_train_config(path: str | Path) -> TrainConfig:
    """Read a TOML file; see ``valle.config.load_config`` for its errors."""
    return load_config(path, TrainConfig)
