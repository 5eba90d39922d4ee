"""Units of speech: the phones of the project's phonemiser, each with its length, and silence.

A unit is a letter of ``valle.text.DEFAULT_INVENTORY`` with the mark of length that follows it; stress and other marks
are not heard apart. Phones that training has hardly seen are taken for the nearest that it has, so that any word of any
language has a pronunciation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from valle.errors import ValleError
from valle.text import DEFAULT_INVENTORY, PAUSE, PHONE

SILENCE = "SIL"
SILENCE_ID = 0
_LONG = "ː"

FEATURES: dict[str, str] = {
    "vowel": "aeiouyæøœɐɑɒɓɔɘəɚɛɜɝɞɤɨɪɯɵɶʉʊʌᵻᵿ",
    "high": "iyɨʉɯuɪʊᵻᵿ",
    "mid": "eøɘɵɤoəɚɛœɜɝɞʌɔɐ",
    "low": "æaɶɑɒɐ",
    "front": "iyeøɛœæaɶɪᵻ",
    "back": "ɯuɤoʌɔɑɒʊᵿ",
    "central": "ɨʉɘɵəɚɜɝɞɐᵻ",
    "round": "yøœɶuoɔɒʊʉɵɞᵿw",
    "rhotic": "ɚɝɹɻrɾɽʀʁ",
    "stop": "pbtdʈɖcɟkɡqɢʔɓɗɠɾ",
    "fricative": "fvθðszʃʒʂʐçʝxɣχʁħʕhɦɸβɕʑɬɮ",
    "sibilant": "szʃʒʂʐɕʑ",
    "nasal": "mnŋɲɳɴɱ",
    "liquid": "lɹɻrɾɽɭʎʟʀɫ",
    "glide": "wjɥɰʋʍ",
    "labial": "pbmfvwɸβɱʋʍɓ",
    "dental": "θð",
    "alveolar": "tdnszlɹrɾɬɮɗɫ",
    "palatal": "ʃʒcɟɲjçʝʎɕʑʂʐʈɖɳɻɽɭ",
    "velar": "kɡŋxɣwɰɠʟqɢɴχʁ",
    "glottal": "hɦʔħʕ",
    "voiced": "bdɖɟɡɢvðzʒʐʝɣʁɦmnŋɲɳɴɱlɹɻrɾɽɭʎʟwjɥɰʋɓɗɠβʑ",
}
"""What phones have in common: the questions of the decision tree, and what tells which phone is nearest."""


class Spoken(NamedTuple):
    """One unit of a text."""

    unit: int
    """Which."""
    position: int
    """Of its letter in the phonemes."""


@dataclass(frozen=True)
class Units:
    """The units of a model; an id is a position, silence is 0."""

    names: tuple[str, ...]
    """``SIL``, then phones such as ``t`` and ``iː``."""
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.names or self.names[0] != SILENCE or len(set(self.names)) != len(self.names):
            raise ValleError(f"the units {self.names[:3]}... must begin with {SILENCE} and hold each name once")
        if len(self.names) < 2:
            raise ValleError("there is no unit but silence; give texts with words")
        object.__setattr__(self, "_ids", {name: i for i, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def seen_in(cls, texts: Iterable[Sequence[str]], min_count: int = 1) -> Units:
        """Those that phonemised texts hold ``min_count`` times at least; all of them when none is that frequent.

        Raises:
            ValleError: no text has a phone.
        """
        counts = Counter(name for symbols in texts for name, _ in _names(symbols))
        kept = sorted(name for name, n in counts.items() if n >= min_count) or sorted(counts)
        return cls((SILENCE, *kept))

    def of(self, symbols: Sequence[str]) -> list[Spoken]:
        """The units of a phonemised text, in order."""
        return [Spoken(self._find(name), position) for name, position in _names(symbols)]

    def _find(self, name: str) -> int:
        if name not in self._ids:
            base = name[0]
            found = self._ids.get(base) or self._ids.get(base + _LONG)
            if found is None:
                wanted = _features(base)
                candidates = range(1, len(self.names))
                found = max(candidates, key=lambda i: (_likeness(wanted, _features(self.names[i][0])), -i))
            self._ids[name] = found
        return self._ids[name]

    def questions(self) -> list[tuple[str, frozenset[int]]]:
        """Sets of units that a decision tree may ask for: silence, each phonetic class, long ones, each unit."""
        sets = [
            (name, frozenset(i for i, n in enumerate(self.names) if i and n[0] in s)) for name, s in FEATURES.items()
        ]
        sets.append(("long", frozenset(i for i, n in enumerate(self.names) if n.endswith(_LONG))))
        sets += [(n, frozenset([i])) for i, n in enumerate(self.names)]
        return [(name, members) for name, members in dict(sets).items() if members]


def words_between(symbols: Sequence[str]) -> list[list[str]]:
    """A phonemised text cut at its pauses: the phonemes of each word."""
    kinds = DEFAULT_INVENTORY.kinds
    words: list[list[str]] = [[]]
    for symbol, i in zip(symbols, DEFAULT_INVENTORY.encode(symbols), strict=True):
        if kinds[i] == PAUSE:
            words.append([])
        else:
            words[-1].append(symbol)
    return [w for w in words if w]


def _names(symbols: Sequence[str]) -> list[tuple[str, int]]:
    """(name, position of its letter) of each phone."""
    kinds = DEFAULT_INVENTORY.kinds
    ids = DEFAULT_INVENTORY.encode(symbols)
    found: list[tuple[str, int]] = []
    for position, (symbol, i) in enumerate(zip(symbols, ids, strict=True)):
        if kinds[i] == PHONE:
            is_long = position + 1 < len(symbols) and symbols[position + 1] == _LONG
            found.append((symbol + _LONG if is_long else symbol, position))
    return found


def _features(letter: str) -> frozenset[str]:
    return frozenset(name for name, members in FEATURES.items() if letter in members)


def _likeness(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared features over all; whether both are vowels weighs most."""
    same_class = ("vowel" in a) == ("vowel" in b)
    return len(a & b) / max(1, len(a | b)) + same_class
