"""What may be said, as one transducer from tied states to words: H, C, L and G composed by kaldifst, as Kaldi does.

As a unit is one state that is entered and may stay, H without its loops only renames the labels of CLG: to a "kind",
which is a pair of pdfs (first step, further steps). Determinised and minimised with those, the graph then gets the
loops: a state that is entered by units of several kinds becomes several states.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from valle.asr.hybrid.chain import NOISE_COST
from valle.asr.hybrid.lexicon import Lexicon, Pronunciation
from valle.asr.hybrid.lm import BEGIN, END, UNKNOWN, NGrams
from valle.asr.hybrid.units import NOISE_ID, SILENCE_ID
from valle.data.sources import need
from valle.errors import ValleError

_LN10 = 2.302585
_HALF = 0.6931  # a pause between words and none are equally likely


class Graph(NamedTuple):
    """A decoding graph."""

    fst: Any
    """kaldifst.StdVectorFst: pdf + 1 in, word + 1 out."""
    words: list[str]
    """By number."""
    key: str = ""
    """Twelve hex digits over what it was made of; empty for one that belongs to no folder."""

    @property
    def n_arcs(self) -> int:
        """How large it is."""
        return sum(self.fst.num_arcs(s) for s in range(self.fst.num_states))


def build_graph(
    lexicon: Lexicon, lm: NGrams, pdfs: NDArray[np.int32], word_cost: float = 0.0, noise: bool = False
) -> Graph:
    """HCLG for words that the lexicon and the language model both have.

    Args:
        lexicon: how they are said.
        lm: how they follow each other.
        pdfs: [units, left, 2].
        word_cost: added for each word.
        noise: whether a unit is noise (``Units.has_noise``), which may be wherever silence may.

    Raises:
        ValleError: the two have no word in common.
    """
    k = need("kaldifst", "the hybrid recogniser", "asr")
    words = [w for w in lm.words if w in lexicon]
    if not words:
        raise ValleError("the lexicon and the language model have no word in common; are they of one language?")
    ids = {w: i + 1 for i, w in enumerate(words)}
    n_units = len(pdfs)
    l_text, n_marks = _lexicon_text(lexicon, ids, n_units, noise)
    marks = list(range(n_units + 1, n_units + 1 + n_marks))
    l_fst = k.compile(l_text)
    k.arcsort(l_fst, "olabel")
    g_fst = k.compile(_grammar_text(lm, ids, word_cost))
    k.arcsort(g_fst, "ilabel")
    lg = _vector(k, k.compose(l_fst, g_fst))
    k.determinize_star(lg, use_log=True)
    k.minimize_encoded(lg)
    k.arcsort(lg, "ilabel")
    clg, contexts = k.compose_context(marks, 2, 1, lg)
    kinds: dict[tuple[int, int], int] = {}
    mark_labels = []
    renamed: list[tuple[int, int]] = []
    for label, context in enumerate(contexts):
        if label == 0 or not context:
            continue
        if context[-1] <= 0:
            mark_labels.append(label)
            continue
        left, unit = max(context[0] - 1, SILENCE_ID), context[1] - 1
        pair = (int(pdfs[unit, left, 0]), int(pdfs[unit, left, 1]))
        renamed.append((kinds.setdefault(pair, len(kinds) + 1), label))
    n_labels = len(kinds)
    h_lines = [f"0 0 {kind} {label}" for kind, label in renamed]
    h_lines += [f"0 0 {n_labels + 1 + i} {label}" for i, label in enumerate(mark_labels)]
    hclg = _renamed(k, h_lines, clg)
    k.determinize_star(hclg, use_log=True)
    no_marks = [f"0 0 {i} {i}" for i in range(1, n_labels + 1)]
    no_marks += [f"0 0 0 {n_labels + 1 + i}" for i in range(len(mark_labels))]
    hclg = _renamed(k, no_marks, hclg)
    k.minimize_encoded(hclg)
    k.connect(hclg)
    return Graph(_with_loops(k, hclg, list(kinds)), words)


def _lexicon_text(lexicon: Lexicon, ids: dict[str, int], n_units: int, noise: bool) -> tuple[str, int]:
    """L with optional silence, noise, and marks that make it determinisable; labels are unit + 1, then marks #0 ..."""
    said: list[tuple[str, Pronunciation, float]] = [
        (word, p, -float(np.log(n))) for word in ids for p, n in lexicon[word] if p
    ]
    same = Counter(p for _, p, _ in said)
    begun = {p[:i] for _, p, _ in said for i in range(1, len(p))}
    used: Counter[Pronunciation] = Counter()
    first_mark = n_units + 1
    start, loop, quiet, after, after_noise = 0, 1, 2, 3, 4
    lines: list[str] = [f"{start} {loop} 0 0 {_HALF}", f"{start} {quiet} 0 0 {_HALF}"]
    n_states, most = 4 + noise, 0
    for word, p, cost in said:
        labels = [u + 1 for u in p]
        if same[p] > 1 or p in begun:
            used[p] += 1
            most = max(most, used[p])
            labels.append(first_mark + used[p])
        at = loop
        for i, label in enumerate(labels[:-1]):
            lines.append(f"{at} {n_states} {label} {ids[word] if i == 0 else 0} {cost if i == 0 else 0}")
            at, n_states = n_states, n_states + 1
        out, weight = (ids[word], cost) if at == loop else (0, 0.0)
        lines.append(f"{at} {loop} {labels[-1]} {out} {weight + _HALF}")
        lines.append(f"{at} {quiet} {labels[-1]} {out} {weight + _HALF}")
    lines.append(f"{quiet} {after} {SILENCE_ID + 1} 0")
    lines.append(f"{after} {loop} {first_mark + most + 1} 0")
    if noise:
        lines += [f"{n} {after_noise} {NOISE_ID + 1} 0 {NOISE_COST}" for n in (quiet, after)]
        lines.append(f"{after_noise} {after} {SILENCE_ID + 1} 0")
        lines.append(f"{after_noise} {loop} {first_mark + most + 1} 0")
    lines.append(f"{loop} {loop} {first_mark} {len(ids) + 1}")  # the back-off of G
    lines.append(f"{loop}")
    return "\n".join(lines) + "\n", most + 2


def _grammar_text(lm: NGrams, ids: dict[str, int], word_cost: float) -> str:
    """G: a state for each history, back-off by the mark #0, the end of a sentence as a final weight."""
    states: dict[tuple[str, ...], int] = {}
    known = {BEGIN, *ids}

    def state(history: tuple[str, ...]) -> int:
        return states.setdefault(history, len(states))

    histories = {g[:-1] for g in lm.probabilities if all(w in known for w in g[:-1])} | {()}

    def longest(gram: tuple[str, ...]) -> tuple[str, ...]:
        gram = gram[max(0, len(gram) - lm.order + 1) :]
        while gram not in histories:
            gram = gram[1:]
        return gram

    begin = longest((BEGIN,))
    state(begin)
    lines: list[str] = []
    for gram, p in lm.probabilities.items():
        history, word = gram[:-1], gram[-1]
        if history not in histories or word in (BEGIN, UNKNOWN):
            continue
        if word == END:
            lines.append(f"{state(history)} {-p * _LN10:.4f}")
        elif word in ids:
            label, weight = ids[word], -p * _LN10 + word_cost
            lines.append(f"{state(history)} {state(longest(gram))} {label} {label} {weight:.4f}")
    for history in histories:
        if history:
            shorter = history[1:]
            while shorter not in histories:
                shorter = shorter[1:]
            weight = -lm.backoffs.get(history, 0.0) * _LN10
            lines.append(f"{state(history)} {state(shorter)} {len(ids) + 1} 0 {weight:.4f}")
    first = next(i for i, line in enumerate(lines) if line.startswith(f"{state(begin)} "))
    lines[0], lines[first] = lines[first], lines[0]  # the first line's state is the start
    return "\n".join(lines) + "\n"


def _vector(k: Any, fst: Any) -> Any:
    """A vector transducer that the in-place operations take."""
    return fst if isinstance(fst, k.StdVectorFst) else k.StdVectorFst(fst)


def _renamed(k: Any, lines: list[str], fst: Any) -> Any:
    """The input labels of ``fst`` by a transducer of one state."""
    names = k.compile("\n".join([*lines, "0"]) + "\n")
    k.arcsort(names, "olabel")
    k.arcsort(fst, "ilabel")
    return _vector(k, k.compose(names, fst))


def _with_loops(k: Any, fst: Any, pairs: list[tuple[int, int]]) -> Any:
    """Kinds to pdfs + 1, and each state's loop for further steps."""
    arcs: list[tuple[int, int, int, int, float]] = []
    finals: dict[int, float] = {}
    start = -1
    for line in fst.to_str().splitlines():
        parts = line.split()
        if start < 0:
            start = int(parts[0])
        if len(parts) >= 4:
            weight = float(parts[4]) if len(parts) > 4 else 0.0
            arcs.append((int(parts[0]), int(parts[1]), int(parts[2]), int(parts[3]), weight))
        elif parts:
            finals[int(parts[0])] = float(parts[1]) if len(parts) > 1 else 0.0
    copies: dict[int, list[int]] = {start: [0]}  # state -> the kinds by which it is entered
    for _, target, kind, _, _ in arcs:
        entered = copies.setdefault(target, [])
        if kind not in entered:
            entered.append(kind)
    numbers = {(s, kind): i for i, (s, kind) in enumerate((s, kind) for s, kinds in copies.items() for kind in kinds)}
    lines = []
    for source, target, kind, word, weight in arcs:
        to = numbers[target, kind]
        label = pairs[kind - 1][0] + 1 if kind else 0
        for entered_by in copies.get(source, ()):
            lines.append(f"{numbers[source, entered_by]} {to} {label} {word} {weight:g}")
    for (state, kind), number in numbers.items():
        if kind:
            lines.append(f"{number} {number} {pairs[kind - 1][1] + 1} 0")
        if state in finals:
            lines.append(f"{number} {finals[state]:g}")
    first = next(i for i, line in enumerate(lines) if line.startswith("0 "))
    lines[0], lines[first] = lines[first], lines[0]
    return k.compile("\n".join(lines) + "\n", fst_type="vector")
