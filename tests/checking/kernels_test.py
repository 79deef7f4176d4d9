"""Every node that graphwd can inject has a kernel on CPU and GPU for its dtypes, and adds no copy between them."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef

import graphwd
from graphwd.checking import kernels
from graphwd.cli.main import main
from graphwd.graph.graph import DTYPE_NUMBERS, MARK
from graphwd.models.v1 import MainGraph
from graphwd.rewriting.inject import inject
from graphwd.rewriting.part import plan_part

DTYPES = ["float16", "bfloat16", "float32", "float64"]
MEANINGS = ["decoupled", "tfa", "adamw", "l2"]
INJECTED = {
    *(
        "AddV2",
        "AssignSubVariableOp",
        "AssignVariableOp",
        "Cast",
        "ConcatV2",
        "Const",
        "Cumsum",
        "ExpandDims",
        "Mul",
        "OnesLike",
    ),
    *("ReadVariableOp", "Reshape", "ResourceGather", "ResourceScatterUpdate", "Shape", "Size", "Sub"),
    *("TensorScatterAdd", "Unique", "UnsortedSegmentMin"),
}
"""Every op of `decay.arithmetic` for resource variables."""


def sgd_step(dtype, index):
    """A sparse update of a table and a dense one of a kernel."""
    table = tf.Variable(tf.ones([6, 2], dtype), name="table")
    kernel = tf.Variable(tf.ones([2, 2], dtype), name="kernel")
    learning_rate = tf.Variable(0.5, dtype=dtype, name="learning_rate", trainable=False)

    @tf.function(input_signature=[tf.TensorSpec([None], index)])
    def step(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, ids) @ kernel)
        sparse, dense = tape.gradient(loss, [table, kernel])
        table.scatter_sub(tf.IndexedSlices(sparse.values * learning_rate, sparse.indices))
        kernel.assign_sub(learning_rate * dense)

    return step


def plans():
    """A plan for each way in which a decay is written, by dtype, meaning, rows, dtype of the indices and form."""
    for dtype, semantics, rows, index, rate in itertools.product(
        DTYPES, MEANINGS, ["touched", "all"], ["int32", "int64"], [0.25, 1e-7]
    ):
        if (semantics, rows) == ("l2", "all"):  # refused
            continue
        rule = {"weight_decay": rate, "semantics": semantics, "sparse": rows}
        if semantics == "adamw":
            rule["learning_rate"] = "learning_rate"
        plan = graphwd.plan(sgd_step(dtype, index), {"version": 1, "rules": [rule]})
        plan.check()
        yield f"{dtype} {semantics} {rows} {index} {rate}", plan


def injected(plan):
    rewritten = inject(plan.graph, plan.injections, lambda name: f"{name}_rewritten")
    return [n for f in (rewritten.root, *rewritten.functions) for n in f.node_def if MARK in n.attr]


def test_every_injected_node_has_a_kernel_on_both_devices_and_adds_no_copy():
    ops, count = set(), 0
    for name, plan in plans():
        nodes = injected(plan)
        for device in ("CPU", "GPU"):
            assert kernels.check_device(plan, device) == kernels.DeviceCheck(device, len(nodes), ()), name
        ops |= {node.op for node in nodes}
        count += 1
    assert ops == INJECTED
    assert count == len(DTYPES) * 7 * 2 * 2


SUBTRACTING = {  # by whether the update is sparse, and the variable a resource
    (False, False): "AssignSub",
    (False, True): "AssignSubVariableOp",
    (True, False): "ScatterSub",
    (True, True): "ResourceScatterSub",
}


@pytest.mark.parametrize("device", ["/job:ps", "/job:ps/task:0", "/job:ps/replica:0/task:0/device:CPU:0"])
@pytest.mark.parametrize(("sparse", "resource"), SUBTRACTING)
def test_on_a_parameter_server_a_decay_only_subtracts(sparse, resource, device):
    """Each row once, then: another worker may write between the read and the write of a decay."""
    plan = v1_plan("float32", "decoupled", sparse=sparse, resource=resource, device=device)
    ops = [node.op for node in injected(plan)]
    assert [op for op in ops if "Scatter" in op or "Assign" in op] == [SUBTRACTING[sparse, resource]]
    assert ops.count("Unique") == sparse


def body_of(*nodes):
    """A function of injected nodes, each a name, an op, inputs and dtypes."""
    function = FunctionDef()
    for name, op, inputs, dtypes in nodes:
        node = function.node_def.add(name=name, op=op, input=inputs)
        node.attr[MARK].s = b"role"
        for key, dtype in dtypes.items():
            node.attr[key].type = DTYPE_NUMBERS[dtype]
    return function


def test_an_op_without_a_kernel_is_named():
    """``UniqueV2`` has none on a GPU: the reason why it is ``Unique`` that is injected."""
    types = {"T": "int64", "out_idx": "int64", "Taxis": "int32"}
    body = body_of(("rows", "UniqueV2", ["indices", "axis"], types))
    assert list(kernels._problems(body, "CPU")) == []
    assert list(kernels._problems(body, "GPU")) == [
        "UniqueV2 has no GPU kernel for T int64, Taxis int32, out_idx int64"
    ]


def test_a_copy_is_named_and_one_that_is_there_already_is_not():
    shape, flat = ("shape", "Const", [], {"dtype": "int32"}), {"T": "int32", "Tshape": "int32"}
    body = body_of(
        shape,
        ("flat", "Reshape", ["indices", "shape:output:0"], flat),
        ("rows", "Unique", ["flat:output:0"], {"T": "int32", "out_idx": "int32"}),
    )
    assert list(kernels._problems(body, "GPU")) == [
        "Unique (rows) takes from the memory of GPU what Reshape (flat) leaves in that of the host"
    ]
    assert list(kernels._problems(body, "CPU")) == []
    for node in body.node_def[:2]:
        del node.attr[MARK]
    same = body.node_def.add()
    same.CopyFrom(body.node_def[2])
    same.name = "of_the_step"
    del same.attr[MARK]
    assert list(kernels._problems(body, "GPU")) == []


def v1_plan(dtype, semantics, *, sparse, resource=False, device=None):
    """A plan for a TensorFlow 1 graph."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, tf.device(device):
        kernel = v1.get_variable("kernel", initializer=tf.ones([6, 2], dtype), use_resource=resource)
        ids = v1.placeholder(tf.int32, [None])
        used = v1.nn.embedding_lookup(kernel, ids) if sparse else kernel * tf.cast(ids[0], dtype)
        v1.add_to_collection("train_op", v1.train.GradientDescentOptimizer(0.5).minimize(tf.reduce_sum(used)))
        meta_graph = v1.train.export_meta_graph(graph=graph)
    rules = [{"weight_decay": 0.25, "semantics": semantics}]
    return plan_part(MainGraph(meta_graph), graphwd.Policy.from_dict({"version": 1, "rules": rules})).plan


def test_reference_variables_of_tensorflow_1():
    ops = set()
    dense = itertools.product(DTYPES, MEANINGS, [False])
    # ScatterSub is plain arithmetic, for which a v1 graph takes one meaning only.
    for dtype, semantics, sparse in (*dense, *itertools.product(DTYPES, ["decoupled"], [True])):
        plan = v1_plan(dtype, semantics, sparse=sparse)
        plan.check()
        for device in ("CPU", "GPU"):
            assert kernels.check_device(plan, device).problems == (), (dtype, semantics, sparse)
        ops |= {node.op for node in injected(plan)}
    assert {"Assign", "AssignSub", "ScatterUpdate", "Gather", "Identity"} <= ops


STEP = """
import tensorflow as tf

kernel = tf.Variable([1.0], name="kernel")


@tf.function(input_signature=[tf.TensorSpec([1])])
def step(batch):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(kernel * batch)
    kernel.assign_sub(tape.gradient(loss, kernel))
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.py").write_text(STEP)
    (tmp_path / "policy.yaml").write_text("version: 1\nrules:\n  - weight_decay: 0.5\n    semantics: decoupled\n")
    return SimpleNamespace(step=f"{tmp_path / 'train.py'}:step", policy=str(tmp_path / "policy.yaml"))


def test_the_command(files, capsys):
    command = ["plan", "--policy", files.policy, "--device", "GPU"]
    assert main([*command, files.step]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "GPU: 4 nodes would be injected, each with a kernel, and no copy to or from the host"
    )
    assert main([*command, "--format", "json", files.step]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == {"type": "GPU", "nodes": 4, "problems": []}
    assert main([*command, "--format", "html", files.step]) == 0
    assert "GPU: 4 nodes would be injected" in capsys.readouterr().out


def test_the_command_where_a_kernel_is_missing(files, capsys, monkeypatch):
    """TensorFlow has all kernels: the registry is asked for another device than those that it has."""
    check = kernels.check_device
    monkeypatch.setattr(kernels, "check_device", lambda plan, _: check(plan, "TPU_SYSTEM"))
    assert main(["plan", "--policy", files.policy, "--device", "GPU", files.step]) == 1
    assert "graphwd: Mul has no TPU_SYSTEM kernel for T float32" in capsys.readouterr().err
