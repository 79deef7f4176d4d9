"""Tests that need a process of their own, which Bazel gives them and a run of several files by hand does not."""

from __future__ import annotations

import os

import pytest


def skip_by_hand(reason: str) -> None:
    """Skips a test, or a file of tests, that was started by hand in a way in which it cannot run.

    Under Bazel, as `tools/test` runs it, nothing is skipped: there it is a failure.

    Args:
        reason: why it cannot, and how it is to be started.
    """
    if "TEST_TARGET" in os.environ:  # which Bazel sets
        pytest.fail(f"not as tools/test must start it: {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
