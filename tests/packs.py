"""The fixture ``make_pack``, for the tests of data and training: small packs of synthetic utterances."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from valle.data.pack import PHONEMES_FILE, PackedUtterance, PackInfo, ShardInfo, write_info, write_shard
from valle.text import PhonemeInventory


@pytest.fixture
def make_pack(tmp_path: Path) -> Callable[..., Path]:
    """``write_pack`` into a folder of the test, ``name``."""

    def make(lengths: dict[str, list[int]], *, name: str = "pack", **options: Any) -> Path:
        return write_pack(tmp_path / name, lengths, **options)

    return make


def write_pack(
    folder: Path,
    lengths: dict[str, list[int]],
    *,
    n_speakers: int = 2,
    compact: bool = False,
    fingerprint: str = "c0dec",
    aligned: bool = False,
) -> Path:
    """A pack of utterances of the lengths given, each of random codes and phonemes."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    speakers = ("a", "b", "c")[:n_speakers]
    inventory = PhonemeInventory("1", tuple(" abcdefghi"))
    info = PackInfo(fingerprint, "1", n_phonemes=10, separator_id=0, frame_rate=75.0, speakers=speakers)
    if aligned:
        info = dataclasses.replace(info, aligned=True, phoneme_kinds=inventory.kinds)
    shards = []
    for split, frames in lengths.items():
        utterances = []
        for i, n in enumerate(frames):
            phonemes = torch.randint(1, 10, (max(2, n // 6),), generator=generator)
            codes = torch.randint(1024, (8, n), generator=generator)
            durations = None
            if aligned:  # any that sum to n
                cuts = torch.randint(n + 1, (len(phonemes) - 1,), generator=generator).sort().values
                durations = torch.cat([torch.tensor([0]), cuts, torch.tensor([n])]).diff()
            utterances.append(PackedUtterance(f"{split}{i}", phonemes, codes, i % n_speakers, durations))
        write_shard(folder / f"{split}-00000.safetensors", utterances, info, compact=compact)
        shards.append(ShardInfo(f"{split}-00000.safetensors", split, len(frames), sum(frames) / 75 / 3600))
    inventory.save(folder / PHONEMES_FILE)
    write_info(folder, dataclasses.replace(info, shards=tuple(shards)))
    return folder
