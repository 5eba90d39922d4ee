"""The front end: Kaldi's log mel energies every 10 ms, and what Gaussians need of them.

Everything that is recognised goes in steps of 30 ms, as in Kaldi's chain models (three frames a step, of which the
middle one stands for it). ``phase`` 0, 1 or 2 moves the steps by as many frames: three views of one recording.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valle.data.sources import need

SAMPLE_RATE = 16000
N_MELS = 80
N_CEPSTRA = 13
SUBSAMPLING = 3
"""Frames a step."""
FRAME_S, STEP_S = 0.01, 0.03
_CONTEXT = 4  # frames on each side that Gaussians see
_PIECE = 60 * SAMPLE_RATE  # samples given at once, as a list, which takes ten times the room of an array


def fbank(wav: NDArray[np.float32]) -> Tensor:
    """wav [N] at 16 kHz in [-1, 1] -> log mel energies [T, 80], T = round(N / 160), of zero mean over the recording."""
    knf = need("kaldi_native_fbank", "the hybrid recogniser", "asr")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.frame_opts.samp_freq = float(SAMPLE_RATE)
    options.mel_opts.num_bins = N_MELS
    options.mel_opts.high_freq = 7600.0
    computer = knf.OnlineFbank(options)
    for start in range(0, len(wav), _PIECE):
        piece = np.asarray(wav[start : start + _PIECE], np.float32) * 32768
        computer.accept_waveform(float(SAMPLE_RATE), piece.tolist())
    computer.input_finished()
    n = computer.num_frames_ready
    if not n:
        return torch.zeros(0, N_MELS)
    frames = np.stack([computer.get_frame(i) for i in range(n)])  # [T, 80]
    x: Tensor = torch.from_numpy(frames)
    return x - x.mean(0)


def n_steps(n_frames: int, phase: int = 0) -> int:
    """Steps of a recording of so many frames."""
    return max(0, (n_frames - phase + 1) // SUBSAMPLING)


def cepstra(mels: Tensor) -> Tensor:
    """Log mel energies [T, 80] -> cepstra [T, 13] of zero mean."""
    k, n = torch.arange(N_CEPSTRA), torch.arange(N_MELS).unsqueeze(1)
    basis: Tensor = torch.cos(math.pi / N_MELS * (n + 0.5) * k) * (2 / N_MELS) ** 0.5  # [80, 13]
    x: Tensor = mels.float() @ basis
    return x - x.mean(0)


def with_slopes(x: Tensor) -> Tensor:
    """Cepstra [T, 13] -> [T, 39] with their slopes and the slopes of those, each of unit variance."""
    first = _slopes(x)
    x = torch.cat([x, first, _slopes(first)], dim=1)
    return x / x.square().mean(0).sqrt().clamp(min=1e-3)


def spliced(x: Tensor) -> Tensor:
    """Cepstra [T, 13] -> [T, 117]: each frame with four on each side."""
    index = torch.arange(len(x)).unsqueeze(1) + torch.arange(-_CONTEXT, _CONTEXT + 1)
    return x[index.clamp(0, len(x) - 1)].flatten(1)


def at_steps(x: Tensor, phase: int = 0) -> Tensor:
    """The middle frame of each step: [T, D] -> [n_steps(T, phase), D]."""
    return x[1 + phase :: SUBSAMPLING]


def _slopes(x: Tensor) -> Tensor:
    """Slope over five frames: [T, D] -> [T, D]."""
    padded = torch.cat([x[:1], x[:1], x, x[-1:], x[-1:]])
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10
