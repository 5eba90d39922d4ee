"""The codec's training data: recordings decoded once into one file of 16-bit samples, then random crops of it."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from valle.errors import ValleError

PITCH_STEP = 160
"""Samples between two entries of a pitch track."""


@dataclass(frozen=True)
class WaveCache:
    """The recordings of some splits end to end, memory-mapped; utterance i is ``samples[starts[i]:starts[i + 1]]``."""

    samples: np.ndarray  # int16 [N]
    starts: np.ndarray  # int64 [n + 1]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hours(self) -> float:
        """Of speech at 24 kHz."""
        return len(self.samples) / 24000 / 3600

    def wav(self, i: int) -> Tensor:
        """Utterance i: [1, n] float32."""
        return torch.from_numpy(
            self.samples[self.starts[i] : self.starts[i + 1]].astype(np.float32) / 32768.0
        ).unsqueeze(0)


def build_cache(
    manifest: str | Path, splits: tuple[str, ...], folder: str | Path, sample_rate: int = 24000
) -> WaveCache:
    """Decode and resample, once, the recordings of ``splits`` in ``manifest`` (JSON lines: id, path, split).

    A second call with the same arguments reads what the first one wrote.

    Raises:
        ValleError: no manifest, or no utterance in the splits.
    """
    from tqdm import tqdm

    manifest, folder = Path(manifest), Path(folder)
    name = "-".join(splits)
    index_path, samples_path = folder / f"{name}.json", folder / f"{name}.s16"
    if not index_path.is_file():
        if not manifest.is_file():
            raise ValleError(
                f"there is no manifest {manifest}; give a JSON-lines file with id, path and split (docs/data.md)"
            )
        lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
        lines = [line for line in lines if line["split"] in splits]
        if not lines:
            raise ValleError(f"{manifest} has no utterance in the splits {', '.join(splits)}")
        folder.mkdir(parents=True, exist_ok=True)
        starts, ids = [0], []
        # Threads: libsndfile and soxr let go of the interpreter's lock while they work.
        with samples_path.with_suffix(".part").open("wb") as out, ThreadPoolExecutor(os.cpu_count()) as pool:
            bar = tqdm(total=len(lines), desc=f"decoding {name}", unit="utt")
            for first in range(0, len(lines), 256):  # no more of it in memory at once
                chunk = lines[first : first + 256]
                paths = [manifest.parent / line["path"] for line in chunk]
                for line, samples in zip(
                    chunk, pool.map(partial(_decode, sample_rate=sample_rate), paths), strict=True
                ):
                    bar.update()
                    if samples is None:
                        continue  # one broken file never stops a training; `valle prepare` is where it is reported
                    out.write(samples.tobytes())
                    starts.append(starts[-1] + len(samples))
                    ids.append(line["id"])
            bar.close()
        samples_path.with_suffix(".part").rename(samples_path)
        index_path.write_text(json.dumps({"sample_rate": sample_rate, "ids": ids, "starts": starts}))
    index = json.loads(index_path.read_text())
    if index["sample_rate"] != sample_rate:
        raise ValleError(
            f"{index_path} holds speech at {index['sample_rate']} Hz, not {sample_rate}; give another [data] cache"
        )
    samples = np.memmap(samples_path, dtype=np.int16, mode="r")
    return WaveCache(samples, np.asarray(index["starts"]), index["ids"])


def _decode(path: Path, sample_rate: int) -> np.ndarray | None:
    """A recording as int16 [n] at ``sample_rate``, mono; None if it cannot be read."""
    import soundfile
    import soxr

    try:
        x, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError):
        return None
    x = x.mean(axis=1)
    y = soxr.resample(x, rate, sample_rate) if rate != sample_rate else x
    samples: np.ndarray = (y.clip(-1, 1) * 32767).astype(np.int16)
    return samples


class Crops(NamedTuple):
    """A batch of training crops."""

    wav: Tensor  # [B, 1, N]
    hz: Tensor | None = None  # [B, N / 160] pitch at the end of each 160 samples, bridged where unvoiced
    voiced: Tensor | None = None  # [B, N / 160] bool

    def to(self, device: str | torch.device) -> Crops:
        """The same crops on another device."""
        hz, voiced = (None if x is None else x.to(device, non_blocking=True) for x in self[1:])
        return Crops(self.wav.to(device, non_blocking=True), hz, voiced)


def random_crops(
    cache: WaveCache,
    n_crops: int,
    n_samples: int,
    max_gain_db: float,
    generator: torch.Generator,
    pitch: tuple[np.ndarray, np.ndarray] | None = None,
) -> Crops:
    """Crops at places drawn evenly over all the speech, each with a random gain.

    A crop may run over the end of one utterance into the next: that is one more thing a codec must be able to code. The
    gain is drawn from ±``max_gain_db`` and lowered where it would clip. ``pitch`` is the track of ``build_pitch``, as
    it is and bridged by ``fill``; with it crops begin where the track has an entry.
    """
    step = 1 if pitch is None else PITCH_STEP
    n_places = (len(cache.samples) - n_samples) // step
    places = (torch.randint(n_places, (n_crops,), generator=generator) * step).tolist()
    wav = torch.from_numpy(np.stack([cache.samples[p : p + n_samples] for p in places]).astype(np.float32) / 32768.0)
    gains = 10 ** ((torch.rand(n_crops, 1, generator=generator) * 2 - 1) * max_gain_db / 20)
    peaks = wav.abs().amax(1, keepdim=True).clamp(min=1e-4)
    wav = (wav * torch.minimum(gains, 0.99 / peaks)).unsqueeze(1)  # [n_crops, 1, n_samples]
    if pitch is None:
        return Crops(wav)
    hz, filled = (
        np.stack([track[p // step + 1 : p // step + 1 + n_samples // step] for p in places]) for track in pitch
    )
    return Crops(wav, torch.from_numpy(filled), torch.from_numpy(hz > 0))
