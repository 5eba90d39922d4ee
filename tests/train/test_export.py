"""Export: two runs and a codec become a model folder; what does not belong together is refused."""

import json

import pytest
import torch
from test_loop import config_file

from aligners import tiny_aligner
from valle.codec.spectral import SpectralCodec, SpectralCodecConfig
from valle.errors import ValleError
from valle.pretrained import describe, load_pretrained
from valle.text import DEFAULT_INVENTORY, PhonemeInventory
from valle.train.export import export, main
from valle.train.loop import train
from valle.train.weights import load_weights


def tiny_codec(seed):
    torch.manual_seed(seed)
    sizes = {"encoder_dim": 16, "encoder_layers": 1, "decoder_dim": 16, "decoder_layers": 1, "codebook_dim": 4}
    return SpectralCodec(SpectralCodecConfig(**sizes, n_mels=20)).eval()


def test_runs_become_a_model(tmp_path, make_pack):
    codec = tiny_codec(0)
    codec.save(tmp_path / "codec")
    tiny_codec(1).save(tmp_path / "other")
    pack = make_pack({"train": [30, 40], "dev": [30]}, fingerprint=codec.fingerprint())
    config = config_file(tmp_path, pack, max_steps=1)
    runs = [train(kind, config) for kind in ("ar", "nar")]

    out = export(runs[0], runs[1] / "best", tmp_path / "codec", tmp_path / "model", name="trained")
    model = load_pretrained(out)
    assert model.info.name == "trained"
    assert model.info.max_seconds == 1.5
    assert model.info.training["ar"]["step"] == 1
    assert model.inventory.symbols == tuple(" abcdefghi")
    for kind, loaded in (("ar", model.ar), ("nar", model.nar)):
        for name, weight in load_weights(kind, runs[kind == "nar"] / "best").state_dict().items():
            assert torch.equal(weight.half().float(), loaded.state_dict()[name])

    with pytest.raises(ValleError, match="give the codec that made its pack"):
        export(runs[0], runs[1], tmp_path / "other", tmp_path / "no", name="x")
    notes = runs[1] / "best" / "training.json"
    notes.write_text(json.dumps({**json.loads(notes.read_text()), "inventory_version": "2"}))
    with pytest.raises(ValleError, match="one pack"):
        export(runs[0], runs[1], tmp_path / "codec", tmp_path / "no", name="x")
    arguments = ["--ar", str(tmp_path), "--nar", str(runs[1]), "--codec", str(tmp_path / "codec"), "--name", "x"]
    assert main([*arguments, "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


def test_how_it_speaks_goes_into_the_model(tmp_path, make_pack):
    codec = tiny_codec(0)
    codec.save(tmp_path / "codec")
    pack = make_pack({"train": [30, 40], "dev": [30]}, fingerprint=codec.fingerprint())
    runs = [train(kind, config_file(tmp_path, pack, max_steps=1)) for kind in ("ar", "nar")]
    parts = ["--ar", str(runs[0]), "--nar", str(runs[1]), "--codec", str(tmp_path / "codec")]
    assert main([*parts, "--out", str(tmp_path / "mine"), "--temperature", "0.6", "--top-p", "0.9"]) == 0
    info = load_pretrained(tmp_path / "mine").info
    assert (info.name, info.sampling.temperature, info.sampling.top_p) == ("mine", 0.6, 0.9)
    assert main([*parts, "--out", str(tmp_path / "no"), "--temperature", "-1"]) == 2
    assert main([*parts, "--out", str(tmp_path / "no"), "--complete-by", "vectors"]) == 2  # it has none


def test_runs_with_an_alignment_need_its_aligner(tmp_path, make_pack):
    codec = tiny_codec(0)
    codec.save(tmp_path / "codec")
    pack = make_pack({"train": [30, 40], "dev": [30]}, fingerprint=codec.fingerprint(), aligned=True)
    config = config_file(tmp_path, pack, max_steps=1, alignment=True)
    runs = [train(kind, config) for kind in ("ar", "nar")]
    arguments = ["--ar", str(runs[0]), "--nar", str(runs[1]), "--codec", str(tmp_path / "codec"), "--name", "x"]
    assert main([*arguments, "--out", str(tmp_path / "no")]) == 2
    with pytest.raises(ValleError, match="--aligner DIR"):
        export(*runs, tmp_path / "codec", tmp_path / "no", name="x")
    tiny_aligner(DEFAULT_INVENTORY).save(tmp_path / "other")
    with pytest.raises(ValleError, match="its aligner is for the phoneme inventory ipa-1, but 1 is needed"):
        export(*runs, tmp_path / "codec", tmp_path / "no", name="x", aligner_folder=tmp_path / "other")
    inventory = PhonemeInventory.load(pack / "phonemes.json")
    tiny_aligner(inventory).save(tmp_path / "aligner")
    assert main([*arguments, "--out", str(tmp_path / "model"), "--aligner", str(tmp_path / "aligner")]) == 0
    model = load_pretrained(tmp_path / "model", "cpu")
    assert model.aligner.fingerprint() == tiny_aligner(inventory).fingerprint()
    assert model.ar.config.alignment
    assert model.nar.config.prompt_summary
    assert describe(tmp_path / "model")["parts"]["aligner"]["config"]["inventory_version"] == "1"
