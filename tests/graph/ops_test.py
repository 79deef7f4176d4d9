"""The op tables against the registry of the installed TensorFlow."""

from __future__ import annotations

import re

import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session  # the registry has no public listing

from graphwd.graph.ops import CALL_OPS, WRITE_OPS, Form
from graphwd.graph.traits import (
    DATA_OPS,
    HANDLE_OPS,
    KNOWN_OPS,
    METADATA_OPS,
    PASS_THROUGH_OPS,
    READ_OPS,
)

# Ops that look like writes to variables and are none, with the reason.
NOT_WRITES = {
    "AccumulatorApplyGradient": "writes a conditional accumulator, whose content is taken out again as a tensor",
    "ResourceAccumulatorApplyGradient": "likewise",
    "SparseAccumulatorApplyGradient": "likewise",
    "AssignVariableXlaConcatND": "XLA sharding: writes a variable from its parts, before or after training on TPU",
}

# What else takes a variable and has no row, with the reason. Those that write write no weight of a gradient's.
NO_ROWS = {
    "CountUpTo": "writes: counts up",
    "ResourceCountUpTo": "likewise",
    "RngReadAndSkip": "writes: the state of a random generator, of integers",
    "RngSkip": "likewise",
    "StatefulRandomBinomial": "likewise",
    "StatefulStandardNormal": "likewise",
    "StatefulStandardNormalV2": "likewise",
    "StatefulTruncatedNormal": "likewise",
    "StatefulUniform": "likewise",
    "StatefulUniformFullInt": "likewise",
    "StatefulUniformInt": "likewise",
    "NegTrain": "writes: trains word2vec by itself, on v1 references; its gradients are in no graph",
    "SdcaShrinkL1": "writes: a step of a solver of its own, on v1 references; its gradients are in no graph",
    "TPUReshardVariables": "writes: TPU, another layout of the same content",
    "_TPUReplicate": "what TPU programs are compiled to, when a step runs",
    "_XlaCompile": "what XLA programs are compiled to, when a step runs",
    "_ReadVariablesOp": "reads: Grappler makes it when a step runs",
    "ReadVariableXlaSplitND": "reads: XLA sharding, before or after training on TPU",
    "DebugGradientRefIdentity": "the debugger's, of v1 references",
    "DestroyTemporaryVariable": "takes a variable that lives for a few ops, and has no name",
    "DisableCopyOnRead": "leaves the content as it is",
    "ResourceInitializedOp": "takes any resource, as do those below",
    "ExperimentalIteratorGetDevice": "",
    "FakeQueue": "",
    "IteratorGetDevice": "",
    **dict.fromkeys(["RefIn", "RefInputFloatInput", "RefInputFloatInputIntOutput", "RefInputIntInput"], "for tests"),
    **dict.fromkeys(["ResourceCreateOp", "ResourceUsingOp", "TwoRefsIn"], "for tests"),
}
# What ops call a resource that is a variable. Those of tables, queues, iterators have other names.
VARIABLES = {"input", "ref", "resource", "resources", "var", "variable", "variables", "vars", "weights"}


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


def test_every_op_that_takes_a_variable_is_known(registry):
    def may_be_variable(argument):
        # References to strings are handles of what v1 had before resources.
        named = argument.type == tf.resource and argument.name in VARIABLES
        return named or (argument.is_ref and argument.type != tf.string)

    found = {name for name, op in registry.items() if any(map(may_be_variable, op.input_arg))}
    assert found > WRITE_OPS.keys()
    assert found - {*WRITE_OPS, *CALL_OPS, *KNOWN_OPS} - NOT_WRITES.keys() - NO_ROWS.keys() == set()
    assert not NO_ROWS.keys() & {*WRITE_OPS, *CALL_OPS, *KNOWN_OPS, *NOT_WRITES}


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


def test_ops_with_an_l1_penalty_are_proximal():
    named = {name for name in WRITE_OPS if any(part in name for part in ("Ftrl", "Proximal", "AdagradDA"))}
    assert {name for name, row in WRITE_OPS.items() if row.proximal} == named
    assert {WRITE_OPS[name].form for name in named} == {Form.APPLY}


def test_every_op_that_is_named_exists(registry):
    named = {*CALL_OPS, *READ_OPS, *METADATA_OPS, *HANDLE_OPS, *PASS_THROUGH_OPS, *DATA_OPS}
    assert named - registry.keys() == set()
    assert KNOWN_OPS - registry.keys() == set()


def test_no_op_has_two_rows():
    assert not WRITE_OPS.keys() & CALL_OPS.keys()
    assert not KNOWN_OPS & {*WRITE_OPS, *CALL_OPS}


@pytest.mark.parametrize("name", CALL_OPS)
def test_call_ops_name_their_function_attributes(registry, name):
    functions = [attribute.name for attribute in registry[name].attr if attribute.type in ("func", "list(func)")]
    assert functions == list(CALL_OPS[name].attributes)
