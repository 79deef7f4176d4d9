"""What messages have in common."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str], most: int = 6) -> str:
    """Names for a message, in quotes: the first ones, and how many more there are."""
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
