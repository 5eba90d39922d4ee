"""Lists of others as trials: Seed-TTS-eval's and F5-TTS's for LibriSpeech-PC."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from eval_helpers import speechlike

from valle.errors import ValleError
from valle.eval.lists import read_list
from valle.eval.trials import load_trials, save_trials


def write(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speechlike(seconds, rate=16000), 16000)


def test_seed_tts_eval(tmp_path: Path) -> None:
    write(tmp_path / "prompt-wavs" / "p1.wav", 2.0)
    write(tmp_path / "wavs" / "u1.wav", 3.0)
    write(tmp_path / "elsewhere" / "u2.wav", 1.5)
    path = tmp_path / "meta.lst"
    path.write_text(
        "u1|We asked over twenty people.|prompt-wavs/p1.wav|I'm never more aware.\n\n"
        "u2|We asked over twenty people.|prompt-wavs/p1.wav| It is good. |elsewhere/u2.wav\n"
    )
    trials = read_list(path, tmp_path, seed=0)
    assert [t.id for t in trials] == ["u1", "u2"]
    first, second = trials
    assert (first.target, first.target_s, first.prompt, first.prompt_s) == ("wavs/u1.wav", 3, "prompt-wavs/p1.wav", 2)
    assert (first.text, first.prompt_text) == ("I'm never more aware.", "We asked over twenty people.")
    assert (second.text, second.target) == ("It is good.", "elsewhere/u2.wav")
    assert (first.speaker, first.dataset) == ("p1", "seed-tts-eval")
    assert not first.continual
    # A seed is the trial's own, whatever else is in the list.
    path.write_text(path.read_text().splitlines()[2] + "\n")
    assert read_list(path, tmp_path, seed=0) == [second]
    assert read_list(path, tmp_path, seed=1)[0].seed != second.seed
    save_trials(tmp_path / "trials.jsonl", trials)
    assert load_trials(tmp_path / "trials.jsonl") == trials


def test_librispeech_pc_of_f5(tmp_path: Path) -> None:
    write(tmp_path / "61" / "70968" / "61-70968-0000.flac", 4.0)
    write(tmp_path / "61" / "70970" / "61-70970-0003.flac", 2.5)
    path = tmp_path / "cross.lst"
    path.write_text("61-70970-0003\t2.5\tThat's what you mean\"!\t61-70968-0000\t9.9\tHe began a confused complaint.\n")
    (trial,) = read_list(path, tmp_path)
    assert trial.id == "61-70968-0000_61-70970-0003"
    assert trial.target == "61/70968/61-70968-0000.flac"
    assert trial.prompt == "61/70970/61-70970-0003.flac"
    assert (trial.target_s, trial.prompt_s) == (4, 2.5)  # of the files, not of the list
    assert (trial.speaker, trial.dataset, trial.text) == ("61", "librispeech-pc", "He began a confused complaint.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no trial"),
        ("a|b|c\n", "line 1 has neither the form name"),
        ("a|b|c|d|e|f\n", "line 1 has neither the form name"),
        ("1-2-3\t1\tx\t1-2\t1\ty\n", "line 1 has not the six columns"),
        ("1-2-3\t1\tx\t1-2-4\t1\ty\nfoo\n", r"line 1: there is no recording .*1-2-4\.flac; give --manifest"),
        ("u|x|p.wav|y\n", r"line 1: there is no recording .*wavs/u\.wav; give --manifest the folder"),
    ],
)
def test_wrong_lists_are_told_by_their_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "meta.lst").write_text(text)
    with pytest.raises(ValleError, match=said):
        read_list(tmp_path / "meta.lst", tmp_path)
    with pytest.raises(ValleError, match="there is no list of trials"):
        read_list(tmp_path / "none.lst", tmp_path)
