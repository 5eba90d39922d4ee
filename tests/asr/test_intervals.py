"""Alignments at 30 ms: nothing is lost, nothing overlaps, and boundaries stay where they are."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valle import cli
from valle.asr import Aligner, Alignment
from valle.asr.aligner import AlignerConfig
from valle.asr.intervals import FRAME_S, Interval, PhonemeAligner, align_at, intervals
from valle.audio import Audio
from valle.errors import ValleError
from valle.text import DEFAULT_INVENTORY


def test_boundaries_go_to_the_nearest_frame():
    # ends at 40, 40, 133, 146.7 ms
    assert intervals(torch.tensor([3, 0, 7, 1]), [5, 6, 7, 8]) == [
        Interval(5, 0, 1),
        Interval(6, 1, 1),
        Interval(7, 1, 4),
        Interval(8, 4, 5),
    ]
    same = intervals(torch.tensor([3, 0, 7, 1]), [5, 6, 7, 8], FRAME_S)
    assert same == [(5, 0, 3), (6, 3, 3), (7, 3, 10), (8, 10, 11)]
    assert intervals(torch.zeros(0, dtype=torch.int64), []) == []
    assert intervals(torch.zeros(2, dtype=torch.int64), [1, 2]) == [(1, 0, 0), (2, 0, 0)]


@settings(max_examples=200, deadline=None)
@given(
    durations=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    shift=st.sampled_from([0.005, 0.01, FRAME_S, 0.03, 0.1]),
)
def test_intervals_cover_all(durations, shift):
    found = intervals(torch.tensor(durations), range(len(durations)), shift)
    assert [i.phoneme for i in found] == list(range(len(durations)))
    position = 0
    for interval in found:
        assert interval.start_frame == position <= interval.end_frame
        position = interval.end_frame
    seconds = sum(durations) * FRAME_S
    assert -1e-6 <= position * shift - seconds < shift + 1e-6
    lasting = sum(n > 0 for n in durations)
    for interval, n in zip(found, durations, strict=True):
        assert interval.end_frame == interval.start_frame if n == 0 else True
        assert n == 0 or lasting > position or interval.end_frame > interval.start_frame
    if all(n * FRAME_S >= shift or n == 0 for n in durations):  # nobody has to give way
        ends = torch.tensor(durations).cumsum(0) * FRAME_S
        assert all(abs(i.end_frame * shift - float(e)) < shift for i, e in zip(found, ends, strict=True))


def test_any_aligner_will_do():
    class Halves:
        inventory_version = "test"

        def fingerprint(self):
            return "halves"

        def align(self, wav, phonemes):
            n = -(-wav.shape[1] // 320)
            return Alignment(torch.tensor([n // 2, n - n // 2]), 0.0)

    aligner: PhonemeAligner = Halves()
    assert align_at(aligner, torch.zeros(1, 14400), [1, 2]) == [(1, 0, 10), (2, 10, 20)]
    assert align_at(aligner, torch.zeros(1, 14400), [1, 2], 0.1) == [(1, 0, 3), (2, 3, 6)]
    with pytest.raises(ValleError, match="frame shift is 0 s"):
        align_at(aligner, torch.zeros(1, 14400), [1, 2], 0)


def test_the_command_prints_frames(tmp_path, capsys):
    aligner = Aligner(AlignerConfig(DEFAULT_INVENTORY.version, DEFAULT_INVENTORY.kinds, 1))
    aligner.units.clamp_(min=0)
    aligner.save(tmp_path / "aligner")
    Audio(0.1 * torch.randn(1, 24000, generator=torch.Generator().manual_seed(0)), 24000).save(tmp_path / "a.wav")
    command = ["asr", "align", str(tmp_path / "a.wav"), "--text", "Saw us.", "--aligner", str(tmp_path / "aligner")]
    assert cli.main([*command, "--frame-shift", "0.03"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert (rows[0][1], rows[-1][2]) == ("0", "34")
    assert cli.main([*command, "--frame-shift", "0.03", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frame_shift"] == 0.03
    assert [[s["symbol"], str(s["start_frame"]), str(s["end_frame"])] for s in report["symbols"]] == rows
    assert cli.main([*command, "--frame-shift", "7"]) == 2
    assert "frame shift is 7 s" in capsys.readouterr().err
