"""Labels as what is said: the units of a recording, where each begins, and chunks of it for a sequence criterion.

``label`` aligns the three phases of a recording each by itself, so every third label is a whole path: a unit's first
pdf for one step, then its pdf of further steps. No two units and no two parts of one share a pdf (a tree has a root
for each), so such a path tells its units, also one twice in a row. Which pdf further steps would have, where a unit
lasts for one step only, the table of pdfs tells from the unit before. Other speeds than 1 take the same segments at
other times: their own labels are of mixed phases, where a first pdf may be missing or be there twice. In a table whose
two parts share a pdf, it is taken for a first one only where the unit changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valle.asr.hybrid.features import SUBSAMPLING
from valle.asr.hybrid.tree import units_of_pdfs
from valle.asr.hybrid.units import SILENCE_ID

_NEVER = 2**30  # a step that does not come


class Segments(NamedTuple):
    """The units of a recording, silence too, one after the other."""

    units: NDArray[np.int64]
    """[N]"""
    lefts: NDArray[np.int64]
    """[N] the unit before; silence before the first."""
    starts: NDArray[np.int64]
    """[N] frames, the middle one of the step in which each begins."""
    n_frames: int
    """Of the recording."""


class Reader:
    """Reads segments out of labels."""

    def __init__(self, pdfs: NDArray[np.int32]) -> None:
        """
        Args:
            pdfs: [units, left, 2].
        """
        self._unit = units_of_pdfs(pdfs).astype(np.int64)
        self._is_first = np.zeros(len(self._unit), bool)
        self._is_first[pdfs[:, :, 0]] = True
        self._is_first[pdfs[:, :, 1]] = False

    def read(self, states: NDArray[np.int16], phase: int) -> Segments:
        """The segments of labels [T], T at least 5, by the alignment of one phase."""
        path = states[1 + phase :: SUBSAMPLING]
        units = self._unit[path]
        begins = self._is_first[path]
        begins[0] = True
        begins[1:] |= units[1:] != units[:-1]
        at = np.flatnonzero(begins)
        said = units[at]
        lefts = np.concatenate([[SILENCE_ID], said[:-1]])
        return Segments(said, lefts, 1 + phase + SUBSAMPLING * at, len(states))


class Chunks(NamedTuple):
    """C pieces of the recordings of a batch, each with the N units that it may have; steps count from its start."""

    rows: Tensor
    """[C] the recording's place in the batch."""
    starts: Tensor
    """[C] its step at which the chunk starts."""
    lens: Tensor
    """[C] steps."""
    units: Tensor
    """[C, N]"""
    lefts: Tensor
    """[C, N] the unit before each."""
    earliest: Tensor
    """[C, N] the first step in which a unit may begin; below 0, it may have begun before the chunk."""
    latest: Tensor
    """[C, N] the last one."""
    counts: Tensor
    """[C] how many of the N there are."""
    is_begin: Tensor
    """[C] whether nothing is before the chunk."""
    is_end: Tensor
    """[C] whether nothing is after it."""

    def to(self, device: torch.device) -> Chunks:
        """The same there."""
        return Chunks(*(t.to(device) for t in self))


class Placed(NamedTuple):
    """A recording, or a part of it, in a batch."""

    segments: Segments
    """Of the whole recording at speed 1."""
    speed: float
    """How fast it is played."""
    begin: int
    """The frame, of those played, that is the part's first."""
    n_steps: int
    """Of the part."""
    is_end: bool
    """Whether the recording ends with the part."""


def cut(placed: Sequence[Placed], chunk_steps: int, tolerance: int) -> Chunks:
    """Cut recordings to chunks of like length.

    Args:
        placed: B recordings. One that has fewer steps than units is left out.
        chunk_steps: steps of a chunk at most; 0 leaves recordings whole.
        tolerance: steps by which each unit may begin earlier or later than labelled.
    """
    rows: list[tuple[int, int, int, bool, bool]] = []  # row, start, steps, is_begin, is_end
    parts: list[tuple[NDArray[np.int64], ...]] = []  # units, lefts, earliest, latest
    for row, p in enumerate(placed):
        begins = _steps(p)
        n, is_begin = len(begins), p.begin < SUBSAMPLING
        if p.n_steps < 1 or (p.is_end and n and begins[-1] >= p.n_steps):
            continue
        earliest, latest = begins - tolerance, begins + tolerance
        if is_begin:
            earliest, latest[0] = np.maximum(earliest, np.arange(n)), 0
        following = np.append(latest[1:], _NEVER)  # the latest begin of what is next
        n_chunks = -(-p.n_steps // chunk_steps) if chunk_steps else 1
        edges = [p.n_steps * i // n_chunks for i in range(n_chunks + 1)]
        for start, stop in pairwise(edges):
            low = int(np.argmax(following >= start))  # may last until the chunk
            high = int(np.searchsorted(earliest, stop))  # may not begin in it
            which = slice(low, high)
            rows.append((row, start, stop - start, is_begin and not start, p.is_end and stop == p.n_steps))
            parts.append(
                (p.segments.units[which], p.segments.lefts[which], earliest[which] - start, latest[which] - start)
            )
    numbers = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
    counts = torch.tensor([len(part[0]) for part in parts], dtype=torch.int64)
    padding = (SILENCE_ID, SILENCE_ID, _NEVER, _NEVER)
    units, lefts, early, late = (
        torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(part[i]) for part in parts] or [torch.zeros(0, dtype=torch.int64)],
            batch_first=True,
            padding_value=padding[i],
        )[: len(parts)]
        for i in range(4)
    )
    row_of, start_of, len_of, begin_of, end_of = numbers.unbind(1)
    return Chunks(row_of, start_of, len_of, units, lefts, early, late, counts, begin_of.bool(), end_of.bool())


def _steps(p: Placed) -> NDArray[np.int64]:
    """The step, of the part, in which each unit begins: one after the other, though they were played fast."""
    exact = (p.segments.starts / p.speed - p.begin - 1) / SUBSAMPLING
    steps = np.rint(exact).astype(np.int64)
    steps[0] = 0 if p.begin < SUBSAMPLING else min(steps[0], -1)
    order = np.arange(len(steps))
    steps = np.maximum.accumulate(steps - order) + order
    if p.is_end:  # the last ones as late as there is room
        steps = np.minimum(steps, p.n_steps - len(steps) + order)
        if p.begin < SUBSAMPLING and steps[0] < 0:
            steps[-1] = p.n_steps  # there is none: left out
    return steps
