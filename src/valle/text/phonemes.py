"""Text to phonemes: espeak-ng through phonemizer, the same on every machine.

The paper's phonemes (section 5.1) come from its Kaldi recogniser. espeak has rules for a hundred languages and comes as
a wheel (``espeakng_loader``), so no system package is needed, and none is used, whatever is installed. Sentence
punctuation stays in the sequence, which the paper leaves open: it is the only sign of phrasing.

espeak is a C library with global state. One copy of it serves the whole process, made at the first call, behind a lock.
"""

from __future__ import annotations

import atexit
import functools
import logging
import re
import shutil
import tempfile
import threading
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from valle.errors import ValleError
from valle.text.inventory import DEFAULT_INVENTORY, PUNCTUATION, WORD_BOUNDARY
from valle.text.normalise import normalise

logger = logging.getLogger(__name__)

_ALIASES = {
    "en": "en-us", "fr": "fr-fr", "zh": "cmn", "zh-hk": "yue", "no": "nb", "nn": "nb", "iw": "he", "in": "id",
    "es-mx": "es-419", "es-ar": "es-419", "en-au": "en-gb", "en-ca": "en-us", "tl": "id",
}  # fmt: skip


class Phonemizer:
    """Text of one language to phoneme symbols. Threads may share one, and it can be pickled.

    The symbols are those of :data:`valle.text.DEFAULT_INVENTORY`: IPA with stress, " " between words, and the marks
    ``. , ! ? ; : — …`` right after the word that they follow. Where several marks meet, the weightiest stays. Brackets
    are commas; quotation marks, and marks before the first word, are dropped. A word that espeak takes for one of
    another language is read in that language.

    Args:
        lang: an espeak language ("en-us", "de", "pt-br") or a usual code that leads to one ("en", "zh", "de-AT").

    Raises:
        ValleError: no such language.
    """

    def __init__(self, lang: str = "en-us") -> None:
        self.lang = _voice(lang)

    def __call__(self, text: str) -> list[str]:
        """The symbols of ``text``, which is normalised first.

        Raises:
            ValleError: the text holds nothing that can be spoken.
        """
        return self.batch([text])[0]

    def batch(self, texts: Iterable[str]) -> list[list[str]]:
        """The symbols of each text, the same as one by one.

        Raises:
            ValleError: one of the texts holds nothing that can be spoken.
        """
        parts = [self._parts(text) for text in texts]
        with _LOCK:
            espeak = _espeak()
            if espeak.voice is None or espeak.voice.language != self.lang:
                espeak.set_voice(self.lang)
            batch = [_symbols(espeak, part) for part in parts]
        if [] in batch:
            raise ValleError(
                f"espeak reads nothing in {self.lang!r} from {''.join(parts[batch.index([])])!r}; check the language"
            )
        return batch

    def _parts(self, text: str) -> list[str]:
        """``text`` as words, marks, words, marks ... words; the first and the last may be empty."""
        said = normalise(text, self.lang)
        if not any(c.isalnum() for c in said):
            given = text if len(text) <= 40 else text[:39] + "…"
            raise ValleError(f"the text {given!r} has nothing that can be spoken; give at least one word")
        said = said.translate(_MARKS_OF_SCRIPTS)
        if self.lang in ("el", "grc"):
            said = said.replace(";", "?")  # the Greek question mark
        return _MARKS.split(said)


def languages() -> list[str]:
    """The codes of the languages that :class:`Phonemizer` takes, sorted."""
    with _LOCK:
        return sorted(_voices())


def _voice(lang: str) -> str:
    with _LOCK:
        voices = _voices()
    wanted = lang.strip().lower().replace("_", "-")
    for code in (wanted, wanted.split("-")[0]):
        code = _ALIASES.get(code, code)
        if code in voices:
            return voices[code]
    examples = "en-us, en-gb, de, es, fr-fr, it, pt-br, ru, cmn, hi"
    raise ValleError(f"the language {lang!r} is unknown; espeak has {len(voices)}, such as {examples}")


# --------------------------------------------------------------------------------------------------------------- espeak
_LOCK = threading.Lock()
# espeak keeps the path of its data in 160 characters; of a longer one it finds nothing, and ends the whole process.
_MAX_DATA_PATH = 150


@functools.cache
def _espeak() -> Any:
    """The process's one espeak (phonemizer copies the library for each, 10 ms). Call with the lock held."""
    import espeakng_loader
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    espeak_data = espeak_data_path(espeakng_loader.get_data_path())

    class Espeak(EspeakWrapper):  # type: ignore[misc]
        # The class's own, so that neither environment variables nor other users of phonemizer have a say.
        _ESPEAK_LIBRARY = espeakng_loader.get_library_path()
        data_path = espeak_data  # NOTE: the property that this replaces would resolve a link

    try:
        return Espeak()
    except (OSError, RuntimeError) as error:
        raise ValleError(
            f"espeak cannot be loaded ({error}); reinstall espeakng-loader, or set TMPDIR to another folder"
        ) from error


def espeak_data_path(path: str) -> Path:
    """Where espeak can read its data in ``path``: there, or by a link, since it forgets what is long of a path."""
    if len(path.encode()) <= _MAX_DATA_PATH:
        return Path(path)
    folder = tempfile.mkdtemp(prefix="valle-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    short = Path(folder) / "espeak-ng-data"
    try:
        short.symlink_to(path, target_is_directory=True)
    except OSError:  # Windows, without the right to make links
        shutil.copytree(path, short)
    return short


@functools.cache
def _voices() -> dict[str, str]:
    """Language codes in lower case -> as espeak writes them."""
    return {v.language.lower(): v.language for v in _espeak().available_voices() if "/mb" not in f"/{v.identifier}"}


# -------------------------------------------------------------------------------------------------------------- symbols
_WEIGHT = "?!.…;:—,"  # of marks that meet, the first of these stays
assert set(_WEIGHT) == set(PUNCTUATION)
_MARKS_OF_SCRIPTS = str.maketrans(
    dict.fromkeys("。｡।॥۔։።။។", ". ")
    | dict.fromkeys("、،፣", ", ")
    | dict.fromkeys('"¿¡', " ")
    | {"؟": "?", "؛": ";", "፤": ";", "፥": ":"}
)
# Marks, but not those inside 3,5 or 12:30 or u.s.a.
_MARKS = re.compile(r"((?:[!?;—…]|[,:](?!\d)|(?<!\d)[,:]|\.(?![^\W_])|(?<![^\W_])\.|\s+(?=[.,!?;:—…]))+)")

_LONG_WORD = re.compile(r"\S{61,}")

_SWITCH = re.compile(r"\([^)]*\)")  # "(en)", where espeak changes the language for a word
# Where espeak has no IPA for a sound it writes its own letters, one character of which modifies the one before.
_RETROFLEX = dict(zip("sztdnlr", "ʂʐʈɖɳɭɽ", strict=True))
_PALATAL = dict(zip("nl", "ɲʎ", strict=True))
_LEFTOVERS = str.maketrans(
    {
        "_": "", "-": "", "+": "", "#": "\u0325", "`": "ʼ", "[": "\u032a", '"': "\u0308", "^": "ʲ", ".": "˞", ":": "ː",
        "?": "ʔ", "g": "ɡ", "ε": "ɛ", "Φ": "ɸ", "ʦ": "ts", "S": "ʃ", "Z": "ʒ", "N": "ŋ", "X": "χ", "A": "ɑ",
    }
)  # fmt: skip


def _symbols(espeak: Any, parts: list[str]) -> list[str]:
    symbols: list[str] = []
    for i, part in enumerate(parts):
        if i % 2 == 0:
            # NOTE: never with the marks, which espeak drops; a "." in its output is part of a sound.
            phonemes = _canonical(espeak.text_to_phonemes(_LONG_WORD.sub(_cut, part))) if part.strip() else ""
            symbols += WORD_BOUNDARY * bool(symbols and phonemes) + phonemes
        elif symbols:
            marks = [c for c in part if c in PUNCTUATION]
            if symbols[-1] in PUNCTUATION:
                marks.append(symbols.pop())
            symbols.append(min(marks, key=_WEIGHT.index))
    return symbols


def _cut(word: re.Match[str]) -> str:
    """NOTE: of some 70 letters or 60 numbers with full stops between them espeak dies, and the process with it."""
    return re.sub(r"(.{60})", r"\1 ", word[0].replace(".", " "))


def _canonical(phonemes: str) -> str:
    """espeak's output as symbols of the inventory: no language flags or separators, one spelling for each sound."""
    phonemes = _SWITCH.sub("", phonemes)
    phonemes = re.sub(r"([sztdnlr])_?\.", lambda m: _RETROFLEX[m[1]], phonemes)
    phonemes = re.sub(r"([nl])_?\^", lambda m: _PALATAL[m[1]], phonemes)
    phonemes = unicodedata.normalize("NFD", phonemes).replace("c\u0327", "ç").translate(_LEFTOVERS)
    unknown = set(phonemes) - set(DEFAULT_INVENTORY.symbols) - set("\n")
    if unknown:  # a few of espeak's names of letters hold broken characters
        logger.warning("espeak gave %s, which is no phoneme; left out", ", ".join(f"U+{ord(c):04X}" for c in unknown))
        phonemes = "".join(c for c in phonemes if c not in unknown)
    return " ".join(phonemes.split())
