"""Records of plans, as `Plan.record` returns them, written by hand."""

from __future__ import annotations

from typing import Any

DECAYED = {
    "outcome": "decay",
    "weight_decay": 5e-4,
    "mode": "decoupled",
    "order": "after",
    "scale": "none",
    "tunable": None,
    "schedule": None,
    "peak_learning_rate": None,
    "formula": "l2",
    "rows": "all",
}
"""What a plan says of the decay of a variable."""


def variable(name: str = "net/kernel", **changes: Any) -> dict[str, Any]:
    """A variable that is decayed, with other values for some keys."""
    return {
        "name": name,
        "label": name,
        "shape": [3, 2],
        "dtype": "float32",
        "path": None,
        "role": None,
        "seen": None,
        "followed_by": None,
        "rule": "policy.yaml:3",
        **DECAYED,
        "updates": [{"op": "AssignSubVariableOp", "at": "sub", "evidence": "computed from a gradient scope"}],
        **changes,
    }
