"""How far a build of a pack is: hours done, hours of recordings an hour, what was left out, and the time left."""

from __future__ import annotations

import datetime
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

LOG_EVERY_S = 30.0
"""Between two lines, where the output is no terminal: a log is not a screen."""


class Done(NamedTuple):
    """What was done of one shard so far; lengths are those that the sources tell."""

    made_s: float = 0.0
    """Seconds of recordings that were encoded or left out."""
    kept_s: float = 0.0
    """Seconds of recordings in a shard that was there already."""
    rejected: int = 0
    """Recordings left out."""


class Progress:
    """A bar on a terminal, or a line now and then. Speed and time left are reckoned from what was made, not kept.

    ``note`` says how far a shard is, not how much was added: one that has to begin again takes its part back. The first
    one starts the clock: what is loaded before does not count. Threads may share it.
    """

    def __init__(
        self, total_s: float, *, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            total_s: seconds of recordings in all.
            file: where it is shown, standard error by default.
            clock: seconds that pass.
        """
        self.total_s, self._clock = total_s, clock
        self._file = sys.stderr if file is None else file
        self._shards: dict[int, Done] = {}
        self._sum = Done()
        self._lock = threading.RLock()
        self._start: float | None = None
        self._shown = clock()
        self._bar: tqdm[Any] | None = None
        if self._file.isatty():
            form = "prepare: {percentage:3.0f}%|{bar}| {desc}"
            total = max(total_s / 3600, 1e-9)
            self._bar = tqdm(total=total, file=self._file, bar_format=form, dynamic_ncols=True, mininterval=0)

    def note(self, shard: int, done: Done) -> None:
        """Shard number ``shard`` is so far; shows it if it is time to."""
        with self._lock:
            if self._start is None:
                self._start = self._clock()
            before = self._shards.get(shard, Done())
            self._shards[shard] = done
            was = self._sum
            self._sum = Done(
                was.made_s + done.made_s - before.made_s,
                was.kept_s + done.kept_s - before.kept_s,
                was.rejected + done.rejected - before.rejected,
            )
            self.show()

    def show(self, *, now: bool = False) -> None:
        """Show it if it is time to, or ``now``."""
        with self._lock:
            time_s = self._clock()
            if not now and time_s - self._shown < (0.2 if self._bar is not None else LOG_EVERY_S):
                return
            self._shown = time_s
            if self._bar is None:
                self._file.write(f"prepare: {self}\n")
                self._file.flush()
            else:
                self._bar.n = min(self._sum.made_s + self._sum.kept_s, self.total_s) / 3600
                self._bar.set_description_str(str(self))

    def __str__(self) -> str:
        """``1.20 of 9.80 h, 45.2 h/h, 17 rejected, 0:11:25 left``."""
        made_s, kept_s, rejected = self._sum
        parts = [f"{(made_s + kept_s) / 3600:.2f} of {self.total_s / 3600:.2f} h"]
        speed = 0.0
        if made_s and self._start is not None:
            speed = made_s / max(self._clock() - self._start, 1e-9)  # seconds a second
            parts.append(f"{speed:.1f} h/h")
        parts.append(f"{rejected} rejected")
        if speed:
            left_s = max(self.total_s - made_s - kept_s, 0.0) / speed
            parts.append(f"{datetime.timedelta(seconds=round(left_s))} left")
        return ", ".join(parts)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.show(now=True)
        if self._bar is not None:
            self._bar.close()
