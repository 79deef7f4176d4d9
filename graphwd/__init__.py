"""Weight decay, variable by variable, for any TensorFlow training step.

The public names are imported when they are first used, so that reading a policy never waits for TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphwd import keras  # noqa: F401 - an attribute, but not of __all__
    from graphwd.decorator import rewrite, with_weight_decay
    from graphwd.errors import (
        GraphError,
        GraphwdError,
        PlanError,
        PolicyError,
        RewriteError,
        StepError,
        UsageError,
        VerifyError,
    )
    from graphwd.pipeline import plan
    from graphwd.planner import Plan
    from graphwd.policy import Policy, load_policy
    from graphwd.saved_model import rewrite_saved_model, strip
    from graphwd.verifier import Verification, verify

__version__ = "0.1.0"

# Without keras, which "from graphwd import *" would put in the place of the user's own.
__all__ = [
    "GraphError",
    "GraphwdError",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "RewriteError",
    "StepError",
    "UsageError",
    "Verification",
    "VerifyError",
    "load_policy",
    "plan",
    "rewrite",
    "rewrite_saved_model",
    "strip",
    "verify",
    "with_weight_decay",
]

_HOME = {
    "Plan": "planner",
    "Policy": "policy",
    "Verification": "verifier",
    "load_policy": "policy",
    "plan": "pipeline",
    "rewrite": "decorator",
    "rewrite_saved_model": "saved_model",
    "strip": "saved_model",
    "verify": "verifier",
    "with_weight_decay": "decorator",
}


def __getattr__(name: str) -> Any:
    if name == "keras":
        return importlib.import_module("graphwd.keras")
    if name not in __all__:
        raise AttributeError(f"module 'graphwd' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"graphwd.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", "keras"]
