"""The injected nodes: structure before and after, and what they compute."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.analysis.sites import Site
from graphwd.analysis.updates import find_updates
from graphwd.errors import GraphError, RewriteError
from graphwd.graph.body import Body
from graphwd.graph.graph import MARK, Variable
from graphwd.planning.injections import EPSILON, After, Rate
from graphwd.planning.planner import make_plan
from graphwd.policy.rules import Policy
from graphwd.rewriting.check import check_rewritten
from graphwd.rewriting.decays import keeps_rate
from graphwd.rewriting.inject import inject
from graphwd.steps.read import read
from tests.helpers.graphs import gradient_of, variable
from tests.helpers.lockstep import assert_within_ulps, policy_for


def rewritten(step, rates, *args, **fields):
    """The original root, the rewritten root, and the rewritten library functions."""
    graph = read(tf.function(step).get_concrete_function(*args))
    plan = make_plan(find_updates(graph), Policy.from_dict(policy_for(rates, **fields)))
    plan.check()
    numbers = iter(range(100))
    result = inject(graph, plan.injections, lambda name: f"{name}_new_{next(numbers)}")
    return graph.root_function, result.root, result.functions


def injected(function):
    return [node for node in function.node_def if MARK in node.attr]


def test_three_nodes_a_variable_and_one_factor_for_all():
    first, second, other = variable("a"), variable("b"), variable("c")

    def step():
        for w in (first, second, other):
            w.assign_sub(gradient_of(w))

    _, root, functions = rewritten(step, {"a": 0.1, "b": 0.1, "c": 0.2})
    assert functions == ()
    counts = collections.Counter(node.op for node in injected(root))
    assert counts == {"Const": 2, "ReadVariableOp": 3, "Mul": 3, "AssignVariableOp": 3}


def test_everything_that_waited_for_the_update_waits_for_the_decay():
    w = variable()

    def step():
        w.assign_sub(gradient_of(w))
        return w.read_value()

    before, after, _ = rewritten(step, {"w": 0.1})
    read_nodes = {node.name: node for node in injected(after)}
    decay = "graphwd/decay_AssignSubVariableOp"
    assert list(read_nodes[decay].input)[1] == "graphwd/scaled_AssignSubVariableOp:z:0"
    assert list(read_nodes["graphwd/read_AssignSubVariableOp"].input)[1] == "^AssignSubVariableOp"
    waited = [n.name for n in before.node_def if "^AssignSubVariableOp" in n.input]
    assert waited
    for node in after.node_def:
        if node.name in waited:
            assert f"^{decay}" in node.input
            assert "^AssignSubVariableOp" not in node.input
    assert decay in after.control_ret.values()
    assert "AssignSubVariableOp" not in after.control_ret.values()
    assert after.control_ret.keys() == before.control_ret.keys()


def test_later_reads_see_the_decayed_weight():
    w = variable("w", [4.0])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w)
        w.assign_sub(tape.gradient(loss, w))
        return w.read_value()

    assert graphwd.rewrite(step, policy_for({"w": 0.5}))().numpy() == 1.5


def test_injected_nodes_carry_place_scope_and_mark():
    w = variable()

    def step():
        with tf.device("/device:CPU:0"), tf.name_scope("train"):
            w.assign_sub(gradient_of(w))

    _, root, _ = rewritten(step, {"w": 0.1})
    assert {(node.device, *node.attr["_class"].list.s) for node in injected(root)} == {
        ("", b"loc:@train/AssignSubVariableOp")
    }
    assert sorted(node.name for node in injected(root)) == [
        f"train/graphwd/{role}_AssignSubVariableOp" for role in ("decay", "factor", "read", "scaled")
    ]
    assert {node.attr[MARK].s for node in injected(root)} == {b"decay", b"factor", b"read", b"scaled"}


def test_one_body_for_variables_of_different_rates_is_cloned_and_for_equal_ones_shared():
    first, second, third, spared = (variable(name) for name in "abcd")

    @tf.function
    def apply(handle, gradient):
        tf.raw_ops.AssignSubVariableOp(resource=handle, value=gradient)

    def step():
        for w in (first, second, third, spared):
            apply(w.handle, gradient_of(w))

    before, after, functions = rewritten(step, {"a": 0.1, "b": 0.1, "c": 0.2})
    assert len(functions) == 2
    called = [n.attr["f"].func.name for n in after.node_def if n.op == "StatefulPartitionedCall"]
    assert called[0] == called[1] == functions[0].signature.name
    assert called[2] == functions[1].signature.name
    assert called[3] in [n.attr["f"].func.name for n in before.node_def if n.op == "StatefulPartitionedCall"]


@pytest.mark.parametrize(("sparse", "expected"), [("touched", [1.0, 1.0, 4.0, 4.0]), ("all", [0.5, 1.0, 2.0, 4.0])])
def test_sparse_updates_decay_each_touched_row_once_or_all_of_them(sparse, expected):
    table = variable("table", [[1.0], [2.0], [4.0], [8.0]])

    @tf.function
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, rows)) * 0.0
        table.scatter_sub(tape.gradient(loss, table))

    rows = tf.constant([1, 3, 1])
    policy = policy_for({"table": 0.5}, sparse=sparse)
    assert graphwd.plan(step, policy, rows).record()["variables"][0]["rows"] == sparse
    graphwd.rewrite(step, policy)(rows)
    assert table.numpy().ravel().tolist() == expected


def test_the_original_is_left_alone():
    w = variable()
    graph = read(tf.function(lambda: w.assign_sub(gradient_of(w))).get_concrete_function())
    before = graph.root_function.SerializeToString(deterministic=True)
    plan = make_plan(find_updates(graph), Policy.from_dict(policy_for({"w": 0.1})))
    inject(graph, plan.injections, str)
    assert graph.root_function.SerializeToString(deterministic=True) == before


def test_verification_sees_a_lost_node_a_missing_decay_and_an_early_successor():
    w = variable()
    before, after, _ = rewritten(lambda: w.assign_sub(gradient_of(w)), {"w": 0.1})
    write = "AssignSubVariableOp"
    injection = After(Variable(0, "w", (2,), "float32", True), Site((), write, write), Rate(0.1))
    layout = Body(before).layout
    check_rewritten(before, after, layout, {write: injection}, {})
    with pytest.raises(RewriteError, match="did not add one decay for each of 2 updates"):
        check_rewritten(before, after, layout, {write: injection, "another": injection}, {})
    (kept,) = [output for output, node in after.control_ret.items() if node == f"graphwd/decay_{write}"]
    after.control_ret[kept] = write
    with pytest.raises(RewriteError, match=f"left something to wait for {write} undecayed"):
        check_rewritten(before, after, layout, {write: injection}, {})
    after.control_ret[kept] = f"graphwd/decay_{write}"
    after.node_def[0].attr["_another"].b = True
    with pytest.raises(RewriteError, match="changed, lost or reordered"):
        check_rewritten(before, after, layout, {write: injection}, {})
    del after.node_def[0].attr["_another"]
    check_rewritten(before, after, layout, {write: injection}, {})
    del after.node_def[0]
    with pytest.raises(RewriteError, match="changed, lost or reordered"):
        check_rewritten(before, after, layout, {write: injection}, {})


@pytest.mark.parametrize("waiting", ["product", "between"])
def test_nodes_that_wait_for_what_waits_for_them_are_found(waiting):
    """A product of the update waits for the decay, whether or not the original has it before what the decay takes."""
    w, rate, slot = variable("w"), tf.Variable(0.5, trainable=False), tf.Variable(1.0, trainable=False)

    def step():
        update = tf.negative(tf.multiply(rate, gradient_of(w), name="product"), name="between")
        slot.assign_add(1.0)
        w.assign_sub(slot.read_value() * update)

    graph = read(tf.function(step).get_concrete_function())
    plan = make_plan(find_updates(graph), Policy.from_dict(policy_for({"w": 0.1}, order="before")))
    (injection,) = plan.injections
    assert injection.readiness.followers == ("product",)
    before, after = graph.root_function, inject(graph, plan.injections, str).root
    names = [node.name for node in after.node_def]
    (first,) = (node for node in injected(after) if node.op == "ReadVariableOp")
    assert names.index("between") < max(names.index(wait) for wait in injection.readiness.waits)
    layout, checked = Body(before).layout, {injection.site.node: injection}
    check_rewritten(before, after, layout, checked, {})
    first.input.append(f"^{waiting}")
    with pytest.raises(GraphError, match="wait for each other"):
        check_rewritten(before, after, layout, checked, {})


def test_of_many_control_outputs_none_is_left_behind():
    weights = [variable(f"w{i}") for i in range(40)]

    def step():
        for w in weights:
            w.assign_sub(gradient_of(w))

    # A protobuf map that is written while it is iterated loses entries at random: try many.
    for _ in range(5):
        _, after, _ = rewritten(step, {"w*": 0.1})
        assert not any(node.startswith("AssignSub") for node in after.control_ret.values())


@pytest.mark.parametrize(
    ("rate", "dtype", "multiplies"),
    [
        (0.1, "float32", True),
        (5e-4, "float32", True),
        (1e-5, "float32", True),
        (1e-6, "float32", False),  # fl32(1 - 1e-6) is off by 1.3 % in the rate
        (1e-7, "float32", False),
        (2.0**-20, "float32", True),  # exact
        (1e-12, "float64", True),
        (0.999, "float32", True),
    ],
)
def test_the_form_is_the_cheapest_that_keeps_the_rate(rate, dtype, multiplies):
    kind = np.dtype(dtype).type
    off = abs((1.0 - float(kind(1 - rate))) / rate - 1)
    assert keeps_rate(rate, EPSILON[dtype]) == multiplies == (off <= 0.01)


@pytest.mark.parametrize("rate", [0.3, 1e-3, 1e-6, 1e-7])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_the_decayed_weight_is_the_exact_one_rounded(rate, dtype):
    values = np.linspace(0.5, 2.0, 97)
    w = variable("w", tf.constant(values, dtype))
    start = w.numpy().astype(np.float64)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w)
        w.assign_sub(tape.gradient(loss, w) * 0)

    graphwd.rewrite(step, policy_for({"w": rate}))()
    assert_within_ulps(w.numpy(), start * (1 - rate), 1, dtype)


@pytest.mark.parametrize("rows", [1, [1], [[1], [1]]], ids=str)
def test_row_indices_of_any_rank(rows):
    table = variable("table", [[1.0], [2.0], [4.0]])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, rows))
        values = tf.gather(tf.convert_to_tensor(tape.gradient(loss, table)) * 0, rows)
        table.scatter_sub(tf.IndexedSlices(values, tf.constant(rows)))

    graphwd.rewrite(step, policy_for({"table": 0.5}))()
    assert table.numpy().ravel().tolist() == [1.0, 1.0, 4.0]


@pytest.mark.parametrize("scale", ["none", "lr"])
@pytest.mark.parametrize("order", ["after", "before"])
@pytest.mark.parametrize("rate", [1e-2, 1e-3, 1e-4, 1e-5, 3e-6, 1e-6])
def test_rounding_keeps_the_effective_rate_within_a_percent(rate, order, scale):
    """Over twenty steps, and all of 100,000 float32 weights between 0.5 and 1.5."""
    w = variable("w", np.linspace(0.5, 1.5, 100_000, dtype=np.float32))
    rate_variable = variable("learning_rate", 0.25, trainable=False)
    start = w.numpy().astype(np.float64)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w)
        w.assign_sub(rate_variable * tape.gradient(loss, w) * 0)

    scaled = rate * 4 if scale == "lr" else rate
    decayed = graphwd.rewrite(step, policy_for({"w": scaled}, order=order, scale=scale, learning_rate="learning_rate"))
    for _ in range(20):
        decayed()
    effective = 1 - (np.sum(w.numpy().astype(np.float64)) / np.sum(start)) ** (1 / 20)
    assert effective == pytest.approx(rate, rel=0.01)


def test_a_learning_rate_that_turns_out_to_be_many_numbers_stops_the_step():
    """graphwd does not know the shape that every op makes; what multiplies a gradient may be a matrix."""
    learning_rate = variable("learning_rate", 0.125, trainable=False)
    w = variable("w", [[2.0, 2.0], [2.0, 2.0]])

    def step(kind):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(w))
        factor = tf.multiply(learning_rate, tf.eye(2) if kind == "matrix" else tf.cosh(0.0), name="factor")
        w.assign_sub(factor * tape.gradient(loss, w))

    rules = [{"weight_decay": 0.5, "semantics": "adamw", "learning_rate": "factor"}]
    matrix, number = (tf.function(lambda kind=kind: step(kind)) for kind in ("matrix", "number"))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="graphwd/one_number"):
        graphwd.rewrite(matrix, {"version": 1, "rules": rules})()
    assert w.numpy().tolist() == [[2.0, 2.0], [2.0, 2.0]]
    graphwd.rewrite(number, {"version": 1, "rules": rules})()
    assert w.numpy().tolist() == [[2.0 - 0.5 - 0.125] * 2] * 2
