"""Every formula against NumPy in float64, in each dtype that a decay is computed in."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from graphwd.decay.formulas import FORMULAS

BY_HAND = {
    "l2": lambda weight, **_: weight,
    "l1": lambda weight, **_: np.sign(weight),
    "huber": lambda weight, **_: np.minimum(np.maximum(weight, -0.5), 0.5),
    "l2_sp": lambda weight, initial, **_: weight - initial,
    "cautious": lambda before, update, **_: np.where((before < 0) == (update < 0), before, 0),
    "norm": lambda weight, **_: (1 - 2.5 / np.linalg.norm(weight)) * weight,
}
OPTIONS = {"huber": {"delta": 0.5}, "norm": {"target": 2.5}}
WEIGHTS = [[1.5, -2.0, 1e-3, 1e-30, -30.0], [[0.25, -1.0]], 3.0]


def test_every_formula_is_checked():
    assert BY_HAND.keys() == FORMULAS.keys()


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_a_formula(name, dtype, weight):
    weight = np.asarray(weight, dtype)
    tensors = {
        "weight": weight,
        "before": weight,
        "update": np.resize([1e-30, 0.5, -1.0], weight.shape).astype(dtype),
        "initial": np.resize([0.75, -0.5], weight.shape).astype(dtype),
    }
    formula = FORMULAS[name].given(OPTIONS.get(name, {}))
    result = formula(**{key: tf.constant(value) for key, value in tensors.items()})
    assert (result.dtype, result.shape) == (dtype, np.shape(weight))
    expected = BY_HAND[name](**{key: value.astype(np.float64) for key, value in tensors.items()})
    np.testing.assert_allclose(result, expected, rtol=4 * float(np.finfo(dtype).eps))


def test_what_is_zero():
    zero = tf.zeros([3])
    for name, expected in {"l1": 0.0, "huber": 0.0, "norm": 0.0}.items():
        formula = FORMULAS[name].given(OPTIONS.get(name, {}))
        np.testing.assert_array_equal(formula(weight=zero), [expected] * 3)
    # An update of nothing leaves a weight in doubt, and then it is decayed; one that is not a number does not.
    before, update = tf.constant([1.0, -1.0, 2.0]), tf.constant([0.0, 0.0, np.nan])
    np.testing.assert_array_equal(FORMULAS["cautious"](before=before, update=update), [1.0, -1.0, 0.0])


def test_a_norm_is_pulled_toward_its_target():
    weight = tf.constant([3.0, 4.0], tf.float64)
    for target in (1.0, 10.0):
        formula = FORMULAS["norm"].given({"target": target})
        left = weight - 0.5 * formula(weight=weight)
        np.testing.assert_allclose(tf.norm(left), (5 + target) / 2, rtol=1e-15)
