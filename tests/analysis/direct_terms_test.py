"""What is written holds the weight once, in part, or not at all."""

from __future__ import annotations

import math

import pytest
import tensorflow as tf

from graphwd.analysis.direct_terms import terms_after
from graphwd.analysis.flows import Flows
from graphwd.analysis.updates import find_updates
from graphwd.steps.read import read
from tests.helpers.graphs import gradient_of, variable

RATE = variable("rate", 0.5, trainable=False)
OTHER = variable("other")
MASK = variable("mask", (1.0, 0.0), trainable=False)


def terms(write):
    """The terms of ``w`` after ``write(w, gradient)``."""
    w = variable()

    def step():
        write(w, gradient_of(w))

    graph = read(tf.function(step).get_concrete_function())
    analysis = find_updates(graph)
    (account,) = [each for each in analysis.variables if each.variable.name == "w"]
    (made,) = account.writes
    flow = Flows(analysis.graph, analysis.values).at(made.site.path)
    return terms_after(flow, made)


@pytest.mark.parametrize(
    ("write", "coefficient"),
    [
        (lambda w, g: w.assign_sub(0.1 * g), 1.0),
        (lambda w, g: w.assign_add(-0.1 * g), 1.0),
        (lambda w, g: w.assign(w - 0.1 * g), 1.0),
        (lambda w, g: w.assign(-0.1 * g + w), 1.0),
        (lambda w, g: w.assign(tf.add_n([w, -g])), 1.0),
        (lambda w, g: w.assign_sub(w - (w - 0.1 * g)), 1.0),
        (lambda w, g: w.assign(tf.where(g > 0.0, w - g, w)), 1.0),
        (lambda w, g: w.assign(0.5 * w + 0.5 * g), 0.5),
        (lambda w, g: w.assign(w / 4.0 + g), 0.25),
        (lambda w, g: w.assign_add((g - w) * 0.25), 0.75),
        (lambda w, g: w.assign_sub(0.5 * (g + 0.5 * w)), 0.75),
        (lambda w, g: w.assign(w - g + 0.5 * w), 1.5),
        (lambda w, g: w.assign(w - w * (0.0 * RATE) - g), 1.0),
        (lambda w, g: w.assign_sub(w * tf.cast(tf.constant(0), tf.float32) * RATE), 1.0),
        (lambda w, g: w.assign_sub(w * tf.cast(tf.constant(2, tf.int64), tf.float32)), -1.0),
        (lambda w, g: w.assign(g), 0.0),
        (lambda w, g: w.assign(tf.clip_by_value(w - g, -1.0, 1.0)), 0.0),
        (lambda w, g: w.assign(w * w + g), 0.0),
    ],
)
def test_the_coefficient_of_the_weight(write, coefficient):
    assert terms(write).coefficient == coefficient


@pytest.mark.parametrize(
    "write",
    [lambda w, g: w.assign((1.0 - RATE) * w - g), lambda w, g: w.assign(w * MASK + g), lambda w, g: w.assign(w / RATE)],
)
def test_a_coefficient_that_is_no_constant(write):
    assert math.isnan(terms(write).coefficient)


def test_the_weight_itself_is_named_and_so_is_another_variable():
    found = terms(lambda w, g: w.assign(w.read_value() - 0.1 * g + 0.1 * OTHER))
    assert found.coefficient == 1
    assert found.of_others
    (weight,) = found.weights
    assert "ReadVariableOp" in weight
    assert not terms(lambda w, g: w.assign(w - 0.1 * g)).of_others


def test_what_a_gradient_is_made_of_does_not_count():
    """The gradient of a square is the weight times a number."""
    assert terms(lambda w, g: w.assign(w - g)).coefficient == 1
