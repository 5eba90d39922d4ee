"""A language of two words, made of tones: what was said is known, and when."""

from __future__ import annotations

import json
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("kaldi_native_fbank")
pytest.importorskip("kaldifst")
pytest.importorskip("kaldi_decoder")

from valle.asr.hybrid.aligner import HybridAligner
from valle.asr.hybrid.bootstrap import BootstrapConfig
from valle.asr.hybrid.config import HybridConfig, LanguageConfig, SequenceConfig, TrainingConfig
from valle.asr.hybrid.lm import train_ngrams
from valle.asr.hybrid.model import HybridModel, is_hybrid, load_aligner
from valle.asr.hybrid.network import NetworkConfig
from valle.asr.hybrid.recogniser import HybridRecogniser
from valle.asr.hybrid.train import train_recogniser
from valle.cli import main
from valle.errors import ValleError
from valle.text import DEFAULT_INVENTORY, Phonemizer
from valle.train.optimiser import OptimiserConfig

RATE = 16000
TONES = {"s": (5200, 6100), "iː": (300, 2300), "m": (180, 900), "ɑː": (700, 1200)}
WORDS = {"see": ("s", "iː"), "ma": ("m", "ɑː")}


def say(words: list[str], rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """A recording [N] and when each word is in it."""
    parts, at, times = [], 0.0, []

    def add(seconds: float, tones: tuple[int, ...]) -> None:
        nonlocal at
        t = np.arange(round(seconds * RATE)) / RATE
        wave = sum((np.sin(2 * np.pi * f * t + rng.uniform(0, 6)) for f in tones), np.zeros(len(t)))
        parts.append(0.1 * rng.uniform(0.7, 1.3) * wave + 0.002 * rng.standard_normal(len(t)))
        at += len(t) / RATE

    add(rng.uniform(0.15, 0.4), ())
    for word in words:
        start = at
        for phone in WORDS[word]:
            add(rng.uniform(0.09, 0.2), TONES[phone])
        times.append((start, at))
        if rng.random() < 0.5:
            add(rng.uniform(0.08, 0.3), ())
    add(rng.uniform(0.15, 0.4), ())
    return np.concatenate(parts).astype(np.float32), times


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(60):
        words = rng.choice(list(WORDS), rng.integers(2, 6)).tolist()
        wav, _ = say(words, rng)
        soundfile.write(folder / f"{i}.wav", wav, RATE)
        line = {"id": f"u{i}", "path": f"{i}.wav", "seconds": len(wav) / RATE, "split": "train" if i < 50 else "dev"}
        lines.append(json.dumps({**line, "text": " ".join(words)}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def config_for(corpus: Path, out: Path) -> HybridConfig:
    return HybridConfig(
        sources=(str(corpus),),
        out=str(out),
        min_phone_count=5,
        bootstrap=BootstrapConfig(mono_rounds=(5, 2), tied_rounds=(2, 1), n_pdfs=14, n_features=8, min_count=10),
        network=NetworkConfig(width=48, middle=24, dilations=(1, 2)),
        training=TrainingConfig(epochs=14, speeds=(1.0,), batch_seconds=25, ema_decay=0.9, eval_every=1000),
        optimiser=OptimiserConfig(lr=4e-3, warmup_steps=5),
    )


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_recogniser(config_for(corpus, tmp_path_factory.mktemp("run") / "asr"))


@pytest.mark.parametrize("acoustics", ["network", "gmm"])
def test_hears_what_was_said(model: Path, acoustics: str) -> None:
    recogniser = HybridRecogniser(model, acoustics=acoustics)  # type: ignore[arg-type]
    rng = np.random.default_rng(7)
    for _ in range(12):
        words = rng.choice(list(WORDS), rng.integers(1, 7)).tolist()
        wav, times = say(words, rng)
        heard = recogniser.transcribe(wav, RATE)
        assert heard.text.split() == words
        for word, (start, end) in zip(heard.words, times, strict=True):
            assert abs(word.start_s - start) < 0.05
            assert abs(word.end_s - end) < 0.05
            assert (0.5 if acoustics == "network" else 0.1) < word.confidence <= 1


def test_recordings_without_words_are_empty(model: Path) -> None:
    recogniser = HybridRecogniser(model)
    assert recogniser.transcribe(np.zeros(100, np.float32), RATE).text == ""


def test_a_long_recording_is_heard_in_pieces(model: Path) -> None:
    rng = np.random.default_rng(3)
    words = rng.choice(list(WORDS), 110).tolist()
    wav, times = say(words, rng)
    assert len(wav) / RATE > 35
    heard = HybridRecogniser(model).transcribe(wav, RATE)
    assert heard.text.split() == words
    assert abs(heard.words[-1].end_s - times[-1][1]) < 0.05


def test_alignment_reports_words_that_are_not_said_and_speech_that_is_not_written(model: Path) -> None:
    aligner = HybridAligner(model)
    rng = np.random.default_rng(11)
    wav, times = say(["see", "ma", "ma", "see"], rng)
    exact = aligner.align_text(wav, "See ma, ma see.")
    assert [w.word for w in exact.words] == ["see", "ma", "ma", "see"]
    assert not exact.missing
    assert not exact.extra
    assert [p.phone for p in exact.words[0].phones] == ["s", "iː"]

    more = aligner.align_text(wav, "see ma see ma see")  # a "see" that nobody says
    assert more.missing == ((2, "see"),)
    assert [w.word for w in more.words] == ["see", "ma", "ma", "see"]

    fewer = aligner.align_text(wav, "see ma see")  # one "ma" is not written
    assert [w.word for w in fewer.words] == ["see", "ma", "see"]
    assert not fewer.missing
    assert len(fewer.extra) == 1
    start, end = fewer.extra[0]
    assert any(abs(start - a) < 0.06 and abs(end - b) < 0.06 for a, b in times[1:3])


def test_aligner_of_packs(model: Path) -> None:
    aligner = load_aligner(model)
    rng = np.random.default_rng(5)
    wav, times = say(["ma", "see"], rng)
    import soxr

    wav24 = torch.from_numpy(soxr.resample(wav, RATE, 24000).astype(np.float32)).unsqueeze(0)
    symbols = Phonemizer("en-us")("ma, see")
    found = aligner.align(wav24, DEFAULT_INVENTORY.encode(symbols))
    assert int(found.durations.sum()) == -(-wav24.shape[1] // 320)
    assert found.fit <= 0
    ends = (found.durations.cumsum(0) / 75).tolist()
    assert abs(ends[symbols.index("s") - 1] - times[1][0]) < 0.06
    assert all(int(d) >= 1 for d, s in zip(found.durations, symbols, strict=True) if s in "msiɑ")


def test_training_resumes_to_the_same_network(corpus: Path, tmp_path: Path) -> None:
    short = config_for(corpus, tmp_path / "a")
    short = replace(short, training=replace(short.training, epochs=1.0), tune_seconds=0)
    short = replace(short, bootstrap=replace(short.bootstrap, mono_rounds=(2,), tied_rounds=(1,)))
    train_recogniser(short)
    cut = replace(short, out=str(tmp_path / "b"))
    train_recogniser(cut, max_minutes=1e-9)
    train_recogniser(cut, resume=True)
    a, b = HybridModel.load(tmp_path / "a" / "model"), HybridModel.load(tmp_path / "b" / "model")
    assert a.fingerprint() == b.fingerprint()
    with pytest.raises(ValleError, match="--resume"):
        train_recogniser(cut)


def test_a_run_is_resumed_with_what_it_was_begun_with(corpus: Path, tmp_path: Path) -> None:
    begun = config_for(corpus, tmp_path / "run")
    begun = replace(begun, bootstrap=replace(begun.bootstrap, mono_rounds=(1,), tied_rounds=(1,)), tune_seconds=0)
    train_recogniser(begun, max_minutes=1e-9)
    kept = (tmp_path / "run" / "config.json").read_text()
    for name, other in (
        ("seed", replace(begun, seed=1)),
        ("max_hours", replace(begun, max_hours=0.01)),
        ("bootstrap.n_pdfs", replace(begun, bootstrap=replace(begun.bootstrap, n_pdfs=13))),
        ("network.width", replace(begun, network=replace(begun.network, width=40))),
        ("training.speeds", replace(begun, training=replace(begun.training, speeds=(0.9, 1.0)))),
    ):
        with pytest.raises(ValleError, match=rf"run was started with {name} = .* but the configuration now has"):
            train_recogniser(other, resume=True)
    assert (tmp_path / "run" / "config.json").read_text() == kept
    training = replace(begun.training, epochs=1.0, log_every=1, budget_minutes=5.0)
    train_recogniser(replace(begun, training=training, language=LanguageConfig(order=2)), resume=True)
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ValleError, match=r"config\.json cannot be read"):
        train_recogniser(begun, resume=True)


def test_a_finished_run_goes_on_from_sequences(
    model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(model.parent, tmp_path / "run")
    begun = config_for(corpus, out)
    before = HybridModel.load(model)
    wanted = replace(begun, sequence=SequenceConfig(epochs=2.0, lr=1e-3, warmup_steps=2))
    capsys.readouterr()
    train_recogniser(wanted, resume=True)
    told = capsys.readouterr().err
    assert "% by cross-entropy, " in told
    assert "the network is that " in told
    assert (out / "sequence" / "log.jsonl").is_file()
    untuned = replace(wanted, tune_seconds=0.0)  # nothing to choose by: the later one is kept
    after = HybridModel.load(train_recogniser(untuned, resume=True))
    assert before.network is not None
    assert after.network is not None
    assert not torch.equal(before.network.output.weight, after.network.output.weight)
    assert torch.equal(before.priors, after.priors)
    wav, _ = say(["see", "ma", "ma", "see"], np.random.default_rng(1))
    assert HybridRecogniser(after).transcribe(wav, RATE).text == "see ma ma see"
    other = replace(wanted, sequence=replace(wanted.sequence, tolerance=1))
    with pytest.raises(ValleError, match=r"sequence\.tolerance = 2"):
        train_recogniser(other, resume=True)
    without = HybridModel.load(
        train_recogniser(replace(untuned, sequence=SequenceConfig(lr=1e-3, warmup_steps=2)), resume=True)
    )
    assert without.network is not None
    assert torch.equal(before.network.output.weight, without.network.output.weight)


def test_before_the_network_has_begun_it_may_still_be_another(corpus: Path, tmp_path: Path) -> None:
    begun = config_for(corpus, tmp_path / "run")
    begun = replace(begun, bootstrap=replace(begun.bootstrap, mono_rounds=(1,), tied_rounds=(1,)), tune_seconds=0)
    train_recogniser(begun, max_minutes=1e-9)
    shutil.rmtree(tmp_path / "run" / "network")
    other = replace(begun, network=replace(begun.network, width=40))
    assert HybridModel.load(train_recogniser(other, resume=True, max_minutes=1e-9)).config.network.width == 40


def test_a_long_text_takes_time_and_memory_by_its_words(model: Path) -> None:
    aligner = HybridAligner(model)
    rng = np.random.default_rng(13)

    def used() -> tuple[float, float]:
        """Seconds of the processor, and MB at most."""
        return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def align(n_words: int) -> tuple[float, float]:
        words = rng.choice(list(WORDS), n_words).tolist()
        wav, times = say(words, rng)
        text = [*words[: n_words // 2], "see", "see", *words[n_words // 2 :], *["ma"] * 298]
        before = used()
        found = aligner.align_text(wav, " ".join(text))
        after = used()
        assert len(found.missing) == 300  # nobody says the last 298, more than the search would leave out on its way
        assert [w.word for w in found.words] == words
        assert not found.extra
        assert max(abs(w.start_s - start) for w, (start, _) in zip(found.words, times, strict=True)) < 0.09
        return after[0] - before[0], after[1] - before[1]

    few, _ = align(300)
    many, more_memory = align(2400)
    assert many < 16 * few  # eight times the words; with a way for each pair of words it was 64 times
    assert more_memory < 200


def test_commands(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav, _ = say(["see", "ma"], np.random.default_rng(2))
    soundfile.write(tmp_path / "x.wav", wav, RATE)
    assert main(["asr", "transcribe", str(tmp_path / "x.wav"), "--model", str(model)]) == 0
    assert capsys.readouterr().out == "see ma\n"
    assert main(["asr", "transcribe", str(tmp_path / "x.wav"), "--model", str(model), "--json"]) == 0
    assert [w["word"] for w in json.loads(capsys.readouterr().out)["words"]] == ["see", "ma"]
    assert main(["asr", "align", str(tmp_path / "x.wav"), "--text", "see ma see", "--aligner", str(model)]) == 0
    out = capsys.readouterr().out
    assert "not said\tword" in out
    assert main(["asr", "transcribe", str(tmp_path / "x.wav"), "--model", str(tmp_path)]) == 2
    assert "not a hybrid recogniser" in capsys.readouterr().err


def test_measuring(model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    from valle.asr.hybrid import evaluate, robustness

    both = [f"hybrid:{model}", f"hybrid-gmm:{model}"]
    assert evaluate.main([str(corpus), "--split", "dev", "--recognisers", *both]) == 0
    table = capsys.readouterr().out
    assert table.count("| 0.0 [0.0, 0.0] | 0.0 [0.0, 0.0] |") == 2
    assert evaluate.main([str(corpus), "--split", "dev", "--agree", "--recognisers", *both]) == 0
    assert "WER 0.0 %" in capsys.readouterr().out
    assert robustness.main([str(corpus), "--model", str(model), "--max", "5"]) == 0
    told = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert told["recordings"] == "5"
    assert told["false_missing"] == told["false_extra"] == "0"


def test_the_graph_is_kept_and_follows_the_language_model(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (kept,) = copy.glob("graph-*.fst")
    kept.unlink()
    HybridRecogniser(copy)
    assert kept.is_file()
    kept.write_bytes(kept.read_bytes()[:-40])
    recogniser = HybridRecogniser(copy)  # a damaged one is made anew
    assert recogniser.graph.n_arcs > 0
    assert HybridRecogniser(copy).name == recogniser.name
    train_ngrams([["see"]], 2).save(copy / "lm.arpa")
    assert HybridRecogniser(copy).graph.words == ["see"]
    assert HybridRecogniser(copy).name != recogniser.name  # transcripts are kept under it
    assert len(list(copy.glob("graph-*.fst"))) == 2


def test_folders(model: Path, tmp_path: Path) -> None:
    assert is_hybrid(model)
    assert not is_hybrid(tmp_path)
    from valle.data.recognise import load_recogniser

    assert load_recogniser(f"hybrid:{model}").name.startswith("hybrid:model@")
    with pytest.raises(ValleError, match="train one"):
        load_recogniser(f"hybrid:{tmp_path}")
