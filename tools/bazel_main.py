"""The command as `bazel run //:graphwd`: in the folder that bazel was called in, where the user's paths hold.

It stands outside graphwd/ because Python puts the script's real folder on sys.path: each module there would
hide a top-level one of the same name.
"""

import os
import sys

from graphwd.cli.main import main

if __name__ == "__main__":
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    sys.exit(main())
