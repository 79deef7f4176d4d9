"""A small convolutional classifier of handwritten digits and its training step, which knows nothing of weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import sklearn.datasets
import tensorflow as tf


@dataclass(frozen=True)
class Digits:
    """The 1,797 images that scikit-learn ships, 1,500 to train on and the rest to test.

    Attributes:
        train: images (1500, 8, 8, 1) in [0, 1], float32, and labels (1500,), int32.
        test: images (297, 8, 8, 1) and labels (297,).
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load_digits(seed: int = 0) -> Digits:
    """Loads and shuffles the images.

    Args:
        seed: seed of the shuffle.
    """
    data: Any = sklearn.datasets.load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    images = (data.images[order, :, :, np.newaxis] / 16).astype(np.float32)
    labels = data.target[order].astype(np.int32)
    return Digits((images[:1500], labels[:1500]), (images[1500:], labels[1500:]))


def make_model(seed: int = 0) -> Any:
    """Makes the untrained classifier.

    Args:
        seed: seed of its initial weights.
    """
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", name="conv1"),
            layers.BatchNormalization(name="norm1"),
            layers.ReLU(),
            layers.Conv2D(32, 3, padding="same", strides=2, name="conv2"),
            layers.BatchNormalization(name="norm2"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="hidden"),
            layers.Dense(10, name="logits"),
        ],
        name="digits",
    )


def make_step(model: Any) -> Any:
    """Makes the training step of a model.

    Args:
        model: the classifier; the step trains it with Adam.

    Returns:
        A ``tf.function`` of images (batch, 8, 8, 1), float32, and labels (batch,), int32, that returns the mean loss.
    """
    optimizer = keras.optimizers.Adam(2e-3)
    optimizer.build(model.trainable_variables)
    loss_of: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.float32), tf.TensorSpec([None], tf.int32)])
    def step_fn(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step_fn


def step_fn() -> Any:
    """The training step of a fresh model, as ``graphwd rewrite`` asks for it."""
    return make_step(make_model())
