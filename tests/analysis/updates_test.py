"""What is an update and what is merely a write."""

from __future__ import annotations

import pytest
import tensorflow as tf

from graphwd.analysis.sites import Evidence
from graphwd.analysis.updates import find_updates
from graphwd.errors import GraphError
from graphwd.graph.graph import Graph
from graphwd.steps.read import read
from tests.helpers.graphs import function, gradient_of, variable


def analyse(step, *args):
    """The account of every trainable variable, by name."""
    traced = tf.function(step).get_concrete_function(*args)
    return {writes.variable.name: writes for writes in find_updates(read(traced)).variables}


def test_the_evidence_is_kept():
    w, fused = variable("w"), variable("fused")

    def step():
        w.assign_sub(0.1 * gradient_of(w))
        tf.raw_ops.ResourceApplyGradientDescent(var=fused.handle, alpha=0.1, delta=gradient_of(fused))

    assert {name: [u.evidence for u in writes.updates] for name, writes in analyse(step).items()} == {
        "w": [Evidence.GRADIENT_SCOPE],
        "fused": [Evidence.APPLY_OP],
    }


@pytest.mark.parametrize(
    "write",
    [
        lambda w, x: w.assign_sub(0.1 * x * (w * x - 1.0)),
        lambda w, x: w.assign(w - 0.1 * x * (w * x - 1.0)),
        lambda w, x: w.assign_add(x),
    ],
    ids=["sub", "assign", "perceptron"],
)
def test_a_gradient_by_hand_is_taken_for_one_only_where_the_step_has_no_other(write):
    w, other = variable("w"), variable("other")

    def alone(x):
        write(w, x)

    (update,) = analyse(alone, tf.TensorSpec([2]))["w"].updates
    assert update.evidence is Evidence.DATA_PATH

    def mixed(x):
        write(w, x)
        other.assign_sub(gradient_of(other))

    found = analyse(mixed, tf.TensorSpec([2]))["w"]
    assert found.updates == ()
    assert len(found.guesses) == 1


def test_a_write_to_a_handle_nobody_knows_is_not_passed_over():
    w, unknown = variable("w"), tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[2], shared_name="unknown")

    def step():
        w.assign_sub(gradient_of(w))
        tf.raw_ops.AssignSubVariableOp(resource=unknown, value=gradient_of(w))

    (site,) = find_updates(read(tf.function(step).get_concrete_function())).unresolved
    assert site.op == "AssignSubVariableOp"


def test_python_code_that_gets_a_gradient_is_remembered():
    w = variable()

    def step():
        gradient = gradient_of(w)
        w.assign_sub(tf.py_function(lambda g: g, [gradient], tf.float32))

    (site,) = find_updates(read(tf.function(step).get_concrete_function())).python_calls
    assert site.op == "EagerPyFunc"


def test_constraints_averages_and_restores_are_not_updates():
    w, average = variable(), variable("average", trainable=False)

    def step(saved):
        w.assign_sub(0.1 * gradient_of(w))
        w.assign(tf.clip_by_norm(w, 1.0))
        average.assign(0.9 * average + 0.1 * w)
        w.assign(average)
        w.assign(saved)

    found = analyse(step, tf.TensorSpec([2]))["w"]
    assert [update.site.op for update in found.updates] == ["AssignSubVariableOp"]
    assert [write.site.op for write in found.others] == ["AssignVariableOp"] * 3
    assert found.native_decays == ()


def test_a_gradient_is_followed_through_slot_variables():
    w, momentum = variable(), variable("momentum", trainable=False)

    def step():
        momentum.assign(0.9 * momentum + gradient_of(w))
        w.assign_sub(0.1 * momentum)

    assert [u.evidence for u in analyse(step)["w"].updates] == [Evidence.GRADIENT_SCOPE]


@pytest.mark.parametrize(
    "decay",
    [
        lambda w, rate: w.assign_sub(w * 0.01 * rate),
        lambda w, rate: w.assign(w * (1.0 - rate)),
        lambda w, rate: w.assign(w - w * rate * 0.01),
        lambda w, rate: w.assign_add(-rate * tf.identity(w)),
        lambda w, rate: w.assign(w / (1.0 + rate)),
        lambda w, rate: w.scatter_sub(tf.IndexedSlices(tf.gather(w, [0]) * rate, [0])),
    ],
    ids=["sub", "scaled", "keras", "add", "divided", "rows"],
)
def test_decay_that_is_already_there_is_found(decay):
    w, rate = variable(), variable("rate", 0.1, trainable=False)

    def step():
        decay(w, rate)
        w.assign_sub(0.1 * gradient_of(w))

    found = analyse(step)["w"]
    assert len(found.updates) == 1
    assert len(found.native_decays) == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.assign(w * tf.cast(w >= 0.0, tf.float32)),
        lambda w: w.assign(w / tf.norm(w)),
        lambda w: w.assign(tf.clip_by_value(w, -1.0, 1.0)),
        lambda w: w.assign(w + 1.0),
        lambda w: w.assign(tf.zeros_like(w)),
        lambda w: w.assign(w),
    ],
    ids=["non-negative", "unit norm", "clip", "shift", "reset", "itself"],
)
def test_other_writes_are_not_taken_for_decay(write):
    w = variable()

    def step():
        w.assign_sub(0.1 * gradient_of(w))
        write(w)

    found = analyse(step)["w"]
    assert len(found.updates) == 1
    assert found.native_decays == ()
    assert len(found.others) == 1


def test_two_steps_unrolled_are_two_updates_and_two_writes_of_one_gradient_are_one():
    twice, split = variable("twice"), variable("split")

    def step():
        for _ in range(2):
            twice.assign_sub(0.1 * gradient_of(twice))
        gradient = gradient_of(split)
        split.assign_sub(0.1 * gradient)
        split.assign_sub(0.2 * tf.identity(gradient))

    found = analyse(step)
    assert [len(update.writes) for update in found["twice"].updates] == [1, 1]
    assert [len(update.writes) for update in found["split"].updates] == [2]


def test_a_linear_loss_unrolled_is_two_updates_too():
    w = variable()

    def step():
        for factor in (1.0, 2.0):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(w * factor)
            w.assign_sub(tape.gradient(loss, w) * 0.1)

    assert len(analyse(step)["w"].updates) == 2


def test_branches_exclude_each_other_and_calls_do_not():
    w = variable()

    def step(flag):
        gradient = gradient_of(w)
        if flag:
            w.assign_sub(0.1 * gradient)
        else:
            w.assign_sub(0.2 * gradient)

    first, second = analyse(step, tf.TensorSpec([], tf.bool))["w"].updates
    assert first.site.excludes(second.site)
    assert second.site.excludes(first.site)
    assert not first.site.excludes(first.site)
    assert [frame.callee.attribute for frame in (*first.site.path, *second.site.path)] == ["then_branch", "else_branch"]


def test_handles_are_followed_into_functions_that_serve_several_variables():
    w, v, frozen = variable("w"), variable("v"), variable("frozen")

    @tf.function
    def apply(handle, gradient):
        tf.raw_ops.AssignSubVariableOp(resource=handle, value=gradient)

    def step():
        apply(w.handle, gradient_of(w))
        apply(v.handle, gradient_of(v))
        return frozen.read_value()

    found = analyse(step)
    assert {name: len(writes.updates) for name, writes in found.items()} == {"w": 1, "v": 1, "frozen": 0}
    (in_w,), (in_v,) = found["w"].updates, found["v"].updates
    assert in_w.site.path[-1].callee == in_v.site.path[-1].callee
    assert in_w.site.path != in_v.site.path


def test_loops_over_a_dataset_inside_the_step():
    w = variable()

    def step():
        for x in tf.data.Dataset.from_tensors([1.0, 1.0]):
            w.assign_sub(gradient_of(w) * x)

    (update,) = analyse(step)["w"].updates
    assert update.site.path[-1].op in ("ScanDataset", "ReduceDataset")


def test_a_variable_of_two_names_is_two_variables():
    first, second = variable("same"), variable("same")

    def step():
        first.assign_sub(gradient_of(first))
        return second.read_value()

    traced = tf.function(step).get_concrete_function()
    accounts = find_updates(read(traced)).variables
    assert sorted(len(writes.updates) for writes in accounts) == [0, 1]


def test_uses_are_those_outside_the_gradient():
    kernel, table = variable("kernel", [[1.0], [2.0]]), variable("table", [[1.0], [2.0]])

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(x @ kernel) + tf.reduce_sum(tf.gather(table, [1]))
        for v, gradient in zip((kernel, table), tape.gradient(loss, (kernel, table)), strict=True):
            v.assign_sub(tf.convert_to_tensor(gradient))

    found = analyse(step, tf.TensorSpec([None, 2]))
    assert "MatMul" in found["kernel"].used_by
    assert "ResourceGather" in found["table"].used_by


def test_a_function_that_calls_itself_is_refused():
    body = function("call PartitionedCall a", name="f")
    body.node_def[0].attr["f"].func.name = "f"
    root = function("call PartitionedCall a", name="root")
    root.node_def[0].attr["f"].func.name = "f"
    with pytest.raises(GraphError, match="the function 'f' calls itself"):
        find_updates(Graph(root, [body], {}, []))


def test_a_call_with_the_wrong_number_of_arguments_is_refused():
    root = function("call PartitionedCall a a", name="root")
    root.node_def[0].attr["f"].func.name = "f"
    with pytest.raises(GraphError, match="gives 2 arguments to 'f', which takes 1"):
        find_updates(Graph(root, [function(name="f")], {}, []))


def test_a_slot_variable_does_not_carry_a_gradient_back_through_a_loop():
    w, momentum = variable(), variable("momentum", trainable=False)

    def step():
        for _ in tf.range(3):
            for _ in range(2):
                momentum.assign(0.9 * momentum + gradient_of(w))
                w.assign_sub(0.1 * momentum)

    assert [len(update.writes) for update in analyse(step)["w"].updates] == [1, 1]


def test_a_counter_is_not_trained():
    """``tf.Variable(0)`` is trainable where nobody says otherwise, such as the step counter of tf_keras."""
    w, counter = variable("w"), tf.Variable(0, name="counter")
    assert counter.trainable

    def step():
        w.assign_sub(gradient_of(w))
        counter.assign_add(1)

    assert list(analyse(step)) == ["w"]
