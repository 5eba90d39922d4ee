"""Virtual voices: a recording as if another speaker had spoken it, into another microphone, in another room.

A small corpus has few speakers, and a model that has heard few cannot clone a new one. The paper has 7,000 speakers and
nothing of this (§5.1). A virtual voice is linear: resampled (pitch, formants and tempo move together), an equaliser, a
pass band, a room, and noise. What is said and in which order stays; when, is told by the length.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import soxr
import torch
from torch import Tensor

RECIPE = 1
"""Counts changes of what a key draws or how it is applied; packs made by another recipe are made again."""

SPEEDS = ((0.86, 0.96), (1.04, 1.16))
"""Ranges of a changed speed: nearer to 1 it would be the same speaker."""

EQ_HZ = tuple(float(hz) for hz in np.geomspace(80, 10000, 6).round())
"""Where ``VirtualVoice.tilt_db`` sets the gain; smooth between, constant outside."""

_LOW_PASS_EDGE = 0.93  # of low_pass_hz: from here on it falls
_NOISE_FLOOR_HZ = 50.0  # below it coloured noise rises no more: else it would be all rumble
_PEAK = 0.99
_RING_S = 0.1  # longer than filters ring: what they do before the beginning must not come round to the end


@dataclass(frozen=True)
class VirtualVoice:
    """How a speaker of the corpus becomes another one under other recording conditions."""

    speed: float = 1.0
    """Factor of pitch, formants and tempo."""
    low_pass_hz: float = 0.0
    """Nothing is left above; 0: no limit."""
    high_pass_hz: float = 0.0
    """Where the lows are 3 dB down; 0: they stay."""
    tilt_db: tuple[float, ...] = (0.0,) * len(EQ_HZ)
    """Gains at ``EQ_HZ``."""
    noise_db: float = math.inf
    """Mean power of the speech over that of the noise; infinity: no noise."""
    noise_slope: float = 0.0
    """The noise's power goes as 1 / f to this: 0 is white, 1 pink, 2 brown."""
    reverb_s: float = 0.0
    """Time in which the room's response decays by 60 dB; 0: no room."""
    reverb_db: float = 20.0
    """Energy of the direct sound over that of the response."""
    room: int = 0
    """Seed of the room's response."""

    @classmethod
    def draw(cls, key: str, seed: int = 0) -> VirtualVoice:
        """The voice that belongs to ``key``: the same on every machine."""
        rng = _rng(f"{seed}/{key}")

        def chance(probability: float) -> bool:
            return bool(rng.random() < probability)

        def between(low: float, high: float) -> float:
            return low + (high - low) * float(rng.random())

        # Rounding: a logarithm may differ in its last bit from machine to machine.
        low_pass = between(3400, 7000) if chance(0.2) else between(7000, 8000)
        return cls(
            speed=1.0 if chance(0.2) else round(_log_uniform(float(rng.random())), 4),
            low_pass_hz=0.0 if chance(0.5) else float(round(low_pass)),
            high_pass_hz=0.0 if chance(0.5) else float(round(between(50, 200))),
            tilt_db=tuple(round(min(max(3 * float(g), -9), 9), 2) for g in rng.standard_normal(len(EQ_HZ))),
            noise_db=math.inf if chance(0.5) else round(between(15, 45), 1),
            noise_slope=round(between(0, 2), 2),
            reverb_s=0.0 if chance(0.6) else round(between(0.1, 0.5), 3),
            reverb_db=round(between(5, 20), 1),
            room=int(rng.random() * 2**32),
        )

    def apply(self, wav: Tensor, sample_rate: int, key: str) -> Tensor:
        """The recording as this voice.

        Args:
            wav: [1, N] float32, which begins with speech or a short silence.
            sample_rate: samples a second.
            key: seeds the noise, so that no two utterances have the same.

        Returns:
            wav [1, round(N / speed)], with the power of the one given, or less where its peak would pass 0.99. What
            sounds at sample n sounds at n / speed; the room rings on after it.
        """
        x = self._resample(wav)  # [N']
        n = len(x)
        room = self._room(sample_rate)  # [R]
        size = _fast_size(n + len(room) + round(_RING_S * sample_rate))
        f = torch.fft.rfftfreq(size, 1 / sample_rate, dtype=torch.float64)  # [F]
        channel = self._channel(f)  # [F]
        spectrum = torch.fft.rfft(x, size) * channel  # [F]
        if len(room) > 1:
            spectrum = spectrum * torch.fft.rfft(room, size)
        y: Tensor = torch.fft.irfft(spectrum, size)[:n]  # [N']
        if self.noise_db < math.inf:
            # Through the same channel: what cuts the speech off cuts the noise off, too.
            draws = torch.from_numpy(_rng(f"{self.room}/{key}").standard_normal((len(f), 2), dtype=np.float32))
            colour = f.clamp(min=_NOISE_FLOOR_HZ) ** (-self.noise_slope / 2)
            colour = (colour / colour.max()).float() * channel  # [F]
            noise = torch.fft.irfft(torch.view_as_complex(draws) * colour, size)[:n]  # [N']
            power = noise.square().mean().clamp(min=1e-20)
            y = y + noise * (y.square().mean() / power * 10 ** (-self.noise_db / 10)).sqrt()
        gain = (wav.square().mean() / y.square().mean().clamp(min=1e-20)).sqrt()
        most = _PEAK / y.abs().max().clamp(min=1e-10)
        return torch.minimum(gain, most) * y.unsqueeze(0)

    def _resample(self, wav: Tensor) -> Tensor:
        """wav [1, N] -> [round(N / speed)]."""
        n = round(wav.shape[1] / self.speed)
        if self.speed == 1:
            return wav[0]
        out = soxr.resample(wav[0].cpu().numpy(), self.speed, 1.0)
        out = np.pad(out[:n], (0, max(0, n - len(out))))
        return torch.from_numpy(np.ascontiguousarray(out, dtype=np.float32))

    def _channel(self, f: Tensor) -> Tensor:
        """Equaliser and pass band without delay: f [F] in Hz -> gains [F] float32."""
        place = torch.from_numpy(np.interp(f.clamp(min=1).log().numpy(), np.log(EQ_HZ), np.arange(len(EQ_HZ))))  # [F]
        left = place.long().clamp(max=len(EQ_HZ) - 2)
        share = place - left
        share = share * share * (3 - 2 * share)  # smooth, and flat at EQ_HZ
        tilt = torch.tensor(self.tilt_db, dtype=torch.float64)
        gains = 10 ** ((tilt[left] * (1 - share) + tilt[left + 1] * share) / 20)
        if self.high_pass_hz:
            gains = gains / (1 + (self.high_pass_hz / f.clamp(min=1e-3)) ** 4).sqrt()  # Butterworth of second order
        if self.low_pass_hz:
            fallen = (f / self.low_pass_hz - _LOW_PASS_EDGE) / (1 - _LOW_PASS_EDGE)
            gains = gains * (0.5 + 0.5 * (math.pi * fallen.clamp(0, 1)).cos())
        return gains.float()

    def _room(self, sample_rate: int) -> Tensor:
        """Response of the room [R]: the direct sound, 1, at sample 0, and noise that decays."""
        n = round(self.reverb_s * sample_rate)
        direct = torch.ones(1)
        if n < 1:
            return direct
        noise = torch.from_numpy(_rng(f"room {self.room}").standard_normal(n, dtype=np.float32))
        tail = noise * torch.exp(-math.log(1000) * torch.arange(1, n + 1) / n)
        energy = 10 ** (-self.reverb_db / 10)
        return torch.cat([direct, tail * (energy / tail.square().sum()).sqrt()])


def version_name(name: str, version: int) -> str:
    """What the version (1 ...) of an utterance or a speaker is called; 0 is the recording itself."""
    return f"{name}~{version}" if version else name


def voice_of(speaker: str | None, utterance_id: str, version: int, seed: int = 0) -> VirtualVoice:
    """The voice of a version: one for all utterances of a speaker; where the speaker is not known, one an utterance."""
    return VirtualVoice.draw(version_name(utterance_id if speaker is None else speaker, version), seed)


def scale_durations(durations: Tensor, n_frames: int) -> Tensor:
    """durations [S] of a recording -> [S] of the same in ``n_frames`` frames.

    Boundaries move in proportion. A symbol without frames gets none, one with frames keeps at least one, since a phone
    without any would be taken for one that is left out (``valle.model.alignment``); unless there are too few frames.
    """
    sounding = durations.nonzero().squeeze(1)  # [n]
    n = len(sounding)
    ends = durations[sounding].long().cumsum(0)  # [n]
    if not n:
        return durations.clone()
    ends = (2 * ends * n_frames + ends[-1]) // (2 * ends[-1])  # rounded
    if n <= n_frames:
        before = torch.arange(1, n + 1)  # frames that it and those before it need
        ends = (ends - before).clamp(0, n_frames - n).cummax(0).values + before
    scaled = torch.zeros_like(durations, dtype=torch.int64)
    scaled[sounding] = ends.diff(prepend=torch.zeros(1, dtype=torch.int64))
    return scaled


def _log_uniform(u: float) -> float:
    """u in [0, 1) to a speed in ``SPEEDS``, uniform in its logarithm."""
    widths = [math.log(high / low) for low, high in SPEEDS]
    u *= sum(widths)
    for (low, _), width in zip(SPEEDS, widths, strict=True):
        if u < width:
            return low * math.exp(u)
        u -= width
    return SPEEDS[-1][1]


def _fast_size(n: int) -> int:
    """A size of at least n whose Fourier transform is quick."""
    return min(m << max(0, math.ceil(math.log2(n / m))) for m in (1, 3, 5, 9, 15))


def _rng(key: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
