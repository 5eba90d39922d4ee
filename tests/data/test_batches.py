"""Batches: every utterance once an epoch, within the limit, resumable, the same for one rank as for several."""

import json
from dataclasses import replace
from itertools import islice, pairwise
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from valle.config import from_dict, to_dict
from valle.data.batches import BatchConfig, BatchSampler, Part, collate, cut_places
from valle.data.pack import PHONEMES_FILE, Pack, PackedUtterance, PackInfo, ShardInfo, write_info, write_shard
from valle.errors import ValleError
from valle.text import PhonemeInventory

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


@pytest.mark.parametrize(("fraction", "n"), [(0.5, 6), (0.25, 3), (0.01, 1)])
def test_a_fraction_is_always_the_same_even_choice(split, fraction, n):
    usable = BatchSampler(split, CONFIG).usable
    assert len(usable) == 13
    sampler = BatchSampler(split, replace(CONFIG, fraction=fraction), seed=1)
    chosen = sorted(utterances(sampler.plan(0)))
    assert len(chosen) == n
    assert set(chosen) < set(usable)
    assert chosen == sorted(utterances(sampler.plan(7)))
    assert chosen == sorted(utterances(BatchSampler(split, replace(CONFIG, fraction=fraction), seed=2).plan(0)))
    assert sorted(utterances(sampler.sorted_plan())) == usable  # what is judged is all of it
    for wrong in (0.0, 1.5):
        with pytest.raises(ValleError, match="fraction"):
            replace(CONFIG, fraction=wrong)


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


# Crops

SYMBOLS = PhonemeInventory("1", tuple(" ,.ˈˌː" + "abdefi"))
CROPS = BatchConfig(max_frames=700, min_seconds=0.2, max_seconds=4.0, join_same_speaker=0.5, crop_seconds=(1.0, 2.5))


def spoken(rng, n_words):
    """Symbols and durations [S] as an aligner gives them: marks last nothing, of a run of pauses only the first may."""
    symbols, durations = [], []
    for word in range(n_words):
        for _ in range(rng.randint(1, 4)):
            stress, length = rng.random() < 0.3, rng.random() < 0.3
            symbols += ["ˈ"] * stress + [rng.choice("abdefi")] + ["ː"] * length
            durations += [0] * stress + [rng.randint(1, 14)] + [0] * length
        end = ["."] if word == n_words - 1 else rng.choice([[" "], [",", " "]])
        symbols += end
        durations += [rng.choice([0, 0, 20]), 0][: len(end)]
    return SYMBOLS.encode(symbols), durations


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """An aligned split of 30 utterances of 0.1 to 9 s by two speakers."""
    folder, rng, generator = tmp_path_factory.mktemp("speech"), Random(0), torch.Generator().manual_seed(0)
    info = PackInfo("c0dec", "1", len(SYMBOLS), 0, 75.0, speakers=("a", "b"), aligned=True, phoneme_kinds=SYMBOLS.kinds)
    utterances = []
    for i in range(30):
        phonemes, durations = spoken(rng, rng.randint(1, 28))
        codes = torch.randint(1024, (8, sum(durations)), generator=generator)
        utterances.append(PackedUtterance(f"u{i}", torch.tensor(phonemes), codes, i % 2, torch.tensor(durations)))
    write_shard(folder / "train-00000.safetensors", utterances, info)
    SYMBOLS.save(folder / PHONEMES_FILE)
    write_info(folder, replace(info, shards=(ShardInfo("train-00000.safetensors", "train", 30, 0.1),)))
    return Pack(folder).split("train")


def numbers(example):
    return [i if isinstance(i, int) else i.i for i in example]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), epoch=st.integers(0, 50), join=st.sampled_from([0.0, 0.6]))
def test_crops_hold_whole_phones_between_the_bounds(speech, seed, epoch, join):
    config = replace(CROPS, join_same_speaker=join)
    sampler = BatchSampler(speech, config, seed=seed)
    plan = sampler.plan(epoch)
    used = [i for batch in plan for example in batch for i in numbers(example)]
    assert len(used) == len(set(used))
    if not join:
        assert sorted(used) == [i for i, n in enumerate(speech.n_frames.tolist()) if n >= 15]  # the longest too
    assert any(isinstance(i, Part) for batch in plan for example in batch for i in example)
    for batch in plan:
        rows = collate(speech, batch)
        assert rows.codes.shape[0] * rows.codes.shape[2] <= 700
        assert rows.durations.sum(1).tolist() == rows.code_lens.tolist()
        for example, n_frames in zip(batch, rows.code_lens.tolist(), strict=True):
            assert all(isinstance(i, int) for i in example[1:-1])  # only the ends are cut
            if any(isinstance(i, Part) for i in example):
                assert 75 <= n_frames <= 187
            assert n_frames <= 187
            for part in (i for i in example if isinstance(i, Part)):
                check_part(speech, part)


def check_part(split, part):
    """It begins and ends with phones that have frames, or as the utterance, and takes their marks along."""
    durations = split.durations(part.i).tolist()
    kinds = [SYMBOLS.kinds[p] for p in split.phonemes(part.i).tolist()]
    assert (part.t0, part.t1) == (sum(durations[: part.s0]), sum(durations[: part.s1]))
    inside = kinds[part.s0 : part.s1]
    if part.s0:
        first = inside.index(0)
        assert set(inside[:first]) <= {1}
        assert durations[part.s0 + first] > 0
        assert kinds[part.s0 - 1] == (2 if first else kinds[part.s0 - 1])  # marks taken along are a word's first
        assert kinds[part.s0 - 1] != 1  # none left behind
    if part.s1 < len(kinds):
        last = max(s for s in range(part.s0, part.s1) if kinds[s] == 0)
        assert set(kinds[last + 1 : part.s1]) <= {1}
        assert durations[last] > 0
        assert kinds[part.s1] != 1
        assert part.s1 == last + 1 or kinds[part.s1] == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=40))
def test_places_to_cut_split_no_phone(symbols):
    """Whatever an aligner said."""
    kinds, durations = [k for k, _ in symbols], [d for _, d in symbols]
    begins, ends = cut_places(kinds, durations)
    assert begins[0] == (0, 0)
    assert ends[-1] == (len(kinds), sum(durations))
    for s, t in begins + ends:
        assert t == sum(durations[:s])
        assert not 0 < s < len(kinds) or (kinds[s - 1], kinds[s]) not in [(0, 1), (1, 0), (1, 1)]
    assert [s for s, _ in begins] == sorted({s for s, _ in begins})
    assert [s for s, _ in ends] == sorted({s for s, _ in ends})


def test_places_to_cut_of_a_sentence():
    """``həlˈo wˈiː.``: not before the stress within a word, at a word's begin with its stress, pauses are left out."""
    kinds = [0, 0, 0, 1, 0, 2, 0, 1, 0, 1, 2]
    begins, ends = cut_places(kinds, [3, 2, 4, 0, 5, 10, 2, 0, 6, 0, 8])
    assert begins == [(0, 0), (1, 3), (2, 5), (6, 24)]
    assert ends == [(1, 3), (2, 5), (5, 14), (10, 32), (11, 40)]


def test_crops_are_other_ones_in_every_epoch(speech):
    crops = BatchSampler(speech, CROPS, seed=5)
    assert crops.plan(0) == crops.plan(0)
    parts = [{i.i: i for batch in crops.plan(e) for x in batch for i in x if isinstance(i, Part)} for e in range(2)]
    both = parts[0].keys() & parts[1].keys()
    assert sum(parts[0][i] != parts[1][i] for i in both) > len(both) / 2
    lengths = [n for e in range(20) for batch in crops.plan(e) for n in collate(speech, batch).code_lens.tolist()]
    cropped = [n for n in lengths if n > 75]
    assert min(cropped) < 90
    assert max(cropped) > 170
    starts = [i.t0 for e in range(20) for batch in crops.plan(e) for x in batch for i in x if isinstance(i, Part)]
    assert len(set(starts)) > 50


@pytest.mark.parametrize("stop", [0, 1, 7, 20])
def test_crops_resume_and_are_shared_out_among_ranks(speech, stop):
    whole = list(islice(BatchSampler(speech, CROPS, seed=3), 40))
    first = BatchSampler(speech, CROPS, seed=3)
    before = list(islice(first, stop))
    second = BatchSampler(speech, CROPS, seed=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + list(islice(second, 40 - stop)) == whole
    parts = [list(islice(BatchSampler(speech, CROPS, seed=3, rank=r, world_size=2), 20)) for r in range(2)]
    assert [batch for pair in zip(*parts, strict=True) for batch in pair] == whole


def test_a_validation_is_never_cropped(speech):
    plan = BatchSampler(speech, CROPS).sorted_plan()
    assert utterances(plan) == utterances(BatchSampler(speech, replace(CROPS, crop_seconds=())).sorted_plan())
    assert all(isinstance(i, int) for i in utterances(plan))
    long = BatchSampler(speech, CROPS)
    long.usable = [i for i in long.usable if long.frames[i] > 300]
    with pytest.raises(ValleError, match="no utterance to judge by is up to max_seconds = 4 s"):
        long.sorted_plan()


def test_phones_too_long_to_crop(tmp_path):
    """Between the bounds where it can be, else as much as fits, else whole or not at all."""
    info = PackInfo("c0dec", "1", len(SYMBOLS), 0, 75.0, aligned=True, phoneme_kinds=SYMBOLS.kinds)
    lasting = [[60, 300, 60], [500], [20, 20, 50], [180]]
    utterances = [
        PackedUtterance(f"u{i}", torch.full((len(d),), 6), torch.zeros(8, sum(d)), -1, torch.tensor(d))
        for i, d in enumerate(lasting)
    ]
    write_shard(tmp_path / "train-00000.safetensors", utterances, info)
    write_info(tmp_path, replace(info, shards=(ShardInfo("train-00000.safetensors", "train", 4, 0.1),)))
    sampler = BatchSampler(Pack(tmp_path).split("train"), CROPS)
    for epoch in range(10):
        examples = {numbers(x)[0]: x[0] for batch in sampler.plan(epoch) for x in batch}
        assert examples.keys() == {0, 2, 3}  # u1 is one phone of 6.7 s
        assert examples[0] in (Part(0, 0, 1, 0, 60), Part(0, 2, 3, 360, 420))
        assert examples[2] == 2  # no shorter crop of at least 1 s
        assert examples[3] == 3
    sampler.learnt = [1]
    with pytest.raises(ValleError, match="without cutting a phone"):
        next(sampler)


def test_crops_that_cannot_be_are_errors(split, speech):
    with pytest.raises(ValleError, match="crop_seconds needs a pack that tells how long each phoneme lasts"):
        BatchSampler(split, CROPS)
    for wrong in [(1.0,), (1.0, 1.5), (0.1, 2.0), (2.0, 1.0), (2.0, 5.0), (1.0, 2.0, 3.0)]:
        with pytest.raises(ValleError, match="it must be two lengths at least 1 s apart"):
            BatchConfig(min_seconds=0.2, max_seconds=4.0, crop_seconds=wrong)
    with pytest.raises(ValleError, match="crop_seconds"):
        from_dict(BatchConfig, {"crop_seconds": [10.0]})
    assert from_dict(BatchConfig, {"crop_seconds": [10, 20]}).crop_seconds == (10.0, 20.0)


def test_rows_of_a_batch_are_alike_in_phonemes_and_frames_together(speech):
    """What is padded is their sum, as the models have no gap between them."""
    config = BatchConfig(max_frames=1500, min_seconds=0.1, max_seconds=20.0, bucket_noise=0.0)
    sampler = BatchSampler(speech, config, seed=1)
    places = [int(p) + int(t) for p, t in zip(speech.n_phonemes, speech.n_frames, strict=True)]
    spans = sorted((min(b), max(b)) for b in ([places[e[0]] for e in batch] for batch in sampler.plan(0)))
    assert len(spans) > 2
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_a_plan_is_as_it_was(split):
    """A plan and a configuration of an earlier program."""
    before = [[(8,)], [(12,), (2, 5)], [(11,)], [(7, 1, 10)], [(3,), (6,)], [(0,), (13,), (4,)]]
    assert BatchSampler(split, CONFIG, seed=7).plan(3) == before
    old = {"max_frames": 150, "min_seconds": 0.2, "max_seconds": 1.5, "join_same_speaker": 0.6, "bucket_noise": 0.03}
    assert from_dict(BatchConfig, old) == CONFIG
    assert to_dict(CONFIG) == {**old, "crop_seconds": (), "fraction": 1.0}
