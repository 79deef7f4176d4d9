"""Small graphs by hand, and what small steps are made of."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.core.framework import function_pb2


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
