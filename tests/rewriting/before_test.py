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


def decay_of(function):
    """The node that decays the only weight."""
    (decay,) = (node.name for node in function.node_def if MARK in node.attr and node.attr[MARK].s == b"decay")
    return decay


def waiting_for(name, function):
    """The nodes that wait for a node by control."""
    return [node for node in function.node_def if f"^{name}" in node.input]


@pytest.mark.parametrize("update", UPDATES)
def test_the_decay_waits_for_every_read_and_the_update_for_the_decay(update):
    w, step = parallel_step(update)
    assert w.trainable
    original = step.get_concrete_function(tf.TensorSpec([SIZE, SIZE], tf.float64)).function_def
    rewritten = graphwd.rewrite(step.get_concrete_function(tf.TensorSpec([SIZE, SIZE], tf.float64)), policy())
    function = rewritten.function_def
    before = needs(function)
    decay = decay_of(function)
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


def train(optimizer, variables):
    """A step of a Keras optimizer on weights that each have a gradient of their own."""
    optimizer.build(variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(tf.square(each)) for each in variables])
        optimizer.apply(tape.gradient(loss, variables), variables)

    return step


def writes_of(function, handle):
    """The writes of the original to a variable, by the name of its argument."""
    return [n for n in function.node_def if "Assign" in n.op and MARK not in n.attr and n.input[0] == handle]


@pytest.mark.parametrize(
    ("optimizer", "followers"),
    [
        (lambda: tf.keras.optimizers.SGD(0.5), {"Mul"}),
        (lambda: tf.keras.optimizers.Adam(0.5), {"Mul", "Sqrt"}),
        (lambda: tf.keras.optimizers.SGD(0.5, momentum=0.5), set()),  # the momentum is kept, and read anew
    ],
    ids=["sgd", "adam", "momentum"],
)
def test_the_arithmetic_of_an_update_waits_for_its_decay(optimizer, followers):
    """So that TensorFlow does not keep the updates of all variables at once, while their decays wait to be done."""
    variables = [tf.Variable(tf.ones([3]), name=f"w{number}") for number in range(2)]
    step = train(optimizer(), variables)
    original = step.get_concrete_function()
    rules = [{"weight_decay": RATE, "semantics": "adamw"}]
    rewritten = graphwd.rewrite(original, {"version": 1, "rules": rules})
    function = rewritten.function_def
    nodes = {node.name: node for node in function.node_def}
    decays = [node for node in function.node_def if MARK in node.attr and node.attr[MARK].s == b"decay"]
    assert len(decays) == 2
    unmarked = {node.name for node in original.function_def.node_def}
    before = needs(function)
    for decay in decays:
        waiting = [node for node in waiting_for(decay.name, function) if node.name in unmarked]
        (write,) = writes_of(function, decay.input[0])
        assert {node.op for node in waiting} == {write.op, *followers}
        assert write in waiting
        assert all(before[write.name].issuperset([node.name]) for node in waiting if node is not write)
        # All that the update is computed from, the gradient among it, is there before the decay.
        inputs = {text.partition(":")[0] for node in waiting for text in node.input if not text.startswith("^")}
        inputs -= {node.name for node in waiting}
        inputs -= {name for name in inputs if before.get(name, set()).intersection([decay.name])}
        assert before[decay.name].issuperset(name for name in inputs if name in nodes)


def kept(slot, gradient):
    """A slot that the gradient changes, and that it leaves as it was."""
    return slot.assign(slot + tf.square(gradient) - tf.square(gradient), read_value=True)


FORMS = {
    "constants": (lambda g, rate, _: 0.25 * (0.5 * g), 0.125, 0),
    "a constant times a product by another name": (lambda g, rate, _: 0.25 * tf.identity(g), 0.25, 0),
    "a rate times a product by another name": (lambda g, rate, _: rate * tf.identity(g), 0.5, 1),
    "a constant times a rate": (lambda g, rate, _: 0.25 * (rate * g), 0.125, 0),
    "a rate times a constant": (lambda g, rate, _: rate * (0.5 * g), 0.25, 1),
    "a rate times two constants": (lambda g, rate, _: rate * (0.25 * (0.5 * g)), 0.0625, 1),
    "a rate times a number": (lambda g, rate, slot: rate * (tf.reduce_max(slot) * g), 2.0, 1),
    "two rates and a constant": (lambda g, rate, _: rate * (0.5 * (rate * g)), 0.125, 1),
    "a negative": (lambda g, rate, _: -(rate * (-0.5 * g)), 0.25, 1),
    "a quotient": (lambda g, rate, slot: rate * (0.5 * g) / (tf.sqrt(kept(slot, g)) + 2.0), 0.0625, 2),
    "a quotient of constants": (lambda g, rate, slot: 0.5 * (0.5 * g) / (tf.sqrt(kept(slot, g)) + 2.0), 0.0625, 0),
    "two products": (lambda g, rate, slot: rate * (0.5 * g) + rate * (0.25 * g), 0.375, 0),
    "a sum": (lambda g, rate, slot: rate * (1.0 + (0.25 * g - 1.0)), 0.125, 1),
}
"""Updates by the gradient, a rate of 0.5 and a slot of 4.0; what they come to; how many nodes wait for the decay."""


@pytest.mark.parametrize("form", FORMS)
def test_what_grappler_moves_constants_through_keeps_the_decay_waiting(form):
    """Of ``c * (d * g)`` it makes ``(c * d) * g``, and what was ``d * g`` does not wait for the gradient any more."""
    update, factor, followers = FORMS[form]
    w = tf.Variable(tf.zeros([SIZE, SIZE], tf.float64), name="w")
    rate = tf.Variable(0.5, trainable=False, dtype=tf.float64, name="rate")
    slot = tf.Variable(tf.fill([SIZE, SIZE], tf.constant(4.0, tf.float64)), trainable=False, name="slot")

    @tf.function
    def step(x):
        with tf.control_dependencies([x @ x]), tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(x @ (0.5 * w)))  # reads the weight late
        w.assign_sub(update(tape.gradient(loss, w), rate, slot))

    x = tf.eye(SIZE, dtype=tf.float64)
    decayed = graphwd.rewrite(step.get_concrete_function(x), policy())
    function = decayed.function_def
    assert len(waiting_for(decay_of(function), function)) == 1 + followers  # the write waits as well
    start = np.random.default_rng(3).integers(-64, 65, [SIZE, SIZE]).astype(np.float64)
    for _ in range(10):
        w.assign(start)
        decayed(x)
        np.testing.assert_array_equal(w.numpy(), (1 - RATE - 0.5 * factor) * start)


def test_an_update_that_is_given_out_waits_for_nothing():
    w = tf.Variable([4.0, 8.0], name="w")
    rate = tf.Variable(0.5, trainable=False, name="rate")

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(2.0 * w)
        update = rate * tape.gradient(loss, w)
        w.assign_sub(update)
        return update

    rewritten = graphwd.rewrite(step.get_concrete_function(), policy())
    function = rewritten.function_def
    assert [node.op for node in waiting_for(decay_of(function), function)] == ["AssignSubVariableOp"]
    assert rewritten().numpy().tolist() == [1.0, 1.0]
    assert w.numpy().tolist() == [2.0, 5.0]


def test_arithmetic_that_takes_the_weight_as_it_was_read_comes_first():
    """A decay in place would have to copy the weight, while what was read of it is kept."""
    w = tf.Variable([4.0, 8.0], name="w")
    rate = tf.Variable(0.5, trainable=False, name="rate")

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(2.0 * w)
        w.assign_sub(rate * tf.square(w * tape.gradient(loss, w)))

    rewritten = graphwd.rewrite(step.get_concrete_function(), policy())
    function = rewritten.function_def
    waiting = waiting_for(decay_of(function), function)
    assert sorted(node.op for node in waiting) == ["AssignSubVariableOp", "Square"]  # not the product
    rewritten()
    assert w.numpy().tolist() == [4.0 - 32.0 - RATE * 4.0, 8.0 - 128.0 - RATE * 8.0]


def test_what_the_learning_rate_is_computed_from_comes_before_the_decay():
    """A learning rate that only this update uses, made from a slot variable: the decay cannot come ahead of that."""
    w = tf.Variable([4.0, 8.0], name="w")
    largest = tf.Variable(0.0, trainable=False, name="largest")

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(2.0 * w)
        gradient = tape.gradient(loss, w)
        rate = tf.multiply(0.125, largest, name="rate")
        w.assign_sub(rate * gradient)
        largest.assign(tf.maximum(largest, tf.reduce_max(gradient)))

    rewritten = graphwd.rewrite(step.get_concrete_function(), policy(scale="lr", learning_rate="rate"))
    rewritten()
    assert w.numpy().tolist() == [4.0, 8.0]
    rewritten()  # at a rate of 0.125 * 2
    assert w.numpy().tolist() == [4.0 - 0.5 - 0.25 * RATE * 4.0, 8.0 - 0.5 - 0.25 * RATE * 8.0]


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
