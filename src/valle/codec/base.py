"""What every codec of this project offers: waves to codes and back, at once or chunk by chunk (paper §3).

Two codecs implement it: ``encodec.EnCodec`` (the paper's) and ``spectral.SpectralCodec`` (the embedded one).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from valle.blank import blank
from valle.errors import ValleError
from valle.files import fingerprint, write_atomic


class CodecOutput(NamedTuple):
    """What a codec's ``forward`` returns in training."""

    wav: Tensor  # [B, 1, N] the reconstruction
    codes: Tensor  # [B, K, T] int64
    commitment_loss: Tensor  # scalar


class StreamDecoder(ABC):
    """Codes in, samples out, chunk by chunk; the concatenation equals ``Codec.decode`` of all the codes."""

    @abstractmethod
    def push(self, codes: Tensor) -> Tensor:
        """codes [1, K, t] -> the samples that are final now, wav [1, 1, n]; n may be 0."""

    @abstractmethod
    def finish(self) -> Tensor:
        """The samples held back for lookahead, wav [1, 1, n]."""


class Codec(nn.Module, ABC):
    """A neural codec with a residual vector quantiser. Frames last ``hop_length`` samples."""

    sample_rate: int
    hop_length: int
    n_quantizers: int
    codebook_size: int

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    @property
    @abstractmethod
    def codec_type(self) -> str:
        """The name by which ``load_codec`` finds the class."""

    @abstractmethod
    def encode(self, wav: Tensor, n_quantizers: int | None = None) -> Tensor:
        """wav [B, 1, N] in [-1, 1] -> codes [B, K, T] int64, T = ceil(N / hop_length)."""

    @abstractmethod
    def decode(self, codes: Tensor, voice: Tensor | None = None) -> Tensor:
        """codes [B, K, T], any K up to ``n_quantizers`` -> wav [B, 1, T * hop_length].

        ``voice`` is what ``voice`` found, [B, n], or [1, n] for all; None: the codes say all there is to say.
        """

    @abstractmethod
    def stream_decoder(self, voice: Tensor | None = None) -> StreamDecoder:
        """A decoder that keeps its state between chunks; ``voice`` [1, n] as for ``decode``."""

    def voice(self, codes: Tensor) -> Tensor | None:
        """What a decoder can be told of the voice in codes [B, K, T] of some speech; None: this one is told nothing."""
        return None

    @abstractmethod
    def encoding_modules(self) -> list[nn.Module]:
        """The modules that decide the codes: everything up to and with the quantiser."""

    @abstractmethod
    def codebooks(self) -> Tensor:
        """The entries of all codebooks, [K, codebook_size, D]."""

    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """The configuration, ready for JSON."""

    def fingerprint(self) -> str:
        """Twelve hex digits over the weights that decide the codes; codecs with the same one share shards and models.

        It is taken over half-precision values, so that storing a codec in fp16 does not change it.
        """
        return fingerprint(
            "",
            (
                (name, tensor.detach().cpu().to(torch.float16))
                for module in self.encoding_modules()
                for name, tensor in sorted(module.state_dict().items())
                if "ema_" not in name  # training state only
            ),
        )

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write ``model.safetensors`` (without the quantiser's training state) and ``config.json``."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            k: (v.to(dtype) if v.is_floating_point() else v).contiguous()
            for k, v in self.state_dict().items()
            if "ema_" not in k
        }
        config = {"type": self.codec_type, **self.config_dict()}
        write_atomic(folder / "model.safetensors", save(tensors))
        write_atomic(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def load_codec(folder: str | Path, device: str | torch.device = "cpu") -> Codec:
    """Read a codec saved by ``Codec.save`` or the published EnCodec in its Hugging Face layout.

    Raises:
        ValleError: the folder holds no codec, a damaged one, or one of an unknown type.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValleError(
            f"{folder} is not a codec: no config.json is in it; give a folder that `valle codec train` wrote"
        )
    try:
        return _read_codec(folder).to(device).eval()
    except ValleError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValleError(f"the codec {folder} is damaged or incomplete: {reason}") from error


def _read_codec(folder: Path) -> Codec:
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") == "encodec":
        from valle.codec.encodec import EnCodec

        return EnCodec.from_huggingface(folder)
    kind = config.pop("type", None)
    if kind == "spectral":
        from valle.codec.spectral import SpectralCodec as Class
    elif kind == "encodec":
        from valle.codec.encodec import EnCodec as Class  # type: ignore[assignment]
    else:
        raise ValleError(f'{folder} names the codec type {kind!r}; known are "spectral" and "encodec"')
    with blank():
        codec = Class.from_config(config)
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()}
    missing, unexpected = codec.load_state_dict(state, strict=False)
    missing = [k for k in missing if "ema_" not in k]
    if missing or unexpected:
        raise ValleError(f"{folder} does not fit its config.json: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return codec
