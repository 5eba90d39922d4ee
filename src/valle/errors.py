"""The one exception that users see: a sentence that says what was given, what is needed and what to do."""

import sys
from collections.abc import Callable
from typing import NoReturn


class ValleError(ValueError):
    """A mistake in what the user gave (a file, a text, an option), told in one sentence.

    The command line prints it without a traceback and exits with code 2. Broken invariants of the
    library itself are ``assert``s instead.
    """


def exit_with(main: Callable[[], int]) -> NoReturn:
    """End a ``python -m`` module with what its ``main`` returns, or with one sentence and 2 after a ``ValleError``."""
    try:
        sys.exit(main())
    except ValleError as mistake:
        sys.stderr.write(f"valle: error: {mistake}\n")
        sys.exit(2)
