"""The benchmark: its sizes are those it names, its numbers are there, and it writes as many tokens as it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from valle.bench import speak
from valle.errors import ValleError
from valle.model.ar import AR, ARConfig
from valle.model.nar import NAR, NARConfig
from valle.model.narrow import can_halve, can_int8
from valle.model.transformer import TransformerConfig
from valle.native import library

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
    assert results["machine"]["memory_gb_per_s"] > 0
    can = {"fp32": True, "fp16": can_halve(), "int8": can_int8(), "int4": library() is not None}
    ways = [way for way in can if can[way]]
    for size in results["sizes"].values():
        assert list(size["ar"]) == ways
        assert list(size["nar"]) == [way for way in ways if way in ("fp32", "int8")]
        for of_way in size["ar"].values():
            assert of_way["tokens_per_s"].keys() == {"1", "8"}
            assert all(n > 0 for n in (of_way["prefill_s"], *of_way["tokens_per_s"].values()))
        assert all(of_way["s"] > 0 and of_way["one_pass_s"] > 0 for of_way in size["nar"].values())
        assert size["peak_memory_mb"] > 0
    assert all(results["codec"][key] > 0 for key in ("encode_rtf", "decode_rtf", "stream_rtf"))


@pytest.mark.usefixtures("tiny_sizes")
def test_markdown_for_one_size(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    assert speak.main(["--size", "default", "--threads", str(before), "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    assert "| default, AR" in text
    assert "| paper, AR" not in text
    assert f"{before} threads" in text


def test_ar_writes_to_its_limit() -> None:
    ar = AR(ARConfig(20, 64, TINY)).eval()
    first, rest = speak.bench_ar(ar, batch=3, n_tokens=12)  # asserts the number itself
    assert first > 0
    assert rest > 0


def test_repeats_are_needed() -> None:
    with pytest.raises(ValleError, match="--repeats is 0; it must be at least 1"):
        speak.main(["--repeats", "0"])


@pytest.mark.usefixtures("tiny_sizes")
def test_what_users_wait_for(capsys: pytest.CaptureFixture[str], tiny_model_dir: Path) -> None:
    assert speak.main(["--size", "default", "--repeats", "1", "--say", "--model", str(tiny_model_dir), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    say = results["say"]
    assert say["command_s"] > 0
    for key in ("rtf", "rtf_1", "first_audio_s"):
        low, high = say[key]
        assert 0 < low <= high
    assert "until the first sound of a stream" in speak.markdown(results)
