"""The benchmark: its sizes are those it names, its numbers are there, and it writes as many tokens as it counts."""

from __future__ import annotations

import json

import pytest
import torch

from valle.bench import speak
from valle.errors import ValleError
from valle.model.ar import AR, ARConfig
from valle.model.nar import NAR, NARConfig
from valle.model.transformer import TransformerConfig

TINY = TransformerConfig(dim=16, n_layers=1, n_heads=2, ff_dim=32)


@pytest.fixture
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speak, "configs", lambda size: (ARConfig(20, 64, TINY), NARConfig(20, 64, transformer=TINY)))
    monkeypatch.setattr(speak, "SIZES", {"default": 6, "paper": 4})
    monkeypatch.setattr(speak, "CODEC_S", 0.5)


def test_paper_is_the_papers() -> None:
    ar, nar = speak.configs("paper")
    assert ar.transformer == nar.transformer == TransformerConfig(1024, 12, 16, 4096, 0.1)
    with torch.device("meta"):  # sizes without the memory
        assert 150e6 < AR(ar).n_parameters < 155e6
        assert NAR(nar).n_parameters > AR(ar).n_parameters


def test_default_is_the_configuration_that_is_shipped() -> None:
    ar, nar = speak.configs("default")
    assert ar.transformer.dim < 1024
    assert nar.n_quantizers == 8
    assert ar.n_phonemes == nar.n_phonemes


@pytest.mark.usefixtures("tiny_sizes")
def test_json_has_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert speak.main(["--json", "--repeats", "1"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert set(results["sizes"]) == {"default", "paper"}
    assert results["machine"]["torch"] == torch.__version__
    for size in results["sizes"].values():
        assert size["ar_tokens_per_s"].keys() == {"1", "8"}
        assert size["ar_fp32_tokens_per_s"].keys() == {"1", "8"}
        numbers = [
            *size["ar_tokens_per_s"].values(),
            *size["ar_fp32_tokens_per_s"].values(),
            size["ar_prefill_s"],
            size["nar_s"],
            size["peak_memory_mb"],
        ]
        assert all(n > 0 for n in numbers)
    assert all(results["codec"][key] > 0 for key in ("encode_rtf", "decode_rtf", "stream_rtf"))


@pytest.mark.usefixtures("tiny_sizes")
def test_markdown_for_one_size(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    assert speak.main(["--size", "default", "--threads", str(before), "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    assert "| default |" in text
    assert "| paper |" not in text
    assert f"{before} threads" in text


def test_ar_writes_to_its_limit() -> None:
    ar = AR(ARConfig(20, 64, TINY)).eval()
    first, rest = speak.bench_ar(ar, batch=3, n_tokens=12)  # asserts the number itself
    assert first > 0
    assert rest > 0


def test_repeats_are_needed() -> None:
    with pytest.raises(ValleError, match="--repeats is 0; it must be at least 1"):
        speak.main(["--repeats", "0"])
