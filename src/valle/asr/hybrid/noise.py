"""Where noise begins: steps of pauses that are unlike silence, as nobody labels breaths, clicks and laughs.

A path in which a state as broad as all speech may be wherever silence may tells the pauses: without such a state a loud
noise hides in phones. What silence is like is told by the softer half of the pauses of each recording; noise is sought
in the louder half. Where hardly anything is found, the corpus has no noise, and its unit gets the states of silence
(``valle.asr.hybrid.tree``), so that at its cost it is never chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from valle.asr.hybrid.units import NOISE_ID, SILENCE_ID

_OUTSIDE = 4.0  # noise is so many times as far beyond the usual silence as that is from its best tenth
_MIN_SHARE = 0.005  # of the louder half; in 39 Gaussian dimensions there is a tenth of that by chance
_MARGIN = 2  # steps on each side of a phone in whose slopes it is heard
_MIN_VARIANCE = 0.01  # of features whose variance over all speech is one


def first_noise(x: Sequence[Tensor], rows: Sequence[Tensor], min_count: int) -> list[Tensor] | None:
    """The rows with noise only where a step is unlike silence; None where so few are that there is no noise.

    Args:
        x: features [S, D] of each recording, of which the first is the energy.
        rows: [S] the monophone's state of each step (-1: unknown), with noise where the broad state fits best.
        min_count: steps that noise must have.
    """
    pauses = [(r >= 0) & (r // 2 <= NOISE_ID) for r in rows]
    inside = [_far_from_phones(pause) for pause in pauses]
    lens = [int(i.sum()) for i in inside]
    found = [f[i] for f, i in zip(x, inside, strict=True)]
    for each, f, pause in zip(found, x, pauses, strict=True):
        if len(each):
            each[:, 0] -= f[pause, 0].median()
    unlike, of = _unlike(torch.cat(found))
    n = int(unlike.sum())
    enough = n >= max(_MIN_SHARE * of, min_count)
    told = "" if enough else "; too few, so there is none"
    tqdm.write(f"noise: {n} of the {of} louder steps of pauses are unlike the softer ones{told}", file=sys.stderr)
    if not enough:
        return None
    out = []
    for r, pause, i, u in zip(rows, pauses, inside, torch.split(unlike, lens), strict=True):
        is_noise = torch.zeros_like(pause)
        is_noise[i] = u
        r = torch.where(pause & (r // 2 == NOISE_ID), 2 * SILENCE_ID + 1, r)
        out.append(torch.where(is_noise, 2 * NOISE_ID, r))
    return out


def _far_from_phones(pause: Tensor) -> Tensor:
    """Steps [S] of a pause, without those that are near its ends."""
    inside = pause.clone()
    for by in range(1, _MARGIN + 1):
        inside[by:] &= pause[:-by]
        inside[:-by] &= pause[by:]
    return inside


def _unlike(x: Tensor) -> tuple[Tensor, int]:
    """Which steps of pauses [F, D] are noise, and how many are in the louder half, where the energy is above 0."""
    soft = x[:, 0] <= 0
    n = int(soft.sum())
    if not n:
        return torch.zeros_like(soft), len(soft)
    mean = x[soft].mean(0)
    mean[0] = 0.0  # of the energy only one side is seen
    variance = (x[soft] - mean).square().mean(0).clamp(min=_MIN_VARIANCE)
    distance = ((x - mean).square() / variance).sum(1)
    near, usual = distance[soft].sort().values[[n // 10, n // 2]].tolist()
    return ~soft & (distance > usual + _OUTSIDE * (usual - near)), len(soft) - n
