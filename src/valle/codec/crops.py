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

from valle.codec.base import Codec
from valle.data.pack import Pack
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
    utterances: Tensor | None = None  # [B] int64 the utterance that most of each crop is of
    codes: Tensor | None = None  # [n, K, T] foretold ones, of the last n crops; None: all have those of the codec

    def to(self, device: str | torch.device) -> Crops:
        """The same crops on another device."""
        return Crops(*(None if x is None else x.to(device, non_blocking=True) for x in self))  # type: ignore[arg-type]


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
    crops = cut(cache, places, n_samples, pitch)
    wav = crops.wav.squeeze(1)
    gains = 10 ** ((torch.rand(n_crops, 1, generator=generator) * 2 - 1) * max_gain_db / 20)
    peaks = wav.abs().amax(1, keepdim=True).clamp(min=1e-4)
    return crops._replace(wav=(wav * torch.minimum(gains, 0.99 / peaks)).unsqueeze(1))


def cut(cache: WaveCache, places: list[int], n_samples: int, pitch: tuple[np.ndarray, np.ndarray] | None) -> Crops:
    """Crops of ``n_samples`` from these samples on, as they are, with the pitch tracks' nearest entries."""
    wav = torch.from_numpy(np.stack([cache.samples[p : p + n_samples] for p in places]).astype(np.float32) / 32768.0)
    middles = np.asarray(places) + n_samples // 2
    utterances = torch.from_numpy(np.searchsorted(cache.starts, middles, side="right") - 1)
    crops = Crops(wav.unsqueeze(1), utterances=utterances)
    if pitch is None:
        return crops
    first = [round(p / PITCH_STEP) + 1 for p in places]
    n = n_samples // PITCH_STEP
    hz, filled = (
        np.stack([np.pad(track[i : i + n], (0, max(0, i + n - len(track))), mode="edge") for i in first])
        for track in pitch
    )
    return crops._replace(hz=torch.from_numpy(filled), voiced=torch.from_numpy(hz > 0))


class ForetoldCrops:
    """Crops of recordings with the codes that a NAR foretells for them (``valle.data.foretell``)."""

    def __init__(self, cache: WaveCache, pack: Pack, codec_fingerprint: str, hop: int) -> None:
        """
        Raises:
            ValleError: the pack is of another codec, or none of its utterances is in the cache.
        """
        pack.require(codec_fingerprint=codec_fingerprint)
        self.cache, self.split, self.hop = cache, pack.split("train"), hop
        place = {name: i for i, name in enumerate(cache.ids)}
        self.rows = [i for i, name in enumerate(self.split.ids) if name in place]
        if not self.rows:
            raise ValleError(f"no utterance of {pack.folder} is a recording of [data] manifest; foretell its own pack")
        self.places = [place[self.split.ids[i]] for i in self.rows]
        self.lengths = self.split.n_frames[self.rows]

    def draw(
        self, n_crops: int, n_frames: int, generator: torch.Generator, pitch: tuple[np.ndarray, np.ndarray] | None
    ) -> Crops:
        """Crops at places drawn evenly over all the speech foretold, as loud as they are."""
        free = (self.lengths - n_frames + 1).clamp(min=0)
        if not free.any():
            raise ValleError(f"no foretold utterance has {n_frames} frames; set a shorter crop_s")
        which = torch.multinomial(free.double(), n_crops, replacement=True, generator=generator).tolist()
        starts = [int(torch.randint(int(free[w]), (), generator=generator)) for w in which]
        places = [int(self.cache.starts[self.places[w]]) + s * self.hop for w, s in zip(which, starts, strict=True)]
        last = len(self.cache.samples) - n_frames * self.hop
        crops = cut(self.cache, [min(p, last) for p in places], n_frames * self.hop, pitch)
        codes = [self.split.codes(self.rows[w])[:, s : s + n_frames] for w, s in zip(which, starts, strict=True)]
        return crops._replace(codes=torch.stack(codes), utterances=torch.tensor([self.places[w] for w in which]))


def join_crops(first: Crops, second: Crops) -> Crops:
    """One batch of both; only the second may have foretold codes."""
    assert first.codes is None, "foretold codes belong to the last crops of a batch"
    wav, hz, voiced, utterances = (
        None if a is None or b is None else torch.cat([a, b]) for a, b in zip(first[:4], second[:4], strict=True)
    )
    assert wav is not None
    return Crops(wav, hz, voiced, utterances, second.codes)


class VoicePrompts:
    """Some seconds of another recording of the same speaker, as codes: what a decoder is told a voice by."""

    def __init__(self, cache: WaveCache, speakers: list[list[int]], n_samples: int) -> None:
        """``speakers`` are the recordings of each (``speakers_of``); the others have but themselves."""
        self.cache, self.n_samples = cache, n_samples
        self.others = {i: [j for j in own if j != i] or [i] for own in speakers for i in own}
        self.known: dict[int, Tensor] = {}

    def draw(self, utterances: list[int], generator: torch.Generator, codec: Codec) -> Tensor:
        """Codes [B, K, T] for a crop of each of these utterances; each recording is encoded once."""
        chosen = []
        for i in utterances:
            others = self.others.get(i, [i])
            chosen.append(others[int(torch.randint(len(others), (), generator=generator))])
        new = [i for i in dict.fromkeys(chosen) if i not in self.known]
        if new:
            wav = torch.stack([self._wav(i, generator) for i in new])  # [n, 1, N]
            codes = codec.encode(wav.to(next(codec.parameters()).device)).to(torch.int16).cpu()
            self.known |= dict(zip(new, codes, strict=True))
        return torch.stack([self.known[i] for i in chosen]).long()

    def _wav(self, i: int, generator: torch.Generator) -> Tensor:
        """[1, n_samples] of a recording from anywhere; a short one is repeated."""
        wav = self.cache.wav(i)
        wav = wav.repeat(1, -(-self.n_samples // max(1, wav.shape[1])))
        at = int(torch.randint(wav.shape[1] - self.n_samples + 1, (), generator=generator))
        return wav[:, at : at + self.n_samples]


def speakers_of(manifest: str | Path, cache: WaveCache) -> list[list[int]]:
    """The recordings of each speaker that the manifest names."""
    lines = [json.loads(line) for line in Path(manifest).read_text(encoding="utf-8").splitlines() if line.strip()]
    of = {line["id"]: line.get("speaker") for line in lines}
    found: dict[str, list[int]] = {}
    for i, name in enumerate(cache.ids):
        if of.get(name):
            found.setdefault(of[name], []).append(i)
    return list(found.values())
