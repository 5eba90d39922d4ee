"""What the network learns from: batches of recordings of like length, shifted, masked, with the state of each step.

Everything random follows from the seed, the epoch and the place in it, so that a resumed run sees what an
uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from valle.asr.hybrid.config import TrainingConfig
from valle.asr.hybrid.features import SUBSAMPLING, n_steps
from valle.asr.hybrid.store import TensorStore

IGNORE = -100
"""The label of padding."""
_LONGEST = 1500  # frames; longer recordings are cropped, another part each time
_GAP = 25  # frames silenced at once, at most


class Item(NamedTuple):
    """A recording at a speed."""

    name: str
    """Of its features."""
    label: str
    """Of its labels, which are those of speed 1."""
    speed: float
    """How fast it is played."""
    n_frames: int
    """Its length."""


class Row(NamedTuple):
    """Which part of which recording is in a batch."""

    item: Item
    """The recording."""
    begin: int
    """Its frame that is the first here."""


class Batch(NamedTuple):
    """Several of them."""

    mels: Tensor
    """[B, T, 80]"""
    lens: Tensor
    """[B] frames"""
    labels: Tensor
    """[B, S] tied states, ``IGNORE`` in padding"""
    rows: tuple[Row, ...]
    """B, what each is"""

    def to(self, device: torch.device) -> Batch:
        """With the tensors there."""
        return Batch(self.mels.to(device), self.lens.to(device), self.labels.to(device), self.rows)


def plan(items: Sequence[Item], seconds: float, generator: torch.Generator) -> list[list[int]]:
    """An epoch: every item once, in batches of like length in a random order."""
    noise = torch.rand(len(items), generator=generator).tolist()
    lens = [min(i.n_frames, _LONGEST) for i in items]
    order = sorted(range(len(items)), key=lambda i: lens[i] * (0.9 + 0.2 * noise[i]))
    batches: list[list[int]] = [[]]
    longest = 0
    for i in order:
        longest = max(longest, lens[i])
        if batches[-1] and longest * (len(batches[-1]) + 1) > seconds * 100:
            batches.append([])
            longest = lens[i]
        batches[-1].append(i)
    return [batches[int(b)] for b in torch.randperm(len(batches), generator=generator)]


def make_batch(
    items: Sequence[Item],
    features: TensorStore,
    labels: TensorStore,
    config: TrainingConfig | None,
    generator: torch.Generator,
) -> Batch:
    """Read some items; with ``config`` None, as for a look at dev, nothing is drawn: long ones are their first 15 s."""
    rows: list[tuple[Tensor, Tensor]] = []
    parts: list[Row] = []
    for item in items:
        mels = features[item.name].float()
        states = labels[item.label].long()
        if item.speed != 1.0:
            at = (torch.arange(len(mels)) * item.speed).round().long().clamp(max=len(states) - 1)
            states = states[at]
        begin = 0
        if len(mels) > _LONGEST:
            begin = int(torch.randint(len(mels) - _LONGEST, (), generator=generator)) if config else 0
        shift = int(torch.randint(SUBSAMPLING, (), generator=generator)) if config else 0
        begin += shift
        mels, states = mels[begin : begin + _LONGEST], states[begin : begin + _LONGEST]
        if config is not None:
            mels = _masked(mels.clone(), config, generator)
        rows.append((mels, states[1::SUBSAMPLING]))
        parts.append(Row(item, begin))
    lens = torch.tensor([len(m) for m, _ in rows])
    x = torch.nn.utils.rnn.pad_sequence([m for m, _ in rows], batch_first=True)  # [B, T, 80]
    y = torch.full((len(rows), n_steps(x.shape[1])), IGNORE)
    for b, (_, states) in enumerate(rows):
        y[b, : len(states)] = states
    return Batch(x, lens, y, tuple(parts))


def _masked(x: Tensor, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """SpecAugment on [T, 80], in place: the mean, which is 0, in bands and gaps."""

    def below(n: int) -> int:
        return int(torch.randint(max(1, n), (), generator=generator))

    for _ in range(config.frequency_masks):
        width = below(config.frequency_width + 1)
        start = below(x.shape[1] - width)
        x[:, start : start + width] = 0
    budget = int(config.time_masks * len(x))
    while budget > 0:
        width = 1 + below(min(_GAP, budget))
        start = below(len(x) - width)
        x[start : start + width] = 0
        budget -= width
    return x
