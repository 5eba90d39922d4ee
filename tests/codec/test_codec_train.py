"""`valle codec train` on a handful of synthetic recordings: it learns, resumes bit for bit, keeps codes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch

from valle.codec.base import load_codec
from valle.codec.crops import Crops, build_cache, random_crops
from valle.codec.encodec import EnCodecConfig
from valle.codec.pitch import build_pitch, fill
from valle.codec.spectral import SpectralCodec, SpectralCodecConfig
from valle.codec.train import CodecTrainer, train_codec
from valle.codec.train_config import CodecTrainConfig, DataConfig
from valle.data.pack import Pack, PackedUtterance, PackInfo, ShardInfo, write_info, write_shard
from valle.errors import ValleError

SMALL = SpectralCodecConfig(
    encoder_dim=24,
    encoder_layers=1,
    decoder_dim=32,
    decoder_layers=2,
    codebook_dim=12,
    n_quantizers=4,
    codebook_size=16,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings of gliding tones at 16 kHz, and one file that is no audio."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(6):
        t = np.arange(16000) / 16000
        wav = 0.3 * np.sin(2 * math.pi * (150 + 80 * i) * t * (1 + 0.3 * t)) + 0.01 * rng.standard_normal(16000)
        soundfile.write(folder / f"{i}.wav", wav, 16000)
        lines.append({"id": str(i), "path": f"{i}.wav", "split": "dev" if i == 5 else "train"})
    (folder / "broken.wav").write_bytes(b"not audio")
    lines.append({"id": "broken", "path": "broken.wav", "split": "train"})
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "manifest.jsonl"


@pytest.fixture
def config(manifest: Path, tmp_path: Path) -> CodecTrainConfig:
    return CodecTrainConfig(
        out=str(tmp_path / "run"),
        data=DataConfig(
            str(manifest), ("train",), ("dev",), cache=str(manifest.parent / "cache"), crop_s=0.2, batch_size=4
        ),
        spectral=SMALL,
        max_steps=12,
        warmup_steps=2,
        quantize_after=3,
        kmeans_frames=200,
        log_every=1,
        eval_every=100,
        adversarial_start=100,
        discriminator_channels=2,
        discriminator_windows=(256, 128),
        device="cpu",
    )


def losses(folder: str) -> list[float]:
    events = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [event["train/mel"] for event in events if "train/mel" in event]


def test_the_cache_leaves_out_the_broken_file_and_resamples(manifest: Path, tmp_path: Path) -> None:
    cache = build_cache(manifest, ("train",), tmp_path)
    assert cache.ids == ["0", "1", "2", "3", "4"]
    assert abs(cache.wav(0).shape[1] - 24000) <= 1
    again = build_cache(manifest, ("train",), tmp_path)
    assert np.array_equal(cache.samples, again.samples)


def test_crops_follow_the_seed_and_never_clip(manifest: Path, tmp_path: Path) -> None:
    cache = build_cache(manifest, ("train",), tmp_path)
    one, two = (random_crops(cache, 16, 3200, 20.0, torch.Generator().manual_seed(3)).wav for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (16, 1, 3200)
    assert one.abs().max() <= 1


def test_training_learns_and_leaves_a_codec(config: CodecTrainConfig) -> None:
    config = replace(config, max_steps=60, lr=3e-3)
    folder = CodecTrainer(config, Path(config.out)).run()
    curve = losses(config.out)
    assert np.mean(curve[-5:]) < 0.8 * curve[0]
    codec = load_codec(folder)
    assert codec.encode(torch.zeros(1, 1, 640)).shape == (1, 4, 2)


def test_pitch_is_that_of_the_recordings_and_crops_carry_it(manifest: Path, tmp_path: Path) -> None:
    cache = build_cache(manifest, ("train",), tmp_path)
    hz = build_pitch(cache, tmp_path / "pitch.npy")
    assert np.array_equal(hz, build_pitch(cache, tmp_path / "pitch.npy"))
    for i in range(3):  # tones of 150, 230 and 310 Hz that rise by 60 % in a second
        start, end = cache.starts[i : i + 2]
        at = (start + end) // 2 // 160
        moment = (at * 160 - start) / 24000
        assert hz[at] == pytest.approx((150 + 80 * i) * (1 + 0.6 * moment), rel=0.02)
    filled = fill(hz)
    assert (filled > 0).all()
    assert np.allclose(filled[hz > 0], hz[hz > 0])
    crops = random_crops(cache, 8, 3200, 0.0, torch.Generator().manual_seed(0), (hz, filled))
    assert crops.hz is not None
    assert crops.voiced is not None
    assert crops.hz.shape == crops.voiced.shape == (8, 20)


def test_a_harmonic_codec_learns_the_pitch(config: CodecTrainConfig) -> None:
    config = replace(config, max_steps=60, lr=3e-3, spectral=replace(SMALL, decoder="harmonic"))
    folder = CodecTrainer(config, Path(config.out)).run()
    curve = losses(config.out)
    assert np.mean(curve[-5:]) < 0.8 * curve[0]
    events = [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    pitch = [event["train/pitch"] for event in events if "train/pitch" in event]
    assert np.mean(pitch[-5:]) < 0.5 * pitch[0]
    assert load_codec(folder).decode(torch.zeros(1, 4, 3, dtype=torch.int64)).shape == (1, 1, 960)


def test_adapting_takes_what_fits(config: CodecTrainConfig, tmp_path: Path) -> None:
    """Another decoder begins with the encoder, the codebooks and the backbone of the first."""
    first = CodecTrainer(config, Path(config.out)).run()
    adapted = CodecTrainer(
        replace(config, adapt=str(first), spectral=replace(SMALL, decoder="harmonic")), tmp_path / "adapted"
    )
    assert adapted.codec.fingerprint() == load_codec(first).fingerprint()
    assert adapted.quantizing


def test_of_another_codec_only_the_decoder_may_be_taken(config: CodecTrainConfig, tmp_path: Path) -> None:
    first = CodecTrainer(config, Path(config.out)).run()
    config = replace(config, adapt=str(first), adapt_decoder_only=True, spectral=replace(SMALL, n_mels=20))
    adapted = CodecTrainer(config, tmp_path / "adapted")
    given = load_codec(first)
    assert isinstance(given, SpectralCodec)
    for a, b in zip(adapted.codec.decoder.parameters(), given.decoder.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not adapted.quantizing  # the codes are its own
    adapted.run()
    assert adapted.quantizing


def test_a_linear_path_begins_with_principal_components(config: CodecTrainConfig, manifest: Path) -> None:
    spectral = replace(SMALL, mel_frames=2, mel_window=512, linear_path=True)
    trainer = CodecTrainer(replace(config, spectral=spectral, max_steps=1, lr=0.0), Path(config.out))
    trainer.run()
    codec = trainer.codec
    assert isinstance(codec, SpectralCodec)
    cache = build_cache(manifest, ("train",), config.data.cache)
    wav = torch.cat([cache.wav(i)[:, :3200].unsqueeze(0) for i in range(4)])
    assert codec.features(wav).shape == (4, 10, 2 * spectral.n_mels)
    components = codec.latents(torch.cat([trainer.crops(cache).wav for _ in range(20)])).transpose(1, 2).flatten(0, 1)
    covariance = torch.cov(components.detach().t())
    assert float(covariance.diagonal().mean()) == pytest.approx(1, rel=0.3)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.2 * covariance.diagonal().max()
    assert covariance[0, 0] == covariance.diagonal().max()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mel_frames": 3}, "mel_frames is 3"),
        ({"linear_path": True, "n_mels": 4, "codebook_dim": 32}, "reads 4 numbers"),
    ],
)
def test_impossible_sizes_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValleError, match=named):
        replace(SMALL, **changes)


@pytest.mark.parametrize(("adversarial_start", "decoder"), [(100, "fourier"), (4, "fourier"), (100, "harmonic")])
def test_stop_and_resume_equals_uninterrupted(
    config: CodecTrainConfig, tmp_path: Path, adversarial_start: int, decoder: Literal["fourier", "harmonic"]
) -> None:
    config = replace(config, max_steps=8, adversarial_start=adversarial_start, spectral=replace(SMALL, decoder=decoder))
    straight = CodecTrainer(config, tmp_path / "straight")
    straight.run()
    first = CodecTrainer(config, tmp_path / "halves")
    stop_at = 5
    step = first.train_step

    def stopping(wav: Crops) -> dict[str, float]:
        values = step(wav)
        if first.step + 1 == stop_at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return values

    first.train_step = stopping  # type: ignore[method-assign]
    first.run()
    assert first.step == stop_at
    second = CodecTrainer(config, tmp_path / "halves")
    second.restore()
    second.run()
    for (name, a), b in zip(straight.codec.state_dict().items(), second.codec.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_training_the_decoder_keeps_the_codes(config: CodecTrainConfig, tmp_path: Path) -> None:
    folder = CodecTrainer(config, Path(config.out)).run()
    before = load_codec(folder)
    finetune = replace(config, init=str(folder), train="decoder", adversarial_start=0, max_steps=4, lr=1e-3)
    after = load_codec(CodecTrainer(finetune, tmp_path / "decoder").run())
    assert after.fingerprint() == before.fingerprint()
    wav = torch.randn(1, 1, 3200) * 0.1
    assert torch.equal(after.encode(wav), before.encode(wav))
    assert not torch.equal(after.decode(after.encode(wav)), before.decode(before.encode(wav)))


def test_the_decoder_alone_learns_all_numbers_of_codebooks(config: CodecTrainConfig, tmp_path: Path) -> None:
    folder = CodecTrainer(config, Path(config.out)).run()
    trainer = CodecTrainer(replace(config, init=str(folder), train="decoder", max_steps=12), tmp_path / "decoder")
    decode, used = trainer.codec.quantizer.decode, []

    def note(codes: torch.Tensor) -> torch.Tensor:
        if trainer.codec.training:
            used.append(codes.shape[1])
        return decode(codes)

    trainer.codec.quantizer.decode = note  # type: ignore[method-assign]
    trainer.run()
    assert set(used) == {1, 2, 4}


def foretold_pack(folder: Path, manifest: Path, fingerprint: str, ids: list[str]) -> Path:
    """A pack of random codes for recordings of a second."""
    folder.mkdir()
    info = PackInfo(fingerprint, "1", 10, 0, 75.0, n_quantizers=4, codebook_size=16, speakers=("a",))
    generator = torch.Generator().manual_seed(0)
    utterances = [
        PackedUtterance(name, torch.ones(3), torch.randint(16, (4, 70), generator=generator), 0) for name in ids
    ]
    write_shard(folder / "train-00000.safetensors", utterances, info)
    write_info(folder, replace(info, shards=(ShardInfo("train-00000.safetensors", "train", len(ids), 1.0),)))
    return folder


def test_a_decoder_learns_from_foretold_codes_and_the_voice(
    config: CodecTrainConfig, manifest: Path, tmp_path: Path
) -> None:
    folder = CodecTrainer(config, Path(config.out)).run()
    before = load_codec(folder)
    named = tmp_path / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    named.write_text("\n".join(json.dumps({**line, "speaker": "ab"[i % 2]}) for i, line in enumerate(lines)))
    for line in lines:
        (tmp_path / line["path"]).symlink_to(manifest.parent / line["path"])
    pack = foretold_pack(tmp_path / "foretold", manifest, before.fingerprint(), ["1", "3", "elsewhere"])
    data = replace(config.data, manifest=str(named), foretold=str(pack), foretold_share=0.5, voice_dropout=0.5)
    config = replace(
        config, data=data, adapt=str(folder), train="decoder", max_steps=4, spectral=replace(SMALL, voice_dim=5)
    )
    trainer = CodecTrainer(config, tmp_path / "decoder")
    batches, told = [], []
    step, voice = trainer.train_step, trainer.voice

    def note(crops: Crops) -> dict[str, float]:
        batches.append(crops)
        return step(crops)

    def note_voice(crops: Crops) -> torch.Tensor | None:
        told.append(voice(crops))
        return told[-1]

    trainer.train_step, trainer.voice = note, note_voice  # type: ignore[method-assign]
    after = load_codec(trainer.run())
    assert after.fingerprint() == before.fingerprint()
    cache = build_cache(named, ("train",), config.data.cache)
    split = Pack(pack).split("train")
    for crops in batches:
        assert crops.codes is not None
        assert crops.codes.shape == (2, 4, 15)
        for codes, wav, which in zip(crops.codes, crops.wav[-2:], crops.utterances[-2:].tolist(), strict=True):
            own = split.codes(split.ids.index(cache.ids[which]))
            (start,) = [t for t in range(56) if torch.equal(own[:, t : t + 15], codes)]
            torch.testing.assert_close(cache.wav(which)[:, start * 320 : start * 320 + 4800], wav)
    is_told = torch.cat([t.abs().sum(1) > 0 for t in told])
    assert 0 < is_told.sum() < len(is_told)
    assert trainer.voices is not None
    assert trainer.voices.others == {0: [2, 4], 2: [0, 4], 4: [0, 2], 1: [3], 3: [1]}
    assert any(block.film.weight.abs().sum() > 0 for block in after.decoder.backbone.blocks)
    bad = foretold_pack(tmp_path / "bad", manifest, "other", ["1"])
    trainer = CodecTrainer(replace(config, data=replace(data, foretold=str(bad))), tmp_path / "c")
    with pytest.raises(ValleError, match="made with the codec"):
        trainer.run()
    with pytest.raises(ValleError, match='set train = "decoder"'):
        replace(config, train="all")


def test_quantizer_dropout_draws_powers_of_two_and_all(config: CodecTrainConfig, tmp_path: Path) -> None:
    drawn = CodecTrainer(config, tmp_path).draw_quantizers(400)
    assert set(drawn.tolist()) == {1, 2, 4}
    assert 0.4 < (drawn == 4).float().mean() < 0.6


def toml(config: CodecTrainConfig, path: Path) -> Path:
    path.write_text(
        f'out = "{config.out}"\nmax_steps = 2\nquantize_after = 1\nkmeans_frames = 50\ndevice = "cpu"\n'
        f'[data]\nmanifest = "{config.data.manifest}"\ncache = "{config.data.cache}"\ntrain_splits = ["train"]\n'
        f"batch_size = 2\ncrop_s = 0.2\n[spectral]\nencoder_dim = 8\nencoder_layers = 1\ndecoder_dim = 8\n"
        f"decoder_layers = 1\ncodebook_dim = 4\ncodebook_size = 8\n"
    )
    return path


def test_a_run_is_never_overwritten(config: CodecTrainConfig, tmp_path: Path) -> None:
    path = toml(config, tmp_path / "codec.toml")
    train_codec(path)
    with pytest.raises(ValleError, match="already holds a run"):
        train_codec(path)
    assert train_codec(path, resume=True).is_dir()


def test_resuming_nothing_is_an_error(config: CodecTrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValleError, match="no checkpoint"):
        train_codec(toml(config, tmp_path / "codec.toml"), resume=True)


def test_a_missing_manifest_is_named(config: CodecTrainConfig, tmp_path: Path) -> None:
    path = toml(
        replace(config, data=replace(config.data, manifest="nowhere.jsonl", cache=str(tmp_path))), tmp_path / "c"
    )
    with pytest.raises(ValleError, match=r"no manifest nowhere\.jsonl"):
        train_codec(path)


def test_encodec_trains_by_the_same_recipe(config: CodecTrainConfig, tmp_path: Path) -> None:
    small = EnCodecConfig(dim=16, n_filters=4, n_lstm_layers=1, n_quantizers=4, codebook_size=16)
    config = replace(config, codec="encodec", encodec=small, max_steps=5, adversarial_start=4)
    folder = CodecTrainer(config, Path(config.out)).run()
    assert len(losses(config.out)) == 5
    assert load_codec(folder).encode(torch.zeros(1, 1, 640)).shape == (1, 4, 2)
