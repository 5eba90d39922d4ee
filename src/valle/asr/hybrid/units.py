"""Units of speech: the phones of the project's phonemiser, each with its length, silence, and noise if wanted.

A unit is a letter of ``valle.text.DEFAULT_INVENTORY`` with the mark of length that follows it; stress and other marks
are not heard apart. Phones that training has hardly seen are taken for the nearest that it has, so that any word of any
language has a pronunciation. Noise is what is heard where nothing is said, such as breaths and clicks; after it a phone
is taken to sound as after silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from valle.errors import ValleError
from valle.text import DEFAULT_INVENTORY, PAUSE, PHONE

SILENCE, NOISE = "SIL", "NSN"
SILENCE_ID, NOISE_ID = 0, 1
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
    """The units of a model; an id is a position, silence is 0, noise 1 where there is such a unit."""

    names: tuple[str, ...]
    """``SIL``, ``NSN`` if wanted, then phones such as ``t`` and ``iː``."""
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.names or self.names[0] != SILENCE or len(set(self.names)) != len(self.names):
            raise ValleError(f"the units {self.names[:3]}... must begin with {SILENCE} and hold each name once")
        if NOISE in self.names[2:]:
            raise ValleError(f"the unit {NOISE} is at {self.names.index(NOISE)}; it must come after {SILENCE}")
        if len(self.names) == self.first_phone:
            raise ValleError("there is no unit but silence; give texts with words")
        object.__setattr__(self, "_ids", {name: i for i, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_noise(self) -> bool:
        """Whether there is a unit for noise."""
        return NOISE in self.names[:2]

    @property
    def first_phone(self) -> int:
        """The id from which on units are phones."""
        return 1 + self.has_noise

    @classmethod
    def seen_in(cls, texts: Iterable[Sequence[str]], min_count: int = 1, noise: bool = False) -> Units:
        """Those that phonemised texts hold ``min_count`` times at least; all of them when none is that frequent.

        With ``noise`` there is a unit for it too.

        Raises:
            ValleError: no text has a phone.
        """
        counts = Counter(name for symbols in texts for name, _ in _names(symbols))
        kept = sorted(name for name, n in counts.items() if n >= min_count) or sorted(counts)
        return cls((SILENCE, *([NOISE] if noise else []), *kept))

    def of(self, symbols: Sequence[str]) -> list[Spoken]:
        """The units of a phonemised text, in order."""
        return [Spoken(self._find(name), position) for name, position in _names(symbols)]

    def _find(self, name: str) -> int:
        if name not in self._ids:
            base = name[0]
            found = self._ids.get(base) or self._ids.get(base + _LONG)
            if found is None:
                wanted = _features(base)
                candidates = range(self.first_phone, len(self.names))
                found = max(candidates, key=lambda i: (_likeness(wanted, _features(self.names[i][0])), -i))
            self._ids[name] = found
        return self._ids[name]

    def questions(self) -> list[tuple[str, frozenset[int]]]:
        """Sets of units that a decision tree may ask for: silence, each phonetic class, long ones, each unit.

        Noise is in the set of silence and in no other, so that no question tells them apart.
        """
        phones = list(enumerate(self.names))[self.first_phone :]
        sets = [(name, frozenset(i for i, n in phones if n[0] in s)) for name, s in FEATURES.items()]
        sets.append(("long", frozenset(i for i, n in phones if n.endswith(_LONG))))
        sets.append((SILENCE, frozenset(range(self.first_phone))))
        sets += [(n, frozenset([i])) for i, n in phones]
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
