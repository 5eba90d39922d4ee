"""The autoregressive model: phonemes and a few frames of a voice in, codebook 1 of the speech out (paper §4.2.1).

One causal transformer over ``[phonemes, <eos>, codes, <eos>]``. Phonemes and codes have their own embedding tables and their own
positions, each counted from 0. The acoustic prompt is nothing but the beginning of the codes: to clone a voice, its
transcript goes before the text and its codes before those to come; to continue a recording (VALL-E-continual), the phonemes are
the whole transcript and the codes its first seconds. An empty prompt is the paper's ablation, a random voice.

Rows of a batch are packed: a row's codes follow its own ``<eos>`` at once and all padding stands at the end, where causality hides it
from everything that counts. No mask is needed in training, which leaves the fastest attention kernels in play.

As in the paper the output layer is the acoustic embedding, and phonemes too are read causally; both are config values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.config import from_dict, to_dict
from valle.errors import ValleError
from valle.model.sampling import SamplingConfig, sample
from valle.model.transformer import (
    IGNORE_INDEX,
    Embedding,
    KVCache,
    SinusoidalPositions,
    Transformer,
    TransformerConfig,
    padding_mask,
    token_loss,
)

StopReason = Literal["eos", "max_frames"]
"""Why an utterance ended: the model drew its end, or the limit was reached (the speech is then probably cut or looping)."""


@dataclass(frozen=True)
class ARConfig:
    """The AR model; the defaults are the paper's."""

    n_phonemes: int
    """Size of the phoneme inventory. The model's own <eos> is one id after it."""
    codebook_size: int = 1024
    """Entries of codebook 1."""
    transformer: TransformerConfig = TransformerConfig()
    """The transformer's size."""
    tie_weights: bool = True
    """The output layer is the acoustic embedding, as in the paper; False gives it weights of its own."""
    phoneme_attention: Literal["causal", "full"] = "causal"
    """"full" lets the phonemes see each other in both directions (a prefix language model); the paper is causal everywhere."""

    def __post_init__(self) -> None:
        if self.n_phonemes < 1 or self.codebook_size < 1:
            raise ValleError(f"n_phonemes is {self.n_phonemes}, codebook_size {self.codebook_size}; both must be at least 1")


class ARBatch(NamedTuple):
    """A padded batch; what stands in the padding does not matter."""

    phonemes: Tensor  # [B, S] int64
    phoneme_lens: Tensor  # [B] int64
    codes: Tensor  # [B, T] int64, codebook 1, without <eos>
    code_lens: Tensor  # [B] int64

    def to(self, device: str | torch.device) -> ARBatch:
        """The same batch on another device."""
        return ARBatch(*(x.to(device, non_blocking=True) for x in self))


class ARStep(NamedTuple):
    """One frame of a batch being spoken; lists of length B."""

    codes: list[int | None]  # None for a row that has ended
    log_probs: list[float]  # of what was drawn, <eos> included, under the model's own distribution; 0 once a row has ended
    stop_reasons: list[StopReason | None]  # None while a row goes on


class ARResult(NamedTuple):
    """A spoken batch."""

    codes: list[Tensor]  # of row i [t_i] int64, without prompt and <eos>
    stop_reasons: list[StopReason]
    log_probs: Tensor  # [B] float32, mean over what was drawn: higher is more typical, to choose among candidates


@dataclass
class ARState:
    """What generation carries from frame to frame."""

    cache: KVCache
    positions: Tensor  # [B] the position of the next code
    max_position: int  # no position reaches this
    mask: Tensor | None  # [B, 1, 1, cache.max_len] bool, columns that hold something; None when all do


class AR(nn.Module):
    """Phonemes and the first codes in, the next codes out. ``eos_id`` ends the codes; ``phoneme_eos_id`` ends the phonemes."""

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.dim
        self.phoneme_eos_id = config.n_phonemes
        self.eos_id = config.codebook_size
        self.phoneme_emb = Embedding(config.n_phonemes + 1, dim)
        self.code_emb = Embedding(config.codebook_size + 1, dim)  # W_a; <eos> has a row because it is an output
        self.positions = SinusoidalPositions(dim)
        self.transformer = Transformer(config.transformer)
        # No second name for tied weights: a checkpoint then holds them once.
        self.output = None if config.tie_weights else nn.Linear(dim, config.codebook_size + 1, bias=False)

    @classmethod
    def from_config(cls, values: dict[str, Any]) -> AR:
        """A model with random weights from what ``config_dict`` returned."""
        return cls(from_dict(ARConfig, values, "the AR model's configuration"))

    def config_dict(self) -> dict[str, Any]:
        """The configuration, ready for JSON."""
        return to_dict(self.config)

    @property
    def n_parameters(self) -> int:
        """Trainable numbers, tied ones counted once."""
        return sum(p.numel() for p in self.parameters())

    # Training

    def forward(self, batch: ARBatch) -> Tensor:
        """logits [B, T + 1, codebook_size + 1]: place t tells what follows the first t codes, a code or ``eos_id``."""
        x, text_lens = self._embed(*batch)  # [B, S + 1 + T, D]
        h = self._transform(x, text_lens)  # [B, S + 1 + T, D]
        # What is said at the phonemes' <eos> and after it; what is said before is of no use.
        t = torch.arange(batch.codes.shape[1] + 1, device=x.device)
        columns = text_lens.unsqueeze(1) - 1 + t  # [B, T + 1]
        return self._logits(h.gather(1, columns.unsqueeze(-1).expand(-1, -1, x.shape[-1])))

    def loss(self, logits: Tensor, batch: ARBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over the codes and each row's ``<eos>``, and metrics (see ``token_loss``); padding trains nothing."""
        t = torch.arange(logits.shape[1], device=logits.device)
        end = batch.code_lens.unsqueeze(1)
        targets = F.pad(batch.codes, (0, 1)).masked_fill(t == end, self.eos_id).masked_fill(t > end, IGNORE_INDEX)  # [B, T + 1]
        return token_loss(logits, targets)

    # Generation

    @torch.no_grad()
    def generate(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        prompt: Tensor,
        prompt_lens: Tensor,
        *,
        max_frames: int | Tensor,
        min_frames: int | Tensor = 0,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 (frozen)
        generators: Sequence[torch.Generator] | None = None,
        on_frame: Callable[[int], None] | None = None,
    ) -> ARResult:
        """Speak a batch to its end; arguments as for ``steps``. ``on_frame`` is told the number of frames so far, for progress."""
        codes: list[list[int]] = [[] for _ in phonemes]
        log_probs: list[list[float]] = [[] for _ in phonemes]
        reasons: list[StopReason | None] = [None] * len(phonemes)
        steps = self.steps(
            phonemes, phoneme_lens, prompt, prompt_lens,
            max_frames=max_frames, min_frames=min_frames, sampling=sampling, generators=generators,
        )  # fmt: skip
        for n, step in enumerate(steps, start=1):
            for i, code in enumerate(step.codes):
                if reasons[i] is None:
                    log_probs[i].append(step.log_probs[i])
                if code is not None:
                    codes[i].append(code)
            reasons = step.stop_reasons
            if on_frame is not None:
                on_frame(n)
        return ARResult(
            [torch.tensor(row, dtype=torch.int64, device=phonemes.device) for row in codes],
            [reason for reason in reasons if reason is not None],
            torch.tensor([sum(row) / len(row) for row in log_probs], device=phonemes.device),
        )

    @torch.no_grad()
    def steps(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        prompt: Tensor,
        prompt_lens: Tensor,
        *,
        max_frames: int | Tensor,
        min_frames: int | Tensor = 0,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 (frozen)
        generators: Sequence[torch.Generator] | None = None,
    ) -> Iterator[ARStep]:
        """Speak a batch frame by frame, until every row has drawn ``<eos>`` or reached its limit.

        Args:
            phonemes: [B, S] of the prompt's transcript and then of the text.
            phoneme_lens: [B].
            prompt: [B, T'] codebook 1 of the prompt; T' may be 0.
            prompt_lens: [B].
            max_frames: most new frames, for all rows or [B].
            min_frames: ``<eos>`` is not drawn before so many new frames, for all rows or [B].
            sampling: how codes are drawn.
            generators: one a row; a row gives the same codes alone and in any batch. None: torch's own random state.

        Raises:
            ValleError: min_frames above max_frames, or max_frames below 1.
        """
        assert not self.training, "call eval() before generating: dropout is on"
        n_rows, device = len(phonemes), phonemes.device
        most = _per_row(max_frames, n_rows)
        least = _per_row(min_frames, n_rows)
        if min(most) < 1 or any(a > b for a, b in zip(least, most, strict=True)):
            raise ValleError(f"min_frames is {least} and max_frames {most}; max_frames must be at least 1 and min_frames")
        generators = [torch.default_generator] * n_rows if generators is None else list(generators)
        assert len(generators) == n_rows, f"{len(generators)} generators for {n_rows} rows"

        logits, state = self.prefill(phonemes, phoneme_lens, prompt, prompt_lens, max(most))  # [B, codebook_size + 1]
        recent = _last_codes(prompt, prompt_lens, sampling.ras_window) if sampling.repetition_aware else None
        reasons: list[StopReason | None] = [None] * n_rows
        for n in range(max(most)):
            log_probs = logits.log_softmax(dim=-1)
            if n < max(least):
                is_early = torch.tensor([n < a for a in least], device=device)
                logits[:, self.eos_id].masked_fill_(is_early, -torch.inf)
            tokens = sample(logits, sampling, generators, recent)  # [B]
            drawn = tokens.tolist()
            log_prob = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
            step = ARStep([None] * n_rows, [0.0] * n_rows, reasons)
            reasons = list(reasons)
            for i in range(n_rows):
                if reasons[i] is not None:
                    continue
                ...
            yield step
