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


def overview_as_json(record: Mapping[str, Any]) -> str:
    """The same as JSON, with the keys of a plan."""
    return json.dumps({**record, "problems": [], "notes": []}, indent=2)


def decays_as_json(decays: Sequence[Mapping[str, Any]]) -> str:
    """The same as JSON, with the keys of a plan."""
    rewritten = [{**decay, "rows": "touched" if decay["rows"] else "all"} for decay in decays]
    nothing: dict[str, Any] = {"fuse": None, "steps": [], "variables": [], "problems": [], "notes": []}
    return json.dumps({"version": 1, **nothing, "rewritten": rewritten}, indent=2)
