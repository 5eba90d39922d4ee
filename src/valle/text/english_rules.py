"""How an English normalisation rule is written, and the pieces that several rules need."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from valle.text import english_words as words

Rule: TypeAlias = Callable[[re.Match[str], bool], str]  # (match, British?) -> its words

_STARTERS = "|".join(sorted(words.SENTENCE_STARTERS))
_ENDS = re.compile(rf"[\"')\]]*(?:$|\s+[\"'(]*(?:{_STARTERS})\b)")


class Rules:
    """Patterns and what becomes of their matches, applied one after the other in the order in which they were added."""

    def __init__(self) -> None:
        self._rules: list[tuple[re.Pattern[str], Rule]] = []

    def add(self, pattern: str, flags: int = 0) -> Callable[[Rule], Rule]:
        """The decorator of a function that turns a match into words."""

        def register(rule: Rule) -> Rule:
            self._rules.append((re.compile(pattern, flags), rule))
            return rule

        return register

    def replace(self, pattern: str, replacement: str) -> None:
        """Add a rule that is a template, as for ``re.sub``."""
        self._rules.append((re.compile(pattern), lambda match, _british: match.expand(replacement)))

    def apply(self, text: str, british: bool) -> str:
        for pattern, rule in self._rules:
            text = pattern.sub(lambda match, rule=rule: rule(match, british), text)  # type: ignore[misc]
        return text


def letters(text: str) -> str:
    """Letters to be said one by one: "FBI" -> "f.b.i"."""
    return ".".join(text.lower())


def stop(match: re.Match[str]) -> str:
    """The full stop at the end of ``match`` if it ends a sentence and not only an abbreviation."""
    return "." if match[0].endswith(".") and _ENDS.match(match.string, match.end()) else ""
