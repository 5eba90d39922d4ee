"""Guidance of the AR when it speaks: rows are read in more ways than one, and sampled away from the poorer.

A reading without phonemes tells what the text changes, one without the prompt what the voice changes (classifier-free
guidance, arXiv 2207.12598). The paper has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from valle.model.sampling import SamplingConfig


class Readings:
    """The R ways in which rows are read for guidance: told everything; then without phonemes, without the prompt."""

    def __init__(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        prompt: Tensor,
        prompt_lens: Tensor,
        durations: Tensor | None,
        has_blind: bool,
        text_starts: Tensor | None,
    ) -> None:
        """The inputs of ``AR.prefill``; with ``text_starts`` [B] rows are also read from there on, without a prompt."""
        ways: list[tuple[Tensor | None, ...]] = [(phonemes, phoneme_lens, prompt, prompt_lens, durations)]
        nowhere = torch.zeros_like(phoneme_lens)
        begins, is_blind = [nowhere], [False]
        if has_blind:
            ways.append(ways[0])
            begins.append(nowhere)
            is_blind.append(True)
        if text_starts is not None:
            start = text_starts.to(phonemes.device)
            place = torch.arange(phonemes.shape[1], device=start.device) + start.unsqueeze(1)  # [B, S]
            text = phonemes.gather(1, place.clamp(max=phonemes.shape[1] - 1))
            no_frame = None if durations is None else torch.zeros_like(durations)
            ways.append((text, phoneme_lens - start, prompt, torch.zeros_like(prompt_lens), no_frame))
            begins.append(start)
            is_blind.append(False)
        self.n = len(ways)
        self.has_blind, self.has_alone = has_blind, text_starts is not None
        self.inputs: list[Any] = [None if xs[0] is None else torch.cat(xs) for xs in zip(*ways, strict=True)]
        """Those of all ways, one below the other: [R * B, ...]."""
        self.begins = torch.cat(begins)
        """[R * B] the symbol that a row begins with."""
        blind = torch.tensor(is_blind, device=phonemes.device)
        self.blind = blind.repeat_interleave(len(phonemes)) if has_blind else None
        """[R * B] bool, rows that are not told their phonemes."""

    def guided(self, logits: Tensor, sampling: SamplingConfig) -> Tensor:
        """Logits [R * B, n] of all ways -> new ones [B, n], told and taken further away from the others."""
        told, *others = logits.chunk(self.n)
        logits = torch.lerp(others[0], told, sampling.guidance) if self.has_blind else told.clone()
        return logits + (sampling.voice_guidance - 1) * (told - others[-1]) if self.has_alone else logits
