"""The sentences that were understood worst, word by word: where a rate comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from valle.eval.trials import Trial
from valle.eval.wer import AlignedWord, WordErrors, align_words

_WIDTH = 100  # characters of a line


def hard_cases(trials: Sequence[Trial], records: Sequence[Sequence[Mapping[str, Any]]], n: int) -> list[dict[str, Any]]:
    """The n sentences with most errors (of as many errors the shorter), each by its worst run; ready for JSON.

    Args:
        trials: what was to be said.
        records: the measurements of each, one a run.
        n: how many; fewer when not so many have errors.
    """
    cases = []
    for trial, own in zip(trials, records, strict=True):
        counted = [(WordErrors(**r["wer"]), run, r.get("stop", "")) for run, r in enumerate(own, 1) if r["wer"]]
        if not counted:
            continue
        errors, run, stop = max(counted, key=lambda one: (one[0].errors, -one[1]))
        if errors.errors:
            cases.append(
                {
                    "trial": trial.id,
                    "run": run,
                    "stop": stop,
                    **errors.to_dict(),
                    "alignment": [list(word) for word in align_words(errors.reference, errors.hypothesis)],
                }
            )
    cases.sort(key=lambda case: (-sum(case[k] for k in ("substitutions", "deletions", "insertions")), case["words"]))
    return cases[: max(n, 0)]


def describe_cases(cases: Sequence[Mapping[str, Any]], row: str, runs: int) -> str:
    """A section of the report; empty without cases."""
    if not cases:
        return ""
    blocks = []
    for case in cases:
        errors = ", ".join(f"{k[0].upper()} {case[k]}" for k in ("substitutions", "deletions", "insertions") if case[k])
        head = f"{case['trial']} (run {case['run']})" if runs > 1 else str(case["trial"])
        head += f": {errors} of {case['words']} words"
        head += f", ended by {case['stop']}" if case["stop"] else ""
        blocks.append(f"{head}\n{show_alignment([AlignedWord(*word) for word in case['alignment']])}")
    body = "\n\n".join(blocks)
    return (
        f"\n## Hardest sentences\n\nThe {len(cases)} with most errors of {row}: the text, what was heard (both "
        f"normalised), and under them S for substituted, D for deleted, I for inserted words.\n\n```\n{body}\n```\n"
    )


def show_alignment(words: Sequence[AlignedWord]) -> str:
    """Three lines one under the other, as often as the width asks for."""
    lines: list[list[str]] = []
    left = 0
    for mark, reference, hypothesis in words:
        wide = max(len(reference), len(hypothesis), 1)
        if wide + 1 > left:
            lines += [["text  "], ["heard "], ["      "]]
            left = _WIDTH
        for line, cell in zip(lines[-3:], (reference or "*" * wide, hypothesis or "*" * wide, mark), strict=True):
            line.append(cell.ljust(wide))
        left -= wide + 1
    return "\n".join(" ".join(line).rstrip() for line in lines if len(line) > 1)
