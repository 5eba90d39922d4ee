"""Layers at the frame rate, from which the embedded codec is built: ConvNeXt blocks, log-mel, inverse STFT.

Sequences of vectors are [B, T, C] here. What is causal also runs chunk by chunk (``BackboneStream``,
``OverlapAddStream``), with the same samples as at once.

Source: Siuzdak, "Vocos", arXiv 2306.00814.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.model.narrow import Linear

_FEW_FRAMES = 64
"""Up to so many, context included, a convolution is a product, or some sums."""


class FrameConv(nn.Module):
    """Convolution over time in the layout [B, T, C], with ``left`` and ``right`` frames of context padded by zeros."""

    def __init__(self, dim_in: int, dim_out: int, left: int, right: int, groups: int = 1) -> None:
        super().__init__()
        assert groups in (1, dim_in), "all channels together, or each alone"
        self.left, self.right = left, right
        self.conv = nn.Conv1d(dim_in, dim_out, left + 1 + right, groups=groups)

    def forward(self, x: Tensor, past: Tensor | None = None, last: bool = True) -> Tensor:
        """x [B, T, C_in] -> [B, T, C_out].

        In a stream ``past`` [B, left + held, C_in] replaces the zeros on the left, and the zeros on the right come only
        with the last chunk.
        """
        right = self.right if last else 0
        x = F.pad(x, (0, 0, self.left, right)) if past is None else F.pad(torch.cat([past, x], dim=1), (0, 0, 0, right))
        if x.shape[1] <= _FEW_FRAMES and x.device.type == "cpu" and not torch.is_grad_enabled():
            return self._few(x)
        y: Tensor = self.conv(x.transpose(1, 2))
        return y.transpose(1, 2)

    def _few(self, x: Tensor) -> Tensor:
        """The same for the few frames of a stream's chunk, with which torch's convolutions take several times as long.

        x [B, left + T + right, C_in] -> [B, T, C_out].
        """
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        size = weight.shape[2]
        n = x.shape[1] - size + 1
        if self.conv.groups == 1:
            windows = x.unfold(1, size, 1).flatten(2)  # [B, T, C_in * size]
            return F.linear(windows, weight.flatten(1), bias)
        y = torch.addcmul(bias, x[:, :n], weight[:, 0, 0])
        for k in range(1, size):
            y = torch.addcmul(y, x[:, k : k + n], weight[:, 0, k])
        return y


class ConvNeXtBlock(nn.Module):
    """Depth-wise convolution, layer norm, two pointwise layers, scaled residual (Vocos §3.2)."""

    def __init__(self, dim: int, hidden: int, left: int, right: int, scale: float, voice_dim: int = 0) -> None:
        """With ``voice_dim``, a voice scales and shifts what the pointwise layers read (FiLM, arXiv 1709.07871)."""
        super().__init__()
        self.depthwise = FrameConv(dim, dim, left, right, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up = Linear(dim, hidden)
        self.down = Linear(hidden, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))
        self.film = nn.Linear(voice_dim, 2 * dim, bias=False) if voice_dim else None  # no voice is all 0

    def forward(self, x: Tensor, past: Tensor | None = None, voice: Tensor | None = None) -> Tensor:
        """x [B, T, D], voice [B, voice_dim] -> [B, T, D]; ``past`` [B, left, D] are the frames before x in a stream."""
        y = self.norm(self.depthwise(x, past))
        if voice is not None and self.film is not None:
            factor, offset = self.film(voice).unsqueeze(1).chunk(2, dim=2)  # [B, 1, D] each
            y = y * (1 + factor) + offset
        x = x + self.scale * self.down(F.gelu(self.up(y)))
        return x


class Backbone(nn.Module):
    """Input convolution, ConvNeXt blocks, final norm: [B, T, C] -> [B, T, D]."""

    def __init__(
        self,
        dim_in: int,
        dim: int,
        n_layers: int,
        expansion: int,
        kernel_size: int,
        lookahead: int | None,
        voice_dim: int = 0,
    ) -> None:
        super().__init__()
        side = kernel_size // 2
        # lookahead None: symmetric everywhere; otherwise only the first convolution looks ahead.
        left, right = (side, side) if lookahead is None else (kernel_size - 1, 0)
        self.embed = FrameConv(dim_in, dim, side, side if lookahead is None else lookahead)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(dim, dim * expansion, left, right, 1 / n_layers, voice_dim) for _ in range(n_layers)
        )
        self.final_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, voice: Tensor | None = None) -> Tensor:
        """x [B, T, C], and with ``voice_dim`` a voice [B, voice_dim] -> [B, T, D]."""
        x = self.norm(self.embed(x))  # [B, T, D]
        for block in self.blocks:
            x = block(x, voice=voice)
        y: Tensor = self.final_norm(x)
        return y


class VoiceEncoder(nn.Module):
    """What a voice is like, from some of its speech: convolutions, mean and spread over time, a projection."""

    kernel_size = 5

    def __init__(self, dim_in: int, dim: int, voice_dim: int) -> None:
        super().__init__()
        side = self.kernel_size // 2
        self.inner = FrameConv(dim_in, dim, side, side)
        self.outer = FrameConv(dim, dim, side, side)
        self.norm = nn.LayerNorm(2 * (dim + dim_in))
        self.project = nn.Linear(2 * (dim + dim_in), voice_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C], T at least 1 -> voices [B, voice_dim]."""
        y = F.gelu(self.outer(F.gelu(self.inner(x))))
        y = torch.cat([x, y], dim=2)
        spread = (y.var(dim=1, unbiased=False) + 1e-5).sqrt()
        voices: Tensor = self.project(self.norm(torch.cat([y.mean(dim=1), spread], dim=1)))
        return voices


class BackboneStream:
    """Runs a causal backbone chunk by chunk: keeps the frames that each layer needs for the next chunk."""

    def __init__(self, backbone: Backbone, voice: Tensor | None = None) -> None:
        self.backbone, self.voice = backbone, voice
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
            x = block(x, past, self.voice)
        y: Tensor = self.backbone.final_norm(x)
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


class OverlapAddStream:
    """Overlap-add chunk by chunk: keeps the sums that later frames still reach."""

    def __init__(self, istft: InverseSTFT) -> None:
        self.istft = istft
        self.tail: Tensor | None = None  # [1, n_fft - hop] sums not yet final
        self.tail_envelope: Tensor | None = None
        self.skip = istft.side  # samples before the first frame's hop

    def push(self, frames: Tensor) -> Tensor:
        """Windowed frames [1, n, n_fft] -> the samples that no later frame reaches, [1, m]."""
        n_frames = frames.shape[1]
        wav = self.istft.overlap_add(frames)
        envelope = self.istft.overlap_add((self.istft.window**2).expand(1, n_frames, -1))
        if self.tail is not None and self.tail_envelope is not None:
            n_tail = self.tail.shape[1]
            wav[:, :n_tail] += self.tail
            envelope[:, :n_tail] += self.tail_envelope
        n_final = n_frames * self.istft.hop_length
        self.tail, self.tail_envelope = wav[:, n_final:], envelope[:, n_final:]
        final = wav[:, :n_final] / envelope[:, :n_final].clamp(min=1e-6)
        skipped = min(self.skip, n_final)
        self.skip -= skipped
        return final[:, skipped:]

    def finish(self) -> Tensor:
        """The samples that are left, [1, m]."""
        if self.tail is None or self.tail_envelope is None:
            return torch.zeros(1, 0)
        tail = self.tail / self.tail_envelope.clamp(min=1e-6)
        return tail[:, self.skip : tail.shape[1] - self.istft.side]
