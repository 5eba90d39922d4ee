"""Batches: every utterance once an epoch, within the limit, resumable, the same for one rank as for several."""

from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from valle.data.batches import BatchConfig, BatchSampler, collate
from valle.data.pack import Pack
from valle.errors import ValleError

LENGTHS = [30, 41, 38, 55, 47, 33, 62, 29, 75, 12, 18, 90, 64, 31]
CONFIG = BatchConfig(max_frames=150, min_seconds=0.2, max_seconds=1.5, join_same_speaker=0.6)


@pytest.fixture
def split(make_pack):
    return Pack(make_pack({"train": LENGTHS}, n_speakers=3)).split("train")


def utterances(batches):
    return [i for batch in batches for example in batch for i in example]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), epoch=st.integers(0, 50), join=st.sampled_from([0.0, 0.3, 0.95]))
def test_an_epoch_is_every_utterance_once(split, seed, epoch, join):
    config = BatchConfig(max_frames=150, min_seconds=0.2, max_seconds=1.5, join_same_speaker=join)
    sampler = BatchSampler(split, config, seed=seed)
    batches = sampler.plan(epoch)
    assert sorted(utterances(batches)) == [i for i, n in enumerate(LENGTHS) if 15 <= n <= 112]
    assert sampler.left_out == 1
    for batch in batches:
        rows = [sum(LENGTHS[i] for i in example) for example in batch]
        assert max(rows) * len(rows) <= 150
        assert max(rows) <= 112
        for example in batch:
            assert len({int(split.speakers[i]) for i in example}) == 1
    joined = [example for batch in batches for example in batch if len(example) > 1]
    assert bool(joined) == bool(joined and join)
    assert batches == BatchSampler(split, config, seed=seed).plan(epoch)  # a function of seed and epoch alone


def test_joins_happen_and_epochs_differ(split):
    sampler = BatchSampler(split, CONFIG, seed=1)
    assert any(len(example) > 1 for batch in sampler.plan(0) for example in batch)
    assert sampler.plan(0) != sampler.plan(1)
    assert sampler.plan(0) != BatchSampler(split, CONFIG, seed=2).plan(0)


@pytest.mark.parametrize("stop", [0, 1, 4, 11, 23])
def test_resumes_without_repeats_or_gaps(split, stop):
    whole = list(islice(BatchSampler(split, CONFIG, seed=3), 30))
    assert len(whole) > 3 * len(BatchSampler(split, CONFIG, seed=3).plan(0)) - 6  # several epochs
    first = BatchSampler(split, CONFIG, seed=3)
    before = list(islice(first, stop))
    second = BatchSampler(split, CONFIG, seed=3)
    second.load_state_dict(first.state_dict())
    assert before + list(islice(second, 30 - stop)) == whole


def test_ranks_share_out_the_stream_of_one(split):
    whole = list(islice(BatchSampler(split, CONFIG, seed=4), 24))
    ranks = [BatchSampler(split, CONFIG, seed=4, rank=r, world_size=2) for r in range(2)]
    parts = [list(islice(sampler, 12)) for sampler in ranks]
    assert [batch for pair in zip(*parts, strict=True) for batch in pair] == whole
    assert ranks[0].state_dict() == ranks[1].state_dict()  # a position holds for any number of ranks
    alone = BatchSampler(split, CONFIG, seed=4)
    alone.load_state_dict(ranks[0].state_dict())
    assert next(alone) == list(islice(BatchSampler(split, CONFIG, seed=4), 25))[24]


def test_position_of_other_data_is_refused(split, make_pack):
    state = BatchSampler(split, CONFIG, seed=0).state_dict()
    with pytest.raises(ValleError, match="seed 0"):
        BatchSampler(split, CONFIG, seed=1).load_state_dict(state)
    other = Pack(make_pack({"train": LENGTHS[:5]}, name="other")).split("train")
    with pytest.raises(ValleError, match="14 utterances"):
        BatchSampler(other, CONFIG, seed=0).load_state_dict(state)


def test_impossible_limits_are_errors(split):
    with pytest.raises(ValleError, match="max_seconds 2 is 150 frames, but a batch holds max_frames = 100"):
        BatchSampler(split, BatchConfig(max_frames=100, max_seconds=2.0))
    with pytest.raises(ValleError, match="none of the 14 utterances"):
        BatchSampler(split, BatchConfig(max_frames=1000, min_seconds=5.0, max_seconds=6.0))
    with pytest.raises(ValleError, match="probability"):
        BatchConfig(join_same_speaker=1.0)


def test_validation_plan_is_sorted_and_whole(split):
    plan = BatchSampler(split, CONFIG).sorted_plan()
    order = [LENGTHS[i] for i in utterances(plan)]
    assert order == sorted(n for n in LENGTHS if n >= 15)
    assert all(len(example) == 1 for batch in plan for example in batch)


def test_collate_joins_and_pads(split):
    rows = collate(split, [(0, 3), (1,)])
    phonemes = torch.cat([split.phonemes(0), torch.tensor([0]), split.phonemes(3)])
    assert rows.phoneme_lens.tolist() == [len(phonemes), len(split.phonemes(1))]
    assert rows.phonemes[0].tolist() == phonemes.tolist()
    assert rows.code_lens.tolist() == [85, 41]
    assert rows.codes.shape == (2, 8, 85)
    assert torch.equal(rows.codes[0], torch.cat([split.codes(0), split.codes(3)], dim=1))
    assert torch.equal(rows.codes[1, :, :41], split.codes(1))
    assert not rows.codes[1, :, 41:].any()
    assert rows.durations is None


def test_collate_joins_durations_with_none_for_the_separator(make_pack):
    split = Pack(make_pack({"train": LENGTHS}, n_speakers=3, name="aligned", aligned=True)).split("train")
    rows = collate(split, [(0, 3), (1,)])
    durations = torch.cat([split.durations(0), torch.tensor([0]), split.durations(3)])
    assert rows.durations.shape == rows.phonemes.shape
    assert rows.durations[0, : len(durations)].tolist() == durations.tolist()
    assert rows.durations.sum(1).tolist() == rows.code_lens.tolist()
    assert not rows.durations[1, rows.phoneme_lens[1] :].any()
