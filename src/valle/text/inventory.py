"""The fixed list of phoneme symbols, whose positions are rows of the models' embeddings.

The paper (section 4.1) speaks of phonemes and leaves the set open. Here a symbol is one Unicode character of the
International Phonetic Alphabet, so that a diphthong ("aɪ"), an affricate ("tʃ") or a long vowel ("ɜː") is two symbols,
and stress, length, tone and diacritics are symbols of their own. Such a set is closed: it holds every language that
espeak speaks, also those whose phonemes nobody has listed, and a language seen little shares its symbols with the
others. The price is an English sequence 9 % longer than with one symbol a phoneme and one a stress mark; what a phoneme
is can still be told from it, because a modifier follows its letter.

The list is written out below and never derived from data: a new corpus renumbers nothing. A change of the list is a new
version; a file written with another version still loads, since it holds its own list.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from valle.errors import ValleError
from valle.files import write_atomic

WORD_BOUNDARY = " "
PUNCTUATION = ".,!?;:—…"

PHONE, MARK, PAUSE = 0, 1, 2
"""Kinds of symbols: a sound, which lasts; stress, length, tone, tie or diacritic, which is no sound of its own; the
boundary of a word or sentence punctuation, at which there may be silence."""

# NOTE: the order is part of "ipa-1". Append nothing here; write "ipa-2".
_IPA_1 = (
    WORD_BOUNDARY
    + PUNCTUATION
    + "ˈˌːˑ"  # stress, length
    + "abcdefhijklmnopqrstuvwxyz"  # no "g": the IPA letter is "ɡ"
    + "æçðøħŋœɐɑɒɓɔɕɖɗɘəɚɛɜɝɞɟɠɡɢɣɤɥɦɧɨɩɪɫɬɭɮɯɰɱɲɳɴɵɶɸɹɺɻɽɾʀʁʂʃʄʇʈʉʊʋʌʍʎʏʐʑʒʔʕʘʙʛʜʝʟʡʢǀǁǂǃᵻᵿβθχ"
    + "ʰʱʲʷˠˤʼ˞ˀᵐᵑᵝⁿˡ"  # modifiers: aspirated, palatalised, labialised, ejective, rhotic, prenasalised ...
    + "\u0303\u0329\u032f\u0325\u030a\u032c\u0324\u0330\u032a\u033a\u033b\u031f\u0320\u0308\u033d\u031e\u031d"
    + "\u0318\u0319\u0339\u031c\u0334\u031a\u0306\u0361\u035c"  # diacritics and ties
    + "012345678˥˦˧˨˩"  # tones, as digits (which is how espeak writes them) and as letters
)


@dataclass(frozen=True)
class PhonemeInventory:
    """A versioned list of symbols; an id is a position. Padding, beginning and end are not in it: models own those."""

    version: str = "ipa-1"
    """Which list this is; stored with each model."""
    symbols: tuple[str, ...] = tuple(_IPA_1)
    """Every symbol, in the order of the ids."""
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {symbol: i for i, symbol in enumerate(self.symbols)})
        if len(self._ids) != len(self.symbols):
            twice = ", ".join(repr(s) for s in self._ids if self.symbols.count(s) > 1)
            raise ValleError(f"the phoneme inventory {self.version!r} lists {twice} more than once")

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._ids

    @property
    def kinds(self) -> tuple[int, ...]:
        """PHONE, MARK or PAUSE for each id; it follows from the symbols, so no file holds it."""
        return tuple(_kind(symbol) for symbol in self.symbols)

    def encode(self, symbols: Iterable[str]) -> list[int]:
        """Symbols to ids.

        Raises:
            ValleError: a symbol is not in the inventory; the sentence names each such symbol and its code points.
        """
        symbols = list(symbols)
        try:
            return [self._ids[symbol] for symbol in symbols]
        except KeyError:
            unknown = dict.fromkeys(symbol for symbol in symbols if symbol not in self._ids)
            names = ", ".join(f"{s!r} ({' '.join(f'U+{ord(c):04X}' for c in s)})" for s in unknown)
            raise ValleError(
                f"the phoneme inventory {self.version!r} has no {names}; it takes IPA symbols as valle.text.Phonemizer "
                f"gives them"
            ) from None

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Ids to symbols.

        Raises:
            ValleError: an id is not one of the inventory's.
        """
        for i in ids:
            if not 0 <= i < len(self.symbols):
                raise ValleError(
                    f"{i} is no phoneme id of the inventory {self.version!r}, which has 0 to {len(self.symbols) - 1}"
                )
        return [self.symbols[i] for i in ids]

    def save(self, path: str | Path) -> None:
        """Write ``{"version", "symbols"}`` as JSON."""
        content = json.dumps({"version": self.version, "symbols": self.symbols}, ensure_ascii=False)
        write_atomic(path, (content + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> PhonemeInventory:
        """Read what :meth:`save` wrote, of whatever version.

        Raises:
            ValleError: there is no such file, it is not a phoneme inventory, or it claims a known version and differs.
        """
        path = Path(path)
        if not path.is_file():
            raise ValleError(f"there is no phoneme inventory {path}; a model directory holds one as phonemes.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version, symbols = content["version"], content["symbols"]
            if not isinstance(version, str) or not isinstance(symbols, list):
                raise TypeError
            if not symbols or not all(isinstance(symbol, str) and symbol for symbol in symbols):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:  # ValueError: not JSON, or not UTF-8
            raise ValleError(
                f'{path} is not a phoneme inventory; it must be JSON like {{"version": "ipa-1", "symbols": [...]}}'
            ) from error
        inventory = cls(version, tuple(symbols))
        if version == DEFAULT_INVENTORY.version and inventory != DEFAULT_INVENTORY:
            raise ValleError(f"{path} says that it is {version!r} but its symbols differ; take the model's own file")
        return inventory


def _kind(symbol: str) -> int:
    """By Unicode's categories: modifiers (Lm, Sk, M) and digits (N) are marks; what else has a letter is a phone."""
    categories = [unicodedata.category(c) for c in symbol]
    if any(c in ("Ll", "Lu", "Lt", "Lo") for c in categories):
        return PHONE
    return MARK if any(c in ("Lm", "Sk") or c[0] in "MN" for c in categories) else PAUSE


DEFAULT_INVENTORY = PhonemeInventory()
