"""What the speech is worth: word error rate, speaker similarity, signal quality, each with its interval (paper §5.1).

``valle eval`` (``report.main``) measures a codec, a model's speech, the language models' accuracy, and the judges
themselves. The judges are other people's networks, given by path; neither they nor the packages behind them (the extra
``eval``) are needed to speak or to train.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], description: str, unit: str) -> Iterator[T]:
    """The items, with a bar on stderr; a screen that is not a terminal gets a line every 30 s."""
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 30.0
    bar: Iterable[T] = tqdm(
        items, desc=description, unit=unit, file=sys.stderr, dynamic_ncols=True, mininterval=interval
    )
    yield from bar
