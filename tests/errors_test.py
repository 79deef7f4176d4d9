"""The error tree and its exit statuses."""

from __future__ import annotations

import inspect

import pytest

from graphwd import errors


@pytest.mark.parametrize(
    ("name", "exit_status"),
    [
        ("UsageError", 2),
        ("PolicyError", 2),
        ("StepError", 1),
        ("GraphError", 1),
        ("PlanError", 1),
        ("RewriteError", 1),
        ("VerifyError", 1),
    ],
)
def test_exit_status(name, exit_status):
    error = getattr(errors, name)("message")
    assert isinstance(error, errors.GraphwdError)
    assert error.exit_status == exit_status
    assert str(error) == "message"


def test_every_error_has_one_parent():
    tree = {name: cls.__bases__ for name, cls in inspect.getmembers(errors, inspect.isclass)}
    assert tree.pop("GraphwdError") == (Exception,)
    assert set(tree) == {
        *(
            "UsageError",
            "PolicyError",
            "StepError",
            "GraphError",
            "PlanError",
            "UnclearError",
            "RewriteError",
            "VerifyError",
        )
    }
    assert set(tree.values()) == {(errors.GraphwdError,)}
