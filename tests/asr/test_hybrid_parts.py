"""The recogniser's parts, each by itself."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("kaldi_native_fbank")

from valle.asr.hybrid.batches import IGNORE, Item, make_batch, plan
from valle.asr.hybrid.bootstrap import BootstrapConfig, pdfs_of_path
from valle.asr.hybrid.chain import NOWHERE, best_path, utterance_chain
from valle.asr.hybrid.confidence import calibrate, probability, unit_log_posteriors
from valle.asr.hybrid.config import HybridConfig, LanguageConfig, TrainingConfig, load_hybrid_config
from valle.asr.hybrid.features import at_steps, fbank, n_steps
from valle.asr.hybrid.gmm import Gmm, discriminant
from valle.asr.hybrid.learn import NetworkTraining
from valle.asr.hybrid.lexicon import make_lexicon, words_of
from valle.asr.hybrid.lm import BEGIN, END, NGrams, train_ngrams
from valle.asr.hybrid.network import Network, NetworkConfig
from valle.asr.hybrid.recogniser import pieces, transcripts_agree
from valle.asr.hybrid.store import TensorStore
from valle.asr.hybrid.train import read_utterances, train_recogniser
from valle.asr.hybrid.tree import ContextStatistics, grow_tree, monophone_table, units_of_pdfs
from valle.asr.hybrid.units import SILENCE_ID, Units
from valle.asr.hybrid.wordlists import read_list
from valle.asr.pairing import pair_words
from valle.errors import ValleError
from valle.text import Phonemizer

ROOT = Path(__file__).parents[2]


def test_front_end_counts_its_steps() -> None:
    mels = fbank(np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1)
    assert mels.shape == (100, 80)
    assert float(mels.mean(0).abs().max()) < 1e-4
    for n in range(1, 12):
        for phase in range(3):
            assert len(at_steps(torch.zeros(n, 2), phase)) == n_steps(n, phase)


def test_network_does_not_look_at_padding() -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig(32, 16, (1, 2)), 10).eval()
    a, b = torch.randn(50, 80), torch.randn(31, 80)
    padded = torch.nn.utils.rnn.pad_sequence([a, b + 0], batch_first=True)
    padded[1, 31:] = 5.0
    with torch.no_grad():
        together = network(padded, torch.tensor([50, 31]))
        alone = network(b.unsqueeze(0))
    assert together.shape == (2, n_steps(50), 10)
    assert torch.allclose(together[1, : n_steps(31)], alone[0], atol=1e-5)


def test_units_of_any_word() -> None:
    phonemizer = Phonemizer("en-us")
    units = Units.seen_in([phonemizer("she sees the sea, mama")], 1)
    assert units.names[SILENCE_ID] == "SIL"
    assert "iː" in units.names
    assert [units.names[s.unit] for s in units.of(phonemizer("see"))] == ["s", "iː"]
    assert len(units.of(phonemizer("thought"))) == 3  # by the nearest there are
    lexicon = make_lexicon(["see", "zoo"], units)
    assert lexicon["see"][0][1] == 1
    assert all(u > 0 for p, _ in lexicon["zoo"] for u in p)
    with pytest.raises(ValleError, match="no unit"):
        Units(("SIL",))


def test_words_are_written_as_they_are_said() -> None:
    assert words_of("Don't buy 2 apples, Mr. X!") == ["don't", "buy", "two", "apples", "mister", "x"]


def test_path_through_a_chain_is_the_best_of_all() -> None:
    pytest.importorskip("kaldi_decoder")
    table = monophone_table(3)
    chain = utterance_chain([1, 2], [True, False], table)
    scores = np.full((9, 6), -5.0, np.float32)
    wanted = [0, 1, 2, 3, 3, 0, 1, 4, 5]  # silence, 1, silence, 2
    scores[np.arange(9), wanted] = 0.0
    found = best_path(chain.graph(), scores)
    assert found is not None
    assert pdfs_of_path(chain, found[0]) == wanted
    assert [chain.owners[n] for n in found[0]] == [NOWHERE] * 2 + [0] * 3 + [NOWHERE] * 2 + [1] * 2
    assert best_path(chain.graph(), scores[:1]) is None


def test_tree_splits_where_the_left_unit_matters() -> None:
    units = Units(("SIL", "a", "m", "s", "t"))
    statistics = ContextStatistics.blank(5, 2)
    for unit in range(5):
        for left in range(5):
            for part in range(2):
                n = 500.0
                mean = np.array([float(unit), 3.0 if unit == 1 and left == 2 else 0.0])
                statistics.counts[unit, left, part] = n
                statistics.sums[unit, left, part] = n * mean
                statistics.squares[unit, left, part] = n * (mean**2 + 0.2)
    table = grow_tree(units, statistics, 12)
    assert table.max() + 1 == 12
    assert table[1, 2, 0] != table[1, 3, 0]
    assert table[1, 3, 0] == table[1, 4, 0]
    assert (table[2] == table[2, 0]).all()
    assert units_of_pdfs(table)[table[1, 2, 1]] == 1
    assert np.array_equal(units_of_pdfs(monophone_table(3)), [0, 0, 1, 1, 2, 2])


def test_gaussians_and_discriminant() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(600) % 2
    x = torch.randn(600, 5, generator=generator)
    x[:, 3] += 6 * rows
    direction = discriminant(x, rows, 1)
    assert int(direction.abs().argmax()) == 3
    gmm = Gmm.blank(2, 5)
    gmm.estimate(x, rows)
    gmm.grow()
    gmm.estimate(x, rows)
    assert float((gmm.scores(x).argmax(1) == rows).float().mean()) > 0.98
    assert torch.allclose(gmm.weights.sum(1), torch.ones(2), atol=1e-4)


def test_language_model_sums_to_one_and_survives_its_file(tmp_path: Path) -> None:
    sentences = [["a", "b"], ["a", "b", "c"], ["b", "a"], ["a", "b", "c"]]
    lm = train_ngrams(sentences, 3, words=["d"], more=[{("c",): 1.5, ("e",): 0.5}, {("a", "e"): 0.5}])
    assert lm.words == ["a", "b", "c", "d", "e"]
    for history in ([BEGIN], ["a"], ["a", "b"], ["d"], [BEGIN, "a"], ["e", "e"]):
        total = sum(10 ** lm.log10(history, w) for w in [*lm.words, END])
        assert total == pytest.approx(1, abs=1e-3)
    assert lm.log10(["a"], "b") > lm.log10(["a"], "c")
    assert math.isinf(lm.log10(["a"], "zebra"))
    lm.save(tmp_path / "lm.arpa")
    again = NGrams.load(tmp_path / "lm.arpa")
    assert again.order == 3
    for gram, p in lm.probabilities.items():
        assert again.probabilities[gram] == pytest.approx(p, abs=1e-4)
    assert again.perplexity(sentences)[0] == pytest.approx(lm.perplexity(sentences)[0], rel=1e-3)
    (tmp_path / "no.arpa").write_text("hello")
    with pytest.raises(ValleError, match="not an ARPA"):
        NGrams.load(tmp_path / "no.arpa")
    with pytest.raises(ValleError, match="no words"):
        train_ngrams([], 2)


def test_language_models_of_others(tmp_path: Path) -> None:
    grams = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1\t</s>\n-99\t<s>\n-0.5\tSEE\n-0.5\tIT'S\n\n"
    (tmp_path / "lm.arpa").write_text(grams + "\\end\\\n")
    lm = NGrams.load(tmp_path / "lm.arpa")
    assert lm.words == ["it's", "see"]  # upper case, as LibriSpeech has them
    assert lm.log10([BEGIN], "see") == -0.5
    (tmp_path / "half.arpa").write_text(grams)
    with pytest.raises(ValleError, match="a part of it is missing"):
        NGrams.load(tmp_path / "half.arpa")


def test_lists_of_words(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("the 100\nOf 50.5\n")
    assert read_list(str(tmp_path / "words"), 1) == {("the",): 100, ("of",): 50.5}
    (tmp_path / "pairs").write_text("of the 7\n")
    assert read_list(str(tmp_path / "pairs"), 2) == {("of", "the"): 7}
    with pytest.raises(ValleError, match="line 1"):
        read_list(str(tmp_path / "pairs"), 1)


def test_confidence_learns_which_words_are_right() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.7
    marks = [(-0.2 if r else -1.5, -0.5 if r else -3.0, 1.0) for r in right]
    noisy = [tuple(np.array(m) + rng.normal(0, 0.3, 3)) for m in marks]
    weights = calibrate(noisy, right.tolist())
    assert probability((-0.1, -0.4, 1.0), weights) > 0.9
    assert probability((-1.6, -3.0, 1.0), weights) < 0.2
    assert calibrate(noisy, [True] * 400) == ()
    posteriors = np.log(np.array([[0.25, 0.25, 0.5]], np.float32))
    assert np.exp(unit_log_posteriors(posteriors, np.array([0, 0, 1], np.int32)))[0] == pytest.approx([0.5, 0.5])


def test_words_that_agree() -> None:
    assert transcripts_agree(["a", "x", "c"], ["a", "b", "c"]) == [True, False, True]
    assert transcripts_agree(["a", "b"], ["b"]) == [False, True]
    assert pair_words(["a", "x", "c"], ["a", "b", "c", "d"]) == (2, [(0, 0), (1, 1), (2, 2)])
    assert pair_words([], ["a", "b"]) == (2, [])
    assert pair_words(["a", "b"], []) == (2, [])


def test_pieces_cover_a_long_recording() -> None:
    wav = np.random.default_rng(0).standard_normal(70 * 16000).astype(np.float32)
    wav[25 * 16000 : 26 * 16000] = 0
    cut = pieces(wav)
    assert sum(len(p) for _, p in cut) == len(wav)
    assert 25 < cut[1][0] < 26
    assert all(len(p) <= 30 * 16000 for _, p in cut)


def test_store_goes_on_where_it_was(tmp_path: Path) -> None:
    made: list[str] = []

    def make(names):  # type: ignore[no-untyped-def]
        for name in names:
            made.append(name)
            yield None if name == "bad" else torch.full((2,), float(len(name)))

    names = [f"n{i}" for i in range(600)] + ["bad"]
    TensorStore(tmp_path / "s").fill(names[:500], make, "k")
    store = TensorStore(tmp_path / "s")
    store.fill(names, make, "k")
    assert len(made) == 601  # the first 500 once
    assert "bad" not in store
    assert store["n10"].tolist() == [3.0, 3.0]


def test_an_epoch_has_every_recording_once() -> None:
    items = [Item(str(i), str(i), 1.0, 100 + 37 * i % 900) for i in range(100)]
    batches = plan(items, 30.0, torch.Generator().manual_seed(0))
    assert sorted(i for b in batches for i in b) == list(range(100))
    assert all(len(b) * max(items[i].n_frames for i in b) <= 3000 for b in batches)


def test_labels_stay_with_their_frames(tmp_path: Path) -> None:
    """Mels and labels that both tell the number of the frame: at any speed, crop and shift they agree."""
    n = 1700  # longer than a crop
    numbers = {"a": torch.arange(n), "a@2": torch.arange(n // 2) * 2, "b": torch.arange(50)}
    features, labels = TensorStore(tmp_path / "features"), TensorStore(tmp_path / "labels")
    mels = {name: frames.half().unsqueeze(1).repeat(1, 80) for name, frames in numbers.items()}
    features.fill(list(mels), lambda names: [mels[name] for name in names], "mels")
    labels.fill(["a", "b"], lambda names: [numbers[name].short() for name in names], "labels")
    assert features.length("a@2") == n // 2
    items = [Item("a", "a", 1.0, n), Item("a@2", "a", 2.0, n // 2), Item("b", "b", 1.0, 50)]
    plain = TrainingConfig(frequency_masks=0, time_masks=0.0)
    seen = set()
    for seed in range(6):
        for config in (plain, None):
            batch = make_batch(items, features, labels, config, torch.Generator().manual_seed(seed))
            assert [n_steps(int(t)) for t in batch.lens] == (batch.labels != IGNORE).sum(1).tolist()
            keep = batch.labels != IGNORE
            assert torch.equal(at_steps(batch.mels[:, :, 0].T).T[keep].long(), batch.labels[keep])
            seen.add((config is None, int(batch.mels[0, 0, 0])))
    assert len([first for is_dev, first in seen if not is_dev]) > 2
    assert [first for is_dev, first in seen if is_dev] == [0]


def _training(folder: Path, bad: tuple[int, ...], **options: object) -> NetworkTraining:
    """Of four recordings, a batch each, some of which have no finite loss."""
    generator = torch.Generator().manual_seed(0)
    mels = {str(i): torch.randn(90, 80, generator=generator) / (i not in bad) for i in range(4)}
    features, labels = TensorStore(folder / "features"), TensorStore(folder / "labels")
    features.fill(list(mels), lambda names: [mels[name] for name in names], "mels")
    labels.fill(list(mels), lambda names: [torch.arange(90).short() % 5 for _ in names], "labels")
    training = TrainingConfig(batch_seconds=1.0, frequency_masks=0, time_masks=0.0, log_every=1, **options)  # type: ignore[arg-type]
    config = HybridConfig(sources=(), out=str(folder), network=NetworkConfig(16, 8, (1,)), training=training)
    items = [Item(name, name, 1.0, 90) for name in mels]
    return NetworkTraining(config, folder / "network", 5, features, labels, items, [])


def test_steps_without_a_finite_gradient_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = _training(tmp_path, (2,), epochs=3.0)
    network = training.run()
    assert (training.step, training.skipped) == (12, 3)
    assert all(bool(torch.isfinite(p).all()) for p in network.parameters())
    assert caplog.text.count("has no finite gradient and is skipped") == 3
    lines = [json.loads(line) for line in (tmp_path / "network" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["train/skipped"] == 3
    assert _training(tmp_path, (2,), epochs=3.0).skipped == 3  # as its checkpoint tells


def test_too_many_of_them_in_a_row_end_the_training(tmp_path: Path) -> None:
    with pytest.raises(ValleError, match=r"3 steps in a row up to step 3 had no finite gradient; remove .*network and"):
        _training(tmp_path, (0, 1, 2, 3), max_skipped=3).run()


def test_told_to_end_it_leaves_a_checkpoint(tmp_path: Path) -> None:
    training = _training(tmp_path, (), epochs=3.0)
    original = training.train_step

    def step_then_stop() -> tuple[dict[str, float], float]:
        if training.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original()

    training.train_step = step_then_stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert _training(tmp_path, (), epochs=3.0).step == 5


def test_mistakes_are_found_before_the_long_work(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        line = {"id": "u", "path": "u.wav", "seconds": 1.0, "split": "train", "text": "see"}
        (folder / "manifest.jsonl").write_text(json.dumps(line))
    config = HybridConfig(sources=(str(tmp_path / "a"),), out=str(tmp_path / "run"))
    assert [u.id for u in read_utterances(config)[0]] == ["u"]
    with pytest.raises(ValleError, match="2 recordings have the id 'u'"):
        read_utterances(replace(config, sources=(str(tmp_path / "a"), str(tmp_path / "b"))))
    pytest.importorskip("kaldifst")
    pytest.importorskip("kaldi_decoder")
    for name in ("arpa", "words"):
        with pytest.raises(ValleError, match=r"none\.txt"):
            train_recogniser(replace(config, language=LanguageConfig(**{name: str(tmp_path / "none.txt")})))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LanguageConfig, {"order": 0}),
        (LanguageConfig, {"pairs": "symspellpy"}),
        (BootstrapConfig, {"n_features": 118}),
        (BootstrapConfig, {"mono_rounds": ()}),
        (BootstrapConfig, {"n_pdfs": 40000}),
        (TrainingConfig, {"ema_decay": 1.0}),
        (TrainingConfig, {"max_skipped": 0}),
        (NetworkConfig, {"dropout": 1.0}),
    ],
)
def test_configurations_that_cannot_be_are_refused(cls: type, options: dict[str, object]) -> None:
    with pytest.raises(ValleError, match=next(iter(options)).partition("_")[0]):
        cls(**options)


@pytest.mark.parametrize("name", ["asr.toml", "asr-librispeech.toml"])
def test_configurations_are_read(name: str) -> None:
    config = load_hybrid_config(ROOT / "configs" / name)
    assert config.sources
    assert Network(config.network, config.bootstrap.n_pdfs) is not None
