"""``valle eval readme --check | --write``: the tables of README.md, filled from the figures in docs/results.

A table stands between two comments. The first says what it is made from and what its rows are called::

    <!-- results: speech NAME DATASET="what it is" ... -->
    <!-- results: codec NAME -->
    ...
    <!-- end -->

NAME is a file of ``valle eval publish`` without its ``.json``.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valle.errors import ValleError
from valle.eval.bootstrap import Estimate
from valle.eval.publish import FOLDER
from valle.eval.results import Column, Row, read_results, table
from valle.files import write_atomic

FILES = (Path("README.md"), Path("MODEL_CARD.md"))
"""Where tables may stand."""

_PLACE = re.compile(r"(<!-- results: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_BEGIN, _END = "<!-- results:", "<!-- end -->"
_WER, _COSINE = Column("wer", "WER %", 1, percent=True), Column("sim_o", "cosine with the prompt", 3)
_CODEC = (
    Column("mel", "mel distance", 3),
    Column("stoi", "STOI", 3),
    Column("pesq", "PESQ"),
    Column("speaker", "speaker cosine", 3),
    _WER,
)
_WITH_INTERVAL = ("speaker", "wer")  # of the codec's columns; six columns of intervals do not fit


def fill(text: str, folder: Path, where: str = "the text") -> str:
    """The text with every table made anew.

    Args:
        text: of a Markdown file.
        folder: of the published figures.
        where: the file's name, for errors.

    Raises:
        ValleError: a comment is of another form, has no end, or names figures that are not there.
    """
    if len(_PLACE.findall(text)) != text.count(_BEGIN) or text.count(_BEGIN) != text.count(_END):
        raise ValleError(f"{where} has a table of results that does not end with {_END} (or the other way round)")
    return _PLACE.sub(lambda place: f"{place[1]}\n{_table(place[2], folder, where)}\n{place[4]}", text)


def speech_table(results: Mapping[str, Any], corpora: Mapping[str, str]) -> str:
    """Recordings, round trip and the model, and the model on each corpus.

    Args:
        results: of a speech measurement.
        corpora: what to call each corpus that gets a row.
    """
    model = results["model"]["name"]
    rows: dict[str, Row] = {
        "recordings": results["rows"]["recording"],
        "codec round trip": results["rows"]["codec round trip"],
        f"**{model}**": results["rows"][model],
    }
    for number, (corpus, words) in enumerate(corpora.items()):
        recorded = _of_corpus(results, corpus, "recording")["wer"]
        assert isinstance(recorded, Estimate)
        note = f"{'' if number else 'recordings '}{_WER.show(recorded.mean)} %"
        rows[f"– {words} ({note})"] = _of_corpus(results, corpus, model)
    text = table("zero-shot speech, 3 s prompts", rows, (_WER, _COSINE))
    return re.sub(r"^(\| \*\*.*?\*\*) \| (.*?) \| (.*?) \|$", r"\1 | **\2** | **\3** |", text, flags=re.MULTILINE)


def codec_table(results: Mapping[str, Any]) -> str:
    """The round trip by codebooks."""
    rows = {
        name: {
            key: value.mean if isinstance(value, Estimate) and key not in _WITH_INTERVAL else value
            for key, value in row.items()
        }
        for name, row in results["rows"].items()
    }
    return table("codec round trip, by codebooks", rows, _CODEC)


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0, or 1 where ``--check`` finds a table that is not what the figures say.

    Raises:
        ValleError: what the user got wrong.
    """
    about = "The tables of results in README.md, filled from the figures in docs/results."
    parser = argparse.ArgumentParser(prog="valle eval readme", description=about, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="show what differs; exit code 1 if anything does")
    what.add_argument("--write", action="store_true", help="write what differs")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="DIR", help="the figures (%(default)s)")
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help=f"in place of {' and '.join(map(str, FILES))}"
    )
    args = parser.parse_args(argv)
    different, n_tables = [], 0
    for path in args.files or [path for path in FILES if path.is_file()]:
        if not path.is_file():
            raise ValleError(f"there is no {path}")
        text = path.read_text(encoding="utf-8")
        n_tables += text.count(_BEGIN)
        filled = fill(text, args.results, str(path))
        if filled != text:
            different.append(path)
            if args.write:
                write_atomic(path, filled.encode())
            else:
                lines = difflib.unified_diff(
                    text.splitlines(), filled.splitlines(), str(path), "figures", n=0, lineterm=""
                )
                sys.stdout.write("\n".join(lines) + "\n")
    if not n_tables:
        raise ValleError(
            f"there is no table of results, which begins with {_BEGIN} ... -->; run this in the repository"
        )
    told = ", ".join(map(str, different))
    if args.write:
        sys.stdout.write(f"{n_tables} tables; " + (f"written: {told}\n" if different else "nothing to change\n"))
        return 0
    sys.stdout.write(
        f"{n_tables} tables; " + (f"{told}: run `valle eval readme --write`\n" if different else "all right\n")
    )
    return 1 if different else 0


def _table(spec: str, folder: Path, where: str) -> str:
    """The table of one comment."""
    try:
        kind, name, *labels = shlex.split(spec)
        corpora = dict(label.split("=", 1) for label in labels)
    except ValueError as error:
        raise ValleError(
            f'{where}: "results: {spec}" is not of the form: results: KIND NAME [DATASET="words" ...]'
        ) from error
    results = read_results(folder / f"{name}.json")
    if kind not in ("speech", "codec") or results["kind"] != kind:
        raise ValleError(f"{where}: {name} holds results of {results['kind']}; a table of {kind} cannot be made of it")
    return speech_table(results, corpora) if kind == "speech" else codec_table(results)


def _of_corpus(results: Mapping[str, Any], corpus: str, row: str) -> Row:
    rows: Mapping[str, Row] = results["by_corpus"]
    if f"{corpus}: {row}" not in rows:
        known = ", ".join(sorted({name.split(":")[0] for name in rows}))
        raise ValleError(f"the results have no corpus {corpus}; they have {known}")
    return rows[f"{corpus}: {row}"]


if __name__ == "__main__":
    from valle.cli import main as door

    sys.exit(door(["eval", "readme", *sys.argv[1:]]))
