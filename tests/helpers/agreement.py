"""How far two trainings are apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def train(step: Any, batches: Iterable[tuple[Any, ...]]) -> None:
    """Runs a step on each batch."""
    for batch in batches:
        step(*batch)


def values(variables: Iterable[Any]) -> list[np.ndarray]:
    """What some variables hold."""
    return [variable.numpy() for variable in variables]


def ulps_of_elements(first: np.ndarray, second: np.ndarray) -> float:
    """The largest difference of two elements, in units in the last place of the larger of the two."""
    unit = np.spacing(np.maximum(np.abs(first), np.abs(second)))
    return float((np.abs(first - second) / unit).max())


def ulps_of_largest(first: np.ndarray, second: np.ndarray) -> float:
    """The largest difference of two elements, in units in the last place of the largest element of all.

    Two trainings that round differently differ by so much in every element, be it large or near 0.
    """
    unit = np.spacing(np.abs(first).max())
    return float(np.abs(first - second).max() / unit)


def assert_agree(first: Sequence[np.ndarray], second: Sequence[np.ndarray], ulps: float, measure: Any) -> None:
    """Checks that each variable of one training is within so many ulps of the other's."""
    apart = [measure(one, other) for one, other in zip(first, second, strict=True)]
    assert max(apart) <= ulps, f"{apart} ulp"
