"""Answers: what the page sends or saves is checked against the test, and kept in SQLite, each of them once.

A rater's answer to a screen is given once: the same again changes nothing (pages send again when the line was cut), a
different one is refused.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from valle.errors import ValleError
from valle.eval.listening.design import DATABASE, SCALES, ListeningTest

FORMAT = 1
DEVICES = ("", "headphones", "loudspeaker")
MAX_RATERS = 10_000
"""More are no panel but somebody filling the disk."""
_RATER = re.compile(r"[A-Za-z0-9._-]{1,40}")
_MAX_ELAPSED_S = 86_400.0


class ContradictionError(ValleError):
    """A screen that was answered before is answered differently."""


@dataclass(frozen=True)
class Answer:
    """One score."""

    rater: str
    """A code, not a name."""
    presentation: str
    """The screen."""
    score: int
    """As it was given; of CMOS, for the sound heard second."""
    swapped: bool
    """CMOS: the sounds came in the other order than the test's."""
    heard: int
    """Sounds that were played to their end."""
    elapsed_s: float
    """From the screen's showing to the answer."""
    position: int
    """In the rater's order."""
    device: str
    """What the rater listened with."""


def parse(values: object, test: ListeningTest) -> list[Answer]:
    """The answers in what a page sends or saves.

    Raises:
        ValleError: something in it is not of this test, or not an answer.
    """
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("answers"), list):
        raise ValleError("this holds no answers of a listening test; send what the page makes")
    if values.get("test") != test.id:
        raise ValleError("these are answers of another test; load the page again")
    rater, device = values.get("rater"), values.get("device", "")
    if not isinstance(rater, str) or not _RATER.fullmatch(rater):
        raise ValleError("the rater's code must be 1 to 40 letters, digits, dots and dashes")
    if device not in DEVICES:
        raise ValleError(f"the device must be one of {', '.join(DEVICES[1:])}")
    by_id = test.by_id
    found: dict[str, Answer] = {}
    for value in values["answers"]:
        if not isinstance(value, dict) or not isinstance(value.get("id"), str) or value["id"] not in by_id:
            raise ValleError("there is an answer to a screen that this test does not have")
        screen = by_id[value["id"]]
        low, high = SCALES[screen.kind]
        elapsed = value.get("elapsed_s")
        if not _whole(value.get("score"), low, high):
            raise ValleError(f"a score of {screen.kind.upper()} must be a whole number from {low} to {high}")
        if not isinstance(value.get("swapped"), bool) or (value["swapped"] and screen.kind != "cmos"):
            raise ValleError("swapped must be true or false, and false where there is no pair")
        if not _whole(value.get("heard"), 0, screen.n_sounds) or not _whole(value.get("position"), 0, len(by_id) - 1):
            raise ValleError("heard and position must be whole numbers that the test allows")
        if isinstance(elapsed, bool) or not isinstance(elapsed, int | float) or not 0 <= elapsed < math.inf:
            raise ValleError("elapsed_s must be seconds")
        answer = Answer(
            rater,
            screen.id,
            value["score"],
            value["swapped"],
            value["heard"],
            min(float(elapsed), _MAX_ELAPSED_S),
            value["position"],
            device,
        )
        if found.setdefault(screen.id, answer) != answer:
            raise ContradictionError(f"the rater {rater} answers one screen twice, and differently")
    return list(found.values())


class AnswerStore:
    """``answers.sqlite``. Each use opens and closes it, so that any thread may."""

    def __init__(self, folder: str | Path, test: ListeningTest) -> None:
        """Open or begin the database of a test's folder.

        Raises:
            ValleError: it is damaged, cannot be written, or belongs to another test.
        """
        self.path, self.test = Path(folder) / DATABASE, test
        columns = ", ".join(f"{f.name} {_SQL_TYPES[str(f.type)]} NOT NULL" for f in fields(Answer))
        try:
            with self._open() as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("CREATE TABLE IF NOT EXISTS test (id TEXT NOT NULL)")
                db.execute(
                    f"CREATE TABLE IF NOT EXISTS answers ({columns}, received TEXT NOT NULL, "
                    "PRIMARY KEY (rater, presentation)) WITHOUT ROWID"
                )
                owners = [row[0] for row in db.execute("SELECT id FROM test")]
                if not owners:
                    db.execute("INSERT INTO test VALUES (?)", (test.id,))
        except sqlite3.Error as error:
            raise ValleError(
                f"the answers {self.path} cannot be kept: {error}; look at the disk and the file"
            ) from error
        if owners not in ([], [test.id]):
            raise ValleError(f"{self.path} has answers of another test; move it away")

    def add(self, answers: Sequence[Answer]) -> int:
        """Keep all or none; how many of them are new.

        Raises:
            ContradictionError: one was answered differently before.
            ValleError: there are too many raters.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")  # nobody else writes between looking and adding
            n_raters = db.execute("SELECT count(DISTINCT rater) FROM answers").fetchone()[0]
            new = []
            for answer in answers:
                row = db.execute(
                    f"SELECT {_COLUMNS} FROM answers WHERE rater = ? AND presentation = ?",
                    (answer.rater, answer.presentation),
                ).fetchone()
                if row is None:
                    new.append(answer)
                else:
                    _require_same(_from_row(row), answer)
            if new and n_raters >= MAX_RATERS and not self._knows(db, new[0].rater):
                raise ValleError("there are too many raters; this test is closed")
            marks = ", ".join("?" * (len(fields(Answer)) + 1))
            db.executemany(f"INSERT INTO answers VALUES ({marks})", [(*astuple(a), now) for a in new])
        return len(new)

    def answered(self, rater: str) -> list[str]:
        """The screens that a rater has answered."""
        with self._open() as db:
            rows = db.execute("SELECT presentation FROM answers WHERE rater = ? ORDER BY position", (rater,))
            return [row[0] for row in rows]

    def all(self) -> list[Answer]:
        """Every answer, by rater and in the order in which they were given."""
        with self._open() as db:
            return [_from_row(r) for r in db.execute(f"SELECT {_COLUMNS} FROM answers ORDER BY rater, position")]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose work is kept when nothing goes wrong."""
        db = sqlite3.connect(self.path, timeout=20)
        try:
            with db:
                yield db
        finally:
            db.close()

    @staticmethod
    def _knows(db: sqlite3.Connection, rater: str) -> bool:
        return db.execute("SELECT 1 FROM answers WHERE rater = ? LIMIT 1", (rater,)).fetchone() is not None


def read_answers(folder: str | Path, test: ListeningTest, paths: Iterable[str | Path] = ()) -> list[Answer]:
    """The answers of a test's folder and of files that raters sent, each once.

    Raises:
        ValleError: a file cannot be read or is not of this test, or two answers contradict each other.
    """
    stored = AnswerStore(folder, test).all() if (Path(folder) / DATABASE).is_file() else []
    found = {(answer.rater, answer.presentation): answer for answer in stored}
    for path in paths:
        try:
            answers = parse(json.loads(Path(path).read_text(encoding="utf-8-sig")), test)
        except OSError as error:
            raise ValleError(f"the answers {path} cannot be read: {error.strerror}") from error
        except ContradictionError:
            raise
        except ValueError as error:  # not JSON, not UTF-8, or not of this test
            raise ValleError(f"the answers {path} cannot be used: {error}") from error
        for answer in answers:
            _require_same(found.setdefault((answer.rater, answer.presentation), answer), answer)
    return list(found.values())


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _require_same(old: Answer, new: Answer) -> None:
    """The device is asked anew when a page is opened again; the answer may not change."""
    if (old.score, old.swapped) != (new.score, new.swapped):
        raise ContradictionError(
            f"the rater {new.rater} has answered the screen {new.presentation} differently before; two people may have "
            "the same code: choose another one"
        )


_COLUMNS = ", ".join(f.name for f in fields(Answer))
_SQL_TYPES = {"str": "TEXT", "int": "INTEGER", "bool": "INTEGER", "float": "REAL"}


def _from_row(row: Sequence[Any]) -> Answer:
    values = dict(zip((f.name for f in fields(Answer)), row, strict=True))
    return Answer(**{**values, "swapped": bool(values["swapped"])})
