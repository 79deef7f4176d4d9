"""Several replicas in one process: every copy of a variable is decided as its primary is."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from graphwd.errors import StepError
from graphwd.steps.watch import measures
from tests.helpers import steps
from tests.helpers.devices import split_cpu
from tests.helpers.lockstep import assert_bit_equal, assert_within_ulps

POLICY = {"version": 1, "rules": [{"regex": "kernel$", "weight_decay": 0.25}, {"regex": "bias$", "weight_decay": 0}]}


@pytest.fixture(scope="module")
def strategy():
    split_cpu()
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
    assert plan.record()["steps"] == [{"variables": 4, "decayed": 2}], "each counts once, and so it does in the table"
    assert "2 of 4 trainable variables decayed: " in str(plan)


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


class KerasReplicas:
    """A Keras 3 model, its Adam with slot variables, and the step of one replica."""

    def __init__(self, strategy):
        self.strategy = strategy
        keras.utils.set_random_seed(3)
        with strategy.scope():
            layers = [
                keras.layers.Input((steps.FEATURES,)),
                keras.layers.Dense(4, activation="tanh", name="hidden"),
                keras.layers.Dense(steps.CLASSES, name="out"),
            ]
            self.model = keras.Sequential(layers, name="net")
            self.optimizer = keras.optimizers.Adam(0.1, name="adam")
            self.optimizer.build(self.model.trainable_variables)

    def replica(self, inputs, targets):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(self.model(inputs), targets)
        weights = self.model.trainable_variables
        self.optimizer.apply_gradients(list(zip(tape.gradient(loss, weights), weights, strict=True)))
        return loss

    def step(self):
        return tf.function(lambda *batch: self.strategy.run(self.replica, batch))

    def copies(self):
        """The values of the two copies of every variable, slot variables included, by name."""
        every = [*self.model.trainable_variables, *self.optimizer.variables]
        return {each.path: [copy.numpy() for copy in each.value.values] for each in every}

    def restore(self, copies):
        for each in [*self.model.trainable_variables, *self.optimizer.variables]:
            for copy, value in zip(each.value.values, copies[each.path], strict=True):
                copy.assign(value)


def two_batches(strategy, number):
    """A batch for each replica, not the same."""
    both = steps.batches(8)[2 * number : 2 * number + 2]

    def each(part):
        return strategy.experimental_distribute_values_from_function(
            lambda context: both[context.replica_id_in_sync_group][part]
        )

    return [each(0), each(1)]


def check_decayed(actual, undecayed, name):
    """A kernel has decayed once; anything else, slot variables included, not at all."""
    if name in ("net/hidden/kernel", "net/out/kernel"):
        assert_within_ulps(actual, undecayed.astype(np.float64) * (1 - 0.25), 1, name)
    else:
        assert_bit_equal(actual, undecayed, name)


def test_keras_adam_decays_every_copy_once(strategy):
    """In lockstep with the undecayed step; replicas, which have data of their own, stay equal to the bit."""
    ours = KerasReplicas(strategy)
    original = ours.step()
    decayed = graphwd.with_weight_decay(POLICY)(original)
    for number in range(4):
        batch = two_batches(strategy, number)
        before = ours.copies()
        losses = strategy.experimental_local_results(original(*batch))
        assert losses[0] != losses[1]
        plain = ours.copies()
        ours.restore(before)
        for loss, expected in zip(strategy.experimental_local_results(decayed(*batch)), losses, strict=True):
            assert_bit_equal(loss, expected)
        seen = ours.copies()
        assert seen.keys() >= {"net/hidden/kernel", "net/out/bias", "adam/iteration", "adam/net_out_kernel_velocity"}
        for name, (first, second) in seen.items():
            assert_bit_equal(first, second, name)
            check_decayed(first, plain[name][0], name)


def test_a_decorated_replica_is_refused(strategy):
    """What strategy.run calls must not be a tf.function of its own for TensorFlow where it updates all replicas."""
    ours = KerasReplicas(strategy)
    decayed = graphwd.with_weight_decay(POLICY)(ours.replica)
    batch = two_batches(strategy, 0)
    before = ours.copies()
    for run in (strategy.run, tf.function(strategy.run, autograph=False)):
        with pytest.raises(StepError, match=r"decorate the function that calls strategy\.run"):
            run(decayed, batch)
    for name, values in ours.copies().items():
        for value, expected in zip(values, before[name], strict=True):
            assert_bit_equal(value, expected, name)


def test_the_function_around_a_compiled_replica_decays(strategy):
    """A replica that is a tf.function, undecorated, called by the decorated one: what the message asks for."""
    ours, plain = KerasReplicas(strategy), KerasReplicas(strategy)
    batch = two_batches(strategy, 0)
    replica = tf.function(ours.replica)
    graphwd.with_weight_decay(POLICY)(lambda *batch: strategy.run(replica, batch))(*batch)
    plain.step()(*batch)
    expected = plain.copies()
    for name, (first, second) in ours.copies().items():
        assert_bit_equal(first, second, name)
        check_decayed(first, expected[name][0], name)


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_fit_decays_replicas_alike(strategy, library):
    """By ``graphwd.keras.attach``, around ``strategy.run``; the optimizer moves nothing, so decay alone counts."""
    with strategy.scope():
        library.utils.set_random_seed(3)
        inputs = library.Input((steps.FEATURES,))
        model = library.Model(inputs, library.layers.Dense(steps.CLASSES, name="out")(inputs))
        # Keras 3 itself fails to compile a step for replicas, and to run several steps an execution.
        model.compile(library.optimizers.Adam(0.0), "mse", jit_compile=False)
    graphwd.keras.attach(model, POLICY)
    start = model.layers[1].kernel.numpy()
    ((inputs, targets),) = steps.batches(1, size=12)
    model.fit(inputs.numpy(), targets.numpy(), batch_size=4, epochs=2, verbose=0)
    kernel = model.layers[1].kernel
    copies = kernel.value.values if library is keras else kernel.values
    first, second = (copy.numpy() for copy in copies)
    assert_bit_equal(first, second)
    np.testing.assert_allclose(first, start * 0.75**6, rtol=1e-6)
    model.train_on_batch(inputs.numpy(), targets.numpy())
    np.testing.assert_allclose(model.layers[1].kernel.numpy(), start * 0.75**7, rtol=1e-6)


@pytest.mark.parametrize("size", [17, 21], ids=["one replica gets nothing", "one replica gets less"])
@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_fit_of_shards_that_are_uneven(strategy, library, size):
    """The last batch of each epoch; against decay by hand after each batch, to the bit."""

    class ByHand(library.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            for layer in self.model.layers:
                layer.kernel.assign(layer.kernel * 0.75)

    ((inputs, targets),) = steps.batches(1, size=size)
    data = tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(8)
    trained = []
    for callback in (ByHand(), graphwd.keras.WeightDecay(POLICY)):
        with strategy.scope():
            library.utils.set_random_seed(3)
            layers = [library.layers.Dense(4, activation="tanh"), library.layers.Dense(steps.CLASSES)]
            model = library.Sequential([library.layers.Input((steps.FEATURES,)), *layers])
            model.compile(library.optimizers.Adam(0.1), "mse", jit_compile=False)
        start = model.layers[0].bias.numpy()
        model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=[callback])
        trained.append([*model.get_weights(), *(variable.numpy() for variable in model.optimizer.variables)])
        assert np.abs(model.layers[0].bias.numpy() - start).max() > 0.01
    for by_hand, decayed in zip(*trained, strict=True):
        assert_bit_equal(decayed, by_hand)


@pytest.mark.parametrize("counted", [True, False])
def test_rates_that_change(strategy, counted):
    """A schedule, a tunable, and the first weight, which each copy has.

    Each replica counts in a copy of the optimizer's counter, so no single one counts the updates: graphwd does, once.
    """
    with strategy.scope():
        w = tf.Variable([2.0, -1.0], name="w")
        optimizer = tf_keras.optimizers.SGD(0.5)
        optimizer.build([w])

    def replica():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w) / 2
        gradient = tape.gradient(loss, w)
        if counted:
            optimizer.apply_gradients([(gradient, w)])
        else:
            total = tf.distribute.get_replica_context().all_reduce("SUM", gradient)
            w.assign_sub(0.5 * total)

    step = tf.function(lambda: strategy.run(replica))
    schedule = {"schedule": "linear", "from": 0.5, "to": 0.0, "steps": 4}
    rule = {"name": "w", "weight_decay": schedule, "tunable": "body", "formula": "l2_sp"}
    with strategy.scope():
        decayed = graphwd.with_weight_decay({"version": 1, "rules": [rule]})(step)
    state = graphwd.state(decayed)
    expected = first = np.float32([2.0, -1.0])
    for t in range(6):
        state.rates["body"].assign(1.0 if t < 3 else 0.5)
        decayed()
        expected = expected - 0.5
        expected = expected - max(0.5 - 0.125 * t, 0) * (1.0 if t < 3 else 0.5) * (expected - first)
        for copy in w.values:
            np.testing.assert_allclose(copy, expected, rtol=1e-6)
    assert state.steps.numpy() == 6


def test_what_decay_does_is_measured_of_each_weight_once(strategy):
    model, step = make_step(strategy)
    watched = graphwd.rewrite(step, POLICY, summaries=True)
    watched(*steps.batches(1)[0])
    measured = measures(watched)
    kernels = {v.name.removesuffix(":0"): v.values[0].numpy() for v in model.trainable_variables if "kernel" in v.name}
    assert measured.keys() == kernels.keys()
    for name, kernel in kernels.items():
        np.testing.assert_allclose(measured[name].weight_norm, np.linalg.norm(kernel), rtol=1e-6)
        np.testing.assert_allclose(measured[name].decay_norm, np.linalg.norm(kernel) / 3, rtol=1e-6)
