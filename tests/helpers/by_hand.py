"""Tests that need a process of their own, which Bazel gives them and a run of several files by hand does not."""

from __future__ import annotations

import os

import pytest


def skip_by_hand(reason: str) -> None:
    """Skips a test, or a file of tests, that was started by hand in a way in which it cannot run.

    Under Bazel, as `tools/test` runs it, nothing is skipped: there it is a failure, and each file has a process of its
    own. By hand, TensorFlow may have been started by another file, and no test can undo that: it splits the CPU, and
    chooses what ``tf.keras`` is, once a process. A failure would be one of collection, after which pytest runs no file.

    Args:
        reason: why it cannot, and how it is to be started.
    """
    if "TEST_TARGET" in os.environ:  # which Bazel sets
        pytest.fail(f"not as tools/test must start it: {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
