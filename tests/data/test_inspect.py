"""The page about a pack: its numbers are those of the pack, it needs nothing from elsewhere, it can be listened to."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch

from valle.codec.base import load_codec
from valle.data.inspect import (
    PackStatistics,
    draw_examples,
    find_codec,
    main,
    rejected_table,
    split_table,
    statistics,
)
from valle.data.pack import INFO_FILE, Pack
from valle.errors import ValleError
from valle.pretrained import EMBEDDED
from valle.provenance import read_provenance

LENGTHS = {"train": [30, 75, 150, 225], "dev": [60]}


@pytest.fixture(scope="module")
def codec():
    return load_codec(EMBEDDED / "codec")


@pytest.fixture
def rejecting(make_pack):
    """A pack that left some out."""
    folder = make_pack(LENGTHS)
    values = json.loads((folder / INFO_FILE).read_text())
    values["rejected"] = {"train": {"silent audio": 2, "no text": 3}, "dev": {"silent audio": 4}}
    (folder / INFO_FILE).write_text(json.dumps(values))
    return Pack(folder)


def test_tables(rejecting):
    splits = {name: rejecting.split(name) for name in rejecting.splits}
    head, train, dev = split_table(rejecting, splits)
    assert dict(zip(head, train, strict=True)) == {
        "split": "train",
        "utterances": "4",
        "hours": "0.00",
        "speakers": "2",
        "median s": "1.5",
        "longest s": "3.0",
        "median phonemes/s": "12.4",
        "left out": "5",
    }
    assert dev[:4] == ("dev", "1", "0.00", "1")
    assert dev[-1] == "4"
    assert rejected_table(rejecting)[1:] == [("silent audio", "2", "4"), ("no text", "3", "0")]


def test_statistics_are_those_of_the_pack(rejecting):
    pack, numbers = rejecting, statistics(rejecting)
    assert numbers.seconds.tolist() == [0.4, 1.0, 2.0, 3.0, 0.8]
    assert numbers.n_counted == 5
    utterances = [(pack.split(name), i) for name, frames in LENGTHS.items() for i in range(len(frames))]
    codes = torch.cat([s.codes(i) for s, i in utterances], 1)
    phonemes = torch.cat([s.phonemes(i) for s, i in utterances])
    for k in range(8):
        assert numbers.code_counts[k].tolist() == codes[k].bincount(minlength=1024).tolist()
    assert numbers.phoneme_counts.tolist() == phonemes.bincount(minlength=10).tolist()
    assert list(numbers.speaker_hours) == ["b", "a"]  # most first
    assert sum(numbers.speaker_hours.values()) == pytest.approx(sum(map(sum, LENGTHS.values())) / 75 / 3600)
    some = statistics(pack, max_counted=2)
    assert some.n_counted == 2
    assert some.code_counts.sum() == (30 + 60) * 8  # the first and the last
    assert len(some.seconds) == 5


def test_perplexity():
    none = np.zeros(0)
    counts = np.array([[5, 5, 5, 5], [7, 7, 0, 0], [9, 0, 0, 0], [0, 0, 0, 0]])
    numbers = PackStatistics(none, none, {}, np.zeros(1, int), counts, 1)
    assert numbers.perplexity.tolist() == pytest.approx([4, 2, 1, 1])
    assert numbers.used_share.tolist() == [1, 0.5, 0.25, 0]


def test_the_page(make_pack, codec, capsys):
    pytest.importorskip("matplotlib")
    folder = make_pack(LENGTHS, fingerprint=codec.fingerprint(), aligned=True)
    assert main([str(folder), "--examples", "3"]) == 0
    told = capsys.readouterr()
    assert re.search(r"^train +4 +0\.00 +2 ", told.out, re.MULTILINE)
    assert not told.err
    page = (folder / "inspect" / "index.html").read_text()
    files = re.findall(r'src="([^"]*)"', page)
    assert len(files) == 5 + 3
    for name in files:
        assert (folder / "inspect" / name).stat().st_size > 1000
    assert not re.search("https?:", page)
    assert "<script" not in page
    assert page.count('class="example"') == 3
    assert page.count('class="strip"') == 3
    seconds = [float(x) for x in re.findall(r"([\d.]+) s, \d+ phonemes", page)]
    for name, s in zip((n for n in files if n.endswith(".wav")), seconds, strict=True):
        info = soundfile.info(folder / "inspect" / name)
        assert info.duration == pytest.approx(s, abs=0.01)
        assert info.samplerate == codec.sample_rate
        assert read_provenance(folder / "inspect" / name)["model"] == "codec reconstruction"


def test_without_its_codec_the_page_is_silent(make_pack, codec, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    folder = make_pack({"train": [60, 80]}, n_speakers=1)
    values = json.loads((folder / INFO_FILE).read_text())
    values["speakers"] = ["<b>$x_1$</b> & 你好" + "x" * 100]  # names may hold anything
    values["rejected"] = {"train": {"<script>": 1}}
    (folder / INFO_FILE).write_text(json.dumps(values))
    assert main([str(folder), "--out", str(tmp_path / "page")]) == 0
    assert "give its folder with --codec" in capsys.readouterr().err
    page = (tmp_path / "page" / "index.html").read_text()
    assert "give its folder with --codec" in page
    assert "<audio" not in page
    assert 'class="strip"' not in page  # nor is it aligned
    assert "<script" not in page
    assert "&lt;b&gt;$x_1$" in page
    with pytest.raises(ValleError, match=r"c0dec, but .* is needed"):
        find_codec(Pack(folder), EMBEDDED / "codec")
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValleError, match="cannot be made"):
        main([str(folder), "--out", str(tmp_path / "taken")])
    with pytest.raises(ValleError, match="not a packed dataset"):
        main([str(tmp_path)])


def test_examples_are_drawn_by_their_seed(make_pack, tmp_path):
    pack = Pack(make_pack({"train": list(range(10, 40)), "dev": [20] * 9}))
    drawn = [[e.id for e in draw_examples(pack, tmp_path, seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10
    assert len(draw_examples(pack, tmp_path, n=100)) == 39
    assert not list(tmp_path.glob("*.wav"))
