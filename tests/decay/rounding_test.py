"""The rounding of 1 - rate: against whole numbers of Python, which are exact, and over millions of steps."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from graphwd.decay.rounding import ROUNDING, rounded_factor

GOLDEN, SPACES = 10368889, 2**24
RATES = [float(np.float32(rate)) for rate in (0.9, 0.5, 0.1, 1e-2, 1e-3, 3e-5, 1e-5, 1e-6, 1e-7, 1e-8, 0.0)]


def exact_threshold(step):
    """By whole numbers."""
    return Fraction((step * GOLDEN + SPACES // 2) % SPACES, SPACES)


def exact_factor(rate, step):
    return 1 - Fraction((Fraction(rate) * SPACES + exact_threshold(step)).__floor__(), SPACES)


def factor(rate, step):
    return rounded_factor(tf.convert_to_tensor(rate, tf.float32), ROUNDING(tf.cast(step, tf.float64)))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "xla"])
def test_every_factor_is_the_exact_one(jit_compile):
    traced = tf.function(factor, jit_compile=jit_compile)
    for rate in RATES:
        for step in (0, 1, 2, 3, 1000, 2**24 - 1, 2**24 + 5, 2**28 - 1):
            result = traced(tf.constant(rate), tf.constant(step, tf.int64))
            assert Fraction(float(result)) == exact_factor(rate, step), (rate, step)
            assert abs(Fraction(float(result)) - (1 - Fraction(rate))) < Fraction(1, SPACES), (rate, step)


def test_a_counter_that_stays_at_its_start_rounds_to_nearest():
    for rate in RATES:
        assert float(factor(rate, 0)) == float(np.float32(1 - rate))


def test_what_float32_holds_is_not_rounded():
    for step in range(100):
        assert factor(2.0**-10, step) == 1 - 2.0**-10
        assert factor(0.0, step) == 1


def test_the_thresholds_of_many_steps_are_exact():
    steps = np.arange(2**28 - 2**16, 2**28)
    expected = (steps * GOLDEN + SPACES // 2) % SPACES / SPACES
    np.testing.assert_array_equal(ROUNDING(tf.constant(steps, tf.float64)), expected)


def test_the_rates_of_a_million_steps_add_up():
    """The sum of what is taken stays within 6 units of the sum of what is asked for, at each of the steps."""
    steps = np.arange(2**20)
    thresholds = ROUNDING(tf.constant(steps, tf.float64)).numpy()
    for rate in (*RATES, *np.float32(10.0 ** np.linspace(-8, -3, 41)).tolist()):
        taken = np.floor(rate * SPACES + thresholds)
        assert np.abs(np.cumsum(taken - rate * SPACES)).max() < 6, rate
        if 2**-24 > rate > 0:
            assert set(np.unique(taken)) == {0, 1}, "rounded to nearest, a small rate would always be lost or doubled"
