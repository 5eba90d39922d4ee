"""The two things that can be trained: what a batch is, its loss, its validation, and how to hear it.

The AR learns codebook 1 (paper §4.2.1), the NAR codebooks 2 to 8, a stage and a prompt drawn for every batch (§4.2.2).
Models with alignment (``valle.model.alignment``) need a pack with one. The loop knows them only through ``Task``.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from valle.config import from_dict, to_dict
from valle.data.batches import Example, Rows, collate
from valle.data.pack import PackInfo, PackSplit
from valle.errors import ValleError
from valle.model.alignment import frame_index
from valle.model.ar import AR, ARBatch, ARConfig
from valle.model.nar import NAR, NARBatch, NARConfig, draw_prompt, draw_stage
from valle.model.sampling import SamplingConfig
from valle.train.config import Kind
from valle.train.flops import BatchShape, Work, row_length, training_flops

Batch = TypeVar("Batch")
Metrics = dict[str, Tensor]

ALL_STAGES = 0
"""In place of a stage: all of them at once, for a model with ``one_pass``."""

_METRICS = ("loss", "top1", "top10")

SPOKEN_PROMPT_S = (2.0, 6.0)
"""Length of the prompts, and of the texts, from which samples are spoken while training."""

SPOKEN_SAMPLING = SamplingConfig(temperature=0.9, top_p=0.95)
"""How the AR samples when it speaks while training."""

Pair = tuple[int, int]
"""Two utterances of one speaker: the voice, and the text that is spoken with it."""


class Speech(NamedTuple):
    """What a model in training says."""

    codes: Tensor
    """[K, T] int64; K is 1 where no NAR completed the AR's codebook."""
    unfinished: bool = False
    """Whether it ran into the limit of frames."""
    path: Tensor | None = None
    """[T] the place of each frame's phoneme among those of the text, from 0; of an AR with alignment."""


class Task(ABC, Generic[Batch]):
    """A model and what training it means. ``Batch`` is on the CPU until ``loss`` gets it."""

    kind: Kind
    model: AR | NAR

    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """The model's configuration, ready for JSON."""

    @abstractmethod
    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        """What ``config_dict`` of an older program returned, with the options that are newer at their defaults."""

    @property
    @abstractmethod
    def metrics(self) -> list[str]:
        """The names of all metrics that ``loss`` may return, in an order that is the same on all ranks."""

    @abstractmethod
    def make_batch(self, rows: Rows, generator: torch.Generator) -> Batch:
        """A training batch; whatever is random about it comes from ``generator``."""

    @abstractmethod
    def pinned(self, batch: Batch) -> Batch:
        """The same batch in memory from which a GPU copies by itself."""

    @abstractmethod
    def n_tokens(self, batch: Batch) -> int:
        """How many tokens its loss is a mean of."""

    @abstractmethod
    def work(self, batch: Batch) -> Work:
        """What it gives the device to do."""

    @abstractmethod
    def loss(self, batch: Batch, device: torch.device) -> tuple[Tensor, Metrics]:
        """The mean loss, and metrics with a weight ``n_tokens``; names end in the stage where there are stages."""

    @abstractmethod
    def validation_batches(self, rows: Rows, generator: torch.Generator) -> Iterator[Batch]:
        """All batches by which ``rows`` are judged."""

    @abstractmethod
    def say(
        self,
        split: PackSplit,
        pairs: Sequence[Pair],
        device: torch.device,
        other: nn.Module | None,
        sampling: SamplingConfig = SPOKEN_SAMPLING,
    ) -> list[Speech]:
        """The texts of utterances ``pair[1]`` in the voices of ``pair[0]``, all at once, each as it would be alone.

        Args:
            split: has the utterances.
            pairs: what to say.
            device: where the models are.
            other: the other model, where there is one.
            sampling: for the AR; its draws depend on the utterance alone.
        """

    def speak(self, split: PackSplit, pair: Pair, device: torch.device, other: nn.Module | None) -> Tensor:
        """Codes [K, T] of one pair, as ``say`` says it."""
        return self.say(split, [pair], device, other)[0].codes


class ARTask(Task[ARBatch]):
    """Codebook 1."""

    kind: Kind = "ar"

    def __init__(self, values: dict[str, Any], info: PackInfo) -> None:
        """``values`` are the fields of ``ARConfig`` that the pack does not know."""
        known: dict[str, Any] = {"n_phonemes": info.n_phonemes, "codebook_size": info.codebook_size}
        if values.get("alignment"):
            _require_alignment(info, "[ar.model]")
            known["phoneme_kinds"] = info.phoneme_kinds
        self.model: AR = AR(from_dict(ARConfig, _merged(values, known), "[ar.model]"))

    def config_dict(self) -> dict[str, Any]:
        return self.model.config_dict()

    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        return to_dict(from_dict(ARConfig, values))

    @property
    def metrics(self) -> list[str]:
        return [*_METRICS, *(("move_loss", "move_top1") if self.model.config.alignment else ())]

    def make_batch(self, rows: Rows, generator: torch.Generator) -> ARBatch:
        durations = rows.durations if self.model.config.alignment else None
        most = int((rows.phoneme_lens + rows.code_lens).max())
        return ARBatch(rows.phonemes, rows.phoneme_lens, rows.codes[:, 0], rows.code_lens, durations, most)

    def pinned(self, batch: ARBatch) -> ARBatch:
        return ARBatch(*(x.pin_memory() if isinstance(x, Tensor) else x for x in batch))  # type: ignore[arg-type]

    def n_tokens(self, batch: ARBatch) -> int:
        return int(batch.code_lens.sum()) + len(batch.code_lens)  # <eos> counts

    def work(self, batch: ARBatch) -> Work:
        (n_rows, n_phonemes), n_frames = batch.phonemes.shape, batch.codes.shape[1]
        filled = int(batch.phoneme_lens.sum()) + n_rows + int(batch.code_lens.sum())
        return _work(self.model.config, BatchShape(n_rows, n_phonemes, n_frames, 0, batch.max_places), filled)

    def loss(self, batch: ARBatch, device: torch.device) -> tuple[Tensor, Metrics]:
        batch = batch.to(device)
        outputs = self.model.outputs(batch)
        return self.model.loss(outputs.codes, batch, outputs.moves)

    def validation_batches(self, rows: Rows, generator: torch.Generator) -> Iterator[ARBatch]:
        yield self.make_batch(rows, generator)

    def say(
        self,
        split: PackSplit,
        pairs: Sequence[Pair],
        device: torch.device,
        other: nn.Module | None,
        sampling: SamplingConfig = SPOKEN_SAMPLING,
    ) -> list[Speech]:
        phonemes, phoneme_lens, durations, _ = _phonemes(split, pairs, device)
        prompt, prompt_lens = _codes(split, [voice for voice, _ in pairs], device)  # [B, 8, T'], [B]
        result = self.model.generate(
            phonemes,
            phoneme_lens,
            prompt[:, 0],
            prompt_lens,
            durations,
            max_frames=torch.tensor([2 * int(split.n_frames[text]) for _, text in pairs]),
            sampling=sampling,
            generators=[torch.Generator(device).manual_seed(text) for _, text in pairs],
        )
        begins = split.n_phonemes[[voice for voice, _ in pairs]].tolist()
        said = [
            Speech(codes.unsqueeze(0), reason == "max_frames")  # [1, T]
            for codes, reason in zip(result.codes, result.stop_reasons, strict=True)
        ]
        if result.index is not None:  # a separator stands between voice and text
            said = [s._replace(path=own - n - 1) for s, own, n in zip(said, result.index, begins, strict=True)]
        if other is None:
            return said
        assert isinstance(other, NAR)
        if other.config.alignment and result.index is None:
            return said
        prompt_index = None if durations is None else frame_index(durations, phoneme_lens, prompt.shape[2])  # [B, T']
        whole = [s.codes.new_zeros(other.config.n_quantizers, 0) for s in said]
        rows = [i for i, s in enumerate(said) if s.codes.shape[1]]  # there is nothing to complete in the others
        if rows:
            lens = torch.tensor([len(result.codes[i]) for i in rows], device=device)  # [R]
            index = None
            if result.index is not None:
                index = pad_sequence([result.index[i] for i in rows], batch_first=True)  # [R, T]
            codes = other.generate(
                phonemes[rows],
                phoneme_lens[rows],
                prompt[rows],
                prompt_lens[rows],
                pad_sequence([result.codes[i] for i in rows], batch_first=True),  # [R, T]
                lens,
                index,
                None if prompt_index is None else prompt_index[rows],
            )  # [R, K, T]
            for i, row, n in zip(rows, codes, lens.tolist(), strict=True):
                whole[i] = row[:, :n]
        return [s._replace(codes=codes) for s, codes in zip(said, whole, strict=True)]


class NARTask(Task[tuple[NARBatch, int]]):
    """Codebooks 2 to 8; a batch comes with its stage."""

    kind: Kind = "nar"

    def __init__(self, values: dict[str, Any], info: PackInfo) -> None:
        """``values`` are the fields of ``NARConfig`` that the pack does not know."""
        known = {
            "n_phonemes": info.n_phonemes,
            "codebook_size": info.codebook_size,
            "n_quantizers": info.n_quantizers,
        }
        if values.get("alignment"):
            _require_alignment(info, "[nar.model]")
        self.model: NAR = NAR(from_dict(NARConfig, _merged(values, known), "[nar.model]"))

    def config_dict(self) -> dict[str, Any]:
        return self.model.config_dict()

    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        return to_dict(from_dict(NARConfig, values))

    @property
    def metrics(self) -> list[str]:
        by_stage = [f"{name}_{stage}" for stage in self.model.stages for name in _METRICS]
        return [*_METRICS, *by_stage, *(["vector"] if self.model.config.codebook_dim else ())]

    def make_batch(self, rows: Rows, generator: torch.Generator) -> tuple[NARBatch, int]:
        if self.model.config.one_pass:
            return self._with_prompt(rows, generator), ALL_STAGES
        stage = draw_stage(self.model.config.n_quantizers, generator, self.model.config.stage_weights)
        return self._with_prompt(rows, generator), stage

    def pinned(self, batch: tuple[NARBatch, int]) -> tuple[NARBatch, int]:
        pinned = NARBatch(*(x.pin_memory() if isinstance(x, Tensor) else x for x in batch[0]))  # type: ignore[arg-type]
        return pinned, batch[1]

    def n_tokens(self, batch: tuple[NARBatch, int]) -> int:
        return int(batch[0].in_loss.sum())

    def work(self, batch: tuple[NARBatch, int]) -> Work:
        rows = batch[0]
        n_rows, n_phonemes = rows.phonemes.shape
        n_frames, n_prompt = rows.codes.shape[2], rows.prompt_codes.shape[2]
        shape = BatchShape(n_rows, n_phonemes, n_frames, n_prompt, rows.max_places)
        filled = sum(int(lens.sum()) for lens in (rows.phoneme_lens, rows.prompt_lens, rows.code_lens))
        return _work(self.model.config, shape, filled)

    def loss(self, batch: tuple[NARBatch, int], device: torch.device) -> tuple[Tensor, Metrics]:
        rows, stage = batch[0].to(device), batch[1]
        if stage == ALL_STAGES:
            return self._loss_of_all(rows)
        loss, metrics = self.model.loss(self.model(rows, stage), rows, stage)
        named = {name: value for name, value in metrics.items() if name != "n_tokens"}
        return loss, metrics | {f"{name}_{stage}": value for name, value in named.items()}

    def _loss_of_all(self, rows: NARBatch) -> tuple[Tensor, Metrics]:
        """The weighted mean of the stages' losses; the metrics without a stage are plain means over the stages."""
        stages = list(self.model.stages)
        said = self.model.all_stages(rows)
        by_stage = [self.model.loss(some, rows, stage) for some, stage in zip(said.logits, stages, strict=True)]
        weights = self.model.config.stage_weights or (1.0,) * len(stages)
        loss = torch.stack([loss * w / sum(weights) for (loss, _), w in zip(by_stage, weights, strict=True)]).sum()
        metrics = {"n_tokens": by_stage[0][1]["n_tokens"]}
        for name in by_stage[0][1]:
            if name != "n_tokens":
                metrics[name] = torch.stack([m[name].float() for _, m in by_stage]).mean()
                metrics |= {f"{name}_{stage}": m[name] for stage, (_, m) in zip(stages, by_stage, strict=True)}
        if said.vectors is not None:
            error = self.model.vector_loss(said.vectors, rows)
            loss, metrics["vector"] = loss + error * self.model.config.vector_weight, error.detach()
        return loss, metrics

    def validation_batches(self, rows: Rows, generator: torch.Generator) -> Iterator[tuple[NARBatch, int]]:
        batch = self._with_prompt(rows, generator)
        for stage in [ALL_STAGES] if self.model.config.one_pass else self.model.stages:
            yield batch, stage

    def say(
        self,
        split: PackSplit,
        pairs: Sequence[Pair],
        device: torch.device,
        other: nn.Module | None,
        sampling: SamplingConfig = SPOKEN_SAMPLING,
    ) -> list[Speech]:
        phonemes, phoneme_lens, *durations = _phonemes(split, pairs, device)
        prompt, prompt_lens = _codes(split, [voice for voice, _ in pairs], device)  # [B, 8, T'], [B]
        target, lens = _codes(split, [text for _, text in pairs], device)  # [B, 8, T], [B]
        # Codebook 1 of the recording, so that what is heard is this model's work alone.
        prompt_index, index = (
            None if own is None else frame_index(own, phoneme_lens, codes.shape[2])  # [B, T'], [B, T]
            for own, codes in zip(durations, (prompt, target), strict=True)
        )
        codes = self.model.generate(
            phonemes, phoneme_lens, prompt, prompt_lens, target[:, 0], lens, index, prompt_index
        )  # [B, 8, T]
        return [Speech(row[:, :n]) for row, n in zip(codes, lens.tolist(), strict=True)]

    def _with_prompt(self, rows: Rows, generator: torch.Generator) -> NARBatch:
        config = self.model.config
        batch = draw_prompt(
            rows.phonemes,
            rows.phoneme_lens,
            rows.codes,
            rows.code_lens,
            prompt_frames=config.prompt_frames,
            mode=config.prompt_mode,
            generator=generator,
            durations=rows.durations if config.alignment else None,
        )
        most = int((batch.phoneme_lens + batch.prompt_lens + batch.code_lens).max())
        return batch._replace(max_places=most)


def make_task(kind: Kind, values: dict[str, Any], info: PackInfo) -> ARTask | NARTask:
    """A task with a model of random weights, on the CPU."""
    return ARTask(values, info) if kind == "ar" else NARTask(values, info)


class MeanMetrics:
    """Means weighted by tokens, gathered without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    def add(self, metrics: Metrics) -> None:
        """One batch: named means and their weight ``n_tokens``."""
        weight = metrics["n_tokens"].double()
        for name, value in metrics.items():
            if name != "n_tokens":
                zero = torch.zeros_like(weight)
                self._sums[name] = self._sums.get(name, zero) + value.double() * weight
                self._weights[name] = self._weights.get(name, zero) + weight

    def take(
        self, prefix: str, names: Sequence[str] = (), total: Callable[[Sequence[float]], list[float]] = list
    ) -> dict[str, float]:
        """The means so far under ``prefix/name``; starts anew.

        Args:
            prefix: of the names.
            names: all that any rank may have.
            total: sums each of some numbers over ranks, of which all take at once; by default this one is alone.
        """
        names = names or sorted(self._sums)
        zero = torch.zeros((), dtype=torch.float64)
        parts = [[float(sums.get(name, zero)) for name in names] for sums in (self._sums, self._weights)]
        numbers = total([*parts[0], *parts[1]])
        self._sums, self._weights = {}, {}
        pairs = zip(names, numbers[: len(names)], numbers[len(names) :], strict=True)
        return {f"{prefix}/{name}": value / weight for name, value, weight in pairs if weight}


@torch.no_grad()
def validate(
    task: Task[Any],
    split: PackSplit,
    batches: Sequence[Sequence[Example]],
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> dict[str, float]:
    """Means over ``batches`` in evaluation mode: loss, top1 and top10, for the NAR also of every stage.

    Prompts are the same every time.
    """
    task.model.eval()
    mean = MeanMetrics()
    generator = torch.Generator().manual_seed(0)
    for examples in batches:
        for batch in task.validation_batches(collate(split, examples), generator):
            with autocast:
                mean.add(task.loss(batch, device)[1])
    return mean.take("dev")


def pair_to_speak(split: PackSplit) -> Pair | None:
    """Two utterances of one speaker, the first the voice and the second the text; None when the split has no such."""
    seconds = ((own[1], (own[0], own[1])) for own in _speakable(split).values() if len(own) > 1)
    return min(seconds, default=(0, None))[1]


def pairs_to_speak(split: PackSplit, n: int, seed: int, *, texts: Collection[str] | None = None) -> list[Pair]:
    """Up to n pairs, drawn by the seed, speakers in turn; no text is said twice.

    Args:
        split: where they come from.
        n: how many; the first of them are the same for any n.
        seed: one seed, one choice.
        texts: ids of the utterances whose text may be said; None for all.
    """
    rng = random.Random(f"{seed}/spoken")
    by_speaker = []
    for own in _speakable(split).values():
        order = rng.sample(own, len(own))
        pairs = [(voice, text) for voice, text in zip(order, order[1:] + order[:1], strict=True) if voice != text]
        by_speaker.append([(v, t) for v, t in pairs if texts is None or split.ids[t] in texts])
    rng.shuffle(by_speaker)
    turns = max(map(len, by_speaker), default=0)
    return [pairs[turn] for turn in range(turns) for pairs in by_speaker if turn < len(pairs)][:n]


def _speakable(split: PackSplit) -> dict[int, list[int]]:
    """speaker -> the utterances of a fit length."""
    shortest, longest = (s * split.info.frame_rate for s in SPOKEN_PROMPT_S)
    by_speaker: dict[int, list[int]] = {}
    for i, (n, speaker) in enumerate(zip(split.n_frames.tolist(), split.speakers.tolist(), strict=True)):
        if speaker >= 0 and shortest <= n <= longest:
            by_speaker.setdefault(speaker, []).append(i)
    return by_speaker


def _work(config: ARConfig | NARConfig, shape: BatchShape, filled: int) -> Work:
    return Work(training_flops(config, shape), shape.n_rows * row_length(config, shape), filled)


def _merged(values: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The model's table and what the pack knows.

    Raises:
        ValleError: the table contradicts the pack.
    """
    for name, value in known.items():
        if values.get(name, value) != value:
            raise ValleError(f"the configuration says {name} = {values[name]}, but the pack has {value}; leave it out")
    return values | known


def _require_alignment(info: PackInfo, where: str) -> None:
    """Refuse a pack that does not know which phoneme a frame belongs to."""
    if not info.aligned or not info.phoneme_kinds:
        raise ValleError(
            f"alignment = true in {where} needs a pack with an alignment; build it with valle prepare --aligner"
        )


def _phonemes(
    split: PackSplit, pairs: Sequence[Pair], device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """phonemes [B, S] of two utterances joined, their lengths [B], and how long each is in the one and in the other.

    The durations, [B, S] each, are None where the pack has no alignment.
    """
    rows = collate(split, pairs)
    phonemes, phoneme_lens = rows.phonemes.to(device), rows.phoneme_lens.to(device)
    if rows.durations is None:
        return phonemes, phoneme_lens, None, None
    durations = rows.durations.to(device)
    n_first = split.n_phonemes[[voice for voice, _ in pairs]].to(device).unsqueeze(1)  # [B, 1]
    is_first = torch.arange(durations.shape[1], device=device) < n_first  # [B, S]
    return phonemes, phoneme_lens, durations * is_first, durations * ~is_first


def _codes(split: PackSplit, utterances: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """codes [B, 8, T] of utterances, 0 in the padding, and their lengths [B]."""
    codes = [split.codes(i).t() for i in utterances]  # [T, 8]
    padded = pad_sequence(codes, batch_first=True).transpose(1, 2).contiguous()  # [B, 8, T]
    return padded.to(device), torch.tensor([len(c) for c in codes], device=device)
