"""Pictures of sound for TensorBoard, drawn with torch alone: log-mel spectrograms, and which phoneme is spoken when."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from valle.codec.losses import MelScale

BANDS, ROWS = 80, 2
"""Mel bands, and rows of pixels for each."""

_RANGE = 9.0  # nepers from the brightest to black
_COLOURS = ((0, 0, 4), (81, 18, 124), (222, 73, 104), (252, 253, 191))  # from silence to the loudest
_PATH = (90, 255, 140)
_GAP = 4  # rows between pictures


def picture(wav: Tensor, sample_rate: int, hop_length: int, path: Tensor | None = None, n_phonemes: int = 1) -> Tensor:
    """wav [N] on the CPU -> uint8 [BANDS * ROWS, columns, 3], a column each ``hop_length`` samples, low sounds below.

    Args:
        wav: in [-1, 1].
        sample_rate: of wav.
        hop_length: samples of a column; of the codec for ``path`` to fit.
        path: [T] the place of each column's phoneme, from 0, drawn as a line from the lower left to the upper right.
        n_phonemes: how many places there are.
    """
    if len(wav) <= 2 * hop_length:  # too short for the window
        return torch.zeros(BANDS * ROWS, 1, 3, dtype=torch.uint8)
    mel = MelScale(sample_rate, 4 * hop_length, BANDS)(wav[None, None])[0]  # [BANDS, columns]
    level = ((mel - mel.max()) / _RANGE + 1).clamp(0, 1).flip(0).repeat_interleave(ROWS, dim=0)
    colours = torch.tensor(_COLOURS, dtype=torch.float32)  # [C, 3]
    place = level * (len(colours) - 1)
    below = place.long().clamp(max=len(colours) - 2)
    pixels = torch.lerp(colours[below], colours[below + 1], (place - below).unsqueeze(-1)).round().to(torch.uint8)
    if path is not None:
        n = min(pixels.shape[1], len(path))
        height = path[:n].clamp(0, n_phonemes - 1) / max(1, n_phonemes - 1)  # [n]
        rows = ((BANDS * ROWS - 2) * (1 - height)).long()
        for row in (rows, rows + 1):
            pixels[row, torch.arange(n)] = torch.tensor(_PATH, dtype=torch.uint8)
    return pixels


def stacked(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures [h, w, 3] of one height, one below the other on white, [H, W, 3]."""
    height, width = pictures[0].shape[0] + _GAP, max(p.shape[1] for p in pictures)
    whole = torch.full((len(pictures) * height - _GAP, width, 3), 255, dtype=torch.uint8)
    for i, p in enumerate(pictures):
        whole[i * height : i * height + p.shape[0], : p.shape[1]] = p
    return whole
