"""The decorator: what the decorated step accepts, and what it decays."""

from __future__ import annotations

import gc
import inspect
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd
from tests.lockstep import assert_bit_equal, policy_for

HALVED = {"version": 1, "rules": [{"weight_decay": 0.5}]}


def sgd(kernel, batch, rate=1.0):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(kernel * batch)
    kernel.assign_sub(rate * tape.gradient(loss, kernel))
    return loss


@pytest.mark.parametrize("wrap", [lambda step: step, tf.function], ids=["python", "tf.function"])
def test_functions(wrap):
    kernel = tf.Variable([4.0, 8.0], name="kernel")
    step = graphwd.with_weight_decay(HALVED)(wrap(lambda batch: sgd(kernel, batch)))
    assert step(tf.constant([1.0, 1.0])).numpy() == 12.0
    assert_bit_equal(kernel.numpy(), np.float32([1.5, 3.5]))


def test_methods_of_several_instances():
    class Trainer:
        def __init__(self, value):
            self.kernel = tf.Variable([value], name="kernel")

        @graphwd.with_weight_decay(HALVED)
        @tf.function
        def step(self, batch, rate=1.0):
            """Trains."""
            return sgd(self.kernel, batch, rate)

    first, second = Trainer(4.0), Trainer(16.0)
    for _ in range(2):
        first.step(tf.constant([0.0]))
    second.step(tf.constant([2.0]), rate=3.0)
    assert first.kernel.numpy() == 1.0
    assert second.kernel.numpy() == 5.0


def test_methods_with_an_input_signature():
    class Trainer(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable([4.0], name="kernel")

        @graphwd.with_weight_decay(HALVED)
        @tf.function(input_signature=[tf.TensorSpec([1]), tf.TensorSpec([])])
        def step(self, batch, rate):
            return sgd(self.kernel, batch, rate)

    first, second = Trainer(), Trainer()
    assert first.step(tf.constant([1.0]), rate=tf.constant(2.0)).numpy() == 4.0
    assert first.kernel.numpy() == 1.0
    assert second.kernel.numpy() == 4.0
    assert first.step is first.step


@pytest.mark.parametrize("decorate", [tf.function, lambda f: graphwd.with_weight_decay(HALVED)(tf.function(f))])
def test_instances_are_freed_with_their_variables(decorate):
    class Trainer:
        def __init__(self):
            self.kernel = tf.Variable([4.0], name="kernel")

        @decorate
        def step(self, batch):
            return sgd(self.kernel, batch)

    trainer = Trainer()
    trainer.step(tf.constant([1.0]))
    kernel = weakref.ref(trainer.kernel)
    del trainer
    gc.collect()
    assert kernel() is None


def test_variables_made_on_the_first_call():
    made = []

    @graphwd.with_weight_decay(HALVED)
    @tf.function
    def step(batch):
        if not made:
            made.append(tf.Variable([4.0], name="kernel"))
        return sgd(made[0], batch)

    step(tf.constant([1.0]))
    assert made[0].numpy() == 1.5
    step(tf.constant([1.0]))
    assert made[0].numpy() == 0.25


def test_it_retraces_as_the_original_does():
    kernel = tf.Variable([4.0], name="kernel")
    step = graphwd.with_weight_decay(HALVED)(tf.function(lambda batch: sgd(kernel, batch)))
    for batch in ([1.0], [2.0], [[1.0], [2.0]], [[3.0], [4.0]]):
        step(tf.constant(batch))
    assert step.experimental_get_tracing_count() == 2


def test_options_signature_and_documentation_stay():
    kernel = tf.Variable([4.0], name="kernel")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)], jit_compile=True)
    def original(batch):
        """Trains one step."""
        return sgd(kernel, batch)

    step = graphwd.with_weight_decay(HALVED)(original)
    assert step.__name__ == "original"
    assert step.__doc__ == "Trains one step."
    assert list(inspect.signature(step).parameters) == ["batch"]
    assert step.input_signature == original.input_signature
    step(tf.constant([1.0]))
    assert kernel.numpy() == 1.5
    assert step.get_concrete_function().function_def.attr["_XlaMustCompile"].b


def test_inside_another_function():
    kernel = tf.Variable([4.0], name="kernel")
    step = graphwd.with_weight_decay(HALVED)(lambda batch: sgd(kernel, batch))

    @tf.function
    def twice(batch):
        step(batch)
        return step(batch)

    assert twice(tf.constant([1.0])).numpy() == 1.5
    assert kernel.numpy() == 0.25


def test_structures_keywords_and_python_values():
    kernel = tf.Variable([4.0], name="kernel")

    @graphwd.with_weight_decay(HALVED)
    def step(batch, *, mode="train", extra=None):
        loss = sgd(kernel, batch["x"][0])
        return {"loss": loss, "mode": tf.constant(mode), "extra": extra}

    outputs = step({"x": (tf.constant([1.0]),)}, mode="warm")
    assert outputs["mode"].numpy() == b"warm"
    assert outputs["extra"] is None


def test_errors_come_when_the_policy_is_read_or_the_step_traced():
    with pytest.raises(graphwd.PolicyError, match="unknown key 'rule'"):
        graphwd.with_weight_decay({"version": 1, "rule": []})
    with pytest.raises(graphwd.PolicyError, match="must be a Policy, a path or a mapping, got a int"):
        graphwd.with_weight_decay(3)
    with pytest.raises(graphwd.StepError, match="must be a function, got a int"):
        graphwd.with_weight_decay(HALVED)(3)
    kernel = tf.Variable([4.0], name="kernel")
    step = graphwd.with_weight_decay(policy_for({"typo": 0.1}))(lambda batch: sgd(kernel, batch))
    with pytest.raises(graphwd.PlanError, match="'name: typo' matches no trainable variable; there is 'kernel'"):
        step(tf.constant([1.0]))
    assert kernel.numpy() == 4.0


class Plain(keras.Model):
    """A model of one layer."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2, name="dense")

    def call(self, inputs):
        return self.dense(inputs)


class OwnLoop(Plain):
    """With a train step that is written out."""

    @graphwd.with_weight_decay(policy_for({"*kernel": 0.5}))
    def train_step(self, data):
        inputs, targets = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(inputs, training=True) - targets))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


class Inheriting(Plain):
    """With the train step of Keras."""

    @graphwd.with_weight_decay(policy_for({"*kernel": 0.5}))
    def train_step(self, data):
        return super().train_step(data)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", [OwnLoop, Inheriting])
def test_the_train_step_of_a_keras_model_under_fit(kind, jit_compile):
    model = kind()
    model(np.zeros((1, 3), np.float32))
    optimizer = keras.optimizers.SGD(0.0)  # so that decay alone changes the weights
    model.compile(optimizer, loss="mse", jit_compile=jit_compile)
    optimizer.build(model.trainable_variables)
    start = model.dense.kernel.numpy()
    model.fit(np.ones((8, 3), np.float32), np.ones((8, 2), np.float32), batch_size=4, epochs=2, verbose=0)
    np.testing.assert_array_equal(model.dense.kernel.numpy(), start / 16)  # four steps
    np.testing.assert_array_equal(model.dense.bias.numpy(), 0)
