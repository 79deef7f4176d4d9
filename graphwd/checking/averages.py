"""Finds variables that a step keeps as averages or copies of others, by what it makes of them.

Such a variable is ``s v + (1 - s) u'`` after a run, with v what it was and u' what another variable has become in the
same run. No gradient can make that: when it is taken, u' does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray

_ULPS = 64
"""Units in the last place that an average may be rounded by."""
_SHARE = 2.0**-6
"""Of its change: what that may be off by the formula, and how much the two shares may differ in two runs."""


class Average(NamedTuple):
    """What a variable is an average of.

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
        runs: two at least, of the same step and arguments: all variables before and after. Before them each variable
            was changed at random, or two of which one is a copy of the other would look alike.
        places: which of the variables are asked for.

    Returns:
        By its place, each that is an average.
    """
    found: dict[int, Average] = {}
    for place in places:
        for other, like in enumerate(runs[0][0]):
            alike = other != place and like.shape == runs[0][0][place].shape and like.size > 1
            if not alike or like.dtype != runs[0][0][place].dtype or like.dtype.kind not in "fV":
                continue
            shares = [_share(before, after, place, other) for before, after in runs]
            if all(share is not None and abs(share - (shares[0] or 0)) <= _SHARE * share for share in shares):
                found[place] = Average(other, 1 - float(shares[0] or 0))
                break
    return found


def _share(before: Sequence[Array], after: Sequence[Array], place: int, other: int) -> float | None:
    """What share of what another variable has become a variable has taken up in a run; None where it has not."""
    old, new = (each[place].astype(np.float64).ravel() for each in (before, after))
    source, was = (each[other].astype(np.float64).ravel() for each in (after, before))
    if not all(np.isfinite(each).all() for each in (old, new, source)) or np.array_equal(source, was):
        return None
    change, way = new - old, source - old
    unit = float(np.spacing(np.maximum(np.abs(old), np.abs(new)).max().astype(before[place].dtype)))
    largest = np.abs(change).max()
    if largest <= 2 * _ULPS * unit or not way.any():
        return None
    share = float(change @ way / (way @ way))
    missed = np.abs(change - share * way).max()
    return share if 0 < share <= 1 + _SHARE and missed <= _ULPS * unit and missed <= _SHARE * largest else None
