"""Lists of words, and of pairs of words, with how often each is used: ``word count`` or ``word word count`` a line."""

from __future__ import annotations

import math
from pathlib import Path

from valle.asr.hybrid.lexicon import is_word
from valle.asr.hybrid.lm import Gram
from valle.data.sources import need
from valle.errors import ValleError

SYMSPELL = "symspellpy"
"""The lists in the package of that name (MIT): Google Books' counts (CC BY 3.0) of the words in SCOWL."""
_SYMSPELL_FILES = {1: "frequency_dictionary_en_82_765.txt", 2: "frequency_bigramdictionary_en_243_342.txt"}


def read_list(where: str, n_words: int) -> dict[Gram, float]:
    """The grams of ``n_words`` words in a list, with their counts.

    Raises:
        ValleError: it cannot be read, or a line is not words and a count.
    """
    if where == SYMSPELL:
        package = need(SYMSPELL, "the list of words", "asr")
        path = Path(package.__file__).parent / _SYMSPELL_FILES[n_words]
    else:
        path = Path(where)
    found: dict[Gram, float] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValleError(f"the list of words {path} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.lower().split()
        if not parts:
            continue
        try:
            count = float(parts[-1])
        except ValueError:
            count = math.nan
        if len(parts) != n_words + 1 or not count >= 0:
            shape = " ".join(["word"] * n_words)
            raise ValleError(f"{path}, line {number} is {line[:60]!r}; it must be `{shape} count`")
        gram = tuple(parts[:-1])
        if all(is_word(w) for w in gram):
            found[gram] = found.get(gram, 0.0) + count
    return found
