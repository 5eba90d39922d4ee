"""The unit of noise: a language of tones with bursts of noise between words, which nobody has labelled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

pytest.importorskip("kaldi_native_fbank")
pytest.importorskip("kaldifst")
pytest.importorskip("kaldi_decoder")

from valle.asr.hybrid.aligner import HybridAligner
from valle.asr.hybrid.bootstrap import BootstrapConfig, Spoken, bootstrap, label, pdfs_of_path
from valle.asr.hybrid.chain import NOISE_COST, NOWHERE, best_path, utterance_chain
from valle.asr.hybrid.config import HybridConfig, TrainingConfig, identity
from valle.asr.hybrid.corpus import units_and_gaps
from valle.asr.hybrid.features import fbank
from valle.asr.hybrid.graph import Graph, build_graph
from valle.asr.hybrid.lexicon import Lexicon
from valle.asr.hybrid.lm import train_ngrams
from valle.asr.hybrid.model import HybridModel, ModelConfig
from valle.asr.hybrid.network import NetworkConfig
from valle.asr.hybrid.recogniser import HybridRecogniser
from valle.asr.hybrid.train import train_recogniser
from valle.asr.hybrid.tree import ContextStatistics, grow_tree, monophone_table, units_of_pdfs
from valle.asr.hybrid.units import NOISE_ID, SILENCE_ID, Units
from valle.asr.hybrid.words import Robust, align_words
from valle.config import from_dict, to_dict
from valle.errors import ValleError
from valle.text import DEFAULT_INVENTORY, Phonemizer

RATE = 16000
TONES = {"s": (5200, 6100), "iː": (300, 2300), "m": (180, 900), "ɑː": (700, 1200)}
WORDS = {"see": ("s", "iː"), "ma": ("m", "ɑː")}


class Said:
    """A recording, when each word is in it, and when there is noise."""

    def __init__(self, words: list[str], rng: np.random.Generator, bursts: float) -> None:
        self.words = words
        self.times: list[tuple[float, float]] = []
        self.noise: list[tuple[float, float]] = []
        self._parts: list[np.ndarray] = []
        self._rng, self._at = rng, 0.0
        self._pause(rng.uniform(0.15, 0.4), bursts)
        for word in words:
            start = self._at
            for phone in WORDS[word]:
                self._add(rng.uniform(0.09, 0.2), TONES[phone])
            self.times.append((start, self._at))
            if rng.random() < 0.5:
                self._pause(rng.uniform(0.08, 0.3), bursts)
        self._pause(rng.uniform(0.15, 0.4), bursts)
        self.wav = np.concatenate(self._parts).astype(np.float32)  # [N]

    def _add(self, seconds: float, tones: tuple[int, ...] = (), hiss: float = 0.002) -> None:
        rng = self._rng
        t = np.arange(round(seconds * RATE)) / RATE
        wave = sum((np.sin(2 * np.pi * f * t + rng.uniform(0, 6)) for f in tones), np.zeros(len(t)))
        self._parts.append(0.1 * rng.uniform(0.7, 1.3) * wave + hiss * rng.standard_normal(len(t)))
        self._at += len(t) / RATE

    def _pause(self, seconds: float, bursts: float) -> None:
        """Silence, in which there may be noise of all frequencies."""
        self._add(seconds)
        if self._rng.random() < bursts:
            start = self._at
            self._add(self._rng.uniform(0.08, 0.2), hiss=0.06)
            self.noise.append((start, self._at))
            self._add(self._rng.uniform(0.08, 0.25))


def recordings(n: int, seed: int, bursts: float) -> list[Said]:
    rng = np.random.default_rng(seed)
    return [Said(rng.choice(list(WORDS), rng.integers(2, 6)).tolist(), rng, bursts) for _ in range(n)]


def learn(noise: bool, bursts: float) -> HybridModel:
    """Gaussians from 60 recordings."""
    phonemizer = Phonemizer("en-us")
    said = recordings(60, 0, bursts)
    symbols = [phonemizer(" ".join(s.words)) for s in said]
    units = Units.seen_in(symbols, 5, noise=noise)
    examples = [Spoken(fbank(s.wav), *units_and_gaps(units, p)) for s, p in zip(said, symbols, strict=True)]
    config = BootstrapConfig(mono_rounds=(5, 2), tied_rounds=(2, 1), n_pdfs=16, n_features=8, min_count=10)
    made = bootstrap(examples, units, config)
    n_pdfs = int(made.pdfs.max()) + 1
    model = HybridModel(ModelConfig(units.names, n_pdfs), made.pdfs, None, torch.zeros(n_pdfs), made.gmm)
    ids = {name: i for i, name in enumerate(units.names)}
    model.lexicon = {w: [(tuple(ids[p] for p in phones), 1.0)] for w, phones in WORDS.items()}
    return model


@pytest.fixture(scope="module")
def models() -> dict[bool, HybridModel]:
    """By whether they have a unit for noise."""
    return {noise: learn(noise, 0.4) for noise in (False, True)}


@pytest.fixture(scope="module")
def heard() -> list[Said]:
    """Recordings that no model has learnt from."""
    return recordings(20, 9, 0.4)


def pronounced(model: HybridModel, words: list[str]) -> list[list[tuple[int, ...]]]:
    return [[p for p, _ in model.lexicon[w]] for w in words]


def boundary_errors(model: HybridModel, said: list[Said]) -> list[float]:
    """Seconds between where words begin and end, and where they are found."""
    errors = []
    for s in said:
        found = align_words(
            model.scores(fbank(s.wav)), pronounced(model, s.words), model.pdfs, noise=model.units.has_noise
        )
        assert found is not None
        for word, (start, end) in zip(found.words, s.times, strict=True):
            errors += [abs(word.start * 0.03 - start), abs(word.end * 0.03 - end)]
    return errors


def test_the_units_of_a_text_are_never_noise() -> None:
    phonemizer = Phonemizer("en-us")
    texts = [phonemizer("she sees the sea, mama")]
    units, without = Units.seen_in(texts, noise=True), Units.seen_in(texts)
    assert units.names == ("SIL", "NSN", *without.names[1:])
    assert (units.has_noise, units.first_phone, without.has_noise, without.first_phone) == (True, 2, False, 1)
    said, said_without = (u.of(phonemizer("thought, king, ring")) for u in (units, without))
    assert [s.unit - 1 for s in said] == [s.unit for s in said_without]
    for _, members in units.questions():
        assert (NOISE_ID in members) == (SILENCE_ID in members)
    with pytest.raises(ValleError, match="NSN is at 2"):
        Units(("SIL", "a", "NSN"))
    with pytest.raises(ValleError, match="no unit but silence"):
        Units(("SIL", "NSN"))


@pytest.mark.parametrize("steps_of_noise", [500.0, 3.0])
def test_noise_has_one_state_or_those_of_silence(steps_of_noise: float) -> None:
    units = Units(("SIL", "NSN", "a", "m", "s"))
    statistics = ContextStatistics.blank(5, 2)
    for unit in range(5):
        for left in (0, 2, 3, 4):  # noise is counted as silence
            n = np.array([500.0, 500.0]) if unit != NOISE_ID else np.array([steps_of_noise / 4, 0.0])
            mean = np.array([float(unit), 3.0 if unit == 2 and left == 0 else 0.0])
            statistics.counts[unit, left] = n
            statistics.sums[unit, left] = n[:, None] * mean
            statistics.squares[unit, left] = n[:, None] * (mean**2 + 0.2)
    table = grow_tree(units, statistics, 11)
    assert np.array_equal(table[:, NOISE_ID], table[:, SILENCE_ID])  # as left units they are one
    assert table[2, SILENCE_ID, 0] != table[2, 3, 0]
    of_unit = units_of_pdfs(table)
    if steps_of_noise > 60:
        assert set(table[NOISE_ID].flat) == {2}
        assert of_unit.tolist()[:3] == [SILENCE_ID, SILENCE_ID, NOISE_ID]
    else:
        assert np.array_equal(table[NOISE_ID], table[SILENCE_ID])
        assert NOISE_ID not in of_unit
    assert set(of_unit) >= {0, 2, 3, 4}


def test_silence_and_noise_may_follow_each_other() -> None:
    table = monophone_table(4, noise=True)
    assert set(table[NOISE_ID].flat) == {2}
    wanted = [
        2,
        2,
        0,
        1,
        2,
        4,
        5,
        2,
        0,
        6,
        7,
        0,
        2,
        0,
    ]
    scores = np.full((len(wanted), 8), -9.0, np.float32)
    scores[np.arange(len(wanted)), wanted] = 0.0
    chain = utterance_chain([2, 3], [True, False], table, noise=True)
    found = best_path(chain.graph(), scores)
    assert found is not None
    assert pdfs_of_path(chain, found[0]) == wanted
    assert [chain.owners[n] for n in found[0]] == [NOWHERE] * 5 + [0] * 2 + [NOWHERE] * 2 + [1] * 2 + [NOWHERE] * 3
    assert -found[1] == pytest.approx(4 * NOISE_COST + 3 * 0.7, abs=1e-4)
    without = utterance_chain([2, 3], [True, False], table)
    assert 2 not in without.first
    for robust in (None, Robust()):
        words = align_words(scores, [[(2,)], [(3,)]], table, robust, noise=True)
        assert words is not None
        assert [(w.start, w.end) for w in words.words] == [(5, 7), (9, 11)]
        assert not words.extra
        assert words.units == tuple([SILENCE_ID] * 5 + [2] * 2 + [SILENCE_ID] * 2 + [3] * 2 + [SILENCE_ID] * 3)


def test_words_are_found_between_noise() -> None:
    table = monophone_table(4, noise=True)
    lexicon: Lexicon = {"a": [((2,), 1.0)], "b": [((3,), 1.0)], "ab": [((2, 3), 1.0)]}
    lm = train_ngrams([["a", "b"], ["ab"], ["b", "a"]], 2)
    scores = np.full((12, 8), -20.0, np.float32)
    scores[np.arange(12), [2, 0, 2, 4, 5, 0, 2, 1, 6, 7, 2, 2]] = 0.0
    scores[7, 0] = 0.0
    heard = {}
    for noise in (False, True):
        graph = build_graph(lexicon, lm, table, noise=noise)
        heard[noise] = best_words(graph, scores)
    assert heard[True][0] == ["a", "b"]
    assert heard[True][1] < 30  # what words, pauses and noise cost
    assert heard[False][1] > 60  # noise is as nothing else


def best_words(graph: Graph, scores: np.ndarray) -> tuple[list[str], float]:
    """The likeliest words and their cost."""
    import kaldi_decoder
    import kaldifst

    search = kaldi_decoder.FasterDecoder(graph.fst, kaldi_decoder.FasterDecoderOptions(beam=300.0))
    search.decode(kaldi_decoder.DecodableCtc(scores))
    found, path = search.get_best_path()
    assert found
    _, _, labels, weight = kaldifst.get_linear_symbol_sequence(path)
    return [graph.words[i - 1] for i in labels], weight.value1 + weight.value2


def test_noise_is_told_from_silence_and_speech(models: dict[bool, HybridModel], heard: list[Said]) -> None:
    model = models[True]
    (pdf,) = set(model.pdfs[NOISE_ID].flat)
    taken: dict[bool, list[bool]] = {True: [], False: []}
    for s in heard:
        said = [w[0] for w in pronounced(model, s.words)]
        units = tuple(u for word in said for u in word)
        gaps = tuple(i == len(word) - 1 for word in said for i in range(len(word)))
        labels = label(model.gmm, model.pdfs, Spoken(fbank(s.wav), units, gaps), noise=True)  # type: ignore[arg-type]
        assert labels is not None
        at = (np.arange(len(labels)) + 0.5) / 100  # s
        for times, is_noise in ((s.noise, True), (s.times, False)):
            for start, end in times:
                taken[is_noise] += (labels.numpy() == pdf)[(at > start + 0.03) & (at < end - 0.03)].tolist()
    assert np.mean(taken[True]) > 0.97
    assert np.mean(taken[False]) < 0.01


def test_words_have_better_times_with_noise_apart(models: dict[bool, HybridModel], heard: list[Said]) -> None:
    without, with_noise = (boundary_errors(models[noise], heard) for noise in (False, True))
    assert np.mean(with_noise) < 0.02
    assert max(with_noise) < 0.06
    assert np.mean(with_noise) < np.mean(without)


def test_transcribing_and_aligning_beside_noise(models: dict[bool, HybridModel], tmp_path: Path) -> None:
    models[True].save(tmp_path)
    train_ngrams([["see"], ["ma"], ["see", "ma"], ["ma", "see"]], 2).save(tmp_path / "lm.arpa")
    model = HybridModel.load(tmp_path)
    assert model.units.has_noise
    recogniser, aligner = HybridRecogniser(model, acoustics="gmm"), HybridAligner(model)
    rng = np.random.default_rng(5)
    for _ in range(5):
        s = Said(["ma", "see", "see"], rng, 1.0)
        heard = recogniser.transcribe(s.wav, RATE)
        assert heard.text == "ma see see"
        found = aligner.align_text(s.wav, "Ma see see.")
        assert not found.missing
        assert not found.extra
        for words in (heard.words, found.words):
            for word, (start, end) in zip(words, s.times, strict=True):
                assert abs(word.start_s - start) < 0.06
                assert abs(word.end_s - end) < 0.06
        symbols = Phonemizer("en-us")("ma, see, see")
        wav = torch.from_numpy(soxr.resample(s.wav, RATE, 24000).astype(np.float32)).unsqueeze(0)
        durations = aligner.align(wav, DEFAULT_INVENTORY.encode(symbols)).durations  # noise goes to the pauses
        assert int(durations.sum()) == -(-wav.shape[1] // 320)
        ends = (durations.cumsum(0) / 75).tolist()
        assert abs(ends[symbols.index("s") - 1] - s.times[1][0]) < 0.07
        assert abs(ends[symbols.index("ɑː"[0]) + 1] - s.times[0][1]) < 0.07


def test_a_corpus_without_noise_is_learnt_as_without_the_unit() -> None:
    with_unit, without = learn(True, 0.0), learn(False, 0.0)
    assert np.array_equal(with_unit.pdfs[NOISE_ID], with_unit.pdfs[SILENCE_ID])
    assert np.array_equal(np.delete(np.delete(with_unit.pdfs, NOISE_ID, 0), NOISE_ID, 1), without.pdfs)
    assert with_unit.gmm is not None
    assert without.gmm is not None
    assert torch.equal(with_unit.gmm.means, without.gmm.means)
    quiet = recordings(8, 4, 0.0)
    assert boundary_errors(with_unit, quiet) == boundary_errors(without, quiet)


def test_noise_is_found_the_same_each_time(models: dict[bool, HybridModel]) -> None:
    assert learn(True, 0.4).fingerprint() == models[True].fingerprint()


def test_models_and_runs_without_the_unit_go_on(models: dict[bool, HybridModel], tmp_path: Path) -> None:
    models[False].save(tmp_path)
    kept = (tmp_path / "config.json").read_text()
    assert "noise" not in kept.lower()
    assert "NSN" not in kept
    model = HybridModel.load(tmp_path)
    assert not model.units.has_noise
    assert model.fingerprint() == models[False].fingerprint()
    config = HybridConfig(sources=("a",), out="b")
    values = to_dict(config)
    del values["bootstrap"]["noise"]  # as runs that are older keep it
    assert from_dict(HybridConfig, values, "config.json") == config
    other = replace(config, bootstrap=replace(config.bootstrap, noise=True))
    assert identity(other, has_network=False) != identity(config, has_network=False)


def test_a_run_with_the_unit_labels_noise(tmp_path: Path) -> None:
    lines = []
    for i, s in enumerate(recordings(25, 3, 0.8)):
        soundfile.write(tmp_path / f"{i}.wav", s.wav, RATE)
        line = {"id": f"u{i}", "path": f"{i}.wav", "seconds": len(s.wav) / RATE, "split": "train"}
        lines.append(json.dumps({**line, "text": " ".join(s.words)}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    config = HybridConfig(
        sources=(str(tmp_path),),
        out=str(tmp_path / "run"),
        min_phone_count=5,
        tune_seconds=0,
        bootstrap=BootstrapConfig(
            mono_rounds=(4,), tied_rounds=(1,), n_pdfs=14, n_features=8, min_count=10, noise=True
        ),
        network=NetworkConfig(width=16, middle=8, dilations=(1,)),
        training=TrainingConfig(epochs=1.0, speeds=(1.0,), batch_seconds=25),
    )
    model = HybridModel.load(train_recogniser(config, max_minutes=1e-9))
    assert model.units.has_noise
    assert all(min(p) >= model.units.first_phone for said in model.lexicon.values() for p, _ in said)
    (pdf,) = set(model.pdfs[NOISE_ID].flat)
    of_silence = model.priors[model.pdfs[SILENCE_ID, SILENCE_ID].tolist()].exp().sum()
    assert model.priors[pdf].exp() > 0.2 * of_silence  # frequencies of labels
