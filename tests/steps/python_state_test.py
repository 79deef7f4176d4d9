"""State of a plain Python step that a trace would freeze is told, as far as it can be seen."""

from __future__ import annotations

import functools
import logging

import tensorflow as tf

import graphwd
from graphwd.steps.python_state import state_in_python

POLICY = {"version": 1, "rules": [{"weight_decay": 0.5}]}


class Trainer:
    def step(self, batch):
        return batch


counted = 0
flag = None


def stateful(rate, unset=False):
    """A step that counts one number of each kind, and assigns what is none or not there yet."""
    kernel = tf.Variable([8.0], name="kernel")
    if unset:
        del rate

    def step():
        global counted, flag
        nonlocal rate
        counted += 1
        flag = "traced"
        rate = rate + 1.0
        local = rate
        with tf.GradientTape() as tape:
            loss = kernel * local
        kernel.assign_sub(tape.gradient(loss, kernel))

    return kernel, step


def test_state_in_python():
    assert state_in_python(stateful(1.0)[1]) == ["counted", "rate"]
    assert state_in_python(stateful(tf.constant(1.0))[1]) == ["counted"]
    assert state_in_python(stateful(1.0, unset=True)[1]) == ["counted"]
    assert state_in_python(Trainer().step) == []
    assert state_in_python(functools.partial(Trainer().step)) == []


def test_state_that_a_trace_freezes_is_told(caplog):
    kernel, step = stateful(1.0)
    with caplog.at_level(logging.WARNING, "graphwd"):
        decayed = graphwd.rewrite(step, POLICY)
    (message,) = caplog.messages
    assert message.startswith("the step assigns numbers of Python (counted, rate): a trace keeps the values ")
    decayed()
    decayed()
    assert kernel.numpy() == ((8 - 2) / 2 - 2) / 2  # the rate stays 2


def test_a_step_that_only_reads_is_not_told(caplog):
    with caplog.at_level(logging.WARNING, "graphwd"):
        graphwd.rewrite(Trainer().step, POLICY)
    assert caplog.messages == []
