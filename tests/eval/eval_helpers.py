"""Judges that need no download, a codec whose answers are known, and a small corpus of synthetic speech."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from valle.codec.base import Codec, StreamDecoder
from valle.eval.judges import Judges
from valle.eval.wer import RECOGNISER_RATE

RATE = 24000


def speechlike(seconds: float, pitch: float = 120.0, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Syllables of harmonics with pauses; float32 [N]."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    syllables = np.clip(np.sin(2 * np.pi * 3 * t + rng.uniform(0, 6)), 0, 1)
    tone = sum(np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 6)) / k for k in range(1, 12))
    return (0.1 * syllables * tone + 0.001 * rng.normal(size=len(t))).astype(np.float32)


class FakeRecogniser:
    """Hears the words that were agreed for a wave of this length; anything else is silence."""

    def __init__(self, heard: dict[int, str] | None = None, default: str = "") -> None:
        self.heard, self.default, self.n_calls = heard or {}, default, 0

    def transcribe(self, wav: np.ndarray) -> str:
        assert wav.dtype == np.float32
        assert wav.ndim == 1
        self.n_calls += 1
        return self.heard.get(round(10 * len(wav) / RECOGNISER_RATE), self.default)


class FakeSpeaker:
    """The spectrum's energy in sixteen bands: a pitch apart is a voice apart."""

    def embed(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        spectrum = np.abs(np.fft.rfft(wav, 4 * sample_rate))[: 4 * 800]
        return np.asarray([band.sum() for band in np.array_split(spectrum, 160)], np.float32)


def judges(recogniser: Any = None) -> Judges:
    return Judges(recogniser or FakeRecogniser(), FakeSpeaker(), {"recogniser": "fake", "speaker": "fake"})


class KnownCodec(Codec):
    """Gives back the last wave that it encoded, with noise that falls with the number of codebooks.

    Its codes are known too: codebook k uses k + 1 of its 8 entries, all alike.
    """

    sample_rate, hop_length, n_quantizers, codebook_size = RATE, 320, 3, 8
    codec_type = "known"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.wav = torch.zeros(1, 1, 0)

    def encode(self, wav: Tensor, n_quantizers: int | None = None) -> Tensor:
        self.wav = wav
        t = torch.arange(-(-wav.shape[2] // self.hop_length))
        return torch.stack([t % (k + 1) for k in range(self.n_quantizers)])[None]

    def decode(self, codes: Tensor, voice: Tensor | None = None) -> Tensor:
        k, n = codes.shape[1], codes.shape[2] * self.hop_length
        wav = nn.functional.pad(self.wav, (0, n - self.wav.shape[2]))
        return wav + 0.05 * 0.1**k * torch.randn(wav.shape, generator=torch.Generator().manual_seed(0))

    def stream_decoder(self, voice: Tensor | None = None) -> StreamDecoder:
        raise NotImplementedError

    def codebooks(self) -> torch.Tensor:
        raise AssertionError("nobody asks for them here")

    def encoding_modules(self) -> list[nn.Module]:
        return []

    def config_dict(self) -> dict[str, Any]:
        return {}


def write_corpus(folder: Path, speakers: dict[str, list[float]], *, corpora: dict[str, str] | None = None) -> Path:
    """A manifest and its waves: for each speaker utterances of these lengths, each with a text of its own."""
    lines = []
    for number, (speaker, lengths) in enumerate(speakers.items()):
        for i, seconds in enumerate(lengths):
            path = folder / speaker / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, speechlike(seconds, 100 + 60 * number, seed=i), RATE)
            line = {
                "id": f"{speaker}-{i}",
                "path": f"{speaker}/{i}.wav",
                "seconds": seconds,
                "split": "test",
                "text": f"this is sentence {chr(97 + i)} of {speaker}",
                "speaker": speaker,
                "dataset": (corpora or {}).get(speaker, "synthetic"),
            }
            lines.append(json.dumps(line))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    assert Counter(lines).most_common(1)[0][1] == 1
    return manifest
