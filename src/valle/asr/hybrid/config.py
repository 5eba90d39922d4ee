"""The configuration of a recogniser's training: one TOML file (``configs/asr.toml``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from valle.asr.hybrid.bootstrap import BootstrapConfig
from valle.asr.hybrid.network import NetworkConfig
from valle.config import load_config, to_dict
from valle.errors import ValleError
from valle.train.optimiser import OptimiserConfig


@dataclass(frozen=True)
class TrainingConfig:
    """How the network learns."""

    epochs: float = 8.0
    """Times that it sees all recordings at all speeds; the learning rate reaches 0 here."""
    budget_minutes: float = 0.0
    """Minutes of the whole run, 0 for no bound: it ends, and the learning rate reaches 0, here or after ``epochs``,
    whichever comes first. A run that follows the clock cannot be repeated bit for bit."""
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    """At which recordings are played."""
    batch_seconds: float = 120.0
    """Seconds of speech in a batch, padding included."""
    frequency_masks: int = 2
    """SpecAugment: bands silenced in each recording."""
    frequency_width: int = 15
    """Mel channels of a band at most."""
    time_masks: float = 0.1
    """SpecAugment: share of the frames that is silenced, in gaps of 25 frames at most."""
    label_smoothing: float = 0.05
    """Share of a label's probability that goes to all states."""
    ema_decay: float = 0.998
    """The weights that are judged and kept are a moving average with this decay; 0: off."""
    log_every: int = 20
    """Steps between log lines."""
    eval_every: int = 400
    """Steps between looks at dev."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    max_skipped: int = 20
    """So many steps in a row without a finite loss and gradient, each of them skipped, end the run with an error."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network trains; auto takes a GPU if there is one. Only on the CPU can a run be repeated bit for bit."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_seconds <= 0 or min(self.log_every, self.eval_every, self.max_skipped) < 1:
            raise ValleError(
                f"epochs, batch_seconds, log_every, eval_every and max_skipped must be above 0, not {self}"
            )
        if not self.speeds or not all(0.5 <= s <= 2 for s in self.speeds):
            raise ValleError(f"speeds are {self.speeds}; give some between 0.5 and 2, such as [0.9, 1.0, 1.1]")
        if not (0 <= self.label_smoothing < 1 and 0 <= self.ema_decay < 1):
            raise ValleError(
                f"label_smoothing is {self.label_smoothing:g} and ema_decay {self.ema_decay:g}; both must be at least "
                "0 (off) and below 1"
            )


@dataclass(frozen=True)
class SequenceConfig:
    """How the network learns on, from sequences, when cross-entropy has done its part (``sequence``)."""

    epochs: float = 0.0
    """Times that it sees all recordings at all speeds; 0: no such training."""
    budget_minutes: float = 0.0
    """As of ``training``."""
    lr: float = 2e-4
    """Peak learning rate; the other options of the optimiser are those of cross-entropy."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""
    ce_weight: float = 0.1
    """Weight of cross-entropy beside the sequence criterion: the network goes on telling probabilities of states."""
    l2: float = 0.0
    """Half of this times the sum of the squares of a step's scores, less their mean, is added to the loss."""
    chunk_seconds: float = 1.5
    """Recordings are judged in pieces of so many seconds at most; 0: whole. The network sees them whole always."""
    tolerance: int = 2
    """Steps of 30 ms by which a unit may begin earlier or later than labelled."""
    acoustic_scale: float = 0.6
    """Weight of the network's log-likelihoods against the probabilities of what follows what, as in recognition."""
    prior_scale: float = 0.8
    """How much of the states' frequencies is taken off the network's answers, as in recognition."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.budget_minutes, self.warmup_steps, self.ce_weight, self.l2, self.tolerance) < 0:
            raise ValleError(
                "epochs, budget_minutes, warmup_steps, ce_weight, l2 and tolerance of the sequence training must be at "
                f"least 0, not {self}; epochs = 0 leaves it out"
            )
        if self.lr <= 0 or self.acoustic_scale <= 0 or self.prior_scale < 0:
            raise ValleError(
                f"lr is {self.lr:g}, acoustic_scale {self.acoustic_scale:g} and prior_scale {self.prior_scale:g} of "
                "the sequence training; the first two must be above 0, the last at least 0"
            )
        if self.chunk_seconds and self.chunk_seconds < 0.3:
            raise ValleError(
                f"chunk_seconds is {self.chunk_seconds:g}; it must be at least 0.3, or 0 for whole recordings; 1.5 is "
                "usual"
            )


@dataclass(frozen=True)
class LanguageConfig:
    """The language model."""

    order: int = 3
    """Words of the longest gram."""
    texts: tuple[str, ...] = ()
    """Further files of text, one sentence a line; the transcripts of ``train`` always count."""
    words: str = ""
    """A list ``word count`` a line, or ``symspellpy`` for the one in that package; none: only words of the texts."""
    pairs: str = ""
    """A list ``word word count`` a line, or ``symspellpy``."""
    n_words: int = 40_000
    """Words taken from the list, the most frequent ones."""
    weight: float = 1.0
    """What the list counts as: so many times the words of the texts."""
    arpa: str = ""
    """A finished model in place of all of this."""

    def __post_init__(self) -> None:
        if min(self.order, self.n_words) < 1 or self.weight <= 0:
            raise ValleError(
                f"order {self.order}, n_words {self.n_words} and weight {self.weight:g} of the language model must be "
                "above 0; an order of 3 is usual"
            )
        if self.pairs and not self.words:
            raise ValleError("pairs count only beside a list of words; set words too")


@dataclass(frozen=True)
class HybridConfig:
    """One TOML file."""

    sources: tuple[str, ...]
    """Corpora, as ``valle prepare`` takes them: a folder with a manifest, or KIND:PATH."""
    out: str
    """Folder of the run; the finished model is in ``out/model``."""
    train_split: str = "train"
    """The split to learn from."""
    dev_split: str = "dev"
    """The split to judge and to tune by."""
    max_hours: float = 0.0
    """Take an even choice of so many hours; 0 takes all."""
    lang: str = "en-us"
    """Language of the texts."""
    min_phone_count: int = 40
    """A phone heard less often is taken for the nearest that is heard more."""
    tune_seconds: float = 600.0
    """Seconds of dev by which the weights of acoustics and language are chosen; 0 leaves them as they are."""
    seed: int = 0
    """Of everything random."""
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    """The Gaussians."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=1.5e-3, warmup_steps=200))
    """How its weights move."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How long, on what."""
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    """Whether and how it then learns from sequences."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """The language model."""


_MAY_CHANGE = {
    *("out", "tune_seconds", "language"),  # the last stage makes anew what follows from them
    *(f"training.{name}" for name in ("epochs", "budget_minutes", "log_every", "eval_every", "checkpoint_minutes")),
    *("training.max_skipped", "training.device"),
}
_OF_NETWORK = {"network", "optimiser", "training"}
_OF_SEQUENCE = {"sequence.epochs", "sequence.budget_minutes"}  # may still change when that training has begun
_BEFORE_SEQUENCE = {"training.epochs", "training.budget_minutes"}  # may not: it began with the weights they led to


def identity(config: HybridConfig, *, has_network: bool, has_sequence: bool = False) -> dict[str, Any]:
    """What a run cannot change half-way, since finished stages rest on it: options by name (``bootstrap.n_pdfs``).

    Args:
        config: of the run.
        has_network: whether its training has begun; before that, what only the network follows may change.
        has_sequence: whether that from sequences has begun; before that, its options may change.
    """
    free = _MAY_CHANGE if has_network else _MAY_CHANGE | _OF_NETWORK
    free = (free | _OF_SEQUENCE) - _BEFORE_SEQUENCE if has_sequence else free | {"sequence"}
    kept: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        table = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        if name not in free:
            kept.update({k: v for k, v in table.items() if k not in free})
    return kept


def load_hybrid_config(path: str | Path) -> HybridConfig:
    """Read a TOML file; see ``valle.config.load_config`` for its errors."""
    return load_config(path, HybridConfig)
