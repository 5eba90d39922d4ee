"""EnCodec, the codec of the paper (§3): 24 kHz mono to 75 frames a second of 8 codes and back.

SEANet (EnCodec §3.1): an encoder of strided causal convolutions with residual units and an LSTM, a decoder that mirrors
it, and between them a residual vector quantiser. Layers sit in the order, and their parameters bear the names, of the
Hugging Face edition of the published model, so that reading its weights is renaming them. Departures: the published
model's 32 codebooks are read only as far as wanted (8 are 6 kbit/s), and there is no 48 kHz stereo variant.

Source: Défossez et al., "High Fidelity Neural Audio Compression", arXiv 2210.13438.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from valle.codec.base import Codec, CodecOutput, StreamDecoder
from valle.codec.causal import CausalConv1d, CausalConvTranspose1d, CausalSequential, ResidualLSTM, ResidualUnit
from valle.codec.quantizer import ResidualVectorQuantizer
from valle.config import from_dict, to_dict
from valle.errors import ValleError


@dataclass(frozen=True)
class EnCodecConfig:
    """Sizes of an ``EnCodec``, stored beside its weights; the defaults are the published 24 kHz model at 6 kbit/s."""

    sample_rate: int = 24000
    """Samples a second."""
    dim: int = 128
    """Width of the vectors that are quantised."""
    n_filters: int = 32
    """Channels next to the wave; every change of rate doubles them on the way in and halves them on the way out."""
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    """Upsampling factors of the decoder; reversed, the strides of the encoder. Their product is the samples a frame."""
    n_residual_layers: int = 1
    """Residual units at each rate."""
    compress: int = 2
    """By how much the inside of a residual unit is narrower."""
    dilation_growth: int = 2
    """Factor between the dilations of successive residual units at one rate."""
    kernel_size: int = 7
    """Kernel of the first convolution of the encoder and of the decoder."""
    last_kernel_size: int = 7
    """Kernel of the last convolution of the encoder and of the decoder."""
    residual_kernel_size: int = 3
    """Kernel of the first convolution in a residual unit."""
    conv_shortcut: bool = True
    """Whether a residual unit adds a 1×1 convolution of its input rather than the input itself."""
    n_lstm_layers: int = 2
    """Layers of the LSTM in the encoder and of that in the decoder; 0 leaves them out."""
    n_quantizers: int = 8
    """Codebooks."""
    codebook_size: int = 1024
    """Entries of each codebook."""
    weight_norm: bool = True
    """Whether convolutions train as direction and length, as published; off once that is folded into plain weights."""

    def __post_init__(self) -> None:
        if not self.ratios:
            raise ValleError("ratios is empty; at least one change of rate is needed, such as (8, 5, 4, 2)")
        sizes = {**to_dict(self), "ratios": min(self.ratios)}
        for name, size in sizes.items():
            least = 0 if name == "n_lstm_layers" else 1
            if not isinstance(size, bool) and size < least:
                raise ValleError(f"{name} is {size}; at least {least} is needed")

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return math.prod(self.ratios)


class EnCodec(Codec):
    """SEANet encoder, residual vector quantiser, SEANet decoder: wav [B, 1, N] -> codes [B, K, T] -> wav [B, 1, N]."""

    codec_type = "encodec"

    def __init__(self, config: EnCodecConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EnCodecConfig()
        self.sample_rate = config.sample_rate
        self.hop_length = config.hop_length
        self.n_quantizers = config.n_quantizers
        self.codebook_size = config.codebook_size
        self.encoder = _encoder(config)
        self.quantizer = ResidualVectorQuantizer(config.dim, config.n_quantizers, config.codebook_size)
        self.decoder = _decoder(config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EnCodec:
        """Build from the dictionary in ``config.json``, with random weights."""
        return cls(from_dict(EnCodecConfig, config, "the codec's config.json"))

    @classmethod
    def from_huggingface(cls, folder_or_hub_id: str | Path, n_quantizers: int = 8) -> EnCodec:
        """Read weights in the layout of ``facebook/encodec_24khz``, with the weight norm folded in.

        Args:
            folder_or_hub_id: a folder with ``config.json`` and ``model.safetensors``, or a model of the Hugging Face
                hub, fetched once.
            n_quantizers: how many of its codebooks to keep, the first ones.

        Raises:
            ValleError: nothing there, files that do not fit, a variant that is not supported, or fewer codebooks.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        config_path, weights_path = _locate(folder_or_hub_id)
        try:
            published = json.loads(config_path.read_text(encoding="utf-8"))
            weights = load_file(weights_path)
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise ValleError(f"{folder_or_hub_id} cannot be read ({error}); fetch the model again") from error
        config = _read_published_config(published, n_quantizers)
        state = {name: w.float() for key, w in weights.items() if (name := _own_name(key, n_quantizers)) is not None}
        n_stored = sum(key.endswith(".codebook.embed") for key in weights)
        if n_quantizers > n_stored:
            raise ValleError(f"{folder_or_hub_id} has {n_stored} codebooks, but {n_quantizers} are wanted")
        codec = cls(config)
        try:
            # PyTorch itself reads both ways of storing a weight norm, weight_g/weight_v and parametrizations.
            missing, unexpected = codec.load_state_dict(state, strict=False)
        except RuntimeError as error:  # a shape
            first = str(error).splitlines()[1].strip()
            raise ValleError(f"{folder_or_hub_id} does not fit its config.json: {first}") from error
        missing = [key for key in missing if "ema_" not in key]
        if missing or unexpected:
            raise ValleError(
                f"{folder_or_hub_id} does not fit its config.json: missing {missing[:3]}, unexpected {unexpected[:3]}"
            )
        codec.fold_weight_norm()
        return codec.eval()

    def fold_weight_norm(self) -> None:
        """Replace direction and length by their product, in place: the same function, faster, smaller on disk.

        NOTE: the fingerprint changes with the form of the weights, so fold before the first codes are stored.
        """
        with torch.enable_grad():  # without gradients PyTorch would leave a plain tensor, not a parameter
            for module in self.modules():
                if parametrize.is_parametrized(module, "weight"):
                    parametrize.remove_parametrizations(module, "weight")
        self.config = replace(self.config, weight_norm=False)

    def config_dict(self) -> dict[str, Any]:
        return to_dict(self.config)

    def codebooks(self) -> Tensor:
        return self.quantizer.codebooks()

    def encoding_modules(self) -> list[nn.Module]:
        return [self.encoder, self.quantizer]

    def latents(self, wav: Tensor) -> Tensor:
        """wav [B, 1, N] -> the vectors before quantisation, z [B, D, T], T = ceil(N / hop_length)."""
        self._check_wav(wav)
        z: Tensor = self.encoder(wav)  # [B, D, T]
        return z

    @torch.no_grad()
    def encode(self, wav: Tensor, n_quantizers: int | None = None) -> Tensor:
        """wav [B, 1, N] in [-1, 1] -> codes [B, K, T] int64, T = ceil(N / hop_length).

        Raises:
            ValueError: a wav of another shape or dtype or with values that are not finite, or a K out of range.
        """
        if n_quantizers is not None and not 1 <= n_quantizers <= self.n_quantizers:
            raise ValueError(f"n_quantizers is {n_quantizers}; this codec has 1 to {self.n_quantizers}")
        self._check_wav(wav)
        if not wav.isfinite().all():
            raise ValueError("wav has samples that are NaN or infinite; finite ones in [-1, 1] are needed")
        return self.quantizer.encode(self.encoder(wav), n_quantizers)

    @torch.no_grad()
    def decode(self, codes: Tensor, voice: Tensor | None = None) -> Tensor:
        """codes [B, K, T], any K up to ``n_quantizers`` -> wav [B, 1, T * hop_length].

        Raises:
            ValueError: codes of another shape or dtype, without frames, or beyond the codebooks.
        """
        self._check_codes(codes)
        if codes.shape[2] == 0:
            raise ValueError(f"codes have shape {list(codes.shape)}; at least one frame is needed")
        wav: Tensor = self.decoder(self.quantizer.decode(codes))
        return wav

    def forward(
        self, wav: Tensor, n_quantizers: Tensor | None = None, generator: torch.Generator | None = None
    ) -> CodecOutput:
        """Encode, quantise and decode for training; the codebooks follow their moving averages in training mode.

        Args:
            wav: [B, 1, N].
            n_quantizers: [B] codebooks in use for each item (quantizer dropout), all when None.
            generator: chooses the replacements of dead codebook entries.

        Returns:
            wav [B, 1, N], codes [B, K, T] of all codebooks, and the commitment loss.
        """
        quantized = self.quantizer(self.latents(wav), n_quantizers, generator=generator)
        decoded: Tensor = self.decoder(quantized.z)  # [B, 1, T * hop]
        return CodecOutput(decoded[..., : wav.shape[2]], quantized.codes, quantized.commitment_loss)

    def stream_decoder(self, voice: Tensor | None = None) -> StreamDecoder:
        """A decoder that keeps its state between chunks.

        The samples lag behind the codes only at the start: none come before ``kernel_size`` frames are in.
        """
        return _EnCodecStream(self)

    def _check_wav(self, wav: Tensor) -> None:
        if wav.dim() != 3 or wav.shape[1] != 1 or wav.shape[2] == 0:
            raise ValueError(f"wav has shape {list(wav.shape)}; [B, 1, N] is needed, N at least 1")
        dtype = next(self.parameters()).dtype
        if wav.dtype != dtype:
            raise ValueError(f"wav is {wav.dtype}; {dtype} in [-1, 1] is needed")

    def _check_codes(self, codes: Tensor) -> None:
        if codes.dim() != 3 or not 1 <= codes.shape[1] <= self.n_quantizers:
            raise ValueError(f"codes have shape {list(codes.shape)}; [B, K, T] is needed, K 1 to {self.n_quantizers}")
        if codes.dtype != torch.int64:
            raise ValueError(f"codes are {codes.dtype}; torch.int64 is needed")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes run from {int(codes.min())} to {int(codes.max())}; 0 to {self.codebook_size - 1} are needed"
            )


class _EnCodecStream(StreamDecoder):
    def __init__(self, codec: EnCodec) -> None:
        self.codec = codec
        self.decoder = codec.decoder.stream()
        self.finished = False

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """codes [1, K, t] -> wav [1, 1, n]."""
        self.codec._check_codes(codes)
        if codes.shape[0] != 1:
            raise ValueError(f"codes have shape {list(codes.shape)}; a stream takes one signal, [1, K, t]")
        return self._run(self.codec.quantizer.decode(codes), last=False)

    @torch.no_grad()
    def finish(self) -> Tensor:
        embed = self.codec.get_buffer("quantizer.layers.0.embed")
        wav = self._run(embed.new_zeros(1, self.codec.config.dim, 0), last=True)
        self.finished = True
        return wav

    def _run(self, z: Tensor, last: bool) -> Tensor:
        if self.finished:
            raise ValueError("this stream is finished; open another with stream_decoder()")
        return self.decoder(z, last)


def _encoder(config: EnCodecConfig) -> CausalSequential:
    """wav [B, 1, N] -> z [B, D, T]."""
    width = config.n_filters
    layers: list[nn.Module] = [CausalConv1d(1, width, config.kernel_size, weight_norm=config.weight_norm)]
    for ratio in reversed(config.ratios):
        layers += _residual_units(width, config)
        layers += [
            nn.ELU(),
            CausalConv1d(width, 2 * width, 2 * ratio, stride=ratio, weight_norm=config.weight_norm),
        ]
        width *= 2
    if config.n_lstm_layers:
        layers += [ResidualLSTM(width, config.n_lstm_layers)]
    layers += [nn.ELU(), CausalConv1d(width, config.dim, config.last_kernel_size, weight_norm=config.weight_norm)]
    return CausalSequential(*layers)


def _decoder(config: EnCodecConfig) -> CausalSequential:
    """z [B, D, T] -> wav [B, 1, T * hop]."""
    width = config.n_filters * 2 ** len(config.ratios)
    layers: list[nn.Module] = [CausalConv1d(config.dim, width, config.kernel_size, weight_norm=config.weight_norm)]
    if config.n_lstm_layers:
        layers += [ResidualLSTM(width, config.n_lstm_layers)]
    for ratio in config.ratios:
        layers += [
            nn.ELU(),
            CausalConvTranspose1d(width, width // 2, 2 * ratio, stride=ratio, weight_norm=config.weight_norm),
        ]
        width //= 2
        layers += _residual_units(width, config)
    layers += [nn.ELU(), CausalConv1d(width, 1, config.last_kernel_size, weight_norm=config.weight_norm)]
    return CausalSequential(*layers)


def _residual_units(width: int, config: EnCodecConfig) -> list[nn.Module]:
    """The residual units at one rate: [B, width, T] -> [B, width, T]."""
    return [
        ResidualUnit(
            width,
            width // config.compress,
            config.residual_kernel_size,
            config.dilation_growth**i,
            conv_shortcut=config.conv_shortcut,
            weight_norm=config.weight_norm,
        )
        for i in range(config.n_residual_layers)
    ]


# Our field for each of the published configuration's, and what else it must say.
_PUBLISHED_FIELDS = {
    "sampling_rate": "sample_rate",
    "hidden_size": "dim",
    "num_filters": "n_filters",
    "upsampling_ratios": "ratios",
    "num_residual_layers": "n_residual_layers",
    "compress": "compress",
    "dilation_growth_rate": "dilation_growth",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "use_conv_shortcut": "conv_shortcut",
    "num_lstm_layers": "n_lstm_layers",
    "codebook_size": "codebook_size",
}
_PUBLISHED_VARIANT = {
    "audio_channels": 1,
    "use_causal_conv": True,
    "norm_type": "weight_norm",
    "pad_mode": "reflect",
    "normalize": False,
    "chunk_length_s": None,
    "trim_right_ratio": 1.0,
}


def _read_published_config(published: Any, n_quantizers: int) -> EnCodecConfig:
    """The ``config.json`` of ``transformers.EncodecModel`` as an ``EnCodecConfig``; what it leaves out is default."""
    model_type = published.get("model_type") if isinstance(published, dict) else None
    if model_type != "encodec":
        raise ValleError(f"this is a model of type {model_type!r}; an EnCodec is needed")
    for key, needed in _PUBLISHED_VARIANT.items():
        if published.get(key, needed) != needed:
            raise ValleError(
                f"this EnCodec has {key} {published[key]!r}, but only {needed!r} can be read; "
                "use the 24 kHz mono model, facebook/encodec_24khz"
            )
    values = {ours: published[theirs] for theirs, ours in _PUBLISHED_FIELDS.items() if theirs in published}
    config = from_dict(EnCodecConfig, {**values, "n_quantizers": n_quantizers}, "the EnCodec's config.json")
    if published.get("codebook_dim") not in (None, config.dim):
        raise ValleError(
            f"this EnCodec has codebook_dim {published['codebook_dim']}; it must be hidden_size, {config.dim}"
        )
    return config


def _own_name(key: str, n_quantizers: int) -> str | None:
    """Our name of a published tensor; None for what is not read: further codebooks, a codebook's training state."""
    if match := re.fullmatch(r"quantizer\.layers\.(\d+)\.codebook\.(\w+)", key):
        k, name = int(match[1]), match[2]
        return f"quantizer.layers.{k}.embed" if k < n_quantizers and name == "embed" else None
    return re.sub(r"^(encoder|decoder)\.layers\.", r"\1.", key)


def _locate(folder_or_hub_id: str | Path) -> tuple[Path, Path]:
    """``config.json`` and ``model.safetensors`` of a folder, or of a model of the hub, fetched if need be."""
    names = ("config.json", "model.safetensors")
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        for name in names:
            if not (folder / name).is_file():
                raise ValleError(f"{folder} has no {name}; a folder with {' and '.join(names)} is needed")
        return folder / names[0], folder / names[1]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder_or_hub_id)):
        raise ValleError(f"there is no folder {folder}; give one, or a hub id such as facebook/encodec_24khz")
    from huggingface_hub import hf_hub_download

    try:
        config_path, weights_path = (Path(hf_hub_download(str(folder_or_hub_id), name)) for name in names)
    except Exception as error:  # the library's own errors, and those of the HTTP client under it, have no common base
        raise ValleError(
            f"{folder_or_hub_id} is not a folder, and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}); check the name and the network"
        ) from error
    return config_path, weights_path
