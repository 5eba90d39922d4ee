"""``python -m valle.bench`` is ``valle bench``."""

import sys

from valle import cli

if __name__ == "__main__":
    sys.exit(cli.main(["bench", *sys.argv[1:]]))
