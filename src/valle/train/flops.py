"""How many floating-point operations a batch takes, in closed form: for the rate in the log and for ``train plan``.

The conventions are those of PaLM (Chowdhery et al. 2022, appendix B), whose *model FLOPs utilisation* this serves:

- A product of matrices [n, m] x [m, k] has 2 n m k operations. Nothing else counts: norms, activations, dropout,
  embeddings, and the optimiser are some percent at most.
- Attention counts in full, 4 L² D a row and layer, for causal models too, though their kernels leave out half of it.
- The backward pass counts twice the forward pass, and what activation checkpointing computes again is not counted.
- A batch counts with its padding, which the device computes like everything else: its share is told beside the MFU.
"""

from __future__ import annotations

from typing import NamedTuple

from valle.model.alignment import PhonemeContext
from valle.model.ar import ARConfig
from valle.model.frame_layers import CausalContext
from valle.model.nar import NARConfig
from valle.model.transformer import TransformerConfig

TRAINING = 3
"""Operations of a training step for one of its forward pass."""


class BatchShape(NamedTuple):
    """The sizes of a padded batch."""

    n_rows: int  # B
    n_phonemes: int  # S
    n_frames: int  # T, of the target
    n_prompt: int = 0  # T', of the prompt; the AR has none
    max_places: int | None = None  # most phonemes and frames of a row, where rows have no gaps; None: S + T' + T


class Work(NamedTuple):
    """What a batch, or several, give the device to do. All whole numbers, summed over ranks as floats."""

    flops: float  # forward and backward
    positions: float  # places that the transformer computes
    filled: float  # those of them that are no padding

    def plus(self, other: Work) -> Work:
        """Both together."""
        return Work(self.flops + other.flops, self.positions + other.positions, self.filled + other.filled)


def row_length(config: ARConfig | NARConfig, shape: BatchShape) -> int:
    """Places of a row in the transformer: phonemes, in the AR their <eos>, prompt and target."""
    is_ar = isinstance(config, ARConfig)
    if shape.max_places is not None:
        return shape.max_places + 2 * is_ar  # and the AR's place for all that is past the end
    return shape.n_phonemes + is_ar + shape.n_prompt + shape.n_frames


def training_flops(config: ARConfig | NARConfig, shape: BatchShape) -> int:
    """Operations of a batch, forward and backward."""
    return TRAINING * forward_flops(config, shape)


def forward_flops(config: ARConfig | NARConfig, shape: BatchShape) -> int:
    """Operations of a batch in the forward pass of training; at one stage, for a NAR without ``one_pass``."""
    return _ar_flops(config, shape) if isinstance(config, ARConfig) else _nar_flops(config, shape)


def _ar_flops(config: ARConfig, shape: BatchShape) -> int:
    dim = config.transformer.dim
    n_said = shape.n_rows * (shape.n_frames + 1)  # places that foretell a code or <eos>
    flops = _transformer_flops(config.transformer, shape.n_rows, row_length(config, shape))
    flops += n_said * 2 * dim * (config.codebook_size + 1)
    if config.alignment:
        flops += _context_flops(dim, shape) + n_said * 2 * dim * 3  # the moves
    if config.local_layers:
        flops += n_said * (config.local_layers * _conv_flops(dim) + 2 * dim**2)
    return flops


def _nar_flops(config: NARConfig, shape: BatchShape) -> int:
    dim = config.transformer.dim
    n_stages = config.n_quantizers - 1 if config.one_pass else 1
    n_target, n_prompt = shape.n_rows * shape.n_frames, shape.n_rows * shape.n_prompt
    flops = _transformer_flops(config.transformer, shape.n_rows, row_length(config, shape), adaptive=True)
    flops += n_target * n_stages * 2 * dim * config.codebook_size
    if config.alignment:
        flops += _context_flops(dim, shape)
    if config.prompt_summary:
        flops += shape.n_rows * 2 * dim**2
    if config.local_layers:
        n_read = n_target + (n_prompt if config.prompt_heads else 0)
        flops += n_read * config.local_layers * _conv_flops(dim) + n_target * 2 * dim**2
    if config.prompt_heads:  # like and value of the prompt; like, mix and out of the target; attention to the prompt
        flops += n_prompt * 6 * dim**2 + n_target * (6 * dim**2 + 4 * (shape.n_prompt + 1) * dim)
    if config.one_pass:
        flops += n_target * n_stages * 12 * dim**2  # FrameHead: 2 D -> 2 D -> D
    return flops + n_target * 2 * dim * config.codebook_dim


def _transformer_flops(config: TransformerConfig, n_rows: int, length: int, adaptive: bool = False) -> int:
    dim = config.dim
    kv_dim = dim * config.kv_heads // config.n_heads
    linear = 2 * (
        2 * dim**2 + 2 * dim * kv_dim + 2 * dim * config.ff_dim
    )  # a place: queries, out; keys, values; up, out
    attention = 4 * length * dim  # a place: products with all keys and all values
    n_norms = 2 * config.n_layers + (config.norm == "pre")
    norms = n_norms * 4 * dim**2 if adaptive else 0  # scale and shift from the stage, once a batch
    return n_rows * length * config.n_layers * (linear + attention) + norms


def _context_flops(dim: int, shape: BatchShape) -> int:
    """Of the convolutions over phonemes, the end included."""
    per_place = PhonemeContext.n_layers * 2 * PhonemeContext.kernel_size * dim**2
    return shape.n_rows * (shape.n_phonemes + 1) * per_place


def _conv_flops(dim: int) -> int:
    """Of one of ``local_layers``, a frame."""
    return 2 * CausalContext.kernel_size * dim**2
