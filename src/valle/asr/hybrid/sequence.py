"""Lattice-free maximum mutual information: the network learns to tell what was said from all else that could be.

After cross-entropy, which knows nothing of what follows what, the likelihood of what was said (the numerator) is
raised against that of all sequences of units (the denominator), as in Kaldi's chain models (Povey et al. 2016), with a
trigram of units as the language. A state of the search is a unit and the one before it, which is what pdfs depend on,
and since there are few units all pairs are kept as a dense tensor. A state costs nothing to stay in or to leave, as in
the graph that recognition uses.

The scores are those of recognition too, ``acoustic_scale * (logits - prior_scale * log priors)``: training begins from
where recognition by the cross-entropy network is best, the network still tells log-probabilities of tied states (which
the term of cross-entropy keeps up), and the priors of the model stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from valle.asr.hybrid.batches import IGNORE, Batch
from valle.asr.hybrid.config import SequenceConfig
from valle.asr.hybrid.features import STEP_S, SUBSAMPLING, n_steps
from valle.asr.hybrid.learn import CrossEntropy
from valle.asr.hybrid.segments import Chunks, Placed, Reader, Segments, cut
from valle.asr.hybrid.store import TensorStore
from valle.asr.hybrid.units import SILENCE_ID

_NEVER = -1e30  # a log-probability of 0 that can be added to and differentiated
_FLOOR = {torch.float32: -60.0, torch.float64: -600.0}  # a pdf is at most so far below a step's best one
_LEAST = {torch.float32: 1e-30, torch.float64: 1e-250}  # share of a state: no sum becomes 0, no number denormal


@dataclass(frozen=True)
class PhoneModel:
    """What follows what: probabilities, by the last two units."""

    begin: Tensor
    """[unit] of the first unit."""
    follow: Tensor
    """[left, unit, next] of the next unit; with ``end`` it sums to 1 over them. No silence follows silence."""
    end: Tensor
    """[left, unit] that nothing follows."""
    share: Tensor
    """[left, unit] of the steps of all speech: where a chunk from the middle of a recording begins."""

    @classmethod
    def estimate(cls, said: Sequence[Segments], n_units: int) -> PhoneModel:
        """Witten-Bell trigrams of what was said; units last as long, on average, as there."""
        n, stop = n_units, n_units  # the end is one more unit
        three = np.zeros((n, n, n + 1))
        begin = np.ones(n)
        steps, often = np.ones(n), np.ones(n)
        for s in said:
            begin[s.units[0]] += 1
            following = np.append(s.units[1:], stop)
            np.add.at(three, (s.lefts, s.units, following), 1.0)
            ends = np.append(s.starts[1:], s.n_frames)
            np.add.at(steps, s.units, (ends - s.starts) / SUBSAMPLING)
            np.add.at(often, s.units, 1.0)
        allowed = np.ones((n, n + 1))  # [unit, next]
        allowed[SILENCE_ID, SILENCE_ID] = 0.0
        two = three.sum(0)
        one = (two.sum(0) + 1.0) * allowed
        one /= one.sum(1, keepdims=True)
        follow = _witten_bell(three, _witten_bell(two, one))
        of_pair = (three.sum(2) + 1e-3) * (steps / often)  # [left, unit]
        share = of_pair / of_pair.sum()
        tables = (begin / begin.sum(), follow[:, :, :n], follow[:, :, n], share)
        return cls(*(torch.from_numpy(np.ascontiguousarray(a)) for a in tables))

    def to(self, like: Tensor) -> PhoneModel:
        """The same in the number type and on the device of another tensor."""
        return PhoneModel(self.begin.to(like), self.follow.to(like), self.end.to(like), self.share.to(like))


def _witten_bell(counts: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities from counts [..., unit, next], with those of the shorter history [unit, next]."""
    kinds = np.maximum((counts > 0).sum(-1, keepdims=True), 1)
    out: NDArray[np.float64] = (counts + kinds * below) / (counts.sum(-1, keepdims=True) + kinds)
    return out


def denominator(scores: Tensor, chunks: Chunks, pdfs: Tensor, phones: PhoneModel) -> Tensor:
    """Log-likelihood of all that could be said in each chunk.

    Args:
        scores: [C, S, pdfs] log-likelihoods of the steps; what is after a chunk's end is not looked at, but is finite.
        chunks: C of them, of which only lengths, ``is_begin`` and ``is_end`` count.
        pdfs: [units, left, 2].
        phones: what follows what.

    Returns:
        [C]; its gradient is how often each state is visited.
    """
    out: Tensor = _Denominator.apply(scores, chunks, pdfs, phones)  # type: ignore[no-untyped-call]
    return out


class _Denominator(torch.autograd.Function):
    """Forward and backward over states [unit, left, C], shares of a step, chunks last: all that is done is by rows."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, chunks: Chunks, pdfs: Tensor, phones: PhoneModel) -> Tensor:
        n_chunks, length, _ = scores.shape
        n = len(pdfs)
        phones = phones.to(scores)
        best = scores.max(2, keepdim=True).values  # [C, S, 1]
        likely = (scores - best).clamp(min=_FLOOR[scores.dtype]).exp_().permute(1, 2, 0).contiguous()  # [S, pdfs, C]
        firsts, rests = pdfs[:, :, 0].reshape(-1), pdfs[:, :, 1].reshape(-1)
        follow = phones.follow.permute(1, 2, 0).contiguous()  # [unit, next, left]
        middle = (~chunks.is_begin).to(scores)
        state = phones.share.t().unsqueeze(2) * middle  # [unit, left, C]
        opening = torch.zeros(n, n, n_chunks, dtype=scores.dtype, device=scores.device)
        opening[:, SILENCE_ID] = phones.begin.unsqueeze(1) * (1 - middle)
        closing = torch.where(chunks.is_end, phones.end.t().unsqueeze(2), 1.0)  # [unit, left, C]
        states, scales = [state], []
        ends = torch.zeros_like(middle)
        stops = set(chunks.lens.tolist())
        for t in range(length):
            entered = torch.bmm(follow, state).transpose(0, 1)  # [next, unit, C]
            if not t:
                entered = entered + opening
            entered = entered * likely[t].index_select(0, firsts).view(n, n, -1)
            state = entered.addcmul_(state, likely[t].index_select(0, rests).view(n, n, -1))
            scales.append(state.sum((0, 1)))
            state = (state / scales[t]).clamp_(min=_LEAST[scores.dtype])
            states.append(state)
            if t + 1 in stops:
                ends = torch.where(chunks.lens == t + 1, (state * closing).sum((0, 1)).log(), ends)
        inside = torch.arange(length, device=scores.device).unsqueeze(1) < chunks.lens  # [S, C]
        offsets = torch.stack(scales).log() + best[:, :, 0].t()
        if ctx.needs_input_grad[0]:
            visits = _visits(states, scales, likely, chunks.lens, closing, follow, firsts, rests)
            ctx.save_for_backward(visits.permute(2, 0, 1))
        return ends + (offsets * inside).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (visits,) = ctx.saved_tensors  # [C, S, pdfs]
        return visits * gradient.view(-1, 1, 1), None, None, None


def _visits(
    states: list[Tensor],
    scales: list[Tensor],
    likely: Tensor,
    lens: Tensor,
    closing: Tensor,
    follow: Tensor,
    firsts: Tensor,
    rests: Tensor,
) -> Tensor:
    """How often each pdf is visited: [S, pdfs, C], summing to 1 over the pdfs of a step that is not padding.

    Args:
        states: S + 1 of [unit, left, C], from before the first step on.
        scales: S of [C], what each but the first of them was divided by.
        likely: [S, pdfs, C].
        lens: [C].
        closing: [unit, left, C].
        follow: [unit, next, left].
        firsts: [unit * left].
        rests: the same.
    """
    n, tiny = len(closing), torch.finfo(likely.dtype).tiny
    visits = torch.zeros_like(likely)
    back = follow.transpose(1, 2).contiguous()  # [unit, left, next]
    after = torch.zeros_like(closing)
    stops = set(lens.tolist())
    for t in range(len(likely) - 1, -1, -1):
        if t + 1 in stops:
            after = torch.where(lens == t + 1, closing, after)
        staying = after * likely[t].index_select(0, rests).view(n, n, -1)
        stayed = staying * states[t] / scales[t]
        both = after * states[t + 1]
        total = both.sum((0, 1)).clamp_(min=tiny)
        visits[t].index_add_(0, rests, (stayed / total).flatten(0, 1))
        visits[t].index_add_(0, firsts, (both.sub_(stayed).clamp_(min=0) / total).flatten(0, 1))
        entering = after * likely[t].index_select(0, firsts).view(n, n, -1)  # [next, unit, C]
        after = staying.baddbmm_(back, entering.transpose(0, 1))
        after = after / after.amax((0, 1)).clamp_(min=tiny)
    return visits


def numerator(scores: Tensor, chunks: Chunks, pdfs: Tensor, phones: PhoneModel) -> Tensor:
    """Log-likelihood of what was said in each chunk: its units in order, each beginning within its bounds.

    Args:
        scores: as of ``denominator``.
        chunks: C of them.
        pdfs: [units, left, 2].
        phones: as of ``denominator``, of whose paths those here are a part, with the same probabilities.

    Returns:
        [C]
    """
    phones = phones.to(scores)
    length = scores.shape[1]
    c, width = chunks.units.shape
    if not c:
        return scores.new_zeros(0)
    which = torch.arange(width, device=scores.device)
    is_unit = which < chunks.counts.unsqueeze(1)  # [C, N]

    def log(p: Tensor) -> Tensor:
        return p.clamp(min=1e-30).log()

    def only(where: Tensor, value: Tensor) -> Tensor:
        return torch.where(where, value, scores.new_full((), _NEVER))

    before = torch.cat([chunks.lefts.new_zeros(c, 1), chunks.lefts[:, :-1]], 1)  # the unit before the one before
    price = log(phones.follow[before, chunks.lefts, chunks.units])
    is_last = which == chunks.counts.unsqueeze(1) - 1
    beyond = chunks.latest.new_full((c, 1), 2**30)
    later = torch.where(is_last, beyond, torch.cat([chunks.latest[:, 1:], beyond], 1))  # until when each may last
    lens = chunks.lens.unsqueeze(1)
    opens = is_unit & (chunks.earliest < 0) & (later >= 0) & ~chunks.is_begin.unsqueeze(1)
    state = only(opens, log(phones.share[chunks.lefts, chunks.units]))  # [C, N]
    closes = is_unit & torch.where(chunks.is_end.unsqueeze(1), is_last, later >= lens)
    is_end = chunks.is_end.unsqueeze(1)
    closing = only(closes, torch.where(is_end, log(phones.end[chunks.lefts, chunks.units]), 0.0))
    index = pdfs[chunks.units, chunks.lefts]  # [C, N, 2]
    firsts = scores.gather(2, index[:, :, 0].unsqueeze(1).expand(-1, length, -1)).unbind(1)  # S of [C, N]
    rests = scores.gather(2, index[:, :, 1].unsqueeze(1).expand(-1, length, -1)).unbind(1)
    never = scores.new_full((c, 1), _NEVER)
    opening = only(chunks.is_begin.unsqueeze(1), log(phones.begin[chunks.units[:, :1]]))  # [C, 1]
    for t in range(length):
        first = never if t else opening
        came = torch.cat([first, state[:, :-1] + price[:, 1:]], 1)
        entered = only((chunks.earliest <= t) & (t <= chunks.latest), came + firsts[t])
        state = torch.where(t < lens, torch.logaddexp(entered, state + rests[t]), state)
    return (state + closing).logsumexp(1)


class SequenceLoss:
    """The criterion (``valle.asr.hybrid.learn.Criterion``)."""

    def __init__(
        self,
        config: SequenceConfig,
        labels: TensorStore,
        pdfs: NDArray[np.int32],
        priors: Tensor,
        phones: PhoneModel,
        label_smoothing: float = 0.0,
    ) -> None:
        """
        Args:
            config: of it.
            labels: states of each recording's frames.
            pdfs: [units, left, 2].
            priors: [pdfs] log-frequencies of the states.
            phones: what follows what.
            label_smoothing: of the term of cross-entropy.
        """
        self.config, self.labels, self.reader = config, labels, Reader(pdfs)
        self.pdfs, self.priors, self.phones = torch.from_numpy(pdfs.astype(np.int64)), priors, phones
        self.by_step = CrossEntropy(label_smoothing)

    def loss(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """See ``Criterion``; ``mmi`` is what is raised, 0 at most."""
        by_step, sums = self.by_step.loss(logits, batch)
        scores = self.scores(logits)
        gained, n = self.gained(scores, batch)
        loss = -gained / max(1, n) + self.config.ce_weight * by_step
        if self.config.l2:
            own = scores[batch.labels != IGNORE]
            loss = loss + 0.5 * self.config.l2 * (own - own.mean(1, keepdim=True)).square().sum(1).mean()
        steps = sums["steps"]
        mmi = float(gained.detach()) / max(1, n)
        return loss, {**sums, "loss": float(loss.detach()) * steps, "mmi": mmi * steps}

    def judge(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """See ``Criterion``."""
        gained, n = self.gained(self.scores(logits), batch)
        sums = self.by_step.judge(logits, batch)
        return {"mmi": float(gained) / max(1, n) * sums["steps"], **sums}

    def scores(self, logits: Tensor) -> Tensor:
        """Log-likelihoods as recognition takes them, up to a constant a step: [B, S, pdfs]."""
        return self.config.acoustic_scale * (logits - self.config.prior_scale * self.priors.to(logits))

    def gained(self, scores: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Log-probability of what was said [] summed over all chunks of scores [B, S, pdfs], and how many steps."""
        chunks = self.chunks(batch).to(scores.device)
        if not len(chunks.lens):
            return scores.sum() * 0.0, 0
        longest = int(chunks.lens.max())
        at = chunks.starts.unsqueeze(1) + torch.arange(longest, device=scores.device)  # [C, S]
        pieces = scores[chunks.rows.unsqueeze(1), at.clamp(max=scores.shape[1] - 1)]  # [C, S, pdfs]
        pieces = pieces - pieces.detach().amax(2, keepdim=True)  # the same to both, and they stay exact
        pdfs = self.pdfs.to(scores.device)
        said = numerator(pieces, chunks, pdfs, self.phones)
        return (said - denominator(pieces, chunks, pdfs, self.phones)).sum(), int(chunks.lens.sum())

    def chunks(self, batch: Batch) -> Chunks:
        """What is said in a batch."""
        placed = []
        for (item, begin), n_frames in zip(batch.rows, batch.lens.tolist(), strict=True):
            segments = self.reader.read(self.labels[item.label].numpy(), begin % SUBSAMPLING)
            is_end = begin + n_frames >= item.n_frames
            placed.append(Placed(segments, item.speed, begin, n_steps(n_frames), is_end))
        return cut(placed, round(self.config.chunk_seconds / STEP_S), self.config.tolerance)


def phone_model(labels: TensorStore, names: Sequence[str], pdfs: NDArray[np.int32]) -> PhoneModel:
    """What follows what in labelled recordings."""
    reader = Reader(pdfs)
    return PhoneModel.estimate([reader.read(labels[name].numpy(), 1) for name in names], len(pdfs))
