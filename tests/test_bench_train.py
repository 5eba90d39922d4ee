"""Training speed: the opponent is of our size, sees what it should and learns; every system is counted alike."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from packs import make_pack
from valle import cli
from valle.bench import train as bench
from valle.bench.plain import PlainAR, PlainTrainer, collate_plain, plain_batches
from valle.bench.speak import configs
from valle.data.batches import collate
from valle.data.pack import Pack, PackSplit
from valle.errors import ValleError
from valle.model.ar import AR, ARConfig
from valle.model.transformer import IGNORE_INDEX, TransformerConfig
from valle.train.flops import BatchShape, training_flops
from valle.train.tasks import ARTask

TINY = TransformerConfig(dim=32, n_layers=2, n_heads=2, ff_dim=64, dropout=0.1)
CONFIG = ARConfig(10, 1024, TINY)
CPU = torch.device("cpu")
NAMES = (bench.OURS, bench.PLAIN, bench.SORTED, bench.NO_ATTENTION_DROPOUT)

__all__ = ["make_pack"]


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valle.train.devices.MEASURE_S", 0.001)
    monkeypatch.setattr("valle.train.devices.CPU_SIZE", 64)


@pytest.fixture
def pack(make_pack) -> Path:
    """Forty utterances of 0.5 to 3 s."""
    lengths = torch.randint(38, 225, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    return make_pack({"train": lengths, "dev": [60, 90]})


@pytest.fixture
def split(pack: Path) -> PackSplit:
    return Pack(pack).split("train")


@pytest.fixture
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "configs", lambda size: (CONFIG, None))
    monkeypatch.setattr(bench, "MAX_FRAMES", {"cpu": {"default": 900, "paper": 600}})


# The opponent


@pytest.mark.parametrize("size", ["default", "paper"])
def test_both_are_of_one_size(size: str) -> None:
    config = ARConfig(100, transformer=configs(size)[0].transformer)
    with torch.device("meta"):
        ours, plain = AR(config).n_parameters, sum(p.numel() for p in PlainAR(config).parameters())
    assert plain == pytest.approx(ours, rel=0.02)


def test_the_plain_one_learns_as_ours_does(split: PackSplit, pack: Path) -> None:
    """The same utterances and steps: neither has a better lesson than the other."""
    torch.manual_seed(0)
    task = ARTask({"transformer": asdict(TINY)}, Pack(pack).info)
    optimizer = torch.optim.AdamW(task.model.train().parameters(), lr=3e-3)
    plain = PlainTrainer(PlainAR(CONFIG), 3e-3, 1.0, CPU, "fp32")
    our_batch = task.make_batch(collate(split, [(i,) for i in range(3)]), torch.Generator())
    batch = collate_plain(split, range(3), CONFIG)
    ours, theirs = [], []
    for _ in range(40):
        loss, _ = task.loss(our_batch, CPU)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
        optimizer.step()
        ours.append(float(loss.detach()))
        theirs.append(float(plain.step(batch)))
    assert theirs[0] == pytest.approx(math.log(1025), abs=0.7)  # knows nothing yet
    assert theirs[-1] < theirs[0] - 1
    assert theirs[-1] == pytest.approx(ours[-1], rel=0.15)


@torch.no_grad()
def test_the_plain_one_sees_neither_the_future_nor_padding(split: PackSplit) -> None:
    torch.manual_seed(0)
    model = PlainAR(CONFIG).eval()
    batch = collate_plain(split, [0, 1], CONFIG)
    short = int(torch.tensor([split.n_frames[0], split.n_frames[1]]).argmin())
    alone = collate_plain(split, [short], CONFIG)
    at_row = torch.zeros_like(batch.targets).index_fill_(0, torch.tensor([short]), 1).bool()
    only = batch.targets.masked_fill(~at_row, IGNORE_INDEX)
    whole = model.loss(batch.tokens, only, batch.is_padding)
    torch.testing.assert_close(whole, model.loss(*alone[:3]))

    targets = alone.targets.clone()
    targets[:, 30:] = IGNORE_INDEX
    later = alone.tokens.clone()
    later[:, 30:] = 11
    earlier = alone.tokens.clone()
    earlier[:, 0] = (earlier[:, 0] + 1) % 10
    before = model.loss(alone.tokens, targets, alone.is_padding)
    torch.testing.assert_close(model.loss(later, targets, alone.is_padding), before)
    assert not torch.isclose(model.loss(earlier, targets, alone.is_padding), before, atol=1e-6)


def test_attention_dropout_can_be_left_out(split: PackSplit) -> None:
    model = PlainAR(CONFIG).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = collate_plain(split, [0], CONFIG)
    assert model.loss(*batch[:3]) != model.loss(*batch[:3])
    model.drop_attention(0.0)
    torch.testing.assert_close(model.loss(*batch[:3]), model.loss(*batch[:3]))


def test_a_batch_is_phonemes_and_codes(split: PackSplit) -> None:
    batch = collate_plain(split, [3, 7], CONFIG)
    for row, i in enumerate((3, 7)):
        s, codes = split.phonemes(i), split.codes(i)[0]
        n = len(s) + 1 + len(codes)
        assert batch.tokens[row, :n].tolist() == [*s.tolist(), 10, *(c + 11 for c in codes.tolist())]
        assert batch.targets[row, len(s) : n].tolist() == [*codes.tolist(), 1024]
        assert (batch.targets[row] != IGNORE_INDEX).sum() == len(codes) + 1
        assert batch.is_padding[row].tolist() == [False] * n + [True] * (batch.tokens.shape[1] - n)
    assert batch.n_frames == int(split.n_frames[3] + split.n_frames[7])


def test_work_counts_padding(split: PackSplit) -> None:
    batch = collate_plain(split, [0, 1, 2], CONFIG)
    lens = [len(split.phonemes(i)) + 1 + int(split.n_frames[i]) for i in range(3)]
    assert batch.work.positions == 3 * max(lens)
    assert batch.work.filled == sum(lens)
    longest = int(split.n_frames[:3].max())
    assert batch.work.flops == training_flops(CONFIG, BatchShape(3, max(lens) - 1 - longest, longest))


def test_plain_batches_are_epochs_of_a_fixed_size(split: PackSplit) -> None:
    n_frames = split.n_frames.tolist()
    padding = {}
    for by_length in (False, True):
        batches = plain_batches(range(40), n_frames, 6, by_length=by_length, seed=0)
        epochs = [list(itertools.islice(batches, 7)) for _ in range(2)]
        for epoch in epochs:
            assert sorted(i for batch in epoch for i in batch) == list(range(40))
            assert Counter(map(len, epoch)) == {6: 6, 4: 1}
        assert epochs[0] != epochs[1]
        longest = sum(len(b) * max(n_frames[i] for i in b) for b in epochs[0])
        padding[by_length] = 1 - sum(n_frames) / longest
    assert padding[False] > 0.2 > padding[True] * 2


# Measuring


def test_every_trainer_is_counted_alike(pack: Path) -> None:
    options = bench.Options(CPU, "fp32", repeats=2, n_steps=5)
    results = bench.bench_size(TINY, pack, 800, options)
    assert set(results["trainers"]) == set(NAMES)
    for of in results["trainers"].values():
        assert of["steps"] == [5, 5]
        assert len(of["rates"]) == 2
        assert min(of["rates"]) <= of["tokens_per_s"] <= max(of["rates"])
        assert of["mfu"] > 0
    trainers = results["trainers"]
    assert trainers[bench.OURS]["ratio"] == 1
    expected = [a / b for a, b in zip(trainers[bench.OURS]["rates"], trainers[bench.PLAIN]["rates"], strict=True)]
    assert trainers[bench.PLAIN]["ratio"] == pytest.approx(sum(expected) / 2)
    assert trainers[bench.PLAIN]["padding"] > 0.15
    assert trainers[bench.SORTED]["padding"] < 0.15
    assert trainers[bench.OURS]["padding"] < 0.15
    assert results["utterances"] + results["left_out"] == 40
    in_plain = results["plain_utterances_per_batch"] * float(Pack(pack).split("train").n_frames.float().mean())
    assert in_plain == pytest.approx(results["frames_per_batch"], rel=0.15)
    assert not (pack / "run").exists()


def test_tokens_are_real_frames(pack: Path) -> None:
    """Of ours too: in a whole epoch each utterance counts once."""
    trainer = bench._our_trainer(TINY, pack, 800, bench.Options(CPU, "fp32"))
    runner = bench._our_runner(trainer)
    for _ in trainer.sampler.plan(0):
        runner.step()
    assert runner.counter.n_tokens == sum(trainer.sampler.frames[i] for i in trainer.sampler.usable)
    assert 0 < runner.counter.work.filled <= runner.counter.work.positions


def test_synthetic_lengths_are_like_speech(tmp_path: Path) -> None:
    split = Pack(bench.synthetic_pack(tmp_path, 400)).split("train")
    seconds = split.n_frames / split.info.frame_rate
    assert len(split) == 400
    assert seconds.min() > 1.9
    assert seconds.max() <= 16
    assert 6 < seconds.median() < 7.5
    assert 12.5 < split.n_phonemes.sum() / seconds.sum() < 13.5


@pytest.mark.usefixtures("tiny_sizes")
def test_json_and_markdown(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "train", "--pack", str(pack), "--steps", "1", "--repeats", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--json", "--size", "paper", "--precision", "fp32"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert set(results["sizes"]) == {"paper"}
    assert results["machine"]["precision"] == "fp32"
    assert results["data"]["utterances"] == 40
    assert cli.main([*arguments, "--max-frames", "700"]) == 0
    text = capsys.readouterr().out
    for size, trainer in itertools.product(("default", "paper"), NAMES):
        assert f"| {size} | {trainer} |" in text
    assert "up to 700 frames" in text


def test_memory_is_what_the_step_holds() -> None:
    bench.reset_peak_memory(CPU)
    before = bench.peak_memory_mb(CPU)
    if before is None:
        pytest.skip("this system does not tell")
    torch.ones(2**24)  # 64 MB, freed at once
    assert bench.peak_memory_mb(CPU) - before > 50
    bench.reset_peak_memory(CPU)
    assert bench.peak_memory_mb(CPU) - before < 30


@pytest.mark.parametrize("option", ["--repeats", "--steps", "--max-frames", "--threads"])
def test_numbers_that_cannot_be(option: str) -> None:
    with pytest.raises(ValleError, match=f"{option} is -1; it must be at least"):
        bench.main([option, "-1"])
