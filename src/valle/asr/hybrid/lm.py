"""n-gram language models: counted from texts, smoothed by Witten and Bell's rule, written and read as ARPA files.

Counts may be fractions, so that lists of words (and of pairs) with their frequencies in other texts can be added as if
they were so many words of text: the corpus tells how its sentences go, the lists which words there are.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from valle.errors import ValleError
from valle.files import write_atomic

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
Gram = tuple[str, ...]
_NEVER = -99.0  # log10 of the probability of what cannot be said, by convention


@dataclass
class NGrams:
    """A back-off model: log10 probabilities of grams, and log10 weights of their back-off."""

    order: int
    """Of the longest grams."""
    probabilities: dict[Gram, float] = field(default_factory=dict)
    """log10 P(last word | those before it)."""
    backoffs: dict[Gram, float] = field(default_factory=dict)
    """log10 of what a history leaves to its shorter one; 0 where it is not listed."""

    @property
    def words(self) -> list[str]:
        """All that can be said, sorted."""
        return sorted(g[0] for g in self.probabilities if len(g) == 1 and g[0] not in (BEGIN, END, UNKNOWN))

    def log10(self, history: Sequence[str], word: str) -> float:
        """log10 P(word | history); minus infinity for a word that is not in it."""
        gram = (*history[max(0, len(history) - self.order + 1) :], word)
        total = 0.0
        while gram not in self.probabilities:
            if len(gram) == 1:
                return -math.inf
            total += self.backoffs.get(gram[:-1], 0.0)
            gram = gram[1:]
        return total + self.probabilities[gram]

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> tuple[float, float]:
        """(perplexity over known words and ends, share of words that are unknown)."""
        total, n, n_unknown, n_words = 0.0, 0, 0, 0
        for sentence in sentences:
            history = [BEGIN]
            for word in [*sentence, END]:
                value = self.log10(history, word)
                n_words += word != END
                if math.isinf(value):
                    n_unknown += 1
                else:
                    total, n = total + value, n + 1
                history.append(word)
        return 10 ** (-total / max(1, n)), n_unknown / max(1, n_words)

    def save(self, path: str | Path) -> None:
        """Write an ARPA file."""
        by_order: dict[int, list[Gram]] = defaultdict(list)
        for gram in self.probabilities:
            by_order[len(gram)].append(gram)
        lines = ["\\data\\", *(f"ngram {n}={len(by_order[n])}" for n in range(1, self.order + 1)), ""]
        for n in range(1, self.order + 1):
            lines.append(f"\\{n}-grams:")
            for gram in sorted(by_order[n]):
                backoff = f"\t{self.backoffs[gram]:.4f}" if gram in self.backoffs else ""
                lines.append(f"{self.probabilities[gram]:.4f}\t{' '.join(gram)}{backoff}")
            lines.append("")
        write_atomic(path, ("\n".join([*lines, "\\end\\"]) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> NGrams:
        """Read an ARPA file, by whomever it was made; words become lower case, as texts are (LibriSpeech's are upper).

        Raises:
            ValleError: it cannot be read, or is none.
        """
        try:
            with Path(path).open(encoding="utf-8") as file:
                return _read_arpa(file)
        except OSError as error:
            raise ValleError(f"the language model {path} cannot be read: {error.strerror or error}") from error
        except (ValueError, IndexError) as error:
            raise ValleError(f"{path} is not an ARPA language model: {error}") from error


def count_grams(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """Grams of 1 ... ``order`` words, with the ends of sentences: a counter for each length."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = [BEGIN, *sentence, END]
        for n in range(1, order + 1):
            for start in range(len(words) - n + 1):
                counts[n - 1][tuple(words[start : start + n])] += 1
    return counts


def train_ngrams(
    sentences: Iterable[Sequence[str]],
    order: int = 3,
    *,
    words: Iterable[str] = (),
    more: Sequence[Mapping[Gram, float]] = (),
    min_counts: Sequence[int] = (1, 1, 1, 2),
) -> NGrams:
    """Count and smooth.

    Args:
        sentences: of words.
        order: words of the longest gram, 1 or more.
        words: that can be said too, though no text has them.
        more: further counts of single words, of pairs ...; grams with a word that is in neither are no loss.
        min_counts: grams of 1, 2, 3 ... words seen less often are left out.

    Raises:
        ValleError: no sentence has a word, or an order below 1.
    """
    if order < 1:
        raise ValleError(f"the order of the language model is {order}; it must be at least 1, 3 is usual")
    counts: list[dict[Gram, float]] = [dict(c) for c in count_grams(sentences, order)]
    if len(counts[0]) <= 2:
        raise ValleError("the texts of the language model have no words; give transcripts")
    for word in words:
        counts[0].setdefault((word,), 0.0)
    for n, extra in enumerate(more[:order]):
        for gram, count in extra.items():
            if n == 0 or all((w,) in counts[0] for w in gram):
                counts[n][gram] = counts[n].get(gram, 0.0) + count
    counts[0].pop((BEGIN,), None)
    model = NGrams(order)
    total = sum(counts[0].values())
    kinds = sum(min(1.0, c) for c in counts[0].values())
    for gram, count in counts[0].items():
        model.probabilities[gram] = math.log10((count + kinds / len(counts[0])) / (total + kinds))
    model.probabilities[(BEGIN,)] = _NEVER
    for n in range(2, order + 1):
        least = min_counts[n - 1] if n <= len(min_counts) else 1
        of_history: dict[Gram, list[tuple[str, float]]] = defaultdict(list)
        for gram, count in counts[n - 1].items():
            if count >= least or (least <= 1 and count > 0):
                of_history[gram[:-1]].append((gram[-1], count))
        for history, followers in of_history.items():
            if history not in model.probabilities:
                continue
            seen = sum(c for _, c in followers)
            left = sum(min(1.0, c) for _, c in followers)
            model.backoffs[history] = math.log10(left / (seen + left))
            for word, count in followers:
                lower = 10 ** model.log10(history[1:], word)
                p = (count + left * lower) / (seen + left)
                model.probabilities[(*history, word)] = math.log10(min(p, 1.0))
    return model


def _read_arpa(file: TextIO) -> NGrams:
    model, n = NGrams(0), 0
    started = ended = False
    for line in file:
        line = line.strip()
        if line == "\\data\\":
            started = True
        elif line == "\\end\\":
            ended = True
            break
        elif line.startswith("\\") and line.endswith("-grams:"):
            n = int(line[1:].split("-")[0])
            model.order = max(model.order, n)
        elif n and line:
            parts = line.split()
            gram = tuple(w.lower() for w in parts[1 : n + 1])
            model.probabilities[gram] = float(parts[0])
            if len(parts) > n + 1:
                model.backoffs[gram] = float(parts[n + 1])
    if not started or not model.order:
        raise ValueError("it has no \\data\\ and no grams")
    if not ended:
        raise ValueError("it stops before \\end\\, so a part of it is missing")
    return model
