"""The embedded codec: encoder and decoder work at the frame rate, between a log-mel spectrogram and an inverse STFT.

It keeps EnCodec's interface (24 kHz, hop 320, residual codes of 8 × 1024, paper §3) but not its body: as in Vocos,
every layer is a ConvNeXt block at 75 Hz and the wave comes from one inverse Fourier transform, so nothing ever runs at
the sample rate. That is what makes it trainable, and far faster than real time, on two processor cores. The encoder
sees both sides of a frame; the decoder is causal but for ``lookahead`` frames, so it can stream.

Source: Siuzdak, "Vocos", arXiv 2306.00814 (blocks and head); Défossez et al., "High Fidelity Neural Audio Compression",
arXiv 2210.13438 (quantiser, training).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.codec.base import Codec, CodecOutput, StreamDecoder
from valle.codec.frames import (
    Backbone,
    BackboneStream,
    ConvNeXtBlock,
    InverseSTFT,
    LogMel,
    OverlapAddStream,
    VoiceEncoder,
)
from valle.codec.harmonic import HarmonicDecoder, HarmonicStream, decoder_backbone, pitch_hz
from valle.codec.quantizer import ResidualVectorQuantizer
from valle.config import from_dict, to_dict
from valle.errors import ValleError


@dataclass(frozen=True)
class SpectralCodecConfig:
    """Sizes of a ``SpectralCodec``; stored beside its weights."""

    sample_rate: int = 24000
    """Samples a second."""
    hop_length: int = 320
    """Samples a frame."""
    n_fft: int = 1280
    """Window of the analysis, and of a Fourier decoder's inverse transform, in samples; a multiple of twice the hop."""
    n_mels: int = 100
    """Bands of the log-mel spectrogram that the encoder reads."""
    mel_window: int = 0
    """Its window in samples; 0: ``n_fft``."""
    mel_frames: int = 1
    """Its spectra a frame, evenly spaced; they stand side by side in what the encoder reads."""
    linear_path: bool = False
    """A linear map from what the encoder reads to the vectors, beside the encoder and added to it. It begins as the
    principal components of speech, the encoder's own share as nothing."""
    phase_hz: float = 0.0
    """Up to this frequency the encoder also reads the complex spectrum, so that codes can carry phase; 0: mel only."""
    encoder_dim: int = 256
    """Width of the encoder."""
    encoder_layers: int = 4
    """ConvNeXt blocks in the encoder."""
    decoder_dim: int = 384
    """Width of the decoder."""
    decoder_layers: int = 8
    """ConvNeXt blocks in the decoder."""
    expansion: int = 3
    """Hidden width of a block, in multiples of its width."""
    kernel_size: int = 7
    """Frames that a block's depth-wise convolution sees."""
    lookahead: int = 4
    """Frames after the present one that the decoder waits for."""
    codebook_dim: int = 128
    """Width of the vectors that are quantised."""
    n_quantizers: int = 8
    """Codebooks."""
    codebook_size: int = 1024
    """Entries of each codebook."""
    decoder: Literal["fourier", "harmonic"] = "fourier"
    """What the decoder's network sets: magnitudes and phases, as in Vocos, or a pitch and filters (``harmonic.py``)."""
    voice_dim: int = 0
    """Numbers by which the decoder can be told whose speech it makes, found in other speech of that voice; 0: none."""

    def __post_init__(self) -> None:
        if self.n_fft % (2 * self.hop_length):
            raise ValleError(f"n_fft is {self.n_fft}; it must be a multiple of twice the hop, {2 * self.hop_length}")
        if self.mel_frames < 1 or self.hop_length % self.mel_frames:
            raise ValleError(f"mel_frames is {self.mel_frames}; it must divide the hop, {self.hop_length}")
        if self.linear_path and self.n_features < self.codebook_dim:
            raise ValleError(
                f"the encoder reads {self.n_features} numbers a frame, and {self.codebook_dim} principal components of "
                "them are needed; lower codebook_dim or raise n_mels or mel_frames"
            )

    @property
    def n_phase_bins(self) -> int:
        """Bins of the complex spectrum that the encoder reads."""
        return round(self.phase_hz * self.n_fft / self.sample_rate)

    @property
    def n_features(self) -> int:
        """Numbers a frame that the encoder reads."""
        return self.n_mels * self.mel_frames + 2 * self.n_phase_bins


class SpectralDecoder(nn.Module):
    """Quantised vectors [B, D, T] -> wav [B, 1, T * hop]: causal backbone, magnitude and phase, inverse STFT."""

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self.backbone = decoder_backbone(config)
        self.head = nn.Linear(config.decoder_dim, config.n_fft + 2)
        self.istft = InverseSTFT(config.hop_length, config.n_fft)

    def spectrum(self, x: Tensor) -> Tensor:
        """Backbone's output [B, T, D] -> complex spectrum [B, T, n_fft // 2 + 1] (Vocos §3.3)."""
        log_magnitude, phase = self.head(x).chunk(2, dim=-1)  # 2 × [B, T, F]
        magnitude = log_magnitude.clamp(max=5.0).exp()
        return torch.complex(magnitude * phase.cos(), magnitude * phase.sin())

    def forward(self, z: Tensor, voice: Tensor | None = None) -> Tensor:
        wav: Tensor = self.istft(self.spectrum(self.backbone(z.transpose(1, 2), voice)))
        return wav


class SpectralCodec(Codec):
    """Log-mel -> ConvNeXt -> residual vector quantiser -> ConvNeXt -> inverse STFT."""

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.hop_length = config.hop_length
        self.n_quantizers = config.n_quantizers
        self.codebook_size = config.codebook_size
        self.mel = LogMel(
            config.sample_rate, config.hop_length // config.mel_frames, config.mel_window or config.n_fft, config.n_mels
        )
        if config.n_phase_bins:
            self.phase = LogMel(config.sample_rate, config.hop_length, config.n_fft, config.n_mels)
        self.encoder = Backbone(
            config.n_features,
            config.encoder_dim,
            config.encoder_layers,
            config.expansion,
            config.kernel_size,
            None,
        )
        self.project = nn.Linear(config.encoder_dim, config.codebook_dim)
        self.linear = nn.Linear(config.n_features, config.codebook_dim) if config.linear_path else None
        self.quantizer = ResidualVectorQuantizer(config.codebook_dim, config.n_quantizers, config.codebook_size)
        self.decoder: SpectralDecoder | HarmonicDecoder = (
            HarmonicDecoder(config) if config.decoder == "harmonic" else SpectralDecoder(config)
        )
        self.voice_encoder = (
            VoiceEncoder(config.codebook_dim, config.encoder_dim, config.voice_dim) if config.voice_dim else None
        )
        self.apply(_initialise)
        for block in self.decoder.backbone.blocks:
            if isinstance(block, ConvNeXtBlock) and block.film is not None:  # no voice changes anything at first
                nn.init.zeros_(block.film.weight)
        if isinstance(self.decoder, HarmonicDecoder):
            self.decoder.initialise()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpectralCodec:
        """Build from the dictionary in ``config.json``."""
        return cls(from_dict(SpectralCodecConfig, config, "the codec's config.json"))

    @property
    def codec_type(self) -> str:
        return "spectral"

    def config_dict(self) -> dict[str, Any]:
        return to_dict(self.config)

    def codebooks(self) -> Tensor:
        return self.quantizer.codebooks()

    def encoding_modules(self) -> list[nn.Module]:
        return [self.encoder, self.project, self.quantizer, *([] if self.linear is None else [self.linear])]

    def latents(self, wav: Tensor) -> Tensor:
        """wav [B, 1, N] -> the vectors before quantisation, [B, D, T]."""
        check_wav(wav)
        wav = F.pad(wav, (0, -wav.shape[2] % self.hop_length))
        features = self.features(wav)
        z: Tensor = self.project(self.encoder(features))  # [B, T, D]
        if self.linear is not None:
            z = z + self.linear(features)
        return z.transpose(1, 2)

    def log_mel(self, wav: Tensor) -> Tensor:
        """wav [B, 1, T * hop] -> log-mel spectra [B, T, mel_frames * n_mels]."""
        log_mel: Tensor = self.mel(wav)
        return log_mel.reshape(len(wav), -1, self.config.mel_frames * self.config.n_mels)

    def features(self, wav: Tensor) -> Tensor:
        """What the encoder reads: wav [B, 1, T * hop] -> [B, T, n_features]."""
        log_mel = self.log_mel(wav)
        if self.config.n_phase_bins == 0:
            return log_mel
        low = self.phase.spectrum(wav)[..., : self.config.n_phase_bins]  # [B, T, n_phase_bins] complex
        # Compressed to the power 0.3, or the loudest harmonic would drown all others.
        low = low * (low.abs() + 1e-4) ** -0.7
        return torch.cat([log_mel, low.real, low.imag], dim=-1)

    @torch.no_grad()
    def begin_with_components(self, features: Tensor) -> None:
        """Let the linear path give the principal components of ``features`` [N, n_features], the encoder nothing.

        The components keep their variances, whose mean becomes 1, so that the quantiser spends its bits where log-mel
        spectra differ most.
        """
        assert self.linear is not None
        x = features.double()
        mean = x.mean(0)
        covariance = torch.cov((x - mean).t())
        variances, directions = torch.linalg.eigh(covariance)  # ascending
        kept = directions[:, -self.config.codebook_dim :].flip(1)  # [n_features, D]
        scale = variances[-self.config.codebook_dim :].mean().clamp(min=1e-9) ** -0.5
        self.linear.weight.copy_((kept * scale).t())
        self.linear.bias.copy_(-(mean @ kept) * scale)
        self.project.weight.zero_()
        self.project.bias.zero_()

    @torch.no_grad()
    def encode(self, wav: Tensor, n_quantizers: int | None = None) -> Tensor:
        return self.quantizer.encode(self.latents(wav), n_quantizers)

    @torch.no_grad()
    def voice(self, codes: Tensor) -> Tensor | None:
        return (
            self.voice_of(self.quantizer.decode(codes)) if self.voice_encoder is not None and codes.shape[2] else None
        )

    def voice_of(self, z: Tensor) -> Tensor:
        """Quantised vectors [B, D, T] of some speech -> voices [B, voice_dim]; with ``voice_dim`` only."""
        assert self.voice_encoder is not None, "only a codec with voice_dim is told voices"
        voices: Tensor = self.voice_encoder(z.transpose(1, 2))
        return voices

    @torch.no_grad()
    def decode(self, codes: Tensor, voice: Tensor | None = None) -> Tensor:
        wav: Tensor = self.decoder(self.quantizer.decode(codes), voice)
        return wav

    def forward(
        self, wav: Tensor, n_quantizers: Tensor | None = None, generator: torch.Generator | None = None
    ) -> CodecOutput:
        """Encode, quantise and decode for training.

        Args:
            wav: [B, 1, N], N a multiple of the hop.
            n_quantizers: [B] codebooks in use for each item (quantizer dropout), all when None.
            generator: of the replacements for dead codebook entries.
        """
        quantized = self.quantizer(self.latents(wav), n_quantizers, generator=generator)
        return CodecOutput(self.decoder(quantized.z), quantized.codes, quantized.commitment_loss)

    def stream_decoder(self, voice: Tensor | None = None) -> StreamDecoder:
        if isinstance(self.decoder, HarmonicDecoder):
            return HarmonicStreamDecoder(self, self.decoder, voice)
        return SpectralStreamDecoder(self, self.decoder, voice)


class _FrameStreamDecoder(StreamDecoder):
    """What both decoders share: codes to vectors, and vectors through the backbone chunk by chunk."""

    def __init__(self, codec: SpectralCodec, backbone: Backbone, voice: Tensor | None) -> None:
        self.codec, self.backbone = codec, BackboneStream(backbone, voice)

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        return self._decode(self.codec.quantizer.decode(codes).transpose(1, 2), last=False)

    @torch.no_grad()
    def finish(self) -> Tensor:
        if self.backbone.input is None:
            return torch.zeros(1, 1, 0)
        return self._decode(self.backbone.input[:, :0], last=True)

    @abstractmethod
    def _decode(self, z: Tensor, last: bool) -> Tensor:
        """z [1, t, D], t may be 0 -> the samples that are final [1, 1, n]; with ``last``, all that are left."""


class HarmonicStreamDecoder(_FrameStreamDecoder):
    """Streams a codec whose decoder is harmonic; the sources' phases run on from chunk to chunk."""

    def __init__(self, codec: SpectralCodec, decoder: HarmonicDecoder, voice: Tensor | None) -> None:
        super().__init__(codec, decoder.backbone, voice)
        self.decoder, self.synthesis = decoder, HarmonicStream(decoder)

    def _decode(self, z: Tensor, last: bool) -> Tensor:
        filters, logits = self.decoder.heads(self.backbone.push(z, last))
        return self.synthesis.push(filters, pitch_hz(logits), last)


class SpectralStreamDecoder(_FrameStreamDecoder):
    """Streams a codec whose decoder sets magnitudes and phases."""

    def __init__(self, codec: SpectralCodec, decoder: SpectralDecoder, voice: Tensor | None) -> None:
        super().__init__(codec, decoder.backbone, voice)
        self.decoder, self.overlap = decoder, OverlapAddStream(decoder.istft)

    def _decode(self, z: Tensor, last: bool) -> Tensor:
        x = self.backbone.push(z, last)  # [1, n, D]
        wav = z.new_zeros(1, 0)
        if x.shape[1]:
            wav = self.overlap.push(self.decoder.istft.frames(self.decoder.spectrum(x)))
        if last:
            wav = torch.cat([wav, self.overlap.finish()], dim=1)
        return wav.unsqueeze(1)


def check_wav(wav: Tensor) -> None:
    """Refuse what is not [B, 1, N] float.

    Raises:
        ValueError: with the shape or type given and the one needed.
    """
    if wav.dim() != 3 or wav.shape[1] != 1 or wav.shape[2] == 0 or not wav.is_floating_point():
        raise ValueError(
            f"wav is {wav.dtype} of shape {tuple(wav.shape)}; float samples of shape [B, 1, N], N > 0, are needed"
        )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
