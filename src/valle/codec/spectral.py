"""The embedded codec: encoder and decoder work at the frame rate, between a log-mel spectrogram and an inverse STFT.

It keeps EnCodec's interface (24 kHz, hop 320, residual codes of 8 × 1024, paper §3) but not its body: as in Vocos,
every layer is a ConvNeXt block at 75 Hz and the wave comes from one inverse Fourier transform, so nothing ever runs at
the sample rate. That is what makes it trainable, and far faster than real time, on two processor cores. The encoder
sees both sides of a frame; the decoder is causal but for ``lookahead`` frames, so it can stream.

Source: Siuzdak, "Vocos", arXiv 2306.00814 (blocks and head); Défossez et al., "High Fidelity Neural Audio Compression",
arXiv 2210.13438 (quantiser, training).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.codec.base import Codec, CodecOutput, StreamDecoder
from valle.codec.harmonic import HarmonicDecoder, HarmonicStream, pitch_hz
from valle.codec.quantizer import ResidualVectorQuantizer
from valle.config import from_dict, to_dict


@dataclass(frozen=True)
class SpectralCodecConfig:
    """Sizes of a ``SpectralCodec``; stored beside its weights."""

    sample_rate: int = 24000
    """Samples a second."""
    hop_length: int = 320
    """Samples a frame."""
    n_fft: int = 1280
    """Window of the analysis and of the inverse transform, in samples; a multiple of twice the hop."""
    n_mels: int = 100
    """Bands of the log-mel spectrogram that the encoder reads."""
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

    def __post_init__(self) -> None:
        if self.n_fft % (2 * self.hop_length):
            raise ValueError(f"n_fft is {self.n_fft}; it must be a multiple of twice the hop, {2 * self.hop_length}")


class FrameConv(nn.Module):
    """Convolution over time in the layout [B, T, C], with ``left`` and ``right`` frames of context padded by zeros."""

    def __init__(self, dim_in: int, dim_out: int, left: int, right: int, groups: int = 1) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.conv = nn.Conv1d(dim_in, dim_out, left + 1 + right, groups=groups)

    def forward(self, x: Tensor, past: Tensor | None = None, last: bool = True) -> Tensor:
        """x [B, T, C_in] -> [B, T, C_out].

        In a stream ``past`` [B, left + held, C_in] replaces the zeros on the left, and the zeros on the right come only
        with the last chunk.
        """
        x = x.transpose(1, 2)  # [B, C, T]
        if past is None:
            x = F.pad(x, (self.left, self.right if last else 0))
        else:
            x = F.pad(torch.cat([past.transpose(1, 2), x], dim=2), (0, self.right if last else 0))
        y: Tensor = self.conv(x)
        return y.transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """Depth-wise convolution, layer norm, two pointwise layers, scaled residual (Vocos §3.2)."""

    def __init__(self, dim: int, hidden: int, left: int, right: int, scale: float) -> None:
        super().__init__()
        self.depthwise = FrameConv(dim, dim, left, right, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D]; ``past`` [B, left, D] are the frames before x in a stream."""
        y = self.depthwise(x, past)
        x = x + self.scale * self.down(F.gelu(self.up(self.norm(y))))
        return x


class Backbone(nn.Module):
    """Input convolution, ConvNeXt blocks, final norm: [B, T, C] -> [B, T, D]."""

    def __init__(
        self, dim_in: int, dim: int, n_layers: int, expansion: int, kernel_size: int, lookahead: int | None
    ) -> None:
        super().__init__()
        side = kernel_size // 2
        # lookahead None: symmetric everywhere; otherwise only the first convolution looks ahead.
        left, right = (side, side) if lookahead is None else (kernel_size - 1, 0)
        self.embed = FrameConv(dim_in, dim, side, side if lookahead is None else lookahead)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(dim, dim * expansion, left, right, 1 / n_layers) for _ in range(n_layers)
        )
        self.final_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C] -> [B, T, D]."""
        x = self.norm(self.embed(x))  # [B, T, D]
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.final_norm(x)
        return y


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int, f_min: float = 0.0, f_max: float | None = None) -> Tensor:
    """Triangular filters, evenly spaced on O'Shaughnessy's mel scale, each of unit sum: [n_fft // 2 + 1, n_mels]."""
    f_max = f_max or sample_rate / 2

    def to_mel(hz: float) -> float:
        return 2595.0 * math.log10(1.0 + hz / 700.0)

    mels = torch.linspace(to_mel(f_min), to_mel(f_max), n_mels + 2)
    edges = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)  # [n_mels + 2] Hz
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1).unsqueeze(1)  # [F, 1]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)  # [F, n_mels]
    return filters / filters.sum(0, keepdim=True).clamp(min=1e-8)


class LogMel(nn.Module):
    """Log-mel spectrogram with one frame a hop, centred on the hop: wav [B, 1, T·hop] -> [B, T, n_mels]."""

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, hop_length: int, n_fft: int, n_mels: int) -> None:
        super().__init__()
        self.hop_length, self.n_fft = hop_length, n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("filters", mel_filterbank(sample_rate, n_fft, n_mels), persistent=False)

    def spectrum(self, wav: Tensor) -> Tensor:
        """wav [B, 1, T * hop] -> complex spectrum [B, T, n_fft // 2 + 1]."""
        side = (self.n_fft - self.hop_length) // 2
        frames = F.pad(wav.squeeze(1), (side, side)).unfold(1, self.n_fft, self.hop_length)  # [B, T, n_fft]
        spectrum: Tensor = torch.fft.rfft(frames * self.window)
        return spectrum

    def forward(self, wav: Tensor) -> Tensor:
        magnitude = self.spectrum(wav).abs()  # [B, T, F]
        # About zero mean and unit variance for speech at a usual level.
        with torch.autocast(wav.device.type, enabled=False):  # the codes hang on it
            log_mel: Tensor = (magnitude @ self.filters).clamp(min=1e-4).log() / 3.0 + 0.7  # [B, T, n_mels]
        return log_mel


class InverseSTFT(nn.Module):
    """Overlap-add of inverse Fourier transforms, one a hop, each centred on its hop.

    ``overlap_add`` is shared by the whole-utterance and the streaming decoder, which is why both give the same samples.
    """

    window: Tensor

    def __init__(self, hop_length: int, n_fft: int) -> None:
        super().__init__()
        self.hop_length, self.n_fft = hop_length, n_fft
        self.side = (n_fft - hop_length) // 2
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def frames(self, spectrum: Tensor) -> Tensor:
        """Complex spectrum [B, T, F] -> windowed frames [B, T, n_fft]."""
        frames: Tensor = torch.fft.irfft(spectrum, self.n_fft) * self.window
        return frames

    def overlap_add(self, frames: Tensor) -> Tensor:
        """frames [B, T, n_fft] -> [B, (T - 1) * hop + n_fft]."""
        n_frames = frames.shape[1]
        length = (n_frames - 1) * self.hop_length + self.n_fft
        return F.fold(frames.transpose(1, 2), (1, length), (1, self.n_fft), stride=(1, self.hop_length))[:, 0, 0]

    def envelope(self, n_frames: int) -> Tensor:
        """Sum of the squared windows under ``n_frames`` frames: [(n_frames - 1) * hop + n_fft]."""
        return self.overlap_add((self.window**2).expand(1, n_frames, self.n_fft))[0].clamp(min=1e-6)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex spectrum [B, T, F] -> wav [B, 1, T * hop]."""
        wav = self.overlap_add(self.frames(spectrum)) / self.envelope(spectrum.shape[1])
        return wav[:, self.side : wav.shape[1] - self.side].unsqueeze(1)


class SpectralDecoder(nn.Module):
    """Quantised vectors [B, D, T] -> wav [B, 1, T * hop]: causal backbone, magnitude and phase, inverse STFT."""

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self.backbone = Backbone(
            config.codebook_dim,
            config.decoder_dim,
            config.decoder_layers,
            config.expansion,
            config.kernel_size,
            config.lookahead,
        )
        self.head = nn.Linear(config.decoder_dim, config.n_fft + 2)
        self.istft = InverseSTFT(config.hop_length, config.n_fft)

    def spectrum(self, x: Tensor) -> Tensor:
        """Backbone's output [B, T, D] -> complex spectrum [B, T, n_fft // 2 + 1] (Vocos §3.3)."""
        log_magnitude, phase = self.head(x).chunk(2, dim=-1)  # 2 × [B, T, F]
        magnitude = log_magnitude.clamp(max=5.0).exp()
        return torch.complex(magnitude * phase.cos(), magnitude * phase.sin())

    def forward(self, z: Tensor) -> Tensor:
        wav: Tensor = self.istft(self.spectrum(self.backbone(z.transpose(1, 2))))
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
        self.mel = LogMel(config.sample_rate, config.hop_length, config.n_fft, config.n_mels)
        self.n_phase_bins = round(config.phase_hz * config.n_fft / config.sample_rate)
        self.encoder = Backbone(
            config.n_mels + 2 * self.n_phase_bins,
            config.encoder_dim,
            config.encoder_layers,
            config.expansion,
            config.kernel_size,
            None,
        )
        self.project = nn.Linear(config.encoder_dim, config.codebook_dim)
        self.quantizer = ResidualVectorQuantizer(config.codebook_dim, config.n_quantizers, config.codebook_size)
        self.decoder: SpectralDecoder | HarmonicDecoder = (
            HarmonicDecoder(config) if config.decoder == "harmonic" else SpectralDecoder(config)
        )
        self.apply(_initialise)
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
        return [self.encoder, self.project, self.quantizer]

    def latents(self, wav: Tensor) -> Tensor:
        """wav [B, 1, N] -> the vectors before quantisation, [B, D, T]."""
        check_wav(wav)
        wav = F.pad(wav, (0, -wav.shape[2] % self.hop_length))
        z: Tensor = self.project(self.encoder(self._features(wav)))  # [B, T, D]
        return z.transpose(1, 2)

    def _features(self, wav: Tensor) -> Tensor:
        """What the encoder reads: wav [B, 1, T * hop] -> [B, T, n_mels + 2 * n_phase_bins]."""
        log_mel: Tensor = self.mel(wav)  # [B, T, n_mels]
        if self.n_phase_bins == 0:
            return log_mel
        low = self.mel.spectrum(wav)[..., : self.n_phase_bins]  # [B, T, n_phase_bins] complex
        # Compressed to the power 0.3, or the loudest harmonic would drown all others.
        low = low * (low.abs() + 1e-4) ** -0.7
        return torch.cat([log_mel, low.real, low.imag], dim=-1)

    @torch.no_grad()
    def encode(self, wav: Tensor, n_quantizers: int | None = None) -> Tensor:
        return self.quantizer.encode(self.latents(wav), n_quantizers)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        wav: Tensor = self.decoder(self.quantizer.decode(codes))
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

    def stream_decoder(self) -> StreamDecoder:
        if isinstance(self.decoder, HarmonicDecoder):
            return HarmonicStreamDecoder(self, self.decoder)
        return SpectralStreamDecoder(self, self.decoder)


class BackboneStream:
    """Runs a causal backbone chunk by chunk: keeps the frames that each layer needs for the next chunk."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.input: Tensor | None = None  # [1, left + lookahead, D] the input convolution's past
        self.pasts: list[Tensor | None] = [None] * len(backbone.blocks)

    def push(self, z: Tensor, last: bool) -> Tensor:
        """z [1, t, D], t may be 0 -> the outputs that are final [1, n, D]; with ``last``, all that are left."""
        embed = self.backbone.embed
        if self.input is None:
            self.input = z.new_zeros(1, embed.left, z.shape[2])
        window = torch.cat([self.input, z], dim=1)
        n_ready = window.shape[1] + (embed.right if last else 0) - embed.left - embed.right
        if n_ready <= 0:
            self.input = window
            return z.new_zeros(1, 0, self.backbone.final_norm.weight.shape[0])
        x = self.backbone.norm(embed(window[:, :0], window, last))  # [1, n_ready, D]
        self.input = window[:, n_ready:]
        for i, block in enumerate(self.backbone.blocks):
            assert isinstance(block, ConvNeXtBlock)
            left = block.depthwise.left
            past = self.pasts[i]
            if past is None:
                past = x.new_zeros(1, left, x.shape[2])
            self.pasts[i] = torch.cat([past, x], dim=1)[:, -left:]
            x = block(x, past)
        y: Tensor = self.backbone.final_norm(x)
        return y


class HarmonicStreamDecoder(StreamDecoder):
    """Streams a codec whose decoder is harmonic; the sources' phases run on from chunk to chunk."""

    def __init__(self, codec: SpectralCodec, decoder: HarmonicDecoder) -> None:
        self.codec, self.decoder = codec, decoder
        self.backbone, self.synthesis = BackboneStream(decoder.backbone), HarmonicStream(decoder)

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        return self._decode(self.codec.quantizer.decode(codes).transpose(1, 2), last=False)

    @torch.no_grad()
    def finish(self) -> Tensor:
        if self.backbone.input is None:
            return torch.zeros(1, 1, 0)
        return self._decode(self.backbone.input[:, :0], last=True)

    def _decode(self, z: Tensor, last: bool) -> Tensor:
        filters, logits = self.decoder.heads(self.backbone.push(z, last))
        return self.synthesis.push(filters, pitch_hz(logits), last)


class SpectralStreamDecoder(StreamDecoder):
    """Keeps the unfinished end of the overlap-add, beside what the backbone needs."""

    def __init__(self, codec: SpectralCodec, decoder: SpectralDecoder) -> None:
        self.codec, self.decoder = codec, decoder
        self.backbone, self.istft = BackboneStream(decoder.backbone), decoder.istft
        self.tail: Tensor | None = None  # [1, n_fft - hop] sums not yet final
        self.tail_envelope: Tensor | None = None
        self.skip = self.istft.side  # samples before the first frame's hop

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        return self._decode(self.codec.quantizer.decode(codes).transpose(1, 2), last=False)

    @torch.no_grad()
    def finish(self) -> Tensor:
        if self.backbone.input is None:
            return torch.zeros(1, 1, 0)
        wav = self._decode(self.backbone.input[:, :0], last=True)
        assert self.tail is not None
        assert self.tail_envelope is not None
        tail = self.tail / self.tail_envelope.clamp(min=1e-6)
        rest = tail[:, self.skip : tail.shape[1] - self.istft.side]
        return torch.cat([wav, rest.unsqueeze(1)], dim=2)

    def _decode(self, z: Tensor, last: bool) -> Tensor:
        """z [1, t, D] -> final samples [1, 1, n]."""
        x = self.backbone.push(z, last)
        n_ready = x.shape[1]
        if not n_ready:
            return z.new_zeros(1, 1, 0)
        frames = self.istft.frames(self.decoder.spectrum(x))
        wav = self.istft.overlap_add(frames)
        envelope = self.istft.overlap_add((self.istft.window**2).expand(1, n_ready, -1))
        n_tail = self.istft.n_fft - self.istft.hop_length
        if self.tail is not None and self.tail_envelope is not None:
            wav[:, :n_tail] += self.tail
            envelope[:, :n_tail] += self.tail_envelope
        n_final = n_ready * self.istft.hop_length
        self.tail, self.tail_envelope = wav[:, n_final:], envelope[:, n_final:]
        final = wav[:, :n_final] / envelope[:, :n_final].clamp(min=1e-6)
        skipped = min(self.skip, n_final)
        self.skip -= skipped
        return final[:, skipped:].unsqueeze(1)


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
