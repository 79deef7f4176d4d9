"""Finds variables that a step keeps as averages or copies of others, by their values before and after a run.

After a run such a variable is ``s v + (1 - s) u'``, where v is its old value and u' the new value of another variable.
No gradient can have that effect, since u' does not exist yet when a gradient is computed. But a constant can, such as
the bound at which a step clips both variables: so u' must differ from run to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray

_ULPS = 64
"""Units in the last place that an average may be rounded by."""
_SHARE = 2.0**-6
"""Relative to the change: the error allowed in the formula, and between the shares of two runs."""


class Average(NamedTuple):
    """An average that a variable is.

    Attributes:
        of: the place of the other variable.
        keeps: the share of itself that it keeps; 0 for a copy.
    """

    of: int
    keeps: float


def find_averages(
    runs: Sequence[tuple[Sequence[Array], Sequence[Array]]], places: Iterable[int]
) -> Mapping[int, Average]:
    """Finds which of some variables are averages.

    Args:
        runs: all variables before and after at least two runs of the same step with the same arguments. Before a run
            each variable was changed at random, since otherwise a copy and its original would look alike.
        places: the places of the variables to check.

    Returns:
        The averages, by the place of the variable.
    """
    averages: dict[int, Average] = {}
    for place in places:
        for other, like in enumerate(runs[0][0]):
            alike = other != place and like.shape == runs[0][0][place].shape and like.size > 1
            if not alike or like.dtype != runs[0][0][place].dtype or like.dtype.kind not in "fV":
                continue
            if len({after[other].tobytes() for _, after in runs}) < len(runs):
                continue
            shares = [_share(before, after, place, other) for before, after in runs]
            if all(share is not None and abs(share - (shares[0] or 0)) <= _SHARE * share for share in shares):
                averages[place] = Average(other, 1 - float(shares[0] or 0))
                break
    return averages


def _share(before: Sequence[Array], after: Sequence[Array], place: int, other: int) -> float | None:
    """The share of another variable's new value that a variable took up in a run; None where it took up none."""
    old, new = (state[place].astype(np.float64).ravel() for state in (before, after))
    source, was = (state[other].astype(np.float64).ravel() for state in (after, before))
    if not all(np.isfinite(array).all() for array in (old, new, source)) or np.array_equal(source, was):
        return None
    change, way = new - old, source - old
    unit = float(np.spacing(np.maximum(np.abs(old), np.abs(new)).max().astype(before[place].dtype)))
    largest = np.abs(change).max()
    if largest <= 2 * _ULPS * unit or not way.any():
        return None
    share = float(change @ way / (way @ way))
    missed = np.abs(change - share * way).max()
    return share if 0 < share <= 1 + _SHARE and missed <= _ULPS * unit and missed <= _SHARE * largest else None
