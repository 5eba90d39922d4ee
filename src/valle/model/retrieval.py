"""The prompt's own frames as what the NAR cannot foretell.

A NAR that has heard few voices knows what a frame of a phoneme sounds like in general, and little of how this voice
differs. But the prompt shows it: its frames have all codebooks. For every frame of the target a frame of the prompt is
looked up that has the same phoneme, a similar codebook 1 around it, and of which the NAR thinks the same; what the NAR
missed there is what it most likely misses here. Runs of the prompt stay together where they can, as in unit selection.

Sources: retrieval from a few seconds of a voice as in Baas et al., "Voice conversion with just nearest neighbors"
(arXiv 2305.18975); the search by Hunt and Black, "Unit selection in a concatenative speech synthesis system" (1996).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 2
"""Frames of codebook 1 to either side that are compared as well."""
PHONEME_COST = 0.5
"""Cost of another phoneme, in mean distances of frames."""
OTHER_PHONEME_WEIGHT = 0.5
"""How much of what is missed at a frame of another phoneme counts: some of it is the voice, some the phoneme."""
JOIN_COST = 0.2
"""Cost of going on elsewhere than at the next frame of the prompt, likewise."""
STAY_COST = 0.1
"""Cost of the same frame again, likewise."""


def frame_distances(
    first: Tensor,
    foretold: Tensor,
    phonemes: Tensor | None,
    prompt_first: Tensor,
    prompt_foretold: Tensor,
    prompt_phonemes: Tensor | None,
) -> Tensor:
    """How unlike each frame of the target and each of the prompt are.

    Args:
        first: [T, d] vectors of codebook 1 of the target.
        foretold: [T, d] what the NAR thinks that the codebooks after it add up to.
        phonemes: [T] of its frames; None without an alignment.
        prompt_first, prompt_foretold, prompt_phonemes: likewise of the prompt, T' frames.

    Returns:
        [T, T'], of mean 1 but for the cost of other phonemes.
    """
    scale, scale_foretold = prompt_first.std().clamp(min=1e-8), prompt_foretold.std().clamp(min=1e-8)
    # The window has 2 * SIDE + 1 frames, the opinion one: without a weight it would hardly count.
    weight = (2 * SIDE + 1) ** 0.5
    target, prompt = (
        torch.cat([_windows(a) / scale, b * (weight / scale_foretold)], dim=1)
        for a, b in ((first, foretold), (prompt_first, prompt_foretold))
    )
    distances = torch.cdist(target, prompt)
    distances = distances / distances.mean().clamp(min=1e-8)
    if phonemes is not None and prompt_phonemes is not None:
        distances = distances + PHONEME_COST * (phonemes.unsqueeze(1) != prompt_phonemes)
    return distances


def cheapest_path(distances: Tensor, join_cost: float = JOIN_COST, stay_cost: float = STAY_COST) -> Tensor:
    """The frames of the prompt, one for each of the target, that cost least with their joins (Viterbi).

    Args:
        distances: [T, T'] of ``frame_distances``, T and T' at least 1.
        join_cost: of a frame that does not follow the one before it.
        stay_cost: of the same frame again.

    Returns:
        [T] int64 places in the prompt.
    """
    # Many steps with few numbers: in NumPy each costs a fraction of what it does in torch, on a GPU least of all.
    rows = distances.float().cpu().numpy()  # [T, T']
    n_rows, n_prompt = rows.shape
    places = np.arange(n_prompt)
    came_from = np.empty((n_rows, n_prompt), np.int64)
    best = rows[0]  # [T'] the cheapest way to each place
    next_frame = np.full(n_prompt, np.inf, rows.dtype)
    for t in range(1, n_rows):
        cheapest = best.argmin()
        cost = np.minimum(best + np.float32(stay_cost), best[cheapest] + np.float32(join_cost))
        came = np.where(best + np.float32(stay_cost) <= best[cheapest] + np.float32(join_cost), places, cheapest)
        next_frame[1:] = best[:-1]
        came_from[t] = np.where(next_frame <= cost, places - 1, came)
        best = rows[t] + np.minimum(next_frame, cost)
    path = [int(best.argmin())]
    for t in range(n_rows - 1, 0, -1):
        path.append(int(came_from[t, path[-1]]))
    return torch.tensor(path[::-1], device=distances.device)


def _windows(x: Tensor) -> Tensor:
    """x [T, d] -> each frame with its neighbours, [T, d * (2 * SIDE + 1)]; the ends repeat."""
    padded = F.pad(x.t().unsqueeze(0), (SIDE, SIDE), mode="replicate")[0].t()
    return padded.unfold(0, 2 * SIDE + 1, 1).flatten(1)
