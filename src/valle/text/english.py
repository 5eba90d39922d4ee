"""English text as it is said: numbers, money, dates, times, abbreviations and acronyms become words.

VALL-E (paper, section 4.1) starts from phonemes and says nothing about the text before them. Here each thing that is
not written as it is spoken has a rule: a pattern, and a function from its match to words. The rules apply in the order
in which they stand, the specific before the general, so that ``12/25/2024`` is a date before ``12`` is a number.

Letters that are said one by one are written ``f.b.i``, without a last full stop: espeak stresses that form as people
do, and a full stop after it is always the sentence's.
"""

from __future__ import annotations

import re

from valle.text import english_words as words
from valle.text.english_numbers import NUMBERS, cardinal
from valle.text.english_rules import Rules, letters, stop

_ADDRESSES = Rules()
_WORDS = Rules()


def expand(text: str, british: bool = False) -> str:
    """English text, already cleaned, with everything spelt out. British: days before months, "one hundred and one"."""
    text = _quiet(text)
    for rules in (_ADDRESSES, NUMBERS, _WORDS):
        text = rules.apply(text, british)
    return text


def _quiet(text: str) -> str:
    """A text all in capitals (as many transcripts are) in lower case, apart from acronyms that are no words."""
    if any(c.islower() for c in text) or len(re.findall(r"[A-Z]{2,}", text)) < 2:
        return text

    def lower(match: re.Match[str]) -> str:
        word = match[0]
        is_abbreviation = word.capitalize() in words.TITLES or word.capitalize() in words.ABBREVIATIONS
        has_vowel = set(word) & set("AEIOUY")
        spelled = word in words.SPELLED or not (has_vowel or is_abbreviation or word in words.SHORT_WORDS)
        return word if spelled else word.capitalize()

    return re.sub(r"(?<![\w.'])[A-Z]{2,}(?:'[A-Z]+)?(?![\w.]*\d)", lower, text)


# ------------------------------------------------------------------------------------------------------------ addresses
_SPOKEN = {
    ".": "dot", "/": "slash", "-": "dash", "_": "underscore", "@": "at", ":": "colon", "?": "question mark",
    "=": "equals", "&": "and", "#": "hash", "%": "percent", "+": "plus", "~": "tilde",
}  # fmt: skip
_DOMAIN = r"(?:com|org|net|edu|gov|mil|info|io|ai|dev|app|uk|eu|de|fr|jp|ca|au)"


def _address(text: str) -> str:
    said: list[str] = []
    for part in re.findall(r"[A-Za-z]+|\d|[^\w\s]|_", text):
        is_country = said[-1:] == ["dot"] and re.fullmatch(r"uk|eu|io|ai|au|ca|jp|fr|de", part)
        if part == "www" or is_country:
            said.append(letters(part))
        elif part.isdigit():
            said.append(cardinal(int(part)))
        else:
            said.append(_SPOKEN.get(part, part if part.isalpha() else ""))
    return " ".join(filter(None, said))


@_ADDRESSES.add(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
def _email(m: re.Match[str], _british: bool) -> str:
    return _address(m[0])


@_ADDRESSES.add(
    rf"\b(?:https?://|ftp://|(?=www\.))([^\s<>\"]*[\w/])|(?<![\w.-])((?:[a-zA-Z][\w-]*\.)+{_DOMAIN}\b(?:/[^\s<>\"]*[\w/])?)"
)
def _url(m: re.Match[str], _british: bool) -> str:
    return _address((m[1] or m[2]).rstrip("/"))


# -------------------------------------------------------------------------------------------------------------- symbols
_WORDS.replace(r"(?<!\w)w/o(?!\w)", "without")
_WORDS.replace(r"(?<!\w)w/(?=\s|[a-z])\s?", "with ")
_WORDS.replace(r"(?<!\w)b/c(?!\w)", "because")
_WORDS.replace(r"\band/or\b", "and or")
_WORDS.replace(r"\b([Hh]e|[Hh]is|[Hh]im|[Ss]he|[Hh]ers?)/(?=(?:he|his|him|she|hers?)\b)", r"\1 or ")
for _symbol, _word in {
    "&": "and", "@": "at", "+": "plus", "=": "equals", "%": "percent", "×": "times", "÷": "divided by", "°": "degrees",
    "§": "section", "$": "dollar", "£": "pound", "€": "euro", "¥": "yen", "/": "slash", "\\": "backslash",
    "≠": "is not equal to", "≈": "is about", "≤": "is at most", "≥": "is at least",
}.items():  # fmt: skip
    _WORDS.replace(rf"\s*{re.escape(_symbol)}\s*", f" {_word} ")
_WORDS.replace(r"#(?=\w)", " hashtag ")
_WORDS.replace(r"\s*[()\[\]{}]\s*", ", ")
_WORDS.replace(r"\s[>|→]\s", ", ")  # of menus
_WORDS.replace(r"[*_|\\^~<>#¶†‡·•→]", " ")  # what has no name in running text


# -------------------------------------------------------------------------------------------------------- abbreviations
_WORDS.replace(r"\b[Ee]\.\s?[Gg]\.,?", "for example,")
_WORDS.replace(r"\b[Ii]\.\s?[Ee]\.,?", "that is,")
_WORDS.replace(r"\ba\.k\.a\.|\baka\b", "also known as")
_WORDS.replace(r"\bPh\.\s?D\b\.?(?=s?\b|\W|$)|\bPhD(?=s?\b)", "p.h.d")
_WORDS.replace(r"\bOK\b", "okay")


@_WORDS.add(r"(?:(?<!\S)(\S+)\s)?\b(Dr|St)\b(\.?)(?:(?=\s+(\S+))|(?!\w))")
def _doctor_or_drive(m: re.Match[str], _british: bool) -> str:
    """Doctor and saint precede a name; drive and street follow one, or an ordinal."""
    before, short, dot, after = m[1] or "", m[2], m[3], m[4] or ""
    starts = not after or after in words.SENTENCE_STARTERS
    precedes_name = after[:1].isupper() and not starts
    follows_name = before[:1].isupper() or before.endswith(("st", "nd", "rd", "th"))
    road = follows_name and not precedes_name
    if not dot and not precedes_name and not road:
        return m[0]
    word = {"Dr": ("Doctor", "Drive"), "St": ("Saint", "Street")}[short][road]
    return f"{before} {word}{stop(m) if road else ''}".lstrip()


@_WORDS.add(r"\b(" + "|".join(words.TITLES) + r")\b(\.)?(?=(\s+[\"']?[A-Z])?)")
def _title(m: re.Match[str], _british: bool) -> str:
    needs_stop = m[1] in words.NEED_STOP
    if m[3] and (m[2] or not needs_stop):
        return words.TITLES[m[1]]
    return words.TITLES[m[1]] + stop(m) if m[2] and not needs_stop else m[0]


@_WORDS.add(r"\b(" + "|".join(words.ABBREVIATIONS) + r")\b(\.)?(?!\w)")
def _abbreviation(m: re.Match[str], _british: bool) -> str:
    if not m[2] and m[1] in words.NEED_STOP:
        return m[0]
    return words.ABBREVIATIONS[m[1]] + stop(m)


# ----------------------------------------------------------------------------------------------------- spelt letters
@_WORDS.add(r"\b[A-Z](?:\.[A-Z])+\b\.?|\b[ap]\.m\.(?=\s[a-z]|[,;:])")
def _dotted(m: re.Match[str], _british: bool) -> str:
    return letters("".join(filter(str.isalpha, m[0]))) + stop(m)


@_WORDS.add(r"(?<![\w.'])(?:[A-Z]\.\s)+[A-Z]\.")
def _initials(m: re.Match[str], _british: bool) -> str:
    """J. R. R. (Tolkien)."""
    return letters("".join(filter(str.isalpha, m[0]))) + stop(m)


@_WORDS.add(rf"(\b(?i:{words.LETTERED})\s)?(?<![\w.'])([A-HJ-Z])\.(?:([,;:])|(\s)(?=([A-Z][\w']*)))")
def _initial(m: re.Match[str], _british: bool) -> str:
    """(George) W. (Bush); not plan B."""
    if m[3]:
        return f"{m[1] or ''}{m[2]}{m[3]}"
    if m[1] or m[5] in words.SENTENCE_STARTERS:
        return m[0]
    return "A-" if m[2] == "A" else m[2] + m[4]


@_WORDS.add(r"(?<!\w)(?<!\w[.'])([A-Z]{2,})('?s)?(?![\w'])")
def _capitals(m: re.Match[str], _british: bool) -> str:
    word, plural = m[1], m[2]
    vowels = set(word) & set("AEIOUY")
    is_word = vowels and len(word) > 3 and word not in words.SPELLED
    if is_word or word in words.SHORT_WORDS or len(word) > 6:
        return m[0]
    # A plural "s" is said with the last letter, which espeak does only for a letter that stands alone.
    return f"{letters(word[:-1])} {word[-1].lower()}'s" if plural else letters(word)
