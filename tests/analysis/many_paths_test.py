"""Graphs of which a walk that takes every path would never end, and chains that no recursion reaches the end of."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.analysis.postorder import evaluate
from tests.helpers.graphs import gradient_of, variable

DEPTH = 200
"""A doubling so often has 2^200 paths."""
SLOT = variable("slot", 1.0, trainable=False)
RATE = variable("rate", 0.1, trainable=False)


def doubled(tensor, by=lambda t: 0.5 * t + 0.5 * t):
    for _ in range(DEPTH):
        tensor = by(tensor)
    return tensor


def aliased(tensor):
    for _ in range(3000):
        tensor = tf.identity(tensor)
    return tensor


UPDATES = {
    "gradient": lambda w, g: w.assign_sub(RATE * doubled(g)),
    "difference": lambda w, g: w.assign_sub(RATE * doubled(g, lambda t: 2.0 * t - t)),
    "sum without a rate": lambda w, g: w.assign_sub(doubled(g)),
    "rate": lambda w, g: w.assign_sub(doubled(tf.convert_to_tensor(RATE)) * g),
    "sign of the rate": lambda w, g: w.assign_add(doubled(-RATE, lambda t: -(-t * 1.0)) * g),
    "product": lambda w, g: w.assign_sub(doubled(RATE + 0 * SLOT, lambda t: t * tf.ones([])) * g),
    "weight": lambda w, g: w.assign(doubled(tf.convert_to_tensor(w)) - RATE * g),
    "weight, chosen": lambda w, g: w.assign(
        doubled(tf.convert_to_tensor(w), lambda t: tf.where(SLOT > 0, t, t)) - RATE * g
    ),
    "slot variable": lambda w, g: w.assign_sub(RATE * SLOT.assign(doubled(SLOT + 0 * tf.reduce_sum(g))) * g),
    "aliases of the gradient": lambda w, g: w.assign_sub(RATE * aliased(g)),
    "aliases of the weight": lambda w, g: w.assign(aliased(tf.convert_to_tensor(w)) - RATE * g),
}


@pytest.mark.parametrize("semantics", ["decoupled", "adamw", "l2"])
@pytest.mark.parametrize("update", UPDATES)
def test_a_decay_in_many_paths(update, semantics):
    """Decayed right, or refused: what lies deeper than Python's recursion is refused where it must be followed."""

    def trained(policy):
        w = variable()

        @tf.function(autograph=False)
        def step():
            UPDATES[update](w, gradient_of(w))

        start = w.numpy()
        run = graphwd.with_weight_decay(policy)(step) if policy else step
        if semantics == "decoupled" or not policy:
            run()
            return w.numpy(), start
        try:
            run()
        except graphwd.PlanError as error:
            return str(error), start
        return w.numpy(), start

    rule = {"weight_decay": 0.5, "semantics": semantics, "learning_rate": "rate"}
    decayed, start = trained({"version": 1, "rules": [rule]})
    plain, _ = trained(None)
    lost = {"decoupled": 0.5 * plain, "adamw": 0.05 * start, "l2": 0.05 * start}[semantics]
    if isinstance(decayed, str):
        assert "so much, each from the last" in decayed
    else:
        np.testing.assert_allclose(decayed, plain - lost, rtol=1e-6)


def test_a_power_is_no_learning_rate():
    w = variable()
    step = tf.function(lambda: w.assign_sub(doubled(tf.convert_to_tensor(RATE), lambda t: t * t) * gradient_of(w)))
    plan = graphwd.plan(step, {"version": 1, "rules": [{"weight_decay": 0.5, "semantics": "adamw"}]})
    assert "its learning rate is not found" in plan.problems[0]


def test_each_node_is_evaluated_once_and_after_its_operands():
    graph = {"a": "bcb", "b": "d", "c": "bd", "d": ""}
    order = []

    def value(node, operands):
        order.append(node)
        return 1 + sum(operands)

    assert evaluate("a", graph.__getitem__, value, 0) == 1 + 2 + 4 + 2  # b counts twice; c is 1 + b + d
    assert order == ["d", "b", "c", "a"]


def test_a_cycle_ends():
    graph = {"a": "b", "b": "ac", "c": ""}
    assert evaluate("a", graph.__getitem__, lambda _, operands: 1 + sum(operands), 100) == 1 + (1 + 100 + 1)
