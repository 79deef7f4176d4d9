"""``python -m graphwd``."""

import sys

from graphwd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
