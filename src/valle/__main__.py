"""``python -m valle`` is ``valle``."""

import sys

from valle.cli import main

sys.exit(main())
