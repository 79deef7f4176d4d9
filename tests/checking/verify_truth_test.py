"""Verification owes the plan nothing: what is wrong is found wrong, though the plan says the same.

The analysis is made wrong where it is used, so that the plan, the rewriting and the run in pieces all agree.
"""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from graphwd.analysis.learning_rate import LearningRate
from graphwd.analysis.sites import Site
from graphwd.checking.verify import Kind, RateCheck, Verdict, verify
from graphwd.errors import VerifyError
from graphwd.planning import planner
from graphwd.planning.injections import After, Rate
from tests.helpers import steps
from tests.helpers.graphs import gradient_of, variable
from tests.helpers.lockstep import policy_for

X = tf.constant([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])


def every(semantics, rate=0.1, **fields):
    return {"version": 1, "rules": [{"weight_decay": rate, "semantics": semantics}], **fields}


def by_name(verification):
    return {each.name: each for each in (*verification.variables, *verification.outputs)}


def planned(monkeypatch, change):
    """Makes every plan of something else than what the analysis finds."""
    place = planner.place_decay

    def changed(rule, writes, flows, **options):
        return tuple(change(writes.variable, each) for each in place(rule, writes, flows, **options))

    monkeypatch.setattr(planner, "place_decay", changed)


def checked(step, policy, *args, **options):
    concrete = step.get_concrete_function(*args)
    verification = verify(concrete, graphwd.rewrite(concrete, policy), policy, *args, runs=3, **options)
    if not verification.ok:
        with pytest.raises(VerifyError):
            verification.check()
    return by_name(verification)


# --- What a user could do by hand, right and wrong --------------------------------------------------------------------


class ByHand:
    """A step whose gradient is written by hand, and three ways to decay it before the update."""

    def __init__(self):
        self.w = tf.Variable(tf.reshape(tf.linspace(-1.0, 1.0, 6), [3, 2]), name="w")

        @tf.function(input_signature=[tf.TensorSpec([2, 3])])
        def step(x):
            return self.update(x, self.w.read_value(), 0.0)

        self.step = step

    def update(self, x, point, rate):
        """One update whose gradient is taken at ``point``."""
        norm = tf.norm(point)
        self.w.assign_sub(0.05 * 2.0 * tf.transpose(x) @ (x @ point - 1.0) + rate * self.w)
        return norm

    @tf.function
    def right(self, x):
        return self.update(x, self.w.read_value(), 0.1)

    @tf.function
    def gradient_at_the_decayed_weight(self, x):
        norm = tf.norm(self.w)
        self.w.assign(0.9 * self.w)
        self.update(x, self.w.read_value(), 0.0)
        return norm

    @tf.function
    def output_of_the_decayed_weight(self, x):
        self.update(x, self.w.read_value(), 0.1)
        return tf.norm(self.w)


def test_by_hand():
    model = ByHand()
    policy = every("tfa")
    right = verify(model.step, model.right, policy, X)
    right.check()
    assert {each.kind for each in by_name(right).values()} == {Kind.WHOLE}
    wrong = by_name(verify(model.step, model.gradient_at_the_decayed_weight, policy, X))
    assert (wrong["w"].verdict, wrong["w"].kind) == (Verdict.WRONG, Kind.WHOLE)
    assert wrong["output 0"].verdict is Verdict.RIGHT
    wrong = by_name(verify(model.step, model.output_of_the_decayed_weight, policy, X))
    assert (wrong["output 0"].verdict, wrong["output 0"].kind) == (Verdict.WRONG, Kind.WHOLE)
    assert wrong["w"].verdict is Verdict.RIGHT
    untouched = by_name(verify(model.step, model.step, policy, X))
    assert untouched["w"].verdict is Verdict.WRONG


def test_a_learning_rate_that_is_known_by_heart_is_found():
    w = tf.Variable([[1.0], [-2.0], [0.5]], name="w")
    rate = tf.Variable(0.05, trainable=False, name="rate")

    def update(x, factor):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((x @ w - 1.0) ** 2)
        gradient, before = tape.gradient(loss, w), w.read_value()
        w.assign_sub(rate * gradient)
        if factor is not None:
            w.assign_sub(0.1 * factor * before)

    def step_of(factor):
        return tf.function(lambda x: update(x, factor), input_signature=[tf.TensorSpec([2, 3])])

    step, right, wrong = map(step_of, (None, rate, 0.05))
    policy = every("adamw")
    verify(step, right, policy, X).check()
    found = by_name(verify(step, wrong, policy, X))
    assert (found["w"].verdict, found["w"].kind) == (Verdict.WRONG, Kind.WHOLE)


def test_what_is_returned_must_be_returned():
    model = ByHand()

    @tf.function
    def silent(x):
        model.right(x)

    with pytest.raises(VerifyError, match="the original step returns 1 tensors, the rewritten one 0"):
        verify(model.step, silent, every("tfa"), X)


def test_what_fails_is_said_and_everything_is_left_as_it_was():
    model = ByHand()
    before = model.w.numpy()

    @tf.function
    def fails(x):
        model.right(x)
        with tf.control_dependencies([tf.debugging.Assert(x[0, 0] > 9.0, ["no such batch"])]):
            return tf.norm(model.w)

    with pytest.raises(VerifyError, match=r"the rewritten step fails on these arguments: .*assertion failed"):
        verify(model.step, fails, every("tfa"), X)
    assert model.w.numpy().tolist() == before.tolist()


# --- Forms on which a plan was wrong ----------------------------------------------------------------------------------


def nfnet_step():
    k, b = tf.Variable(2.0, name="kernel"), tf.Variable(1.0, name="bias")

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            loss = 3.0 * k + 2.0 * b
        gk, gb = tape.gradient(loss, [k, b])
        n = tf.abs(k)
        c = tf.minimum(1.0, 0.01 * n / tf.abs(gk))
        k.assign_sub(gk * c)
        b.assign_sub(gb * c)
        return n

    return step, k


def branch_step():
    w = tf.Variable(tf.reshape(tf.linspace(-1.0, 1.0, 6), [3, 2]), name="w")

    @tf.function(input_signature=[tf.TensorSpec([2, 3])])
    def step(x):
        v = tf.identity(w)

        def there():
            with tf.GradientTape() as tape:
                tape.watch(v)
                loss = tf.reduce_sum((x @ v) ** 2)
            return tape.gradient(loss, v)

        w.assign_sub(0.01 * tf.cond(x[0, 0] > 0, there, lambda: tf.zeros_like(v)))

    return step, w


FORMS = {
    "by hand": (lambda: (lambda model: (model.step, model.w))(ByHand()), (X,)),
    "NFNet": (nfnet_step, ()),
    "branch": (branch_step, (X,)),
}


@pytest.mark.parametrize("form", FORMS)
def test_says_what_is_true_of_a_rewritten_step(form):
    """Whatever the rewriter makes of these: right exactly where it is U(w) - c w."""
    make, args = FORMS[form]
    step, w = make()
    policy = {
        "version": 1,
        "rules": [{"name": w.name[:-2], "weight_decay": 0.1, "semantics": "tfa"}],
        "unmatched": "skip",
    }
    concrete = step.get_concrete_function()
    rewritten = graphwd.rewrite(concrete, policy)
    verification = verify(concrete, rewritten, policy, *args, runs=1)
    before = w.numpy()
    concrete(*args)
    expected = w.numpy() - 0.1 * before
    w.assign(before)
    rewritten(*args)
    assert verification.ok == np.allclose(w.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert by_name(verification)[w.name[:-2]].kind is Kind.WHOLE


# --- Mutants of the analysis ------------------------------------------------------------------------------------------


def test_a_wrong_learning_rate_is_found(monkeypatch):
    """Adam's 1 - beta_1, which is a factor of the gradient alone."""
    step = steps.keras_step(keras.optimizers.Adam(0.01))
    policy = policy_for(steps.KERAS_KERNELS, semantics="adamw")
    concrete = step.get_concrete_function(*steps.batches()[0])
    values = {node.name: node.attr["value"].tensor for node in concrete.function_def.node_def if node.op == "Const"}
    node = next(
        name
        for name, value in values.items()
        if value.dtype == tf.float32.as_datatype_enum and np.array_equal(tf.make_ndarray(value), np.float32(1 - 0.9))
    )
    other = LearningRate(node, f"{node}:output:0", "float32")
    assert all(each.learning_rate is RateCheck.PROBED for each in checked_kernels(step, policy))
    planned(monkeypatch, lambda _, each: replace(each, rate=Rate(each.rate.number, other)))
    for each in checked_kernels(step, policy):
        assert each.verdict is Verdict.WRONG
        assert each.learning_rate is RateCheck.REFUTED
        assert "is not its learning rate: doubled, it does not double the update" in each.reason


def checked_kernels(step, policy):
    found = checked(step, policy, *steps.batches()[0])
    return [found[name] for name in steps.KERAS_KERNELS]


def test_a_learning_rate_that_is_a_constant(monkeypatch):
    """It is multiplied into the rate, so that only its value is left to go by."""
    w, slot = variable("w", [1.0, 2.0]), variable("slot", [0.0, 0.0], trainable=False)

    @tf.function(input_signature=[])
    def step():
        slot.assign_add(0.125 * (gradient_of(w) - slot))
        w.assign_sub(0.01 * slot)

    found = checked(step, every("adamw"))["w"]
    assert (found.verdict, found.kind, found.learning_rate) == (Verdict.RIGHT, Kind.WHOLE, RateCheck.PROBED)
    planned(monkeypatch, lambda _, each: replace(each, rate=Rate(0.1 * 0.125)))
    found = checked(step, every("adamw"))["w"]
    assert (found.verdict, found.learning_rate) == (Verdict.WRONG, RateCheck.REFUTED)
    assert "multiplied by '0.125', which is not its learning rate" in found.reason


def _halved_first(w, rate):
    rate.assign(0.5 * rate)
    w.assign_sub(rate * gradient_of(w))


def _halved_later(w, rate):
    w.assign_sub(rate * gradient_of(w))
    rate.assign(0.5 * rate)


def _halved_elsewhere(w, rate):
    tf.function(lambda: rate.assign(0.5 * rate))()
    w.assign_sub(rate * gradient_of(w))


def _set_first(w, rate):
    rate.assign(0.01 * tf.cast(tf.shape(w)[0], tf.float32))
    w.assign_sub(rate * gradient_of(w))


def _read_once(w, rate):
    value = tf.identity(rate)
    rate.assign(0.5 * value)
    w.assign_sub(value * gradient_of(w))


@pytest.mark.parametrize("update", [_halved_first, _halved_later, _halved_elsewhere, _set_first, _read_once])
def test_a_learning_rate_that_the_step_writes_is_probed(update):
    w, rate = variable("w", [1.0, 2.0]), variable("learning_rate", 0.01, trainable=False)
    step = tf.function(lambda: update(w, rate), input_signature=[])
    found = checked(step, every("adamw"))["w"]
    assert (found.verdict, found.kind, found.learning_rate) == (Verdict.RIGHT, Kind.WHOLE, RateCheck.PROBED)


@pytest.mark.parametrize("optimizer", [tf_keras.optimizers.SGD, tf_keras.optimizers.Adam])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda: tf_keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.01, 0.001]),
        lambda: tf_keras.optimizers.schedules.ExponentialDecay(0.01, 100, 0.5, staircase=True),
        lambda: tf_keras.optimizers.schedules.ExponentialDecay(0.01, 100, 0.5),
    ],
    ids=["constant in pieces", "stairs", "smooth"],
)
def test_a_learning_rate_that_a_schedule_sets_in_the_step_is_probed(schedule, optimizer):
    """tf_keras writes the variable ``current_learning_rate`` in each step, often what it holds already."""
    step = steps.tf_keras_step(optimizer(schedule()))
    kernels = steps.TF_KERAS_KERNELS
    found = checked(step, policy_for(kernels, semantics="adamw"), *steps.batches()[0])
    assert {(found[name].verdict, found[name].learning_rate) for name in kernels} == {(Verdict.RIGHT, RateCheck.PROBED)}


def test_an_update_with_a_term_of_its_own_has_the_rate_that_its_rule_names():
    """Langevin dynamics: noise that grows with the root of the learning rate."""
    w, rate = variable("w", [1.0, 2.0]), variable("learning_rate", 0.01, trainable=False)
    noise = tf.constant([0.1, -0.2])
    step = tf.function(lambda: w.assign_sub(rate * gradient_of(w) + tf.sqrt(rate) * noise), input_signature=[])
    found = checked(step, every("adamw"))["w"]
    assert (found.verdict, found.learning_rate) == (Verdict.WRONG, RateCheck.REFUTED)
    assert "write 'learning_rate: learning_rate' in the rule" in found.reason
    found = checked(step, every("adamw", defaults={"learning_rate": "learning_rate"}))["w"]
    assert (found.verdict, found.learning_rate) == (Verdict.RIGHT, RateCheck.PLAN)


@pytest.mark.parametrize("is_first", [True, False])
def test_each_branch_may_have_a_learning_rate_of_its_own(is_first):
    w, first = variable("w", [1.0, 2.0]), tf.Variable(is_first, trainable=False)
    one, other = (variable(name, rate, trainable=False) for name, rate in (("one", 0.01), ("other", 0.03)))

    @tf.function(input_signature=[])
    def step():
        gradient = gradient_of(w)
        tf.cond(first, lambda: w.assign_sub(one * gradient), lambda: w.assign_sub(other * gradient))

    found = checked(step, every("adamw"))["w"]
    assert (found.verdict, found.learning_rate) == (Verdict.RIGHT, RateCheck.PROBED)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_learning_rate_in_a_velocity_is_probed(momentum):
    step = steps.keras_step(keras.optimizers.SGD(0.01, momentum=momentum, nesterov=momentum > 0))
    found = checked_kernels(step, policy_for(steps.KERAS_KERNELS, semantics="adamw"))
    assert [(each.verdict, each.learning_rate) for each in found] == [(Verdict.RIGHT, RateCheck.PROBED)] * 2


def test_the_wrong_order_is_found(monkeypatch):
    planned(monkeypatch, lambda _, each: After(each.variable, each.site, each.rate, rows=each.rows))
    model = ByHand()
    found = checked(model.step, every("tfa"), X)
    assert (found["w"].verdict, found["w"].kind) == (Verdict.WRONG, Kind.WHOLE)


@pytest.mark.parametrize("factor", [2.0, 0.0])
def test_a_wrong_rate_is_found(factor, monkeypatch):
    planned(monkeypatch, lambda _, each: replace(each, rate=factor * each.rate))
    found = checked(ByHand().step, every("decoupled"), X)
    assert (found["w"].verdict, found["w"].kind) == (Verdict.WRONG, Kind.WHOLE)


class Twins:
    """Two weights of one name, and an average of the first that nothing trains."""

    def __init__(self):
        self.one, self.two = variable("w", [1.0, 2.0]), variable("w", [3.0, -4.0])
        self.average = variable("average", [0.5, 0.25], trainable=False)

        @tf.function(input_signature=[])
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(self.one) * self.two + tf.square(self.two))
            gradients = tape.gradient(loss, [self.one, self.two])
            self.average.assign(0.75 * self.average + 0.25 * self.one)
            self.one.assign_sub(0.01 * gradients[0])
            self.two.assign_sub(0.01 * gradients[1])
            return loss

        self.step = step


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "adamw"])
def test_one_of_two_variables_of_one_name_is_missing(semantics, monkeypatch):
    place = planner.place_decay
    model = Twins()
    concrete = model.step.get_concrete_function()
    assert verify(concrete, graphwd.rewrite(concrete, every(semantics)), every(semantics)).ok
    monkeypatch.setattr(
        planner, "place_decay", lambda *args, **options: place(*args, **options) if args[1].variable.id else ()
    )
    verification = verify(concrete, graphwd.rewrite(concrete, every(semantics)), every(semantics))
    assert [each.verdict for each in verification.variables if each.name == "w"].count(Verdict.WRONG) == 1


def test_the_wrong_variable_of_one_name_is_found(monkeypatch):
    model = Twins()
    concrete = model.step.get_concrete_function()
    one, two = graphwd.plan(concrete, every("decoupled")).injections
    both = replace(two, rate=Rate(1 - (1 - two.rate.number) ** 2))
    monkeypatch.setattr(
        planner, "place_decay", lambda _, writes, *__, **___: () if writes.variable.id == one.variable.id else (both,)
    )
    verification = verify(concrete, graphwd.rewrite(concrete, every("decoupled")), every("decoupled"))
    assert [each.verdict for each in verification.variables if each.name == "w"] == [Verdict.WRONG] * 2


def test_an_average_taken_for_an_update_is_found(monkeypatch):
    """Its write gets a decay, which the plan has for another variable."""
    model = Twins()
    concrete = model.step.get_concrete_function()
    (write,) = [node.name for node in concrete.function_def.node_def if node.op == "AssignVariableOp"]
    average = Site((), write, "AssignVariableOp")
    planned(monkeypatch, lambda variable, each: replace(each, site=average) if variable.id == 0 else each)
    verification = verify(concrete, graphwd.rewrite(concrete, every("decoupled")), every("decoupled"))
    found = by_name(verification)
    assert (found["average"].verdict, found["average"].kind) == (Verdict.WRONG, Kind.WHOLE)


def test_a_decay_twice_is_found(monkeypatch):
    planned(monkeypatch, lambda _, each: replace(each, rate=Rate(1 - (1 - each.rate.number) ** 2)))
    found = checked(ByHand().step, every("decoupled"), X)
    assert found["w"].verdict is Verdict.WRONG


# --- What was held against what ---------------------------------------------------------------------------------------


def test_the_report_says_what_each_was_held_against():
    model = Twins()
    concrete = model.step.get_concrete_function()
    verification = verify(concrete, graphwd.rewrite(concrete, every("l2")), every("l2"))
    verification.check()
    assert [(each.name, each.kind) for each in verification.variables if each.name == "w"] == [("w", Kind.PLAN)] * 2
    found = by_name(verification)
    assert found["average"].kind is found["output 0"].kind is Kind.WHOLE
    assert "the plan's places only" in str(verification)
    assert "held against" in str(verification)


def test_what_takes_the_decayed_weight_is_held_against_the_plan():
    w, average = variable("w", [1.0, 2.0]), variable("average", [0.5, 0.5], trainable=False)

    @tf.function(input_signature=[])
    def step():
        w.assign_sub(0.01 * gradient_of(w))
        average.assign(0.75 * average + 0.25 * w)
        return tf.reduce_sum(average)

    found = checked(step, every("decoupled"))
    assert {name: each.kind for name, each in found.items()} == {
        "w": Kind.WHOLE,
        "average": Kind.PLAN,
        "output 0": Kind.PLAN,
    }
    assert {each.verdict for each in found.values()} == {Verdict.RIGHT}


def test_a_loop_is_held_against_the_plan():
    model = steps.Looping()
    found = by_name(
        verify(
            model.step,
            graphwd.rewrite(model.step, every("decoupled", 0.01)),
            every("decoupled", 0.01),
            *steps.batches()[0],
            tolerance=8,
        )
    )
    assert (found["kernel"].verdict, found["kernel"].kind) == (Verdict.RIGHT, Kind.PLAN)


def test_runs_without_an_update():
    """A branch that is not taken is no decay; where it is taken, the whole step says what must come out."""
    model = steps.Accumulating()
    inputs = steps.batches()[0]
    step = graphwd.rewrite(model.step, every("tfa", 0.01))
    found = by_name(verify(model.step, step, every("tfa", 0.01), *inputs))
    assert (found["kernel"].verdict, found["kernel"].kind) == (Verdict.RIGHT, Kind.WHOLE)

    @tf.function
    def always(inputs, targets):
        before = model.kernel.read_value()
        loss = model.step(inputs, targets)
        model.kernel.assign_sub(0.01 * before)
        return loss

    found = by_name(verify(model.step, always, every("tfa", 0.01), *inputs))
    assert found["kernel"].verdict is Verdict.WRONG


def test_every_trace_is_verified():
    w = variable("w", [1.0, 2.0])

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(x, tf.float32) * tf.square(w))
        w.assign_sub(0.01 * tape.gradient(loss, w))
        return loss

    for kind in (tf.float32, tf.int32):
        step.get_concrete_function(tf.TensorSpec([], kind))
    policy = every("decoupled")
    right = graphwd.rewrite(step, policy)
    verification = verify(step, right, policy)
    verification.check()
    assert [(each.name, each.function) for each in verification.variables] == [("w", "trace 1"), ("w", "trace 2")]
    half = lambda x: (step if x.dtype == tf.int32 else right)(x)  # noqa: E731
    wrong = verify(step, tf.function(half, autograph=False), policy)
    assert {each.verdict for each in wrong.variables} == {Verdict.WRONG, Verdict.RIGHT}
    with pytest.raises(VerifyError, match="'w' of trace"):
        wrong.check()


def test_a_variable_that_is_an_argument_is_verified():
    w = variable("w", [1.0, 2.0])

    @tf.function
    def step(target):
        target.assign_sub(0.01 * gradient_of(target))

    policy = every("decoupled")
    concrete = step.get_concrete_function(w)
    found = by_name(verify(concrete, graphwd.rewrite(concrete, policy), policy, w))
    assert (found["target"].verdict, found["target"].kind) == (Verdict.RIGHT, Kind.WHOLE)  # as the plan calls it
    assert w.numpy().tolist() == [1.0, 2.0]
    assert by_name(verify(concrete, concrete, policy, w))["target"].verdict is Verdict.WRONG
