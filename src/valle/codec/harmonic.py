"""A decoder with a voice of its own: harmonics and noise, each shaped by a filter that the network sets frame by frame.

A network that writes magnitudes and phases has to invent phases that fit from frame to frame, and without adversarial
training it never quite learns to: harmonics come out as noise, and the voice is lost. Here the phases are given. The
network tells the pitch; a pulse train of that pitch, whose phase runs on without a break, and white noise are the two
sources; short-time spectra of both are multiplied by filters that the network sets, added, and transformed back. So
spectral losses alone are enough, and training is cheap.

Sources: Wang et al., "Neural source-filter waveform models" (arXiv 1904.12088); Engel et al., "DDSP" (arXiv
2001.04643); the spectral domain as in Siuzdak, "Vocos" (arXiv 2306.00814).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.codec.frames import Backbone, InverseSTFT, OverlapAddStream
from valle.model.narrow import Linear

if TYPE_CHECKING:
    from valle.codec.spectral import SpectralCodecConfig

MIN_HZ, MAX_HZ = 55.0, 600.0
"""Range of the pitch."""
N_SUB = 2
"""Filters and pitches a frame: speech changes faster than 75 times a second."""
_N_NOISE = 1 << 17  # samples of noise, 5.5 s, used round and round: one code, one wave


class Excitation(NamedTuple):
    """Where the sources of a signal stand, so that a stream goes on without a break."""

    phase: Tensor  # [B] float64, cycles of the pulse train so far
    hz: Tensor  # [B] the last pitch
    place: Tensor  # [B] int64, samples of noise so far


def pitch_hz(logits: Tensor) -> Tensor:
    """What the pitch head says, in Hz between ``MIN_HZ`` and ``MAX_HZ``.

    In steps of 1/16 Hz: the phase sums up the pitches, and with them their rounding errors, which differ from one
    length of chunk to the next.
    """
    hz = MIN_HZ * (MAX_HZ / MIN_HZ) ** logits.float().sigmoid()
    return (hz * 16).round() / 16


def pulse_train(hz: Tensor, hop: int, sample_rate: int, before: Excitation | None = None) -> tuple[Tensor, Tensor]:
    """All harmonics of a gliding pitch below half the sample rate, equally strong, of unit power.

    Args:
        hz: [B, n] pitch at the end of each hop; it glides from one to the next.
        hop: samples between two of them.
        sample_rate: samples a second.
        before: where the signal stands; None at its start.

    Returns:
        samples [B, n * hop], and the phase after them [B] float64 in cycles.
    """
    hz = hz.double()
    first = hz[:, :1] if before is None else before.hz.double().unsqueeze(1)
    previous = torch.cat([first, hz[:, :-1]], dim=1)  # [B, n]
    steps = torch.arange(1, hop + 1, device=hz.device, dtype=torch.float64) / hop
    glide = previous.unsqueeze(2) + (hz - previous).unsqueeze(2) * steps  # [B, n, hop] Hz
    cycles = glide.flatten(1).cumsum(1) / sample_rate
    if before is not None:
        cycles = cycles + before.phase.unsqueeze(1)
    angle = (2 * math.pi * (cycles - cycles.round())).float()  # [B, n * hop] in [-pi, pi]
    # Sum of cos(k x), k = 1 .. K, in closed form; K harmonics fit under the highest pitch of the hop.
    n_harmonics = (0.5 * sample_rate / torch.maximum(hz, previous)).floor().float().repeat_interleave(hop, dim=1)
    half = (angle / 2).sin()
    near_zero = half.abs() < 1e-4
    wave = ((n_harmonics + 0.5) * angle).sin() / (2 * half.masked_fill(near_zero, 1.0)) - 0.5
    wave = torch.where(near_zero, n_harmonics, wave)
    return wave * (2 / n_harmonics).sqrt(), cycles[:, -1]


def decoder_backbone(config: SpectralCodecConfig) -> Backbone:
    """The causal network under either decoder: quantised vectors [B, T, codebook_dim] -> [B, T, decoder_dim]."""
    return Backbone(
        config.codebook_dim,
        config.decoder_dim,
        config.decoder_layers,
        config.expansion,
        config.kernel_size,
        config.lookahead,
        config.voice_dim,
    )


class HarmonicDecoder(nn.Module):
    """Quantised vectors [B, D, T] -> wav [B, 1, T * hop]: causal backbone, pitch, filters for pulses and for noise."""

    noise: Tensor

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self.sample_rate = config.sample_rate
        self.sub_hop = config.hop_length // N_SUB
        self.n_fft = 4 * self.sub_hop
        self.n_bins = self.n_fft // 2 + 1
        self.backbone = decoder_backbone(config)
        self.filters = Linear(config.decoder_dim, N_SUB * 3 * self.n_bins)
        self.pitch = Linear(config.decoder_dim, N_SUB)
        self.istft = InverseSTFT(self.sub_hop, self.n_fft)
        noise = torch.randn(_N_NOISE, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise, persistent=False)

    def initialise(self) -> None:
        """Start a little below the level of speech, with filters that leave the phase alone."""
        nn.init.constant_(self.filters.bias, 0.0)
        with torch.no_grad():
            bias = self.filters.bias.view(N_SUB, 3, self.n_bins)
            bias[:, 0] = -5.0
            bias[:, 1] = -5.0

    def controls(self, z: Tensor, voice: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z [B, D, T] -> filters [B, N_SUB * T, 3, n_bins], logits of the pitch [B, N_SUB * T]."""
        return self.heads(self.backbone(z.transpose(1, 2), voice))

    def heads(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's output [B, T, D] -> as ``controls``."""
        batch_size, n_frames, _ = h.shape
        filters = self.filters(h).view(batch_size, n_frames * N_SUB, 3, self.n_bins)
        return filters, self.pitch(h).flatten(1)

    @torch.no_grad()
    def excite(self, hz: Tensor, before: Excitation | None = None) -> tuple[Tensor, Tensor, Excitation]:
        """hz [B, n] -> pulses and noise [B, n * sub_hop] each, and where they end."""
        pulses, phase = pulse_train(hz, self.sub_hop, self.sample_rate, before)
        start = hz.new_zeros(len(hz), dtype=torch.int64) if before is None else before.place
        places = start.unsqueeze(1) + torch.arange(pulses.shape[1], device=hz.device)
        return pulses, self.noise[places % _N_NOISE], Excitation(phase, hz[:, -1], start + pulses.shape[1])

    def spectra(self, source: Tensor) -> Tensor:
        """source [B, (n + 3) * sub_hop], 1.5 hops more than n on either side -> complex [B, n, n_bins]."""
        frames = source.unfold(1, self.n_fft, self.sub_hop)  # [B, n, n_fft]
        spectrum: Tensor = torch.fft.rfft(frames * self.istft.window)
        return spectrum

    def combine(self, filters: Tensor, pulses: Tensor, noise: Tensor) -> Tensor:
        """Filters [B, n, 3, n_bins] on spectra of the sources, complex [B, n, n_bins] each -> their sum, likewise."""
        log_pulse, log_noise, phase = filters.float().unbind(2)
        gain = log_pulse.clamp(max=4.0).exp()
        shaped = pulses * torch.complex(gain * phase.cos(), gain * phase.sin())
        return shaped + noise * log_noise.clamp(max=4.0).exp()

    def forward(self, z: Tensor, voice: Tensor | None = None) -> Tensor:
        """z [B, D, T], and with ``voice_dim`` a voice [B, voice_dim] -> wav [B, 1, T * hop]."""
        filters, logits = self.controls(z, voice)
        return self.synthesise(filters, pitch_hz(logits))

    def synthesise(self, filters: Tensor, hz: Tensor, before: Excitation | None = None) -> Tensor:
        """Filters [B, n, 3, n_bins] and pitch [B, n] -> wav [B, 1, n * sub_hop]."""
        pulses, noise, _ = self.excite(hz, before)
        side = self.istft.side
        spectrum = self.combine(
            filters, self.spectra(F.pad(pulses, (side, side))), self.spectra(F.pad(noise, (side, side)))
        )
        wav: Tensor = self.istft(spectrum)
        return wav

    def pitch_loss(self, logits: Tensor, hz: Tensor, voiced: Tensor) -> Tensor:
        """Mean absolute error of the pitch in octaves over the voiced places.

        logits [B, n], hz [B, n], voiced [B, n] bool -> scalar.
        """
        span = math.log2(MAX_HZ / MIN_HZ)
        error = (logits.float().sigmoid() * span - (hz / MIN_HZ).log2()).abs() * voiced
        return error.sum() / voiced.sum().clamp(min=1)

    def random_start(self, hz: Tensor, generator: torch.Generator) -> Excitation:
        """Sources that begin anywhere, for training with the pitches hz [B, n]."""
        n_rows = len(hz)
        device = self.noise.device
        phase = torch.rand(n_rows, generator=generator, dtype=torch.float64).to(device)
        place = torch.randint(_N_NOISE, (n_rows,), generator=generator).to(device)
        return Excitation(phase, hz[:, 0], place)


class HarmonicStream:
    """Controls in, final samples out, chunk by chunk; end to end they are ``HarmonicDecoder.synthesise`` at once."""

    def __init__(self, decoder: HarmonicDecoder) -> None:
        self.decoder = decoder
        self.state: Excitation | None = None
        side = decoder.istft.side
        self.pulses = torch.zeros(1, side)  # source samples that the next spectrum begins with
        self.noise = torch.zeros(1, side)
        self.filters: Tensor | None = None  # [1, n, 3, n_bins] that wait for their source's end
        self.overlap = OverlapAddStream(decoder.istft)

    def push(self, filters: Tensor, hz: Tensor, last: bool) -> Tensor:
        """Filters [1, n, 3, n_bins] and hz [1, n], n may be 0 -> wav [1, 1, m]."""
        decoder, istft = self.decoder, self.decoder.istft
        if hz.shape[1]:
            pulses, noise, self.state = decoder.excite(hz, self.state)
            self.pulses = torch.cat([self.pulses.to(pulses), pulses], dim=1)
            self.noise = torch.cat([self.noise.to(noise), noise], dim=1)
        if last:
            self.pulses, self.noise = F.pad(self.pulses, (0, istft.side)), F.pad(self.noise, (0, istft.side))
        self.filters = filters if self.filters is None else torch.cat([self.filters, filters], dim=1)
        n_ready = max(0, (self.pulses.shape[1] - decoder.n_fft) // decoder.sub_hop + 1)
        n_ready = min(n_ready, self.filters.shape[1])
        wav = self.filters.new_zeros(1, 0)
        if n_ready:
            used = decoder.n_fft + (n_ready - 1) * decoder.sub_hop
            spectrum = decoder.combine(
                self.filters[:, :n_ready],
                decoder.spectra(self.pulses[:, :used]),
                decoder.spectra(self.noise[:, :used]),
            )
            gone = n_ready * decoder.sub_hop
            self.filters, self.pulses, self.noise = (
                self.filters[:, n_ready:],
                self.pulses[:, gone:],
                self.noise[:, gone:],
            )
            wav = self.overlap.push(istft.frames(spectrum))
        if last:
            wav = torch.cat([wav, self.overlap.finish().to(wav)], dim=1)
        return wav.unsqueeze(1)
