"""Several replicas in one process: every copy of a variable is decided as its primary is."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from tests import steps
from tests.lockstep import assert_bit_equal, assert_within_ulps

POLICY = {"version": 1, "rules": [{"regex": "kernel$", "weight_decay": 0.25}, {"regex": "bias$", "weight_decay": 0}]}


@pytest.fixture(scope="module")
def strategy():
    (cpu,) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    except RuntimeError:
        pytest.skip("TensorFlow started before two logical devices were asked for: run this file by itself")
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def make_step(strategy):
    with strategy.scope():
        model = steps.tf_keras_model()
        optimizer = tf_keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)

    def replica(inputs, targets):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(model(inputs), targets)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    return model, tf.function(lambda *batch: strategy.reduce("SUM", strategy.run(replica, batch), axis=None))


def test_replicas_decay_alike(strategy):
    (ours, step), (plain, original) = make_step(strategy), make_step(strategy)
    decayed = graphwd.with_weight_decay(POLICY)(step)
    (batch,) = steps.batches(1)
    assert_bit_equal(decayed(*batch), original(*batch))
    for mine, theirs in zip(ours.trainable_variables, plain.trainable_variables, strict=True):
        first, second = (copy.numpy() for copy in mine.values)
        assert_bit_equal(first, second)
        rate = 0.25 if "kernel" in mine.name else 0.0
        assert_within_ulps(first, theirs.values[0].numpy().astype(np.float64) * (1 - rate), 1)


def test_the_plan_names_the_primary(strategy):
    model, step = make_step(strategy)
    plan = graphwd.plan(step, POLICY, *steps.batches(1)[0])
    names = sorted(decision.variable.name for decision in plan.decisions)
    assert names == sorted([variable.name.removesuffix(":0") for variable in model.trainable_variables] * 2)


@pytest.mark.parametrize("semantics", ["tfa", "adamw", "l2"])
def test_every_meaning_decays_replicas_alike(strategy, semantics):
    """For plain SGD all of them are one formula: w <- w - lr g - c w, the gradient taken at the undecayed w."""
    (ours, step), (plain, original) = make_step(strategy), make_step(strategy)
    rules = [{"regex": "kernel$", "weight_decay": 0.25, "semantics": semantics}, {"regex": "bias$", "weight_decay": 0}]
    decayed = graphwd.with_weight_decay({"version": 1, "rules": rules})(step)
    (batch,) = steps.batches(1)
    before = [variable.numpy().astype(np.float64) for variable in ours.trainable_variables]
    decayed(*batch)
    original(*batch)
    for mine, theirs, start in zip(ours.trainable_variables, plain.trainable_variables, before, strict=True):
        first, second = (copy.numpy() for copy in mine.values)
        assert_bit_equal(first, second)
        rate = 0.25 * (1.0 if semantics == "tfa" else float(np.float32(0.1))) if "kernel" in mine.name else 0.0
        target = theirs.values[0].numpy().astype(np.float64) - rate * start
        np.testing.assert_allclose(first, target, rtol=1e-6, atol=1e-7)
