"""The rounding of 1 - rate: against whole numbers of Python, which are exact, and over millions of steps."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from graphwd.decay.rounding import ROUNDING, rounded_factor

SPACES, PRIME, MULTIPLIER = 2**24, 16777199, 10368879
RATES = [float(np.float32(rate)) for rate in (0.9, 0.5, 0.1, 1e-2, 1e-3, 3e-5, 1e-5, 1e-6, 1e-7, 1e-8, 0.0)]


def exact_threshold(step):
    """By whole numbers."""
    return Fraction((pow(step * MULTIPLIER, 3, PRIME) + SPACES // 2) % SPACES, SPACES)


NEGATIVE = [float(np.float32(rate)) for rate in (-0.5, -1e-3, -1e-6, -1e-7, -4e-8)]
"""A negative learning rate makes for a factor above 1, where float32 numbers are twice as far apart."""


def exact_factor(rate, step):
    spaces = SPACES if rate >= 0 else SPACES // 2
    return 1 - Fraction((Fraction(rate) * spaces + exact_threshold(step)).__floor__(), spaces)


def factor(rate, step):
    return rounded_factor(tf.convert_to_tensor(rate, tf.float32), ROUNDING(tf.cast(step, tf.float64)))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "xla"])
def test_every_factor_is_the_exact_one(jit_compile):
    traced = tf.function(factor, jit_compile=jit_compile)
    for rate in RATES + NEGATIVE:
        for step in (0, 1, 2, 3, 1000, PRIME - 1, PRIME, PRIME + 1, 2**24 + 5, 2**31, 2**48 - 1):
            result = traced(tf.constant(rate), tf.constant(step, tf.int64))
            assert Fraction(float(result)) == exact_factor(rate, step), (rate, step)
            spacing = Fraction(1 if rate >= 0 else 2, SPACES)
            assert abs(Fraction(float(result)) - (1 - Fraction(rate))) < spacing, (rate, step)


def test_a_counter_that_stays_at_its_start_rounds_to_nearest():
    for rate in RATES:
        assert float(factor(rate, 0)) == float(np.float32(1 - rate))


def test_what_float32_holds_is_not_rounded():
    for step in range(100):
        assert factor(2.0**-10, step) == 1 - 2.0**-10
        assert factor(0.0, step) == 1


@pytest.mark.parametrize("first", [0, 2**24 - 2**15, 2**31, 2**48 - 2**16])
@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "xla"])
def test_the_thresholds_of_many_steps_are_exact(jit_compile, first):
    traced = tf.function(lambda each: ROUNDING(each), jit_compile=jit_compile)
    steps = np.arange(first, first + 2**16)
    base = steps % PRIME * MULTIPLIER % PRIME
    expected = (base * base % PRIME * base % PRIME + SPACES // 2) % SPACES / SPACES
    np.testing.assert_array_equal(traced(tf.constant(steps, tf.float64)), expected)


def test_every_threshold_is_met_once():
    """So that the rounding is exact in the mean: of the multiples of 2^-24 all but 17 are met."""
    thresholds = ROUNDING(tf.range(PRIME, dtype=tf.float64)).numpy()
    assert len(np.unique(thresholds)) == PRIME
    assert thresholds.min() >= 0
    assert thresholds.max() < 1


def errors(rates, steps):
    """What is taken at each step beyond what is asked for, in units of 2^-24."""
    asked = np.float32(rates).astype(np.float64) * SPACES
    return np.floor(asked + ROUNDING(tf.constant(steps, tf.float64)).numpy()) - asked


MILLION = np.arange(2**20)


@pytest.mark.parametrize("rate", [*RATES, *np.float32(10.0 ** np.linspace(-8, -3, 11)).tolist()])
def test_a_rate_that_stays_is_lost_nowhere(rate):
    """Rounded to nearest, a million steps would be off by up to half a million units."""
    assert np.abs(np.cumsum(errors(np.full(2**20, rate), MILLION))).max() < 2**10
    if 2**-24 > rate > 0:
        assert set(np.floor(rate * SPACES + ROUNDING(tf.constant(MILLION, tf.float64)).numpy())) == {0, 1}


@pytest.mark.parametrize("rate", [1e-6, 1e-7, *NEGATIVE])
def test_no_factor_is_rounded_again(rate):
    """As float32 would, if it were a multiple of what is half the distance of the numbers there."""
    steps = tf.constant(np.arange(2**16), tf.float64)
    factors = rounded_factor(tf.fill(steps.shape, rate), ROUNDING(steps)).numpy().astype(np.float64)
    spacing = (1 if rate >= 0 else 2) / SPACES
    assert abs((1 - factors).sum() - 2**16 * np.float64(np.float32(rate))) < 2**8 * spacing


def half_cosine(peak, steps, period):
    return 0.5 * peak * (1 + np.cos(np.pi * (steps % period) / period))


@pytest.mark.parametrize(
    "rates",
    [
        half_cosine(5e-4, MILLION, 2**20),
        half_cosine(5e-5, MILLION, 610),
        half_cosine(5e-5, MILLION, 6765),
        (2**20 - MILLION) * (1 + 0.6180339887) / SPACES / 64,
        (2**20 - MILLION) / SPACES / 2**10,
        1e-3 / (1 + MILLION),
        5e-5 * 0.999 ** (MILLION // 100),
    ],
    ids=["cosine", "restarts", "Fibonacci", "golden", "linear", "inverse", "stairs"],
)
def test_a_rate_that_changes_is_lost_nowhere(rates):
    assert np.abs(np.cumsum(errors(rates, MILLION))).max() < 2**10


@pytest.mark.parametrize("period", [2, 100, 512, 610, 987, 1000, 1024, 1597, 4181, 8192, 10946, 2**20, PRIME - 1])
@pytest.mark.parametrize("rate", [2e-7, 2e-6, 3e-5])
def test_a_row_that_is_touched_now_and_then_loses_nothing(rate, period):
    """Its thresholds are those of every so-many-th step. Twice the root of the count is what chance allows."""
    count = 2**12
    for first in range(5):
        error = np.cumsum(errors(np.full(count, rate), first + period * np.arange(count)))
        assert np.abs(error).max() < 2 * count**0.5
