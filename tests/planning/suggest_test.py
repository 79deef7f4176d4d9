"""The first policy for a step: it can be read, it plans, and it says what it is about."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf

import graphwd
from graphwd.planning.terminal import in_columns
from graphwd.policy.roles import Role


def weights(**shapes):
    return {name: tf.Variable(tf.ones(shape), name=name) for name, shape in shapes.items()}


def step_of(variables, forward, update=None):
    held = list(variables.values())

    @tf.function(input_signature=[tf.TensorSpec([4, 6])])
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(forward(x)))
        for variable, gradient in zip(held, tape.gradient(loss, held), strict=True):
            (update or (lambda v, g: v.assign_sub(0.5 * g)))(variable, gradient)

    return step


@pytest.fixture
def net():
    held = weights(kernel=[6, 6], bias=[6], gamma=[6], slope=[6])

    def forward(x):
        y = tf.matmul(x, held["kernel"]) + held["bias"]
        y = y * tf.math.rsqrt(tf.reduce_mean(y**2, -1, keepdims=True) + 1e-3) * held["gamma"]
        return tf.nn.relu(y) * held["slope"]

    return step_of(held, forward)


def test_a_rule_for_each_role_that_there_is(net):
    text = graphwd.suggest(net)
    policy = graphwd.Policy.from_text(text)
    assert [(rule.selectors.role, rule.weight_decay) for rule in policy.rules] == [
        ({Role.BIAS, Role.NORM}, 0),
        ({Role.OTHER}, 0),
        ({Role.KERNEL}, 0.01),
    ]
    assert "# A first policy for step, by what the step uses each variable for." in text
    assert "    # kernel  6×6  MatMul, MatMul; normalized next, so that its scale does not matter\n" in text
    assert "    # bias   6  AddV2 to a product" in text
    assert "# 2 variables, 12 weights. Biases" in text
    plan = graphwd.plan(net, policy)
    assert plan.problems == ()
    assert [d.outcome.value for d in plan.decisions] == ["decay", "exempt", "exempt", "exempt"]


def test_without_a_learning_rate_it_does_not_ask_for_one():
    held = weights(w=[6, 2])
    step = step_of(held, lambda x: tf.matmul(x, held["w"]), lambda v, g: v.assign_sub(g * tf.reduce_sum(g) + g))
    text = graphwd.suggest(step)
    assert "semantics: decoupled" in text
    assert "weight_decay: 1e-05" in text
    assert graphwd.plan(step, graphwd.Policy.from_text(text)).problems == ()


def test_what_no_such_policy_settles_stands_at_the_top():
    held = weights(w=[6, 2])
    optimizer = keras.optimizers.AdamW(0.5)
    optimizer.build([held["w"]])
    step = step_of(held, lambda x: tf.matmul(x, held["w"]), lambda v, g: optimizer.apply_gradients([(g, v)]))
    first, *_ = graphwd.suggest(step).splitlines()
    assert first.startswith("# A plan refuses: policy:")
    assert "already decays" in first


def test_a_step_that_updates_nothing():
    w = tf.Variable(tf.ones([6, 2]))
    step = tf.function(lambda x: tf.matmul(x, w), input_signature=[tf.TensorSpec([4, 6])])
    assert graphwd.suggest(step).startswith("# A plan refuses: this is not a training step")


def test_blocks_are_folded_and_columns_aligned():
    held = weights(**{f"block_{number}/{name}": [6, 6] for number in range(12) for name in ("kernel", "w")}, out=[6, 2])

    def forward(x):
        for weight in held.values():
            x = tf.matmul(x, weight)
        return x

    text = graphwd.suggest(step_of(held, forward))
    assert [line for line in text.splitlines() if line.startswith("    #")] == [
        "    # block_{0…11}/kernel  ×12  6×6  MatMul",
        "    # block_{0…11}/w       ×12  6×6  MatMul",
        "    # out                       6×2  MatMul, MatMul_24",
    ]
    assert "# 25 variables, 876 weights. " in text


def test_a_name_cannot_leave_its_comment():
    held = weights(w=[6, 2])
    text = graphwd.suggest(step_of(held, lambda x: tf.matmul(x, held["w"])))
    assert "    # w  6×2  MatMul, MatMul" in text
    line = next(in_columns([("a\nrules: []", "6×2")]))
    assert line == r"a\nrules: []  6×2"
