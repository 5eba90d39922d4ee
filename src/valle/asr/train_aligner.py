"""Train an aligner from recordings and their texts alone, by Viterbi training from a flat start.

At first every phone of an utterance is thought to last equally long, with silence where its two ends are soft. From
then on the Gaussians are estimated from the frames that the last alignment gives each state, and the alignment is made
anew; the number of Gaussians doubles on the way. The log-likelihood of the data rises with nearly every round.

``valle asr train-aligner SOURCE... --out DIR [--splits train] [--max-hours F]``
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from valle.asr.aligner import (
    HOP_LENGTH,
    N_SILENCE,
    SAMPLE_RATE,
    SECOND,
    SILENCE,
    Aligner,
    AlignerConfig,
    Chain,
    Features,
)
from valle.asr.mixture import fit_mixture
from valle.data.ahead import ahead
from valle.data.corpus import Utterance, read_manifest
from valle.data.reading import Phonemize, PrepareConfig, Rejected, espeak, read_utterance
from valle.errors import ValleError
from valle.text.inventory import DEFAULT_INVENTORY, PAUSE, PHONE, WORD_BOUNDARY, PhonemeInventory

VOWELS = frozenset("aeiouyæøœɐɑɒɔɘəɚɛɜɝɞɤɨɪɯɵɶʉʊʌᵻᵿ")
"""Phones hardly seen share their states with the others of their class: vowels, or the rest."""

_BATCH_FRAMES, _BATCH_ROWS = 24000, 64
_WORD_PAUSE, _MARK_PAUSE = 0.1, 0.7  # probability of a silence between words, and at punctuation
_MIN_VARIANCE = 0.03  # of features that vary by 1 over an utterance
_PRIOR_FRAMES = 10.0  # weight of a state's variance in that of each of its Gaussians
_MAX_CLASS_FRAMES = 40000  # that a class is estimated from


@dataclass(frozen=True)
class AlignerTraining:
    """How long it learns, and what."""

    rounds: tuple[int, ...] = (5, 4, 4, 5)
    """Rounds with 1, 2, 4 and 8 Gaussians a state."""
    min_count: int = 30
    """A phone seen less often shares the states of its class."""


class Example(NamedTuple):
    """One utterance of the training data."""

    phonemes: list[int]
    features: Tensor  # [T, 39]


def train_aligner(
    examples: Sequence[Example], inventory: PhonemeInventory = DEFAULT_INVENTORY, config: AlignerTraining | None = None
) -> Aligner:
    """Train on ``examples``; what each round brought goes to standard error.

    Raises:
        ValleError: no utterance has as many frames as phones.
    """
    config = config or AlignerTraining()
    kinds = inventory.kinds
    fit = [e for e in examples if 0 < sum(kinds[i] == PHONE for i in e.phonemes) <= len(e.features)]
    if not fit:
        raise ValleError(f"none of the {len(examples)} utterances has as many frames as phones; check their texts")
    trainer = _Trainer(sorted(fit, key=lambda e: -len(e.features)), inventory, config)
    started = time.monotonic()
    assigned = trainer.flat_start()
    n_rounds = sum(config.rounds)
    number = 0
    for doubled, rounds in enumerate(config.rounds):
        for repeat in range(rounds):
            number += 1
            trainer.estimate(assigned, grow=bool(doubled) and repeat == 0)
            assigned, likelihood = trainer.align()
            _tell(
                f"round {number}/{n_rounds}: {2**doubled} Gaussians, log-likelihood {likelihood:.4f} a frame, "
                f"{time.monotonic() - started:.0f} s"
            )
    trainer.report(assigned)
    for tensor in trainer.aligner.state_dict().values():
        tensor.copy_(tensor.half())  # as it will be stored
    return trainer.aligner.eval()


class _Trainer:
    """The data, longest first, as one run of frames, and the aligner that learns from it."""

    def __init__(self, examples: Sequence[Example], inventory: PhonemeInventory, config: AlignerTraining) -> None:
        self.inventory, self.kinds = inventory, inventory.kinds
        counts = torch.bincount(torch.tensor([i for e in examples for i in e.phonemes]), minlength=len(self.kinds))
        units, classes = [-1] * len(self.kinds), [-1] * len(self.kinds)
        own = [i for i, kind in enumerate(self.kinds) if kind == PHONE and counts[i] >= config.min_count]
        for i, kind in enumerate(self.kinds):
            if kind == PHONE:
                classes[i] = len(own) + (inventory.symbols[i][0] not in VOWELS)
                units[i] = own.index(i) if i in own else classes[i]
        self.n_units = len(own) + 2
        self.class_of = [classes[i] for i in own]  # of each unit that is one phone's own
        self.aligner = Aligner(AlignerConfig(inventory.version, self.kinds, self.n_units))
        self.aligner.units.copy_(torch.tensor(units))
        for i, kind in enumerate(self.kinds):
            if kind == PAUSE:
                self.aligner.pauses[i] = _WORD_PAUSE if inventory.symbols[i] == WORD_BOUNDARY else _MARK_PAUSE
        self.frames = torch.cat([e.features for e in examples])  # [F, 39]
        self.lens = [len(e.features) for e in examples]
        self.features = self.frames.tensor_split(_ends(self.lens))
        self.chains = [self.aligner.chain(e.phonemes) for e in examples]
        self.phonemes = [e.phonemes for e in examples]
        self.paths: list[Tensor] = []  # of the last alignment
        self.n_rows = 2 * self.n_units + N_SILENCE

    def flat_start(self) -> Tensor:
        """The row of each frame [F] when all phones of an utterance last equally long."""
        return torch.cat([_flat(x, chain) for x, chain in zip(self.features, self.chains, strict=True)])

    @torch.no_grad()
    def align(self) -> tuple[Tensor, float]:
        """The row of each frame [F] by the likeliest path, and the log-likelihood of a frame."""
        rows: list[Tensor] = []
        self.paths = []
        total, start = 0.0, 0
        while start < len(self.lens):
            stop = min(start + max(1, min(_BATCH_ROWS, _BATCH_FRAMES // self.lens[start])), len(self.lens))
            paths, scores, _ = self.aligner.viterbi(self.features[start:stop], self.chains[start:stop])
            rows += [c.rows[path] for c, path in zip(self.chains[start:stop], paths, strict=True)]
            self.paths += paths
            total += sum(scores)
            start = stop
        return torch.cat(rows), total / len(self.frames)

    def estimate(self, assigned: Tensor, grow: bool) -> None:
        """Gaussians and probabilities from the frames of each row; ``grow`` splits each Gaussian in two first."""
        a = self.aligner
        if grow:
            apart = 0.3 * a.variances.sqrt()
            a.means = torch.cat([a.means - apart, a.means + apart], dim=1)
            a.variances, a.weights = a.variances.repeat(1, 2, 1), a.weights.repeat(1, 2) / 2
            a.config = dataclasses.replace(a.config, n_mixtures=a.means.shape[1])
        counts = torch.bincount(assigned, minlength=self.n_rows)
        of_row = assigned.argsort(stable=True).tensor_split(_ends(counts.tolist()))  # frames of each row
        for row in range(2 * (self.n_units - 2)):
            self._estimate_row(row, self.frames[of_row[row]])
        for unit in (self.n_units - 2, self.n_units - 1):
            members = [u for u, c in enumerate(self.class_of) if c == unit]
            for state in (0, 1):
                frames = torch.cat([of_row[2 * u + state] for u in [*members, unit]])
                self._estimate_row(2 * unit + state, self.frames[frames[:: len(frames) // _MAX_CLASS_FRAMES + 1]])
        for row in range(2 * self.n_units, self.n_rows):
            self._estimate_row(row, self.frames[of_row[row]])
        self._estimate_probabilities(assigned, counts)

    def _estimate_row(self, row: int, x: Tensor) -> None:
        """A few rounds of expectation and maximisation over the frames x [n, 39] of one state."""
        if len(x) < 2:
            return
        a = self.aligner
        a.means[row], a.variances[row], a.weights[row] = fit_mixture(
            x,
            a.means[row],
            a.variances[row],
            a.weights[row],
            least=_MIN_VARIANCE,
            prior_frames=_PRIOR_FRAMES,
            rounds=3,
        )

    def _estimate_probabilities(self, assigned: Tensor, counts: Tensor) -> None:
        """How long states last and how often the second is left out."""
        a = self.aligner
        begins = torch.ones(len(assigned), dtype=torch.bool)
        if self.paths:
            path = torch.cat(self.paths)
            begins[1:] = path[1:] != path[:-1]
            begins[[0, *_ends(self.lens)]] = True
        else:
            begins[1:] = assigned[1:] != assigned[:-1]
        visits = torch.bincount(assigned[begins], minlength=self.n_rows).float()
        frames = counts.float()
        for unit in (self.n_units - 2, self.n_units - 1):  # a class knows what its members know
            members = [u for u, c in enumerate(self.class_of) if c == unit]
            for state in (0, 1):
                rows = [2 * u + state for u in members]
                frames[2 * unit + state] += frames[rows].sum()
                visits[2 * unit + state] += visits[rows].sum()
        a.stays.copy_(((frames - visits + 2) / (frames + 4)).clamp(0.02, 0.98))
        first, second = visits[:-N_SILENCE:2], visits[1:-N_SILENCE:2]
        a.skips.copy_(((first - second + 2) / (first + 10)).clamp(0.02, 0.9))

    def report(self, assigned: Tensor) -> None:
        """Does it look like speech?"""
        n_frames = torch.zeros(len(self.kinds))
        seen = torch.zeros(len(self.kinds))
        short = torch.zeros(len(self.kinds))
        for phonemes, chain, path in zip(self.phonemes, self.chains, self.paths, strict=True):
            sounding = path[chain.roles[path] <= SECOND]
            frames = torch.bincount(chain.owners[sounding], minlength=len(phonemes)).float()
            ids = torch.tensor(phonemes)
            n_frames.index_add_(0, ids, frames)
            seen.index_add_(0, ids, torch.ones(len(ids)))
            short.index_add_(0, ids, (frames == 1).float())
        phones = [i for i in seen.argsort(descending=True).tolist() if self.kinds[i] == PHONE and seen[i]]
        ms = 1000 * HOP_LENGTH / SAMPLE_RATE
        for i in phones:
            _tell(
                f"  {self.inventory.symbols[i]}: {int(seen[i])} times, {ms * n_frames[i] / seen[i]:.0f} ms, "
                f"{100 * short[i] / seen[i]:.0f} % one frame"
            )
        silent = (assigned >= 2 * self.n_units).float().mean()
        _tell(
            f"{100 * short[phones].sum() / seen[phones].sum():.1f} % of the phones last one frame; "
            f"{100 * silent:.1f} % of the frames are silence; mean of a phone "
            f"{ms * n_frames[phones].sum() / seen[phones].sum():.0f} ms"
        )


def _ends(lens: Sequence[int]) -> list[int]:
    """Where each but the last of several parts ends."""
    return list(itertools.accumulate(lens))[:-1]


def _flat(x: Tensor, chain: Chain) -> Tensor:
    """Rows [T]: silence where both ends are soft, phones of equal length between."""
    energy = x[:, 0]
    low, high = energy.quantile(0.02), energy.quantile(0.98)
    loud = (energy > low + 0.25 * (high - low)).nonzero()[:, 0]
    sounding = chain.rows[chain.roles <= SECOND]
    begin, end = (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(x))
    if end - begin < len(sounding) // 2:
        begin, end = 0, len(x)
    silence = chain.rows[chain.roles >= SILENCE][:N_SILENCE]

    def spread(rows: Tensor, n: int) -> Tensor:
        return rows[torch.arange(n) * len(rows) // max(n, 1)]

    return torch.cat([spread(silence, begin), spread(sounding, end - begin), spread(silence, len(x) - end)])


def read_examples(
    utterances: Sequence[Utterance],
    inventory: PhonemeInventory = DEFAULT_INVENTORY,
    phonemize: Phonemize | None = None,
    *,
    config: PrepareConfig | None = None,
    n_threads: int = 1,
) -> list[Example]:
    """Phonemes and features of the utterances that ``valle prepare`` would take."""
    phonemize, config, features = phonemize or espeak(), config or PrepareConfig(), Features()

    def read(utterance: Utterance) -> Example | None:
        try:
            ids, wav = read_utterance(utterance, SAMPLE_RATE, inventory, phonemize, config)
        except Rejected:
            return None
        with torch.no_grad():
            return Example(ids, features(wav))

    often = 0.2 if sys.stderr.isatty() else 30.0  # seconds between updates: a log is not a screen
    examples: list[Example] = []
    with tqdm(total=len(utterances), desc="reading", file=sys.stderr, dynamic_ncols=True, mininterval=often) as bar:
        for example in ahead(read, utterances, n_threads=n_threads):
            bar.update()
            if example is not None:
                examples.append(example)
    return examples


def _tell(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``valle asr train-aligner``."""
    parser = argparse.ArgumentParser(
        prog="valle asr train-aligner", description="Learn when phonemes are spoken, from recordings and their texts."
    )
    parser.add_argument("manifests", nargs="+", metavar="SOURCE", help="manifest.jsonl, or the folder it lies in")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the aligner goes")
    parser.add_argument("--splits", default="train", metavar="A,B", help="which splits to take (train)")
    parser.add_argument("--max-hours", type=float, metavar="F", help="an even choice of the data, F hours of it")
    args = parser.parse_args(argv)
    splits = args.splits.split(",")
    utterances = [u for manifest in args.manifests for u in read_manifest(manifest) if u.split in splits]
    if not utterances:
        raise ValleError(f"no manifest given has an utterance in the split {' or '.join(map(repr, splits))}")
    hours = sum(u.seconds for u in utterances) / 3600
    if args.max_hours is not None and args.max_hours < hours:
        if args.max_hours <= 0:
            raise ValleError(f"--max-hours is {args.max_hours:g}; it must be above 0")
        step = hours / args.max_hours
        utterances = [utterances[int(i * step)] for i in range(int(len(utterances) / step))]
    examples = read_examples(utterances)
    n_frames = sum(len(e.features) for e in examples)
    _tell(f"{len(examples)} of {len(utterances)} utterances, {n_frames * HOP_LENGTH / SAMPLE_RATE / 3600:.2f} h")
    aligner = train_aligner(examples)
    aligner.save(Path(args.out))
    _tell(f"{args.out}: aligner {aligner.fingerprint()}")
    return 0


if __name__ == "__main__":
    from valle.cli import main as cli

    sys.exit(cli(["asr", "train-aligner", *sys.argv[1:]]))
