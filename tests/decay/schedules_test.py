"""Every schedule against its definition in NumPy, and against Keras where Keras has the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.decay.schedules import SCHEDULES, Schedule

RAMP = {"first": 0.04, "last": 0.4, "steps": 1000.0}
STEPS = [0, 1, 10, 499, 500, 501, 999, 1000, 1001, 10**6]

BY_HAND = {
    "linear": lambda q: 0.04 + (0.4 - 0.04) * q,
    "cosine": lambda q: 0.4 + (0.04 - 0.4) * (1 + np.cos(np.pi * q)) / 2,
    "exponential": lambda q: 0.04 * (0.4 / 0.04) ** q,
}


def test_every_schedule_is_checked():
    assert SCHEDULES.keys() == {*BY_HAND, "piecewise"}


@pytest.mark.parametrize("warmup", [0, 250])
@pytest.mark.parametrize("name", BY_HAND)
def test_a_ramp(name, warmup):
    schedule = SCHEDULES[name].given(RAMP, warmup)
    for step in STEPS:
        since = max(step - warmup, 0)
        expected = BY_HAND[name](min(since / 1000, 1)) if step >= warmup else 0.04 * step / warmup
        np.testing.assert_allclose(schedule.at(step), expected, rtol=1e-14, atol=0)


def test_it_may_begin_at_zero():
    for name in ("linear", "cosine"):
        schedule = SCHEDULES[name].given({"first": 0.0, "last": 0.5, "steps": 4.0}, 0)
        assert (schedule.at(0), schedule.at(2), schedule.at(9)) == (0.0, pytest.approx(0.25, rel=1e-15), 0.5)


def test_it_is_what_keras_computes():
    keras_schedules = keras.optimizers.schedules
    same = {
        "linear": keras_schedules.PolynomialDecay(0.04, 1000, 0.4),
        "cosine": keras_schedules.CosineDecay(0.04, 1000, alpha=10.0),
        "piecewise": keras_schedules.PiecewiseConstantDecay([10, 500], [0.5, 0.25, 0.125]),
    }
    piecewise = {"boundaries": (10.0, 500.0), "values": (0.5, 0.25, 0.125)}
    for name, theirs in same.items():
        mine = SCHEDULES[name].given(piecewise if name == "piecewise" else RAMP, 0)
        for step in STEPS:
            np.testing.assert_allclose(mine.at(step), theirs(step), rtol=1e-6, err_msg=f"{name} at {step}")


def test_piecewise_changes_after_its_boundary():
    schedule = SCHEDULES["piecewise"].given({"boundaries": (2.0, 5.0), "values": (1.0, 0.5, 0.25)}, 0)
    assert [schedule.at(t) for t in range(8)] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    warm = SCHEDULES["piecewise"].given({"boundaries": (2.0, 5.0), "values": (1.0, 0.5, 0.25)}, 4)
    assert [warm.at(t) for t in range(8)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5]


def test_as_a_plan_shows_it():
    assert str(SCHEDULES["cosine"].given(RAMP, 500)) == "cosine(from=0.04, to=0.4, steps=1000, warmup_steps=500)"
    piecewise = SCHEDULES["piecewise"].given({"boundaries": (2.0, 5.0), "values": (1.0, 0.5, 0.25)}, 0)
    assert str(piecewise) == "piecewise(boundaries=[2, 5], values=[1, 0.5, 0.25])"


def test_a_function_of_ones_own_gets_the_step_as_an_integer():
    seen = []

    def mine(step):
        seen.append(step.dtype)
        return 0.5 / tf.cast(step + 1, tf.float32)

    assert Schedule("mine", mine, own=True).at(3) == 0.125
    assert seen == [tf.int64]
    assert Schedule("constant", lambda _: 0.1, own=True).at(3) == 0.1  # not the float32 next to it
    with pytest.raises(graphwd.RewriteError, match="the schedule 'vector' fails: ValueError"):
        Schedule("vector", lambda _: tf.zeros([2]), own=True).at(3)
