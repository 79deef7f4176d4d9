"""Whether contenders that should agree do, after one step from the same values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from contenders import AT_ONCE, FLOOR, LEARNING_RATE, OWN, Case, Step
from workloads import tensor_of

EXACT, CLOSE, FUSED = 2, 4, 64
"""Units in the last place: the same arithmetic, the same in another order, and contracted by XLA."""


class Check(NamedTuple):
    """One comparison.

    Attributes:
        one: a contender.
        other: the one that it must agree with.
        ulps: by how much they differ, at most, in units in the last place.
        limit: by how much they may.
    """

    one: str
    other: str
    ulps: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether they agree."""
        return self.ulps <= self.limit

    def __str__(self) -> str:
        """The comparison in words."""
        return f"{self.one} = {self.other} to {self.ulps:.3g} ulp (at most {self.limit:g})"


def _pairs(case: Case) -> list[tuple[str, str, float]]:
    by_hand = "assign loop, rows touched" if case.writes_rows else "assign loop"
    pairs = [
        ("graphwd decoupled", by_hand, EXACT),
        ("graphwd decoupled, fuse: xla", by_hand, FUSED),
        (AT_ONCE, by_hand, EXACT),
        ("graphwd adamw", OWN, CLOSE),
        ("graphwd adamw, fuse: xla", OWN, FUSED),
    ]
    if case.workload.touched:
        return [*pairs, ("graphwd decoupled, all rows", "assign loop", EXACT)]
    return [*pairs, (FLOOR, by_hand, EXACT)]


def check(case: Case, steps: Mapping[str, Step]) -> list[Check]:
    """Compares the contenders that have taken one step; those that are not there are left out."""
    return [
        Check(one, other, _difference(steps[one], steps[other], rows=other == OWN), limit)
        for one, other, limit in _pairs(case)
        if one in steps and other in steps
    ]


def _difference(one: Step, other: Step, *, rows: bool) -> float:
    """In units in the last place of the larger number, or of the learning rate where that is larger than both.

    Args:
        one: a step.
        other: another one.
        rows: whether the first variable is compared only in the rows that the step touches. (Keras decays all.)
    """
    worst = 0.0
    for number, (left, right) in enumerate(zip(one.built.variables, other.built.variables, strict=True)):
        values = [tensor_of(variable).numpy() for variable in (left, right)]
        if rows and number == 0 and len(one.built.rows):
            values = [value[np.asarray(one.built.rows)] for value in values]
        worst = max(worst, ulps(*values))
    return worst


def ulps(left: Any, right: Any) -> float:
    """The greatest difference of two arrays, in units in the last place."""
    size = np.maximum(np.maximum(np.abs(left), np.abs(right)), np.float32(LEARNING_RATE))
    return float(np.max(np.abs(left - right) / np.spacing(size)))
