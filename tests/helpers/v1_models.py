"""TensorFlow 1 training graphs, as SavedModels and as MetaGraphs with their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1

START = np.linspace(-1.0, 1.0, 15, dtype=np.float32).reshape(5, 3)


class Built(NamedTuple):
    """What a training graph is fetched by."""

    inputs: Any
    loss: Any
    train: Any


def build(optimizer: Callable[[], Any], *, resource: bool, conditional: bool = False) -> Built:
    """Builds a training graph on variables ``net/kernel`` and ``net/bias`` in the default graph."""
    inputs = v1.placeholder(tf.float32, [None, 5], "inputs")
    with v1.variable_scope("net", use_resource=resource):
        kernel = v1.get_variable("kernel", initializer=START)
        bias = v1.get_variable("bias", initializer=np.zeros(3, np.float32))
    loss = tf.reduce_mean(tf.square(inputs @ kernel + bias - 1.0))
    step = v1.train.get_or_create_global_step()

    def train() -> Any:
        return optimizer().minimize(loss, global_step=step)

    if conditional:
        gradients = tf.gradients(loss, [kernel, bias])
        made = optimizer()

        def apply() -> Any:
            with tf.control_dependencies([made.apply_gradients(zip(gradients, [kernel, bias], strict=True))]):
                return tf.constant(True)

        train_op = v1.cond(tf.reduce_sum(inputs) > 0, apply, lambda: tf.constant(False)).op
    else:
        train_op = train()
    v1.add_to_collection("train_op", train_op)
    with tf.control_dependencies([train_op]):
        return Built(inputs, tf.identity(loss, "trained_loss"), train_op)


def save(folder: Path, optimizer: Callable[[], Any], **options: Any) -> None:
    """Writes a SavedModel with the signature ``train`` (inputs to loss)."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.disable_control_flow_v2()
        built = build(optimizer, **options)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        signature = v1.saved_model.build_signature_def(
            {"inputs": v1.saved_model.build_tensor_info(built.inputs)},
            {"loss": v1.saved_model.build_tensor_info(built.loss)},
        )
        builder.add_meta_graph_and_variables(session, ["train"], {"train": signature})
        builder.save()


def save_meta(prefix: Path, optimizer: Callable[[], Any], **options: Any) -> None:
    """Writes a checkpoint and its ``.meta``."""
    with tf.Graph().as_default(), v1.Session() as session:
        build(optimizer, **options)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(prefix))


class Trained(NamedTuple):
    """The weights after each run."""

    kernels: list[np.ndarray]
    biases: list[np.ndarray]


def batches(count: int = 4) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.normal(size=(6, 5)).astype(np.float32) for _ in range(count)]


def run(load: Callable[[Any], Any], *, set_kernel: Callable[[np.ndarray], np.ndarray] | None = None) -> Trained:
    """Trains in a session; after every run the kernel is set to ``set_kernel`` of it, if given.

    Args:
        load: fills the session's graph and state, and returns what to fetch for a step.
        set_kernel: what to do to the kernel by hand.
    """
    kernels, biases = [], []
    with tf.Graph().as_default() as graph, v1.Session() as session:
        fetch = load(session)
        for batch in batches():
            session.run(fetch, {"inputs:0": batch})
            if set_kernel is not None:
                kernel = next(v for v in v1.global_variables() if v.name == "net/kernel:0")
                kernel.load(set_kernel(session.run(kernel)), session)
            variables = {v.name: v for v in v1.global_variables()}
            kernels.append(session.run(variables["net/kernel:0"]))
            biases.append(session.run(variables["net/bias:0"]))
        assert graph is v1.get_default_graph()
    return Trained(kernels, biases)


def from_saved_model(folder: Path, key: str = "train") -> Callable[[Any], Any]:
    """Loads a SavedModel, to fetch a signature's output."""

    def load(session: Any) -> Any:
        meta_graph = v1.saved_model.load(session, [key], str(folder))
        return meta_graph.signature_def[key].outputs["loss"].name

    return load


def from_meta(prefix: Path) -> Callable[[Any], Any]:
    """Imports a MetaGraph and restores its checkpoint, to fetch the collection ``train_op``."""

    def load(session: Any) -> Any:
        v1.train.import_meta_graph(f"{prefix}.meta").restore(session, str(prefix))
        return v1.get_collection("train_op")

    return load
