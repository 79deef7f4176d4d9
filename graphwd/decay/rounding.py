# pyright: basic
"""Rounds the factor 1 - rate, so that no rate is lost by rounding over many steps.

Multiplying a weight by 1 - rate moves fewer bytes than subtracting its product with the rate. But float32 numbers just
below 1 are 2^-24 apart, so that a factor rounded to nearest would stand for a rate that is wrong by up to 2^-25: by 3 %
of a rate of 1e-6, and at each step by the same. Here the factor is rounded down at some steps and up at the others.

Each step has a threshold in [0, 1), and rate / 2^-24 is rounded up where its fraction and the threshold make 1 or more.
At step t the threshold is the fraction of 1/2 and t times a number near the golden ratio. These are spread over [0, 1)
as evenly as any numbers can be for any count of steps: the mean of T steps is within about log(T) / T of the fraction
(H. Weyl, Über die Gleichverteilung von Zahlen mod. Eins, 1916). So the sum of the rates that were taken stays within a
few times 2^-24 of the sum of those asked for, however many steps there are: within 6 times for up to 4 million steps.
"""

from __future__ import annotations

import tensorflow as tf

from graphwd.decay.schedules import Schedule

SPACING = 2.0**-24
"""The distance of float32 numbers just below 1."""

_GOLDEN = 10368889 / 2**24
"""Next to the golden ratio 0.618, with an odd numerator: the thresholds repeat after 2^24 steps, each met once."""


def threshold(t: tf.Tensor) -> tf.Tensor:
    """Returns the threshold of a step, in [0, 1).

    The first is 1/2, so that a counter that somebody sets back at each step makes for rounding to nearest. Up to 2^28
    steps float64 holds all that is computed exactly, so that it does not matter what XLA fuses.

    Args:
        t: the number of updates before this one, a scalar of float64.

    Returns:
        A scalar of float64.
    """
    multiple = t * _GOLDEN + 0.5
    return multiple - tf.floor(multiple)


ROUNDING = Schedule("rounding", threshold, scope="rounding")
"""The thresholds as a function of the number of updates."""


def rounded_factor(rate: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Returns 1 - rate, rounded to a multiple of `SPACING`, down or up.

    Args:
        rate: the rate, a scalar of float32.
        threshold: the threshold of this step, a scalar of float64 in [0, 1).

    Returns:
        A scalar of float32, less than `SPACING` away from 1 - rate.
    """
    with tf.name_scope(ROUNDING.scope):
        spaces = tf.floor(tf.cast(rate, tf.float64) / SPACING + threshold)
        return tf.cast(1 - spaces * SPACING, tf.float32)
