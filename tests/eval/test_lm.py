"""The language models' table: a row a codebook, numbers as by hand, and another codec's pack refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eval_helpers import write_corpus

from valle.codec.base import load_codec
from valle.data.pack import Pack
from valle.data.prepare import build_pack
from valle.errors import ValleError
from valle.eval import report
from valle.eval.lm import measure_lm
from valle.model.ar import ARBatch
from valle.pretrained import Pretrained, load_pretrained


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Pretrained:
    return load_pretrained(tiny_model_dir, "cpu")


@pytest.fixture(scope="module")
def pack_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    manifest = write_corpus(folder / "corpus", {"ann": [1.0, 1.4], "bob": [1.2]})
    codec = load_codec(tiny_model_dir / "codec")
    build_pack([manifest], codec, folder / "pack", splits=["test"], phonemize=lambda text, lang: list("həloʊ wɜːld"))
    return folder / "pack"


def test_every_codebook_has_a_row(model: Pretrained, pack_dir: Path) -> None:
    results, text = measure_lm(model, Pack(pack_dir), "test")
    assert list(results["rows"]) == ["codebook 1 (AR)", *(f"codebook {k} (NAR)" for k in range(2, 9))]
    for name, row in results["rows"].items():
        assert row["loss"].mean > 0.5 * math.log(1024), name  # random weights know little
        assert 0 <= row["top1"].mean <= row["top10"].mean < 0.5, name
        assert row["loss"].n == 3
        assert row["loss"].low <= row["loss"].mean <= row["loss"].high
    assert results["seconds"] == pytest.approx(3.6, abs=0.05)
    assert "codebook 8 (NAR)" in text


def test_one_utterance_as_by_hand(model: Pretrained, pack_dir: Path) -> None:
    pack = Pack(pack_dir)
    data = pack.split("test")
    phonemes, codes = data.phonemes(0)[None], data.codes(0)[:1]
    with torch.inference_mode():
        batch = ARBatch(phonemes, torch.tensor([phonemes.shape[1]]), codes, torch.tensor([codes.shape[1]]))
        loss, metrics = model.ar.loss(model.ar(batch), batch)
    results, _ = measure_lm(model, pack, "test", max_utterances=1)
    row = results["rows"]["codebook 1 (AR)"]
    assert row["loss"].mean == pytest.approx(float(loss), rel=1e-5)
    assert row["top10"].mean == pytest.approx(float(metrics["top10"]))


def test_mean_is_over_tokens(model: Pretrained, pack_dir: Path) -> None:
    pack = Pack(pack_dir)
    data = pack.split("test")
    whole, _ = measure_lm(model, pack, "test")
    losses, tokens = [], []
    for i in range(3):
        phonemes, codes = data.phonemes(i)[None], data.codes(i)[:1]
        batch = ARBatch(phonemes, torch.tensor([phonemes.shape[1]]), codes, torch.tensor([codes.shape[1]]))
        with torch.inference_mode():
            losses.append(float(model.ar.loss(model.ar(batch), batch)[0]))
        tokens.append(codes.shape[1] + 1)
    expected = sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
    assert whole["rows"]["codebook 1 (AR)"]["loss"].mean == pytest.approx(expected, rel=1e-5)


def test_pack_of_another_codec_is_refused(model: Pretrained, pack_dir: Path) -> None:
    other = replace(model, info=replace(model.info, codec_fingerprint="0123456789ab"))
    with pytest.raises(ValleError, match=r"made with the codec .* but 0123456789ab is needed"):
        measure_lm(other, Pack(pack_dir), "test")


def test_command(tiny_model_dir: Path, pack_dir: Path, tmp_path: Path) -> None:
    argv = [
        "lm",
        "--model",
        str(tiny_model_dir),
        "--pack",
        str(pack_dir),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "lm"),
    ]
    assert report.main(argv) == 0
    results = json.loads((tmp_path / "lm" / "results.json").read_text())
    assert results["n_utterances"] == 3
    assert results["data"] == {"source": "pack", "split": "test"}
    assert str(pack_dir) not in (tmp_path / "lm" / "report.md").read_text()
