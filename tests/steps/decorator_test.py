"""The decorator: what the decorated step accepts, and what it decays."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import re
import threading
import weakref
from concurrent import futures

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import graphwd
from tests.helpers.lockstep import assert_bit_equal, policy_for

HALVED = {"version": 1, "rules": [{"weight_decay": 0.5, "semantics": "decoupled"}]}


def sgd(kernel, batch, rate=1.0):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(kernel * batch)
    kernel.assign_sub(rate * tape.gradient(loss, kernel))
    return loss


def model():
    built = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    built.compile("sgd", "mse")
    return built


NO_MODEL = (
    "got a Keras model; graphwd.keras.attach(model, policy) gives its fit weight decay, "
    "graphwd.keras.plan(model, policy) says what that will do, and graphwd.keras.suggest(model) writes a first policy; "
    "for a loop of your own give the function that updates the weights"
)


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (int, "got the class int; give a function or an instance's method"),
        (tf.Module, "got the class Module; give a function or an instance's method"),
        (3, "got a int"),
        (None, "got a NoneType"),
        (keras.Model, NO_MODEL),
        (model(), NO_MODEL),
        (model().fit, NO_MODEL),
    ],
    ids=["type", "class", "number", "none", "keras class", "keras model", "keras fit"],
)
def test_what_is_no_step(step, found):
    message = f"^{re.escape(f'a training step must be a function, {found}')}$"
    for use in (
        lambda: graphwd.rewrite(step, HALVED),
        lambda: graphwd.with_weight_decay(HALVED)(step),
        lambda: graphwd.plan(step, HALVED),
    ):
        with pytest.raises(graphwd.StepError, match=message):
            use()


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
    with pytest.raises(graphwd.StepError, match="goes below @classmethod, not above it"):
        graphwd.with_weight_decay(HALVED)(classmethod(lambda cls: None))
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


def test_composite_tensors_and_none():
    kernel = tf.Variable([4.0], name="kernel")

    @graphwd.with_weight_decay(HALVED)
    @tf.function
    def step(ragged, sparse, weight=None):
        loss = sgd(kernel, tf.reduce_sum(ragged.values) * tf.sparse.reduce_sum(sparse) * (weight or tf.ones([1])))
        return {"ragged": ragged * 2.0, "sparse": sparse, "loss": loss, "none": weight}

    ragged, sparse = tf.ragged.constant([[1.0], [2.0, 3.0]]), tf.sparse.from_dense([[0.0, 0.5], [0.0, 0.0]])
    outputs = step(ragged, sparse)
    assert outputs["ragged"].to_list() == [[2.0], [4.0, 6.0]]
    assert_bit_equal(tf.sparse.to_dense(outputs["sparse"]), tf.sparse.to_dense(sparse))
    assert outputs["none"] is None
    assert kernel.numpy() == (4.0 - 3.0) / 2
    step(tf.ragged.constant([[4.0]]), sparse)
    assert kernel.numpy() == (0.5 - 2.0) / 2
    assert step.experimental_get_tracing_count() == 1 + 1  # one row more is another spec


def test_shapes_are_relaxed_as_by_the_original():
    kernel = tf.Variable([4.0], name="kernel")
    step = graphwd.with_weight_decay(HALVED)(tf.function(lambda batch: sgd(kernel, batch), reduce_retracing=True))
    for size in range(1, 6):
        step(tf.zeros([size]))
    assert kernel.numpy() == 4.0 / 2**5
    assert step.experimental_get_tracing_count() == 2


def test_its_concrete_functions():
    kernel = tf.Variable([4.0], name="kernel")
    original = tf.function(lambda batch, rate=1.0: sgd(kernel, batch, rate))
    step = graphwd.with_weight_decay(HALVED)(original)
    concrete = step.get_concrete_function(tf.TensorSpec([None]), rate=2.0)
    expected = original.get_concrete_function(tf.TensorSpec([None]), rate=2.0)
    assert concrete.structured_input_signature == expected.structured_input_signature
    assert concrete.function_type == expected.function_type
    concrete(tf.constant([1.0, 0.0]))
    assert kernel.numpy() == (4.0 - 2.0) / 2
    assert [variable.name for variable in concrete.variables] == ["kernel:0"]


def test_it_is_pickled_and_copied_as_a_tf_function_is():
    kernel = tf.Variable([4.0], name="kernel")

    @tf.function
    def original(batch):
        return sgd(kernel, batch)

    step = graphwd.with_weight_decay(HALVED)(original)
    messages = []
    for each in (original, step):
        with pytest.raises((pickle.PicklingError, AttributeError)) as caught:
            pickle.dumps(each)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "Can't pickle local object" in messages[0]
    for copied in (copy.copy(step), copy.deepcopy(step)):
        copied(tf.constant([0.0]))
    assert kernel.numpy() == 1.0


def test_calls_and_traces_from_many_threads():
    """Each thread trains a variable of its own, and traces for it, all through one step."""
    threads, rounds = 8, 24
    kernels = [tf.Variable([1.0], name=f"kernel_{number}") for number in range(threads)]
    step = graphwd.with_weight_decay(HALVED)(tf.function(lambda number, batch: sgd(kernels[number], batch)))
    ready = threading.Barrier(threads)

    def train(number):
        ready.wait()
        for size in range(rounds):
            step(number, tf.zeros([1 + size // 8]))

    with futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(train, range(threads)))
    assert [float(kernel.numpy()[0]) for kernel in kernels] == [2.0**-rounds] * threads
    assert step.experimental_get_tracing_count() == threads * rounds // 8


@pytest.mark.parametrize("wrap", [lambda step: step, graphwd.with_weight_decay(HALVED)], ids=["original", "decorated"])
def test_hundreds_of_traces_leave_nothing_behind(wrap):
    kernel = tf.Variable([4.0], name="kernel")

    def trace(count):
        step = wrap(tf.function(lambda batch: sgd(kernel, batch)))
        for size in range(1, count + 1):
            step(tf.zeros([size]))

    def held():
        gc.collect()
        return len(context.context().list_function_names()), len(gc.get_objects())

    trace(50)  # what is made once
    functions, objects = held()
    for _ in range(6):
        trace(50)
    functions_after, objects_after = held()
    assert functions_after <= functions  # fewer, where what an earlier test made goes meanwhile
    assert objects_after - objects < 100  # one object of each trace would be three times as many


def test_it_decays_where_functions_are_asked_to_run_eagerly():
    kernel = tf.Variable([4.0], name="kernel")
    step = graphwd.with_weight_decay(HALVED)(tf.function(lambda batch: sgd(kernel, batch)))
    tf.config.run_functions_eagerly(True)
    try:
        step(tf.constant([1.0]))
    finally:
        tf.config.run_functions_eagerly(False)
    assert kernel.numpy() == 1.5
