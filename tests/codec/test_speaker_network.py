"""The speaker network: it learns to tell voices apart, is stored and read, and its loss hears what is lost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from valle.asr.hybrid.network import NetworkConfig
from valle.codec.speaker import (
    SpeakerConfig,
    SpeakerLoss,
    SpeakerTrainConfig,
    SpeakerTrainer,
    XVectorNetwork,
    main,
)
from valle.errors import ValleError

TINY = SpeakerConfig(NetworkConfig(width=24, middle=8, dilations=(1, 2)), frame_dim=16, embedding_dim=12)


def voice(speaker: int, take: int, n: int = 36000) -> np.ndarray:
    """A buzz whose resonance opens and shuts, at a place of its own; takes differ in pitch."""
    t = np.arange(n) / 24000
    pitch = 100 + 11 * take
    formant = 400 + 900 * speaker
    width = 150 + 250 * (1 + np.sin(2 * math.pi * 3 * t + take))
    parts = [
        np.exp(-(((k * pitch - formant) / width) ** 2)) * np.sin(2 * math.pi * k * pitch * t) for k in range(1, 40)
    ]
    noise = np.random.default_rng(10 * speaker + take).standard_normal(n)
    return np.asarray(0.2 * np.sum(parts, axis=0) + 0.002 * noise)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SpeakerTrainConfig:
    folder = tmp_path_factory.mktemp("voices")
    lines = []
    for speaker in range(3):
        for take in range(5):
            name = f"{speaker}-{take}"
            soundfile.write(folder / f"{name}.wav", voice(speaker, take), 24000)
            split = "dev" if take >= 3 else "train"
            lines.append({"id": name, "path": f"{name}.wav", "split": split, "speaker": str(speaker)})
    soundfile.write(folder / "nobody.wav", voice(0, 0), 24000)
    lines.append({"id": "nobody", "path": "nobody.wav", "split": "train", "speaker": None})
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return SpeakerTrainConfig(
        str(folder / "run"), str(folder / "manifest.jsonl"), ("train",), cache=str(folder / "cache"), model=TINY,
        crop_s=0.5, batch_size=3, lr=1e-2, max_minutes=1e9, device="cpu",
    )  # fmt: skip


def test_it_learns_to_tell_voices_apart(config: SpeakerTrainConfig) -> None:
    trainer = SpeakerTrainer(replace(config, speeds=(1.0, 1.1)))
    assert [len(mine) for mine in trainer.speakers] == [3, 3, 3], "a recording of nobody is left out"
    assert trainer.classes.shape == (6, 12)
    before = trainer.train_step()["loss"]
    trainer.minutes = 0.05 * config.max_minutes  # past the warm-up
    last = [trainer.train_step()["loss"] for _ in range(60)][-10:]
    assert sum(last) / 10 < 0.5 * before
    assert trainer.equal_error_rate() < 0.25


def test_a_crop_is_as_long_as_asked_from_any_recording(config: SpeakerTrainConfig) -> None:
    trainer = SpeakerTrainer(replace(config, crop_s=3.0, speeds=(0.9, 1.1)))  # recordings have 1.5 s
    wav, targets = trainer.crops()
    assert wav.shape == (3, 1, 72000)
    assert sorted(t // 2 for t in targets.tolist()) == [0, 1, 2]


def test_the_command_writes_what_is_read(config: SpeakerTrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "speaker.toml"
    path.write_text(
        f'out = "{tmp_path}/run"\nmanifest = "{config.manifest}"\ntrain_splits = ["train"]\ncache = "{config.cache}"\n'
        "max_minutes = 0.01\nbatch_size = 3\ncrop_s = 0.5\n"
        "[model.network]\nwidth = 24\nmiddle = 8\ndilations = [1, 2]\n"
    )
    assert main([str(path)]) == 0
    network = XVectorNetwork.load(tmp_path / "run" / "model")
    assert network.config.network.width == 24
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert 0 <= logged[-1]["dev/eer"] <= 1
    embeddings = network(torch.randn(2, 50, 80))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    (tmp_path / "run" / "model" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValleError, match="is damaged"):
        XVectorNetwork.load(tmp_path / "run" / "model")
    with pytest.raises(ValleError, match="is not a speaker network"):
        XVectorNetwork.load(tmp_path)


def test_one_speaker_is_too_few(config: SpeakerTrainConfig, tmp_path: Path) -> None:
    lines = Path(config.manifest).read_text().replace('"speaker": "1"', '"speaker": "0"')
    path = Path(config.manifest).with_name("one.jsonl")
    path.write_text(lines.replace('"speaker": "2"', '"speaker": "0"'))
    with pytest.raises(ValleError, match="names 1 speakers"):
        SpeakerTrainer(replace(config, manifest=str(path)))


def test_the_loss_hears_noise_and_leaves_the_network_alone() -> None:
    torch.manual_seed(0)
    loss = SpeakerLoss(XVectorNetwork(TINY))
    wav = torch.from_numpy(voice(1, 0, 12000)).float().view(1, 1, -1)
    noise = torch.randn(wav.shape)
    with torch.no_grad():
        values = [float(loss(wav + level * noise, wav)) for level in (0.0, 0.01, 0.1)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    heard = (wav + 0.01 * noise).requires_grad_()
    torch.autograd.backward(loss(heard, wav))
    assert heard.grad is not None
    assert bool(torch.isfinite(heard.grad).all())
    assert all(p.grad is None for p in loss.parameters())
