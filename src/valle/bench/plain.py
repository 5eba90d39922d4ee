"""The opponent of our trainer in ``valle bench train``: the AR model as torch's own parts make it.

An ``nn.TransformerEncoder`` reads ``[phonemes, <eos>, codes]`` and foretells the codes and their ``<eos>``. A batch is
a fixed number of utterances, padded to the longest; what may be seen is told by a causal mask and one of the padding,
both made for every batch. Dropout is where ``nn.TransformerEncoderLayer`` has it, on attention weights too unless told
otherwise. AdamW is as torch chooses it, gradients are clipped.

It has as many parameters as ours and must learn as well (tests/test_bench_train.py). Nothing is slower on purpose: it
foretells at codes alone, and its batches are read as ours are. On a GPU torch looks at its masks, which waits for the
device once a pass.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from valle.data.pack import PackSplit
from valle.model.ar import ARConfig
from valle.model.transformer import IGNORE_INDEX, SinusoidalPositions
from valle.train.devices import Precision
from valle.train.flops import BatchShape, Work, training_flops


class PlainBatch(NamedTuple):
    """A padded batch. Codes are tokens after the phonemes and their <eos>."""

    tokens: Tensor  # [B, L] int64, [phonemes, <eos>, codes]
    targets: (
        Tensor  # [B, L] int64, the code or <eos> that follows; IGNORE_INDEX before the phonemes' <eos> and in padding
    )
    is_padding: Tensor  # [B, L] bool
    n_frames: int  # without padding
    work: Work

    def pinned(self) -> PlainBatch:
        """The same batch in memory from which a GPU copies by itself."""
        tokens, targets, is_padding = (x.pin_memory() for x in self[:3])
        return self._replace(tokens=tokens, targets=targets, is_padding=is_padding)


class PlainAR(nn.Module):
    """The AR model out of ``nn.TransformerEncoderLayer``; its size is that of ``AR(config)``."""

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        size = config.transformer
        self.n_text = config.n_phonemes + 1
        self.embedding = nn.Embedding(self.n_text + config.codebook_size + 1, size.dim)
        nn.init.normal_(self.embedding.weight, std=size.dim**-0.5)
        self.positions = SinusoidalPositions(size.dim)
        self.dropout = nn.Dropout(size.dropout)
        layer = nn.TransformerEncoderLayer(
            size.dim,
            size.n_heads,
            size.ff_dim,
            size.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        # Nested tensors are for inference, and not with norms before the branches.
        self.encoder = nn.TransformerEncoder(
            layer, size.n_layers, norm=nn.LayerNorm(size.dim), enable_nested_tensor=False
        )

    def drop_attention(self, share: float) -> None:
        """Drop this share of the attention weights, in place of ``dropout``; ours drops none."""
        for layer in self.encoder.layers:
            layer.self_attn.dropout = share

    def loss(self, tokens: Tensor, targets: Tensor, is_padding: Tensor) -> Tensor:
        """Mean cross-entropy over the codes and their <eos>; the arguments are those of ``PlainBatch``."""
        length = tokens.shape[1]
        is_hidden = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)  # [L, L]
        x = self.dropout(self.embedding(tokens) + self.positions(length))  # [B, L, D]
        h = self.encoder(x, mask=is_hidden, src_key_padding_mask=is_padding)  # [B, L, D]
        is_said = targets != IGNORE_INDEX
        logits = F.linear(h[is_said], self.embedding.weight[self.n_text :])  # [n, codebook_size + 1]
        return F.cross_entropy(logits, targets[is_said])


class PlainTrainer:
    """Its training step."""

    def __init__(self, model: PlainAR, lr: float, max_grad_norm: float, device: torch.device, precision: Precision):
        self.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self.max_grad_norm, self.device, self.precision = max_grad_norm, device, precision

    def step(self, batch: PlainBatch) -> Tensor:
        """Learn from a batch; returns its loss, on the device."""
        tokens, targets, is_padding = (x.to(self.device, non_blocking=True) for x in batch[:3])
        is_half = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if is_half else nullcontext():
            loss = self.model.loss(tokens, targets, is_padding)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return loss.detach()


def plain_batches(
    usable: Sequence[int], n_frames: Sequence[int], n_rows: int, *, by_length: bool, seed: int
) -> Iterator[list[int]]:
    """Endless batches of ``n_rows`` utterances: in random order, or each of such as are of about one length.

    Args:
        usable: the utterances.
        n_frames: length of every utterance of the split.
        n_rows: utterances a batch; the last of an epoch may have fewer.
        by_length: sort by length before cutting; batches then come in random order.
        seed: of the orders.
    """
    rng = random.Random(seed)
    while True:
        order = list(usable)
        rng.shuffle(order)
        if by_length:
            order.sort(key=n_frames.__getitem__)
        batches = [order[i : i + n_rows] for i in range(0, len(order), n_rows)]
        rng.shuffle(batches)
        yield from batches


def collate_plain(split: PackSplit, utterances: Sequence[int], config: ARConfig) -> PlainBatch:
    """Read utterances of a pack as a batch for ``PlainAR(config)``."""
    phoneme_eos = torch.tensor([config.n_phonemes])
    eos = torch.tensor([config.codebook_size])
    tokens, targets, n_frames = [], [], []
    for i in utterances:
        phonemes, codes = split.phonemes(i), split.codes(i)[0]  # [S], [T]
        tokens.append(torch.cat([phonemes, phoneme_eos, codes + config.n_phonemes + 1]))
        targets.append(torch.cat([torch.full_like(phonemes, IGNORE_INDEX), codes, eos]))
        n_frames.append(len(codes))
    lens = torch.tensor([len(row) for row in tokens])
    n_rows, length = len(tokens), int(lens.max())
    shape = BatchShape(n_rows, length - 1 - max(n_frames), max(n_frames))
    return PlainBatch(
        pad_sequence(tokens, batch_first=True),
        pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX),
        torch.arange(length) >= lens.unsqueeze(1),
        sum(n_frames),
        Work(training_flops(config, shape), n_rows * length, int(lens.sum())),
    )
