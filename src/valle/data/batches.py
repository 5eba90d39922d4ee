"""Batches by number of acoustic tokens, in length buckets (paper §5.1: 6,000 tokens a GPU, 80 s of speech).

An acoustic token is here a frame of codebook 1, so a frame counts once however many codebooks it has. A batch is
bounded by its padded size, which is what memory and time follow.

Which batches an epoch consists of is a pure function of the seed and the epoch's number. A position in the endless
stream of batches is therefore two numbers, from which a run goes on without repeating or skipping an utterance; and
rank r of n takes every n-th batch of that one stream, so that two ranks see exactly what one rank with accumulation
sees.

Utterances of one speaker may be joined: their phonemes with a word boundary between, their codes end to end. That is
the form of the input when a voice is cloned (prompt, then text), and a corpus of short utterances holds it nowhere
else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from valle.data.pack import PackSplit
from valle.errors import ValleError

Example = tuple[int, ...]
"""Utterances that make one row of a batch: one, or several of a speaker, joined in this order."""


@dataclass(frozen=True)
class BatchConfig:
    """What a batch is."""

    max_frames: int = 6000
    """Most frames in a batch, padding included; the paper has 6,000 a GPU."""
    min_seconds: float = 0.5
    """Shorter utterances are left out."""
    max_seconds: float = 20.0
    """Longer utterances are left out, and joins stay below it."""
    join_same_speaker: float = 0.0
    """Probability that an utterance is followed by another of its speaker in the same row; drawn again after each."""
    bucket_noise: float = 0.1
    """Lengths are varied by up to this share before sorting, so that a batch has other members in every epoch."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds < self.max_seconds:
            raise ValleError(f"min_seconds is {self.min_seconds}, max_seconds {self.max_seconds}; it must be below")
        if not 0 <= self.join_same_speaker < 1:
            raise ValleError(f"join_same_speaker is {self.join_same_speaker}; it is a probability, from 0 to below 1")


class Rows(NamedTuple):
    """A padded batch with all codebooks; both models' batches are made from it."""

    phonemes: Tensor  # [B, S] int64
    phoneme_lens: Tensor  # [B]
    codes: Tensor  # [B, 8, T] int64
    code_lens: Tensor  # [B]
    durations: Tensor | None = None  # [B, S] int64, frames of each phoneme, 0 in padding; None: the pack has none


class BatchSampler:
    """The endless stream of batches of one rank; iterating yields lists of examples.

    ``state_dict`` is the position for all ranks; it holds no numbers of one rank.
    """

    def __init__(
        self, split: PackSplit, config: BatchConfig, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        """
        Raises:
            ValleError: a batch could not hold the longest utterance allowed, or no utterance is left.
        """
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.config, self.seed, self.rank, self.world_size = config, seed, rank, world_size
        rate = split.info.frame_rate
        self.max_example = int(config.max_seconds * rate)
        if self.max_example > config.max_frames:
            raise ValleError(
                f"max_seconds {config.max_seconds:g} is {self.max_example} frames, but a batch holds max_frames = "
                f"{config.max_frames}; lower the one or raise the other"
            )
        self.frames: list[int] = split.n_frames.tolist()
        self.speakers: list[int] = split.speakers.tolist()
        least = config.min_seconds * rate
        self.usable = [i for i, n in enumerate(self.frames) if least <= n <= self.max_example]
        self.left_out = len(self.frames) - len(self.usable)
        if not self.usable:
            raise ValleError(
                f"none of the {len(self.frames)} utterances lasts from {config.min_seconds:g} to "
                f"{config.max_seconds:g} s; widen min_seconds and max_seconds"
            )
        self.epoch, self.index = 0, 0  # of the next batch of rank 0
        self._plans: dict[int, list[list[Example]]] = {}

    def plan(self, epoch: int) -> list[list[Example]]:
        """All batches of an epoch, for all ranks; every usable utterance is in exactly one."""
        rng = random.Random(f"{self.seed}/{epoch}")
        batches = self._cut(self._join(rng), rng)
        rng.shuffle(batches)
        return batches

    def sorted_plan(self) -> list[list[Example]]:
        """The utterances one by one, in order of length: the batches of a validation."""
        order = sorted(((i,) for i in self.usable), key=lambda example: self.frames[example[0]])
        return self._cut(order, None)

    def __iter__(self) -> Iterator[list[Example]]:
        return self

    def __next__(self) -> list[Example]:
        epoch, index = self._move(self.epoch, self.index, self.rank)
        batch = self._plan(epoch)[index]
        self.epoch, self.index = self._move(self.epoch, self.index, self.world_size)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position, ready for JSON."""
        return {"epoch": self.epoch, "index": self.index, "seed": self.seed, "n_utterances": len(self.frames)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position.

        Raises:
            ValleError: it belongs to other data.
        """
        if state["n_utterances"] != len(self.frames) or state["seed"] != self.seed:
            raise ValleError(
                f"the run stopped in data of {state['n_utterances']} utterances with seed {state['seed']}; this is "
                f"{len(self.frames)} with seed {self.seed}: resume with the same pack and configuration"
            )
        self.epoch, self.index = int(state["epoch"]), int(state["index"])

    def _move(self, epoch: int, index: int, n: int) -> tuple[int, int]:
        """The position n batches later."""
        index += n
        while index >= len(self._plan(epoch)):
            index -= len(self._plan(epoch))
            epoch += 1
        return epoch, index

    def _plan(self, epoch: int) -> list[list[Example]]:
        if epoch not in self._plans:
            self._plans = {e: p for e, p in self._plans.items() if e == epoch - 1}
            self._plans[epoch] = self.plan(epoch)
        return self._plans[epoch]

    def _join(self, rng: random.Random) -> list[Example]:
        """Every usable utterance once, in random order, some joined with others of their speaker."""
        order = list(self.usable)
        rng.shuffle(order)
        if not self.config.join_same_speaker:
            return [(i,) for i in order]
        waiting: dict[int, list[int]] = {}
        for i in reversed(order):
            waiting.setdefault(self.speakers[i], []).append(i)
        used: set[int] = set()
        examples: list[Example] = []
        for i in order:
            if i in used:
                continue
            used.add(i)
            example, n_frames, others = [i], self.frames[i], waiting[self.speakers[i]]
            while self.speakers[i] >= 0 and rng.random() < self.config.join_same_speaker:
                while others and others[-1] in used:
                    others.pop()
                if not others or n_frames + self.frames[others[-1]] > self.max_example:
                    break
                used.add(others[-1])
                n_frames += self.frames[others[-1]]
                example.append(others.pop())
            examples.append(tuple(example))
        return examples

    def _cut(self, examples: Sequence[Example], rng: random.Random | None) -> list[list[Example]]:
        """Sort by length, give or take ``bucket_noise`` with ``rng``, and cut into batches."""
        lengths = {example: sum(self.frames[i] for i in example) for example in examples}
        noise = self.config.bucket_noise if rng else 0.0
        keys = {e: n * (1 + noise * rng.uniform(-1, 1) if rng else 1) for e, n in lengths.items()}
        batches: list[list[Example]] = []
        longest = 0
        for example in sorted(examples, key=keys.__getitem__):
            longest = max(longest, lengths[example])
            if not batches or longest * (len(batches[-1]) + 1) > self.config.max_frames:
                batches.append([])
                longest = lengths[example]
            batches[-1].append(example)
        return batches


def collate(split: PackSplit, examples: Sequence[Example]) -> Rows:
    """Read the utterances of a batch and pad them with zeros; a separator between utterances lasts no frame."""
    separator, no_frame = torch.tensor([split.info.separator_id]), torch.tensor([0])
    phonemes, codes, durations = [], [], []
    for example in examples:
        parts: list[Tensor] = []
        for i in example:
            parts += [separator, split.phonemes(i)]
        phonemes.append(torch.cat(parts[1:]))  # [S]
        codes.append(torch.cat([split.codes(i) for i in example], dim=1).t())  # [T, 8]
        if split.info.aligned:
            parts = []
            for i in example:
                parts += [no_frame, split.durations(i)]
            durations.append(torch.cat(parts[1:]))  # [S]
    return Rows(
        pad_sequence(phonemes, batch_first=True),  # [B, S]
        torch.tensor([len(p) for p in phonemes]),
        pad_sequence(codes, batch_first=True).transpose(1, 2).contiguous(),  # [B, 8, T]
        torch.tensor([len(c) for c in codes]),
        pad_sequence(durations, batch_first=True) if durations else None,  # [B, S]
    )
