"""The pieces of a long text: how long each may last, which candidate is best, and how their waves become one.

The paper speaks one utterance at a time and bounds nothing. Here the length of a piece is bounded by what its phonemes
need at the reference's own rate: too early an end is not accepted, and a loop cannot last.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_PHONEMES_PER_S = 40.0
"""Nobody speaks faster: a transcript above it belongs to another recording."""

_PAUSE_S = {".": 0.25, ",": 0.1}  # after a piece that ends a sentence, and after one that was cut within
_FADE_S = 0.005  # at both ends of a piece, against clicks
_FRAMES_PER_PHONEME = (3.0, 10.0)  # between these a reference's rate is believed; slow readers have 9, fast ones 3.3
_LENGTH_RANGE = (0.4, 2.0)  # shortest and longest speech, in multiples of what the rate promises
_EXTRA_S = 1.0  # and beyond the longest, for silence before and after
_MIN_FRAMES = 4
_DROPPED = 1000.0  # what it costs a candidate that another went on in its place


@dataclass(frozen=True)
class Prompt:
    """A voice, ready to be spoken with."""

    name: str
    """Of the voice or the file."""
    codes: Tensor
    """codes [8, T'] of the recording."""
    phonemes: list[int]
    """Of its transcript."""
    gain: float
    """By which the model's wave, as loud as the recording, comes to the usual level."""
    durations: list[int] | None = None
    """Frames of each phoneme, T' in all; for models with alignment, and None with others."""
    fit: float | None = None
    """How well the transcript fits the recording (``Alignment.fit``); as for ``durations``."""

    @property
    def n_frames(self) -> int:
        """T'."""
        return self.codes.shape[1]

    @property
    def frames_per_phoneme(self) -> float:
        """How slowly the voice speaks."""
        low, high = _FRAMES_PER_PHONEME
        return min(max(self.n_frames / len(self.phonemes), low), high)

    @property
    def n_said(self) -> int:
        """How many of the phonemes are over with its frames; 0 when it is not aligned."""
        return max((s + 1 for s, n in enumerate(self.durations or []) if n), default=0)

    def head(self, n_frames: int) -> Prompt:
        """The first frames of the recording with all of its transcript: what continual mode starts from."""
        codes = self.codes[:, :n_frames]
        if self.durations is None:
            return replace(self, codes=codes)
        left, durations = codes.shape[1], []
        for n in self.durations:
            durations.append(min(n, left))
            left -= durations[-1]
        return replace(self, codes=codes, durations=durations)


@dataclass(frozen=True)
class Piece:
    """One utterance to be spoken."""

    text: str
    phonemes: list[int]  # of prompt and text
    prompt: Prompt
    expected_frames: float  # at the prompt's own rate
    min_frames: int
    max_frames: int
    pause_s: float  # of silence after it
    keep_prompt: bool = False  # the wave begins with the prompt's own frames (continual)

    @property
    def durations(self) -> list[int]:
        """Frames that each of ``phonemes`` has in the prompt: none, where it is of the text."""
        own = self.prompt.durations
        assert own is not None, "the prompt is not aligned"
        return own + [0] * (len(self.phonemes) - len(own))

    @property
    def text_start(self) -> int:
        """Where in ``phonemes`` the text begins, or what the prompt has not said of its own transcript."""
        return self.prompt.n_said if self.keep_prompt else len(self.prompt.phonemes) + 1  # a word boundary


@dataclass(frozen=True)
class Spoken:
    """The codes of one piece."""

    codes: Tensor  # [8, t]
    stop: str  # "eos" or "max_frames"
    scores: list[float]  # of all candidates
    chosen: int


def make_piece(
    text: str,
    phonemes: list[int],
    prompt: Prompt,
    *,
    expected_frames: float,
    limit: float,
    frame_rate: float,
    keep_prompt: bool = False,
) -> Piece:
    """A piece with the bounds of its length; ``limit`` frames are the most that the caller wants at all."""
    low, high = _LENGTH_RANGE
    most = int(max(min(math.ceil(high * expected_frames + _EXTRA_S * frame_rate), limit), 1))
    least = min(max(int(low * expected_frames), _MIN_FRAMES), most)
    ends = text.rstrip("\"')]»”’ ")[-1:] in ".!?…。！？"
    return Piece(text, phonemes, prompt, expected_frames, least, most, _PAUSE_S["." if ends else ","], keep_prompt)


def candidate_seeds(seed: int, piece: int, n_candidates: int) -> list[int]:
    """Seeds of a piece's candidates, as unrelated to each other as a hash makes them."""
    names = [f"{seed}/{piece}/{candidate}".encode() for candidate in range(n_candidates)]
    return [int.from_bytes(hashlib.sha256(name).digest()[:6], "big") for name in names]


def score(piece: Piece, n_frames: int, stop: str, quality: float) -> float:
    """How good a candidate is: its quality, less 1 without an end, less its deviation from the length.

    One that was dropped because another was better (``AR.steps``) is worse than any that was not.

    The quality is what the text adds to the mean log-probability of the codes (``ARResult.gains``); of a model that
    cannot tell, how well the text fits the speech as its aligner hears it (``Alignment.fit``); without an aligner the
    mean log-probability. Loops are probable and so are silences, which is why the probability alone chooses badly.
    """
    if stop == "dropped":
        return quality - _DROPPED
    deviation = abs(math.log(max(n_frames, 1) / max(piece.expected_frames, 1.0)))
    return quality - (stop != "eos") - max(0.0, deviation - math.log(1.5))


def join(
    pieces: Iterable[tuple[Iterable[Tensor], float]], sample_rate: int, max_seconds: float | None = None
) -> Iterator[Tensor]:
    """Waves of pieces, each in chunks [1, n] and with the seconds of a pause after it -> the whole in chunks.

    The last pause is left out, and everything after ``max_seconds``.
    """
    left = 2**62 if max_seconds is None else round(max_seconds * sample_rate)
    n_fade = round(_FADE_S * sample_rate)
    rise = torch.linspace(0, 1, n_fade + 1)[1:]  # [n_fade]
    pause: Tensor | None = None
    for chunks, pause_s in pieces:
        if pause is not None:
            yield pause[:, :left]
            left -= min(pause.shape[1], left)
        held = torch.zeros(1, 0)  # the last samples so far: they may be the end, which is faded out
        n_begun = 0
        for chunk in chunks:
            chunk = chunk[:, :left].clone()
            left -= chunk.shape[1]
            rising = rise[n_begun : n_begun + chunk.shape[1]].to(chunk)
            chunk[:, : len(rising)] *= rising
            n_begun += chunk.shape[1]
            held = torch.cat([held.to(chunk), chunk], dim=1)
            ready = held.shape[1] - n_fade
            if ready > 0:
                yield held[:, :ready]
                held = held[:, ready:]
            if not left:
                break
        yield held * rise[: held.shape[1]].flip(0).to(held)
        if not left:
            return  # before the next piece is spoken
        pause = torch.zeros(1, round(pause_s * sample_rate))
