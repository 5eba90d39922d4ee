"""How much memory a training takes on each device, in closed form: for ``train plan``.

What is kept from the forward pass until the gradient needs it is found layer by layer; a test compares it with the
tensors that torch saves. Weights, gradients and moments are float32. Not counted: what a kernel needs while it runs,
the allocator's gaps, and the driver's own, together one to three gigabytes on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

from valle.model.alignment import PhonemeContext
from valle.model.ar import ARConfig
from valle.model.nar import NARConfig
from valle.model.transformer import TransformerConfig
from valle.train.devices import Precision
from valle.train.flops import BatchShape, row_length

_FP32, _IDS = 4, 8  # bytes


class Memory(NamedTuple):
    """Bytes on each device while it trains."""

    weights: int
    gradients: int
    moments: int  # both of AdamW's
    average: int  # of the weights
    activations: int  # what is saved of a batch for its gradient
    gathered: int  # weights of other devices while they are needed, where the model is shared out

    @property
    def total(self) -> int:
        """The most at a time."""
        return sum(self)


def training_memory(
    n_parameters: int, activations: int, *, has_average: bool = False, n_shares: int = 1, n_gathered: int = 0
) -> Memory:
    """Of a model with so many parameters.

    Args:
        n_parameters: of the whole model.
        activations: in bytes, of one batch.
        has_average: whether there is a moving average.
        n_shares: devices that the model is shared out over (FSDP); 1: each has it whole, and exchanges gradients where
            they lie.
        n_gathered: most parameters that a device has of others at a time.
    """
    own = _FP32 * -(-n_parameters // n_shares)
    return Memory(own, own, 2 * own, own if has_average else 0, activations, _FP32 * n_gathered)


class _Kept(NamedTuple):
    """What is kept of a value, in bytes a number: as it comes into a product, and as dropout's mask."""

    product: int  # 2 under bf16 autocast, which rounds what enters a product; norms and sums stay float32
    mask: int  # 1 on a GPU; on a CPU the mask is as wide as what it multiplies
    input_mask: int

    @property
    def normed(self) -> int:
        """Of a norm's input, and of its output as it enters a product."""
        return _FP32 + self.product


def activation_bytes(
    config: ARConfig | NARConfig,
    shape: BatchShape,
    precision: Precision = "bf16",
    *,
    checkpointing: bool = False,
    on_cpu: bool = False,
) -> int:
    """What is saved of a batch for its gradient, in bytes.

    Args:
        config: of the model.
        shape: of the batch.
        precision: bf16 is that of autocast; the weights' copies in it are not counted here (``weight_copy_bytes``).
        checkpointing: only the inputs of blocks are kept, and one block whole while its gradient is computed.
        on_cpu: dropout keeps more there.
    """
    product = 2 if precision == "bf16" else _FP32
    kept = _Kept(product, product if on_cpu else 1, _FP32 if on_cpu else 1)
    n_places = shape.n_rows * row_length(config, shape)
    of_transformer = n_places * _transformer_bytes(config.transformer, kept, checkpointing)
    if isinstance(config, ARConfig):
        return of_transformer + _ar_bytes(config, shape, kept, checkpointing)
    return of_transformer + _nar_bytes(config, shape, kept)


def weight_copy_bytes(n_parameters: int, precision: Precision) -> int:
    """Of the weights that autocast rounds, kept from the forward pass to the backward pass; ``n_parameters`` of layers
    that multiply."""
    return 2 * n_parameters if precision == "bf16" else 0


def _transformer_bytes(config: TransformerConfig, kept: _Kept, checkpointing: bool) -> int:
    """A place of the input."""
    dim, product = config.dim, kept.product
    mask = kept.mask if config.dropout else 0
    normed = kept.normed * dim + 2 * _FP32  # with the mean and the spread
    attention = 4 * product * dim + _FP32 * config.n_heads  # queries, keys, values; out's input; sums of exponentials
    # The input of the non-linearity and its output; ReLU needs the latter alone.
    wide = (2 if config.activation == "gelu" else 1) * product * config.ff_dim
    block = 2 * normed + attention + wide + 2 * mask * dim
    first = kept.input_mask * dim if config.dropout else 0
    last = _FP32 * dim + 2 * _FP32 if config.norm == "pre" else 0
    blocks = config.n_layers * _FP32 * dim + block if checkpointing else config.n_layers * block
    return first + blocks + last


def _ar_bytes(config: ARConfig, shape: BatchShape, kept: _Kept, checkpointing: bool) -> int:
    dim, product = config.transformer.dim, kept.product
    n_said = shape.n_rows * (shape.n_frames + 1)
    # The output layer's input, and the log-probabilities in float32.
    total = n_said * (product * dim + _FP32 * (config.codebook_size + 1))
    n_places = shape.n_rows * row_length(config, shape)
    total += n_places * 2 * _IDS  # of tokens and positions
    if config.phoneme_attention == "full":  # a mask, and what each layer makes of it
        n_masks = 1 if checkpointing else config.transformer.n_layers
        total += n_places * row_length(config, shape) * (1 + n_masks * product)
    if config.alignment:
        total += _context_bytes(dim, shape, kept)
        total += n_places * (2 * _IDS + 1)  # phoneme and age of each place
        total += n_said * (_FP32 * 3 + _IDS)
    if config.local_layers:
        total += n_said * (_local_bytes(dim, config.local_layers, kept) + product * dim)
    return total


def _nar_bytes(config: NARConfig, shape: BatchShape, kept: _Kept) -> int:
    dim, product = config.transformer.dim, kept.product
    n_target, n_prompt = shape.n_rows * shape.n_frames, shape.n_rows * shape.n_prompt
    n_stages = config.n_quantizers - 1 if config.one_pass else 1
    stage = product * dim + _FP32 * config.codebook_size
    if config.one_pass:  # FrameHead: what enters the first layer, what leaves it, and its non-linearity
        stage += 3 * product * 2 * dim
    total = n_target * n_stages * stage
    if config.alignment:
        total += _context_bytes(dim, shape, kept) + (n_target + n_prompt) * _IDS
    if config.local_layers:
        n_read = n_target + (n_prompt if config.prompt_heads else 0)
        total += n_read * _local_bytes(dim, config.local_layers, kept) + n_target * product * dim
    if config.prompt_heads:
        # Prompt: contents and features as they enter, keys and values. Target: queries, what was found, mix and out.
        total += n_prompt * (_FP32 + 2 * product + 4 * product) * dim + n_target * 6 * product * dim
    if config.codebook_dim:
        total += n_target * (product * dim + 2 * _FP32 * config.codebook_dim)
    return total


def _context_bytes(dim: int, shape: BatchShape, kept: _Kept) -> int:
    """Of the convolutions over phonemes: a norm's input, a convolution's input and output."""
    layer = _FP32 + 2 * kept.product
    return shape.n_rows * (shape.n_phonemes + 1) * PhonemeContext.n_layers * layer * dim


def _local_bytes(dim: int, n_layers: int, kept: _Kept) -> int:
    """Of ``local_layers``, a frame: the norm's input, each convolution's input and output."""
    return _FP32 * dim + n_layers * 2 * kept.product * dim
