"""The non-autoregressive model: codebook 1 in, codebooks 2 to 8 out, one pass each (paper §4.2.2).

One transformer looks in both directions over ``[phonemes, prompt, target]``; each of the three has positions of its
own, counted from 0. There are 8 acoustic embedding tables, one a codebook. A frame of the prompt is the sum of its 8
embeddings; a frame of the target, at stage j, the sum of those of codebooks 1 to j - 1, all that is known by then. (So
the two can be told apart: codebook 8 is in every frame of the prompt and in none of the target.) The stage, which is
the number of the codebook to be predicted, enters through adaptive layer norms, and the output layer of stage j is the
embedding table of codebook j.

Training draws a stage and prompts for each step (``draw_stage``, ``draw_prompt``); the loss is on the target alone.
Without prompt (T' = 0) or without phonemes (S = 0) this is the model of the paper's ablations.

Departures, all off by default: ``alignment`` tells every frame its phoneme (``valle.model.alignment``),
``prompt_summary`` the mean of the prompt; ``one_pass`` runs the transformer once for all stages, ``local_layers`` puts
convolutions beside it, ``prompt_heads`` a look-up in the prompt, and ``codebook_dim`` has it foretell what the codes
add up to as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.codec.quantizer import nearest
from valle.config import from_dict, to_dict
from valle.errors import ValleError
from valle.model.alignment import PhonemeContext, frame_index, look_up
from valle.model.frame_layers import FrameHead, LocalContext, PromptLookUp
from valle.model.retrieval import OTHER_PHONEME_WEIGHT, cheapest_path, frame_distances
from valle.model.transformer import (
    IGNORE_INDEX,
    Embedding,
    SinusoidalPositions,
    Transformer,
    TransformerConfig,
    code_vectors,
    padding_mask,
    token_loss,
)


@dataclass(frozen=True)
class NARConfig:
    """The NAR model; the defaults are the paper's."""

    n_phonemes: int
    """Size of the phoneme inventory."""
    codebook_size: int = 1024
    """Entries of each codebook."""
    n_quantizers: int = 8
    """Codebooks; the stages are 2 to n_quantizers."""
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    """The transformer's size."""
    tie_weights: bool = True
    """The output layer of stage j is the embedding of codebook j, as in the paper; False gives it its own weights."""
    prompts: Literal["both", "phonemes", "none"] = "both"
    """What is read besides the codes of the target: phonemes and the acoustic prompt, phonemes alone, or neither. The
    latter two are the paper's ablations (§5.3)."""
    prompt_frames: int = 225
    """Length of the prompts drawn in training, 3 s; an utterance shorter than two of them gives half of itself."""
    prompt_mode: Literal["segment", "prefix"] = "segment"
    """What training takes as prompt, see draw_prompt: any segment (the paper), or the beginning (VALL-E 2)."""
    alignment: bool = False
    """Tell every frame its phoneme (``valle.model.alignment``); the paper does not."""
    prompt_summary: bool = False
    """Add the mean of the prompt to every frame of the target: a voice in one vector, which is learnt sooner than where
    to look for it; the paper does not."""
    stage_weights: tuple[float, ...] = ()
    """How often training draws each of the stages, relative to the others (with ``one_pass``, how much each counts);
    empty: all equally (the paper)."""
    one_pass: bool = False
    """Run the transformer once, at stage 2, and go from codebook to codebook by a small network within each frame. All
    stages then learn at every step, where the paper's learn in turns, and speaking takes one pass in place of seven."""

    local_layers: int = 0
    """Convolutions (7 frames each) that read the target before the transformer and pass on to the output beside it;
    0: none (the paper). What a code lost in rounding stands in its neighbours', and attention finds that out slowly."""
    prompt_heads: int = 0
    """Heads of an attention that only looks up which frames of the prompt are like a frame of the target, and what they
    hold (``PromptLookUp``), before the transformer and passed on beside it; 0: none (the paper). Needs
    ``local_layers``."""
    prompt_dropout: float = 0.0
    """Share of the rows in training that get no prompt, so that speaking can be guided by what the prompt changes; the
    paper has none."""
    codebook_dim: int = 0
    """With ``one_pass``: width of the codec's vectors, to foretell as well what codebooks 2 to 8 add up to; 0: off. The
    error of a sum teaches more than whether each of seven codes was hit."""
    vector_weight: float = 1.0
    """Weight of that error, a share of what there is to be foretold, in the training loss."""
    complete_by: Literal["codes", "vectors", "prompt"] = "codes"
    """How a model with ``codebook_dim`` speaks: by the likeliest code of each stage, or by the codes that the codec's
    quantiser finds for the vector foretold; "prompt" first adds to it what the model misses at a similar frame of the
    prompt (``valle.model.retrieval``)."""

    def __post_init__(self) -> None:
        if self.codebook_dim < 0 or self.local_layers < 0 or self.vector_weight < 0:
            raise ValleError("codebook_dim, local_layers and vector_weight must be at least 0")
        if self.prompt_heads < 0 or (self.prompt_heads and self.transformer.dim % self.prompt_heads):
            raise ValleError(
                f"prompt_heads is {self.prompt_heads}; it must be 0 (none) or divide dim, {self.transformer.dim}"
            )
        if self.prompt_heads and not (self.local_layers and self.one_pass):
            raise ValleError(
                "prompt_heads compares what convolutions made of codebook 1; set one_pass = true and local_layers, of "
                "which 2 are usual"
            )
        if self.prompt_heads and self.complete_by == "prompt":
            raise ValleError(
                'complete_by = "prompt" needs what the model misses in the prompt, but one with prompt_heads finds '
                'that in the prompt itself; leave complete_by "codes"'
            )
        if not 0 <= self.prompt_dropout < 1:
            raise ValleError(f"prompt_dropout is {self.prompt_dropout}; it must be at least 0 (off) and below 1")
        if self.prompts != "both" and (self.prompt_summary or self.prompt_heads or self.complete_by == "prompt"):
            raise ValleError(
                f'prompts = "{self.prompts}" leaves the acoustic prompt out, which prompt_summary, prompt_heads and '
                'complete_by = "prompt" read; leave these out too'
            )
        if self.prompts == "none" and self.alignment:
            raise ValleError('prompts = "none" leaves the phonemes out, which alignment reads; set alignment = false')
        if self.codebook_dim and not self.one_pass:
            raise ValleError("codebook_dim is for a NAR with one_pass = true; leave it 0 or set one_pass")
        if self.complete_by != "codes" and not self.codebook_dim:
            raise ValleError(
                f'complete_by = "{self.complete_by}" needs codebook_dim, the width of the codec\'s vectors'
            )
        if self.n_phonemes < 1 or self.codebook_size < 1:
            raise ValleError(f"n_phonemes {self.n_phonemes} and codebook_size {self.codebook_size} must be at least 1")
        if self.n_quantizers < 2:
            raise ValleError(
                f"n_quantizers is {self.n_quantizers}; it must be at least 2: the NAR predicts all but one"
            )
        if self.prompt_frames < 0:
            raise ValleError(f"prompt_frames is {self.prompt_frames}; it must be 0 (no prompt) or more, 225 are 3 s")
        weights = self.stage_weights
        if weights and (len(weights) != self.n_quantizers - 1 or min(weights) < 0 or not 0 < sum(weights) < math.inf):
            raise ValleError(
                f"stage_weights is {list(weights)}; it must be empty or hold {self.n_quantizers - 1} numbers, one a "
                "stage, none below 0 and not all 0"
            )


class NARBatch(NamedTuple):
    """A padded batch; what stands in the padding does not matter."""

    phonemes: Tensor  # [B, S] int64
    phoneme_lens: Tensor  # [B] int64
    codes: Tensor  # [B, K, T] int64, the target
    code_lens: Tensor  # [B] int64
    prompt_codes: Tensor  # [B, K, T'] int64
    prompt_lens: Tensor  # [B] int64
    in_loss: Tensor  # [B, T] bool, the frames of the target that are in the loss
    # NOTE a field hides the tuple's method of that name.
    index: Tensor | None = None  # type: ignore[assignment]  # [B, T] int64, with alignment: the place of its phoneme
    prompt_index: Tensor | None = None  # [B, T'] int64, likewise of the prompt
    max_places: int | None = None  # most phonemes and frames of a row; None: not known, S + T' + T are computed

    def to(self, device: str | torch.device) -> NARBatch:
        """The same batch on another device."""
        tensors = {k: x for k, x in self._asdict().items() if isinstance(x, Tensor)}
        moved: dict[str, Any] = {k: x.to(device, non_blocking=True) for k, x in tensors.items()}
        return self._replace(**moved)


class AllStages(NamedTuple):
    """What a NAR with ``one_pass`` says of a batch."""

    logits: list[Tensor]  # of each stage [B, T, codebook_size]
    vectors: Tensor | None  # [B, T, codebook_dim] float32, what codebooks 2 to 8 add up to


class _Known(NamedTuple):
    """What is the same at all stages."""

    x: Tensor  # [B, S + T', D] phonemes and prompt
    added: Tensor | None  # [B, T, D] or [B, 1, D], what is added to the target
    is_target: Tensor  # [B, T] bool
    mask: Tensor  # [B, 1, 1, L] bool
    order: Tensor | None  # [B, L] int64, the columns of S + T' + T that rows without gaps hold; None: all as they are
    columns: Tensor | None  # [B, T] int64, where in such rows the target is
    memory: tuple[Tensor, Tensor, Tensor] | None  # with prompt_heads, of the prompt


class NAR(nn.Module):
    """Phonemes, a prompt and codebooks 1 to ``stage`` - 1 in, codebook ``stage`` out."""

    codebooks: Tensor

    def __init__(self, config: NARConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.dim
        self.phoneme_emb = Embedding(config.n_phonemes, dim)
        # All tables in one, codebook after codebook: one look-up for a sum, and no parameter idle at any stage.
        self.code_emb = Embedding(config.n_quantizers * config.codebook_size, dim)
        self.stage_emb = Embedding(len(self.stages), dim)
        self.positions = SinusoidalPositions(dim)
        self.transformer = Transformer(config.transformer, adaptive=True)
        # No second name for tied weights: a checkpoint then holds them once.
        self.output_emb = None if config.tie_weights else Embedding(len(self.stages) * config.codebook_size, dim)
        if config.alignment:
            self.context = PhonemeContext(config.n_phonemes, dim)
        if config.prompt_summary:
            self.summary = nn.Linear(dim, dim, bias=False)  # no prompt, nothing added
            nn.init.normal_(self.summary.weight, std=dim**-0.5)
        if config.local_layers:
            self.local = LocalContext(dim, config.local_layers)
        if config.prompt_heads:
            self.look_up = PromptLookUp(dim, config.prompt_heads)
        if config.one_pass:
            self.heads = nn.ModuleList(FrameHead(dim) for _ in self.stages)
        if config.codebook_dim:
            self.vector = nn.Linear(dim, config.codebook_dim)
            nn.init.normal_(self.vector.weight, std=dim**-0.5)
            nn.init.zeros_(self.vector.bias)
            # The codec's own, a part of the checkpoint: what is foretold is measured in its space.
            shape = (config.n_quantizers, config.codebook_size, config.codebook_dim)
            self.register_buffer("codebooks", torch.zeros(shape))

    @classmethod
    def from_config(cls, values: dict[str, Any]) -> NAR:
        """A model with random weights from what ``config_dict`` returned."""
        return cls(from_dict(NARConfig, values, "the NAR model's configuration"))

    def config_dict(self) -> dict[str, Any]:
        """The configuration, ready for JSON."""
        return to_dict(self.config)

    @property
    def n_parameters(self) -> int:
        """Trainable numbers, tied ones counted once."""
        return sum(p.numel() for p in self.parameters())

    @property
    def stages(self) -> range:
        """The codebooks that are predicted: 2 to ``n_quantizers``."""
        return range(2, self.config.n_quantizers + 1)

    @torch.no_grad()
    def begin_with(self, codebooks: Tensor) -> None:
        """Take a codec's codebooks [K, codebook_size, d] as embeddings to begin with (``code_vectors``)."""
        vectors = code_vectors(codebooks, self.config.transformer.dim)  # [K, codebook_size, D]
        self.code_emb.weight.copy_(vectors.flatten(0, 1))
        if self.output_emb is not None:
            self.output_emb.weight.copy_(vectors[1:].flatten(0, 1))

    @torch.no_grad()
    def set_codebooks(self, codebooks: Tensor) -> None:
        """Tell a model with ``codebook_dim`` the codec's codebooks [K, codebook_size, d], the space of its vectors.

        Raises:
            ValleError: their vectors are not of that width.
        """
        if codebooks.shape[2] != self.config.codebook_dim:
            raise ValleError(
                f"the codec's vectors have {codebooks.shape[2]} numbers; set codebook_dim to that, it is "
                f"{self.config.codebook_dim}"
            )
        self.codebooks.copy_(codebooks)

    def check_guidance(self, guidance: float) -> None:
        """
        Raises:
            ValleError: this model cannot be guided by the prompt.
        """
        if guidance == 1:
            return
        if self.config.complete_by != "codes":
            raise ValleError(
                f"nar_guidance is {guidance:g}, but this NAR completes by {self.config.complete_by}, not by codes; "
                "leave nar_guidance 1"
            )
        if self.config.prompt_dropout == 0:
            raise ValleError(
                f"nar_guidance is {guidance:g}, but this NAR has not learnt to go without a prompt; leave nar_guidance "
                "1, or train it with prompt_dropout"
            )

    def forward(self, batch: NARBatch, stage: int) -> Tensor:
        """logits [B, T, codebook_size] of codebook ``stage`` (2 to 8), from the codebooks before it alone."""
        return self._predict(self._read(batch), batch.codes, stage)

    def all_stages(self, batch: NARBatch) -> AllStages:
        """With ``one_pass``, what ``forward`` returns at every stage, for the price of little more than one."""
        assert self.config.one_pass, "only a model with one_pass predicts all stages at once"
        h = self._transform(self._read(batch), batch.codes, 2)  # [B, T, D]
        logits = [self._logits(h, batch.codes, stage) for stage in self.stages]
        return AllStages(logits, self._vectors(h) if self.config.codebook_dim else None)

    def _vectors(self, h: Tensor) -> Tensor:
        """h [B, T, D] -> what codebooks 2 to 8 are thought to add up to, [B, T, codebook_dim] float32."""
        return self.vector(h).float() * self._rms()  # type: ignore[no-any-return]

    def _rms(self) -> Tensor:
        """Root mean square of one number of that sum, as if the codebooks knew nothing of each other: scalar."""
        later = self.codebooks[1:]  # [K - 1, C, d]
        return (later - later.mean(dim=1, keepdim=True)).square().mean(dim=1).sum(dim=0).mean().sqrt()

    def vector_loss(self, vectors: Tensor, batch: NARBatch) -> Tensor:
        """Mean square error of ``AllStages.vectors`` over ``batch.in_loss``, as a share of the square of the sum."""
        truth = self._look_up(batch.codes[:, 1:], self.codebooks[1:])  # [B, T, d]
        error = (vectors - truth).square().mean(dim=-1)  # [B, T]
        return (error * batch.in_loss).sum() / batch.in_loss.sum().clamp(min=1) / self._rms().square()

    @staticmethod
    def _look_up(codes: Tensor, codebooks: Tensor) -> Tensor:
        """codes [B, k, T], codebooks [k, C, d] -> the sum of their entries [B, T, d]."""
        size = codebooks.shape[1]
        entries = [F.embedding(c.clamp(0, size - 1), e) for c, e in zip(codes.unbind(1), codebooks, strict=True)]
        return torch.stack(entries).sum(0)

    def _quantise(self, vectors: Tensor) -> Tensor:
        """vectors [B, T, d], what codebooks 2 to 8 shall add up to -> codes [B, K - 1, T], as the codec would do it."""
        codes = []
        for entries in self.codebooks[1:]:
            ids = nearest(vectors.flatten(0, 1), entries).view(vectors.shape[:2])  # [B, T]
            vectors = vectors - F.embedding(ids, entries)
            codes.append(ids)
        return torch.stack(codes, dim=1)

    @torch.no_grad()
    def foretell_prompt(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        prompt: Tensor,
        prompt_lens: Tensor,
        prompt_index: Tensor | None = None,
    ) -> Tensor:
        """What this model thinks that a prompt's codebooks 2 to 8 add up to, from its codebook 1: [B, T', d] float32.

        Args:
            phonemes: [B, S] of its transcript, and of nothing else.
            phoneme_lens, prompt, prompt_lens, prompt_index: as for ``generate``.
        """
        assert self.completes_by_prompt, "the others have no use for it"
        codes, is_prompt = prompt[:, :1], padding_mask(prompt_lens, prompt.shape[2])
        batch = NARBatch(
            phonemes, phoneme_lens, codes, prompt_lens, prompt, prompt_lens, is_prompt, prompt_index, prompt_index
        )
        return self._foretell_prompt(batch)

    @property
    def completes_by_prompt(self) -> bool:
        """Whether what it misses at the prompt's own frames helps it to complete others."""
        return self.config.one_pass and self.config.complete_by == "prompt"

    def _foretell_prompt(self, batch: NARBatch) -> Tensor:
        is_prompt = padding_mask(batch.prompt_lens, batch.prompt_codes.shape[2])
        again = batch._replace(
            codes=batch.prompt_codes[:, :1], code_lens=batch.prompt_lens, in_loss=is_prompt, index=batch.prompt_index
        )
        return self._vectors(self._transform(self._read(again), again.codes, 2))

    def _missed(self, vectors: Tensor, batch: NARBatch, foretold: Tensor) -> Tensor:
        """What was foretold too little at the prompt's frames most like those of the target; as ``vectors`` [B, T, d].

        ``foretold`` [B, T', d]: what the prompt's own codebooks 2 to 8 were thought to add up to.
        """
        prompt, lens, index = batch.prompt_codes, batch.prompt_lens, batch.prompt_index
        missed = self._look_up(prompt[:, 1:], self.codebooks[1:]) - foretold  # [B, T', d]
        firsts = [self._look_up(codes[:, :1], self.codebooks[:1]) for codes in (batch.codes, prompt)]
        found = torch.zeros_like(vectors)
        for i, (n, m) in enumerate(zip(batch.code_lens.tolist(), lens.tolist(), strict=True)):
            if not n or not m:
                continue
            phonemes: list[Tensor | None] = [None, None]
            if batch.index is not None and index is not None:
                padded = F.pad(batch.phonemes[i], (0, 1), value=-1)  # past the end is no phoneme
                phonemes = [padded[batch.index[i, :n]], padded[index[i, :m]]]
            distances = frame_distances(
                firsts[0][i, :n], vectors[i, :n], phonemes[0], firsts[1][i, :m], foretold[i, :m], phonemes[1]
            )
            path = cheapest_path(distances)  # [T]
            found[i, :n] = missed[i, path]
            if phonemes[0] is not None and phonemes[1] is not None:
                is_other = (phonemes[0] != phonemes[1][path]).unsqueeze(1)  # [T, 1]
                found[i, :n] *= torch.where(is_other, OTHER_PHONEME_WEIGHT, 1.0)
        return found

    def _read(self, batch: NARBatch) -> _Known:
        """Phonemes and prompt, and what the target is told besides its codes."""
        n_quantizers = batch.prompt_codes.shape[1]
        assert n_quantizers == self.config.n_quantizers, f"the prompt has {n_quantizers} codebooks, not all"
        is_phoneme = padding_mask(batch.phoneme_lens, batch.phonemes.shape[1])  # [B, S]
        is_prompt = padding_mask(batch.prompt_lens, batch.prompt_codes.shape[2])  # [B, T']
        is_target = padding_mask(batch.code_lens, batch.codes.shape[2])  # [B, T]
        is_phoneme &= self.config.prompts != "none"
        is_prompt &= self.config.prompts == "both"
        if self.training and self.config.prompt_dropout > 0:
            is_prompt &= torch.rand(len(is_prompt), 1, device=is_prompt.device) >= self.config.prompt_dropout
        text = self.phoneme_emb(batch.phonemes.where(is_phoneme, 0))  # [B, S, D]
        prompt = self._sum_embeddings(batch.prompt_codes, is_prompt)  # [B, T', D]
        contents, firsts = prompt, None
        if self.config.prompt_heads:
            firsts = self._sum_embeddings(batch.prompt_codes[:, :1], is_prompt)  # [B, T', D]
        added: Tensor | None = None
        if self.config.prompt_summary:
            total = prompt.masked_fill(~is_prompt.unsqueeze(-1), 0).sum(dim=1, keepdim=True)  # [B, 1, D]
            added = self.summary(total / batch.prompt_lens.clamp(min=1).view(-1, 1, 1))  # [B, 1, D]
            firsts = None if firsts is None else firsts + added
        if self.config.alignment:
            assert batch.index is not None, "a model with alignment needs the phonemes of frames"
            assert batch.prompt_index is not None, "a model with alignment needs the phonemes of the prompt"
            context = self.context(batch.phonemes, batch.phoneme_lens)  # [B, S + 1, D]
            told = look_up(context, batch.prompt_index.where(is_prompt, 0))  # [B, T', D]
            prompt = prompt + told
            firsts = None if firsts is None else firsts + told
            told = look_up(context, batch.index.where(is_target, 0))  # [B, T, D]
            added = told if added is None else told + added
        x = torch.cat([part + self.positions(part.shape[1]) for part in (text, prompt)], dim=1)  # [B, S + T', D]
        mask = torch.cat([is_phoneme, is_prompt, is_target], dim=1)  # [B, S + T' + T]
        memory = None
        if firsts is not None:
            memory = self.look_up.remember(self.local(firsts, is_prompt), contents, is_prompt)
        order = columns = None
        if batch.max_places is not None:
            order = torch.argsort(mask, dim=1, descending=True, stable=True)[:, : batch.max_places]  # [B, L]
            t = torch.arange(is_target.shape[1], device=mask.device)
            columns = (mask[:, : x.shape[1]].sum(dim=1, keepdim=True) + t).clamp(max=batch.max_places - 1)  # [B, T]
            mask = mask.gather(1, order)
        return _Known(x, added, is_target, mask[:, None, None], order, columns, memory)

    def _predict(self, known: _Known, codes: Tensor, stage: int) -> Tensor:
        """codes [B, k, T], of which those before ``stage`` are read -> logits [B, T, codebook_size]."""
        assert stage in self.stages, f"stage is {stage}; this model predicts {self.stages}"
        return self._logits(self._transform(known, codes, 2 if self.config.one_pass else stage), codes, stage)

    def _transform(self, known: _Known, codes: Tensor, stage: int) -> Tensor:
        """codes [B, k, T], of which those before ``stage`` are read -> what is thought of the target, [B, T, D]."""
        n_target = codes.shape[2]
        target = self._sum_embeddings(codes[:, : stage - 1], known.is_target)  # [B, T, D]
        if known.added is not None:
            target = target + known.added
        local = None
        if self.config.local_layers:
            local = self.local(target, known.is_target)  # [B, T, D]
            target = target + local * self.local.scale
        found = None
        if known.memory is not None:
            found = self.look_up(local, known.memory)  # [B, T, D]
            target = target + found * self.look_up.scale
        x = torch.cat([known.x, target + self.positions(n_target)], dim=1)  # [B, S + T' + T, D]
        if known.order is not None:
            x = _columns(x, known.order)  # [B, L, D]
        h: Tensor = self.transformer(x, mask=known.mask, condition=self.stage_emb.weight[stage - 2])
        h = h[:, x.shape[1] - n_target :] if known.columns is None else _columns(h, known.columns)  # [B, T, D]
        h = h if local is None else h + self.local.out(local)
        return h if found is None else h + self.look_up.out(found)

    def _logits(self, h: Tensor, codes: Tensor, stage: int) -> Tensor:
        """h [B, T, D] -> logits [B, T, codebook_size] of a stage."""
        if self.config.one_pass:
            size = self.config.codebook_size
            known = torch.zeros_like(h)
            for k in range(1, stage - 1):  # codebook 1 is in h
                known = known + F.embedding(codes[:, k].clamp(0, size - 1) + k * size, self.code_emb.weight)
            h = self.heads[stage - 2](h, known)
        return F.linear(h, self.output_weight(stage))

    def output_weight(self, stage: int) -> Tensor:
        """The output layer of a stage, [codebook_size, D]; when tied, the embedding table of codebook ``stage``."""
        size = self.config.codebook_size
        if self.output_emb is None:
            return self.code_emb.weight[(stage - 1) * size : stage * size]
        return self.output_emb.weight[(stage - 2) * size : (stage - 1) * size]

    def loss(self, logits: Tensor, batch: NARBatch, stage: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over the frames ``batch.in_loss``, and metrics (see ``token_loss``)."""
        return token_loss(logits, batch.codes[:, stage - 1].masked_fill(~batch.in_loss, IGNORE_INDEX))

    @torch.no_grad()
    def generate(
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        prompt: Tensor,
        prompt_lens: Tensor,
        codes_1: Tensor,
        code_lens: Tensor,
        index: Tensor | None = None,
        prompt_index: Tensor | None = None,
        *,
        temperature: float = 0.0,
        guidance: float = 1.0,
        generators: Sequence[torch.Generator] | None = None,
        prompt_foretold: Tensor | None = None,
    ) -> Tensor:
        """Add codebooks 2 to 8 to codebook 1, greedily, one pass a codebook (but see ``one_pass``, ``complete_by``).

        Args:
            phonemes: [B, S] of the prompt's transcript and then of the text.
            phoneme_lens: [B].
            prompt: [B, K, T'] all codebooks of the prompt; T' may be 0.
            prompt_lens: [B].
            codes_1: [B, T] codebook 1, from the AR model.
            code_lens: [B].
            index: [B, T] which phoneme each frame belongs to, from the AR model; with alignment.
            prompt_index: [B, T'] likewise for the prompt.
            temperature: 0 takes the likeliest code of each stage (the paper); above, codes are drawn.
            guidance: how far the prompt pulls: what is said without it, plus so many times what it changes; 1: off,
                another number needs ``prompt_dropout`` and is for completion by codes.
            generators: one a row, fresh, for a temperature above 0: a row then gives the same alone and in any batch.
            prompt_foretold: [B, T', d] of ``foretell_prompt``, for completion by the prompt; None: computed here, with
                all phonemes. For many texts with one prompt it is worth being computed once.

        Returns:
            codes [B, K, T]; 0 in the padding.

        Raises:
            ValleError: guidance of a model that cannot be guided.
        """
        assert not self.training, "call eval() before generating: dropout is on"
        self.check_guidance(guidance)
        if not codes_1.shape[1]:
            return codes_1.new_zeros(len(codes_1), self.config.n_quantizers, 0)  # [B, K, 0]
        is_target = padding_mask(code_lens, codes_1.shape[1])  # [B, T]
        codes = codes_1.unsqueeze(1)  # [B, 1, T]
        batch = NARBatch(phonemes, phoneme_lens, codes, code_lens, prompt, prompt_lens, is_target, index, prompt_index)
        known = self._read(batch)
        alone = h_alone = None
        if guidance != 1:
            alone = self._read(batch._replace(prompt_lens=torch.zeros_like(prompt_lens)))
            h_alone = self._transform(alone, codes, 2) if self.config.one_pass else None
        h = self._transform(known, codes, 2) if self.config.one_pass else None
        if h is not None and self.config.complete_by != "codes":
            vectors = self._vectors(h)  # [B, T, d]
            if self.config.complete_by == "prompt" and prompt.shape[2]:
                foretold = self._foretell_prompt(batch) if prompt_foretold is None else prompt_foretold
                vectors = vectors + self._missed(vectors, batch, foretold)
            codes = torch.cat([codes, self._quantise(vectors)], dim=1)  # [B, K, T]
            return codes.masked_fill(~is_target.unsqueeze(1), 0)
        for stage in self.stages:
            logits = self._predict(known, codes, stage) if h is None else self._logits(h, codes, stage)
            if alone is not None:
                without = self._predict(alone, codes, stage) if h_alone is None else self._logits(h_alone, codes, stage)
                logits = without + guidance * (logits - without)
            if temperature > 0:
                logits = logits.float() / temperature + _gumbel(logits, code_lens, generators)
            codes = torch.cat([codes, logits.argmax(dim=-1).unsqueeze(1)], dim=1)  # [B, stage, T]
        return codes.masked_fill(~is_target.unsqueeze(1), 0)

    def _sum_embeddings(self, codes: Tensor, is_frame: Tensor) -> Tensor:
        """codes [B, k, T] of codebooks 1 to k, is_frame [B, T] -> the sum of their embeddings [B, T, D]."""
        batch_size, k, length = codes.shape
        codes = codes.where(is_frame.unsqueeze(1), 0)  # padding becomes a valid code, whatever the caller put there
        ids = codes + self.config.codebook_size * torch.arange(k, device=codes.device).unsqueeze(1)  # [B, k, T]
        ids = ids.transpose(1, 2).reshape(-1, k)  # [B*T, k]
        return F.embedding_bag(ids, self.code_emb.weight, mode="sum").view(
            batch_size, length, self.code_emb.embedding_dim
        )


def _gumbel(logits: Tensor, lens: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Noise [B, T, V] with which the arg-max of logits [B, T, V] is a draw; each row's from its own generator."""
    assert generators is not None, "a temperature above 0 needs a generator for each row"
    assert len(generators) == len(logits), f"{len(generators)} generators for {len(logits)} rows"
    noise = torch.zeros_like(logits, dtype=torch.float32)
    for row, n, generator in zip(noise, lens.tolist(), generators, strict=True):
        drawn = torch.empty(n, row.shape[1], device=generator.device).exponential_(generator=generator)
        row[:n] = -drawn.log().to(row.device)
    return noise


def draw_stage(n_quantizers: int = 8, generator: torch.Generator | None = None, weights: Sequence[float] = ()) -> int:
    """A stage from 2 to ``n_quantizers``, as likely as its weight says; without weights all equally likely."""
    device = None if generator is None else generator.device
    if weights:
        return 2 + int(torch.multinomial(torch.tensor(weights, device=device), 1, generator=generator))
    return int(torch.randint(2, n_quantizers + 1, (), generator=generator, device=device))


def draw_prompt(
    phonemes: Tensor,
    phoneme_lens: Tensor,
    codes: Tensor,
    code_lens: Tensor,
    *,
    prompt_frames: int = 225,
    mode: Literal["segment", "prefix"] = "segment",
    generator: torch.Generator | None = None,
    durations: Tensor | None = None,
) -> NARBatch:
    """Make a training batch of whole utterances, each with a prompt drawn from itself.

    "segment", the paper's: the prompt is any segment of the utterance, the target all of it. The paper does not say
    what becomes of the segment in the target; here its frames are not in the loss: the prompt holds their answer.
    "prefix", VALL-E 2's: the prompt is the beginning, the target the rest, as when the model speaks.

    Args:
        phonemes: [B, S] of the whole utterance.
        phoneme_lens: [B].
        codes: [B, K, T].
        code_lens: [B].
        prompt_frames: length of the prompt; an utterance shorter than two prompts gives half of itself.
        mode: what is the prompt and what the target.
        generator: draws where segments begin.
        durations: [B, S] frames of each phoneme, for a model with alignment.
    """
    n_rows, _, n_frames = codes.shape
    index = None if durations is None else frame_index(durations, phoneme_lens, n_frames)  # [B, T]
    prompt_lens = (code_lens // 2).clamp(max=prompt_frames)  # [B]
    n_prompt = min(prompt_frames, n_frames // 2)
    if mode == "prefix":
        rest_lens = code_lens - prompt_lens
        rest = _cut(codes, prompt_lens, n_frames - n_prompt)  # [B, K, n_frames - n_prompt]
        in_loss = padding_mask(rest_lens, rest.shape[2])
        batch = NARBatch(phonemes, phoneme_lens, rest, rest_lens, codes[:, :, :n_prompt], prompt_lens, in_loss)
        if index is None:
            return batch
        return batch._replace(index=_cut_index(index, prompt_lens, rest.shape[2]), prompt_index=index[:, :n_prompt])
    device = None if generator is None else generator.device
    place = torch.rand(n_rows, generator=generator, device=device).to(codes.device)  # [B] in [0, 1)
    begin = (place * (code_lens - prompt_lens + 1)).long()  # [B]
    frame = torch.arange(n_frames, device=codes.device)
    is_segment = (frame >= begin.unsqueeze(1)) & (frame < (begin + prompt_lens).unsqueeze(1))  # [B, T]
    in_loss = padding_mask(code_lens, n_frames) & ~is_segment
    batch = NARBatch(phonemes, phoneme_lens, codes, code_lens, _cut(codes, begin, n_prompt), prompt_lens, in_loss)
    return batch if index is None else batch._replace(index=index, prompt_index=_cut_index(index, begin, n_prompt))


def _columns(x: Tensor, index: Tensor) -> Tensor:
    """x [B, n, D], index [B, m] -> [B, m, D]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _cut(codes: Tensor, begin: Tensor, n: int) -> Tensor:
    """n frames of each row from begin [B] on: codes [B, K, T] -> [B, K, n]; past the end, the last frame again."""
    index = (begin.unsqueeze(1) + torch.arange(n, device=codes.device)).clamp(max=codes.shape[2] - 1)  # [B, n]
    return codes.gather(2, index.unsqueeze(1).expand(-1, codes.shape[1], -1))


def _cut_index(index: Tensor, begin: Tensor, n: int) -> Tensor:
    """Likewise of the phonemes of frames: index [B, T] -> [B, n]."""
    return _cut(index.unsqueeze(1), begin, n).squeeze(1)
