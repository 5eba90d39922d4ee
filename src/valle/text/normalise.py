"""Text as it is written to text as it is said: what phonemes are made from.

The paper (section 4.1) trains on transcripts of speech, in which nothing is abbreviated; the text that a user types is
not like that. English is spelt out in full (``english.py``). In other languages the characters are cleaned, plain whole
numbers become words where num2words knows the language, and the rest is left to espeak, which reads it in its own way.
"""

from __future__ import annotations

import re
import unicodedata

from valle.text.english import expand

_SINGLE_QUOTES = "‘’‚‛ʼ`´′＇"
_DOUBLE_QUOTES = "“”„‟«»″＂〝〞「」『』"
_HYPHENS = "‐‑‒−﹣－"
_DASHES = "–—―⸺⸻"

# num2words has these too, but espeak cannot read what it writes (Chinese characters, Hebrew and Persian without
# vowels, Thai) or it fails (Amharic); espeak's own reading of the digits is right.
_NOT_FROM_NUM2WORDS = frozenset({"ja", "he", "fa", "th", "am"})
_NUM2WORDS_NAME = {"nb": "no", "kk": "kz", "pt-br": "pt_BR", "fr-be": "fr_BE", "fr-ch": "fr_CH"}


def normalise(text: str, lang: str = "en-us") -> str:
    """Spell out ``text``: no digits, symbols or abbreviations remain in English. Emoji and control characters go.

    Applied again it changes nothing. The result is empty where nothing can be said; it never raises.

    Args:
        text: any text.
        lang: a language as :class:`valle.text.Phonemizer` knows it. "en-gb" puts days before months and says "one
            hundred and one".
    """
    lang = lang.lower().replace("_", "-")
    is_english = lang.split("-")[0] == "en"
    if is_english:
        text = text.translate(_ENGLISH_FIRST)
    text = clean(text)
    if is_english:
        text = expand(text, british=not (lang == "en" or lang.startswith("en-us")))
    else:
        text = _spell_numbers(text, lang)
    return _tidy(text)


def clean(text: str) -> str:
    """One form for each character: NFKC, ASCII quotes and digits, "—" and "…"; no emoji and no control characters."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)  # or NFKC would make 1½ eleven halves
    text = text.translate(_BEFORE_NFKC)
    # NFKC takes the Thai and Lao vowel "am" apart, and espeak reads only the whole one.
    text = unicodedata.normalize("NFKC", text).replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")
    text = text.translate(_AFTER_NFKC)
    text = re.sub(r"(?:^|(?<=\s))[\u200c\u200d]+|[\u200c\u200d]+(?=\s|$)", "", text)  # left over from emoji
    text = re.sub(r"\s*\n\s*(?:\n\s*|(?=[-*•]\s))", "\n\n", text.strip())  # a paragraph, or the item of a list
    text = re.sub(r"([^\W_])\n\n", r"\1.\n\n", text)
    text = re.sub(r"(?:^|\n\n)[-*•]\s+", " ", text)
    text = re.sub(r"\.(?:\s?\.){2,}", "…", text)
    text = re.sub(r"(?<=\d)\s?–\s?(?=\d)", "-", text)  # a range
    text = re.sub(r"(?<=\w)–(?=\w)", "-", text).replace("–", "—")
    text = re.sub(r"\[\d{1,3}\]", "", text)  # a reference
    text = re.sub(r"(?<=\w)\((s|es)\)", r"\1", text)  # word(s)
    return re.sub(r"\s+", " ", text).strip()


class _Characters(dict[int, str]):
    """A table for ``str.translate`` that decides by Unicode category and remembers."""

    def __init__(self, given: dict[str, str], by_category: dict[str, str]) -> None:
        super().__init__({ord(c): replacement for c, replacement in given.items()})
        self.by_category = by_category

    def __missing__(self, code: int) -> str:
        c = chr(code)
        category = unicodedata.category(c)
        if category in ("Nd", "No", "Nl"):  # digits of any script, ❶, ...
            self[code] = f"{unicodedata.numeric(c):.0f}" if unicodedata.numeric(c, 0.5) % 1 == 0 else c
        else:
            self[code] = self.by_category.get(category, c)
        return self[code]


# Zero-width characters (Cf) go before NFKC so that it can compose around them, but the joiners of Persian and Indic
# spelling stay. Surrogates cannot be encoded for espeak, and a NUL would end its string.
_BEFORE_NFKC = _Characters(
    {"\n": "\n", "\u2028": "\n", "\u2029": "\n\n", "\u200c": "\u200c", "\u200d": "\u200d", "…": "…", "™": "", "´": "'"}
    | {wide: chr(ord(wide) - 0xFEE0) + " " for wide in "！，：；？"},  # full width has its space within
    {"Cf": "", "Cs": " ", "Cc": " ", "Co": " ", "Cn": " "},
)
_AFTER_NFKC = _Characters(
    dict.fromkeys(_SINGLE_QUOTES, "'")
    | dict.fromkeys(_DOUBLE_QUOTES, '"')
    | dict.fromkeys(_HYPHENS, "-")
    | dict.fromkeys(_DASHES[1:], "—")
    | {"\n": "\n", "⁄": "/", "°": "°", "^": "^"},
    {"So": " ", "Sk": " ", "Me": "", "Cn": " "},
)
# NFKC would make x² and x2 the same; joiners mean nothing here.
_ENGLISH_FIRST = {ord("²"): "^2", ord("³"): "^3", 0x200C: "", 0x200D: ""}


def _spell_numbers(text: str, lang: str) -> str:
    """Whole numbers as words where num2words knows the language and espeak reads its words."""
    from num2words import CONVERTER_CLASSES, num2words

    base = lang.split("-")[0]
    name = _NUM2WORDS_NAME.get(lang) or _NUM2WORDS_NAME.get(base, base)
    if name not in CONVERTER_CLASSES or base in _NOT_FROM_NUM2WORDS:
        return text

    def say(match: re.Match[str]) -> str:
        return str(num2words(int(match[0]), lang=name))

    return re.sub(r"(?<![\w.,:/+-])(?:0|[1-9]\d{0,14})(?![\w%°]|[.,:/-]\d)", say, text)


def _tidy(text: str) -> str:
    """One space between words, and one canonical mark where punctuation, brackets and dashes meet."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ?[,.;:!?…—()\[\]{}-][ ,.;:!?…—()\[\]{}-]*", _mark, text)
    return text.strip()


def _mark(match: re.Match[str]) -> str:
    """A run of marks as one: brackets are commas, "?!" stays, and a mark inside a word ("u.s.a", "3,5") is left."""
    run, text = match[0], match.string
    if match.start() == 0:
        return ""
    before, after = text[match.start() - 1], text[match.end() : match.end() + 1]
    within = before.isalnum() and after.isalnum()
    if within and (run in ".-" or (run in ",:" and before.isdigit() and after.isdigit())):
        return run
    for kinds in ("!?", "…", ".", "—", ":", ";", ","):
        if found := [c for c in run if c in kinds]:
            mark = "".join(dict.fromkeys(found))
            return " — " if mark == "—" else mark + (" " if within or set(run) & set(" ([{") else "")
    if re.search(r"[()\[\]{}]", run):
        return ", " if match.end() < len(text) else ""
    return " — " if " - " in run or "--" in run else " "
