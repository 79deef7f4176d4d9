"""Verification against wrong plans: where the analysis errs, plan and rewriting agree, and the step says otherwise."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.analysis import updates
from graphwd.analysis.learning_rate import LearningRate
from graphwd.analysis.sites import Evidence
from graphwd.checking.verify import Kind, RateCheck, Verdict, verify
from graphwd.errors import VerifyError
from graphwd.planning import placement
from graphwd.planning.injections import Rate
from graphwd.planning.plan import Outcome
from graphwd.rewriting import part
from tests.helpers.graphs import variable

RATE = 0.25


def policy(**fields):
    return {"version": 1, "rules": [{"weight_decay": RATE, **fields}]}


def verified(step, rules, *args, **options):
    concrete = step.get_concrete_function(*args)
    return verify(concrete, graphwd.rewrite(concrete, rules), rules, *args, **options)


def wrong_ones(verification):
    """The positions of the variables that are found wrong; the verification must refuse itself."""
    found = [place for place, each in enumerate(verification.variables) if each.verdict is Verdict.WRONG]
    assert not verification.ok
    with pytest.raises(VerifyError):
        verification.check()
    return found


def mistake(monkeypatch, change):
    """Makes every plan another one: the rewriting and the verification get the same."""
    original = part.make_plan

    def make_plan(analysis, rules):
        made = original(analysis, rules)
        return replace(made, decisions=tuple(change(list(made.decisions))))

    monkeypatch.setattr(part, "make_plan", make_plan)


def with_injections(decision, change):
    return replace(decision, injections=tuple(replace(each, **change(each)) for each in decision.injections))


class Twins:
    """Two weights of one name, the first a matrix, the second a vector, in one loss."""

    def __init__(self):
        self.matrix = variable("w", [[0.5, -1.0], [1.5, 2.0]])
        self.vector = variable("w", [0.75, -0.5])

    @tf.function(input_signature=[tf.TensorSpec([2, 2])])
    def step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(x @ self.matrix + self.vector))
        for_matrix, for_vector = tape.gradient(loss, (self.matrix, self.vector))
        self.matrix.assign_sub(0.125 * for_matrix)
        self.vector.assign_sub(0.125 * for_vector)
        return loss


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "adamw", "l2"])
def test_two_of_one_name_are_right(semantics):
    twins = Twins()
    verification = verified(twins.step, policy(semantics=semantics))
    verification.check()
    assert [each.decayed for each in verification.variables] == [True, True]


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "adamw", "l2"])
@pytest.mark.parametrize("outcome", [Outcome.NO_UPDATE, Outcome.EXEMPT, None])
def test_a_decay_missing_on_one_of_two_of_one_name_is_found(semantics, outcome, monkeypatch):
    def missing(decisions):
        first, second = decisions
        return [first] if outcome is None else [first, replace(second, outcome=outcome, injections=())]

    mistake(monkeypatch, missing)
    twins = Twins()
    assert wrong_ones(verified(twins.step, policy(semantics=semantics))) == [1]


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "adamw"])
def test_a_decay_twice_is_found(semantics, monkeypatch):
    twice = lambda each: {"rate": Rate(1 - (1 - each.rate.number) ** 2)}  # noqa: E731
    mistake(monkeypatch, lambda decisions: [with_injections(decisions[0], twice), decisions[1]])
    twins = Twins()
    assert wrong_ones(verified(twins.step, policy(semantics=semantics))) == [0]


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "adamw"])
def test_a_wrong_rate_is_found(semantics, monkeypatch):
    mistake(monkeypatch, lambda d: [d[0], with_injections(d[1], lambda each: {"rate": 1.01 * each.rate})])
    twins = Twins()
    assert wrong_ones(verified(twins.step, policy(semantics=semantics))) == [1]


@pytest.mark.parametrize("asked", ["decoupled", "tfa"])
def test_a_wrong_order_is_found(asked, monkeypatch):
    twins = Twins()
    other = {"decoupled": "tfa", "tfa": "decoupled"}[asked]
    concrete = twins.step.get_concrete_function()
    exchanged = graphwd.plan(concrete, policy(semantics=other)).decisions
    mistake(
        monkeypatch,
        lambda d: [replace(mine, injections=theirs.injections) for mine, theirs in zip(d, exchanged, strict=True)],
    )
    assert wrong_ones(verified(twins.step, policy(semantics=asked))) == [0, 1]


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "l2"])
def test_a_decay_of_the_wrong_one_of_two_of_one_name_is_found(semantics, monkeypatch):
    twins = Twins()
    rules = {
        "version": 1,
        "rules": [{"rank": ">=2", "weight_decay": RATE, "semantics": semantics}, {"weight_decay": 0}],
    }
    everything = graphwd.plan(twins.step.get_concrete_function(), policy(semantics=semantics)).decisions

    def exchanged(decisions):
        first, second = decisions
        return [
            replace(first, outcome=Outcome.EXEMPT, injections=()),
            replace(second, outcome=Outcome.DECAY, injections=everything[1].injections),
        ]

    mistake(monkeypatch, exchanged)
    assert wrong_ones(verified(twins.step, rules)) == [0, 1]


def take_for_learning_rate(monkeypatch, choose):
    """Makes the analysis take what ``choose`` finds in the body of an update for its learning rate."""
    monkeypatch.setattr(placement, "find_learning_rate", lambda flow, *rest, **options: choose(flow))


def constant(value):
    """A constant of the body that is not the learning rate."""

    def choose(flow):
        for node in flow.nodes.values():
            if node.op == "Const":
                found = tf.make_ndarray(node.proto.attr["value"].tensor)
                if found.ndim == 0 and found.dtype == np.float32 and np.isclose(found, value):
                    return LearningRate(f"{value:g}", f"{node.name}:output:0", "float32", float(found))
        raise AssertionError(f"no constant {value}")

    return choose


def the_number_of_the_step(flow):
    """What an optimizer makes of the counter of its steps."""
    counted = [node for node in flow.nodes.values() if node.op == "Cast" and node.inputs[0].node.endswith("/Add")]
    return LearningRate("the number of the step", f"{counted[0].name}:y:0", "float32")


class Trained:
    """A weight under a Keras optimizer, some steps on: no slot variable is zero."""

    def __init__(self, optimizer):
        self.weight = keras.Variable(np.array([0.5, -1.0, 2.0], np.float32), name="kernel")
        self.optimizer = optimizer
        optimizer.build([self.weight])

    @tf.function(input_signature=[tf.TensorSpec([3])])
    def step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(self.weight.value * x - 1.0))
        self.optimizer.apply_gradients([(tape.gradient(loss, self.weight.value), self.weight)])
        return loss


OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(0.0078125, beta_1=0.875),
    "SGD, momentum": lambda: keras.optimizers.SGD(0.0078125, momentum=0.875),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.0625, 2, 0.5), momentum=0.5),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.0078125, momentum=0.5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_learning_rate_is_put_to_the_test(optimizer):
    trained = Trained(OPTIMIZERS[optimizer]())
    verification = verified(trained.step, policy(semantics="adamw"))
    verification.check()
    (weight,) = [each for each in verification.variables if each.decayed]
    assert weight.learning_rate is RateCheck.PROBED
    assert weight.kind is Kind.WHOLE
    assert str(verification).count("probed") == 1


@pytest.mark.parametrize(
    ("optimizer", "choose"),
    [
        ("Adam", constant(0.125)),  # 1 - beta_1
        ("Adam", the_number_of_the_step),
        ("SGD, momentum", constant(0.875)),
        ("schedule", constant(0.5)),
        ("RMSprop", constant(0.5)),
    ],
)
def test_a_wrong_learning_rate_is_found(optimizer, choose, monkeypatch):
    take_for_learning_rate(monkeypatch, choose)
    trained = Trained(OPTIMIZERS[optimizer]())
    verification = verified(trained.step, policy(semantics="adamw", weight_decay=2.0**-6))
    found = wrong_ones(verification)
    assert [verification.variables[place].decayed for place in found] == [True]


def test_a_constant_learning_rate_is_put_to_the_test(monkeypatch):
    w = variable("w", [0.5, -1.0, 2.0])
    slot = variable("m", [0.25, 0.5, 1.0], trainable=False)

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(w))
        slot.assign_add(0.125 * (tape.gradient(loss, w) - slot))
        w.assign_add(-0.0625 * slot)

    verification = verified(step, policy(semantics="adamw"))
    verification.check()
    (weight,) = [each for each in verification.variables if each.decayed]
    assert weight.learning_rate is RateCheck.PROBED
    assert weight.kind is Kind.WHOLE
    take_for_learning_rate(monkeypatch, constant(0.125))
    assert len(wrong_ones(verified(step, policy(semantics="adamw")))) == 1


def by_hand():
    """A gradient without a name, of a weight that the update adds to by an assignment."""
    w = variable("w", [[0.5], [-1.0]])

    @tf.function(input_signature=[tf.TensorSpec([3, 2])])
    def step(x):
        gradient = 2.0 * tf.transpose(x) @ (x @ w - 1.0)
        w.assign(w - 0.0625 * gradient)

    return w, step


def test_a_gradient_at_the_decayed_weight_is_found(monkeypatch):
    w, step = by_hand()
    verified(step, policy(semantics="tfa")).check()
    monkeypatch.setattr(
        placement,
        "_before",
        lambda rule, update, writes, flows, *rest: placement._before_by_reading(
            rule, update, writes, flows.at(update.site.path), *rest
        ),
    )
    monkeypatch.setattr(placement, "STRONG", tuple(Evidence))
    monkeypatch.setattr(placement, "refuse_forward_reads", lambda *args: None)
    (injection,) = graphwd.plan(step, policy(semantics="tfa")).injections
    assert len(injection.readiness.rereads) >= 1
    assert wrong_ones(verified(step, policy(semantics="tfa"))) == [0]
    del w


@pytest.mark.parametrize("semantics", ["decoupled", "tfa"])
@pytest.mark.parametrize("keeps", [0.875, 0.0])
def test_an_average_taken_for_an_update_is_found(semantics, keeps, monkeypatch):
    w = variable("w", [0.5, -1.0, 2.0])
    average = variable("average", [0.5, -1.0, 2.0])

    @tf.function(input_signature=[tf.TensorSpec([3])])
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(w * x - 1.0))
        new = w - 0.0625 * tape.gradient(loss, w)
        w.assign(new)
        average.assign(keeps * average + (1 - keeps) * new if keeps else new)

    rules = policy(semantics=semantics)
    assert not graphwd.plan(step, {**rules, "not_updated": "leave"}).problems
    verification = verified(step, {**rules, "not_updated": "leave"})
    verification.check()
    monkeypatch.setattr(updates, "_reason", lambda *args: "")
    monkeypatch.setattr(updates, "_slots", lambda analysis: {})
    decided = graphwd.plan(step, rules)
    if decided.problems:
        assert semantics == "tfa"  # what overwrites cannot be decayed before
        return
    assert len(decided.injections) == 2
    assert wrong_ones(verified(step, rules)) == [1]


@pytest.mark.parametrize("keeps", [0.875, 0.0])
def test_weights_that_end_at_one_bound_are_no_copies(keeps):
    """As those of a critic that clips its weights, WGAN: arXiv:1701.07875."""
    v, w = variable("v", [0.5, -1.0, 2.0]), variable("w", [0.5, 1.0, -2.0])

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(v + w)
        of_v, of_w = tape.gradient(loss, [v, w])
        v.assign(tf.clip_by_value(v - 64.0 * of_v, -0.5, 0.5))
        w.assign(keeps * w + (1 - keeps) * tf.clip_by_value(w - 64.0 * of_w, -0.5, 0.5))

    rules = policy(semantics="decoupled") | {"not_updated": "leave"}
    assert [each.variable.name for each in graphwd.plan(step, rules).injections] == ["v", "w"]
    verified(step, rules).check()


@pytest.mark.parametrize("sparse", ["touched", "all"])
def test_a_decay_of_other_rows_is_found(sparse, monkeypatch):
    table = variable("table", np.arange(1.0, 13.0, dtype=np.float32).reshape(6, 2))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(table, rows)))
        gradient = tape.gradient(loss, table)
        table.scatter_sub(tf.IndexedSlices(0.125 * gradient.values, gradient.indices))

    rows = tf.constant([1, 4])
    verification = verify(step, graphwd.rewrite(step, policy(sparse=sparse)), policy(sparse=sparse), rows)
    verification.check()
    mistake(monkeypatch, lambda d: [with_injections(d[0], lambda each: {"rows": not each.rows})])
    verification = verify(step, graphwd.rewrite(step, policy(sparse=sparse)), policy(sparse=sparse), rows)
    assert wrong_ones(verification) == [0]


def test_what_may_hold_more_of_the_weight_is_held_against_the_plan():
    """A momentum of weights: the update reads the weight, and is decayed by reading it decayed."""
    w, previous = variable("w", [0.5, -1.0]), variable("previous", [0.25, 0.5], trainable=False)

    @tf.function(input_signature=[tf.TensorSpec([2])])
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(w * x - 1.0))
        gradient, old = tape.gradient(loss, w), w.read_value()
        w.assign(w + (0.5 * (w - previous) - 0.125 * gradient))
        previous.assign(old)

    verification = verified(step, policy(semantics="tfa"))
    verification.check()
    assert [each.kind for each in verification.variables] == [Kind.PLAN] * 2
