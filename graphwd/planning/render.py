"""Shows the record of a plan as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def as_json(record: Mapping[str, Any]) -> str:
    """The plan as JSON.

    Args:
        record: what `Plan.record` returns.

    Returns:
        JSON text, keys in a fixed order.
    """
    return json.dumps(record, indent=2)


_OF_A_RULE = (
    *("outcome", "rule", "weight_decay", "mode", "order", "scale", "tunable", "schedule", "peak_learning_rate"),
    *("formula", "formula_digest", "rows"),
)
"""The keys of a variable that say what a policy does with it."""


def without_policy(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a plan that was made for want of a policy, to know the variables: what a rule says is null.

    Args:
        record: what `Plan.record` returns.
    """
    nothing = dict.fromkeys(_OF_A_RULE)
    return {**record, "fuse": None, "variables": [{**variable, **nothing} for variable in record["variables"]]}


def overview_as_json(record: Mapping[str, Any]) -> str:
    """The same as JSON, with the keys of a plan."""
    return json.dumps({**without_policy(record), "problems": [], "notes": []}, indent=2)


def decays_as_json(decays: Sequence[Mapping[str, Any]]) -> str:
    """The same as JSON, with the keys of a plan."""
    rewritten = [{**decay, "rows": "touched" if decay["rows"] else "all"} for decay in decays]
    nothing: dict[str, Any] = {"fuse": None, "steps": [], "variables": [], "problems": [], "notes": []}
    return json.dumps({"version": 1, **nothing, "rewritten": rewritten}, indent=2)
