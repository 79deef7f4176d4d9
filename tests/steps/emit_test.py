"""Calls of a rewritten body: which graph gradients, the runtime and saving see."""

from __future__ import annotations

import threading
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import atomic_function
from tensorflow.python.framework import auto_control_deps_utils, ops

import graphwd
from graphwd.policy.rules import Policy
from graphwd.steps.emit import Emitted
from graphwd.steps.pipeline import emit_rewritten
from graphwd.steps.state import State
from tests.helpers.lockstep import assert_bit_equal

HALVED = {"version": 1, "rules": [{"weight_decay": 0.5}]}


BATCH = tf.TensorSpec([1])


def trainer(signature=(BATCH,)):
    """A kernel of 4, and a step that trains it and returns the square of what it gives for its batch then."""
    kernel = tf.Variable([4.0], name="kernel")

    @graphwd.with_weight_decay(HALVED)
    @tf.function(input_signature=signature)
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * batch)
        kernel.assign_sub(tape.gradient(loss, kernel))
        return (kernel * batch) ** 2

    return kernel, step


def by_tape(step, batch):
    with tf.GradientTape() as tape:
        tape.watch(batch)
        result = step(batch)
    return tape.gradient(result, batch)


def by_tape_in_a_function(step, batch):
    return tf.function(by_tape)(step, batch)


def by_tape_around_a_function(step, batch):
    return by_tape(tf.function(lambda batch: step(batch)), batch)


def by_a_persistent_tape(step, batch):
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(batch)
        result = step(batch)
    return tape.gradient(result, batch)


def by_symbols(step, batch):
    return tf.function(lambda batch: tf.gradients(step(batch), batch))(batch)[0]


@pytest.mark.parametrize("traced_before", [False, True], ids=["first call", "traced before"])
@pytest.mark.parametrize(
    "gradient", [by_tape, by_tape_in_a_function, by_tape_around_a_function, by_a_persistent_tape, by_symbols]
)
def test_gradients_are_of_the_decayed_step(gradient, traced_before):
    kernel, step = trainer()
    if traced_before:
        step.get_concrete_function()
    # The gradient of 3 is subtracted from the kernel, and that is halved: 2 k^2 x, which would be 6 without decay.
    assert_bit_equal(gradient(step, tf.constant([3.0])).numpy(), np.float32([1.5]))
    assert_bit_equal(kernel.numpy(), np.float32([0.5]))


def test_gradients_taken_while_another_thread_traces_are_of_the_decayed_step(monkeypatch):
    kernel, step = trainer(signature=None)
    traced = step.get_concrete_function(BATCH)
    traced(tf.constant([0.0]))
    assert_bit_equal(kernel.numpy(), np.float32([2.0]))
    held, resume = threading.Event(), threading.Event()
    call = atomic_function.partitioned_call_op

    def wait(*args, **kwargs):
        if threading.current_thread().name.startswith("tracing"):
            held.set()
            assert resume.wait(600)
        return call(*args, **kwargs)

    monkeypatch.setattr(atomic_function, "partitioned_call_op", wait)
    with futures.ThreadPoolExecutor(1, "tracing") as pool:
        # Another name for the argument has the function around the step traced again, which calls the same body.
        traces_again = pool.submit(step.get_concrete_function, tf.TensorSpec([1], name="another"))
        assert held.wait(600)
        gradient = by_tape(traced, tf.constant([1.0]))
        resume.set()
        traces_again.result()
    assert_bit_equal(kernel.numpy(), np.float32([0.5]))
    assert_bit_equal(gradient.numpy(), np.float32([0.5]))
    assert_bit_equal(by_tape(step, tf.constant([0.0])).numpy(), np.float32([0.0]))
    assert_bit_equal(kernel.numpy(), np.float32([0.25]))


def test_second_gradients_are_of_the_decayed_step():
    kernel, step = trainer()
    step.get_concrete_function()
    batch = tf.constant([0.5])
    with tf.GradientTape() as outer:
        outer.watch(batch)
        with tf.GradientTape() as inner:
            inner.watch(batch)
            result = step(batch)
        first = inner.gradient(result, batch)
    assert_bit_equal(outer.gradient(first, batch).numpy(), np.float32([2 * 1.75**2]))
    assert_bit_equal(kernel.numpy(), np.float32([1.75]))


def test_tracing_makes_no_second_graph_of_the_step(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the graph was made")

    kernel, step = trainer()
    monkeypatch.setattr(Emitted, "concrete", refuse)
    step(tf.constant([1.0]))
    assert_bit_equal(kernel.numpy(), np.float32([1.5]))
    with pytest.raises(AssertionError, match="the graph was made"):
        by_tape(step, tf.constant([1.0]))


@pytest.mark.parametrize("semantics", ["decoupled", "adamw", "l2"])
def test_a_call_reads_only_what_the_rewritten_body_only_reads(semantics):
    kernel, rate = tf.Variable([[4.0]], name="kernel"), tf.Variable(0.5, trainable=False, name="learning_rate")
    untouched = tf.Variable([1.0], name="untouched")

    @tf.function(input_signature=[tf.TensorSpec([1, 1])])
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * batch) + untouched
        kernel.assign_sub(rate * tape.gradient(loss, kernel))
        return loss

    original = step.get_concrete_function()
    rules = [{"regex": "kernel", "weight_decay": 0.5}, {"weight_decay": 0}]
    policy = Policy.from_dict({"version": 1, "defaults": {"semantics": semantics}, "rules": rules})
    emitted, _ = emit_rewritten(original, policy, State(policy))
    caller = tf.function(lambda batch: emitted.call(original, (batch,), {}), autograph=False)
    operations = caller.get_concrete_function(tf.TensorSpec([1, 1])).graph.get_operations()
    (call,) = [operation for operation in operations if operation.type == "StatefulPartitionedCall"]
    body = emitted.concrete(original).graph
    expected = auto_control_deps_utils.get_read_only_resource_input_indices_graph(body)
    assert len(expected) == 2
    assert list(call.get_attr("_read_only_resource_inputs")) == expected


def test_what_cannot_be_saved_says_why():
    kernel = tf.Variable([4.0], name="kernel")
    module = tf.Module()

    @graphwd.with_weight_decay(HALVED)
    @tf.function(input_signature=[tf.TensorSpec([1])])
    def step(batch):
        ops.get_default_graph().mark_as_unsaveable("it belongs to this process")
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * batch)
        kernel.assign_sub(tape.gradient(loss, kernel))
        return loss

    module.kernel, module.step = kernel, step
    with pytest.raises(ValueError, match="it belongs to this process"):
        tf.saved_model.save(module, "/nonexistent")


def test_the_variables_of_the_step_are_those_of_the_function_around_it():
    kernel, step = trainer()
    assert [id(each) for each in step.get_concrete_function().trainable_variables] == [id(kernel)]


LARGE = np.eye(16, dtype=np.float32)
"""More elements than TensorFlow makes a constant of where a step captures it."""


def diagonal(matrix):
    """A diagonal of 16 rows, of a matrix of which the last op may not see how many it has."""
    return tf.linalg.diag(tf.linalg.diag_part(matrix @ matrix), num_rows=16, num_cols=16)


@pytest.mark.parametrize("inner", [False, True], ids=["inline", "in a function"])
@pytest.mark.parametrize("captured", ["tensor", "variable"])
def test_what_is_captured_keeps_its_shape(captured, inner):
    source = tf.constant(LARGE) if captured == "tensor" else tf.Variable(LARGE, trainable=False, name="source")
    kernel = tf.Variable(tf.ones([16, 1]), name="kernel")

    def loss_of():
        return tf.reduce_sum(diagonal(source) @ kernel)

    loss_function = tf.function(loss_of) if inner else loss_of

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            loss = loss_function()
        kernel.assign_sub(0.5 * tape.gradient(loss, kernel))
        return loss

    original = step.get_concrete_function()
    concrete = graphwd.rewrite(original, HALVED)
    assert_bit_equal(concrete().numpy(), np.float32(16))
    with tf.GradientTape():
        loss = graphwd.rewrite(step, HALVED)()
    assert_bit_equal(loss.numpy(), np.float32(4))  # the kernel was 1, is (1 - 0.5) / 2 then
    assert_bit_equal(kernel.numpy(), np.full([16, 1], -0.125, np.float32))
    shapes = [op.outputs[0].shape for op in original.graph.get_operations() if op.type == "MatrixDiagV3"]
    assert shapes == [op.outputs[0].shape for op in concrete.graph.get_operations() if op.type == "MatrixDiagV3"]
    assert shapes == ([] if inner else [[16, 16]])


@pytest.mark.parametrize("decayed_inside", [False, True], ids=["a call beside", "the update in a call"])
def test_gradients_go_through_calls(decayed_inside):
    kernel = tf.Variable([4.0], name="kernel")

    @tf.function
    def squared(batch):
        return (kernel * batch) ** 2

    @tf.function
    def train(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * batch)
        kernel.assign_sub(tape.gradient(loss, kernel))
        return squared(batch)

    @graphwd.with_weight_decay(HALVED)
    @tf.function
    def step(batch):
        if decayed_inside:
            return train(batch)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * batch)
        kernel.assign_sub(tape.gradient(loss, kernel))
        return squared(batch)

    for gradient in (by_tape, by_tape_in_a_function, by_a_persistent_tape, by_symbols):
        kernel.assign([4.0])
        # Of (k x)^2 at k = (4 - 3) / 2, by x: what is read of the kernel is not differentiated by what is subtracted.
        assert_bit_equal(gradient(step, tf.constant([3.0])).numpy(), np.float32([1.5]))
        assert_bit_equal(kernel.numpy(), np.float32([0.5]))


def test_gradients_go_through_a_branch_of_a_function_that_calls_others():
    kernel = tf.Variable([4.0], name="kernel")

    @tf.function
    def train(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * batch)
        kernel.assign_sub(tape.gradient(loss, kernel))

    @tf.function
    def train_and_square(batch):
        tf.function(lambda: train(batch))()
        return (kernel * batch) ** 2

    @tf.function
    def maybe(batch):
        return tf.cond(batch[0] > 0, lambda: tf.function(train_and_square)(batch), lambda: batch)

    step = graphwd.rewrite(tf.function(lambda batch: maybe(batch)), HALVED)
    assert_bit_equal(by_tape(step, tf.constant([3.0])).numpy(), np.float32([1.5]))
    assert_bit_equal(kernel.numpy(), np.float32([0.5]))
