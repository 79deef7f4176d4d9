"""``python -m graphwd``."""

import sys

from graphwd.cli import main

if __name__ == "__main__":
    sys.exit(main())
