"""Writes graphwd/policy/policy.schema.json, the JSON schema of a policy, from the table that reads one.

Usage: .venv/bin/python tools/write_policy_schema.py, in any folder, whenever the table has changed.
"""

from __future__ import annotations

from pathlib import Path

from graphwd.policy import json_schema


def main() -> None:
    """Writes the file."""
    Path(json_schema.__file__).with_name(json_schema.FILE).write_text(json_schema.schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
