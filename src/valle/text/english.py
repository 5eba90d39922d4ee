"""English text as it is said: numbers, money, dates, times, abbreviations and acronyms become words.

VALL-E (paper, section 4.1) starts from phonemes and says nothing about the text before them. Here each thing that is not
written as it is spoken has a rule: a pattern and a function from its match to words. The rules apply in the order in
which they stand, the specific before the general, so that ``12/25/2024`` is a date before ``12`` is a number.

Letters that are said one by one are written ``f.b.i``, without a last full stop: espeak stresses that form as people
do, and a full stop after it is always the sentence's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from valle.text import english_words as words

_Rule = Callable[[re.Match[str], bool], str]  # (match, British?) -> its words
_RULES: list[tuple[re.Pattern[str], _Rule]] = []


def expand(text: str, british: bool = False) -> str:
    """English text, already cleaned, with everything spelt out; dates are day first and numbers have "and" if British."""
    text = _quiet(text)
    for pattern, rule in _RULES:
        text = pattern.sub(lambda match, rule=rule: rule(match, british), text)  # type: ignore[misc]
    return text


def _rule(pattern: str, flags: int = 0) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.append((re.compile(pattern, flags), rule))
        return rule

    return register


def _replace(pattern: str, replacement: str, flags: int = 0) -> None:
    _RULES.append((re.compile(pattern, flags), lambda match, _british: match.expand(replacement)))


# ---------------------------------------------------------------------------------------------------------------- words
N = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"  # a number without a sign
_MONTH = r"(?:" + "|".join(sorted(words.MONTH_OF, key=len, reverse=True)) + r")"
_AM_PM = r"[AaPp](?:\.\s?[Mm]\.|\.?[Mm]\b)"
_AHEAD_ENDS = r"(?=[\"')\]]*(?:$|\s+[\"'(]*(?:" + "|".join(sorted(words.SENTENCE_STARTERS)) + r")\b))"
_ENDS = re.compile(_AHEAD_ENDS)


@functools.lru_cache(maxsize=4096)
def cardinal(n: int, british: bool = False) -> str:
    """123 -> "one hundred twenty-three", British "one hundred and twenty-three"."""
    return _num2words(n, "cardinal", british)


@functools.lru_cache(maxsize=4096)
def ordinal(n: int, british: bool = False) -> str:
    """21 -> "twenty-first"."""
    return _num2words(n, "ordinal", british)


@functools.lru_cache(maxsize=4096)
def year(n: int, british: bool = False) -> str:
    """1984 -> "nineteen eighty-four", 1905 -> "nineteen oh five", 2005 -> "two thousand five"."""
    return _num2words(n, "year", british).replace("oh-", "oh ")


def _num2words(n: int, kind: str, british: bool) -> str:
    from num2words import num2words

    said = str(num2words(n, to=kind)).replace(",", "")
    return said if british else said.replace(" and ", " ")


def digits(text: str) -> str:
    """The digits of ``text`` one by one: "007" -> "zero zero seven"."""
    return " ".join(cardinal(int(digit)) for digit in text if digit.isdigit())


def number(text: str, british: bool = False) -> str:
    """A number as it is written ("1,234.5", "007", ".5") in words; one too long to be a quantity, digit by digit."""
    whole, _, fraction = text.replace(",", "").partition(".")
    if len(whole) > 15 or (len(whole) > 1 and whole[0] == "0"):
        said = digits(whole)
    else:
        said = cardinal(int(whole), british) if whole else ""
    return f"{said} point {digits(fraction)}".strip() if fraction else said


def letters(text: str) -> str:
    """ "FBI" -> "f.b.i"."""
    return ".".join(text.lower())


def _is_one(text: str) -> bool:
    return text.replace(",", "") == "1"


def _stop(match: re.Match[str]) -> str:
    """The full stop of an abbreviation that was the sentence's too."""
    return "." if match[0].endswith(".") and _ENDS.match(match.string, match.end()) else ""


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
        if part == "www" or re.fullmatch(r"uk|eu|io|ai|au|ca|jp|fr|de", part) and said[-1:] == ["dot"]:
            said.append(letters(part))
        elif part.isdigit():
            said.append(cardinal(int(part)))
        else:
            said.append(_SPOKEN.get(part, part if part.isalpha() else ""))
    return " ".join(filter(None, said))


@_rule(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
def _email(m: re.Match[str], _british: bool) -> str:
    return _address(m[0])


@_rule(rf"\b(?:https?://|ftp://|(?=www\.))([^\s<>\"]*[\w/])|\b((?:[a-zA-Z][\w-]*\.)+{_DOMAIN}\b(?:/[^\s<>\"]*[\w/])?)")
def _url(m: re.Match[str], _british: bool) -> str:
    return _address((m[1] or m[2]).rstrip("/"))


# ---------------------------------------------------------------------------------------------------------------- dates
def _date(y: str | None, month: int, day: str, british: bool, match: re.Match[str]) -> str:
    if not (1 <= month <= 12 and 1 <= int(day) <= 31):
        return match[0]
    said = f"{words.MONTHS[month - 1]} {ordinal(int(day))}"
    return said + (f", {year(_four_digits(y), british)}" if y else "")


def _four_digits(y: str) -> int:
    return int(y) if len(y) != 2 else int(y) + (2000 if int(y) < 50 else 1900)


@_rule(r"(?<![\d-])(\d{4})-(\d{2})-(\d{2})(?![\d-])")
def _iso_date(m: re.Match[str], british: bool) -> str:
    return _date(m[1], int(m[2]), m[3], british, m)


@_rule(r"(?<![\w/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\w/-]|\.\d)")
def _numeric_date(m: re.Match[str], british: bool) -> str:
    first, second = int(m[1]), int(m[3])
    day_first = second <= 12 and (british or m[2] == "." or first > 12)
    month, day = (second, m[1]) if day_first else (first, m[3])
    if m[2] == "." and len(m[4]) == 2:  # a version, more often
        return m[0]
    return _date(m[4], month, day, british, m)


@_rule(
    rf"\b({_MONTH})\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?(?:\s?-\s?(\d{{1,2}})(?:st|nd|rd|th)?)?"
    rf"(?:,?\s+(\d{{4}})\b)?(?![\w:/%]|[.,]\d)"
)
def _month_day(m: re.Match[str], british: bool) -> str:
    if int(m[2]) not in range(1, 32) or (m[3] and int(m[3]) > 31):
        return m[0]
    until = f" to {ordinal(int(m[3]))}" if m[3] else ""
    said = f"{words.MONTH_OF[m[1]]} {ordinal(int(m[2]))}{until}"
    return said + (f", {year(int(m[4]), british)}" if m[4] else "")


@_rule(
    rf"(?:\b(the)\s+)?(?<![\w.,:/$-])(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?({_MONTH})\b\.?(?:,?\s+(\d{{4}})\b)?",
)
def _day_month(m: re.Match[str], british: bool) -> str:
    if int(m[2]) not in range(1, 32):
        return m[0]
    said = f"the {ordinal(int(m[2]))} of {words.MONTH_OF[m[3]]}"
    return said + (f", {year(int(m[4]), british)}" if m[4] else _stop(m))


@_rule(rf"\b({_MONTH})\.?(?=,?\s+\d{{4}}\b)")
def _month_year(m: re.Match[str], _british: bool) -> str:
    return words.MONTH_OF[m[1]]


@_rule(r"\b(" + "|".join(words.WEEKDAYS) + rf")\.?(?=,?\s(?:the\s|{_MONTH}\b))")
def _weekday(m: re.Match[str], _british: bool) -> str:
    return words.WEEKDAYS[m[1]]


# ---------------------------------------------------------------------------------------------------------------- times
_replace(rf"(?<=\d)(\s?{_AM_PM})\s?-\s?(?=\d)", r"\1 to ")
_replace(rf"\b(\d{{1,2}}(?::\d\d)?)\s?-\s?(?=\d{{1,2}}(?::\d\d)?\s?{_AM_PM})", r"\1 to ")
_replace(r"(?<=\d:\d\d)\s?-\s?(?=\d{1,2}:\d\d)", " to ")


@_rule(rf"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?:\s?({_AM_PM}))?(?![\d:])")
def _time(m: re.Match[str], _british: bool) -> str:
    hour, minute = int(m[1]), int(m[2])
    said = cardinal(hour)
    if minute:
        said += f" {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    elif not m[4] and not m[3]:
        said += " o'clock" if 1 <= hour <= 12 else " hundred"
    if m[3]:
        said += f" and {cardinal(int(m[3]))} seconds"
    return said + (f" {m[4][0].lower()}.m{_stop(m)}" if m[4] else "")


@_rule(rf"(?<![\d:.,])(\d{{1,2}})\s?({_AM_PM})")
def _hour(m: re.Match[str], _british: bool) -> str:
    return f"{cardinal(int(m[1]))} {m[2][0].lower()}.m{_stop(m)}"


_replace(r"(?<![\d:])(\d+):(\d+)(?![\d:])", r"\1 to \2")  # a ratio, a score


# --------------------------------------------------------------------------------------- digits that are not quantities
@_rule(
    r"(?<![\w.$-])(?:(?:\+?\d{1,3}[ .-]?)?(?:\(\d{3}\)\s?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # North America
    r"|\+\d{1,3}(?:[ .-]?\(?\d{2,5}\)?){2,5}"  # international
    r"|\d{3}-\d{4}"
    r"|\d{4}([ -])\d{4}\1\d{4}\1\d{4})(?![\w-]|\.\d)"  # a card
    r"|(?<=[Cc]all )\d{3}\b|(?<=[Dd]ial )\d{3}\b"
)
def _phone(m: re.Match[str], _british: bool) -> str:
    groups = [digits(group) for group in re.findall(r"\d+", m[0])]
    return ("plus " if m[0].startswith("+") else "") + ", ".join(groups)


@_rule(r"(?<![\w.])[vV]?\d+(?:\.\d+){2,}(?!\w)")
def _version(m: re.Match[str], british: bool) -> str:
    said = " point ".join(number(part, british) for part in re.findall(r"\d+", m[0]))
    return f"version {said}" if m[0][0] in "vV" else said


_replace(r"\b[vV](?=\d+\.\d)", "version ")
_replace(r"\b24/7\b", "twenty-four seven")
_replace(r"\b9/11\b", "nine eleven")
_replace(r"\b(\d+)'\s?(\d{1,2})(?:\"|''|')(?!\w)", r"\1 feet \2 inches")
_replace(r"(?<=\d) 000\b", ",000")
_replace(r"~\s?(?=[$£€\d])", "about ")
_replace(r"\s*±\s*", " plus or minus ")
_replace(r"(?<=\d)\s-\s(?=\d)", " minus ")
_replace(rf"(?<![\w.,/-])([$£€]?{N}%?)\s?-\s?([$£€]?{N})(?![\w,/-]*\d)(?!-)", r"\1 to \2")
_replace(r"(?<![\w.,)\]%-])-(?=[$£€¥]?\.?\d)", "minus ")


# ---------------------------------------------------------------------------------------------------------------- money
_SIGN = "|".join(sorted(map(re.escape, words.CURRENCIES), key=len, reverse=True))
_MAGNITUDE = r"(?:(k|K|mn?|M|bn?|B|tn?|T)\b|([\s-](?:hundred|thousand|million|billion|trillion))\b)?"


def _money(sign: str, amount: str, short: str | None, long: str | None, british: bool) -> str:
    one, many, hundredth, hundredths = words.CURRENCIES[sign]
    if short or long:
        magnitude = long[1:] if long else words.MAGNITUDES[short or ""]
        return f"{number(amount, british)} {magnitude} {one if long and long[0] == '-' else many}"
    whole, _, fraction = amount.partition(".")
    if not fraction or len(fraction) != 2 or not hundredth:
        return f"{number(amount, british)} {one if _is_one(amount) else many}"
    parts = [f"{number(whole, british)} {one if _is_one(whole) else many}"] if int(whole.replace(",", "") or 0) else []
    if int(fraction) or not parts:
        parts.append(f"{cardinal(int(fraction))} {hundredth if int(fraction) == 1 else hundredths}")
    return " and ".join(parts)


@_rule(rf"(?<![A-Za-z])({_SIGN})\s?({N}){_MAGNITUDE}")
def _sign_amount(m: re.Match[str], british: bool) -> str:
    return _money(m[1], m[2], m[3], m[4], british)


@_rule(rf"(?<![\w.,])({N})(?:(k|K|mn?|M|bn?|B|tn?|T)|([\s-](?:hundred|thousand|million|billion|trillion)))?\s?({_SIGN})(?!\w)")
def _amount_sign(m: re.Match[str], british: bool) -> str:
    return _money(m[4], m[1], m[2], m[3], british)


@_rule(rf"(?<![\w.,])({N})\s?(¢|p\b)(?!\.)")
def _cents(m: re.Match[str], british: bool) -> str:
    one, many = ("cent", "cents") if m[2] == "¢" else ("penny", "pence")
    return f"{number(m[1], british)} {one if _is_one(m[1]) else many}"


_replace(r"(?<=\w)\s?/\s?(second|minute|hour|day|night|week|month|year|person|head|unit|piece)\b", r" per \1")


# ----------------------------------------------------------------------------------------------------------- quantities
@_rule(rf"(?<![A-Za-z.,])({N})([\s-]?)(" + "|".join(sorted(map(re.escape, words.UNITS), key=len, reverse=True)) + r")(?![\w/])")
def _quantity(m: re.Match[str], british: bool) -> str:
    one, many = words.UNITS[m[3]]
    return f"{number(m[1], british)} {one if _is_one(m[1]) or m[2] == '-' else many}"


@_rule(rf"({N})\s?%")
def _percent(m: re.Match[str], british: bool) -> str:
    return f"{number(m[1], british)} percent"


@_rule(r"(?<![\w.,/])(?:(\d+)\s+)?(\d{1,3})/(\d{1,3})(?:(st|nd|rd|th)s?)?(?![\w/]|[.,]\d)")
def _fraction(m: re.Match[str], british: bool) -> str:
    top, bottom = int(m[2]), int(m[3])
    if not 2 <= bottom <= 100 or not 0 < top < bottom:
        joined = "out of" if top == bottom else "over"
        return f"{m[1] or ''} {number(m[2], british)} {joined} {number(m[3], british)}".strip()
    name = words.FRACTIONS.get(bottom) or ordinal(bottom, british)
    if top == 1 and m[1]:
        return f"{number(m[1], british)} and {'an' if name[0] in 'aeiou' else 'a'} {name}"
    plural = name if top == 1 else ("halves" if name == "half" else name + "s")
    return (f"{number(m[1], british)} and " if m[1] else "") + f"{cardinal(top)} {plural}"


@_rule(r"(?<![\w.])(\d{1,3}(?:,\d{3})+|\d{1,15})(?:st|nd|rd|th)\b", re.IGNORECASE)
def _ordinal(m: re.Match[str], british: bool) -> str:
    return ordinal(int(m[1].replace(",", "")), british)


@_rule(r"(?<!\w)'?((?:1\d|20)?\d0)'?s\b")
def _decade(m: re.Match[str], british: bool) -> str:
    n = int(m[1])
    if n == 0:
        return "two thousands"
    if n >= 1000 and n % 100 == 0:
        return ("two thousand" if n == 2000 else f"{cardinal(n // 100)} hundred") + "s"
    return (year(n, british) if n >= 1000 else cardinal(n)).removesuffix("y").removesuffix("ie") + (
        "ies" if n % 100 > 10 else "s"
    )


@_rule(r"\b(" + "|".join(words.BEFORE_NUMBER) + r")\.\s?(?=\d)")
def _before_number(m: re.Match[str], _british: bool) -> str:
    return words.BEFORE_NUMBER[m[1]] + " "


_replace(r"#\s?(?=\d)", "number ")


# ------------------------------------------------------------------------------------------------------- Roman numerals
def _roman(text: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10}[c] for c in text]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


_ROMAN = r"(X{0,3}(?:IX|IV|V?I{1,3}|V|(?<=X)))(?![\w'.]*\w)(?:\.(?=[,;:]|\s[a-z]))?"  # "James II. was"


@_rule(rf"\b({words.ROMAN_CARDINAL})\s{_ROMAN}")
def _roman_cardinal(m: re.Match[str], _british: bool) -> str:
    return f"{m[1]} {cardinal(_roman(m[2]))}" if m[2] else m[0]


@_rule(rf"\b({words.ROMAN_ORDINAL})\s(?!I\s(?!(?:of|was|and|died|reigned|ruled|became|is|had|who)\b)){_ROMAN}")
def _roman_ordinal(m: re.Match[str], _british: bool) -> str:
    return f"{m[1]} the {ordinal(_roman(m[2]))}" if m[2] else m[0]


# ---------------------------------------------------------------------------------------------------------- bare numbers
_BEFORE_YEAR = ("in ", "since ", "year ", "circa ")


@_rule(
    rf"(?:(\b(?:in|since|from|until|till|before|after|during|by|to|of|year|early|late|mid|circa|{_MONTH}),?[\s-]))?"
    r"(?<![\w.,$£€/])(1\d\d\d|20\d\d)(?![\w,/]*\d)(?!\.\d|\w|%)(\s+(?:[a-z]+s|people|men|women|children)\b)?",
    re.IGNORECASE,
)
def _year(m: re.Match[str], british: bool) -> str:
    n, lead, noun = int(m[2]), m[1] or "", m[3] or ""
    counted = noun and noun.split()[0] not in {"was", "is", "as", "has", "vs"}
    if (lead and n >= 1100) or (lead.lower() in _BEFORE_YEAR and not counted) or (n >= 1500 and not counted):
        return f"{lead}{year(n, british)}{noun}"
    return f"{lead}{cardinal(n, british)}{noun}"


@_rule(rf"(?<![A-Za-z.,])({N})(k|M|bn|B|mn|tn)(?!\w)")
def _magnitude(m: re.Match[str], british: bool) -> str:
    return f"{number(m[1], british)} {words.MAGNITUDES[m[2]]}"


_replace(r"\^2\b", " squared")
_replace(r"\^3\b", " cubed")
_replace(r"\s*\^\s*(?=\w)", " to the power of ")
_replace(r"(?<=\d)\s?[x×]\s?(?=\d)", " by ")
_replace(r"(?<=\d)\s?\*\s?(?=\d)", " times ")
_replace(r"(?<![A-Za-z])A-?(?=\d)", "A-")  # espeak reads a lone "A" as the article
_replace(r"(?<=[A-Za-z])(?<!A)-?(?=\d)|(?<=[A-Za-z]A)-?(?=\d)", " ")
_replace(r"(?<=\d)-?(?=[A-Za-z])", " ")


@_rule(N)
def _number(m: re.Match[str], british: bool) -> str:
    said = number(m[0], british)
    before = " " if m.start() and m.string[m.start() - 1].isalnum() else ""
    return before + said


# -------------------------------------------------------------------------------------------------------------- symbols
_replace(r"(?<!\w)w/o(?!\w)", "without")
_replace(r"(?<!\w)w/(?=\s|[a-z])\s?", "with ")
_replace(r"\band/or\b", "and or")
for _symbol, _word in {
    "&": "and", "@": "at", "+": "plus", "=": "equals", "%": "percent", "×": "times", "÷": "divided by", "°": "degrees",
    "§": "section", "$": "dollar", "£": "pound", "€": "euro", "¥": "yen", "/": "slash", "\\\\": "backslash",
}.items():  # fmt: skip
    _replace(rf"\s*{re.escape(_symbol[0])}\s*", f" {_word} ")
_replace(r"\s<\s", " less than ")
_replace(r"\s>\s", " greater than ")
_replace(r"#(?=\w)", " hashtag ")
_replace(r"\s*[()\[\]{}]\s*", ", ")
_replace(r"[*_|\\^~<>#]", " ")  # what has no name in running text


# -------------------------------------------------------------------------------------------------------- abbreviations
_replace(r"\b[Ee]\.\s?[Gg]\.,?", "for example,")
_replace(r"\b[Ii]\.\s?[Ee]\.,?", "that is,")
_replace(r"\ba\.k\.a\.|\baka\b", "also known as")
_replace(r"\bPh\.\s?D\b\.?(?=s?\b|\W|$)|\bPhD(?=s?\b)", "p.h.d")
_replace(r"\bOK\b", "okay")


@_rule(r"(?:(\S+)\s)?\b(Dr|St)\b(\.?)(?:(?=\s+(\S+))|(?!\w))")
def _doctor_or_drive(m: re.Match[str], _british: bool) -> str:
    """Drive and street follow a name or an ordinal and precede none; doctor and saint precede a name."""
    before, short, after = m[1] or "", m[2], m[4] or ""
    named = after[:1].isupper() and after.strip(".,!?;:") not in words.SENTENCE_STARTERS
    road = not named and (before[:1].isupper() or before.endswith(("st", "nd", "rd", "th")))
    if short == "St" and before[:1].isupper() and before not in words.SENTENCE_STARTERS | {"Mount", "Lake", "Port", "Fort"}:
        road = road or not named
    if not m[3] and not named and not road:
        return m[0]
    word = {"Dr": ("Doctor", "Drive"), "St": ("Saint", "Street")}[short][road]
    ends = "." if road and m[3] and (not after or after in words.SENTENCE_STARTERS) else ""
    return f"{before} {word}{ends}".lstrip()


@_rule(r"\b(" + "|".join(words.TITLES) + r")\b(\.)?(?=(\s+[\"']?[A-Z])?)")
def _title(m: re.Match[str], _british: bool) -> str:
    if not m[2] and (m[1] in words.NEED_STOP or m[3] is None) or (m[2] and m[1] in words.NEED_STOP and m[3] is None):
        return m[0]
    return words.TITLES[m[1]]


@_rule(r"\b(" + "|".join(words.ABBREVIATIONS) + r")\b(\.)?(?!\w)")
def _abbreviation(m: re.Match[str], _british: bool) -> str:
    if not m[2] and m[1] in words.NEED_STOP:
        return m[0]
    return words.ABBREVIATIONS[m[1]] + _stop(m)


# ------------------------------------------------------------------------------------------------- letters said one by one
@_rule(r"\b[A-Z](?:\.[A-Z])+\b\.?|\b[ap]\.m\.(?=\s[a-z]|[,;:])")
def _dotted(m: re.Match[str], _british: bool) -> str:
    return letters("".join(filter(str.isalpha, m[0]))) + _stop(m)


@_rule(r"(?<![\w.'])(?:[A-Z]\.\s)+[A-Z]\.")
def _initials(m: re.Match[str], _british: bool) -> str:
    """J. R. R. (Tolkien)."""
    return letters("".join(filter(str.isalpha, m[0]))) + _stop(m)


@_rule(rf"(\b(?i:{words.LETTERED})\s)?(?<![\w.'])([A-HJ-Z])\.(?:([,;:])|(\s)(?=([A-Z][\w']*)))")
def _initial(m: re.Match[str], _british: bool) -> str:
    """(George) W. (Bush); not plan B."""
    if m[3]:
        return f"{m[1] or ''}{m[2]}{m[3]}"
    if m[1] or m[5] in words.SENTENCE_STARTERS:
        return m[0]
    return "A-" if m[2] == "A" else m[2] + m[4]


@_rule(r"(?<!\w)(?<!\w[.'])([A-Z]{2,})('?s)?(?![\w'])")
def _capitals(m: re.Match[str], _british: bool) -> str:
    word, plural = m[1], m[2]
    vowels = set(word) & set("AEIOUY")
    short = len(word) <= 3
    if word in words.SHORT_WORDS or (vowels and not short and word not in words.SPELLED):
        return m[0]
    # A plural "s" is said with the last letter, which espeak does only for a letter that stands alone.
    return f"{letters(word[:-1])} {word[-1].lower()}'s" if plural else letters(word)
