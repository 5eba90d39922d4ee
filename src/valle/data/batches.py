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

The paper trains the AR on random crops of 10 to 20 s with the phonemes that the alignment gives. ``crop_seconds`` does
so: each row, joined or not, that is longer than the lower bound becomes a crop of itself, another one in every epoch.
No phone is cut and no mark is parted from its phone (``cut_places``), so the durations of a crop's phonemes sum to its
frames.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from valle.data.pack import PackSplit
from valle.errors import ValleError

_PHONE, _MARK, _PAUSE = 0, 1, 2  # as in PackInfo.phoneme_kinds


class Part(NamedTuple):
    """Some of utterance ``i``: phonemes [s0, s1) and their frames [t0, t1)."""

    i: int
    s0: int
    s1: int
    t0: int
    t1: int


Example = tuple[int | Part, ...]
"""Utterances that make one row of a batch: one, or several of a speaker, joined in this order. A crop has a part in
place of its first and last one where it does not hold all of them."""


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
    bucket_noise: float = 0.03
    """Lengths are varied by up to this share before sorting, so that a batch has other members in every epoch."""
    crop_seconds: tuple[float, ...] = ()
    """Two lengths: rows above the first are cropped at random to a length between them, and utterances above
    max_seconds are cropped in place of being left out; the paper has [10, 20]. Needs an aligned pack. Empty: rows are
    whole."""
    fraction: float = 1.0
    """Share of the utterances that is learnt from, an even choice of them, always the same: for learning curves."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds < self.max_seconds:
            raise ValleError(f"min_seconds is {self.min_seconds}, max_seconds {self.max_seconds}; it must be below")
        if not 0 < self.fraction <= 1:
            raise ValleError(f"fraction is {self.fraction:g}; it must be above 0 and at most 1, all utterances")
        if not 0 <= self.join_same_speaker < 1:
            raise ValleError(f"join_same_speaker is {self.join_same_speaker}; it is a probability, from 0 to below 1")
        if self.crop_seconds:
            low, high = self.crop_seconds if len(self.crop_seconds) == 2 else (math.nan, math.nan)
            # A second apart: crops end with whole phones, and a narrow range may hold no such end.
            if not (self.min_seconds <= low and low > 0 and low + 1 <= high <= self.max_seconds):
                raise ValleError(
                    f"crop_seconds is {list(self.crop_seconds)}; it must be two lengths at least 1 s apart, from "
                    f"min_seconds {self.min_seconds:g} to max_seconds {self.max_seconds:g}, such as [10, 20], or empty"
                )


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
            ValleError: a batch could not hold the longest utterance allowed, no utterance is left, or crops are asked
                of a pack that is not aligned.
        """
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.split, self.config, self.seed, self.rank, self.world_size = split, config, seed, rank, world_size
        if config.crop_seconds and not (split.info.aligned and split.info.phoneme_kinds):
            raise ValleError(
                "crop_seconds needs a pack that tells how long each phoneme lasts; build it with "
                "`valle prepare --aligner`, or leave crop_seconds out"
            )
        rate = split.info.frame_rate
        self.max_example = int(config.max_seconds * rate)
        if self.max_example > config.max_frames:
            raise ValleError(
                f"max_seconds {config.max_seconds:g} is {self.max_example} frames, but a batch holds max_frames = "
                f"{config.max_frames}; lower the one or raise the other"
            )
        self.frames: list[int] = split.n_frames.tolist()
        self.phonemes: list[int] = split.n_phonemes.tolist()
        self.speakers: list[int] = split.speakers.tolist()
        least = config.min_seconds * rate
        most = math.inf if config.crop_seconds else self.max_example
        self.usable = [i for i, n in enumerate(self.frames) if least <= n <= most]
        self.left_out = len(self.frames) - len(self.usable)
        if not self.usable:
            raise ValleError(
                f"none of the {len(self.frames)} utterances lasts from {config.min_seconds:g} to "
                f"{config.max_seconds:g} s; widen min_seconds and max_seconds"
            )
        share = config.fraction
        chosen = [i for n, i in enumerate(self.usable) if math.floor((n + 1) * share) > math.floor(n * share)]
        self.learnt = chosen or self.usable[:1]
        self.epoch, self.index = 0, 0  # of the next batch of rank 0
        self._plans: dict[int, list[list[Example]]] = {}

    def plan(self, epoch: int) -> list[list[Example]]:
        """All batches of an epoch, for all ranks; every usable utterance is in exactly one, as far as crops hold it."""
        rng = random.Random(f"{self.seed}/{epoch}")
        examples = self._join(rng)
        if self.config.crop_seconds:
            drawn = random.Random(f"{self.seed}/{epoch}/crops")  # its own, so that crops do not change who is joined
            examples = [crop for example in examples for crop in self._crop(example, drawn)]
        batches = self._cut(examples, rng)
        if not batches:
            raise ValleError(
                f"no utterance has a crop of up to {self.config.crop_seconds[1]:g} s without cutting a phone; the "
                "alignment is wrong: build the pack again with `valle prepare --aligner`, or leave crop_seconds out"
            )
        rng.shuffle(batches)
        return batches

    def sorted_plan(self) -> list[list[Example]]:
        """The utterances one by one and whole, in order of length: the batches of a validation.

        Raises:
            ValleError: all are longer than ``max_seconds``.
        """
        order = sorted((i for i in self.usable if self.frames[i] <= self.max_example), key=self.frames.__getitem__)
        if not order:
            raise ValleError(
                f"no utterance to judge by is up to max_seconds = {self.config.max_seconds:g} s long; they are not "
                "cropped: prepare shorter ones, or raise max_seconds"
            )
        return self._cut([(i,) for i in order], None)

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
        order = list(self.learnt)
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

    def _crop(self, example: Example, rng: random.Random) -> list[Example]:
        """A random crop of a row; the row itself where it is short enough; nothing where no crop of it is."""
        low, high = (seconds * self.split.info.frame_rate for seconds in self.config.crop_seconds)
        least, most = math.ceil(low), int(high)
        n_frames = sum(map(self._n_frames, example))
        if n_frames <= least:
            return [example]
        wanted = rng.uniform(least, min(most, n_frames))
        start = rng.uniform(0, n_frames - wanted)
        places = [self._cut_places(i) for i in example if isinstance(i, int)]
        offsets = [0, *accumulate(map(self._n_frames, example))]
        begins = [(t + t0, u, s) for u, (t, p) in enumerate(zip(offsets, places, strict=False)) for s, t0 in p[0]]
        ends = [(t + t1, u, s) for u, (t, p) in enumerate(zip(offsets, places, strict=False)) for s, t1 in p[1]]
        begins.sort(key=lambda begin: abs(begin[0] - start))
        end_frames = [end[0] for end in ends]
        best, best_length = None, 0
        for begin in begins:  # the first nearly always does
            within = range(bisect_left(end_frames, begin[0] + least), bisect_right(end_frames, begin[0] + most))
            if within:
                # Of places at one frame the last: that of the utterance, with a final mark that has no silence.
                end = min(within, key=lambda k: (abs(end_frames[k] - begin[0] - wanted), -k))
                return [self._between(example, begin, ends[end])]
            if within.stop and end_frames[within.stop - 1] - begin[0] > best_length:
                best, best_length = (begin, ends[within.stop - 1]), end_frames[within.stop - 1] - begin[0]
        # Phones of seconds, so that no crop is between the bounds: all of the row, or as much of it as is allowed.
        if n_frames <= most:
            return [example]
        return [self._between(example, *best)] if best else []

    def _between(self, example: Example, begin: tuple[int, int, int], end: tuple[int, int, int]) -> Example:
        """What of a row is between two places of its: frame in the row, utterance in the row, phoneme in that."""
        parts: list[int | Part] = []
        offset = 0  # of the utterance in the row
        for u, i in enumerate(example):
            assert isinstance(i, int), "a crop of a crop"
            n, n_phonemes = self.frames[i], int(self.split.n_phonemes[i])
            s0, t0 = (begin[2], begin[0] - offset) if u == begin[1] else (0, 0)
            s1, t1 = (end[2], end[0] - offset) if u == end[1] else (n_phonemes, n)
            if begin[1] <= u <= end[1]:
                parts.append(i if (s0, s1) == (0, n_phonemes) else Part(i, s0, s1, t0, t1))
            offset += n
        return tuple(parts)

    def _cut_places(self, i: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        kinds = self.split.info.phoneme_kinds
        durations: list[int] = self.split.durations(i).tolist()
        return cut_places([kinds[p] for p in self.split.phonemes(i).tolist()], durations)

    def _n_frames(self, i: int | Part) -> int:
        return self.frames[i] if isinstance(i, int) else i.t1 - i.t0

    def _n_phonemes(self, i: int | Part) -> int:
        return self.phonemes[i] if isinstance(i, int) else i.s1 - i.s0

    def _cut(self, examples: Sequence[Example], rng: random.Random | None) -> list[list[Example]]:
        """Sort by phonemes and frames, give or take ``bucket_noise`` with ``rng``, and cut into batches."""
        lengths = {example: sum(map(self._n_frames, example)) for example in examples}
        noise = self.config.bucket_noise if rng else 0.0
        # The models' rows have no gap between phonemes and frames, so that both together are what is padded.
        places = {example: n + sum(map(self._n_phonemes, example)) for example, n in lengths.items()}
        keys = {e: n * (1 + noise * rng.uniform(-1, 1) if rng else 1) for e, n in places.items()}
        batches: list[list[Example]] = []
        longest = 0
        for example in sorted(examples, key=keys.__getitem__):
            longest = max(longest, lengths[example])
            if not batches or longest * (len(batches[-1]) + 1) > self.config.max_frames:
                batches.append([])
                longest = lengths[example]
            batches[-1].append(example)
        return batches


def cut_places(kinds: Sequence[int], durations: Sequence[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where a crop of an utterance may begin and where it may end.

    It begins with a phone that has frames and ends with one, so silence at a cut is left out; or it begins and ends as
    the utterance does. A mark (stress before its vowel, length behind it) stays with its phone: those next to a pause
    belong to the phone on this side of it, and where marks stand between two phones there is no place to cut, since
    kinds do not tell whose they are.

    Args:
        kinds: [S] of the symbols, as in ``PackInfo.phoneme_kinds``.
        durations: [S] their frames.

    Returns:
        The places to begin and those to end, in order, each a symbol s and the frame at which it begins. A crop has the
        symbols from the one place up to, not including, the other.
    """
    n = len(kinds)
    frames = [0, *accumulate(durations)]  # [S + 1] where each symbol begins
    begins, ends = [(0, 0)], []
    for s, (kind, duration) in enumerate(zip(kinds, durations, strict=True)):
        if kind != _PHONE or not duration:
            continue
        first, last = s, s
        while first and kinds[first - 1] == _MARK:
            first -= 1
        while last + 1 < n and kinds[last + 1] == _MARK:
            last += 1
        if first and (first == s or kinds[first - 1] == _PAUSE):
            begins.append((first, frames[first]))
        if last + 1 < n and (last == s or kinds[last + 1] == _PAUSE):
            ends.append((last + 1, frames[last + 1]))
    return begins, [*ends, (n, frames[n])]


def collate(split: PackSplit, examples: Sequence[Example]) -> Rows:
    """Read the utterances of a batch and pad them with zeros; a separator between utterances lasts no frame."""
    separator, no_frame = torch.tensor([split.info.separator_id]), torch.tensor([0])
    phonemes, codes, durations = [], [], []
    for example in examples:
        parts: list[Tensor] = []
        for i in example:
            parts += [separator, _phonemes(split, i)]
        phonemes.append(torch.cat(parts[1:]))  # [S]
        codes.append(torch.cat([_codes(split, i) for i in example], dim=1).t())  # [T, 8]
        if split.info.aligned:
            parts = []
            for i in example:
                parts += [no_frame, _durations(split, i)]
            durations.append(torch.cat(parts[1:]))  # [S]
    return Rows(
        pad_sequence(phonemes, batch_first=True),  # [B, S]
        torch.tensor([len(p) for p in phonemes]),
        pad_sequence(codes, batch_first=True).transpose(1, 2).contiguous(),  # [B, 8, T]
        torch.tensor([len(c) for c in codes]),
        pad_sequence(durations, batch_first=True) if durations else None,  # [B, S]
    )


def _phonemes(split: PackSplit, i: int | Part) -> Tensor:
    return split.phonemes(i) if isinstance(i, int) else split.phonemes(i.i)[i.s0 : i.s1]


def _durations(split: PackSplit, i: int | Part) -> Tensor:
    return split.durations(i) if isinstance(i, int) else split.durations(i.i)[i.s0 : i.s1]


def _codes(split: PackSplit, i: int | Part) -> Tensor:
    return split.codes(i) if isinstance(i, int) else split.codes(i.i)[:, i.t0 : i.t1]
