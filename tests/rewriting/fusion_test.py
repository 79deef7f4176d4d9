"""``fuse: xla``: the optimizer's arithmetic and the decay, compiled together, compute what they computed apart."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.graph.graph import MARK
from graphwd.rewriting.fusion import FUSED
from graphwd.steps.read import variables_of
from tests.helpers import steps
from tests.helpers.lockstep import assert_bit_equal

OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "AMSGrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "Adamax": lambda: keras.optimizers.Adamax(0.01),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adadelta": lambda: keras.optimizers.Adadelta(0.1),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 20)),
    "clipped": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "averaging": lambda: keras.optimizers.Adam(0.01, use_ema=True),
}
KERNELS = [{"regex": "kernel$", "weight_decay": 0.01}, {"weight_decay": 0}]


def policy_of(semantics="decoupled", rules=KERNELS, **fields):
    return {"version": 1, "defaults": {"semantics": semantics}, "rules": rules, **fields}


def calls(step):
    """The bodies of what was outlined, and how often each is called."""
    library = {each.signature.name: each for each in step.graph.as_graph_def().library.function}
    nodes = [node for function in (step.function_def, *library.values()) for node in function.node_def]
    return [library[node.attr["f"].func.name] for node in nodes if MARK in node.attr and node.attr[MARK].s == FUSED]


def trained(make, policy, count=6):
    """The state after some steps, pairs of name and value in the order of their making, and the step."""
    step = steps.keras_step(make())
    concrete = step.get_concrete_function(*steps.batches(1)[0])
    rewritten = graphwd.rewrite(concrete, policy)
    for batch in steps.batches(count):
        rewritten(*batch)
    return [(variable.name, variable.numpy()) for variable in variables_of(concrete)], rewritten


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "adamw", "l2"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fused_it_computes_the_same(optimizer, semantics, caplog):
    with caplog.at_level(logging.WARNING, "graphwd"):
        apart, plain = trained(OPTIMIZERS[optimizer], policy_of(semantics))
        together, fused = trained(OPTIMIZERS[optimizer], policy_of(semantics, fuse="xla"))
    assert "is fused" not in caplog.text
    assert calls(plain) == []
    assert len(calls(fused)) == 1
    for (name, value), (_, fused_value) in zip(apart, together, strict=True):
        if np.issubdtype(value.dtype, np.floating):
            # XLA contracts products and sums: a few units a step, of the largest element.
            bound = 64 * np.spacing(np.abs(value).max(initial=1e-6))
            np.testing.assert_allclose(fused_value, value, rtol=1e-5, atol=bound, err_msg=name)
        else:
            assert_bit_equal(value, fused_value, name)


def test_both_kernels_are_in_one_function_with_all_that_is_written():
    _, fused = trained(OPTIMIZERS["Adam"], policy_of(fuse="xla"), count=1)
    (body,) = calls(fused)
    writes = [node for node in body.node_def if node.op.startswith("Assign")]
    # The decay, the update and two moments of either kernel. Not the biases: they are not decayed.
    assert len(writes) == 8
    assert sum(MARK in node.attr for node in writes) == 2
    assert {node.name for node in writes} == set(body.control_ret.values())
    assert body.attr["_XlaMustCompile"].b
    assert not any(node.op.startswith(("MatMul", "Tanh")) for node in body.node_def)


def test_what_is_not_decayed_stays_as_it_is():
    """To the bit, in the first step: biases, their moments, statistics, the loss."""
    batch = steps.batches(1)[0]
    original, fused = (steps.keras_step(keras.optimizers.Adam(0.01)) for _ in range(2))
    concrete = [each.get_concrete_function(*batch) for each in (original, fused)]
    assert_bit_equal(concrete[0](*batch), graphwd.rewrite(concrete[1], policy_of(fuse="xla"))(*batch))
    compared = 0
    for before, after in zip(*map(variables_of, concrete), strict=True):
        if "kernel" not in before.name:
            assert_bit_equal(before.numpy(), after.numpy(), before.name)
            compared += 1
    assert compared > 8


def test_a_compiled_step_is_not_fused_once_more():
    step = steps.keras_step(keras.optimizers.Adam(0.01), jit_compile=True)
    concrete = step.get_concrete_function(*steps.batches(1)[0])
    assert calls(graphwd.rewrite(concrete, policy_of(fuse="xla"))) == []


@pytest.mark.parametrize("optimizer", ["Lamb", "Muon", "Adafactor"])
def test_an_update_that_is_not_all_elementwise_is_fused_in_part(optimizer):
    """What comes after the norm of a weight, or not even that: the results stay the same."""
    make = {
        "Lamb": lambda: keras.optimizers.Lamb(0.01),
        "Muon": lambda: keras.optimizers.Muon(0.01, weight_decay=None),
        "Adafactor": lambda: keras.optimizers.Adafactor(0.01),
    }[optimizer]
    apart, _ = trained(make, policy_of())
    together, fused = trained(make, policy_of(fuse="xla"))
    assert len(calls(fused)) == 1
    for (name, value), (_, fused_value) in zip(apart, together, strict=True):
        np.testing.assert_allclose(fused_value, value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_is_not_fused_is_said(caplog):
    """A fused op is no arithmetic to be compiled; its decay alone still is."""
    kernel = tf.Variable([4.0], name="kernel")

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel * batch)
        gradient = tape.gradient(loss, kernel)
        tf.raw_ops.ResourceApplyGradientDescent(var=kernel.handle, alpha=1.0, delta=gradient)

    decayed = graphwd.with_weight_decay({"version": 1, "fuse": "xla", "rules": [{"weight_decay": 0.5}]})(step)
    with caplog.at_level(logging.WARNING, "graphwd"):
        decayed(tf.constant([1.0]))
    assert "fuse: xla: not all of what updates and decays kernel is fused" in caplog.text
    assert kernel.numpy() == 1.5


def test_a_read_that_the_forward_pass_shares_stays_outside():
    """Before it the gradient is computed: inside, the call would wait for itself."""
    kernel = tf.Variable([4.0, 2.0], name="kernel")

    @tf.function
    def step(batch):
        value = kernel.read_value()
        with tf.GradientTape() as tape:
            tape.watch(value)
            loss = tf.reduce_sum(value * value * batch)
        kernel.assign(value - 0.25 * tape.gradient(loss, value))
        return loss

    concrete = step.get_concrete_function(tf.TensorSpec([2]))
    fused = graphwd.rewrite(concrete, {"version": 1, "fuse": "xla", "rules": [{"weight_decay": 0.5}]})
    assert fused(tf.constant([1.0, 0.0])).numpy() == 16.0
    assert_bit_equal(kernel.numpy(), np.float32([1.0, 1.0]))
    (body,) = calls(fused)
    assert sorted(node.op for node in body.node_def if "Variable" in node.op) == [
        "AssignVariableOp",
        "AssignVariableOp",
        "ReadVariableOp",
    ]


def test_in_a_loop_over_a_dataset_and_under_fit():
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="out")], name="net")
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False, steps_per_execution=2)
    start = model.layers[0].kernel.numpy()
    graphwd.keras.attach(model, policy_of(fuse="xla"))
    model.fit(np.ones((16, 3)), np.ones((16, 2)), batch_size=4, epochs=1, verbose=0)
    np.testing.assert_allclose(model.layers[0].kernel.numpy(), start * 0.99**4, rtol=1e-6)


def test_verified_and_exported(tmp_path):
    step = steps.keras_step(keras.optimizers.Adam(0.01))
    concrete = step.get_concrete_function(*steps.batches(1)[0])
    policy = policy_of("adamw", fuse="xla")
    fused = graphwd.rewrite(concrete, policy)
    assert graphwd.verify(concrete, fused, policy, tolerance=64).ok
    wrong = graphwd.verify(concrete, fused, policy_of("adamw", rules=[{"weight_decay": 0.011}]), tolerance=64)
    assert not wrong.ok
    module = tf.Module()
    module.step, module.state = fused, variables_of(concrete)
    tf.saved_model.save(module, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    batch = steps.batches(1)[0]
    assert_bit_equal(loaded.step(*batch), fused(*batch))
    for mine, theirs in zip(loaded.state, module.state, strict=True):
        assert_bit_equal(mine.numpy(), theirs.numpy(), theirs.name)
    with pytest.raises(graphwd.RewriteError, match="was fused, so its decay cannot be taken out: take the original"):
        graphwd.strip(tmp_path / "model", tmp_path / "stripped")
    assert not (tmp_path / "stripped").exists()


def test_files_are_not_fused(tmp_path):
    module = tf.Module()
    module.kernel = tf.Variable([1.0], name="kernel")
    tf.saved_model.save(module, str(tmp_path / "model"))
    with pytest.raises(graphwd.StepError, match="'fuse: xla' is for Python steps; leave it out to rewrite a file"):
        graphwd.rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy_of(fuse="xla"))


def test_the_policy_key():
    assert graphwd.Policy.from_dict(policy_of(fuse="xla")).fuse
    assert not graphwd.Policy.from_dict(policy_of(fuse="none")).fuse
    with pytest.raises(graphwd.PolicyError, match="fuse must be one of none, xla; got True"):
        graphwd.Policy.from_dict(policy_of(fuse=True))
