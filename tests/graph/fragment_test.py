"""What a Python function of tensors is traced to."""

from __future__ import annotations

import pytest
import tensorflow as tf

from graphwd.errors import RewriteError
from graphwd.graph.fragment import Input, Reference, fragment
from graphwd.graph.graph import MARK


def add_and_split(first, second, *, parts):
    total = tf.raw_ops.AddV2(x=first, y=second, name="total")
    pieces = tf.raw_ops.Split(axis=tf.constant(0, name="axis"), value=total, num_split=parts, name="pieces")
    with tf.control_dependencies([total]):
        return tf.raw_ops.Neg(x=pieces[1], name="negative")


def test_ops_in_order_with_their_edges():
    traced = fragment(add_and_split, {"first": "float32", "second": "float32"}, parts=2)
    assert [(op.role, op.node.op, op.inputs, op.waits) for op in traced.ops] == [
        ("total", "AddV2", (Input("first"), Input("second")), ()),
        ("axis", "Const", (), ()),
        ("pieces", "Split", (Input(1, "output"), Input(0, "z")), ()),
        ("negative", "Neg", (Input(2, "output", 1),), (0,)),
    ]
    assert traced.result == Input(3, "y")
    assert {op.node.name for op in traced.ops} == {""}


def test_an_op_may_be_called_what_a_parameter_is_called():
    traced = fragment(lambda gradient: tf.raw_ops.Neg(x=gradient, name="gradient"), {"gradient": "float32"})
    assert [(op.role, op.inputs) for op in traced.ops] == [("gradient", (Input("gradient"),))]


def test_traced_once_for_the_same_arguments():
    kinds = {"first": "float32", "second": "float32"}
    assert fragment(add_and_split, kinds, parts=2) is fragment(add_and_split, dict(kinds), parts=2)
    assert fragment(add_and_split, kinds, parts=2) is not fragment(add_and_split, kinds, parts=3)


def test_defaults_are_left_out_and_dtypes_are_said():
    def assign(handle, value):
        tf.raw_ops.AssignVariableOp(resource=handle, value=value)

    (op,) = fragment(assign, {"handle": "resource", "value": "float16"}).ops
    assert dict(op.node.attr).keys() == {"dtype", MARK}  # not validate_shape
    assert op.node.attr["dtype"].type == tf.float16.as_datatype_enum

    def shape(value):
        return tf.raw_ops.Shape(input=value, out_type=tf.int32)

    (op,) = fragment(shape, {"value": "float32"}).ops
    assert dict(op.node.attr).keys() == {"T", "out_type", MARK}  # though int32 is the default


def test_a_reference_variable_is_assigned_as_such():
    def double(handle):
        tf.raw_ops.Assign(ref=handle, value=2 * tf.raw_ops.Identity(input=handle))

    traced = fragment(double, {"handle": Reference("float32")})
    assert [op.node.op for op in traced.ops] == ["Identity", "Const", "Mul", "Assign"]
    assert traced.ops[-1].inputs[0] == Input("handle")
    assert "_class" not in traced.ops[-1].node.attr


def test_nothing_of_the_surroundings_gets_in():
    @tf.function
    def around():
        with tf.device("/cpu:0"), tf.name_scope("scope"):
            return fragment(lambda x: tf.raw_ops.Neg(x=x, name="negative"), {"x": "float32"})

    graph = tf.Graph()
    with graph.as_default():
        traced = around.python_function()
    assert [op.role for op in traced.ops] == ["negative"]
    assert graph.get_operations() == []


def test_the_functions_of_branches_come_along_callees_first():
    def branches(x):
        positive = tf.reduce_sum(x) > 0
        return tf.cond(positive, lambda: tf.cond(tf.size(x) > 3, lambda: x, lambda: 2 * x), lambda: -x)

    names = [function.signature.name for function in fragment(branches, {"x": "float32"}).library]
    assert len(names) == 4
    inner = [position for position, name in enumerate(names) if "cond_cond" in name or name.count("cond") > 1]
    assert max(inner, default=-1) < len(names) - 1


def test_what_cannot_be_spliced_is_refused():
    other = tf.constant(1.0)

    def foreign(x):
        return (x, other)[1]

    with pytest.raises(RewriteError, match="'foreign' returns a tensor that it did not compute"):
        fragment(foreign, {"x": "float32"})
