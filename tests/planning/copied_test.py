"""What is said of a selector that was copied from a table, or that takes a path for a name."""

from __future__ import annotations

import pytest
import tensorflow as tf

import graphwd
from graphwd.policy.rules import Policy
from tests.helpers.graphs import variable


class Blocks(tf.Module):
    """Kernels of one name, and blocks that differ in their numbers."""

    def __init__(self):
        super().__init__()
        self.net = tf.Module()
        self.net.b, self.net.c = variable("Variable", [1.0]), variable("Variable", [1.0])
        self.blocks = [variable(f"block_{i}/kernel", [1.0]) for i in range(6)]

    @tf.function(input_signature=[])
    def step(self):
        weights = [self.net.b, self.net.c, *self.blocks]
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(weight) ** 2 for weight in weights])
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(gradient)


@pytest.mark.parametrize(
    ("selectors", "hint"),
    [
        (
            {"name": "Variable (path net.c)"},
            "'Variable (path net.c)' is what tables call variables of one name: write 'path: net.c'",
        ),
        (
            {"path": "Variable (path net.*)"},
            "'Variable (path net.*)' is what tables call variables of one name: write a rule for each of "
            "'path: net.b', 'path: net.c'",
        ),
        ({"name": "net.c"}, "'net.c' is a path: write 'path: net.c'"),
        ({"path": "block_3/*"}, "'block_3/*' is a name: write 'name: block_3/*'"),
        ({"name": "block_{2,3}/kernel"}, "a glob has no braces: write name: [block_2/kernel, block_3/kernel]"),
        ({"name": "block_{0…4}/kernel"}, "a glob has no braces: write regex: '^block_(0|1|2|3|4)/kernel$'"),
        ({"name": "{block,layer}_0"}, "a glob has no braces: write a list of names, or a regex, which has (a|b)"),
    ],
)
def test_what_is_copied_from_a_table_is_told_how_to_be_written(selectors, hint):
    module = Blocks()
    policy = {"version": 1, "rules": [{**selectors, "weight_decay": 0.1}, {"weight_decay": 0}]}
    (problem,) = graphwd.plan(module.step, policy).problems
    assert f"' matches no trainable variable: {hint}; correct or remove it, or write" in problem
    if "write name: " in hint or "write regex: " in hint:  # what is advised is a policy, and matches
        rule = f"{{weight_decay: 0.1, {hint.partition('write ')[2]}}}"
        advised = Policy.from_text(f"version: 1\nrules: [{rule}, {{weight_decay: 0}}]\n")
        assert graphwd.plan(module.step, advised).problems == ()
