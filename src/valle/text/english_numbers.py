"""English rules for whatever is written with digits or Roman numerals: dates, times, money, quantities, years."""

from __future__ import annotations

import functools
import re

from valle.text import english_words as words
from valle.text.english_rules import Rules, stop

NUMBERS = Rules()

N = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"  # a number without a sign
_MONTH = r"(?:" + "|".join(sorted(words.MONTH_OF, key=len, reverse=True)) + r")"
_AM_PM = r"[AaPp](?:\.\s?[Mm]\.|\.?[Mm]\b)"


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


def _is_one(text: str) -> bool:
    return text.replace(",", "") == "1"


@NUMBERS.add(r"\d{16,}")
def _too_long(m: re.Match[str], _british: bool) -> str:
    return f" {digits(m[0])} "  # first, since other rules would take long to find that it is nothing for them


# ---------------------------------------------------------------------------------------------------------------- dates
def _date(y: str | None, month: int, day: str, british: bool, match: re.Match[str]) -> str:
    if not (1 <= month <= 12 and 1 <= int(day) <= 31):
        return match[0]
    said = f"{words.MONTHS[month - 1]} {ordinal(int(day))}"
    return said + (f", {year(_four_digits(y), british)}" if y else "")


def _four_digits(y: str) -> int:
    return int(y) if len(y) != 2 else int(y) + (2000 if int(y) < 50 else 1900)


@NUMBERS.add(r"(?<![\d-])(\d{4})-(\d{2})-(\d{2})(?![\d-])")
def _iso_date(m: re.Match[str], british: bool) -> str:
    return _date(m[1], int(m[2]), m[3], british, m)


@NUMBERS.add(r"(?<![\w/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\w/-]|\.\d)")
def _numeric_date(m: re.Match[str], british: bool) -> str:
    first, second = int(m[1]), int(m[3])
    day_first = second <= 12 and (british or m[2] == "." or first > 12)
    month, day = (second, m[1]) if day_first else (first, m[3])
    if m[2] == "." and len(m[4]) == 2:  # a version, more often
        return m[0]
    return _date(m[4], month, day, british, m)


@NUMBERS.add(
    rf"\b({_MONTH})\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?(?:\s?-\s?(\d{{1,2}})(?:st|nd|rd|th)?)?"
    rf"(?:,?\s+(\d{{4}})\b)?(?![\w:/%]|[.,]\d)"
)
def _month_day(m: re.Match[str], british: bool) -> str:
    if int(m[2]) not in range(1, 32) or (m[3] and int(m[3]) > 31):
        return m[0]
    until = f" to {ordinal(int(m[3]))}" if m[3] else ""
    said = f"{words.MONTH_OF[m[1]]} {ordinal(int(m[2]))}{until}"
    return said + (f", {year(int(m[4]), british)}" if m[4] else "")


@NUMBERS.add(
    rf"(?:\b([Tt]he)\s+)?(?<![\w.,:/$-])(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?({_MONTH})\b\.?(?:,?\s+(\d{{4}})\b)?",
)
def _day_month(m: re.Match[str], british: bool) -> str:
    if int(m[2]) not in range(1, 32):
        return m[0]
    said = f"{m[1] or 'the'} {ordinal(int(m[2]))} of {words.MONTH_OF[m[3]]}"
    return said + (f", {year(int(m[4]), british)}" if m[4] else stop(m))


@NUMBERS.add(rf"\b({_MONTH})\.?(?=,?\s+\d{{4}}\b)")
def _month_year(m: re.Match[str], _british: bool) -> str:
    return words.MONTH_OF[m[1]]


@NUMBERS.add(r"\b(" + "|".join(words.WEEKDAYS) + rf")\.?(?=,?\s(?:the\s|{_MONTH}\b))")
def _weekday(m: re.Match[str], _british: bool) -> str:
    return words.WEEKDAYS[m[1]]


# ---------------------------------------------------------------------------------------------------------------- times
NUMBERS.replace(rf"(?<=\d)(\s?{_AM_PM})\s?-\s?(?=\d)", r"\1 to ")
NUMBERS.replace(rf"\b(\d{{1,2}}(?::\d\d)?)\s?-\s?(?=\d{{1,2}}(?::\d\d)?\s?{_AM_PM})", r"\1 to ")
NUMBERS.replace(r"(?<=\d:\d\d)\s?-\s?(?=\d{1,2}:\d\d)", " to ")


@NUMBERS.add(rf"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?:\s?({_AM_PM}))?(?![\d:])")
def _time(m: re.Match[str], _british: bool) -> str:
    hour, minute = int(m[1]), int(m[2])
    said = cardinal(hour)
    if minute:
        said += f" {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    elif not m[4] and not m[3]:
        said += " o'clock" if 1 <= hour <= 12 else " hundred"
    if m[3]:
        said += f" and {cardinal(int(m[3]))} seconds"
    return said + (f" {m[4][0].lower()}.m{stop(m)}" if m[4] else "")


@NUMBERS.add(rf"(?<![\d:.,])(\d{{1,2}})\s?({_AM_PM})")
def _hour(m: re.Match[str], _british: bool) -> str:
    return f"{cardinal(int(m[1]))} {m[2][0].lower()}.m{stop(m)}"


NUMBERS.replace(r"(?<![\d:])(\d+):(\d+)(?![\d:])", r"\1 to \2")  # a ratio, a score


# --------------------------------------------------------------------------------------- digits that are not quantities
@NUMBERS.add(
    r"(?<![\w.$-])(?:(?:\+?\d{1,3}[ .-]?)?(?:\(\d{3}\)\s?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # North America
    r"|\+\d{1,3}(?:[ .-]?\(?\d{2,5}\)?){2,5}"  # international
    r"|\d{3}-\d{4}"
    r"|\d{4}([ -])\d{4}\1\d{4}\1\d{4})(?![\w-]|\.\d)"  # a card
    r"|(?<=[Cc]all )\d{3}\b|(?<=[Dd]ial )\d{3}\b"
)
def _phone(m: re.Match[str], _british: bool) -> str:
    groups = [digits(group) for group in re.findall(r"\d+", m[0])]
    return ("plus " if m[0].startswith("+") else "") + ", ".join(groups)


@NUMBERS.add(r"(?<![\w.])[vV]?\d+(?:\.\d+){2,}(?!\w)")
def _version(m: re.Match[str], british: bool) -> str:
    said = " point ".join(number(part, british) for part in re.findall(r"\d+", m[0]))
    return f"version {said}" if m[0][0] in "vV" else said


NUMBERS.replace(r"\b[vV](?=\d+\.\d)", "version ")
NUMBERS.replace(r"\b24/7\b", "twenty-four seven")
NUMBERS.replace(r"\b9/11\b", "nine eleven")
NUMBERS.replace(r"\b20/20\b", "twenty twenty")
NUMBERS.replace(r"\b([3-8])'\s?(\d{1,2})(?:\"|''|')?(?!\w)", r"\1 feet \2 inches")
NUMBERS.replace(r"(?<!\w)'(?=\d\d\b(?!'))", "")  # '19
NUMBERS.replace(r"(?<=\d) 000\b", ",000")
NUMBERS.replace(r"~\s?(?=[$£€\d])", "about ")
NUMBERS.replace(r"\s*±\s*", " plus or minus ")
NUMBERS.replace(r"(?<=\d)\s-\s(?=\d)", " minus ")
NUMBERS.replace(r"(?<=[\dkKmMbBn%])\s?-\s?(?=[$£€]\d)", " to ")
NUMBERS.replace(r"(?<=\d)\s/\s(?=\d)", " divided by ")


@NUMBERS.add(rf"(?<![\w.,/-])([$£€]?({N})%?)\s?-\s?({N})(?![\w,/-]*\d)(?!-)")
def _range(m: re.Match[str], _british: bool) -> str:
    """A range or a score; "50-50" and "747-400" are neither."""
    low, high = (float(n.replace(",", "")) for n in (m[2], m[3]))
    return f"{m[1]} {'to' if low < high or high < low < 100 else ''} {m[3]}"


NUMBERS.replace(r"(?<![\w.,)\]%-])-(?=[$£€¥]?\.?\d)", "minus ")


# ---------------------------------------------------------------------------------------------------------------- money
_SIGN = "|".join(sorted(map(re.escape, words.CURRENCIES), key=len, reverse=True))
_SHORT, _LONG = r"k|K|m|M|b|B|t|T|\s?(?:mn|bn|tn)", r"[\s-](?:hundred|thousand|million|billion|trillion)"


def _money(sign: str, amount: str, short: str | None, long: str | None, british: bool) -> str:
    one, many, hundredth, hundredths = words.CURRENCIES[sign]
    if short or long:
        magnitude = long[1:] if long else words.MAGNITUDES[(short or "").strip()]
        return f"{number(amount, british)} {magnitude} {one if long and long[0] == '-' else many}"
    whole, _, fraction = amount.partition(".")
    if not fraction or len(fraction) != 2 or not hundredth:
        return f"{number(amount, british)} {one if _is_one(amount) else many}"
    parts = [f"{number(whole, british)} {one if _is_one(whole) else many}"] if int(whole.replace(",", "") or 0) else []
    if int(fraction) or not parts:
        parts.append(f"{cardinal(int(fraction))} {hundredth if int(fraction) == 1 else hundredths}")
    return " and ".join(parts)


@NUMBERS.add(rf"(?<![A-Za-z])({_SIGN})\s?({N})(?:({_SHORT})\b|({_LONG})\b)?")
def _sign_amount(m: re.Match[str], british: bool) -> str:
    return _money(m[1], m[2], m[3], m[4], british)


@NUMBERS.add(rf"(?<![\w.,])({N})(?:({_SHORT})|({_LONG}))?\s?({_SIGN})(?!\w)")
def _amount_sign(m: re.Match[str], british: bool) -> str:
    return _money(m[4], m[1], m[2], m[3], british)


@NUMBERS.add(rf"(?<![\w.,])({N})\s?(¢|p\b)(?!\.)")
def _cents(m: re.Match[str], british: bool) -> str:
    one, many = ("cent", "cents") if m[2] == "¢" else ("penny", "pence")
    return f"{number(m[1], british)} {one if _is_one(m[1]) else many}"


NUMBERS.replace(r"(?<=\w)\s?/\s?(second|minute|hour|day|night|week|month|year|person|head|unit|piece)\b", r" per \1")


# ----------------------------------------------------------------------------------------------------------- quantities
_UNIT = "|".join(sorted(map(re.escape, words.UNITS), key=len, reverse=True))


@NUMBERS.add(rf"(?<![A-Za-z.,])({N})([\s-]?)({_UNIT})(?![\w/])(?:\.(?=\s[a-z]))?")
def _quantity(m: re.Match[str], british: bool) -> str:
    one, many = words.UNITS[m[3]]
    return f"{number(m[1], british)} {one if _is_one(m[1]) or m[2] == '-' else many}"


@NUMBERS.add(rf"({N})\s?%")
def _percent(m: re.Match[str], british: bool) -> str:
    return f"{number(m[1], british)} percent"


@NUMBERS.add(r"(?<![\w.,/])(?:(\d+)\s+)?(\d{1,3})/(\d{1,3})(?:(st|nd|rd|th)s?)?(?![\w/]|[.,]\d)")
def _fraction(m: re.Match[str], british: bool) -> str:
    top, bottom = int(m[2]), int(m[3])
    if not 2 <= bottom < 100 or bottom == 10 or not 0 < top < bottom:
        joined = "out of" if top <= bottom else "over"
        return f"{m[1] or ''} {number(m[2], british)} {joined} {number(m[3], british)}".strip()
    name = words.FRACTIONS.get(bottom) or ordinal(bottom, british)
    if top == 1 and m[1]:
        return f"{number(m[1], british)} and {'an' if name[0] in 'aeiou' else 'a'} {name}"
    plural = name if top == 1 else ("halves" if name == "half" else name + "s")
    return (f"{number(m[1], british)} and " if m[1] else "") + f"{cardinal(top)} {plural}"


@NUMBERS.add(r"(?<![\w.])(\d{1,3}(?:,\d{3})+|\d{1,15})(?:st|nd|rd|th)\b", re.IGNORECASE)
def _ordinal(m: re.Match[str], british: bool) -> str:
    return ordinal(int(m[1].replace(",", "")), british)


@NUMBERS.add(r"(?<!\w)'?((?:1\d|20)\d0|[1-9]0)'?s\b")
def _decade(m: re.Match[str], british: bool) -> str:
    n = int(m[1])
    if n >= 1000 and n % 100 == 0:
        return ("two thousand" if n == 2000 else f"{cardinal(n // 100)} hundred") + "s"
    said = year(n, british) if n >= 1000 else cardinal(n)
    return said.removesuffix("y") + "ies" if said.endswith("y") else said + "s"


@NUMBERS.add(r"\b(" + "|".join(words.BEFORE_NUMBER) + r")\.\s?(?=\d)")
def _before_number(m: re.Match[str], _british: bool) -> str:
    return words.BEFORE_NUMBER[m[1]] + " "


NUMBERS.replace(r"#\s?(?=\d)", "number ")


# ------------------------------------------------------------------------------------------------------- Roman numerals
def _roman(text: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10}[c] for c in text]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


_ROMAN = r"(X{0,3}(?:IX|IV|V?I{1,3}|V|(?<=X)))(?![\w'.]*\w)(?:\.(?=[,;:]|\s[a-z]))?"  # "James II. was"


@NUMBERS.add(rf"\b((?i:{words.ROMAN_CARDINAL}))\s{_ROMAN}")
def _roman_cardinal(m: re.Match[str], _british: bool) -> str:
    is_pronoun = m[2] == "I" and m[1].islower()  # "the part I like"
    return f"{m[1]} {cardinal(_roman(m[2]))}" if m[2] and not is_pronoun else m[0]


@NUMBERS.add(rf"\b({words.ROMAN_ORDINAL})\s(?!I\s(?!(?:of|was|and|died|reigned|ruled|became|is|had|who)\b)){_ROMAN}")
def _roman_ordinal(m: re.Match[str], _british: bool) -> str:
    return f"{m[1]} the {ordinal(_roman(m[2]))}" if m[2] else m[0]


# --------------------------------------------------------------------------------------------------------- bare numbers
_BEFORE_YEAR = ("in ", "since ", "year ", "circa ")


@NUMBERS.add(
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


@NUMBERS.add(rf"(?<![A-Za-z.,])({N})(k|M|bn|mn|tn|(?<=\.\d)B)(?!\w)")
def _magnitude(m: re.Match[str], british: bool) -> str:
    return f"{number(m[1], british)} {words.MAGNITUDES[m[2]]}"


NUMBERS.replace(r"\^2\b", " squared")
NUMBERS.replace(r"\^3\b", " cubed")
NUMBERS.replace(r"\s*\^\s*(?=\w)", " to the power of ")
NUMBERS.replace(r"(?<=\d)[x×](?=\d)", " by ")
NUMBERS.replace(r"(?<=\d)\s?[x×*]\s?(?=\d)", " times ")
NUMBERS.replace(r"(?<=\w)\s<\s(?=[\d.-])|(?<=\d)<(?=\d)", " less than ")
NUMBERS.replace(r"(?<=\w)\s>\s(?=[\d.-])|(?<=\d)>(?=\d)", " greater than ")
NUMBERS.replace(r"(?<=\d)\ss\b", " seconds")
NUMBERS.replace(r"(?<![A-Za-z])A-?(?=\d)", "A-")  # espeak reads a lone "A" as the article
NUMBERS.replace(r"(?<=[A-Za-z])(?<!A)-?(?=\d)|(?<=[A-Za-z]A)-?(?=\d)", " ")
NUMBERS.replace(r"(?<=\d)-?(?=[A-Za-z])", " ")


@NUMBERS.add(N)
def _number(m: re.Match[str], british: bool) -> str:
    said = number(m[0], british)
    before = " " if m.start() and m.string[m.start() - 1].isalnum() else ""
    return before + said
