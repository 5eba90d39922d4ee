"""What a panel said: means with intervals, comparisons, agreement, and raters that the rules would leave out.

A rater is doubtful who, on one of the scales,
- reference: does not rate the recordings above the other systems on the whole (CMOS: not above the baseline);
- repeats: gives answers to the same screen that differ by more than ``max_repeat_difference`` of the scale on average;
- heard: answers without having heard everything, or sooner than it lasts.

The page makes the last impossible; answers of another origin may have it. Doubtful raters are listed, and left out only
when asked: a rule that is used after the results were seen is no rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from valle.eval.bootstrap import Estimate
from valle.eval.listening.answers import Answer
from valle.eval.listening.design import MAX_REPEAT_DIFFERENCE, RECORDING, SCALES, Kind, ListeningTest, Presentation
from valle.eval.listening.stats import Rating, alpha, crossed_interval, holm, means_by, wilcoxon
from valle.eval.results import Column, table
from valle.plots import as_bytes, new_figure

MIN_REFERENCES = 3
"""With fewer recordings rated, a rater is not judged by them."""
MIN_REPEATS = 2
"""With fewer repeated screens, a rater is not judged by them."""
_HURRY = 0.9  # of the sounds' length: clocks differ a little
_TITLES: dict[Kind, str] = {
    "smos": "SMOS: is it the prompt's voice? (1 to 5)",
    "mos": "MOS: how natural is it? (1 to 5)",
    "cmos": "CMOS: which is better? (-3 to +3)",
}


@dataclass(frozen=True)
class Heard:
    """An answer with what was behind it."""

    answer: Answer
    """As given."""
    screen: Presentation
    """What was heard."""
    system: str
    """Whom the value is about."""
    value: float
    """The score; of CMOS, how much better the system is than the baseline."""


def join(answers: Iterable[Answer], test: ListeningTest) -> list[Heard]:
    """Answers with their systems; training is left out."""
    by_id, heard = test.by_id, []
    for answer in answers:
        screen = by_id[answer.presentation]
        if screen.training:
            continue
        system, value = screen.systems[0], float(answer.score)
        if screen.kind == "cmos":
            first, second = screen.systems[::-1] if answer.swapped else screen.systems
            system = first if second == test.baseline else second
            value = value if system == second else -value
        heard.append(Heard(answer, screen, system, value + 0.0))  # + 0.0: no minus zero
    return heard


def screen_raters(
    heard: Sequence[Heard], *, max_repeat_difference: float = MAX_REPEAT_DIFFERENCE
) -> dict[str, dict[str, Any]]:
    """What is known of each rater, and in ``doubts`` the rules that they fail."""
    raters: dict[str, dict[str, Any]] = {}
    for name in sorted({h.answer.rater for h in heard}):
        own = [h for h in heard if h.answer.rater == name]
        unheard = sum(_was_skipped(h) for h in own)
        doubts = ["heard"] if unheard else []
        row: dict[str, Any] = {"answers": len(own), "device": own[-1].answer.device, "unheard": unheard}
        for kind in SCALES:
            of_kind = [h for h in own if h.screen.kind == kind]
            low, high = SCALES[kind]
            margin = _reference_margin(of_kind, kind)
            differences = repeat_differences(of_kind)
            if margin is not None:
                row[f"reference_{kind}"] = margin
                doubts += [f"reference ({kind})"] if margin <= 0 else []
            if differences:
                row[f"repeats_{kind}"] = float(np.mean(differences))
                too_far = len(differences) >= MIN_REPEATS and np.mean(differences) > max_repeat_difference * (
                    high - low
                )
                doubts += [f"repeats ({kind})"] if too_far else []
        raters[name] = {**row, "doubts": doubts}
    return raters


def repeat_differences(heard: Sequence[Heard]) -> list[float]:
    """How far apart the two answers to each screen that came twice are."""
    first = {(h.answer.rater, h.screen.id): h.value for h in heard}
    return [
        abs(h.value - first[h.answer.rater, h.screen.repeat_of])
        for h in heard
        if h.screen.repeat_of and (h.answer.rater, h.screen.repeat_of) in first
    ]


def analyse(
    test: ListeningTest,
    answers: Sequence[Answer],
    *,
    leave_out: bool = False,
    max_repeat_difference: float = MAX_REPEAT_DIFFERENCE,
) -> dict[str, Any]:
    """All numbers of a test, ready for JSON but for ``Estimate``.

    Args:
        test: the key.
        answers: of all raters.
        leave_out: without the doubtful raters.
        max_repeat_difference: between the answers to one screen, as a share of the scale.
    """
    heard = join(answers, test)
    raters = screen_raters(heard, max_repeat_difference=max_repeat_difference)
    if leave_out:
        heard = [h for h in heard if not raters[h.answer.rater]["doubts"]]
    kinds = {
        kind: _kind(test, kind, own) for kind in test.kinds if (own := [h for h in heard if h.screen.kind == kind])
    }
    return {
        "test": test.id,
        "baseline": test.baseline,
        "kinds": kinds,
        "raters": raters,
        "n_raters": len({h.answer.rater for h in heard}),
        "doubtful_left_out": leave_out,
        "max_repeat_difference": max_repeat_difference,
    }


def _kind(test: ListeningTest, kind: Kind, heard: Sequence[Heard]) -> dict[str, Any]:
    """The numbers of one question; repeats count only for the raters' own agreement."""
    once = [h for h in heard if not h.screen.repeat_of]
    ratings = {
        system: [Rating(h.answer.rater, h.screen.trial, h.value) for h in once if h.system == system]
        for system in test.systems
    }
    rows = {
        system: {"mean": crossed_interval(own), "ratings": len(own), "sentences": len({r.item for r in own})}
        for system, own in ratings.items()
        if own
    }
    if kind == "cmos":  # a rating is a comparison already
        pairs = {(system, test.baseline): own for system, own in ratings.items() if own}
    else:
        pairs = {
            (a, b): differences for a, b in combinations(test.systems, 2) if (differences := _paired(ratings, a, b))
        }
    comparisons: list[dict[str, Any]] = [
        {
            "systems": list(pair),
            "difference": crossed_interval(own),
            "p_sentences": wilcoxon(means_by(own, "item")),
            "p_raters": wilcoxon(means_by(own, "rater")),
            "n_sentences": len({r.item for r in own}),
            "n_raters": len({r.rater for r in own}),
        }
        for pair, own in pairs.items()
    ]
    for key in ("p_sentences", "p_raters"):
        for comparison, p in zip(comparisons, holm([c[key] for c in comparisons]), strict=True):
            comparison[f"{key}_holm"] = p
    units: dict[Any, list[float]] = {}
    for h in once:
        units.setdefault(h.screen.id, []).append(h.value)
    repeated = repeat_differences(heard)
    return {
        "systems": rows if kind != "cmos" else {},
        "comparisons": comparisons,
        "n_raters": len({h.answer.rater for h in heard}),
        "alpha": alpha(units),
        "n_units": sum(len(values) > 1 for values in units.values()),
        "repeats": {
            "n": len(repeated),
            "mean_difference": float(np.mean(repeated)) if repeated else None,
            "same": float(np.mean([d == 0 for d in repeated])) if repeated else None,
            "within_one": float(np.mean([d <= 1 for d in repeated])) if repeated else None,
        },
        "side": _side(heard) if kind == "cmos" else None,
    }


def markdown(test: ListeningTest, results: Mapping[str, Any]) -> str:
    """The report for people."""
    raters: dict[str, dict[str, Any]] = results["raters"]
    doubtful = [name for name, row in raters.items() if row["doubts"]]
    devices = Counter(row["device"] or "not told" for row in raters.values())
    lines = [
        f"# Listening test {test.id}\n",
        f"{len(raters)} raters ({', '.join(f'{what} {n}' for what, n in devices.most_common())}); "
        f"{len(doubtful)} doubtful, {'left out' if results['doubtful_left_out'] else 'not left out'}. "
        "Mean and 95 % interval, by a bootstrap over raters and sentences at once.\n",
    ]
    if results["n_raters"] < 6:
        lines.append(
            f"With {results['n_raters']} raters no difference can be significant over raters, and the intervals say "
            "little about others.\n"
        )
    for kind, numbers in results["kinds"].items():
        lines.append(f"## {_TITLES[kind]}\n")
        if numbers["systems"]:
            columns = (
                Column("mean", f"{kind.upper()} ↑"),
                Column("ratings", "ratings", 0),
                Column("sentences", "sentences", 0),
            )
            lines.append(table("", numbers["systems"], columns))
        if numbers["comparisons"]:
            lines.append(_comparison_table(numbers["comparisons"]))
        lines.append(_agreement(numbers) + "\n")
    lines += ["## Raters\n", _rater_table(raters, list(results["kinds"])), _rules(results["max_repeat_difference"])]
    return "\n".join(lines)


def plot(results: Mapping[str, Any]) -> bytes | None:
    """The means as a PNG; None where there is no matplotlib or nothing to show."""
    shown: dict[Kind, dict[str, Estimate]] = {}
    for kind, numbers in results["kinds"].items():
        means = {name: row["mean"] for name, row in numbers["systems"].items()}
        if kind == "cmos":
            means = {" against ".join(c["systems"]): c["difference"] for c in numbers["comparisons"]}
        shown[kind] = means
    if not shown:
        return None
    height = 0.6 * len(shown) + 0.4 * sum(len(means) for means in shown.values())
    try:
        figure = new_figure(7, max(2.0, height))
    except ModuleNotFoundError:
        return None
    ratios = [len(means) + 1 for means in shown.values()]
    axes = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for ax, (kind, means) in zip(axes, shown.items(), strict=True):
        for y, estimate in enumerate(means.values()):
            ax.plot([estimate.low, estimate.high], [y, y], color="#3465a4", linewidth=2)
            ax.plot([estimate.mean], [y], "o", color="#3465a4")
        ax.set_yticks(range(len(means)), list(means), parse_math=False)
        ax.set_ylim(len(means) - 0.5, -0.5)
        ax.set_xlim(*SCALES[kind])
        ax.set_xlabel(kind.upper())
        ax.spines[["top", "right"]].set_visible(False)
        if kind == "cmos":
            ax.axvline(0, color="black", linewidth=1)
    return as_bytes(figure)


def _was_skipped(heard: Heard) -> bool:
    return heard.answer.heard < heard.screen.n_sounds or heard.answer.elapsed_s < _HURRY * heard.screen.seconds


def _reference_margin(heard: Sequence[Heard], kind: Kind) -> float | None:
    """How far one rater puts recordings above everything else; None where there are too few."""
    references = [h.value for h in heard if h.system == RECORDING]
    others = [h.value for h in heard if h.system != RECORDING]
    if len(references) < MIN_REFERENCES or (kind != "cmos" and not others):
        return None
    return float(np.mean(references) - (0.0 if kind == "cmos" else np.mean(others)))


def _paired(ratings: Mapping[str, Sequence[Rating]], a: str, b: str) -> list[Rating]:
    """a minus b, by those who rated both in the same sentence: what a rater is generous with cancels."""
    other = {(r.rater, r.item): r.value for r in ratings[b]}
    return [Rating(r.rater, r.item, r.value - other[r.rater, r.item]) for r in ratings[a] if (r.rater, r.item) in other]


def _side(heard: Sequence[Heard]) -> float:
    """Mean score of the second sound over the first, whoever speaks: about 0, since each is as often second."""
    return float(np.mean([h.answer.score for h in heard]))


def _comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    rows = {f"{c['systems'][0]} – {c['systems'][1]}": c for c in comparisons}
    return table(
        "difference",
        rows,
        (
            Column("difference", "mean"),
            Column("p_sentences", "p over sentences", 4),
            Column("p_sentences_holm", "Holm", 4),
            Column("p_raters", "p over raters", 4),
            Column("p_raters_holm", "Holm", 4),
        ),
    )


def _agreement(numbers: Mapping[str, Any]) -> str:
    value, repeats = numbers["alpha"], numbers["repeats"]
    told = [
        f"{numbers['n_raters']} raters. Krippendorff's alpha (interval) "
        + (f"{value:.2f} over {numbers['n_units']} screens." if value is not None else "cannot be told.")
    ]
    if repeats["n"]:
        told.append(
            f"The same screen again ({repeats['n']} times): {repeats['mean_difference']:.2f} points apart on average, "
            f"{100 * repeats['same']:.0f} % the same, {100 * repeats['within_one']:.0f} % within one point."
        )
    if numbers["side"] is not None:
        told.append(f"The second sound got {numbers['side']:+.2f} on average, whoever spoke.")
    return " ".join(told)


def _rater_table(raters: Mapping[str, Mapping[str, Any]], kinds: Sequence[Kind]) -> str:
    head = ["rater", "answers", "device"]
    head += [f"{what} ({kind})" for kind in kinds for what in ("reference", "repeats")] + ["not heard", "doubts"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in raters.items():
        cells = [name, str(row["answers"]), row["device"] or "–"]
        for kind in kinds:
            margin, apart = row.get(f"reference_{kind}"), row.get(f"repeats_{kind}")
            cells += ["–" if margin is None else f"{margin:+.2f}", "–" if apart is None else f"{apart:.2f}"]
        cells += [str(row["unheard"]), ", ".join(row["doubts"]) or "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _rules(max_repeat_difference: float) -> str:
    five, seven = (max_repeat_difference * (SCALES[k][1] - SCALES[k][0]) for k in ("mos", "cmos"))
    return (
        "Doubtful is who does not put recordings above the other systems (CMOS: above the baseline), given "
        f"{MIN_REFERENCES} of them; whose two answers to one screen are more than {five:g} points (CMOS {seven:g}) "
        f"apart on average, given {MIN_REPEATS} screens; or who answered without having heard all.\n\n"
        "The p values are of Wilcoxon's signed-rank test, two-sided and exact, of the means of sentences (would other "
        "sentences give the same?) and of raters (would other raters?), and corrected by Holm for the number of "
        "comparisons of one question. A difference holds when both are small.\n"
    )
