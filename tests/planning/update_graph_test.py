"""What is drawn of an update: the nodes around it and those that a rewrite adds, as the rewritten bodies have them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

import graphwd
from graphwd.planning.update_graph import Kind, UpdateGraph, UpdateGraphs, When

SCHEDULE = {"schedule": "linear", "from": 0.1, "to": 0.2, "steps": 10}


def updates(step: Any, rule: dict[str, Any]) -> list[UpdateGraph]:
    plan = graphwd.plan(step, {"version": 1, "rules": [rule]})
    assert plan.problems == ()
    assert plan.graph is not None
    assert plan.trial is not None
    graphs = UpdateGraphs(plan.graph, plan.trial(plan))
    return [update for decision in plan.decisions for update in graphs.of(decision)]


def boxes(update: UpdateGraph, *, injected: bool) -> list[tuple[str, str]]:
    """The op and the name of each box."""
    pairs = zip(update.structure.boxes, update.names, strict=True)
    return sorted((box.op, name) for box, name in pairs if box.injected == injected)


def edges(update: UpdateGraph, when: When) -> set[tuple[str, str, str]]:
    """The edges of one kind, as the names of their ends with an arrow between."""
    return {
        (update.names[line.source], "..>" if line.control else "-->", update.names[line.target])
        for line in update.structure.lines
        if line.when is when
    }


def plain_step() -> Any:
    weight = tf.Variable([1.0, 2.0], name="w")

    @tf.function(input_signature=[tf.TensorSpec([2])])
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * x)
        gradient = tape.gradient(loss, weight)
        weight.assign_sub(tf.multiply(gradient, 0.5, name="change"))
        return weight.read_value()

    step.weight = weight
    return step


def test_a_decay_after_the_update():
    (update,) = updates(plain_step(), {"weight_decay": 0.01})
    write, read, scaled, decay = (
        "AssignSubVariableOp",
        "graphwd/read_AssignSubVariableOp",
        "graphwd/scaled_AssignSubVariableOp",
        "graphwd/decay_AssignSubVariableOp",
    )
    assert boxes(update, injected=True) == [
        ("AssignVariableOp", decay),
        ("Mul", scaled),
        ("ReadVariableOp", read),
        ("constant", "0.99"),
    ]
    (gradient,) = (name for name in update.names if name.startswith("gradient_tape/"))
    assert boxes(update, injected=False) == [
        ("AssignSubVariableOp", write),
        ("Mul", "change"),
        ("constant", "0.5"),
        ("gradient", gradient),
        ("weight", "w"),
        ("what waits for it", "2 nodes and the end"),  # the read, its result, and the end of the function
    ]
    assert edges(update, When.BOTH) == {
        ("w", "-->", write),
        ("change", "-->", write),
        ("0.5", "-->", "change"),
        (gradient, "-->", "change"),
    }
    assert edges(update, When.BEFORE) == {(write, "..>", "2 nodes and the end")}
    assert edges(update, When.AFTER) == {
        (write, "..>", read),
        ("w", "-->", read),
        (read, "-->", scaled),
        ("0.99", "-->", scaled),
        ("w", "-->", decay),
        (scaled, "-->", decay),
        (decay, "..>", "2 nodes and the end"),
    }
    assert update.nest == ()


def test_a_decay_before_the_update_moves_no_one_that_waits():
    (update,) = updates(plain_step(), {"weight_decay": 0.01, "semantics": "tfa"})
    waiting = update.names[-1]
    assert ("AssignSubVariableOp", "..>", waiting) in edges(update, When.BOTH)
    assert edges(update, When.BEFORE) == set()
    assert ("graphwd/decay_AssignSubVariableOp", "..>", "AssignSubVariableOp") in edges(update, When.AFTER)


def test_a_decay_in_the_gradient_of_an_optimizer_op():
    weight = tf.Variable([1.0, 2.0], name="w")
    accumulator = tf.Variable([0.0, 0.0], name="w/momentum", trainable=False)

    @tf.function(input_signature=[tf.TensorSpec([2])])
    def step(x: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * x)
        gradient = tape.gradient(loss, weight)
        tf.raw_ops.ResourceApplyMomentum(
            var=weight.handle, accum=accumulator.handle, lr=0.25, grad=gradient, momentum=0.75
        )

    (update,) = updates(step, {"weight_decay": 0.01, "semantics": "l2"})
    write, decay = "ResourceApplyMomentum", "graphwd/decay_ResourceApplyMomentum"
    (gradient,) = (n for b, n in zip(update.structure.boxes, update.names, strict=True) if b.kind is Kind.GRADIENT)
    assert edges(update, When.BOTH) >= {
        ("w", "-->", write),
        ("w/momentum", "-->", write),
        ("0.25", "-->", write),
        ("0.75", "-->", write),
    }
    assert edges(update, When.BEFORE) == {(gradient, "-->", write)}
    assert {(gradient, "-->", decay), (decay, "-->", write)} <= edges(update, When.AFTER)
    assert not any(box.cut for box in update.structure.boxes)


def test_a_schedule_is_one_box_behind_its_counter():
    step = plain_step()
    (update,) = updates(step, {"weight_decay": SCHEDULE})
    text = "linear(from=0.1, to=0.2, steps=10)"
    assert ("schedule", text) in boxes(update, injected=True)
    sources = {edge[0] for edge in edges(update, When.AFTER) if edge[2] == text}
    assert sources == {"graphwd/step_AssignSubVariableOp"}
    assert sum(box.op == "schedule" for box in update.structure.boxes) == 1


def test_a_rate_from_outside_of_the_function_is_one_box():
    weight = tf.Variable([1.0, 2.0], name="w")
    count = tf.Variable(0, name="count", dtype=tf.int64, trainable=False)
    move = tf.function(lambda gradient: weight.assign_sub(0.5 * gradient))

    @tf.function(input_signature=[tf.TensorSpec([2])])
    def step(x: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * x)
        move(tape.gradient(loss, weight))
        count.assign_add(1)

    (update,) = updates(step, {"weight_decay": SCHEDULE})
    ((node, attribute, function),) = update.nest
    assert (node, attribute) == ("StatefulPartitionedCall", "f")
    assert function.startswith("__inference_")
    assert ("from outside", "linear(from=0.1, to=0.2, steps=10)") in boxes(update, injected=True)
    assert ("weight", "w") in boxes(update, injected=False)  # the argument of the function is the handle
    assert "schedule" not in {box.op for box in update.structure.boxes}


def test_an_update_in_a_branch_knows_its_variables():
    weight = tf.Variable([1.0, 2.0], name="w")
    other = tf.Variable([3.0, 4.0], name="o", trainable=False)

    @tf.function(input_signature=[tf.TensorSpec([2])])
    def step(x: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * x)
        gradient = tape.gradient(loss, weight)
        tf.cond(x[0] > 0, lambda: weight.assign_sub(gradient * other), lambda: weight.read_value())

    (update,) = updates(step, {"weight_decay": 0.01})
    assert [(node, attribute) for node, attribute, _ in update.nest] == [("cond", "then_branch")]
    assert {("weight", "w"), ("variable", "o")} <= set(boxes(update, injected=False))


def test_what_lies_far_behind_is_cut_off_and_said_to_be():
    weight = tf.Variable([1.0, 2.0], name="w")

    @tf.function(input_signature=[tf.TensorSpec([2])])
    def step(x: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * x)
        change = tape.gradient(loss, weight)
        for number in range(9):
            change = tf.multiply(change, 0.5, name=f"level_{9 - number}")
        weight.assign_sub(change)

    (update,) = updates(step, {"weight_decay": 0.01})
    pairs = list(zip(update.structure.boxes, update.names, strict=True))
    assert [name for box, name in pairs if name.startswith("level_")] == [f"level_{n}" for n in range(1, 6)]
    assert [name for box, name in pairs if box.cut] == ["level_5"]


def test_updates_of_one_structure_are_equal_but_for_their_names():
    first, second = (tf.Variable(tf.ones([n]), name=f"w{n}") for n in (2, 3))

    @tf.function(input_signature=[tf.TensorSpec([])])
    def step(x: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = x * (tf.reduce_sum(first) + tf.reduce_sum(second))
        for weight, gradient in zip((first, second), tape.gradient(loss, (first, second)), strict=True):
            weight.assign_sub(0.5 * gradient)

    one, other = updates(step, {"weight_decay": 0.01})
    assert one.structure == other.structure
    assert "w2" in one.names
    assert "w3" in other.names
