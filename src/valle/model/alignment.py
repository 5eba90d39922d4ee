"""Which phoneme a frame belongs to: an optional departure from the paper, shared by both models.

The paper leaves it to attention to find out where in the text the speech is (§4.2.1). That takes far more speech to
learn than a small corpus holds, and until it is learnt a model babbles. With ``alignment`` every frame is told its
phoneme. In training a forced alignment knows it. When the AR speaks, a pointer moves over the phonemes: for every frame
the AR foretells whether the next one stays, goes to the next symbol, or leaves out the pause that would be next; the
place after the last symbol is the end. So nothing is said twice, left out, or said without end.

Symbols are of three kinds (``valle.text.inventory``): phones have frames; marks (stress, length) have none; pauses
(word boundaries, punctuation) may have some, of a run of adjacent ones only the first. A mark or a neighbour still
matters to how a phone sounds, so a frame gets its phoneme in context: an embedding and two convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.model.transformer import Embedding, padding_mask

PHONE, MARK, PAUSE = 0, 1, 2
"""Kinds of symbols, as ``valle.text.inventory`` numbers them: models know nothing about text."""

STAY, NEXT, SKIP = 0, 1, 2
"""Moves of the pointer."""

N_AGES = 32
"""Ages of a frame within its symbol that are told apart; the last stands for all above."""

MAX_AGE = 75
"""Most frames of a symbol when speaking, 1 s; the pointer then moves."""

_THRESHOLD = (0.3, 0.7)  # a symbol lasts until the probability that it still goes on falls below a draw from here


def frame_index(durations: Tensor, phoneme_lens: Tensor, n_frames: int) -> Tensor:
    """The symbol that each frame belongs to, [B, n_frames]; ``phoneme_lens`` (the end) past the last one's frames.

    Args:
        durations: [B, S] frames of each symbol.
        phoneme_lens: [B].
        n_frames: how many frames to tell.
    """
    ends = _ends(durations, phoneme_lens)  # [B, S]
    t = torch.arange(n_frames, device=ends.device).expand(len(ends), -1).contiguous()
    return torch.searchsorted(ends, t, right=True).minimum(phoneme_lens.unsqueeze(1))


def frame_age(durations: Tensor, phoneme_lens: Tensor, index: Tensor) -> Tensor:
    """How many frames of its symbol come before each frame, [B, T]; index [B, T] is that of ``frame_index``."""
    starts = F.pad(_ends(durations, phoneme_lens), (1, 0))  # [B, S + 1]
    t = torch.arange(index.shape[1], device=index.device)
    return t - starts.gather(1, index)


def next_symbols(phonemes: Tensor, phoneme_lens: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Where a pointer at each symbol may go.

    Args:
        phonemes: [B, S].
        phoneme_lens: [B].
        kinds: [n_phonemes] the kind of each symbol of the inventory.

    Returns:
        next [B, S + 1], the first symbol after it that may have frames, a phone or the first of a run of pauses; and
        skip [B, S + 1], the first phone after it, which differs when the next is a pause. Both are ``phoneme_lens``
        (the end) where there is none.
    """
    is_symbol = padding_mask(phoneme_lens, phonemes.shape[1])  # [B, S]
    kind = kinds[phonemes.where(is_symbol, 0)].masked_fill(~is_symbol, MARK)  # [B, S]
    is_pause = kind == PAUSE
    is_phone = kind == PHONE
    begins_pause = is_pause & ~F.pad(is_pause, (1, 0))[:, :-1]
    return _first_after(is_phone | begins_pause, phoneme_lens), _first_after(is_phone, phoneme_lens)


def first_symbol(phonemes: Tensor, phoneme_lens: Tensor, durations: Tensor, kinds: Tensor) -> Tensor:
    """Where speech goes on after a prompt, [B]: the first phone behind the last symbol that has frames in it."""
    durations = durations * padding_mask(phoneme_lens, durations.shape[1])  # [B, S]
    place = torch.arange(1, durations.shape[1] + 1, device=durations.device)
    n_said = F.pad((durations > 0) * place, (1, 0)).amax(dim=1, keepdim=True)  # [B, 1]; 0: nothing is said yet
    # As if a symbol without frames stood before all others.
    is_symbol = padding_mask(phoneme_lens, phonemes.shape[1])
    is_phone = (kinds[phonemes.where(is_symbol, 0)] == PHONE) & is_symbol  # [B, S]
    after = _first_after(F.pad(is_phone, (1, 0)), phoneme_lens + 1) - 1  # [B, S + 2]
    return after.gather(1, n_said).squeeze(1)


def move_targets(index: Tensor, following: Tensor) -> Tensor:
    """The moves that an alignment makes: index [B, T + 1], following [B, S + 1] (``next_symbols``) -> [B, T]."""
    here, there = index[:, :-1], index[:, 1:]
    moves = torch.where(there == following.gather(1, here), NEXT, SKIP)
    return moves.masked_fill(there == here, STAY)


class PhonemeContext(nn.Module):
    """A phoneme among its neighbours, as a vector for its frames. The place after the last symbol is the end.

    The vectors have the size of embeddings (``valle.model.transformer``), to be added to those of codes.
    """

    n_layers = 2
    kernel_size = 5

    def __init__(self, n_phonemes: int, dim: int) -> None:
        super().__init__()
        self.end_id = n_phonemes
        self.emb = Embedding(n_phonemes + 1, dim)
        kernel = self.kernel_size
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(self.n_layers))
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, kernel, padding=kernel // 2) for _ in range(self.n_layers))
        self.scale = dim**-0.5
        for conv in self.convs:
            assert isinstance(conv, nn.Conv1d)
            assert conv.bias is not None
            nn.init.normal_(conv.weight, std=(kernel * dim) ** -0.5)
            nn.init.zeros_(conv.bias)

    def forward(self, phonemes: Tensor, phoneme_lens: Tensor) -> Tensor:
        """phonemes [B, S], phoneme_lens [B] -> [B, S + 1, D]; place ``phoneme_lens`` of a row is its end."""
        n = phonemes.shape[1] + 1
        ids = F.pad(phonemes, (0, 1)).where(padding_mask(phoneme_lens, n), self.end_id)  # [B, S + 1]
        is_place = padding_mask(phoneme_lens + 1, n).unsqueeze(-1)  # [B, S + 1, 1]
        x = self.emb(ids)  # [B, S + 1, D]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = norm(x).masked_fill(~is_place, 0)  # what is beyond the end counts as nothing, padding or not
            x = x + self.scale * F.gelu(conv(y.transpose(1, 2))).transpose(1, 2)
        return x  # type: ignore[no-any-return]


def look_up(context: Tensor, index: Tensor) -> Tensor:
    """context [B, S + 1, D], index [B, T] into it -> [B, T, D]."""
    n_rows, n_places, dim = context.shape
    rows = torch.arange(n_rows, device=index.device).unsqueeze(1)
    return F.embedding(rows * n_places + index, context.reshape(n_rows * n_places, dim))


class Pointer:
    """Where each row of a batch being spoken is in its phonemes; plain numbers, since each row goes its own way."""

    def __init__(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        durations: Tensor,
        kinds: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> None:
        """
        Args:
            phonemes: [B, S] of the prompt and then of the text.
            phoneme_lens: [B].
            durations: [B, S] frames that each symbol has in the prompt.
            kinds: [n_phonemes] the kind of each symbol of the inventory.
            generators: one a row, for how long symbols last; None: as long as is likeliest, and nothing is drawn.
        """
        following, skipping = next_symbols(phonemes, phoneme_lens, kinds)
        self._next: list[list[int]] = following.tolist()
        self._skip: list[list[int]] = skipping.tolist()
        self._ends: list[int] = phoneme_lens.tolist()
        self._generators = generators
        n_rows = len(self._ends)
        self.index: list[int] = first_symbol(phonemes, phoneme_lens, durations, kinds).tolist()
        """Of the symbol that the coming frame of each row belongs to; the number of its symbols when it is over."""
        self.age: list[int] = [0] * n_rows
        """Frames that this symbol has so far."""
        self._survival = [1.0] * n_rows
        self._threshold = [self._draw(i) for i in range(n_rows)]

    def is_over(self, i: int) -> bool:
        """Whether row i is past its last symbol."""
        return self.index[i] >= self._ends[i]

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on, numbered anew."""
        for name in ("_next", "_skip", "_ends", "index", "age", "_survival", "_threshold"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in rows])
        if self._generators is not None:
            self._generators = [self._generators[i] for i in rows]

    def move(self, i: int, stay: float, follow: float, skip: float) -> None:
        """Go on to the next frame of row i, given the probabilities of the three moves."""
        self._survival[i] *= stay
        self.age[i] += 1
        if self._survival[i] >= self._threshold[i] and self.age[i] < MAX_AGE:
            return
        self.index[i] = (self._skip if skip > follow else self._next)[i][self.index[i]]
        self.age[i], self._survival[i] = 0, 1.0
        self._threshold[i] = self._draw(i)

    def _draw(self, i: int) -> float:
        low, high = _THRESHOLD
        if self._generators is None:
            return (low + high) / 2
        if self.is_over(i):
            return high  # it goes nowhere any more
        generator = self._generators[i]
        return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def _ends(durations: Tensor, phoneme_lens: Tensor) -> Tensor:
    """The frame behind the last one of each symbol, [B, S]."""
    return (durations * padding_mask(phoneme_lens, durations.shape[1])).cumsum(dim=1)


def _first_after(is_wanted: Tensor, lens: Tensor) -> Tensor:
    """is_wanted [B, S] -> [B, S + 1] the first wanted place after each place; lens where there is none."""
    place = torch.arange(is_wanted.shape[1], device=lens.device)
    places = place.where(is_wanted, lens.unsqueeze(1))  # [B, S]
    places = torch.cat([places, lens.view(-1, 1), lens.view(-1, 1)], dim=1)[:, 1:]  # [B, S + 1], each one place on
    return places.flip(1).cummin(dim=1).values.flip(1)
