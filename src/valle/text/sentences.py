"""Long text to sentences that a model can say in one breath.

VALL-E is trained on utterances of 10 to 20 s (paper, section 5.1) and loses its place in much longer ones, so a text is
spoken sentence by sentence.
"""

from __future__ import annotations

import re

from valle.errors import ValleError
from valle.text import english_words as words

_CLOSING = "\"'”’»」』)]）】"
# Marks that end a sentence wherever they stand (scripts that put no space after them), and those that need a space.
_ENDS = re.compile(
    rf"(?:[。！？｡]+[{re.escape(_CLOSING)}]*|[.!?…।॥؟۔։።។။]+[{re.escape(_CLOSING)}]*(?=\s|$)|\n\s*\n)\s*"
)
_CLAUSE = re.compile(rf"(?:[,;:…—][{re.escape(_CLOSING)}]*(?=\s)|[，、；：،؛፣])\s*")
_LAST_WORD = re.compile(r"([^\s\"'(\[“‘]+)$")
_NO_END = frozenset(words.TITLES) | frozenset(words.BEFORE_NUMBER)
_MAYBE_END = frozenset(words.ABBREVIATIONS) | frozenset(words.MONTH_OF) | {"St", "e.g", "i.e", "a.m", "p.m", "Ph.D"}


def split_sentences(text: str, max_chars: int = 200) -> list[str]:
    """Sentences of at most ``max_chars`` characters, in order; no character but white space is lost.

    A full stop ends no sentence after an abbreviation or an initial, nor inside a number. A sentence that is too long
    is halved, and halved again, at the clause mark nearest its middle, or else at a space, or else between characters.

    Raises:
        ValleError: ``max_chars`` is below 1.
    """
    if max_chars < 1:
        raise ValleError(f"max_chars is {max_chars}; at least 1 is needed, 200 is usual")
    sentences: list[str] = []
    start = 0
    for match in _ENDS.finditer(text):
        if _is_end(text, match):
            sentences.append(text[start : match.end()])
            start = match.end()
    sentences.append(text[start:])
    return [piece for sentence in sentences if (s := sentence.strip()) for piece in _halve(s, max_chars)]


def _is_end(text: str, match: re.Match[str]) -> bool:
    marks, following = match[0].strip(), text[match.end() :].lstrip("\"'“‘«([")
    if not marks or marks[0] in "。！？｡।॥؟۔։።។။":
        return True
    goes_on = following[:1].islower()
    if marks.rstrip(_CLOSING) != "." or len(marks) > 1:
        # "Stop!" he said; well… yes; he left (why?) and ...
        return not (goes_on and (marks[-1] in _CLOSING or "…" in marks or ".." in marks))
    last = _LAST_WORD.search(text, 0, match.start())
    word = last[1] if last else ""
    if word in _NO_END:
        return word.lower() in ("no", "p", "c") and not following[:1].isdigit()
    initial = len(word) == 1 and word.isalpha() and word.isupper() and word != "I"
    if initial or word in _MAYBE_END or re.fullmatch(r"(?:[A-Z]\.)+[A-Z]", word):
        next_word = re.match(r"[\w']*", following)
        return not following or (next_word is not None and next_word[0] in words.SENTENCE_STARTERS)
    return True


def _halve(sentence: str, max_chars: int) -> list[str]:
    if len(sentence) <= max_chars:
        return [sentence]
    middle = len(sentence) / 2
    clauses = [m.end() for m in _CLAUSE.finditer(sentence) if 0.2 < m.end() / len(sentence) < 0.8]
    spaces = [m.end() for m in re.finditer(r"\s+", sentence)]
    cut = min(clauses or spaces or [len(sentence) // 2], key=lambda c: abs(c - middle))
    halves = sentence[:cut].strip(), sentence[cut:].strip()
    return [piece for half in halves if half for piece in _halve(half, max_chars)]
