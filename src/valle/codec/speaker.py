"""A network that tells voices apart, trained on the corpus that the codec learns from; a listener for its decoder.

The trunk is that of the recogniser (``valle.asr.hybrid.network``), its answers are pooled over time (mean and standard
deviation, as x-vectors are) and projected to an embedding; it learns to name the speaker of a crop by an additive
angular margin. With several ``speeds`` each recording at another one counts as another speaker.

It never judges: what is reported comes from other people's networks (docs/evaluation.md).

    python -m valle.codec.speaker configs/speaker.toml

Sources: Snyder et al., "X-vectors", ICASSP 2018; Deng et al., "ArcFace", arXiv 1801.07698; Yamamoto et al., "Speaker
augmentation and bandwidth extension", Interspeech 2019 (speed).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.asr.hybrid.network import Network, NetworkConfig
from valle.codec.crops import WaveCache, build_cache, speakers_of
from valle.codec.losses import feature_matching_loss
from valle.codec.perceptual import KaldiMel
from valle.config import from_dict, load_config, to_dict
from valle.device import choose_device
from valle.errors import ValleError
from valle.eval.speaker import equal_error_rate
from valle.files import write_atomic
from valle.train.signals import stop_signals
from valle.train.tracking import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpeakerConfig:
    """The size of the network."""

    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(width=256, middle=128))
    """The trunk."""
    frame_dim: int = 384
    """Channels that are pooled over time."""
    embedding_dim: int = 192
    """Numbers of an embedding."""


class XVectorNetwork(nn.Module):
    """Log mel energies [B, T, 80] -> embeddings [B, embedding_dim] of unit length."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Network(config.network, config.frame_dim)
        self.norm = nn.LayerNorm(2 * config.frame_dim)
        self.embed = nn.Linear(2 * config.frame_dim, config.embedding_dim)

    def layers(self, mels: Tensor) -> list[Tensor]:
        """What stands after each block [B, S, W], S steps of 30 ms, and last the embeddings."""
        *inner, frames = self.trunk.layers(mels)
        frames = F.relu(frames)  # [B, S, frame_dim]
        std = (frames.var(1, unbiased=False) + 1e-5).sqrt()
        return [*inner, F.normalize(self.embed(self.norm(torch.cat([frames.mean(1), std], dim=1))), dim=1)]

    def forward(self, mels: Tensor) -> Tensor:
        return self.layers(mels)[-1]

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "model.safetensors", save({k: v.contiguous() for k, v in self.state_dict().items()}))
        write_atomic(folder / "config.json", (json.dumps(to_dict(self.config), indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> XVectorNetwork:
        """Read what ``save`` wrote.

        Raises:
            ValleError: the folder holds no such network, or a damaged one.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValleError(
                f"{folder} is not a speaker network: no config.json is in it; train one with "
                "`python -m valle.codec.speaker configs/speaker.toml`"
            )
        try:
            values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            network = cls(from_dict(SpeakerConfig, values, str(folder / "config.json")))
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise ValleError(
                f"the speaker network {folder} is damaged: {' '.join(str(error).split())[:200]}"
            ) from error
        return network.eval()


class SpeakerLoss(nn.Module):
    """How differently it hears two waves: wav, target [B, 1, N] -> scalar; no gradient flows to the target.

    The relative difference of the inner features of each block, plus one less the cosine of the embeddings.
    """

    def __init__(self, network: XVectorNetwork, sample_rate: int = 24000) -> None:
        super().__init__()
        self.mel = KaldiMel(sample_rate)
        self.network = network.eval().requires_grad_(False)

    def forward(self, wav: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            mels = self.mel(target)
            mean = mels.mean(1, keepdim=True)  # of both, so that a difference of the level is one
            *wanted, voice = self.network.layers(mels - mean)
        *heard, own = self.network.layers(self.mel(wav) - mean)
        return feature_matching_loss([heard], [wanted]) + 1 - (own * voice).sum(1).mean()


@dataclass(frozen=True)
class SpeakerTrainConfig:
    """One training: ``configs/speaker.toml``."""

    out: str
    """Folder of the run; the network lies in ``model`` of it."""
    manifest: str
    """JSON-lines file with id, path, split and speaker of every recording."""
    train_splits: tuple[str, ...] = ("train", "unlabelled")
    """Splits to learn from."""
    dev_splits: tuple[str, ...] = ("dev",)
    """Splits whose equal error rate is told: other speakers."""
    cache: str = "runs/cache"
    """Folder for the decoded samples, the codec's."""
    model: SpeakerConfig = field(default_factory=SpeakerConfig)
    """The network's size."""
    crop_s: float = 1.6
    """Seconds of a crop."""
    batch_size: int = 64
    """Crops a step, each of another speaker as far as there are so many."""
    max_minutes: float = 15.0
    """Length of the run; the learning rate follows the clock."""
    lr: float = 1e-3
    """Peak learning rate."""
    speeds: tuple[float, ...] = (1.0,)
    """Of the recordings; each speaker is a class at each of them."""
    margin: float = 0.2
    """Angle, in radians, by which a crop must be nearer to its own speaker; it grows in the second half of the run."""
    scale: float = 30.0
    """What cosines are multiplied by before the softmax."""
    noise_share: float = 0.5
    """Share of the crops that get noise, 10 to 40 dB below them."""
    seed: int = 0
    """Of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    log_every: int = 25
    """Steps between log lines."""


class SpeakerTrainer:
    """The state of one run."""

    def __init__(self, config: SpeakerTrainConfig) -> None:
        self.config, self.device = config, choose_device(config.device)
        torch.manual_seed(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.train = build_cache(config.manifest, config.train_splits, config.cache)
        self.dev = build_cache(config.manifest, config.dev_splits, config.cache)
        self.speakers = _speakers(config.manifest, self.train)
        self.network = XVectorNetwork(config.model).to(self.device)
        self.mel = KaldiMel(24000).to(self.device)
        self.classes = nn.Parameter(
            F.normalize(torch.randn(len(self.speakers) * len(config.speeds), config.model.embedding_dim), dim=1).to(
                self.device
            )
        )
        self.optimizer = torch.optim.AdamW([*self.network.parameters(), self.classes], config.lr, weight_decay=1e-2)
        self.minutes = 0.0

    def run(self) -> Path:
        """Train to the end, or until interrupted; returns the folder of the network."""
        config, step, started = self.config, 0, time.monotonic()
        out = Path(config.out)
        with Tracker(out, 1_000_000, unit="s of speech") as tracker, stop_signals() as stop:
            while self.minutes < config.max_minutes and not stop:
                values = self.train_step()
                step += 1
                self.minutes = (time.monotonic() - started) / 60
                tracker.advance(step, config.batch_size * config.crop_s)
                if step % config.log_every == 0:
                    tracker.log(step, {f"train/{k}": v for k, v in values.items()} | {"train/minutes": self.minutes})
            tracker.log(step, {"dev/eer": self.equal_error_rate()})
        self.network.save(out / "model")
        return out / "model"

    def train_step(self) -> dict[str, float]:
        """One step; returns loss and the share of crops whose speaker came first."""
        config = self.config
        progress = min(1.0, self.minutes / config.max_minutes)
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, 30 * progress + 0.02) * (0.02 + 0.98 * (1 - progress))
        wav, targets = self.crops()
        embeddings = self.network(self.mels(wav.to(self.device)))
        targets = targets.to(self.device)
        cosines = embeddings @ F.normalize(self.classes, dim=1).t()  # [B, classes]
        own = cosines.gather(1, targets.unsqueeze(1)).clamp(-1 + 1e-6, 1 - 1e-6)
        margin = config.margin * min(1.0, max(0.0, 3 * progress - 1.5))  # none at first, or nothing is learnt
        nearer = (own.acos() + margin).clamp(max=math.pi).cos()
        loss = F.cross_entropy(config.scale * cosines.scatter(1, targets.unsqueeze(1), nearer), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        return {"loss": float(loss.detach()), "top1": float((cosines.argmax(1) == targets).float().mean())}

    def mels(self, wav: Tensor) -> Tensor:
        """wav [B, 1, N] -> log mel energies [B, T, 80] of zero mean over time."""
        mels: Tensor = self.mel(wav)
        return mels - mels.mean(1, keepdim=True)

    def crops(self) -> tuple[Tensor, Tensor]:
        """Crops [B, 1, N] of speakers drawn alike, and their classes [B]."""
        config, n = self.config, round(self.config.crop_s * 24000)
        which = torch.randperm(len(self.speakers), generator=self.generator)[: config.batch_size].tolist()
        crops, targets = [], []
        for speaker in which:
            mine = self.speakers[speaker]
            u = mine[int(torch.randint(len(mine), (), generator=self.generator))]
            s = int(torch.randint(len(config.speeds), (), generator=self.generator))
            first, last = int(self.train.starts[u]), int(self.train.starts[u + 1])
            crops.append(self._crop(self.train.samples[first:last], n, config.speeds[s]))
            targets.append(speaker * len(config.speeds) + s)
        wav = torch.stack(crops)
        if config.noise_share:
            level = wav.square().mean(1, keepdim=True).sqrt()
            db = -(10 + 30 * torch.rand(len(wav), 1, generator=self.generator))
            noisy = torch.rand(len(wav), 1, generator=self.generator) < config.noise_share
            noise = torch.randn(wav.shape, generator=self.generator)
            wav = wav + noise * level * 10 ** (db / 20) * noisy
        return wav.unsqueeze(1), torch.tensor(targets)

    def _crop(self, samples: np.ndarray, n: int, speed: float) -> Tensor:
        """[n] of a recording at a speed; a short one is repeated."""
        needed = math.ceil(n * speed)
        if len(samples) < needed:
            samples = np.tile(samples, math.ceil(needed / max(1, len(samples))))
        at = int(torch.randint(len(samples) - needed + 1, (), generator=self.generator))
        wav = torch.from_numpy(samples[at : at + needed].astype(np.float32) / 32768.0)
        return F.interpolate(wav.view(1, 1, -1), n, mode="linear", align_corners=True).view(-1)

    @torch.no_grad()
    def equal_error_rate(self) -> float:
        """Of all pairs of up to ten recordings of each dev speaker, the first four seconds of each."""
        self.network.eval()
        embeddings, speakers = [], []
        for speaker, mine in enumerate(_speakers(self.config.manifest, self.dev)):
            for u in mine[:10]:
                wav = self.dev.wav(u)[:, : 4 * 24000].unsqueeze(0)
                embeddings.append(self.network(self.mels(wav.to(self.device)))[0].cpu())
                speakers.append(speaker)
        e, s = torch.stack(embeddings), torch.tensor(speakers)
        rows, columns = torch.triu_indices(len(s), len(s), 1)
        cosines, same = (e[rows] * e[columns]).sum(1), s[rows] == s[columns]
        return equal_error_rate(cosines[same].tolist(), cosines[~same].tolist())[0]


def _speakers(manifest: str | Path, cache: WaveCache) -> list[list[int]]:
    """The recordings of each speaker; recordings without one are left out."""
    found = speakers_of(manifest, cache)
    if len(found) < 2:
        raise ValleError(f"{manifest} names {len(found)} speakers of these splits; to tell voices apart, 2 are needed")
    return found


def main(argv: Sequence[str]) -> int:
    """``python -m valle.codec.speaker CONFIG``."""
    parser = argparse.ArgumentParser(prog="python -m valle.codec.speaker", description="Train a speaker network.")
    parser.add_argument("config", type=Path, help="TOML file (configs/speaker.toml)")
    args = parser.parse_args(argv)
    folder = SpeakerTrainer(load_config(args.config, SpeakerTrainConfig)).run()
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValleError as error:
        sys.exit(f"error: {error}")
