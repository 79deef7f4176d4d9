"""Every formula against NumPy in float64, in each dtype that a decay is computed in."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from graphwd.decay.formulas import FORMULAS

BY_HAND = {"l2": lambda w: w}
WEIGHTS = [[1.5, -2.0, 0.0, 1e-30, -1e30], [[0.25]], 3.0]


def test_every_formula_is_checked():
    assert BY_HAND.keys() == FORMULAS.keys()


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_a_formula(name, dtype, weight):
    result = FORMULAS[name](tf.constant(weight, dtype))
    assert (result.dtype, result.shape) == (dtype, np.shape(weight))
    expected = BY_HAND[name](np.asarray(weight, dtype).astype(np.float64))
    np.testing.assert_allclose(result, expected, rtol=float(np.finfo(dtype).eps))
