"""The pass end to end: original and rewritten in lockstep."""

from __future__ import annotations

import gc
import re

import keras
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tf_keras

import graphwd
from tests.helpers import steps
from tests.helpers.lockstep import Case, assert_bit_equal, assert_within_ulps, check_lockstep, policy_for


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.1),
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        keras.optimizers.Adam(0.01),
        keras.optimizers.Ftrl(0.1),
    ],
    ids=["sgd", "nesterov", "adam", "ftrl"],
)
def test_keras_3(optimizer):
    check_lockstep(Case(steps.keras_step(optimizer), steps.batches(), steps.KERAS_KERNELS))


def test_tf_keras_legacy_adam():
    step = steps.tf_keras_step(tf_keras.optimizers.legacy.Adam(0.01))
    check_lockstep(Case(step, steps.batches(), steps.TF_KERAS_KERNELS))


def test_sonnet_adam():
    step = steps.sonnet_step(snt.optimizers.Adam(0.01))
    check_lockstep(Case(step, steps.batches(), steps.SONNET_KERNELS))


def test_an_update_in_a_branch_decays_only_when_the_branch_runs():
    accumulating = steps.Accumulating()
    state = [accumulating.kernel, accumulating.total, accumulating.count]

    def expected(after):
        return after if accumulating.count.numpy() % 2 else after * 0.9

    check_lockstep(Case(accumulating.step, steps.batches(6), {"kernel": 0.1}, state), expected)
    assert accumulating.count.numpy() == 6


def test_an_update_in_a_loop_decays_once_for_each_iteration():
    rows, rate = 6, 0.1
    looping, reference = steps.Looping(), steps.Looping()
    rewritten = graphwd.rewrite(looping.step, policy_for({"kernel": rate}))
    for inputs, targets in steps.batches(3, rows):
        loss = rewritten(inputs, targets)
        total = tf.constant(0.0)
        for i in range(rows):
            total += reference.step(inputs[i : i + 1], targets[i : i + 1])
            reference.kernel.assign(reference.kernel * np.float32(1 - rate))
        assert_within_ulps(looping.kernel.numpy(), reference.kernel.numpy().astype(np.float64), 2)
        np.testing.assert_allclose(loss, total, rtol=1e-6)


def test_signature_and_outputs_keep_their_structure():
    kernel = tf.Variable([1.0, 2.0], name="kernel")

    @tf.function
    def step(batch, *, scale=2.0):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * batch["x"]) * scale
        kernel.assign_sub(tape.gradient(loss, kernel))
        return {"loss": loss, "parts": (batch["x"], None)}

    spec = {"x": tf.TensorSpec([None], tf.float32)}
    concrete = step.get_concrete_function(spec, scale=3.0)
    rewritten = graphwd.rewrite(concrete, policy_for({"kernel": 0.5}))
    assert rewritten.structured_input_signature == concrete.structured_input_signature
    assert rewritten.structured_outputs == concrete.structured_outputs
    outputs = rewritten({"x": tf.constant([1.0, 1.0])}, scale=3.0)
    assert outputs["loss"].numpy() == 9.0
    assert outputs["parts"][1] is None
    assert_bit_equal(kernel.numpy(), np.float32([-1.0, -0.5]))


def test_an_empty_policy_changes_no_node():
    step = steps.keras_step(keras.optimizers.Adam(0.01))
    concrete = step.get_concrete_function(*steps.batches()[0])
    policy = {"version": 1, "rules": [], "unmatched": "skip"}
    rewritten = graphwd.rewrite(concrete, policy)
    before, after = concrete.function_def, rewritten.function_def
    after.signature.name = before.signature.name
    assert after == before


def test_a_rewritten_step_is_not_rewritten_again():
    looping = steps.Looping()
    policy = policy_for({"kernel": 0.1})
    rewritten = graphwd.rewrite(looping.step.get_concrete_function(*steps.batches()[0]), policy)
    with pytest.raises(graphwd.RewriteError, match="second pass would decay twice"):
        graphwd.rewrite(rewritten, policy)


def test_a_function_that_trains_nothing_is_refused():
    kernel = tf.Variable([1.0], name="kernel")

    @tf.function
    def restore(value):
        kernel.assign(value)

    with pytest.raises(graphwd.PlanError, match="not a training step: no trainable variable is updated"):
        graphwd.rewrite(restore.get_concrete_function(tf.TensorSpec([1])), policy_for({"kernel": 0.1}))


def test_a_plan_changes_nothing():
    looping = steps.Looping()
    batch = steps.batches()[0]
    traces = looping.step.experimental_get_tracing_count()
    plan = graphwd.plan(looping.step, policy_for({"kernel": 0.1}), *batch)
    assert [decision.outcome.value for decision in plan.decisions] == ["decay"]
    assert looping.step.experimental_get_tracing_count() == traces + 1
    assert_bit_equal(looping.kernel.numpy(), np.full((5, 3), 0.5, np.float32))
    assert not any("graphwd" in node.name for node in looping.step.get_concrete_function(*batch).function_def.node_def)


def training_or_not():
    """A step with a trace that trains and one that trains twice."""
    kernel, other = tf.Variable([4.0], name="kernel"), tf.Variable([1.0], name="other")

    @tf.function
    def step(batch, twice):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * batch * other)
        gradient = tape.gradient(loss, kernel)
        kernel.assign_sub(gradient)
        if twice:
            other.assign_sub(gradient)
        return loss

    return step, (kernel, other)


def test_a_plan_is_of_every_trace_that_the_step_holds():
    step, _variables = training_or_not()
    for twice in (False, True):
        step.get_concrete_function(tf.constant([1.0]), twice)
    plan = graphwd.plan(step, policy_for({"kernel": 0.5, "other": 0.25}))
    said = {(decision.variable.name, decision.outcome.value) for decision in plan.decisions}
    assert said == {("kernel", "decay"), ("other", "no update"), ("other", "decay")}
    assert len(plan.decisions) == 3
    assert sorted(each["decayed"] for each in plan.record()["steps"]) == [1, 2]
    assert "trainable variables decayed in some of 2 traces or graphs" in str(plan)
    one = graphwd.plan(step, policy_for({"kernel": 0.5, "other": 0.25}), tf.constant([1.0]), True)
    assert len(one.decisions) == len(one.injections) == 2
    assert one.parts == ()


def test_a_plan_is_shown_in_a_few_words():
    step, _variables = training_or_not()
    policy = policy_for({"kernel": 0.5, "other": 0.25}, semantics="decoupled")
    plan = graphwd.plan(step, policy, tf.constant([1.0]), True)
    assert repr(plan) == "<Plan: 2 decisions, 0 problems, 0 notes; print it for the table>"
    assert re.fullmatch("<Decision 'kernel': decay, .{1,40}>", repr(plan.decisions[0]))
    assert repr(plan.decisions[0].writes) == "<VariableWrites 'kernel': 1 updates, 0 native decays, 0 others>"


def test_a_deleted_variable_is_named_as_the_reason():
    looping = steps.Looping()
    concrete = looping.step.get_concrete_function(*steps.batches()[0])
    del looping
    gc.collect()
    with pytest.raises(graphwd.StepError, match="a variable of the step has been deleted"):
        graphwd.rewrite(concrete, policy_for({"kernel": 0.1}))


def test_a_rewritten_step_keeps_its_variables_alive():
    looping = steps.Looping()
    batch = steps.batches()[0]
    rewritten = graphwd.rewrite(looping.step.get_concrete_function(*batch), policy_for({"kernel": 0.1}))
    del looping
    gc.collect()
    assert np.isfinite(rewritten(*batch).numpy())


def test_a_function_shared_with_an_untouched_step_stays_as_it_is_there():
    kernel = tf.Variable([4.0], name="kernel")

    @tf.function
    def update(gradient):
        kernel.assign_sub(gradient)

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel)
        update(tape.gradient(loss, kernel))

    decayed, untouched = tf.function(step), tf.function(step)
    plain = untouched.get_concrete_function()
    rewritten = graphwd.rewrite(decayed.get_concrete_function(), policy_for({"kernel": 0.5}))
    rewritten()
    assert kernel.numpy() == 1.5
    plain()
    assert kernel.numpy() == 0.5
    untouched()
    assert kernel.numpy() == -0.5
