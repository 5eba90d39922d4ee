"""Alignments word by word, and the sentences that were understood worst."""

from __future__ import annotations

from dataclasses import replace

import pytest

from valle.eval.hard_cases import describe_cases, hard_cases, show_alignment
from valle.eval.trials import Trial
from valle.eval.wer import AlignedWord, align_words, word_errors

TRIAL = Trial("a", "ann", "d", "", "t.wav", 4.0, "p.wav", "p", 3.0, 0)


def record(text: str, heard: str, stop: str = "eos") -> dict[str, object]:
    return {"wer": word_errors(text, heard).to_dict(), "stop": stop}


@pytest.mark.parametrize(
    ("reference", "hypothesis", "marks"),
    [
        ("the cat sat", "the cat sat", ["", "", ""]),
        ("the cat sat", "the bat sat down", ["", "S", "", "I"]),
        ("the cat sat on the mat", "the cat on the mat", ["", "", "D", "", "", ""]),
        ("the cat", "", ["D", "D"]),
        ("", "what is this", ["I", "I", "I"]),
        ("", "", []),
    ],
)
def test_alignment_by_hand(reference: str, hypothesis: str, marks: list[str]) -> None:
    words = align_words(reference, hypothesis)
    assert [word.mark for word in words] == marks
    assert " ".join(w.reference for w in words if w.reference) == reference
    assert " ".join(w.hypothesis for w in words if w.hypothesis) == hypothesis
    counted = word_errors(reference, hypothesis)
    assert [marks.count(mark) for mark in "SDI"] == [counted.substitutions, counted.deletions, counted.insertions]


def test_alignment_stands_in_columns() -> None:
    words = [AlignedWord("", "the", "the"), AlignedWord("S", "cat", "battle"), AlignedWord("I", "", "is")]
    assert show_alignment([*words, AlignedWord("D", "sat", "")]) == (
        "text   the cat    ** sat\nheard  the battle is ***\n           S      I  D"
    )
    wide = show_alignment([AlignedWord("", "word" * 5, "word" * 5)] * 9).splitlines()
    assert max(map(len, wide)) <= 110
    assert sum(line.startswith("text") for line in wide) == 3
    assert sum(line.count("word" * 5) for line in wide) == 18


def test_the_worst_come_first_each_by_its_worst_run() -> None:
    trials = [replace(TRIAL, id=name) for name in "abcd"]
    runs = [
        [record("one fine day", "one fine day"), record("one fine day", "one fine day")],
        [record("the cat sat here", "the cat sat"), record("the cat sat here", "cat", "max_frames")],
        [record("a very long sentence of seven words", "a very long sentence"), {"wer": None}],
        [record("dogs do", "dogs do not"), record("dogs do", "dogs do")],
    ]
    cases = hard_cases(trials, runs, 9)
    assert [(c["trial"], c["run"]) for c in cases] == [("b", 2), ("c", 1), ("d", 1)]
    assert cases[0]["alignment"] == [["D", "the", ""], ["", "cat", "cat"], ["D", "sat", ""], ["D", "here", ""]]
    assert hard_cases(trials, runs, 1) == cases[:1]
    text = describe_cases(cases, "parrot", 2)
    assert "The 3 with most errors of parrot" in text
    assert "b (run 2): D 3 of 4 words, ended by max_frames\ntext   the cat sat here\nheard  *** cat *** ****" in text
    assert "d: I 1 of 2 words" in describe_cases(cases, "parrot", 1)
    assert describe_cases([], "parrot", 1) == ""
