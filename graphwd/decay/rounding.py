# pyright: basic
"""Rounds the factor 1 - rate, so that no rate is lost by rounding over many steps.

Multiplying a weight by 1 - rate moves fewer bytes than subtracting its product with the rate. But float32 numbers just
below 1 are 2^-24 apart, so that a factor rounded to nearest would stand for a rate that is wrong by up to 2^-25: by 3 %
of a rate of 1e-6, and at each step by the same. Here the factor is rounded down at some steps and up at the others.

Each step has a threshold in [0, 1), and rate / 2^-24 is rounded up where its fraction and the threshold make 1 or more.
The thresholds come from the cubes of multiples of the step's number modulo a prime (H. Niederreiter, Random Number
Generation and Quasi-Monte Carlo Methods, 1992, chapter 8, on nonlinear congruential generators). Each is met once in as
many steps as the prime says, and they look as random to one who counts all steps as to one who counts every 987th: a
row of an embedding may be touched only then. So T steps take together what T steps rounded at random would: within the
root of T times 2^-24 of what was asked for, whether the rate stays or changes. (With multiples of the golden ratio a
rate that stays is kept within 6 times 2^-24. But a row that is touched at intervals of a Fibonacci number loses up to
half a spacing each time, and so does a rate that falls by a multiple of that ratio.)
"""

from __future__ import annotations

import tensorflow as tf

from graphwd.decay.schedules import Schedule

SPACING = 2.0**-24
"""The distance of float32 numbers just below 1."""

PRIME = 16777199.0
"""The greatest prime below 2^24 that leaves 2 when divided by 3: so no two numbers below it have the same cube."""

MULTIPLIER = 10368879.0
"""Next to 0.618 times the prime: the cubes of small numbers, which are small, come late."""


def threshold(t: tf.Tensor) -> tf.Tensor:
    """Returns the threshold of a step, in [0, 1).

    The first is 1/2, so that a counter that somebody sets back at each step makes for rounding to nearest. All that is
    computed are multiples of 2^-24 below 2^48, which float64 holds exactly, so that it does not matter what XLA fuses.

    Args:
        t: the number of updates before this one, a scalar of float64.

    Returns:
        A scalar of float64, a multiple of 2^-24.
    """
    base = tf.math.floormod(tf.math.floormod(t, PRIME) * MULTIPLIER, PRIME)
    cube = tf.math.floormod(tf.math.floormod(base * base, PRIME) * base, PRIME)
    return tf.math.floormod(cube * SPACING + 0.5, 1.0)


ROUNDING = Schedule("rounding", threshold, scope="rounding")
"""The thresholds as a function of the number of updates."""


def rounded_factor(rate: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Returns 1 - rate, rounded to a multiple of `SPACING`, or of twice that above 1, down or up.

    Args:
        rate: the rate, a scalar of float32.
        threshold: the threshold of this step, a scalar of float64 in [0, 1).

    Returns:
        A scalar of float32, less than that multiple away from 1 - rate, where that is below 2.
    """
    with tf.name_scope(ROUNDING.scope):
        exact = tf.cast(rate, tf.float64)
        spacing = tf.where(exact < 0, tf.constant(2 * SPACING, tf.float64), SPACING)
        return tf.cast(1 - tf.floor(exact / spacing + threshold) * spacing, tf.float32)
