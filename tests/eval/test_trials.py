"""The protocol's list: same for the same seed, one speaker in each trial, another sentence as prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from valle.data.corpus import Utterance
from valle.errors import ValleError
from valle.eval.trials import Trial, draw_continual, draw_trials, load_trials, save_trials, spread

FOLDER = Path("corpus")


def utterance(speaker: str | None, i: int, seconds: float, text: str | None = "") -> Utterance:
    own = f"words {i} of {speaker}" if text == "" else text
    return Utterance(f"{speaker}-{i}", FOLDER / f"{speaker}/{i}.opus", seconds, "test", own, speaker, dataset="d")


# Three speakers with six targets of 4 to 10 s and six prompts of about 3 s each, and what must never be drawn.
CORPUS = [
    *(utterance(s, i, 4.0 + i) for s in "abc" for i in range(6)),
    *(utterance(s, 10 + i, 2.6 + 0.2 * i) for s in "abc" for i in range(6)),
    utterance("alone", 0, 5.0),
    utterance(None, 0, 5.0),
    utterance("a", 99, 5.0, text=None),
]


def test_one_seed_one_list() -> None:
    trials = draw_trials(CORPUS, 12, folder=FOLDER, seed=1)
    assert trials == draw_trials(CORPUS, 12, folder=FOLDER, seed=1)
    assert trials != draw_trials(CORPUS, 12, folder=FOLDER, seed=2)
    assert len({t.seed for t in trials}) == 12


@pytest.mark.parametrize("seed", range(5))
def test_prompt_is_another_sentence_of_the_speaker(seed: int) -> None:
    by_path = {u.path.relative_to(FOLDER).as_posix(): u for u in CORPUS}
    for trial in draw_trials(CORPUS, 18, folder=FOLDER, seed=seed):
        target, prompt = by_path[trial.target], by_path[trial.prompt]
        assert target.speaker == prompt.speaker == trial.speaker
        assert trial.prompt != trial.target
        assert (trial.text, trial.prompt_text) == (target.text, prompt.text)
        assert (trial.target_s, trial.prompt_s) == (target.seconds, prompt.seconds)


def test_lengths_are_the_protocols_while_there_are_any() -> None:
    trials = draw_trials(CORPUS, 18, folder=FOLDER)
    assert all(4 <= t.target_s <= 10 for t in trials)
    assert all(2.5 <= t.prompt_s <= 4.5 for t in trials)
    assert Counter(t.speaker for t in trials) == {"a": 6, "b": 6, "c": 6}
    assert len({t.target for t in trials}) == 18
    more = draw_trials(CORPUS, 100, folder=FOLDER)
    assert more[:18] == trials
    assert len(more) == 36  # every utterance with text of a speaker who has two
    assert not any(4 <= t.target_s <= 10 for t in more[18:])


def test_prompt_nearest_to_the_length_where_none_fits() -> None:
    corpus = [utterance("a", i, seconds) for i, seconds in enumerate((5.0, 7.0, 9.0, 6.5))]
    for trial in draw_trials(corpus, 4, folder=FOLDER, prompt_s=3.0):
        assert trial.prompt_s == (6.5 if trial.target_s == 5.0 else 5.0)


def test_prompt_never_says_the_target() -> None:
    corpus = [utterance("a", i, 3.0 + i, text=text) for i, text in enumerate(("Yes.", "yes.", "No."))]
    trials = draw_trials(corpus, 3, folder=FOLDER)
    assert all(t.text.casefold() != t.prompt_text.casefold() for t in trials)
    with pytest.raises(ValleError, match="no speaker of the 2 utterances has two with different texts"):
        draw_trials(corpus[:2], 3, folder=FOLDER)


def test_list_goes_to_disk_and_back(tmp_path: Path) -> None:
    trials = draw_trials(CORPUS, 5, folder=FOLDER)
    trials[0] = replace(trials[0], text="naïve “quotes”")
    save_trials(tmp_path / "trials.jsonl", trials)
    assert load_trials(tmp_path / "trials.jsonl") == trials


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no list"), ("", "holds no trial"), ("{", "line 1 is not JSON"), ('{"id": 3}', "line 1: id is 3")],
)
def test_wrong_lists_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "trials.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValleError, match=message):
        load_trials(path)


def test_trials_know_no_machine() -> None:
    trial = draw_trials(CORPUS, 1, folder=FOLDER)[0]
    assert isinstance(trial, Trial)
    assert not Path(trial.target).is_absolute()
    assert not trial.target.startswith("corpus")


def test_spread_is_even_over_speakers() -> None:
    chosen = spread(CORPUS, 9)
    assert chosen == spread(CORPUS, 9)
    assert len({u.id for u in chosen}) == 9
    assert Counter(u.speaker for u in chosen) == {"a": 3, "b": 2, "c": 2, "alone": 1, None: 1}
    # Over each speaker's own too: not only the first ones.
    assert [u.id for u in chosen if u.speaker == "b"] == ["b-0", "b-10"]
    assert spread(CORPUS, None) == spread(CORPUS, 1000) == CORPUS


def test_recordings_outside_of_the_manifests_folder_are_named_whole(tmp_path: Path) -> None:
    elsewhere = [replace(u, path=(tmp_path / "other" / u.path.name)) for u in CORPUS]
    folder = tmp_path / "lists"
    for trial in [
        *draw_trials(elsewhere, 4, folder=folder, seed=1),
        *draw_continual(elsewhere, 4, folder=folder, seed=1),
    ]:
        assert folder / trial.target in {u.path for u in elsewhere}
        assert folder / trial.prompt in {u.path for u in elsewhere}
