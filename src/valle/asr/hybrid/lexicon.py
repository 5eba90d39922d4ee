"""Words and how they are said: the project's own phonemiser reads each, alone and as it stands in the texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from valle.asr.hybrid.units import Units, words_between
from valle.errors import ValleError
from valle.text import Phonemizer, normalise

Pronunciation = tuple[int, ...]
"""Units, without silence."""
Lexicon = dict[str, list[tuple[Pronunciation, float]]]
"""For each word its pronunciations and how often each is used, 1 for the most frequent."""

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_RARE = 0.1  # a pronunciation used less often than this beside the most frequent is left out
_BATCH = 200
_LONGEST = 40  # letters; espeak reads longer words letter by letter or not at all


def words_of(text: str, lang: str = "en-us") -> list[str]:
    """A text as a recogniser writes it: lower-case words, spelt out, without marks."""
    return [w for w in _WORD.findall(normalise(text, lang).lower()) if len(w) <= _LONGEST]


def is_word(text: str) -> bool:
    """Whether it is one word, as ``words_of`` writes them."""
    return len(text) <= _LONGEST and _WORD.fullmatch(text) is not None and text == text.lower()


def pronounce_alone(words: Iterable[str], lang: str = "en-us") -> dict[str, list[str]]:
    """The phonemes of each word said by itself; words that the phonemiser cannot read are left out."""
    phonemizer = Phonemizer(lang)
    found: dict[str, list[str]] = {}
    for batch in _batches(list(words), _BATCH):
        try:
            spoken = phonemizer.batch(batch)
        except ValleError:
            spoken = [_try(phonemizer, word) for word in batch]
        found.update({w: s for w, s in zip(batch, spoken, strict=True) if s})
    return found


def variants(said: Iterable[tuple[str, Sequence[str]]], lang: str = "en-us") -> dict[str, Counter[tuple[str, ...]]]:
    """How words are said within texts, counted, from the (text, phonemes) that have as many words as words of phonemes.

    espeak joins some short words ("of the"), so not all have.
    """
    found: dict[str, Counter[tuple[str, ...]]] = {}
    for text, symbols in said:
        words, spoken = words_of(text, lang), words_between(symbols)
        if len(words) == len(spoken):
            for word, of_word in zip(words, spoken, strict=True):
                found.setdefault(word, Counter())[tuple(of_word)] += 1
    return found


def make_lexicon(
    words: Iterable[str], units: Units, seen: dict[str, Counter[tuple[str, ...]]] | None = None, lang: str = "en-us"
) -> Lexicon:
    """Pronunciations of ``words``: those ``seen`` in texts, and how the phonemiser reads a word alone."""
    lexicon: Lexicon = {}
    alone = pronounce_alone(sorted(set(words)), lang)
    for word, symbols in alone.items():
        counts: Counter[Pronunciation] = Counter()
        counts[_units(units, symbols)] += 1
        for spoken, n in (seen or {}).get(word, Counter()).items():
            counts[_units(units, spoken)] += n
        counts.pop((), None)
        if counts:
            most = max(counts.values())
            lexicon[word] = [(p, n / most) for p, n in counts.most_common() if n >= _RARE * most]
    return lexicon


def _units(units: Units, symbols: Sequence[str]) -> Pronunciation:
    return tuple(s.unit for s in units.of(list(symbols)))


def _try(phonemizer: Phonemizer, word: str) -> list[str]:
    try:
        return phonemizer(word)
    except ValleError:
        return []


def _batches(items: Sequence[str], n: int) -> Iterator[list[str]]:
    for start in range(0, len(items), n):
        yield list(items[start : start + n])
