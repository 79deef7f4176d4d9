"""Whether a write goes against its gradient or along it."""

from __future__ import annotations

import pytest
import tensorflow as tf

from graphwd.analysis.direction import direction
from graphwd.analysis.flows import Flows
from graphwd.analysis.updates import find_updates
from graphwd.steps.read import read
from tests.helpers.graphs import gradient_of, variable

RATE = variable("rate", 0.5, trainable=False)


def safe_norm(gradient):
    """As `tf.norm` is written since TensorFlow 2.23, so that the gradient of the norm of zeros is zero."""
    total = tf.reduce_sum(gradient * gradient, keepdims=True)
    root = tf.sqrt(tf.maximum(total, 1e-30))
    return tf.raw_ops.Select(condition=tf.equal(total, 0.0), x=tf.zeros_like(total), y=root)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda w, g: w.assign_sub(0.1 * g), -1),
        (lambda w, g: w.assign_sub(RATE * g / 4.0), -1),
        (lambda w, g: w.assign_add(-0.1 * g), -1),
        (lambda w, g: w.assign_add(-(RATE * g)), -1),
        (lambda w, g: w.assign_add(g * -RATE), -1),
        (lambda w, g: w.assign(w - RATE * g), -1),
        (lambda w, g: w.assign(0.9 * w - RATE * tf.cast(g, tf.float32)), -1),
        (lambda w, g: w.assign_sub(-0.1 * g), 1),
        (lambda w, g: w.assign_add(g * g), 1),
        (lambda w, g: w.assign(0.9 * w + 0.1 * g), 1),
        (lambda w, g: w.assign(0.9 * w + 0.1 * tf.norm(g)), 1),
        (lambda w, g: w.assign(0.9 * w + 0.1 * safe_norm(g)), 1),
        (lambda w, g: w.assign_add(0.1 * (g - w)), 1),
        (lambda w, g: w.assign_sub(0.1 * tf.where(g > 0.0, g, 0.0)), -1),
        (lambda w, g: w.assign_sub(tf.where(RATE > 0.0, tf.zeros_like(g), RATE * g)), -1),
        (lambda w, g: w.assign_sub(tf.where(g > 0.0, g, -g)), 0),
        (lambda w, g: w.assign_sub(tf.where(g > 0.0, g, 1.0)), 0),
        (lambda w, g: w.assign_sub(tf.sign(g)), 0),
        (lambda w, g: w.assign_sub(g - tf.sqrt(g)), 0),
    ],
)
def test_a_write(write, expected):
    w = variable()

    def step():
        write(w, gradient_of(w))

    analysis = find_updates(read(tf.function(step).get_concrete_function()))
    (account,) = [each for each in analysis.variables if each.variable.name == "w"]
    (made,) = account.writes
    assert direction(Flows(analysis.graph, analysis.values).at(made.site.path), made) == expected
