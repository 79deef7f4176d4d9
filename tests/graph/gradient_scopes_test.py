"""Which name scopes may hold gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.graph.gradient_scopes import GradientScopes, in_gradient_scope
from tests.helpers.graphs import function, variable


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gradient_tape/mul", True),
        ("step/gradient_tape/mul", True),
        ("gradients/mul_grad/Mul", True),
        ("gradients_1/mul_grad/Mul", True),
        ("gradient_tape", False),
        ("my_gradients/mul", False),
        ("gradients_of/mul", False),
        ("mul/gradients", False),
    ],
)
def test_a_name(name, expected):
    assert in_gradient_scope(name) is expected
    assert GradientScopes([]).hold(name) is expected


def test_a_scope_that_holds_a_write_is_somebody_elses():
    body = function("gradients/write AssignSubVariableOp w a", "gradient_tape/mul Mul a a", arguments=("w", "a"))
    scopes = GradientScopes([body])
    assert not scopes.hold("gradients/mul")
    assert scopes.hold("gradients/gradient_tape/mul")
    assert scopes.hold("gradient_tape/mul")
    assert scopes.hold("gradients_1/mul")


@pytest.mark.parametrize("semantics", ["decoupled", "tfa"])
def test_a_scope_of_ones_own_makes_no_update_of_an_average(semantics):
    w, average = variable("w"), variable("average", (4.0, 4.0))

    @tf.function
    def step(x):
        with tf.name_scope("gradients"):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(x * w)
            new = w - 0.5 * tape.gradient(loss, w)
            w.assign(new)
            average.assign(0.75 * average + 0.25 * new)

    policy = {"version": 1, "defaults": {"semantics": semantics}, "rules": [{"weight_decay": 0.5}]}
    x = tf.constant([2.0, 2.0])
    with pytest.raises(graphwd.PlanError, match=r"'average'.*\n.*as an average does"):
        graphwd.rewrite(step.get_concrete_function(x), policy)
    graphwd.rewrite(step.get_concrete_function(x), policy | {"not_updated": "leave"})(x)
    # From (1, 2), a step of (-1, -1).
    expected = {"decoupled": [0.0, 0.5], "tfa": [-0.5, 0.0]}[semantics]
    np.testing.assert_array_equal(w.numpy(), expected)
    np.testing.assert_array_equal(average.numpy(), [3.0, 3.25])
