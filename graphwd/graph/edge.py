"""The edges of a body."""

from __future__ import annotations

from typing import NamedTuple


class Use(NamedTuple):
    """One data input of one node."""

    node: str
    position: int
