"""``python -m valle.eval`` is ``valle eval``."""

import sys

from valle.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
