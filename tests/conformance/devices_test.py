"""Where injected nodes run: with the update that they belong to, wherever that is."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import graphwd
from tests.helpers.devices import split_cpu
from tests.helpers.lockstep import assert_bit_equal


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    split_cpu()


def placed(step, *arguments):
    """Every node that runs, in the graphs of all devices."""
    context.enable_run_metadata()
    try:
        step(*arguments)
        graphs = context.export_run_metadata().partition_graphs
    finally:
        context.disable_run_metadata()
    return [node for graph in graphs for node in graph.node]


def transfers(nodes):
    """How many tensors go from one device to another; what carries no more than an order of events is none."""
    return sum(node.op in ("_Send", "_HostSend") and "/ctrl/" not in node.input[0] for node in nodes)


def injected(nodes):
    """The injected nodes, and not the transfers to them."""
    marked = [node for node in nodes if "graphwd/" in node.name and not node.name.rpartition("/")[2].startswith("_")]
    return [(node.op, node.device.rpartition("/device:")[2]) for node in marked]


def make_step():
    """A kernel on the second device, whose update does not say where it runs, in a function in a branch."""
    with tf.device("CPU:1"):
        kernel = tf.Variable(np.eye(4, dtype=np.float32), name="kernel")
        learning_rate = tf.Variable(0.5, name="learning_rate", trainable=False)

    @tf.function
    def update(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(batch @ kernel)
        kernel.assign_sub(learning_rate * tape.gradient(loss, kernel))
        return loss

    @tf.function
    def step(batch):
        return tf.cond(tf.reduce_sum(batch) > 0, lambda: update(batch), lambda: 0.0)

    return step, kernel


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "adamw"])
def test_they_run_where_the_variable_is(semantics):
    step, kernel = make_step()
    batch = tf.ones([2, 4])
    plain = placed(step, batch)
    kernel.assign(np.eye(4, dtype=np.float32))
    policy = {"version": 1, "rules": [{"weight_decay": 0.5, "semantics": semantics}]}
    nodes = placed(graphwd.with_weight_decay(policy)(step), batch)
    devices = {device for _, device in injected(nodes)}
    assert {op for op, _ in injected(nodes)} >= {"ReadVariableOp", "Mul", "Const"}
    assert devices == {"CPU:1"}
    assert transfers(nodes) <= transfers(plain)
    expected = {"decoupled": 0.5 * (np.eye(4) - 1), "tfa": 0.5 * np.eye(4) - 1, "adamw": 0.75 * np.eye(4) - 1}
    assert_bit_equal(kernel.numpy(), expected[semantics].astype(np.float32))


def test_an_update_that_is_put_somewhere_takes_them_along():
    with tf.device("CPU:1"):
        kernel = tf.Variable([4.0], name="kernel")

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(batch * kernel)
        gradient = tape.gradient(loss, kernel)
        with tf.device("CPU:1"):
            kernel.assign_sub(gradient)

    policy = {"version": 1, "rules": [{"weight_decay": 0.5}]}
    nodes = placed(graphwd.with_weight_decay(policy)(step), tf.ones([1]))
    assert {device for _, device in injected(nodes)} == {"CPU:1"}
    assert kernel.numpy() == 1.5


def test_each_device_gets_a_factor_of_its_own():
    kernels = []
    for number in range(2):
        with tf.device(f"CPU:{number}"):
            kernels += [tf.Variable([4.0], name=f"first_{number}"), tf.Variable([4.0], name=f"second_{number}")]

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.add_n([tf.identity(kernel) for kernel in kernels]) * batch)
        for kernel, gradient in zip(kernels, tape.gradient(loss, kernels), strict=True):
            kernel.assign_sub(gradient)

    policy = {"version": 1, "rules": [{"weight_decay": 0.5}]}
    decayed = graphwd.with_weight_decay(policy)(step)
    made = decayed.get_concrete_function(tf.TensorSpec([1])).graph.as_graph_def().library.function
    factors = [node for function in made for node in function.node_def if "graphwd/factor" in node.name]
    assert len(factors) == 2
    nodes = placed(decayed, tf.ones([1]))
    assert sorted(device for op, device in injected(nodes) if op == "Mul") == ["CPU:0"] * 2 + ["CPU:1"] * 2


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "adamw"])
def test_an_update_that_asks_for_another_device_than_its_variable(semantics):
    """TensorFlow runs it where its variable is, even where no device may be replaced by another."""
    with tf.device("CPU:1"):
        kernel = tf.Variable([4.0], name="kernel")
        learning_rate = tf.Variable(0.5, name="learning_rate", trainable=False)

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(batch * kernel)
        gradient = tape.gradient(loss, kernel)
        with tf.device("CPU:0"):
            kernel.assign_sub(learning_rate * gradient)

    soft = tf.config.get_soft_device_placement()
    tf.config.set_soft_device_placement(False)
    try:
        policy = {"version": 1, "rules": [{"weight_decay": 0.5, "semantics": semantics}]}
        nodes = placed(graphwd.with_weight_decay(policy)(step), tf.ones([1]))
    finally:
        tf.config.set_soft_device_placement(soft)
    assert {device for _, device in injected(nodes)} == {"CPU:1"}
    assert kernel.numpy() == {"decoupled": 1.75, "tfa": 1.5, "adamw": 2.5}[semantics]


def test_what_is_fused_is_fused_device_by_device():
    def trained(policy):
        weights = []
        for device in ("CPU:0", "CPU:1"):
            with tf.device(device):
                weights.append(tf.Variable(np.linspace(-1, 1, 8, dtype=np.float32), name=f"kernel_{device[-1]}"))
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(weights)
        slots = [variable for variable in optimizer.variables if variable.path.endswith(("momentum", "velocity"))]
        assert [slot.value.device[-5:] for slot in slots] == ["CPU:0", "CPU:0", "CPU:1", "CPU:1"]

        @graphwd.with_weight_decay(policy)
        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = tf.add_n([tf.reduce_sum(weight**2) for weight in weights])
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

        nodes = placed(step)
        step()
        return [weight.numpy() for weight in weights], nodes

    policy = {"version": 1, "rules": [{"weight_decay": 0.25}]}
    plain, _ = trained(policy)
    fused, nodes = trained({**policy, "fuse": "xla"})
    assert sorted(device for _, device in injected(nodes)) == ["CPU:0", "CPU:1"]
    # XLA contracts a product and a sum into one operation: an ulp or two of the largest.
    np.testing.assert_allclose(fused, plain, rtol=0, atol=4 * np.finfo(np.float32).eps)
