"""A frozen recogniser as a listener: does it make the same of the reconstruction as of the recording?

Departure from EnCodec, for training only. Mel distances weigh a blurred formant like a breath; a network that was
trained to tell phones does not. It is the project's own recogniser (``valle.asr.hybrid``), whose front end is computed
here in PyTorch, at the codec's rate, so that gradients pass through it.

Source: perceptual losses by a recogniser's inner features, as Johnson et al. (arXiv 1603.08155) have them for images.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.asr.hybrid.features import N_MELS, SAMPLE_RATE
from valle.asr.hybrid.model import HybridModel
from valle.asr.hybrid.network import Network
from valle.codec.losses import feature_matching_loss
from valle.errors import ValleError

_PREEMPHASIS = 0.97
_LOW_HZ, _HIGH_HZ = 20.0, 7600.0
_FLOOR = 1000.0  # added to energies: some 15 dB above the rounding to 16 bits, since a logarithm has no bound at 0


class KaldiMel(nn.Module):
    """Kaldi's log mel energies of speech at another rate than its own: wav [B, 1, N] -> [B, T, 80], one in 10 ms.

    Frames of 25 ms and bins of 31.25 Hz are the same at any rate that is a multiple of 4 kHz; of what lies above 8 kHz
    nothing is read. ``valle.asr.hybrid.features.fbank`` gives the same but for the resampling, and takes off the mean.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        if sample_rate % 4000 or sample_rate < SAMPLE_RATE:
            raise ValleError(f"the recogniser listens at a multiple of 4 kHz from 16 kHz on, not at {sample_rate} Hz")
        self.sample_rate = sample_rate
        self.hop, self.length = sample_rate // 100, sample_rate // 40
        self.n_fft = 512 * sample_rate // SAMPLE_RATE
        n = torch.arange(self.length, dtype=torch.float64)
        povey = (0.5 - 0.5 * torch.cos(2 * math.pi * n / (self.length - 1))) ** 0.85
        self.register_buffer("window", povey.float(), persistent=False)
        hz = torch.arange(257, dtype=torch.float64) * (SAMPLE_RATE / 512)  # [257] up to 8 kHz
        gain = (32768 * SAMPLE_RATE / sample_rate) ** 2  # twice the samples have twice the sum
        self.register_buffer("filters", (gain * _triangles(hz)).float(), persistent=False)  # [257, 80]

    def forward(self, wav: Tensor) -> Tensor:
        x = self._preemphasised(wav.squeeze(1))
        n_frames = (x.shape[1] + self.hop // 2) // self.hop
        before = (self.length - self.hop) // 2
        after = max(0, (n_frames - 1) * self.hop + self.length - before - x.shape[1])
        x = F.pad(x.unsqueeze(1), (before, after), mode="reflect").squeeze(1)
        frames = x.unfold(1, self.length, self.hop)[:, :n_frames]  # [B, T, length]
        frames = (frames - frames.mean(2, keepdim=True)) * self.window
        spectrum = torch.fft.rfft(frames, self.n_fft)[..., :257]  # [B, T, 257] complex
        energies: Tensor = (spectrum.real.square() + spectrum.imag.square()) @ self.filters
        return (energies + _FLOOR).log()

    def _preemphasised(self, x: Tensor) -> Tensor:
        """The wave less 0.97 of itself 1/16000 s before, which is a fraction of a sample here: [B, N] -> [B, N]."""
        n = x.shape[1] + self.hop  # what is before the beginning is silence
        turn = 2 * math.pi / SAMPLE_RATE * torch.fft.rfftfreq(n, 1 / self.sample_rate, device=x.device)
        response = 1 - _PREEMPHASIS * torch.polar(torch.ones_like(turn), -turn)
        y: Tensor = torch.fft.irfft(torch.fft.rfft(x, n) * response, n)
        return y[:, : x.shape[1]]


class RecogniserLoss(nn.Module):
    """How differently a recogniser hears two waves: wav, target [B, 1, N] -> scalar; no gradient flows to the target.

    The relative difference of the inner features of each block, plus the Kullback-Leibler divergence, in nats, of what
    it takes each step of 30 ms for.
    """

    def __init__(self, network: Network, sample_rate: int = 24000) -> None:
        super().__init__()
        self.mel = KaldiMel(sample_rate)
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: str | Path, sample_rate: int = 24000) -> RecogniserLoss:
        """With the network of a recogniser (``valle asr train``).

        Raises:
            ValleError: the folder holds none, or one whose network is not trained yet.
        """
        network = HybridModel.load(folder).network
        if network is None:
            raise ValleError(f"the recogniser in {folder} has no network yet; train it with `valle asr train`")
        return cls(network, sample_rate)

    def forward(self, wav: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            mels = self.mel(target)
            mean = mels.mean(1, keepdim=True)  # of both, so that a difference of the level is one
            *wanted, logits = self.network.layers(mels - mean)
            answer = logits.log_softmax(-1)
        *heard, logits = self.network.layers(self.mel(wav) - mean)
        divergence = F.kl_div(logits.log_softmax(-1), answer, log_target=True, reduction="none").sum(-1).mean()
        return feature_matching_loss([heard], [wanted]) + divergence


def _triangles(hz: Tensor) -> Tensor:
    """Kaldi's mel filters at frequencies [F]: [F, 80]."""

    def mel(x: Tensor) -> Tensor:
        return 1127 * torch.log1p(x / 700)

    low, high = (mel(torch.tensor(x, dtype=torch.float64)) for x in (_LOW_HZ, _HIGH_HZ))
    edges = torch.linspace(float(low), float(high), N_MELS + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    x = mel(hz).unsqueeze(1)
    return torch.minimum((x - left) / (centre - left), (right - x) / (right - centre)).clamp(min=0)
