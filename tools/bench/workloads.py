"""What is trained: variables, their gradients, and which of them decay.

The synthetic workloads have gradients that are nearly free and still those of a tape: each variable is reshaped, and
the tape is asked for the gradient with a fixed tensor given for that of the result, so that the gradient is a Reshape,
which copies nothing. What is left of the step is the optimizer, the decay, and the call.

Runs on TensorFlow 2.15 as well, for TensorFlow Addons, where ``keras`` is Keras 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

import keras  # isort: skip - after TensorFlow, whose remarks it would set free

WIDTH = 16
"""Numbers in a row of an embedding."""


class Workload(NamedTuple):
    """One workload, before anything of it is made.

    Attributes:
        name: as the table says it.
        kind: ``dense``, ``rows``, ``mobilenet`` or ``bert``.
        count: how many variables; 0 for models.
        size: floats a variable, rows of a table, or pixels a side of an image.
        touched: how many rows a step touches; 0 where updates are dense.
    """

    name: str
    kind: str
    count: int = 0
    size: int = 0
    touched: int = 0

    @property
    def decays_all(self) -> bool:
        """Whether all of its variables decay; of a model those of rank 2 and more do."""
        return self.kind in ("dense", "rows")


@dataclass
class Built:
    """A workload whose variables are there.

    Attributes:
        variables: what the optimizer trains, as its library wants them.
        losses: makes, under a tape, what is differentiated, and the gradient that is given for each.
        arguments: what a step is called with.
        rows: the rows of the first variable that a step touches; empty where the update is dense.
        model: what holds the variables.
    """

    variables: list[Any]
    losses: Callable[..., tuple[list[Any], list[Any]]]
    arguments: tuple[Any, ...] = ()
    rows: Sequence[int] = ()
    model: Any = None


def workloads(quick: bool = False) -> list[Workload]:
    """All of them, or small ones of the same kinds under the same names, but for the sizes."""
    if quick:
        tables = [(500, 8), (500, 32), (1000, 8)]
        synthetic = [(1, 20_000), (5, 1000), (20, 100)]
    else:
        tables = [(rows, touched) for rows in (100_000, 1_000_000) for touched in (64, 1024, 16_384)]
        synthetic = [(1, 20_000_000), (100, 100_000), (300, 1000)]
    return [
        *(Workload(f"{count} x {short(size)} floats", "dense", count, size) for count, size in synthetic),
        Workload("MobileNetV2", "mobilenet", size=32 if quick else 96),
        Workload("BERT", "bert", size=32 if quick else 128),
        *(
            Workload(f"recommender {short(rows)} rows, {touched} touched", "rows", 1, rows, touched)
            for rows, touched in tables
        ),
    ]


def short(number: int) -> str:
    """A number as people say it: 20M, 100k."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{letter}"
    return str(number)


def build(workload: Workload, make: Callable[..., Any]) -> Built:
    """Makes the variables of a workload, with the same values each time.

    Args:
        workload: which.
        make: makes a variable of the optimizer's library from an array.
    """
    keras.utils.set_random_seed(1)
    return {"dense": _dense, "rows": _recommender, "mobilenet": _mobilenet, "bert": _bert}[workload.kind](
        workload, make
    )


def tensor_of(variable: Any) -> tf.Variable:
    """The variable of TensorFlow that a variable of Keras 3 is made of; any other is one itself."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def _dense(workload: Workload, make: Callable[..., Any]) -> Built:
    random = np.random.default_rng(1)
    value = random.uniform(0.5, 1.5, workload.size).astype(np.float32)  # away from 0, where ulps are of no size
    gradient = tf.constant(random.normal(0, 1e-3, (workload.size // 10, 10)).astype(np.float32))
    variables = [make(value, name=f"weight_{number}") for number in range(workload.count)]

    def losses() -> tuple[list[Any], list[Any]]:
        reshaped = [tf.reshape(tf.convert_to_tensor(variable), [-1, 10]) for variable in variables]
        return reshaped, [gradient] * len(reshaped)

    return Built(variables, losses)


def _recommender(workload: Workload, make: Callable[..., Any]) -> Built:
    """Scores of items: rows of a table times a kernel, against targets."""
    random = np.random.default_rng(1)
    table = make(random.uniform(0.5, 1.5, (workload.size, WIDTH)).astype(np.float32), name="table")
    kernel = make(random.uniform(0.5, 1.5, (WIDTH, 1)).astype(np.float32), name="kernel")
    rows = random.choice(workload.size, workload.touched, replace=False).astype(np.int32)
    targets = tf.constant(random.normal(size=(workload.touched, 1)).astype(np.float32))

    def losses(ids: tf.Tensor, targets: tf.Tensor) -> tuple[list[Any], list[Any]]:
        scores = tf.matmul(tf.gather(tensor_of(table), ids), tensor_of(kernel))
        return [tf.reduce_mean(tf.square(scores - targets))], [tf.ones([])]

    return Built([table, kernel], losses, (tf.constant(rows), targets), rows.tolist())


def _mobilenet(workload: Workload, make: Callable[..., Any]) -> Built:
    random = np.random.default_rng(1)
    shape = (workload.size, workload.size, 3)
    applications: Any = keras.applications  # its types do not know weights=None
    model = applications.MobileNetV2(input_shape=shape, weights=None, classes=10)
    images = tf.constant(random.normal(size=(8, *shape)).astype(np.float32))
    labels = tf.constant(random.integers(0, 10, 8), tf.int32)

    def losses(images: tf.Tensor, labels: tf.Tensor) -> tuple[list[Any], list[Any]]:
        chosen = tf.gather(model(images, training=True), labels, batch_dims=1)
        return [-tf.reduce_mean(tf.math.log(chosen + 1e-7))], [tf.ones([])]

    return Built(_trained(model, make), losses, (images, labels), model=model)


def _bert(workload: Workload, make: Callable[..., Any]) -> Built:
    import keras_hub

    random = np.random.default_rng(1)
    model: Any = keras_hub.models.BertBackbone(
        vocabulary_size=5000, num_layers=2, num_heads=4, hidden_dim=workload.size,
        intermediate_dim=4 * workload.size, max_sequence_length=32, dropout=0.0,
    )  # fmt: skip
    tokens = tf.constant(random.integers(0, 5000, (8, 32)), tf.int32)

    def losses(tokens: tf.Tensor) -> tuple[list[Any], list[Any]]:
        inputs = {"token_ids": tokens, "segment_ids": tf.zeros_like(tokens), "padding_mask": tf.ones_like(tokens)}
        return [tf.reduce_mean(tf.square(model(inputs, training=True)["pooled_output"] - 1.0))], [tf.ones([])]

    return Built(_trained(model, make), losses, (tokens,), model=model)


def _trained(model: Any, make: Callable[..., Any]) -> list[Any]:
    """The variables of a model; those of TensorFlow where the optimizer is of another library than the model."""
    variables = model.trainable_variables
    return [tensor_of(variable) for variable in variables] if make is tf.Variable else list(variables)
