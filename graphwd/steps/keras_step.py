# pyright: basic
"""What a Keras model would do if it were trained: traces to be planned and read, and never to be run.

What a plan needs is the model's forward pass, the gradients and the optimizer's arithmetic. The loss is not known
before there is data, so the mean of the outputs stands for it; with a batch of data it is the model's own step.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from graphwd.analysis.roles import Purpose, find_roles
from graphwd.errors import GraphwdError, StepError
from graphwd.steps.read import ROOT, ConcreteFunction, read, trace


def training_step(model: Any, data: Any = None, train_step: Any = None) -> ConcreteFunction:
    """Traces a training step of a model.

    Args:
        model: a built and compiled model of Keras 3 or tf_keras.
        data: a batch as ``fit`` gives it to ``train_step``, such as ``(x, y)``; None where it is not at hand.
        train_step: the model's own ``train_step``, where an attribute stands in its place.

    Returns:
        The trace. The variables of the optimizer are made, as ``fit`` would make them.

    Raises:
        StepError: the model is not built or not compiled, its inputs are not known, or it does not trace.
    """
    if not model.built:
        raise StepError(
            f"the model '{model.name}' is not built, so its weights are not known: give it an Input, call "
            "model.build(shape), or call it once"
        )
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise StepError(f"the model '{model.name}' has no optimizer: compile it first")
    with model.distribute_strategy.scope():
        _build(optimizer, model.trainable_variables)
    if data is None:
        run, batch = _stand_in(model, optimizer), _inputs(model)
    else:
        run, batch = train_step or model.train_step, tf.nest.map_structure(tf.convert_to_tensor, data)

    @tf.function(autograph=False)
    def step(batch: Any) -> Any:
        return model.distribute_strategy.run(run, (batch,))

    setattr(step, ROOT, weakref.ref(model))
    return trace(step, (batch,), {})


def forward_purposes(model: Any) -> Mapping[int, Purpose] | None:
    """What the weights of a built model are used for, by the identities of their handles, read off its forward pass.

    Args:
        model: a model of Keras 3 or tf_keras.

    Returns:
        The purposes; None where the inputs are not known, the weights are copied to several replicas, or the model
        does not trace without data.
    """
    if model.distribute_strategy.num_replicas_in_sync > 1:
        return None

    @tf.function(autograph=False)
    def forward(batch: Any) -> Any:
        return model(batch, training=True)

    try:
        graph = read(trace(forward, (_inputs(model),), {}))
    except GraphwdError:
        return None
    found = find_roles(graph)
    return {variable.key: found[variable.id] for variable in graph.variables if variable.key and variable.id in found}


def _build(optimizer: Any, variables: Any) -> None:
    build = getattr(optimizer, "build", None) or optimizer._create_all_weights
    if not getattr(optimizer, "built", False):
        build(variables)


def _inputs(model: Any) -> Any:
    try:
        inputs = model.input if hasattr(model, "input") else model.inputs
    except (AttributeError, ValueError):
        inputs = None
    if isinstance(inputs, list) and len(inputs) == 1:
        (inputs,) = inputs
    if inputs is None:
        raise StepError(
            f"the inputs of the model '{model.name}' are not known, as it is no functional model: give a batch, as in "
            "plan(model, policy, data=(x, y))"
        )
    return tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), inputs)


def _stand_in(model: Any, optimizer: Any) -> Any:
    def run(batch: Any) -> None:
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(model(batch, training=True))
            means = [tf.reduce_mean(tf.cast(output, tf.float32)) for output in outputs if output.dtype.is_floating]
            loss = tf.add_n([*means, *(tf.cast(term, tf.float32) for term in model.losses)])
            scaled = optimizer.scale_loss(loss) if hasattr(optimizer, "scale_loss") else loss
        variables = model.trainable_variables
        if hasattr(optimizer, "minimize"):  # of tf_keras, which scales the loss itself
            optimizer.minimize(loss, variables, tape=tape)
        else:
            optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))

    return run
