"""Weight decay, variable by variable, for any TensorFlow training step.

The public names are imported when they are first used, so that reading a policy never waits for TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphwd import keras as keras
    from graphwd.checking.verify import Verification, verify
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
    from graphwd.models.saved_model import rewrite_saved_model, strip
    from graphwd.planning.plan import Plan
    from graphwd.policy.rules import Policy, Rule, load_policy
    from graphwd.steps.decorator import rewrite, with_weight_decay
    from graphwd.steps.pipeline import plan, suggest
    from graphwd.steps.state import state
    from graphwd.steps.watch import write_summaries

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
    "Rule",
    "StepError",
    "UsageError",
    "Verification",
    "VerifyError",
    "load_policy",
    "plan",
    "rewrite",
    "rewrite_saved_model",
    "state",
    "strip",
    "suggest",
    "verify",
    "with_weight_decay",
    "write_summaries",
]

_HOME = {
    "Plan": "planning.plan",
    "Policy": "policy.rules",
    "Rule": "policy.rules",
    "Verification": "checking.verify",
    "load_policy": "policy.rules",
    "plan": "steps.pipeline",
    "rewrite": "steps.decorator",
    "rewrite_saved_model": "models.saved_model",
    "state": "steps.state",
    "strip": "models.saved_model",
    "suggest": "steps.pipeline",
    "verify": "checking.verify",
    "with_weight_decay": "steps.decorator",
    "write_summaries": "steps.watch",
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
