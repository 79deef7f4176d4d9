"""Runs pytest for one `graphwd_test`, and speaks Bazel's test protocol.

Bazel says what it wants in environment variables (https://bazel.build/reference/test-encyclopedia): where
the JUnit report goes, which shard this is, which tests to take, and where a test may write.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


class Shard:
    """A pytest plugin that keeps one shard of the tests: every `total`-th of them, from `index`."""

    def __init__(self, index: int, total: int) -> None:
        self._index = index
        self._total = total
        self.found = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drops the other shards' tests, after pytest has dropped those that the filter leaves out."""
        self.found = len(items)
        items[:] = items[self._index :: self._total]


def main(arguments: list[str]) -> int:
    """Runs pytest.

    Args:
        arguments: pytest's own, the test file among them.

    Returns:
        pytest's exit status, but 0 for a shard without a test where other shards have some. A file or a
        filter that selects no test at all fails.
    """
    _leave_source_tree()
    scratch = Path(os.environ["TEST_TMPDIR"])
    home = scratch / "home"
    home.mkdir(exist_ok=True)
    os.environ["HOME"] = str(home)
    if status_file := os.environ.get("TEST_SHARD_STATUS_FILE"):
        Path(status_file).touch()
    shard = Shard(int(os.environ.get("TEST_SHARD_INDEX", "0")), int(os.environ.get("TEST_TOTAL_SHARDS", "1")))
    status = pytest.main([*_options(scratch), *arguments], plugins=[shard])
    if status == pytest.ExitCode.NO_TESTS_COLLECTED and shard.found:
        return 0
    return int(status)


def _leave_source_tree() -> None:
    """Makes Python find what the target declares, and nothing else of the source tree.

    Python has put the real folder of this file on sys.path, and the editable install has added a finder
    that knows every module of the package.
    """
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not finder.__module__.startswith("__editable__")]


def _options(scratch: Path) -> list[str]:
    options = ["--config-file=pyproject.toml", "-p", "no:cacheprovider", f"--basetemp={scratch / 'pytest'}"]
    if report := os.environ.get("XML_OUTPUT_FILE"):
        options.append(f"--junitxml={report}")
    if wanted := os.environ.get("TESTBRIDGE_TEST_ONLY"):
        options += ["-k", wanted]
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
