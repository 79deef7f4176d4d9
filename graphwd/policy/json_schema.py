"""The JSON schema of a policy (draft 2020-12), for editors; of the same table as the one that reads.

``policy.schema.json`` beside this module is what `schema_text` gives: ``tools/write_policy_schema.py`` writes it, and a
test compares. What a policy must be and no schema can say is left to the reader (``graphwd check``):

* that a regular expression compiles, that a name is one in Python, and that a number is finite, and a whole one spelled
  without a point;
* that boundaries rise, and are one fewer than their values;
* what fields say together: a rate below 1 where it is a share of the weight, a preset beside its own fields, ``order``
  and ``scale`` where the mode is coupled, ``peak_learning_rate`` and ``step`` where they say nothing or are needed, a
  formula that needs another mode, and rules that share a ``tunable`` but not its number;
* what the versions of YAML read differently, duplicate keys and tags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from graphwd.policy.kinds import Shape
from graphwd.policy.schedule import schedule_shape
from graphwd.policy.schema import DEFAULT_FIELDS, POLICY_FIELDS, RULE_FIELDS, SELECTOR_FIELDS, Table

FILE = "policy.schema.json"
"""Its file, in this package."""


def written_schema() -> str:
    """The schema as this package comes with it; without TensorFlow."""
    return (resources.files(__package__ or "graphwd.policy") / FILE).read_text(encoding="utf-8")


def schema_text() -> str:
    """The schema of the table; imports TensorFlow, for formulas and schedules."""
    return json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n"


def policy_schema() -> dict[str, Any]:
    """The schema of the table, as plain values; imports TensorFlow."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "graphwd policy",
        "description": "Which variables of a TensorFlow training step decay, and how: see graphwd help policy.",
        **_object(_properties(POLICY_FIELDS)),
        "required": ["version"],
        "anyOf": [{"required": ["weight_decay"]}, {"required": ["rules"]}],
        # A rule needs a rate, its own or that of the defaults.
        "if": {"required": ["defaults"], "properties": {"defaults": {"required": ["weight_decay"]}}},
        "else": {"properties": {"rules": {"items": {"required": ["weight_decay"]}}}},
        "$defs": {
            "rule": _object(_references(RULE_FIELDS)),
            "defaults": _object(_references(DEFAULT_FIELDS)),
            "exemption": {**_object(_references(SELECTOR_FIELDS)), "minProperties": 1},
            "schedule": schedule_shape(),
            **_properties(RULE_FIELDS),
        },
    }


def _object(properties: Mapping[str, Shape]) -> dict[str, Any]:
    """The schema of a mapping that has no other keys."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _properties(table: Table) -> dict[str, Shape]:
    """The schemas of the fields that a file can hold."""
    shapes = {key: field.kind.shape() for key, field in table.items()}
    return {key: {"description": table[key].about, **shape} for key, shape in shapes.items() if shape is not None}


def _references(table: Table) -> dict[str, Shape]:
    """References to these schemas, which are defined once for all mappings that share a field."""
    return {key: {"$ref": f"#/$defs/{key}"} for key in _properties(table)}
