"""What several tests need: a whole tiny model on disk, a recording, and a home for voices that is not the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch

from sounds import voiced

torch.set_num_threads(1)  # the models here are so small that threads only get in each other's way


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as `VALLE.from_pretrained` reads it, with random weights."""
    from valle.codec.spectral import SpectralCodec, SpectralCodecConfig
    from valle.model.ar import AR, ARConfig
    from valle.model.nar import NAR, NARConfig
    from valle.model.transformer import TransformerConfig
    from valle.pretrained import ModelInfo, save_pretrained
    from valle.text import DEFAULT_INVENTORY

    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    codec = SpectralCodec(
        SpectralCodecConfig(
            encoder_dim=32, encoder_layers=1, decoder_dim=32, decoder_layers=2, codebook_dim=16, n_mels=40
        )
    ).eval()
    transformer = TransformerConfig(dim=32, n_layers=1, n_heads=2, ff_dim=64, dropout=0.1)
    n_phonemes = len(DEFAULT_INVENTORY)
    ar = AR(ARConfig(n_phonemes=n_phonemes, transformer=transformer)).eval()
    nar = NAR(NARConfig(n_phonemes=n_phonemes, transformer=transformer)).eval()
    torch.set_rng_state(generator_state)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    info = ModelInfo(name="tiny-random", codec_fingerprint="", inventory_version="", version="7")
    save_pretrained(folder, ar=ar, nar=nar, codec=codec, inventory=DEFAULT_INVENTORY, info=info)
    return folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 3 s at 16 kHz."""
    path = tmp_path_factory.mktemp("recordings") / "me.wav"
    soundfile.write(path, voiced(3.0, 16000), 16000)
    return path


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or touches the voices of whoever runs it."""
    home = tmp_path / "valle-home"
    monkeypatch.setenv("VALLE_HOME", str(home))
    return home
