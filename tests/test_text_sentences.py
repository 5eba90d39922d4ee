"""Where a text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valle.errors import ValleError
from valle.text import normalise, split_sentences

SENTENCES = [
    ["Hello there.", "How are you?", "Fine!"],
    ["hello there.", "how are you?"],
    ["Dr. Smith met Mr. Lee at 3.5 p.m. on Main St. in Boston.", "He left."],
    ["He works in the U.S. Army.", "She does not."],
    ["He left the U.S.", "He came back."],
    ["J. R. R. Tolkien wrote it.", "So did I.", "Then we read it."],
    ["See No. 5, p. 3 and fig. 2.", "No.", "That is all."],
    ["Cats, dogs, etc. are animals.", "Cats, dogs, etc.", "They are animals."],
    ['"Stop!" he said.', '"Why?"', "She ran."],
    ['He said "I will go."', '"Now?"', "Yes."],
    ["Well… perhaps.", "Wait…", "What?!", "Yes!!"],
    ["It is 3.14, not 3.15.", "Is it?"],
    ["e.g. this one.", "That one."],
    ["你好，世界。", "你叫什么名字？", "我很好！"],
    ["「元気ですか。」", "はい。"],
    ["यह एक वाक्य है।", "यह दूसरा है।"],
    ["كيف حالك؟", "أنا بخير."],
    ["He joined the f.b.i.", "Smith left."],
    ["one"],
]


@pytest.mark.parametrize("sentences", SENTENCES)
def test_a_text_is_cut_at_the_ends_of_its_sentences(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == sentences
    assert split_sentences("\n\n".join(sentences)) == sentences


def test_scripts_without_spaces_are_cut_too() -> None:
    assert split_sentences("你好，世界。你好吗？很好") == ["你好，世界。", "你好吗？", "很好"]


def test_paragraphs_are_cut_and_lines_are_not() -> None:
    assert split_sentences("A title\n\nIts text\ngoes on") == ["A title", "Its text\ngoes on"]


def test_a_long_sentence_is_cut_at_the_clause_nearest_its_middle_then_at_spaces_then_anywhere() -> None:
    assert split_sentences("one two three, four five six, seven", 20) == ["one two three,", "four five six, seven"]
    assert split_sentences("one two three four", 10) == ["one two", "three four"]
    assert split_sentences("abcdefgh", 4) == ["abcd", "efgh"]
    assert split_sentences("今天天气很好，我们去公园吧", 8) == ["今天天气很好，", "我们去公园吧"]


def test_nothing_gives_no_sentence_and_no_room_is_an_error() -> None:
    assert split_sentences(" \n\n ") == []
    with pytest.raises(ValleError, match="max_chars is 0"):
        split_sentences("a", 0)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text("aAI.!?,;…。，\"' \n", max_size=200), st.integers(1, 50))
def test_nothing_is_lost_and_nothing_is_too_long(text: str, max_chars: int) -> None:
    pieces = split_sentences(text, max_chars)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= max_chars and piece == piece.strip() for piece in pieces)


def test_ten_thousand_characters_are_split_fast_and_evenly() -> None:
    text = normalise("This is a long text without any end, that goes on and on " * 200)
    pieces = split_sentences(text, 200)
    assert all(50 < len(piece) <= 200 for piece in pieces)
