"""Training from sequences: sums over all paths against counting them one by one, and the stage as a whole."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

pytest.importorskip("kaldi_native_fbank")

from valle.asr.hybrid.batches import Item, make_batch
from valle.asr.hybrid.config import HybridConfig, SequenceConfig, TrainingConfig, identity
from valle.asr.hybrid.features import n_steps
from valle.asr.hybrid.learn import NetworkTraining
from valle.asr.hybrid.network import Network, NetworkConfig
from valle.asr.hybrid.segments import Chunks, Placed, Reader, Segments, cut
from valle.asr.hybrid.sequence import PhoneModel, SequenceLoss, denominator, numerator, phone_model
from valle.asr.hybrid.store import TensorStore
from valle.asr.hybrid.tree import monophone_table
from valle.errors import ValleError
from valle.train.optimiser import OptimiserConfig

TABLE = np.array(
    [[[0, 1]] * 3, [[2, 3], [4, 3], [4, 5]], [[6, 7], [8, 7], [8, 9]]], np.int32
)  # [unit, left, 2]: silence, and two that look to the left
PDFS = torch.from_numpy(TABLE.astype(np.int64))


def random_phones(n: int = 3, seed: int = 0) -> PhoneModel:
    rng = np.random.default_rng(seed)
    follow, begin, share = rng.random((n, n, n + 1)), rng.random(n), rng.random((n, n))
    follow[:, 0, 0] = 0.0  # no silence after silence
    follow /= follow.sum(2, keepdims=True)
    parts = begin / begin.sum(), follow[:, :, :n].copy(), follow[:, :, n].copy(), share / share.sum()
    return PhoneModel(*(torch.from_numpy(p) for p in parts))


def random_scores(n: int, length: int, seed: int = 0, n_pdfs: int = 10) -> Tensor:
    return 2 * torch.randn(n, length, n_pdfs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bare(lens: list[int], is_begin: list[int], is_end: list[int]) -> Chunks:
    """Chunks of which it is not known what is said."""
    none = torch.zeros(len(lens), 1, dtype=torch.int64)
    ends = torch.tensor(is_begin).bool(), torch.tensor(is_end).bool()
    return Chunks(none[:, 0], none[:, 0], torch.tensor(lens), none, none, none, none, none[:, 0], *ends)


Path_ = tuple[list[tuple[int, int, bool]], float]
"""(left, unit, whether it is entered) of each step, and the probability without the scores."""


def all_paths(n_units: int, length: int, is_begin: bool, is_end: bool, phones: PhoneModel) -> Iterator[Path_]:
    """Every way through a chunk."""

    def go_on(path: list[tuple[int, int, bool]], left: int, unit: int, p: float) -> Iterator[Path_]:
        if len(path) == length:
            yield path, p * (float(phones.end[left, unit]) if is_end else 1.0)
            return
        if path or not is_begin:
            yield from go_on([*path, (left, unit, False)], left, unit, p)
            for v in range(n_units):
                yield from go_on([*path, (unit, v, True)], unit, v, p * float(phones.follow[left, unit, v]))

    if is_begin:
        for v in range(n_units):
            yield from go_on([(0, v, True)], 0, v, float(phones.begin[v]))
    else:
        for left in range(n_units):
            for unit in range(n_units):
                yield from go_on([], left, unit, float(phones.share[left, unit]))


def likelihood(path: list[tuple[int, int, bool]], scores: Tensor) -> float:
    scores = scores.detach()
    return math.exp(sum(float(scores[t, TABLE[u, left, 0 if e else 1]]) for t, (left, u, e) in enumerate(path)))


def test_denominator_is_the_sum_over_all_paths() -> None:
    phones, scores = random_phones(), random_scores(4, 4).requires_grad_()
    chunks = bare([4, 4, 3, 2], [1, 0, 0, 1], [0, 1, 0, 1])
    found = denominator(scores, chunks, PDFS, phones)
    for c in range(4):
        length = int(chunks.lens[c])
        ways = all_paths(3, length, bool(chunks.is_begin[c]), bool(chunks.is_end[c]), phones)
        total = sum(p * likelihood(path, scores[c]) for path, p in ways)
        assert float(found[c].detach()) == pytest.approx(math.log(total), abs=1e-9)
    assert torch.autograd.gradcheck(lambda x: denominator(x, chunks, PDFS, phones), (scores,))
    (visits,) = torch.autograd.grad(found.sum(), scores)
    inside = torch.arange(4) < chunks.lens.unsqueeze(1)
    assert torch.allclose(visits.sum(2), inside.double())  # each step is in one state


@pytest.mark.parametrize("scale", [1.0, 5.0, 30.0, 300.0])
def test_denominator_in_single_precision(scale: float) -> None:
    phones = random_phones()
    scores = scale * random_scores(3, 40, 1)
    chunks = bare([40, 33, 1], [1, 0, 0], [0, 1, 0])
    exact = denominator(scores.requires_grad_(), chunks, PDFS, phones)
    single = scores.detach().float().requires_grad_()
    found = denominator(single, chunks, PDFS, phones)
    found.sum().backward()
    assert single.grad is not None
    assert bool(torch.isfinite(single.grad).all())
    if scale < 30:  # beyond, more than 60 lie between a step's states, and floors count
        assert torch.allclose(found.double(), exact, rtol=1e-4)
    if scale == 1:
        (visits,) = torch.autograd.grad(exact.sum(), scores)
        assert torch.allclose(single.grad.double(), visits, atol=1e-4)


def spoken(units: list[int], steps: list[int]) -> Segments:
    """Units that begin at some steps."""
    said = np.array(units)
    return Segments(said, np.array([0, *units[:-1]]), 1 + 3 * np.array(steps), 3 * steps[-1] + 6)


def placed(units: list[int], steps: list[int], length: int) -> Placed:
    return Placed(spoken(units, steps), 1.0, 0, length, True)


def nearby(units: list[int], steps: list[int], start: int, stop: int, tolerance: int, length: int) -> set[tuple]:  # type: ignore[type-arg]
    """The paths of a chunk, cut from all of a whole recording in which units begin near their steps."""
    found = set()

    def go_on(begins: list[int]) -> Iterator[list[int]]:
        i = len(begins)
        if i == len(units):
            yield begins
            return
        for at in range(max(begins[-1] + 1 if begins else 0, steps[i] - tolerance), steps[i] + tolerance + 1):
            if at < length and (i or at == 0):
                yield from go_on([*begins, at])

    for begins in go_on([]):
        path = []
        for t in range(length):
            i = sum(b <= t for b in begins) - 1
            path.append((0 if not i else units[i - 1], units[i], t in begins, i))
        before = path[start - 1][3] if start else -1
        found.add((before, tuple(path[start:stop])))
    return found


@pytest.mark.parametrize("tolerance", [0, 1, 2])
@pytest.mark.parametrize("chunk_steps", [0, 3, 4])
def test_numerator_is_the_sum_over_the_paths_near_the_labels(tolerance: int, chunk_steps: int) -> None:
    phones = random_phones()
    units, steps, length = [0, 1, 2, 2, 0], [0, 2, 3, 5, 7], 9
    chunks = cut([placed(units, steps, length)], chunk_steps, tolerance)
    assert int(chunks.lens.sum()) == length
    whole = random_scores(1, length, 3)[0]
    longest = int(chunks.lens.max())
    scores = torch.zeros(len(chunks.lens), longest, 10, dtype=torch.float64)
    for c, (start, n) in enumerate(zip(chunks.starts.tolist(), chunks.lens.tolist(), strict=True)):
        scores[c, :n] = whole[start : start + n]
    scores.requires_grad_()
    found = numerator(scores, chunks, PDFS, phones)
    for c, (start, n) in enumerate(zip(chunks.starts.tolist(), chunks.lens.tolist(), strict=True)):
        total = 0.0
        for before, path in nearby(units, steps, start, start + n, tolerance, length):
            left, unit = (units[before - 1] if before else 0), units[before]
            p = float(phones.share[left, unit]) if start else 1.0
            for t, (at_left, at_unit, entered, _) in enumerate(path):
                if entered and not start and not t:
                    p *= float(phones.begin[at_unit])
                elif entered:
                    p *= float(phones.follow[left, unit, at_unit])
                left, unit = at_left, at_unit
            if start + n == length:
                p *= float(phones.end[left, unit]) * (path[-1][3] == len(units) - 1)
            total += p * likelihood([step[:3] for step in path], scores[c])
        assert float(found[c].detach()) == pytest.approx(math.log(total), abs=1e-9)
    assert bool((found <= denominator(scores, chunks, PDFS, phones)).all())  # a part of its paths
    assert torch.autograd.gradcheck(lambda x: numerator(x, chunks, PDFS, phones), (scores,))


def test_more_tolerance_is_more_paths() -> None:
    scores, phones, said = random_scores(1, 12, 5), random_phones(), placed([0, 1, 2, 1, 0], [0, 3, 5, 6, 9], 12)
    found = [float(numerator(scores, cut([said], 0, t), PDFS, phones)) for t in range(6)]
    assert found == sorted(found)
    assert found[0] < found[3]


def test_other_recordings_in_the_batch_change_nothing() -> None:
    phones = random_phones()
    rows = [
        placed([0, 1, 2, 1, 0], [0, 3, 5, 6, 9], 12),
        placed([1, 2], [0, 3], 5),
        placed([0, 2, 1, 2, 1], [0, 1, 2, 6, 7], 8),
    ]
    scores = random_scores(3, 12, 6)
    together = cut(rows, 0, 2)
    for loss in (numerator, denominator):
        found = loss(scores, together, PDFS, phones)
        for i, row in enumerate(rows):
            alone = loss(scores[i : i + 1, : row.n_steps], cut([row], 0, 2), PDFS, phones)
            assert float(found[i]) == pytest.approx(float(alone[0]), abs=1e-9)


def test_what_does_not_fit_is_left_out() -> None:
    tight = placed([1, 2, 1], [0, 0, 0], 3)  # at one time, but there is room for all
    assert cut([tight], 0, 0).earliest.tolist() == [[0, 1, 2]]
    chunks = cut([placed([1, 2, 1], [0, 1, 1], 2), tight], 0, 1)
    assert chunks.rows.tolist() == [1]
    none = cut([placed([1, 2, 1], [0, 1, 1], 2)], 0, 1)
    assert len(none.lens) == 0
    assert len(numerator(random_scores(1, 3)[:0], none, PDFS, random_phones())) == 0


def test_labels_tell_their_segments() -> None:
    path = [0, 1, 1, 2, 4, 3, 3, 8, 0, 1]  # silence, 1 for one step, 1 again, 2 after 1 for one step, silence
    states = np.repeat(np.array(path, np.int16), 3)
    found = Reader(TABLE).read(states, 0)
    assert found.units.tolist() == [0, 1, 1, 2, 0]
    assert found.lefts.tolist() == [0, 0, 1, 1, 2]
    assert found.starts.tolist() == [1, 10, 13, 22, 25]
    cropped = Reader(TABLE).read(states[6:], 0)  # from the middle of the silence
    assert cropped.units.tolist() == [0, 1, 1, 2, 0]
    same = TABLE.copy()
    same[1, :, 1] = same[1, :, 0]  # then a unit begins where it changes
    assert Reader(same).read(np.repeat(np.array([0, 1, 2, 2, 8], np.int16), 3), 1).units.tolist() == [0, 1, 2]


def test_units_of_a_trigram_sum_to_one() -> None:
    said = [spoken([0, 1, 2, 0], [0, 3, 5, 9]), spoken([1, 1, 2], [0, 1, 4])]
    phones = PhoneModel.estimate(said, 4)
    assert torch.allclose(phones.follow.sum(2) + phones.end, torch.ones(4, 4, dtype=torch.float64))
    assert float(phones.follow[:, 0, 0].max()) == 0
    assert float(phones.begin.sum()) == pytest.approx(1)
    assert float(phones.share.sum()) == pytest.approx(1)
    assert float(phones.share.min()) > 0
    assert float(phones.follow[0, 1, 2]) > float(phones.follow[0, 1, 3]) > 0


N_UNITS, N_PDFS = 4, 8


def stores(folder: Path, bad: tuple[int, ...] = ()) -> tuple[TensorStore, TensorStore, list[Item]]:
    """Recordings in which each unit sounds its own way; all speeds have the same mels, which is enough here."""
    rng = np.random.default_rng(0)
    mels: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    for i in range(12):
        units, frames = [0], [9 * int(rng.integers(1, 3))]
        for _ in range(int(rng.integers(4, 9))):
            units.append(int(rng.integers(1, N_UNITS)))
            frames.append(3 * int(rng.integers(1, 5)))
        first = [2 * u for u in units]
        states = np.concatenate([[f] * 3 + [f + 1] * (n - 3) for f, n in zip(first, frames, strict=True)])
        sound = torch.from_numpy(rng.standard_normal((len(states), 80)) * 0.6).float()
        sound[torch.arange(len(states)), 10 + 12 * torch.from_numpy(states // 2)] += 3.0
        mels[str(i)], labels[str(i)] = sound / (i not in bad), torch.from_numpy(states.astype(np.int16))
    features, kept = TensorStore(folder / "features"), TensorStore(folder / "labels")
    features.fill(list(mels), lambda names: [mels[n] for n in names], "mels")
    kept.fill(list(labels), lambda names: [labels[n] for n in names], "labels")
    return features, kept, [Item(n, n, 1.0, len(m)) for n, m in mels.items()]


def training(folder: Path, epochs: float = 6.0, **options: float) -> NetworkTraining:
    features, labels, items = stores(folder)
    table = monophone_table(N_UNITS)
    config = HybridConfig(
        sources=(),
        out=str(folder),
        network=NetworkConfig(24, 12, (1,)),
        training=TrainingConfig(
            epochs=epochs,
            batch_seconds=4.0,
            log_every=1,
            eval_every=1000,
            ema_decay=0.5,
            device="cpu",
        ),
        optimiser=OptimiserConfig(lr=3e-3, warmup_steps=2),
        sequence=SequenceConfig(chunk_seconds=0.6, **options),  # type: ignore[arg-type]
    )
    torch.manual_seed(5)
    start = Network(config.network, N_PDFS)
    phones = phone_model(labels, [i.label for i in items], table)
    criterion = SequenceLoss(config.sequence, labels, table, torch.full((N_PDFS,), -math.log(N_PDFS)), phones)
    return NetworkTraining(
        config, folder / "sequence", N_PDFS, features, labels, items, items[:3], criterion=criterion, start=start
    )


def test_training_raises_what_was_said(tmp_path: Path) -> None:
    run = training(tmp_path, epochs=10.0, l2=1e-5)
    before = run.judge()
    run.run()
    after = run.judge()
    assert set(after) == {"dev/mmi", "dev/loss", "dev/accuracy"}
    assert before["dev/mmi"] < after["dev/mmi"] - 0.3
    assert after["dev/mmi"] < 0
    assert after["dev/accuracy"] > 0.6 > before["dev/accuracy"]
    lines = [json.loads(line) for line in (tmp_path / "sequence" / "log.jsonl").read_text().splitlines()]
    assert {"train/loss", "train/mmi", "train/accuracy"} <= set(lines[0])


def test_it_starts_from_the_weights_that_it_is_given(tmp_path: Path) -> None:
    torch.manual_seed(5)
    start = Network(NetworkConfig(24, 12, (1,)), N_PDFS).state_dict()
    run = training(tmp_path)
    assert all(torch.equal(start[k], v) for k, v in run.network.state_dict().items())
    assert run.average is not None
    assert all(torch.equal(start[k], v) for k, v in run.average.weights.items())


def test_stopped_and_resumed_it_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = training(tmp_path / "a", epochs=2.0).run()
    cut_off = training(tmp_path / "b", epochs=2.0)
    original: Callable[[], tuple[dict[str, float], float]] = cut_off.train_step

    def step_then_stop() -> tuple[dict[str, float], float]:
        if cut_off.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original()

    cut_off.train_step = step_then_stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut_off.run()
    again = training(tmp_path / "b", epochs=2.0)
    assert 0 < again.step < again.total_steps
    rest = again.run()
    assert all(torch.equal(whole.state_dict()[k], v) for k, v in rest.state_dict().items())


def test_speeds_shifts_and_crops_keep_a_path(tmp_path: Path) -> None:
    """However a recording is played and cut, what was said has a path, and the loss is finite."""
    table: NDArray[np.int32] = monophone_table(N_UNITS)
    rng = np.random.default_rng(1)
    path: list[int] = []
    while len(path) < 700:
        u = int(rng.integers(0, N_UNITS))
        path += [2 * u] + [2 * u + 1] * int(rng.integers(0, 4)) if not path or path[-1] // 2 or u else []
    states = torch.from_numpy(np.repeat(np.array(path, np.int16), 3))
    n = len(states)
    assert n > 1600  # longer than a batch takes
    lengths = {"a": n, "a@0.9": round(n / 0.9), "a@1.1": round(n / 1.1)}
    features, labels = TensorStore(tmp_path / "features"), TensorStore(tmp_path / "labels")
    features.fill(list(lengths), lambda names: [torch.zeros(lengths[x], 80) for x in names], "mels")
    labels.fill(["a"], lambda names: [states for _ in names], "labels")
    phones = phone_model(labels, ["a"], table)
    items = [Item(name, "a", float(name.partition("@")[2] or 1), k) for name, k in lengths.items()]
    seen = set()
    for seed in range(8):
        batch = make_batch(items, features, labels, TrainingConfig(), torch.Generator().manual_seed(seed))
        criterion = SequenceLoss(SequenceConfig(tolerance=0), labels, table, torch.zeros(N_PDFS), phones)
        chunks = criterion.chunks(batch)
        assert int(chunks.lens.sum()) == sum(n_steps(int(k)) for k in batch.lens)
        scores = torch.zeros(3, batch.labels.shape[1], N_PDFS)
        scores[0].scatter_(1, batch.labels[0].clamp(min=0).unsqueeze(1), 8.0)  # of speed 1: as labelled
        gained, n_all = criterion.gained(scores[:1], batch._replace(rows=batch.rows[:1], lens=batch.lens[:1]))
        assert 0 >= float(gained) / n_all > -0.1
        gained, n_all = criterion.gained(torch.randn(scores.shape), batch)
        assert -10 < float(gained) / n_all <= 0
        seen |= {(bool(b), bool(e)) for b, e in zip(chunks.is_begin, chunks.is_end, strict=True)}
    assert (False, False) in seen


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epochs": -1.0}, "epochs = 0 leaves it out"),
        ({"tolerance": -1}, "tolerance"),
        ({"l2": -1.0}, "l2"),
        ({"lr": 0.0}, "the first two must be above 0"),
        ({"acoustic_scale": 0.0}, "acoustic_scale 0"),
        ({"chunk_seconds": 0.1}, "at least 0.3, or 0 for whole recordings"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(ValleError, match=told):
        SequenceConfig(**options)  # type: ignore[arg-type]


def test_a_finished_run_may_be_given_the_stage() -> None:
    plain = HybridConfig(sources=(), out="x")
    wanted = replace(plain, sequence=SequenceConfig(epochs=1.0, ce_weight=0.2))
    assert identity(plain, has_network=True) == identity(wanted, has_network=True)
    other = replace(wanted, sequence=replace(wanted.sequence, ce_weight=0.1))
    longer = replace(wanted, sequence=replace(wanted.sequence, epochs=2.0, budget_minutes=3.0))
    retrained = replace(wanted, training=replace(wanted.training, epochs=20.0))
    begun = {"has_network": True, "has_sequence": True}
    assert identity(wanted, **begun) != identity(other, **begun)
    assert identity(wanted, **begun) == identity(longer, **begun)
    assert identity(wanted, **begun) != identity(retrained, **begun)
    assert identity(wanted, has_network=True) == identity(retrained, has_network=True)
