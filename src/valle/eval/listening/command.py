"""``valle eval listening build | serve | report``: the command line of listening tests."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from valle.errors import ValleError
from valle.eval.listening.design import KINDS, MAX_REPEAT_DIFFERENCE, PAGE_FOLDER, ListeningTest


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
    """
    # --max_repeat_difference is --max-repeat-difference; what follows = is the user's own.
    spelt = [re.sub("^--[^=]*", lambda option: option[0].replace("_", "-"), arg) for arg in argv]
    args = _parser().parse_args(spelt)
    if args.command == "build":
        _build(args)
    elif args.command == "serve":
        from valle.eval.listening.serve import serve

        serve(args.folder, args.host, args.port)
    else:
        _report(args, spelt)
    return 0


def _build(args: argparse.Namespace) -> None:
    from valle.eval.listening.build import Wanted, build
    from valle.eval.listening.source import read_sources

    wanted = Wanted(
        kinds=tuple(dict.fromkeys(args.kind)),
        systems=tuple(dict.fromkeys(args.systems)),
        baseline=args.baseline,
        n=args.n,
        repeats=args.repeats,
        n_training=args.training,
        seed=args.seed,
        title=args.title,
        contact=args.contact,
        with_text=args.text,
        embed=args.embed,
    )
    test = build(read_sources(args.sources), wanted, args.out)
    page = args.out / PAGE_FOLDER
    n_bytes = sum(path.stat().st_size for path in page.rglob("*") if path.is_file())
    sentences = len({screen.trial for screen in test.presentations if not screen.training})
    sys.stdout.write(
        f"{len(test.presentations)} screens ({', '.join(test.kinds)}) of {sentences} sentences by "
        f"{', '.join(test.systems)}; baseline {test.baseline}\n"
        f"written: {page}/ for raters ({n_bytes / 1e6:.1f} MB), {args.out}/test.json, the key, for nobody else\n"
        f"next: valle eval listening serve {args.out}\n"
    )


def _report(args: argparse.Namespace, argv: Sequence[str]) -> None:
    from valle.eval.listening.answers import read_answers
    from valle.eval.listening.report import analyse, markdown, plot
    from valle.eval.results import made_by, write_results
    from valle.files import write_atomic

    test = ListeningTest.load(args.folder)
    answers = read_answers(args.folder, test, args.answers)
    if not answers:
        raise ValleError(
            f"there are no answers in {args.folder}; collect some with `valle eval listening serve`, or give --answers"
        )
    results = analyse(
        test, answers, leave_out=args.leave_out_doubtful, max_repeat_difference=args.max_repeat_difference
    )
    if not results["kinds"]:
        raise ValleError(
            "no answer is left: all raters are doubtful, or only practised; see without --leave-out-doubtful"
        )
    made = made_by(["listening", *argv])
    text = markdown(test, results)
    out = args.out or args.folder / "report"
    image = plot(results)
    if image is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "means.png", image)
        text += "\n![Means and intervals](means.png)\n"
    text += f"\nMade by `{made['command']}` (valle {made['valle']}, {made['date']}).\n"
    write_results(out, {"kind": "listening", "made": made, **results}, text)
    sys.stdout.write(f"{text}\nwritten: {out}/report.md, {out}/results.json\n")


def _parser() -> argparse.ArgumentParser:
    about = "Ask people how speech sounds: make a test, serve it, report what they said."
    parser = argparse.ArgumentParser(prog="valle eval listening", description=about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | serve | report")

    build = commands.add_parser("build", help="make the page and its key", allow_abbrev=False)
    build.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder of `valle eval speech` (NAME=folder: what to call its model), or a CSV or JSON-lines list of "
        "trial, system, path, and prompt, reference, text where they are known",
    )
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the test goes")
    build.add_argument("--kind", nargs="+", choices=KINDS, default=["mos"], help="what is asked (mos)")
    build.add_argument("--systems", nargs="+", default=[], metavar="NAME", help="whom to compare (all)")
    build.add_argument(
        "--baseline", default="", metavar="NAME", help="CMOS: against whom (the first but the recording)"
    )
    build.add_argument("--n", type=_count, default=10, help="sentences (%(default)s)")
    build.add_argument(
        "--repeats",
        type=_share_or_number,
        default=0.1,
        metavar="R",
        help="screens of each kind that come twice: share or number (%(default)s)",
    )
    build.add_argument("--training", type=_whole, default=1, metavar="N", help="practice screens a kind (%(default)s)")
    build.add_argument("--seed", type=int, default=0, help="of the choice of sentences (%(default)s)")
    build.add_argument("--title", default="Listening test", help="of the page (%(default)s)")
    build.add_argument("--contact", default="", metavar="WHOM", help="whom raters can ask")
    build.add_argument("--text", action="store_true", help="show what is said")
    build.add_argument("--embed", action="store_true", help="all in one file, to be sent")

    serve = commands.add_parser("serve", help="give out the page and collect answers", allow_abbrev=False)
    serve.add_argument("folder", type=Path, metavar="DIR", help="that build wrote")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0: everybody on the net (%(default)s)")
    serve.add_argument("--port", type=_whole, default=8100, help="0: any (%(default)s)")

    report = commands.add_parser("report", help="what the raters said", allow_abbrev=False)
    report.add_argument("folder", type=Path, metavar="DIR", help="that build wrote")
    report.add_argument("--answers", nargs="+", default=[], type=Path, metavar="FILE", help="that raters sent")
    report.add_argument("--out", type=Path, metavar="DIR", help="where results go (DIR/report)")
    report.add_argument("--leave-out-doubtful", action="store_true", help="without raters who fail a rule")
    report.add_argument(
        "--max-repeat-difference",
        type=_share,
        default=MAX_REPEAT_DIFFERENCE,
        metavar="SHARE",
        help="between answers to one screen, of the scale's length (%(default)s)",
    )
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 0")
    return int(text)


def _count(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return number


def _share_or_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value < 1 or (value >= 1 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"{text!r} must be a share below 1 or a whole number")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be between 0 and 1")
    return value
