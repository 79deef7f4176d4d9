"""Each way in which a decay enters an update, run as the TensorFlow function that it is, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from graphwd.decay import arithmetic
from graphwd.decay.formulas import l2

RATE = 0.25  # exact, and so is all that is multiplied by it here
DTYPES = ["float64", "float32", "bfloat16", "float16"]


def variable(dtype):
    return tf.Variable([[1.0, -2.0], [3.0, 4.0], [-8.0, 0.5]], dtype=dtype)


def scalar(value, dtype):
    return tf.constant(value, arithmetic.wide(dtype))


def as_float64(tensor):
    return tf.cast(tensor, tf.float64).numpy()


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32"), ("float16", "float32")],
)
def test_half_precision_is_computed_in_float32(dtype, wide):
    assert arithmetic.wide(dtype) == wide


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_whole_variable(dtype):
    w, v = variable(dtype), variable(dtype)
    start = as_float64(w)
    arithmetic.multiply(w.handle, scalar(1 - RATE, dtype), dtype=dtype)
    arithmetic.subtract(v.handle, scalar(RATE, dtype), dtype=dtype, formula=l2)
    np.testing.assert_array_equal(as_float64(w), start - RATE * start)
    np.testing.assert_array_equal(as_float64(v), start - RATE * start)


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_repeat_are_decayed_once(dtype, index):
    rows = tf.constant([2, 0, 2], index)
    expected = as_float64(variable(dtype))
    expected[[0, 2]] *= 1 - RATE
    for decay, strength in [
        (arithmetic.multiply_rows, {"factor": scalar(1 - RATE, dtype)}),
        (arithmetic.subtract, {"rate": scalar(RATE, dtype), "formula": l2}),
        (arithmetic.subtract_rows_once, {"rate": scalar(RATE, dtype), "formula": l2}),
    ]:
        w = variable(dtype)
        decay(w.handle, indices=rows, dtype=dtype, **strength)
        np.testing.assert_array_equal(as_float64(w), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_a_value_and_in_a_gradient(dtype):
    w = variable(dtype)
    other = tf.ones_like(w)
    weight, rate = as_float64(w), scalar(RATE, dtype)
    value = arithmetic.in_value(other, w.value(), rate, dtype=dtype, formula=l2)
    gradient = arithmetic.in_gradient(other, w.value(), rate, dtype=dtype, formula=l2)
    read = arithmetic.in_gradient_by_reading(other, w.handle, rate, dtype=dtype, formula=l2)
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(as_float64(value), 1 - RATE * weight)
    np.testing.assert_array_equal(as_float64(gradient), 1 + RATE * weight)
    np.testing.assert_array_equal(as_float64(read), 1 + RATE * weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_a_sparse_gradient_each_row_once(dtype):
    w = variable(dtype)
    indices = tf.constant([[2, 0], [2, 2]])
    gradient = tf.ones([2, 2, 2], dtype)
    total = arithmetic.in_sparse_gradient(
        gradient, indices, w.handle, scalar(RATE, dtype), dtype=dtype, formula=l2, row_shape=(2,)
    )
    expected = np.ones([2, 2, 2])
    expected[0, 0] += RATE * as_float64(w)[2]
    expected[0, 1] += RATE * as_float64(w)[0]
    np.testing.assert_array_equal(as_float64(total), expected)


def test_the_rate_of_a_step():
    rate = tf.constant(0.5)
    assert arithmetic.learning_rate_times(rate, tf.constant(0.25, tf.float64)).numpy() == np.float32(0.125)
    assert arithmetic.times(rate, tf.constant(0.25, tf.float16)).numpy() == np.float32(0.125)
    handle = tf.Variable(0.25).handle
    assert arithmetic.times_variable(rate, handle, dtype="float32").numpy() == np.float32(0.125)
