"""``valle eval publish DIR --name NAME``: a measurement's figures for the repository, without its utterances.

``NAME.json`` is what the README's tables are filled from (``valle eval readme``), ``NAME.md`` is the report beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valle.errors import ValleError
from valle.eval.results import plain, read_results
from valle.files import write_atomic

FOLDER = Path("docs/results")
_OF_UTTERANCES = ("hard_cases",)  # whose words need not be repeated


def publish(folder: Path, name: str, to: Path = FOLDER) -> tuple[Path, Path]:
    """Write ``to/NAME.json`` and ``to/NAME.md`` from a folder of results; gives both paths.

    Raises:
        ValleError: the name is no file's, or there is no result or report.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValleError(f"{name!r} cannot be the name of a file; give letters, digits, dots and dashes")
    results, report = read_results(folder), folder / "report.md"
    if not report.is_file():
        raise ValleError(f"there is no {report}; `valle eval report {folder}` writes it")
    to.mkdir(parents=True, exist_ok=True)
    figures, text = to / f"{name}.json", to / f"{name}.md"
    body = json.dumps(plain(figures_of(results)), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(figures, body.encode() + b"\n")
    write_atomic(text, _with_pictures(report.read_text(encoding="utf-8"), folder, name, to).encode())
    return figures, text


def _with_pictures(report: str, folder: Path, name: str, to: Path) -> str:
    """The report with its pictures beside it, under names that begin with its own."""

    def copied(match: re.Match[str]) -> str:
        picture = folder / match[2]
        if not picture.is_file():
            raise ValleError(f"the report shows {picture}, which is not there; measure again")
        own = f"{name}-{picture.name}"
        write_atomic(to / own, picture.read_bytes())
        return f"![{match[1]}]({own})"

    return re.sub(r"!\[([^\]]*)\]\(([\w.-]+)\)", copied, report)


def figures_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results without what is about single utterances."""
    return {key: value for key, value in results.items() if key not in _OF_UTTERANCES}


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
    """
    about = "Put the figures of a measurement and its report into docs/results."
    parser = argparse.ArgumentParser(prog="valle eval publish", description=about, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `valle eval codec | speech | lm | judges` wrote")
    parser.add_argument("--name", required=True, help="of the two files, such as speech-v4.1-test")
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="DIR", help="where they go (%(default)s)")
    args = parser.parse_args(argv)
    figures, text = publish(args.folder, args.name, args.to)
    sys.stdout.write(f"written: {figures}, {text}\nnext: valle eval readme --write\n")
    return 0
