"""``order: before`` stands or falls with control edges: they are looked at, and then put to the test."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.graph.graph import MARK
from tests.helpers.lockstep import assert_bit_equal

RATE = 0.25
SIZE = 384
BRANCHES = 6
RUNS = 300


def policy(rate=RATE, **fields):
    return {"version": 1, "rules": [{"name": "w", "weight_decay": rate, "order": "before", **fields}]}


def parallel_step(update):
    """Six branches that each read the weight anew and take a while, and an update that waits for all of them."""
    w = tf.Variable(tf.zeros([SIZE, SIZE], tf.float64), name="w")

    @tf.function
    def step(x):
        weights = []
        with tf.GradientTape() as tape:
            losses = []
            for branch in range(BRANCHES):
                read = w.read_value()
                weights.append(read)
                losses.append(tf.reduce_sum(tf.cast(branch + 1, tf.float64) * x * read))
            loss = tf.add_n(losses)
        gradient = tape.gradient(loss, w)
        update(w, gradient)
        return [tf.reduce_sum(each) for each in weights], loss

    return w, step


def subtract(w, gradient):
    w.assign_sub(0.5 * gradient)


def assign(w, gradient):
    w.assign(w - 0.5 * gradient)


UPDATES = [subtract, assign]


def needs(function):
    """For every node, all that must be done before it."""
    nodes = {node.name: node for node in function.node_def}
    found: dict[str, set[str]] = {}

    def of(name):
        if name not in found:
            found[name] = set()
            for text in nodes[name].input if name in nodes else ():
                need = text.lstrip("^").partition(":")[0]
                found[name] |= {need} | of(need)
        return found[name]

    return {name: of(name) for name in nodes}


@pytest.mark.parametrize("update", UPDATES)
def test_the_decay_waits_for_every_read_and_the_update_for_the_decay(update):
    w, step = parallel_step(update)
    assert w.trainable
    original = step.get_concrete_function(tf.TensorSpec([SIZE, SIZE], tf.float64)).function_def
    rewritten = graphwd.rewrite(step.get_concrete_function(tf.TensorSpec([SIZE, SIZE], tf.float64)), policy())
    function = rewritten.function_def
    before = needs(function)
    (decay,) = (n.name for n in function.node_def if n.attr[MARK].s == b"decay" and MARK in n.attr)
    (write,) = (n.name for n in original.node_def if "Assign" in n.op)
    assert decay in before[write]
    assert not [n.name for n in function.node_def if n.attr[MARK].s == b"reread"]
    reads = [node.name for node in original.node_def if node.op == "ReadVariableOp"]
    gradient_scope = [node.name for node in original.node_def if node.name.startswith("gradient_tape/")]
    assert len(reads) >= BRANCHES
    assert before[write].issuperset(reads)
    assert before[decay].issuperset(name for name in gradient_scope if name in needs(original)[write])
    if update is subtract:  # the weight is written: every read comes first, it may be an output as well
        assert before[decay].issuperset(reads)
    else:  # what is written is another sum, and the weight stays as it is until then
        assert [node.op for node in function.node_def if node.attr[MARK].s] == ["Const", "Mul", "Sub"]


@pytest.mark.parametrize("update", UPDATES)
def test_under_stress(update):
    w, step = parallel_step(update)
    x = tf.constant(np.random.default_rng(1).integers(-8, 9, [SIZE, SIZE]).astype(np.float64))
    decayed = graphwd.rewrite(step.get_concrete_function(x), policy())
    factor = sum(range(1, BRANCHES + 1))
    start = np.random.default_rng(2).integers(-64, 65, [SIZE, SIZE]).astype(np.float64)
    w.assign(start)
    expected = start
    for run in range(RUNS):
        if run % 10 == 0:  # all numbers are of few bits, so that every sum is exact in any order
            expected = start
            w.assign(start)
        sums, loss = decayed(x)
        assert {float(each) for each in sums} == {expected.sum()}
        assert float(loss) == factor * (x.numpy() * expected).sum()
        expected = (1 - RATE) * expected - 0.5 * factor * x.numpy()
        assert_bit_equal(w.numpy(), expected)


def test_a_weight_that_is_read_between_two_writes_of_one_update_is_refused():
    w = tf.Variable([4.0, 8.0], name="w")

    def step(between):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(2.0 * w)
        gradient = tape.gradient(loss, w)
        w.assign_sub(0.5 * gradient)
        seen = tf.identity(w) if between else tf.zeros([2])
        w.assign_sub(0.25 * tf.identity(gradient))
        return seen

    with pytest.raises(graphwd.PlanError, match="reads the weight between 'AssignSubVariableOp' and 'AssignSubVar"):
        graphwd.rewrite(tf.function(lambda: step(True)).get_concrete_function(), policy())
    graphwd.rewrite(tf.function(lambda: step(False)).get_concrete_function(), policy())()
    assert w.numpy().tolist() == [4.0 - 1.5 - RATE * 4.0, 8.0 - 1.5 - RATE * 8.0]


def test_a_slot_that_keeps_the_weight_reads_it_between_decay_and_update():
    w = tf.Variable(tf.ones([SIZE, SIZE], tf.float64), name="w")
    previous = tf.Variable(tf.ones([SIZE, SIZE], tf.float64), trainable=False, name="previous")

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(2.0 * w)
        gradient = tape.gradient(loss, w)
        new = w - 0.5 * gradient + 0.5 * (w - previous)
        previous.assign(w)
        w.assign(new)

    decayed = graphwd.rewrite(step.get_concrete_function(), policy())
    nodes = decayed.function_def.node_def
    rereads = [node.name for node in nodes if MARK in node.attr and node.attr[MARK].s == b"reread"]
    assert len(rereads) == 3
    write = [node.name for node in nodes if node.op == "AssignVariableOp" and MARK not in node.attr][-1]
    assert needs(decayed.function_def)[write].issuperset(rereads)
    expected, kept = 1.0, 1.0
    for _ in range(8):
        decayed()
        start = (1 - RATE) * expected
        expected, kept = start - 1.0 + 0.5 * (start - kept), start
        assert {float(each) for each in np.unique(w.numpy())} == {expected}
        assert {float(each) for each in np.unique(previous.numpy())} == {kept}


@pytest.mark.parametrize(
    "rules",
    [
        {"rules": [{"weight_decay": 0}]},
        {"rules": [{"weight_decay": 0, "order": "before", "scale": "lr"}]},
        {"rules": [{"weight_decay": 0, "mode": "coupled"}]},
        {"rules": [], "unmatched": "skip"},
    ],
    ids=str,
)
def test_without_a_rate_nothing_changes(rules):
    w, step = parallel_step(assign)
    x = tf.ones([SIZE, SIZE], tf.float64)
    original = step.get_concrete_function(x)
    rewritten = graphwd.rewrite(original, {"version": 1, **rules})
    first, second = type(original.function_def)(), type(original.function_def)()
    first.CopyFrom(original.function_def)
    second.CopyFrom(rewritten.function_def)
    second.signature.name = first.signature.name
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    for _ in range(3):
        start = w.numpy()
        expected = original(x)
        after = w.numpy()
        w.assign(start)
        tf.nest.map_structure(assert_bit_equal, expected, rewritten(x))
        assert_bit_equal(after, w.numpy())
