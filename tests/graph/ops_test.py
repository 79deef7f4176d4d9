"""The op tables against the registry of the installed TensorFlow."""

from __future__ import annotations

import re

import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session  # the registry has no public listing

from graphwd.graph.ops import (
    CALL_OPS,
    DATA_OPS,
    HANDLE_OPS,
    METADATA_OPS,
    PASS_THROUGH_OPS,
    READ_OPS,
    WRITE_OPS,
    Form,
)

# Ops that look like writes to variables and are none, with the reason.
NOT_WRITES = {
    "AccumulatorApplyGradient": "writes a conditional accumulator, whose content is taken out again as a tensor",
    "ResourceAccumulatorApplyGradient": "likewise",
    "SparseAccumulatorApplyGradient": "likewise",
    "AssignVariableXlaConcatND": "XLA sharding: writes a variable from its parts, before or after training on TPU",
}


@pytest.fixture(scope="module")
def registry():
    ops = op_def_pb2.OpList()
    ops.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    assert len(ops.op) > 1000
    return {op.name: op for op in ops.op}


def test_every_training_op_of_tensorflow_has_a_row(registry):
    looks_like_a_write = re.compile(r"(Resource)?(Sparse)?Apply|(Resource)?(StridedSlice)?Assign|(Resource)?Scatter")
    takes_variable = {
        name for name, op in registry.items() if any(a.is_ref or a.type == tf.resource for a in op.input_arg)
    }
    found = {name for name in takes_variable if looks_like_a_write.match(name) or "ApplyGradient" in name}
    assert len(found) > 80
    assert found - WRITE_OPS.keys() == NOT_WRITES.keys()


@pytest.mark.parametrize("name", WRITE_OPS)
def test_operands_are_those_of_the_registry(registry, name):
    row, op = WRITE_OPS[name], registry[name]
    assert row.operands == tuple(argument.name for argument in op.input_arg)
    assert row.reference == op.input_arg[0].is_ref or op.input_arg[0].type == tf.resource
    types = [argument.type for argument in op.input_arg]
    assert [i for i in range(1, len(types)) if types[i] == tf.resource or op.input_arg[i].is_ref] == list(row.slots)
    assert types[row.value] not in (tf.resource.as_datatype_enum,)
    if row.form is Form.APPLY:
        assert row.operands[row.value] in ("grad", "delta")
        assert row.learning_rate is not None
    assert (row.rows is not None) == ("indices" in row.operands and "Nd" not in name)
    assert row.partial == ("Nd" in name or "Slice" in name)


def test_every_op_that_is_named_exists(registry):
    named = {*CALL_OPS, *READ_OPS, *METADATA_OPS, *HANDLE_OPS, *PASS_THROUGH_OPS, *DATA_OPS}
    assert named - registry.keys() == set()


@pytest.mark.parametrize("name", CALL_OPS)
def test_call_ops_name_their_function_attributes(registry, name):
    functions = [attribute.name for attribute in registry[name].attr if attribute.type in ("func", "list(func)")]
    assert functions == list(CALL_OPS[name].attributes)
