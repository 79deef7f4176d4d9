"""Small graphs by hand, and what small steps are made of."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.core.framework import function_pb2

from graphwd.analysis.flows import Flows
from graphwd.analysis.updates import find_updates
from graphwd.steps.read import read


def function(*nodes: str, name="f", arguments=("a",), results=()):
    """A FunctionDef from lines such as ``sum Add a b:z:0 ^c``."""
    made = function_pb2.FunctionDef()
    made.signature.name = name
    for argument in arguments:
        made.signature.input_arg.add(name=argument)
    for i, result in enumerate(results):
        made.signature.output_arg.add(name=f"r{i}")
        made.ret[f"r{i}"] = result
    for line in nodes:
        node_name, op, *inputs = line.split()
        made.node_def.add(name=node_name, op=op, input=inputs)
    return made


def variable(name="w", value=(1.0, 2.0), **options):
    """A variable, trainable unless told."""
    return tf.Variable(value, name=name, **options)


def gradient_of(w):
    """A gradient that depends on the variable."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(w) * 3.0)
    return tape.gradient(loss, w)


def update_of(step, *args):
    """Of the one update of a step's first variable: the flow of its body, the variable, the names of its writes."""

    def quiet(*args):
        step(*args)

    analysis = find_updates(read(tf.function(quiet).get_concrete_function(*args)))
    (update,) = analysis.variables[0].updates
    flow = Flows(analysis.graph, analysis.values).at(update.site.path)
    return flow, update.variable, [write.site.node for write in update.writes]
