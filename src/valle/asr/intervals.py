"""What an aligner is, and its result as the paper has it: phonemes with the frames in which they are spoken (§4.1).

Any aligner that prepares data stands behind ``PhonemeAligner``: phonemes of the project's inventory in, durations at
the codec's 75 frames a second out, because the language models predict codes and a phoneme must own whole ones. The
paper's recogniser has a frame every 30 ms. ``align_at`` gives that, or any other frame shift, as
``[(phoneme, start_frame, end_frame)]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from valle.asr.aligner import HOP_LENGTH, SAMPLE_RATE, Alignment
from valle.errors import ValleError

FRAME_S = HOP_LENGTH / SAMPLE_RATE
"""Length of a frame of ``Alignment.durations``, 13.3 ms."""
PAPER_FRAME_SHIFT_S = 0.03
"""Frame shift of the paper's recogniser."""


class PhonemeAligner(Protocol):
    """Tells when the phonemes of a known text are spoken."""

    @property
    def inventory_version(self) -> str:
        """``PhonemeInventory.version`` of the phonemes that it understands."""

    def fingerprint(self) -> str:
        """Another one for an aligner that may give other durations."""

    def align(self, wav: Tensor, phonemes: Sequence[int]) -> Alignment:
        """wav [1, N] at 24 kHz and S ids -> durations [S] in frames of 13.3 ms, which sum to ceil(N / 320), and a fit.

        A mark (stress, length) has no frame and a phone at least one; silence belongs to the pause symbol where it is,
        or at the beginning to the first phone.

        Raises:
            ValleError: the text cannot be what is spoken there, or is none of the inventory's.
        """


class Interval(NamedTuple):
    """A phoneme and when it is spoken."""

    phoneme: int
    """Its id in the inventory."""
    start_frame: int
    """The frame in which it begins, from 0."""
    end_frame: int
    """The frame after its last one: the same as ``start_frame`` where it has none."""


def align_at(
    aligner: PhonemeAligner, wav: Tensor, phonemes: Sequence[int], frame_shift: float = PAPER_FRAME_SHIFT_S
) -> list[Interval]:
    """Align, at another frame shift.

    Args:
        aligner: any.
        wav: [1, N] at 24 kHz.
        phonemes: S ids of the aligner's inventory.
        frame_shift: length of a frame in seconds.

    Returns:
        One interval a phoneme, in their order; see ``intervals``.

    Raises:
        ValleError: all of the aligner's, and all of ``intervals``.
    """
    return intervals(aligner.align(wav, phonemes).durations, phonemes, frame_shift)


def intervals(durations: Tensor, phonemes: Sequence[int], frame_shift: float = PAPER_FRAME_SHIFT_S) -> list[Interval]:
    """Durations as intervals at another frame shift: each begins where the one before ends, and the last ends with the
    recording, whose last frame may be a part of one.

    A boundary is put at the nearest frame. A phoneme that lasts keeps a frame at least, for which its neighbours give
    way, unless the recording has fewer frames than there are such phonemes: then some have none.

    Args:
        durations: [S] frames of 13.3 ms of each phoneme, as ``Alignment.durations``.
        phonemes: S ids.
        frame_shift: length of a frame in seconds, 0.005 to 1.

    Raises:
        ValleError: the frame shift is out of its range.
        AssertionError: there are not as many durations as phonemes.
    """
    if not 0.005 <= frame_shift <= 1:
        raise ValleError(f"the frame shift is {frame_shift:g} s; it must be 0.005 to 1, the paper's is 0.03")
    assert durations.shape == (len(phonemes),), f"{list(durations.shape)} durations of {len(phonemes)} phonemes"
    lasts = [n > 0 for n in durations.tolist()]
    times = [n * FRAME_S for n in durations.cumsum(0).tolist()]  # where each phoneme ends
    n_frames = math.ceil(round(times[-1] / frame_shift, 6)) if times else 0
    least = int(sum(lasts) <= n_frames)  # frames that a phoneme which lasts must have
    needed = least * sum(lasts)
    found: list[Interval] = []
    start = 0
    for phoneme, lasting, time in zip(phonemes, lasts, times, strict=True):
        end = start
        if lasting:
            needed -= least
            end = min(max(math.floor(time / frame_shift + 0.5), start + least), n_frames - needed)
        found.append(Interval(int(phoneme), start, end))
        start = end
    if found:  # what rounding has left of the recording belongs to the last that lasts
        last = max((i for i, lasting in enumerate(lasts) if lasting), default=-1)
        if last >= 0:
            found[last] = found[last]._replace(end_frame=n_frames)
            found[last + 1 :] = [Interval(i.phoneme, n_frames, n_frames) for i in found[last + 1 :]]
    return found
