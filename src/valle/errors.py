"""The one exception that users see: a sentence that says what was given, what is needed and what to do."""


class ValleError(ValueError):
    """A mistake in what the user gave (a file, a text, an option), told in one sentence.

    The command line prints it without a traceback and exits with code 2. Broken invariants of the
    library itself are ``assert``s instead.
    """
