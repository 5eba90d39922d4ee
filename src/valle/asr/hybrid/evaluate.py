"""Recognisers side by side: ``python -m valle.asr.hybrid.evaluate SOURCE --recognisers hybrid:DIR hybrid-gmm:DIR ...``.

Word error rate by data set (Whisper's normalisation on both sides, ``valle.data.recognise``), how sure each recogniser
was, and its speed in processor time; with ``--agree`` how far two agree on recordings whose text nobody knows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from valle.data.corpus import Utterance
from valle.data.recognise import load_recogniser, measure, pick
from valle.data.transcripts import Recogniser, transcribe_all
from valle.errors import ValleError, exit_with


def compare(
    utterances: Sequence[Utterance], recognisers: Sequence[Recogniser], cache: str | None = None
) -> tuple[dict[str, dict[str, Any]], str]:
    """Word error rates of each recogniser, as dicts by its name, and all of them as one Markdown table."""
    results = {r.name: measure(utterances, r, cache)[0] for r in recognisers}
    sets = sorted({name for r in results.values() for name in r if isinstance(r[name], dict) and name != "all"})
    columns = ["all", *sets]
    counts = {c: next((r[c]["n"] for r in results.values() if c in r), 0) for c in columns}
    head = " | ".join(f"{c} ({counts[c]})" for c in columns)
    lines = [f"| WER, % [95 % interval] | {head} | real-time factor |", "|---" * (len(columns) + 2) + "|"]
    for name, result in results.items():
        cells = [
            f"{100 * r['mean']:.1f} [{100 * r['low']:.1f}, {100 * r['high']:.1f}]" if (r := result.get(c)) else ""
            for c in columns
        ]
        speed = f"{result['real_time_factor']:.3f}" if "real_time_factor" in result else "from the cache"
        lines.append(f"| {name} | {' | '.join(cells)} | {speed} |")
    return results, "\n".join(lines) + "\n"


def agreement(utterances: Sequence[Utterance], first: Recogniser, second: Recogniser, cache: str | None = None) -> str:
    """How far ``first`` agrees with ``second``, taken for the truth, in all and by tenths of ``first``'s confidence."""
    from valle.eval.wer import error_rate, word_errors

    heard = list(transcribe_all(utterances, first, cache))
    also = list(transcribe_all(utterances, second, cache))
    pairs = [
        (a.confidence, word_errors(b.text, a.text))
        for (_, a), (_, b) in zip(heard, also, strict=True)
        if a is not None and b is not None and b.text
    ]
    pairs.sort(key=lambda pair: -pair[0])
    whole = error_rate([errors for _, errors in pairs]) if pairs else None
    if whole is None:
        raise ValleError(f"{second.name} understood no word in these recordings; give others")
    lines = [
        f"{first.name} against {second.name}: WER {100 * whole.mean:.1f} % [{100 * whole.low:.1f}, "
        f"{100 * whole.high:.1f}] over {len(pairs)} recordings",
        "",
        "| tenth, surest first | confidence | WER, % |",
        "|---|---|---|",
    ]
    for tenth in range(10):
        part = pairs[len(pairs) * tenth // 10 : len(pairs) * (tenth + 1) // 10]
        rate = error_rate([errors for _, errors in part])
        if part and rate is not None:
            lines.append(f"| {tenth + 1} | {part[-1][0]:.2f} to {part[0][0]:.2f} | {100 * rate.mean:.1f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m valle.asr.hybrid.evaluate", description="Measure recognisers side by side."
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a list, or KIND:PATH (see valle.data.sources)")
    parser.add_argument(
        "--recognisers",
        nargs="+",
        required=True,
        metavar="R",
        help="hybrid:DIR, hybrid-gmm:DIR, vosk:DIR, whisper:NAME ...",
    )
    parser.add_argument("--split", default="test", help="which recordings (test)")
    parser.add_argument("--agree", action="store_true", help="no text is known: the first against the second")
    parser.add_argument("--max", type=int, metavar="N", help="only N of them, always the same")
    parser.add_argument("--cache", metavar="FILE", help="keep the transcripts there, and go on from it")
    parser.add_argument("--out", metavar="FILE", help="also write the table there")
    args = parser.parse_args(argv)
    import torch

    from valle.data.sources import read_split
    from valle.files import check_writable, write_atomic

    if args.max is not None and args.max < 1:
        raise ValleError(f"--max is {args.max}; give how many recordings to take, 1 or more")
    if args.out:
        check_writable(args.out)
    torch.set_num_threads(1)
    utterances = read_split(args.source, args.split, with_text=not args.agree)
    utterances = pick(utterances, args.max or len(utterances))
    recognisers = [load_recogniser(spec) for spec in args.recognisers]
    if args.agree:
        if len(recognisers) != 2:
            raise ValleError(f"{len(recognisers)} recognisers are given; --agree compares two")
        table = agreement(utterances, recognisers[0], recognisers[1], args.cache)
    else:
        _, table = compare(utterances, recognisers, args.cache)
    if args.out:
        write_atomic(args.out, table.encode())
    sys.stdout.write(table)
    return 0


if __name__ == "__main__":
    exit_with(main)
