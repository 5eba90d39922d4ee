"""What a NAR foretells for recordings: every speaker by turns, cut behind words, resumed, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aligners import tiny_aligner
from valle.data import foretell as module
from valle.data.foretell import Beginning, beginning, complete, draw_pairs, foretell
from valle.data.pack import Pack
from valle.errors import ValleError
from valle.model.nar import NAR, NARConfig
from valle.model.transformer import TransformerConfig
from valle.pretrained import Pretrained, load_pretrained

LENGTHS = {"train": [90, 100, 80, 76, 85, 30, 600]}


@pytest.fixture
def model(tiny_model_dir: Path) -> Pretrained:
    """The tiny model, said to be of the packs' codec and inventory."""
    loaded = load_pretrained(tiny_model_dir, "cpu")
    info = replace(loaded.info, codec_fingerprint="c0dec", inventory_version="1")
    return replace(loaded, info=info)


def test_pairs_are_of_one_speaker_and_go_through_the_speakers_by_turns(make_pack):
    split = Pack(make_pack(LENGTHS)).split("train")
    pairs = draw_pairs(split)
    assert pairs == draw_pairs(split)
    assert pairs != draw_pairs(split, seed=1)
    assert sorted(p.target for p in pairs) == [0, 1, 2, 3, 4, 6]  # not the shortest
    assert all(split.speakers[p.target] == split.speakers[p.prompt] and p.target != p.prompt for p in pairs)
    assert {int(split.speakers[p.target]) for p in pairs[:2]} == {0, 1}


def test_a_long_utterance_is_cut_behind_a_word(make_pack, monkeypatch):
    split = Pack(make_pack({"train": [90, 90]}, aligned=True)).split("train")
    phonemes, durations = torch.tensor([1, 2, 0, 3, 4, 0, 5]), torch.tensor([10, 10, 0, 20, 10, 5, 35])
    monkeypatch.setattr(split, "phonemes", lambda i: phonemes)
    monkeypatch.setattr(split, "durations", lambda i: durations)
    for n_frames, n_phonemes, length in ((90, 7, 90), (60, 5, 50), (49, 2, 20), (20, 2, 20), (19, 7, 90)):
        one = beginning(split, 0, n_frames, separator_id=0)
        assert (len(one.phonemes), one.codes.shape[1], len(one.durations)) == (n_phonemes, length, n_phonemes)
        assert int(one.durations.sum()) == length


def test_a_row_is_foretold_alone_as_in_a_batch(make_pack):
    split = Pack(make_pack({"train": [90, 100, 80, 76]}, aligned=True)).split("train")
    torch.manual_seed(0)
    nar = NAR(
        NARConfig(10, transformer=TransformerConfig(dim=32, n_layers=1, n_heads=2, ff_dim=64), alignment=True)
    ).eval()
    targets, prompts = ([beginning(split, i, 450, 0) for i in own] for own in ((0, 1), (2, 3)))
    both = complete(nar, targets, prompts, 0)
    for codes, target, prompt in zip(both, targets, prompts, strict=True):
        assert torch.equal(codes[0], target.codes[0])
        assert codes.shape == target.codes.shape
        assert torch.equal(codes, complete(nar, [target], [prompt], 0)[0])
    other = complete(nar, targets[:1], prompts[1:], 0)[0]
    assert not torch.equal(other, both[0])  # the voice matters
    assert isinstance(targets[0], Beginning)


def test_what_is_written_is_a_pack_that_goes_on_where_it_stopped(make_pack, model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 2)
    pack = Pack(make_pack(LENGTHS))
    whole, halves = (Pack(foretell(model, pack, tmp_path / "whole")), tmp_path / "halves")
    foretell(model, pack, halves, limit=2)
    assert len(Pack(halves).split("train")) == 2
    foretell(model, pack, halves)
    once, twice = whole.split("train"), Pack(halves).split("train")
    recorded = pack.split("train")
    assert once.ids == twice.ids == [recorded.ids[p.target] for p in draw_pairs(recorded)]
    for i, name in enumerate(once.ids):
        codes, own = once.codes(i), recorded.codes(recorded.ids.index(name))
        assert torch.equal(codes, twice.codes(i))
        assert torch.equal(codes[0], own[0])
        assert not torch.equal(codes[1:], own[1:])


def test_what_does_not_fit_is_refused(make_pack, model, tmp_path):
    pack = Pack(make_pack(LENGTHS))
    with pytest.raises(ValleError, match="made with the codec c0dec"):
        foretell(replace(model, info=replace(model.info, codec_fingerprint="other")), pack, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("keep")
    with pytest.raises(ValleError, match="is no pack; give another --out"):
        foretell(model, pack, tmp_path / "b")
    with pytest.raises(ValleError, match="of other speech"):
        foretell(model, pack, make_pack({"train": [80, 80]}, name="c", aligned=True))
    config = replace(model.nar.config, alignment=True)
    aligned = replace(model, nar=NAR(config).eval(), aligner=tiny_aligner(model.inventory))
    with pytest.raises(ValleError, match="not aligned, which this NAR needs"):
        foretell(aligned, pack, tmp_path / "d")
