"""The autoregressive model: phonemes and a few frames of a voice in, codebook 1 of the speech out (paper §4.2.1).

One causal transformer over ``[phonemes, <eos>, codes, <eos>]``. Phonemes and codes have embedding tables and positions
of their own, each counted from 0. The acoustic prompt is nothing but the beginning of the codes. To clone a voice, its
transcript goes before the text and its codes before those to come; to continue a recording (VALL-E-continual), the
phonemes are the whole transcript and the codes its first seconds. With an empty prompt, the paper's ablation, the voice
is left to chance.

Rows of a batch are packed: the codes of a row follow its own ``<eos>`` at once and all padding stands at the end, where
causality hides it from everything that counts. So training needs no mask, and the fastest attention kernels apply.

As in the paper the output layer is the acoustic embedding, and phonemes too are read causally; both are config values.

With ``alignment``, a departure described in ``valle.model.alignment``, the place that foretells a frame is told the
phoneme of that frame, and foretells besides where the frame after it belongs. Speech then ends with its phonemes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.config import from_dict, to_dict
from valle.errors import ValleError
from valle.model.alignment import (
    N_AGES,
    PhonemeContext,
    Pointer,
    first_symbol,
    frame_age,
    frame_index,
    look_up,
    move_targets,
    next_symbols,
)
from valle.model.decoder import Decoder
from valle.model.frame_layers import CausalContext
from valle.model.graphs import GraphDecoder
from valle.model.guidance import Readings
from valle.model.narrow import Linear
from valle.model.sampling import SamplingConfig, log_probs_of, sample
from valle.model.transformer import (
    IGNORE_INDEX,
    Embedding,
    KVCache,
    SinusoidalPositions,
    Transformer,
    TransformerConfig,
    code_vectors,
    padding_mask,
    token_loss,
)
from valle.native.frames import Frames, can_run
from valle.native.sequence import Columns, can_read, read

StopReason = Literal["eos", "max_frames", "dropped"]
"""Why an utterance ended: the model drew its end (with alignment: its phonemes were at an end), or reached the limit:
the speech is then probably cut, or a loop; or another candidate was better so far."""


@dataclass(frozen=True)
class ARConfig:
    """The AR model; the defaults are the paper's."""

    n_phonemes: int
    """Size of the phoneme inventory. The model's own <eos> is one id after it."""
    codebook_size: int = 1024
    """Entries of codebook 1."""
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    """The transformer's size."""
    tie_weights: bool = True
    """The output layer is the acoustic embedding, as in the paper; False gives it weights of its own."""
    phoneme_attention: Literal["causal", "full"] = "causal"
    """"full" lets phonemes see those after them too (a prefix language model); the paper is causal everywhere."""
    alignment: bool = False
    """Tell every frame its phoneme, and end with the phonemes (``valle.model.alignment``); the paper does not."""
    phoneme_kinds: tuple[int, ...] = ()
    """With alignment, the kind of each symbol of the inventory: phone, mark or pause."""
    code_noise: float = 0.0
    """Share of the codes read in training that are replaced by random ones, so that the model learns to go on after a
    code of its own that was wrong, and to heed the phonemes; the paper has none."""
    text_dropout: float = 0.0
    """Share of the rows in training that are not told their phonemes. A model that knows what speech is like without a
    text can be guided by what the text changes (``SamplingConfig.guidance``); the paper has none."""
    local_layers: int = 0
    """Causal convolutions (7 frames each) that read the codes before the transformer and pass on to the output beside
    it; 0: none (the paper). What a code lost in rounding stands in its neighbours', and attention finds that out
    slowly."""

    def __post_init__(self) -> None:
        if self.n_phonemes < 1 or self.codebook_size < 1:
            raise ValleError(f"n_phonemes {self.n_phonemes} and codebook_size {self.codebook_size} must be at least 1")
        if self.local_layers < 0:
            raise ValleError(f"local_layers is {self.local_layers}; it must be 0 (none) or more")
        if not 0 <= self.code_noise < 1:
            raise ValleError(f"code_noise is {self.code_noise}; it must be at least 0 (off) and below 1")
        if not 0 <= self.text_dropout < 1:
            raise ValleError(f"text_dropout is {self.text_dropout}; it must be at least 0 (off) and below 1")
        if self.alignment and len(self.phoneme_kinds) != self.n_phonemes:
            raise ValleError(
                f"alignment needs the kind of each of the {self.n_phonemes} phonemes, but phoneme_kinds has "
                f"{len(self.phoneme_kinds)}; take PhonemeInventory.kinds"
            )


class ARBatch(NamedTuple):
    """A padded batch; what stands in the padding does not matter."""

    phonemes: Tensor  # [B, S] int64
    phoneme_lens: Tensor  # [B] int64
    codes: Tensor  # [B, T] int64, codebook 1, without <eos>
    code_lens: Tensor  # [B] int64
    durations: Tensor | None = None  # [B, S] int64, frames of each phoneme, code_lens in all; for alignment
    max_places: int | None = None  # most phonemes and codes of a row; None: not known, S + T are computed

    def to(self, device: str | torch.device) -> ARBatch:
        """The same batch on another device."""
        tensors = {k: x for k, x in self._asdict().items() if isinstance(x, Tensor)}
        moved: dict[str, Any] = {k: x.to(device, non_blocking=True) for k, x in tensors.items()}
        return self._replace(**moved)


class AROutputs(NamedTuple):
    """What the model says at each place t of a batch, knowing its first t codes."""

    codes: Tensor  # logits [B, T + 1, codebook_size + 1] of what follows, a code or <eos>
    moves: Tensor | None  # with alignment, logits [B, T + 1, 3]: whether frame t + 1 stays at the symbol of frame t


class ARStep(NamedTuple):
    """One frame of a batch being spoken; lists of length B."""

    codes: list[int | None]  # None: the row has ended
    log_probs: list[
        float
    ]  # of what was drawn, be it <eos>, under the model's own distribution; 0 once the row has ended
    stop_reasons: list[StopReason | None]  # None: the row goes on
    # NOTE a field hides the tuple's method of that name.
    index: list[int] | None = None  # type: ignore[assignment]  # with alignment, the place of the frame's phoneme
    gains: list[float] | None = None  # when asked for, log-probability of what was drawn, less that without phonemes
    kept: list[int] | None = None  # with choose_after, once: which rows go on, those of the steps to come


class ARResult(NamedTuple):
    """A spoken batch."""

    codes: list[Tensor]  # of row i [t_i] int64, without prompt and <eos>
    stop_reasons: list[StopReason]
    log_probs: Tensor  # [B] float32, the mean over what was drawn, to choose among candidates
    # NOTE a field hides the tuple's method of that name.
    index: list[Tensor] | None = None  # type: ignore[assignment]  # with alignment, [t_i] the place of each phoneme
    gains: Tensor | None = None  # [B] float32, when asked for, the mean of what phonemes added to the log-probability


@dataclass
class ARState:
    """What generation carries from frame to frame."""

    decoder: Decoder | Frames | GraphDecoder
    positions: Tensor  # [B] the position of the next code
    max_position: int  # no position reaches this
    context: Tensor | None = None  # [B, S + 1, D] with alignment, the vectors of the phonemes
    moves: Tensor | None = None  # [B, 3] float32, with alignment, logits of where the frame after the next belongs
    pasts: list[Tensor] | None = None  # with convolutions, what each has read last; Frames keep that themselves
    blind: Tensor | None = None  # [B] bool, rows that are not told their phonemes


class AR(nn.Module):
    """Phonemes and some codes in, the next code out. ``phoneme_eos_id`` ends the phonemes, ``eos_id`` the codes."""

    kinds: Tensor  # [n_phonemes], with alignment

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
        self.output_emb = None if config.tie_weights else Embedding(config.codebook_size + 1, dim)
        if config.alignment:
            self.context = PhonemeContext(config.n_phonemes, dim)
            self.age_emb = Embedding(N_AGES, dim)
            self.move = Linear(dim, 3)
            nn.init.normal_(self.move.weight, std=dim**-0.5)
            nn.init.zeros_(self.move.bias)
            self.register_buffer("kinds", torch.tensor(config.phoneme_kinds), persistent=False)
        if config.local_layers:
            self.local = CausalContext(dim, config.local_layers)

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

    @torch.no_grad()
    def begin_with(self, codebooks: Tensor) -> None:
        """Take a codec's codebooks [K, codebook_size, d] as embeddings to begin with (``code_vectors``)."""
        vectors = code_vectors(codebooks[:1], self.config.transformer.dim)[0]
        for table in (self.code_emb, self.output_emb):
            if table is not None:
                table.weight[: self.config.codebook_size] = vectors

    def check_guidance(self, guidance: float) -> None:
        """
        Raises:
            ValleError: this model cannot be guided, because it has not learnt to go without phonemes.
        """
        if guidance != 1 and self.config.text_dropout == 0:
            raise ValleError(
                f"guidance is {guidance:g}, but this model has not learnt to go without phonemes; leave guidance 1, or "
                "train it with text_dropout"
            )

    # Training

    def forward(self, batch: ARBatch) -> Tensor:
        """logits [B, T + 1, codebook_size + 1]: place t tells what follows the first t codes, a code or ``eos_id``."""
        return self.outputs(batch).codes

    def outputs(self, batch: ARBatch) -> AROutputs:
        """What ``forward`` returns and, with alignment, the moves; ``batch`` then needs its durations."""
        phonemes, phoneme_lens, codes, code_lens, durations, max_places = batch
        if self.training and self.config.code_noise > 0:  # drawn like dropout, from torch's own generator
            is_wrong = torch.rand(codes.shape, device=codes.device) < self.config.code_noise  # [B, T]
            codes = torch.where(is_wrong, torch.randint_like(codes, self.config.codebook_size), codes)
        blind = None
        if self.training and self.config.text_dropout > 0:
            blind = torch.rand(len(codes), device=codes.device) < self.config.text_dropout  # [B]
        # Two more: the phonemes' <eos>, and a place of padding for all columns that are past the end.
        length = None if max_places is None else max_places + 2
        x, text_lens = self._embed(phonemes, phoneme_lens, codes, code_lens, blind, length)  # [B, L, D]
        if self.config.alignment:
            assert durations is not None, "a model with alignment needs the durations of the phonemes"
            context = self.context(phonemes, phoneme_lens)  # [B, S + 1, D]
            index = frame_index(durations, phoneme_lens, codes.shape[1] + 1)  # [B, T + 1]
            x = x + self._guide(context, index, frame_age(durations, phoneme_lens, index), text_lens, blind, length)
        # What is said at the phonemes' <eos> and after it; what is said before is of no use.
        columns = self._code_columns(text_lens, batch.codes.shape[1] + 1, x.shape[1])
        x, local, _ = self._add_local(x, columns)
        h = self._transform(x, text_lens).gather(1, columns)  # [B, T + 1, D]
        if local is not None:
            h = h + self.local.out(local)
        return AROutputs(self._logits(h), self.move(h) if self.config.alignment else None)

    def loss(self, logits: Tensor, batch: ARBatch, moves: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over the codes and the ``<eos>`` of each row; the metrics are those of ``token_loss``.

        With alignment that of the moves is added, ``moves`` being those of ``outputs``. The metric ``loss`` is still
        that of the codes alone; ``move_loss`` and ``move_top1`` are means over frames.
        """
        t = torch.arange(logits.shape[1], device=logits.device)
        end = batch.code_lens.unsqueeze(1)
        targets = F.pad(batch.codes, (0, 1))  # [B, T + 1]
        targets = targets.masked_fill(t == end, self.eos_id).masked_fill(t > end, IGNORE_INDEX)
        loss, metrics = token_loss(logits, targets)
        if not self.config.alignment:
            return loss, metrics
        assert moves is not None, "a model with alignment learns the moves as well"
        assert batch.durations is not None, "a model with alignment needs the durations of the phonemes"
        index = frame_index(batch.durations, batch.phoneme_lens, logits.shape[1])  # [B, T + 1]
        following, _ = next_symbols(batch.phonemes, batch.phoneme_lens, self.kinds)
        targets = move_targets(index, following).masked_fill(t[:-1] >= end, IGNORE_INDEX)  # [B, T]
        move_loss, of_moves = token_loss(moves[:, :-1], targets)
        metrics |= {"move_loss": of_moves["loss"], "move_top1": of_moves["top1"]}
        # NOTE per code and <eos>, by which batches are weighted: else two batches would not make one large one.
        return loss + move_loss * (of_moves["n_tokens"] / metrics["n_tokens"]), metrics

    # Generation

    @torch.no_grad()
    def generate(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        prompt: Tensor,
        prompt_lens: Tensor,
        prompt_durations: Tensor | None = None,
        *,
        sampling: SamplingConfig,
        max_frames: int | Tensor,
        min_frames: int | Tensor = 0,
        generators: Sequence[torch.Generator] | None = None,
        with_gains: bool = False,
        text_starts: Tensor | None = None,
        candidates: int = 1,
        choose_after: int = 0,
        on_frame: Callable[[int], None] | None = None,
    ) -> ARResult:
        """Speak a batch to its end, as ``steps`` does; ``on_frame`` is told how many frames there are so far.

        With ``choose_after`` the result still has all B * candidates rows: those "dropped" with what they said so far.
        """
        n_rows = len(phonemes) * candidates
        codes: list[list[int]] = [[] for _ in range(n_rows)]
        index: list[list[int]] = [[] for _ in range(n_rows)]
        log_probs = [0.0] * n_rows
        gains = [0.0] * n_rows
        reasons: list[StopReason | None] = [None] * n_rows
        rows = list(range(n_rows))  # that still go on
        steps = self.steps(
            phonemes, phoneme_lens, prompt, prompt_lens, prompt_durations,
            sampling=sampling, max_frames=max_frames, min_frames=min_frames, generators=generators,
            with_gains=with_gains, text_starts=text_starts, candidates=candidates, choose_after=choose_after,
        )  # fmt: skip
        for n, step in enumerate(steps, start=1):
            for i, (row, code) in enumerate(zip(rows, step.codes, strict=True)):
                log_probs[row] += step.log_probs[i]
                gains[row] += 0.0 if step.gains is None else step.gains[i]
                if code is not None:
                    codes[row].append(code)
                    if step.index is not None:
                        index[row].append(step.index[i])
                reasons[row] = step.stop_reasons[i]
            if step.kept is not None:
                rows = [rows[i] for i in step.kept]
                reasons = ["dropped" if r is None and i not in rows else r for i, r in enumerate(reasons)]
            if on_frame is not None:
                on_frame(n)
        # With alignment <eos> is not drawn, and where there is no phone nothing is.
        drawn_end = 0 if self.config.alignment else 1
        drawn = [len(row) + drawn_end * (why == "eos") for row, why in zip(codes, reasons, strict=True)]
        n_drawn = torch.tensor(drawn, device=phonemes.device).clamp(min=1)
        return ARResult(
            [torch.tensor(row, dtype=torch.int64, device=phonemes.device) for row in codes],
            [reason for reason in reasons if reason is not None],
            torch.tensor(log_probs, device=phonemes.device) / n_drawn,
            [torch.tensor(row, dtype=torch.int64, device=phonemes.device) for row in index]
            if self.config.alignment
            else None,
            torch.tensor(gains, device=phonemes.device) / n_drawn if with_gains else None,
        )

    @torch.no_grad()
    def steps(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        prompt: Tensor,
        prompt_lens: Tensor,
        prompt_durations: Tensor | None = None,
        *,
        sampling: SamplingConfig,
        max_frames: int | Tensor,
        min_frames: int | Tensor = 0,
        generators: Sequence[torch.Generator] | None = None,
        with_gains: bool = False,
        text_starts: Tensor | None = None,
        candidates: int = 1,
        choose_after: int = 0,
    ) -> Iterator[ARStep]:
        """Speak a batch frame by frame, until every row has drawn ``<eos>`` or reached its limit.

        With alignment ``<eos>`` is never drawn: a row ends ("eos") when its pointer has passed the last phoneme, having
        begun at the first phone after the prompt.

        Args:
            phonemes: [B, S] of the prompt's transcript and then of the text.
            phoneme_lens: [B].
            prompt: [B, T'] codebook 1 of the prompt; T' may be 0.
            prompt_lens: [B].
            prompt_durations: [B, S] frames that each phoneme has in the prompt, prompt_lens in all; with alignment.
            sampling: how codes are drawn; with its guidance every row is read twice, the second time without phonemes.
            max_frames: most new frames, for all rows or [B].
            min_frames: ``<eos>`` is not drawn before so many new frames, for all rows or [B]; not with alignment.
            generators: one a row, fresh: a row then gives the same codes alone and in any batch. None: torch's own.
            with_gains: also tell how much likelier the phonemes made what was drawn; rows are then read twice too.
            text_starts: [B] the first symbol of the text, behind the prompt's transcript, for guidance by the voice.
            candidates: how often each row is spoken, for less than so many rows cost: what is spoken has B * candidates
                rows, those of a row one after the other, and as many generators.
            choose_after: after so many frames, of the candidates of a row that have not ended, only the best goes on:
                that with the highest gains, or without them the likeliest; 0: all of them to their ends.

        Raises:
            ValleError: min_frames above max_frames, max_frames below 1, or guidance of a model without text_dropout.
        """
        assert not self.training, "call eval() before generating: dropout is on"
        n_rows, device = len(phonemes) * candidates, phonemes.device
        most = _per_row(max_frames, len(phonemes), candidates)
        least = _per_row(0 if self.config.alignment else min_frames, len(phonemes), candidates)
        for low, high in zip(least, most, strict=True):
            if high < max(low, 1):
                raise ValleError(f"max_frames is {high}; it must be at least 1, and not below min_frames, {low}")
        generators = [torch.default_generator] * n_rows if generators is None else list(generators)
        assert len(generators) == n_rows, f"{len(generators)} generators for {n_rows} rows"

        pointer = None
        if self.config.alignment:
            assert prompt_durations is not None, "a model with alignment needs the durations of the prompt's phonemes"
            drawing = generators if sampling.temperature > 0 else None
            known = [_repeat(x, candidates) for x in (phonemes, phoneme_lens, prompt_durations)]
            pointer = Pointer(known[0], known[1], known[2], self.kinds, drawing)
        self.check_guidance(sampling.guidance)
        is_blind = sampling.guidance != 1 or with_gains
        assert not is_blind or self.config.text_dropout > 0, "gains are of a model that can go without phonemes"
        assert sampling.voice_guidance == 1 or text_starts is not None, "guidance by the voice needs text_starts"
        readings = Readings(
            phonemes, phoneme_lens, prompt, prompt_lens, prompt_durations, is_blind,
            text_starts if sampling.voice_guidance != 1 else None,
        )  # fmt: skip
        logits, state = self.prefill(
            *readings.inputs, max_frames=max(most), blind=readings.blind, candidates=candidates
        )  # [R * B, codebook_size + 1]
        earlier = _repeat(readings.begins, candidates)  # [R * B]
        recent = None
        if sampling.repetition_aware:
            recent = _repeat(_last_codes(prompt, prompt_lens, sampling.ras_window), candidates)
        earliest = torch.tensor(least, device=device)  # [B]
        reasons: list[StopReason | None] = [None] * n_rows
        qualities = [0.0] * n_rows
        for n in range(max(most)):
            guided = readings.guided(logits, sampling)  # [B, codebook_size + 1]
            if self.config.alignment:
                guided[:, self.eos_id] = -torch.inf
            elif n < max(least):
                guided[:, self.eos_id].masked_fill_(n < earliest, -torch.inf)
            tokens = sample(guided, sampling, generators, recent)  # [B]
            # Under the model's own distribution, before guidance and holding <eos> back.
            log_probs = log_probs_of(logits, torch.cat([tokens] * readings.n))  # [R * B]
            gains = (log_probs[:n_rows] - log_probs[n_rows : 2 * n_rows]).tolist() if is_blind else None  # [B]

            codes: list[int | None] = [None] * n_rows
            values = [0.0] * n_rows
            told_more = None if gains is None else [0.0] * n_rows
            index = None if pointer is None else list(pointer.index)
            moves = None if state.moves is None else _softmax(state.moves[:n_rows])  # [B][3]
            for i, (token, value) in enumerate(zip(tokens.tolist(), log_probs[:n_rows].tolist(), strict=True)):
                if reasons[i] is not None:
                    continue
                if token == self.eos_id or (pointer is not None and pointer.is_over(i)):
                    reasons[i] = "eos"
                    if pointer is not None:  # nothing was drawn
                        continue
                else:
                    codes[i] = token
                values[i] = value
                if told_more is not None and gains is not None:
                    told_more[i] = gains[i]
                if codes[i] is None:
                    continue
                if pointer is not None and moves is not None:
                    pointer.move(i, *moves[i])
                    reasons[i] = "eos" if pointer.is_over(i) else None
                if reasons[i] is None and n + 1 == most[i]:
                    reasons[i] = "max_frames"
            kept = None
            if n < choose_after:
                qualities = [a + b for a, b in zip(qualities, told_more or values, strict=True)]
                if n + 1 == choose_after and candidates > 1 and None in reasons:
                    kept = _best(qualities, reasons, candidates)
            yield ARStep(codes, values, list(reasons), index, told_more, kept)
            if None not in reasons:
                return
            if kept is not None:
                self._keep(kept, state, readings.n, candidates)
                n_rows, candidates = len(kept), 1
                tokens, earlier = tokens[kept], earlier.view(readings.n, -1)[:, kept].flatten()
                recent = None if recent is None else recent[kept]
                earliest = earliest[kept]
                most, reasons = [most[i] for i in kept], [reasons[i] for i in kept]
                generators = [generators[i] for i in kept]
                if pointer is not None:
                    pointer.keep(kept)
            if recent is not None:
                recent = torch.cat([recent[:, 1:], tokens.unsqueeze(1)], dim=1)
            # Rows that have ended are carried along; nobody reads them.
            tokens = torch.cat([tokens] * readings.n)
            if pointer is None:
                logits = self.decode(tokens, state)
            else:
                places = torch.tensor([pointer.index * readings.n, pointer.age * readings.n], device=device)
                logits = self.decode(tokens, state, places[0] - earlier, places[1])

    @staticmethod
    def _keep(rows: list[int], state: ARState, n_readings: int, candidates: int) -> None:
        """Of B * candidates rows, each read in several ways, only these [B] go on."""
        device = state.positions.device
        kept = torch.tensor(rows, device=device)  # [B]
        state.decoder.keep((kept % candidates).repeat(n_readings))
        all_rows = (kept + torch.arange(n_readings, device=device).unsqueeze(1) * (len(rows) * candidates)).flatten()
        state.positions = state.positions[all_rows]
        state.context, state.moves, state.blind = (
            None if x is None else x[all_rows] for x in (state.context, state.moves, state.blind)
        )
        state.pasts = None if state.pasts is None else [past[all_rows] for past in state.pasts]

    def prefill(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        prompt: Tensor,
        prompt_lens: Tensor,
        prompt_durations: Tensor | None = None,
        *,
        max_frames: int,
        blind: Tensor | None = None,
        candidates: int = 1,
    ) -> tuple[Tensor, ARState]:
        """Read phonemes and prompt, with arguments as for ``steps``; where ``blind`` [B] bool, the prompt alone.

        Returns:
            logits [B * candidates, codebook_size + 1] float32 of the first new code, and the state for up to
            ``max_frames`` of them.
        """
        x, text_lens = self._embed(phonemes, phoneme_lens, prompt, prompt_lens, blind)  # [B, S + 1 + T', D]
        context = None
        if self.config.alignment:
            assert prompt_durations is not None, "a model with alignment needs the durations of the prompt's phonemes"
            context = self.context(phonemes, phoneme_lens)  # [B, S + 1, D]
            index = frame_index(prompt_durations, phoneme_lens, prompt.shape[1] + 1)  # [B, T' + 1]
            age = frame_age(prompt_durations, phoneme_lens, index)
            is_new = torch.arange(index.shape[1], device=x.device) == prompt_lens.unsqueeze(1)  # [B, T' + 1]
            first = first_symbol(phonemes, phoneme_lens, prompt_durations, self.kinds)  # [B]
            index = torch.where(is_new, first.unsqueeze(1), index)
            x = x + self._guide(context, index, age.masked_fill(is_new, 0), text_lens, blind)
        lens = text_lens + prompt_lens  # [B]
        longest = int(lens.max())
        columns = self._code_columns(text_lens, prompt.shape[1] + 1, x.shape[1])
        x, local, pasts = self._add_local(x, columns, prompt_lens + 1)
        if local is not None:
            local = local[torch.arange(len(x), device=x.device), prompt_lens]  # [B, D] at the place of the first code
        x = x[:, :longest]
        outputs: list[nn.Module] = [self.output_emb or self.code_emb, *([self.move] if self.config.alignment else [])]
        convolutions = self.local if self.config.local_layers else None
        in_frames = can_run(self.transformer, convolutions, outputs)
        cache: KVCache | Columns
        if in_frames and self.config.phoneme_attention == "causal" and can_read(self.transformer, x):
            h, cache = read(self.transformer, x, causal=True)  # [B, longest, D]
        else:
            cache = KVCache(self.config.transformer, len(x), longest, like=x)
            h = self._transform(x, text_lens, cache)  # [B, longest, D]
        h = h[torch.arange(len(x), device=x.device), lens - 1]  # [B, D]
        positions = prompt_lens
        if candidates > 1:
            h, positions = _repeat(h, candidates), _repeat(positions, candidates)
            local, context, blind = (None if x is None else _repeat(x, candidates) for x in (local, context, blind))
            pasts = None if pasts is None else [_repeat(past, candidates) for past in pasts]
        decoder: Decoder | Frames | GraphDecoder
        if in_frames:
            read_so_far = cache if isinstance(cache, Columns) else Columns.of(cache)
            decoder = Frames(
                self.transformer, read_so_far, lens, max_frames, candidates,
                local=convolutions, pasts=pasts or (), outputs=outputs,
            )  # fmt: skip
            pasts = None
        elif isinstance(cache, KVCache) and self.transformer.graph_dtype is not None:
            decoder = GraphDecoder(self.transformer, cache, lens, max_frames, candidates, self.transformer.graph_dtype)
        else:
            assert isinstance(cache, KVCache), "only frames go on from columns"
            mask = padding_mask(lens, longest) if bool((lens < longest).any()) else None  # [B, longest]
            decoder = Decoder(self.transformer, cache, max_frames, candidates, mask)
        state = ARState(decoder, positions, prompt.shape[1] + max_frames, context, pasts=pasts, blind=blind)
        return self._foretell(h, local, state), state

    def decode(self, codes: Tensor, state: ARState, index: Tensor | None = None, age: Tensor | None = None) -> Tensor:
        """Read one more code of each row and advance ``state``.

        Args:
            codes: [B].
            state: what ``prefill`` returned.
            index: [B] with alignment, the symbol that the frame after this code belongs to.
            age: [B] with alignment, how many frames of this symbol come before it.

        Returns:
            logits [B, codebook_size + 1] float32 of the code after it.
        """
        x = self.code_emb(codes) + F.embedding(state.positions, self.positions(state.max_position))  # [B, D]
        if state.context is not None:
            assert index is not None, "a model with alignment needs the symbol of the next frame"
            assert age is not None, "a model with alignment needs the age of the next frame"
            told = self._place(state.context, index.unsqueeze(1), age.unsqueeze(1)).squeeze(1)  # [B, D]
            x = x + (told if state.blind is None else told.masked_fill(state.blind.unsqueeze(1), 0))
        if isinstance(state.decoder, Frames):
            state.positions = state.positions + 1
            logits, *moves = state.decoder.step(x)
            state.moves = moves[0] if moves else None
            return logits
        local = None
        if state.pasts is not None:
            local = self.local.step(x, state.pasts)  # [B, D]
            x = x + local * self.local.scale
        state.positions = state.positions + 1
        return self._foretell(state.decoder.step(x), local, state)

    def _foretell(self, h: Tensor, local: Tensor | None, state: ARState) -> Tensor:
        """h [B, D] -> logits [B, codebook_size + 1] float32 of the next code; those of the moves go into ``state``.

        ``local`` [B, D] is what the convolutions found, where there are any.
        """
        if local is not None:
            h = h + self.local.out(local)
        if self.config.alignment:
            state.moves = self.move(h).float()
        return self._logits(h).float()

    # What both share

    def _embed(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        codes: Tensor,
        code_lens: Tensor,
        blind: Tensor | None = None,
        length: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Packed rows ``phonemes <eos> codes padding`` [B, L, D], and in which column their codes begin [B].

        L is ``length``, which no row is longer than, or else S + 1 + T. Where ``blind`` [B] bool, all phonemes are
        <eos>.
        """
        n_text = phonemes.shape[1] + 1
        n_all = n_text + codes.shape[1]
        length = n_all if length is None else length
        # Padding becomes a valid token, whatever the caller put there; where the phonemes end, that is their <eos>.
        text = F.pad(phonemes, (0, 1)).where(padding_mask(phoneme_lens, n_text), self.phoneme_eos_id)  # [B, S + 1]
        if blind is not None:
            text = text.masked_fill(blind.unsqueeze(1), self.phoneme_eos_id)
        codes = codes.where(padding_mask(code_lens, codes.shape[1]), self.eos_id)  # [B, T]
        text_lens = phoneme_lens + 1

        column = torch.arange(length, device=phonemes.device)
        begin = text_lens.unsqueeze(1)
        is_text = column < begin  # [B, L]
        source = torch.where(is_text, column, column + n_text - begin).clamp(max=n_all - 1)
        position = torch.where(is_text, column, column - begin)
        # One look-up in the two tables, codes numbered after the phonemes.
        ids = torch.cat([text, codes + self.phoneme_emb.num_embeddings], dim=1).gather(1, source)
        tables = torch.cat([self.phoneme_emb.weight, self.code_emb.weight])
        x = F.embedding(ids, tables) + F.embedding(position, self.positions(length))
        return x, text_lens

    def _guide(
        self,
        context: Tensor,
        index: Tensor,
        age: Tensor,
        text_lens: Tensor,
        blind: Tensor | None = None,
        length: int | None = None,
    ) -> Tensor:
        """What the places that foretell frames are told of them, in packed rows: [B, L, D] as ``_embed``, 0 elsewhere.

        context [B, S + 1, D]; index and age [B, T + 1] of each frame and of the end; text_lens [B]; blind [B] bool,
        rows that are told nothing.
        """
        n_frames = index.shape[1]
        length = context.shape[1] + n_frames - 1 if length is None else length
        column = torch.arange(length, device=index.device)  # [L]
        t = column - text_lens.unsqueeze(1) + 1  # [B, L]; the phonemes' <eos> foretells frame 0
        frame = t.clamp(0, n_frames - 1)
        is_silent = t < 0 if blind is None else (t < 0) | blind.unsqueeze(1)
        return self._place(context, index.gather(1, frame), age.gather(1, frame)).masked_fill(
            is_silent.unsqueeze(-1), 0
        )

    def _place(self, context: Tensor, index: Tensor, age: Tensor) -> Tensor:
        """context [B, S + 1, D], index and age [B, T] of frames -> [B, T, D]."""
        return look_up(context, index) + self.age_emb(age.clamp(max=N_AGES - 1))  # type: ignore[no-any-return]

    def _code_columns(self, text_lens: Tensor, n: int, length: int) -> Tensor:
        """Where the first n codes are foretold in packed rows of ``length``, ready for ``gather``: [B, n, D]."""
        t = torch.arange(n, device=text_lens.device)
        columns = (text_lens.unsqueeze(1) - 1 + t).clamp(max=length - 1)  # [B, n]
        return columns.unsqueeze(-1).expand(-1, -1, self.config.transformer.dim)

    def _add_local(
        self, x: Tensor, columns: Tensor, lens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, list[Tensor] | None]:
        """Add to packed rows x what convolutions over ``columns`` find; also that [B, n, D], and their pasts.

        ``lens`` [B]: after how many of the columns ``decode`` goes on.
        """
        if not self.config.local_layers:
            return x, None, None
        local, pasts = self.local(x.gather(1, columns), lens)  # [B, n, D]
        return x.scatter_add(1, columns, (local * self.local.scale).to(x.dtype)), local, pasts

    def _transform(self, x: Tensor, text_lens: Tensor, cache: KVCache | None = None) -> Tensor:
        if self.config.phoneme_attention == "causal":
            return self.transformer(x, causal=True, cache=cache)  # type: ignore[no-any-return]
        column = torch.arange(x.shape[1], device=x.device)
        mask = (column <= column.unsqueeze(1)) | (column < text_lens.view(-1, 1, 1))  # [B, L, L]
        return self.transformer(x, mask=mask.unsqueeze(1), cache=cache)  # type: ignore[no-any-return]

    def _logits(self, h: Tensor) -> Tensor:
        """h [..., D] -> [..., codebook_size + 1]."""
        return (self.output_emb or self.code_emb).scores(h)


def _repeat(x: Tensor, n: int) -> Tensor:
    """Each row n times: x [B, ...] -> [B * n, ...]."""
    return x.repeat_interleave(n, dim=0)


def _softmax(logits: Tensor) -> list[list[float]]:
    """logits [B, 3] -> probabilities [B][3]; so few numbers are not worth a call that wakes torch's threads."""
    rows = []
    for row in logits.tolist():
        largest = max(row)
        exponentials = [math.exp(x - largest) for x in row]
        total = sum(exponentials)
        rows.append([x / total for x in exponentials])
    return rows


def _best(qualities: list[float], reasons: Sequence[StopReason | None], candidates: int) -> list[int]:
    """The best row of each ``candidates`` that has not ended; where all have, any."""
    return [
        max(range(first, first + candidates), key=lambda row: (reasons[row] is None, qualities[row]))
        for first in range(0, len(qualities), candidates)
    ]


def _per_row(value: int | Tensor, n_rows: int, candidates: int) -> list[int]:
    values: list[int] = [value] * n_rows if isinstance(value, int) else value.tolist()
    return [value for value in values for _ in range(candidates)]


def _last_codes(prompt: Tensor, prompt_lens: Tensor, n: int) -> Tensor:
    """The last n codes of each prompt, [B, n]; -1 on the left of shorter ones."""
    index = prompt_lens.unsqueeze(1) - n + torch.arange(n, device=prompt.device)  # [B, n]
    return F.pad(prompt, (0, 1)).gather(1, index.clamp(min=0)).where(index >= 0, -1)
