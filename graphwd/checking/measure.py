"""How far two results are apart, in units in the last place."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def ulps(expected: Array, actual: Array, before: Array, *, whole: bool = False) -> float:
    """The largest difference of two arrays, in units in the last place of the largest of three, element by element.

    Args:
        expected: of any dtype.
        actual: of the same shape and dtype.
        before: likewise; the common value before the step: after a cancellation its last place counts.
        whole: whether the unit of the largest element holds for all elements: a slot variable is a sum of terms that
            cancel, and their size is not known.

    Returns:
        The number of units; infinite where one of the first two is not finite and the other differs, and where
        integers differ.
    """
    if expected.tobytes() == actual.tobytes():
        return 0.0
    if expected.dtype.kind in "biuSO":
        return float((expected != actual).any()) * float("inf")
    wide = [array.astype(np.float64) for array in (expected, actual, before)]
    finite = np.isfinite(wide[0]) & np.isfinite(wide[1])
    differ = ~finite & ~((wide[0] == wide[1]) | (np.isnan(wide[0]) & np.isnan(wide[1])))
    if differ.any():
        return float("inf")
    scale = np.maximum.reduce([np.abs(np.where(np.isfinite(array), array, 0)) for array in wide])
    if whole:
        scale = np.full_like(scale, scale.max(initial=0.0))
    unit = np.spacing(scale.astype(expected.dtype)).astype(np.float64)
    difference = np.subtract(wide[0], wide[1], where=finite, out=np.zeros_like(wide[0]))
    return float((np.abs(difference) / unit).max(initial=0.0))
