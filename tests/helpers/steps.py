"""Training steps of real libraries, small enough to trace in a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import sonnet as snt
import tensorflow as tf
import tf_keras

FEATURES = 5
CLASSES = 3


def batches(count: int = 4, size: int = 6) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Random regression batches: inputs (size, 5), targets (size, 3), float32."""
    random = np.random.default_rng(7)
    return [
        (
            tf.constant(random.normal(size=(size, FEATURES)), tf.float32),
            tf.constant(random.normal(size=(size, CLASSES)), tf.float32),
        )
        for _ in range(count)
    ]


def loss_of(outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Mean squared error."""
    return tf.reduce_mean(tf.square(outputs - targets))


def step_of(
    forward: Callable[[tf.Tensor], Any],
    variables: Sequence[Any],
    apply: Callable[[Any], object],
    **options: Any,
) -> Any:
    """A usual training step: loss, gradients, ``apply(pairs of gradient and variable)``."""

    @tf.function(**options)
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(forward(inputs), targets)
        gradients = tape.gradient(loss, variables)
        apply(list(zip(gradients, variables, strict=True)))
        return loss

    return step


def keras_model(**dense: Any) -> Any:
    """A Keras 3 model with two kernels, two biases and a normalization, built, named ``net``."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((FEATURES,)),
            layers.Dense(4, activation="tanh", name="hidden", **dense),
            layers.BatchNormalization(name="norm"),
            layers.Dense(CLASSES, name="out", **dense),
        ],
        name="net",
    )


def keras_step(optimizer: Any, model: Any = None, **options: Any) -> Any:
    """A step of a Keras 3 optimizer."""
    model = keras_model() if model is None else model
    optimizer.build(model.trainable_variables)
    return step_of(
        lambda inputs: model(inputs, training=True), model.trainable_variables, optimizer.apply_gradients, **options
    )


def tf_keras_model() -> Any:
    """A tf_keras model with two kernels and two biases, built, named ``net``."""
    tf_keras.utils.set_random_seed(3)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((FEATURES,)),
            layers.Dense(4, activation="tanh", name="hidden"),
            layers.Dense(CLASSES, name="out"),
        ],
        name="net",
    )


def tf_keras_step(optimizer: Any, **options: Any) -> Any:
    """A step of a tf_keras optimizer, legacy or not, or of a v1 optimizer."""
    model = tf_keras_model()
    # Legacy and v1 optimizers make their slot variables on the first call.
    optimizer.apply_gradients([(tf.zeros_like(variable), variable) for variable in model.trainable_variables])
    return step_of(model, model.trainable_variables, optimizer.apply_gradients, **options)


def sonnet_step(optimizer: Any, **options: Any) -> Any:
    """A step of a Sonnet optimizer; its module is named ``net`` and its kernels ``net/linear_0/w``, ..."""
    tf.random.set_seed(3)
    module = snt.nets.MLP([4, CLASSES], name="net")
    module(tf.zeros([1, FEATURES]))
    variables = module.trainable_variables
    # Sonnet makes its slot variables on the first call.
    optimizer.apply([tf.zeros_like(variable) for variable in variables], variables)

    def apply(pairs: Any) -> None:
        optimizer.apply(*zip(*pairs, strict=True))

    return step_of(module, variables, apply, **options)


KERAS_KERNELS = {"net/hidden/kernel": 0.01, "net/out/kernel": 0.2}
TF_KERAS_KERNELS = {"hidden/kernel": 0.01, "out/kernel": 0.2}
SONNET_KERNELS = {"net/linear_0/w": 0.01, "net/linear_1/w": 0.2}


class Accumulating:
    """A hand-written step that updates ``kernel`` by SGD in every second run only, in a branch."""

    def __init__(self) -> None:
        self.kernel = tf.Variable(tf.fill([FEATURES, CLASSES], 0.5), name="kernel")
        self.total = tf.Variable(tf.zeros([FEATURES, CLASSES]), trainable=False, name="total")
        self.count = tf.Variable(0, trainable=False, name="count")

    @tf.function
    def step(self, inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(inputs @ self.kernel, targets)
        self.total.assign_add(tape.gradient(loss, self.kernel))
        self.count.assign_add(1)
        if self.count % 2 == 0:
            self.kernel.assign_sub(0.1 * self.total)
            self.total.assign(tf.zeros_like(self.total))
        return loss


class Looping:
    """A hand-written step that makes one SGD update of ``kernel`` for each row of its batch, in a loop."""

    def __init__(self) -> None:
        self.kernel = tf.Variable(tf.fill([FEATURES, CLASSES], 0.5), name="kernel")

    @tf.function
    def step(self, inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        total = tf.constant(0.0)
        for i in tf.range(tf.shape(inputs)[0]):
            with tf.GradientTape() as tape:
                loss = loss_of(inputs[i : i + 1] @ self.kernel, targets[i : i + 1])
            self.kernel.assign_sub(0.1 * tape.gradient(loss, self.kernel))
            total += loss
        return total
