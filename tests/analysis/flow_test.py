"""How data flows through the body of an update."""

from __future__ import annotations

import tensorflow as tf

from graphwd.analysis.flow import is_apply, sinks
from tests.helpers.graphs import gradient_of, update_of, variable


def momentum_step():
    w, m = variable(), variable("m", trainable=False)

    def step(x):
        old = m.read_value()
        g = gradient_of(w)
        w.assign_sub(x * (g + tf.multiply(old, 0.5, name="slotted")))
        m.assign(tf.identity(old) + g)
        tf.identity(tf.zeros_like(old) + x, name="plain")

    return update_of(step, tf.TensorSpec([]))


def test_a_slot_carries_gradient_wherever_it_is_read_from():
    flow, _, _ = momentum_step()
    assert flow.carries("slotted:z:0")
    assert not flow.carries("plain:output:0")
    assert not flow.value("slotted:z:0").from_gradient
    slot = flow.read("Read/ReadVariableOp:value:0")
    assert slot is not None
    assert flow.is_slot(slot)


def test_sinks_are_what_is_written():
    flow, variable_, writes = momentum_step()
    ((use, tensor),) = sinks(flow, writes)
    assert (use.node, use.position) == (writes[0], 1)
    assert [node.name for node, _, _ in flow.written(variable_)] == writes
    assert tensor == flow.written(variable_)[0][2]
    assert not is_apply(flow, writes[0])


def test_an_alias_is_what_it_is_an_alias_of():
    flow, _, _ = momentum_step()
    assert flow.origin(flow.nodes["slotted"].proto.input[0]) == "Read/ReadVariableOp:value:0"
    assert flow.order("slotted:z:0") > flow.order("Read/ReadVariableOp:value:0") > flow.order("x") == -1


def test_a_gradient_is_behind_a_slot():
    flow, _, _ = momentum_step()
    behind = [tensor for _, tensor in flow.behind("Read/ReadVariableOp:value:0")]
    assert len(behind) == 1
    assert flow.carries(behind[0])
    assert "AssignVariableOp" in flow.nodes


def test_slot_variables_that_feed_each_other_depend_on_the_same_whichever_is_asked_first():
    w, first, second = variable(), variable("first", trainable=False), variable("second", trainable=False)
    a, b = variable("a", trainable=False), variable("b", trainable=False)

    def step(x):
        one, two = tf.identity(first.read_value(), name="one"), tf.identity(second.read_value(), name="two")
        g = gradient_of(w)
        first.assign(0.5 * two + g * a)
        second.assign(0.5 * one + g * b)
        w.assign_sub(x * (g + one + two))

    asked = [["one:output:0", "two:output:0"], ["two:output:0", "one:output:0"]]
    answers = []
    for order in asked:
        flow, _, _ = update_of(step, tf.TensorSpec([]))
        names = {number: each.name for number, each in enumerate(flow.variables)}
        answers.append({text: {names[number] for number in flow.reads_behind(text)} for text in order})
    assert answers[0] == answers[1]
    assert answers[0]["one:output:0"] == answers[0]["two:output:0"] >= {"a", "b", "first", "second"}
