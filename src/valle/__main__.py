"""``python -m valle`` is ``valle``."""

from valle.cli import enter

enter()
