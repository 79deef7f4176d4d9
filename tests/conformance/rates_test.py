"""Rates that change from step to step: schedules, tunables and scales, on optimizers of every kind, against NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from tests.helpers import references
from tests.helpers.references import FIELDS, PENALTIES, AnyDecay

STEPS = 100
LEARNING_RATE = 2.0**-5
START = np.linspace(-1.5, 2, 6).reshape(2, 3)
ADAM = {"beta_1": 0.875, "beta_2": 1 - 2.0**-8, "epsilon": 2.0**-12}
MEANINGS = ["after", "before", "before-lr", "coupled"]

SCHEDULES: dict[str, Any] = {
    "linear": {"from": 0.0, "to": 0.0625, "steps": 60},
    "cosine": {"from": 0.04, "to": 0.4, "steps": 80, "warmup_steps": 10},
    "exponential": {"from": 0.25, "to": 0.001, "steps": 50},
    "piecewise": {"boundaries": [10, 40], "values": [0.125, 0.0625, 0.0]},
}
BY_HAND = {
    "linear": lambda t: 0.0625 * min(t / 60, 1),
    "cosine": lambda t: (
        0.04 * t / 10 if t < 10 else 0.4 + (0.04 - 0.4) * (1 + np.cos(np.pi * min((t - 10) / 80, 1))) / 2
    ),
    "exponential": lambda t: 0.25 * (0.001 / 0.25) ** min(t / 50, 1),
    "piecewise": lambda t: 0.125 if t <= 10 else 0.0625 if t <= 40 else 0.0,
}


def keras_optimizer(name):
    def make(dtype):
        keras.backend.set_floatx(dtype)
        target = keras.Variable(START, dtype=dtype, name="w")
        optimizer = getattr(keras.optimizers, name)(LEARNING_RATE, **(ADAM if name == "Adam" else {}))
        optimizer.build([target])
        keras.backend.set_floatx("float32")
        return target.value, lambda gradient: optimizer.apply([gradient], [target]), optimizer

    return make


def fused(name):
    def make(dtype):
        tf_keras.backend.set_floatx(dtype)
        weight = tf.Variable(START, dtype=dtype, name="w")
        optimizer = getattr(tf_keras.optimizers.legacy, name)(LEARNING_RATE, **(ADAM if name == "Adam" else {}))
        optimizer._create_all_weights([weight])
        tf_keras.backend.set_floatx("float32")
        return weight, lambda gradient: optimizer.apply_gradients([(gradient, weight)]), optimizer

    return make


def by_hand(dtype):
    weight = tf.Variable(START, dtype=dtype, name="w")
    rate = tf.constant(LEARNING_RATE, dtype)
    return weight, lambda gradient: weight.assign_sub(rate * gradient), None


KINDS = {
    "Keras SGD": (keras_optimizer("SGD"), references.SGD, True),
    "Keras Adam": (keras_optimizer("Adam"), references.Adam, True),
    "fused SGD": (fused("SGD"), references.SGD, True),
    "fused Adam": (fused("Adam"), references.Adam, True),
    "by hand": (by_hand, references.SGD, False),
}


class Trained:
    """A weight, and a step whose gradient is its argument."""

    def __init__(self, kind, dtype="float64"):
        make, self.reference, self.counts = KINDS[kind]
        self.weight, apply, self.keep = make(dtype)
        self.dtype = dtype

        @tf.function(input_signature=[tf.TensorSpec(START.shape, dtype)])
        def step(gradient):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self.weight * gradient)
            apply(tape.gradient(loss, self.weight))

        self.step = step

    def rewritten(self, meaning="after", **rule):
        fields = dict(FIELDS[meaning])
        if "scale" in rule:
            fields.pop("scale", None)
        policy = {"version": 1, "rules": [{"name": "w", **fields, **rule}, {"weight_decay": 0}]}
        return graphwd.rewrite(self.step, policy), policy

    def error(self, decayed, meaning, rate_at, penalty="l2", steps=STEPS):
        """Trains; returns the largest error relative to the largest weight on the way."""
        exact = self.weight.numpy().astype(np.float64)
        training = AnyDecay(
            self.reference(START.shape, LEARNING_RATE),
            meaning,
            0.0,
            penalty=PENALTIES[penalty],
            rate_at=rate_at,
            initial=exact,
        )
        largest = np.abs(exact).max()
        for gradient in gradients(steps, self.dtype):
            decayed(tf.constant(gradient))
            exact = training.step(exact, gradient.astype(np.float64))
            largest = max(largest, np.abs(exact).max())
        return float(np.abs(self.weight.numpy().astype(np.float64) - exact).max() / largest)


def gradients(steps, dtype):
    return np.random.default_rng(4).normal(size=(steps, *START.shape)).astype(dtype)


BOUND = {"float64": 1e-12, "float32": 8 * 2.0**-23}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_for_a_hundred_steps(kind, name, meaning, dtype):
    trained = Trained(kind, dtype)
    decayed, _ = trained.rewritten(meaning, weight_decay={"schedule": name, **SCHEDULES[name]})
    assert trained.error(decayed, meaning, BY_HAND[name]) < BOUND[dtype]
    # The optimizer's own counter is used where there is one; else graphwd counts.
    counter = graphwd.state(decayed).steps
    assert (counter is None) == trained.counts
    assert counter is None or counter.numpy() == STEPS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["relative", "corrected"])
@pytest.mark.parametrize("meaning", ["after", "before"])
def test_scales(kind, scale, meaning):
    trained = Trained(kind)
    decayed, policy = trained.rewritten(meaning, weight_decay=0.5, scale=scale, peak_learning_rate=0.125)
    power = {"relative": 1, "corrected": 2}[scale]
    assert trained.error(decayed, meaning, lambda _: 0.5 * LEARNING_RATE**power / 0.125) < BOUND["float64"]
    assert graphwd.verify(trained.step, decayed, policy, tf.constant(START)).ok


@pytest.mark.parametrize("kind", ["Keras Adam", "fused Adam", "by hand"])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_a_rate_that_is_assigned_between_steps(kind, meaning):
    trained = Trained(kind)
    decayed, _ = trained.rewritten(meaning, weight_decay=0.125, tunable="body", formula="l1")
    rates = graphwd.state(decayed).rates
    traces = trained.step.experimental_get_tracing_count()

    def rate_at(t):
        return 0.125 if t < 3 else 0.03125 * t

    exact = START
    training = AnyDecay(
        trained.reference(START.shape, LEARNING_RATE), meaning, 0.0, penalty=PENALTIES["l1"], rate_at=rate_at
    )
    for t, gradient in enumerate(gradients(10, "float64")):
        if t >= 3:
            rates["body"].assign(0.03125 * t)
        decayed(tf.constant(gradient))
        exact = training.step(exact, gradient)
    np.testing.assert_allclose(trained.weight, exact, rtol=1e-12)
    assert trained.step.experimental_get_tracing_count() <= max(traces, 1)


def test_a_tunable_multiplies_its_schedule():
    trained = Trained("by hand")
    decayed, _ = trained.rewritten(weight_decay={"schedule": "linear", **SCHEDULES["linear"]}, tunable="body")
    graphwd.state(decayed).rates["body"].assign(0.5)
    assert trained.error(decayed, "after", lambda t: 0.5 * BY_HAND["linear"](t)) < 1e-12


def test_what_python_can_give():
    keras_schedule = keras.optimizers.schedules.CosineDecay(0.25, 50, alpha=0.5)
    variable = tf.Variable(0.25, dtype=tf.float64)
    for given, rate_at, tolerance in (
        (lambda step: 1 / tf.cast(step + 4, tf.float64), lambda t: 1 / (t + 4), 1e-12),
        (keras_schedule, lambda t: float(keras_schedule(t)), 1e-6),  # Keras computes it in float32
        (variable, lambda _: 0.25, 1e-12),
    ):
        trained = Trained("Keras SGD")
        decayed, policy = trained.rewritten(weight_decay=given)
        assert trained.error(decayed, "after", rate_at) < tolerance
        assert graphwd.verify(trained.step, decayed, policy, tf.constant(START)).ok
    variable.assign(0.0)
    before = trained.weight.numpy()
    decayed(tf.zeros(START.shape, tf.float64))
    np.testing.assert_array_equal(trained.weight, before)


def float_of(step):
    return tf.cast(step, tf.float64)


OUTSIDE = tf.Variable(0.1, dtype=tf.float64)
NO_READS = "may not read a tf.Variable, nor an eager tensor; a rate that the training sets is 'tunable: NAME'"
BELOW_ONE = "a rate must be below 1 where it multiplies the weight by 1 - rate"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda step: "a", "must return a number, got a string"),
        (lambda step: step > 3, "must return a number, got a bool"),
        (lambda step: True, "must return a number, got a bool"),
        (lambda step: 1j, "must return a number, got a complex128"),
        (lambda step: 1 / 0, "fails: ZeroDivisionError: division by zero"),
        (lambda step: [0.1, 0.2], r"fails: ValueError: Shapes (2,) and () are incompatible"),
        (lambda step: 0.1 - 0.01 * float_of(step), "gives -0.9 at step 100; a rate must be a finite number >= 0"),
        (lambda step: tf.math.log(float_of(step) - 5), "gives nan at step 0; a rate must be a finite number >= 0"),
        (lambda step: 1 / float_of(step), "gives inf at step 0; a rate must be a finite number >= 0"),
        (lambda step: 0.1 * float_of(step), f"gives 1 at step 10; {BELOW_ONE}"),
        (
            keras.optimizers.schedules.PiecewiseConstantDecay([5, 7], [0.1, 1.5, 0.2]),
            f"gives 1.5 at step 6; {BELOW_ONE}",
        ),
        (lambda step: OUTSIDE * 2, NO_READS),
        (lambda step: OUTSIDE, NO_READS),
        (lambda step: tf.cond(step > 3, lambda: OUTSIDE * 1, lambda: OUTSIDE * 2), NO_READS),
    ],
)
def test_a_schedule_that_gives_no_rate_is_a_problem_of_the_plan(given, message):
    trained = Trained("Keras SGD")
    decayed, policy = trained.rewritten(weight_decay=given)
    (problem,) = graphwd.plan(trained.step, policy).problems
    name = getattr(given, "__name__", type(given).__name__)
    assert problem.startswith(f"policy: rules[0]: the schedule '{name}' {message}")
    with pytest.raises(graphwd.PlanError) as error:
        decayed(tf.constant(START))
    assert str(error.value) == problem


def test_a_large_rate_is_one_where_it_is_scaled_or_no_share():
    trained = Trained("Keras SGD")
    for fields in ({"scale": "lr"}, {"mode": "coupled"}, {"formula": "l1"}):
        policy = {"version": 1, "rules": [{"weight_decay": lambda step: 2.0, **fields}]}
        assert graphwd.plan(trained.step, policy).problems == ()


def test_a_formula_may_not_read_a_variable():
    _, policy = Trained("by hand").rewritten(weight_decay=0.1, formula=lambda weight: OUTSIDE * weight)
    (problem,) = graphwd.plan(Trained("by hand").step, policy).problems
    assert problem.startswith(f"policy: rules[0]: 'w': the formula '<lambda>' {NO_READS}")


def test_a_schedule_with_branches_and_loops():
    """As Keras's warm-up is written; the functions of its branches become functions of the step."""
    warm = keras.optimizers.schedules.CosineDecay(0.0, 50, warmup_target=0.25, warmup_steps=10)

    def looping(step):
        last = tf.minimum(step, 100)  # verification goes far
        _, total = tf.while_loop(lambda i, _: i < last, lambda i, total: (i + 1, total / 2), (0, 0.5), name="halve")
        return tf.cond(step > 3, lambda: total, lambda: 0.25)

    for given, rate_at, tolerance in (
        (warm, lambda t: float(warm(t)), 1e-6),
        (lambda step: looping(tf.cast(step, tf.int32)), lambda t: 0.5 / 2**t if t > 3 else 0.25, 1e-12),
    ):
        for jit_compile in (False, True):
            trained = Trained("by hand")
            step = tf.function(trained.step, jit_compile=jit_compile)
            policy = {"version": 1, "rules": [{"weight_decay": given}]}
            decayed = graphwd.rewrite(step, policy)
            assert trained.error(decayed, "after", rate_at, steps=20) < tolerance
            assert graphwd.verify(step, decayed, policy, tf.constant(START), tolerance=16).ok


def test_a_formula_with_branches():
    def formula(weight):
        return tf.cond(tf.reduce_sum(weight) > 0, lambda: tf.sign(weight), lambda: weight)

    for start in (START, -START):
        trained = Trained("Keras SGD")
        trained.weight.assign(start)
        decayed, _ = trained.rewritten(weight_decay=0.125, formula=formula)
        decayed(tf.zeros(START.shape, tf.float64))
        lost = 0.125 * (np.sign(start) if start.sum() > 0 else start)
        np.testing.assert_allclose(trained.weight, start - lost, rtol=1e-14)


class Nested(tf.Module):
    """A weight that is updated by hand, in a body of some kind."""

    def __init__(self, nest):
        self.w = tf.Variable(START, name="w")
        self.step = tf.function(lambda x: NESTS[nest](self.update, x))

    def update(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(x * self.w)
        self.w.assign_sub(LEARNING_RATE * tape.gradient(loss, self.w))


def accumulating(update, x):
    tf.cond(x[0, 0] > 0, lambda: update(x), lambda: None)


def looping(update, x):
    for _ in tf.range(3):
        update(x)


def scanning(update, x):
    for _ in tf.data.Dataset.range(3):
        update(x)


NESTS = {
    "flat": lambda update, x: update(x),
    "call": lambda update, x: tf.function(update)(x),
    "compiled": lambda update, x: tf.function(update, jit_compile=True)(x),
    "branch": accumulating,
    "loop": looping,
    "dataset": scanning,
}


@pytest.mark.parametrize("nest", NESTS)
def test_the_counter_counts_updates(nest):
    """In a branch that not every run takes, in each turn of a loop, in what a call compiles."""
    net = Nested(nest)
    policy = {"version": 1, "rules": [{"weight_decay": {"schedule": "linear", **SCHEDULES["linear"]}}]}
    decayed = graphwd.rewrite(net.step, policy)
    exact, t = START, 0
    for gradient in gradients(20, "float64"):
        decayed(tf.constant(gradient))
        turns = {"branch": int(gradient[0, 0] > 0), "loop": 3, "dataset": 3}.get(nest, 1)
        for _ in range(turns):
            exact = (exact - LEARNING_RATE * gradient) * (1 - BY_HAND["linear"](t))
            t += 1
    np.testing.assert_allclose(net.w, exact, rtol=1e-12)
    assert graphwd.state(decayed).steps.numpy() == t


@pytest.mark.parametrize("nest", [nest for nest in NESTS if nest != "dataset"])
def test_verified_in_every_nest(nest):
    net = Nested(nest)
    policy = {"version": 1, "rules": [{"weight_decay": {"schedule": "linear", **SCHEDULES["linear"]}}]}
    decayed = graphwd.rewrite(net.step, policy)
    found = graphwd.verify(net.step, decayed, policy, tf.constant(np.abs(START)), tolerance=16)
    assert (found.ok, [each.verdict.value for each in found.variables if each.decayed]) == (True, ["right"])
    assert graphwd.state(decayed).steps.numpy() == 0


def test_interrupted_and_resumed_to_the_bit(tmp_path):
    rule = {"weight_decay": {"schedule": "cosine", **SCHEDULES["cosine"]}, "tunable": "body", "formula": "l2_sp"}

    def fresh():
        trained = Trained("by hand")
        decayed, _ = trained.rewritten(**rule)
        state = graphwd.state(decayed)
        decayed.get_concrete_function()  # what makes the counter and keeps the first weight
        return trained, decayed, state, tf.train.Checkpoint(decay=state, w=trained.weight)

    data = gradients(40, "float64")
    whole, decayed, state, _ = fresh()
    state.rates["body"].assign(0.75)
    for gradient in data:
        decayed(tf.constant(gradient))
    half, decayed, state, checkpoint = fresh()
    state.rates["body"].assign(0.75)
    for gradient in data[:20]:
        decayed(tf.constant(gradient))
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    resumed, decayed, state, checkpoint = fresh()
    checkpoint.restore(path).assert_consumed()
    assert state.steps.numpy() == 20
    for gradient in data[20:]:
        decayed(tf.constant(gradient))
    np.testing.assert_array_equal(resumed.weight, whole.weight)
    assert not np.array_equal(half.weight, whole.weight)


def test_two_optimizers_apart_need_counters_of_their_own():
    a, b = tf.Variable(START, name="a"), tf.Variable(START, name="b")

    @tf.function(input_signature=[tf.TensorSpec([], tf.bool), tf.TensorSpec([], tf.bool)])
    def step(first, second):
        for flag, weight in ((first, a), (second, b)):

            def update(weight=weight):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(weight**2)
                weight.assign_sub(0.25 * tape.gradient(loss, weight))

            tf.cond(flag, update, lambda: None)

    policy = {"version": 1, "rules": [{"weight_decay": {"schedule": "linear", **SCHEDULES["linear"]}}]}
    with pytest.raises(graphwd.PlanError, match="'a' and 'b' are updated apart from each other"):
        graphwd.rewrite(step, policy)(tf.constant(True), tf.constant(True))


def test_a_schedule_costs_a_few_scalar_nodes_a_body_and_a_constant_rate_nothing():
    weights = [tf.Variable(START, name=f"w{i}") for i in range(20)]

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(w**2) for w in weights])
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.25 * gradient)

    def added(rule):
        decayed = graphwd.rewrite(step.get_concrete_function(), {"version": 1, "rules": [rule]})
        before = len(step.get_concrete_function().function_def.node_def)
        return len(decayed.function_def.node_def) - before

    constant = added({"weight_decay": 0.1})
    assert constant == 3 * 20 + 1  # read, product, write of each; and the constant once
    schedule = {"weight_decay": {"schedule": "cosine", **SCHEDULES["cosine"]}}
    # Of a cosine with a warm-up, and of the rounding of the factor made of its rate; scalars all.
    assert added(schedule) - constant <= 26 + 11


def test_the_rate_of_adamw_is_computed_once_for_all_variables():
    weights = [keras.Variable(START.astype("float32"), name=f"w{i}") for i in range(20)]
    optimizer = keras.optimizers.Adam(0.25)  # reads its learning rate anew for each
    optimizer.build(weights)

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(w.value**2) for w in weights])
        optimizer.apply_gradients(list(zip(tape.gradient(loss, [w.value for w in weights]), weights, strict=True)))

    original = step.get_concrete_function()
    policy = {"version": 1, "rules": [{"weight_decay": 0.1, "semantics": "adamw"}]}
    decayed = graphwd.rewrite(original, policy)
    added = len(decayed.function_def.node_def) - len(original.function_def.node_def)
    assert added == 3 * 20 + 32  # read, product, write of each; the scalars once


@pytest.mark.parametrize("where", ["body", "function"])
def test_a_learning_rate_that_is_set_between_two_updates_is_read_for_each(where):
    rate = tf.Variable(0.25, trainable=False, name="rate")
    first, second = (tf.Variable([1.0, 2.0], name=name) for name in ("first", "second"))

    def halve():
        rate.assign(0.5 * rate)

    change = tf.function(halve) if where == "function" else halve

    @tf.function
    def step():
        with tf.GradientTape(persistent=True) as tape:
            losses = [tf.reduce_sum(weight) for weight in (first, second)]
        first.assign_sub(rate * tape.gradient(losses[0], first))
        change()
        second.assign_sub(rate * tape.gradient(losses[1], second))

    rule = {"weight_decay": 0.5, "semantics": "adamw", "learning_rate": "rate"}
    graphwd.with_weight_decay({"version": 1, "rules": [rule]})(step)()
    np.testing.assert_allclose(first, np.array([1.0, 2.0]) * (1 - 0.25 * 0.5) - 0.25, rtol=1e-6)
    np.testing.assert_allclose(second, np.array([1.0, 2.0]) * (1 - 0.125 * 0.5) - 0.125, rtol=1e-6)


@pytest.mark.parametrize("assigned", [False, True])
@pytest.mark.parametrize("order", ["after", "before"])
def test_a_formula_that_does_not_use_the_weight_loses_no_update(order, assigned):
    """The decay waits for the update by a read; what does not use that read must wait all the same."""
    w = tf.Variable(START, name="w")

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w)
        gradient = tape.gradient(loss, w)
        if assigned:
            w.assign(w - 0.25 * gradient)
        else:
            w.assign_sub(0.25 * gradient)

    formulas = {
        "before": (lambda before: before, START),
        "initial": (lambda initial: 2 * initial, 2 * START),
        "update": (lambda weight, update: update + 0 * update, np.full_like(START, 0.25)),
        "constant": (lambda weight: tf.ones_like(weight), np.ones_like(START)),
    }
    for formula, lost in formulas.values():
        w.assign(START)
        policy = {"version": 1, "rules": [{"weight_decay": 0.125, "order": order, "formula": formula}]}
        decayed = graphwd.rewrite(step, policy)
        decayed()
        np.testing.assert_allclose(w, START - 0.25 - 0.125 * lost, rtol=1e-14)


def test_a_formula_of_another_shape_is_refused():
    trained = Trained("by hand")
    for formula, message in (
        (tf.reduce_sum, r"the formula 'reduce_sum' takes"),
        (lambda weight: tf.reduce_sum(weight), r"returns the shape \(\) for a weight of the shape \(2, 3\)"),
        (lambda weight: weight[:1], r"returns the shape \(1, 3\) for a weight"),
        (lambda weight: 1 / 0, "fails on tensors of float64: ZeroDivisionError"),
        (lambda weight: tf.cast(weight, tf.int32), "fails on tensors of float64: ValueError"),
    ):
        with pytest.raises(graphwd.GraphwdError, match=message):
            trained.rewritten(weight_decay=0.125, formula=formula)[0].get_concrete_function()


def test_a_variable_of_keras_as_the_rate():
    trained, rate = Trained("Keras SGD"), keras.Variable(0.25)
    decayed, _ = trained.rewritten(weight_decay=rate)
    assert trained.error(decayed, "after", lambda _: 0.25, steps=3) < 1e-12
    rate.assign(0.0)
    before = trained.weight.numpy()
    decayed(tf.zeros(START.shape, tf.float64))
    np.testing.assert_array_equal(trained.weight, before)


def phases(weights):
    """A step that updates the weight that it is asked for, in a trace each."""

    @tf.function
    def step(which):
        weight = weights[which]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight)
        weight.assign_sub(0.25 * tape.gradient(loss, weight))

    return step


def test_a_later_trace_may_need_a_variable_of_its_own():
    weights = [tf.Variable(START, name=name) for name in "ab"]
    rule = {"weight_decay": 0.125, "formula": "l2_sp"}
    rules = [{"name": name, **rule, "optional": True} for name in "ab"]
    decayed = graphwd.rewrite(phases(weights), {"version": 1, "rules": rules})
    for which in (0, 1, 0):
        decayed(which)
    once, twice = START - 0.25 * 0.875, START - 0.25 * (0.875 + 0.875**2)
    np.testing.assert_allclose(weights[0], twice, rtol=1e-14)
    np.testing.assert_allclose(weights[1], once, rtol=1e-14)


def test_one_counter_does_not_count_for_updates_that_exclude_each_other():
    weights = [tf.Variable(START, name=name) for name in "ab"]
    rules = [{"name": n, "weight_decay": {"schedule": "linear", **SCHEDULES["linear"]}, "optional": True} for n in "ab"]
    policy = {"version": 1, "rules": rules}
    decayed = graphwd.rewrite(phases(weights), policy)
    decayed(0)
    with pytest.raises(
        graphwd.PlanError, match=r"'?a'? and '?b'? are updated apart from each other, at different traces"
    ):
        decayed(1)
    step = phases(weights)

    @tf.function(input_signature=[tf.TensorSpec([], tf.bool)])
    def either(first):
        tf.cond(first, lambda: step(0), lambda: step(1))

    with pytest.raises(graphwd.PlanError, match="'a' and 'b' are updated apart from each other"):
        graphwd.rewrite(either, policy)(tf.constant(True))


@pytest.mark.parametrize("rate", ["schedule", "tunable"])
@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_touched_rows_of_every_dtype(dtype, meaning, rate):
    """Only the rows of a step, at its rate; a step at a time, so that errors do not add up."""
    table = tf.Variable(tf.cast(np.linspace(-1.5, 2, 24).reshape(8, 3), dtype), name="table")

    @tf.function(input_signature=[tf.TensorSpec([None, 3], dtype), tf.TensorSpec([None], tf.int32)])
    def step(gradient, rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, rows) * gradient)
        slices = tape.gradient(loss, table)
        table.scatter_sub(tf.IndexedSlices(tf.cast(LEARNING_RATE, dtype) * slices.values, slices.indices))

    given = {"schedule": "linear", **SCHEDULES["linear"]} if rate == "schedule" else 0.125
    rule = {"weight_decay": given, "sparse": "touched", **FIELDS[meaning]}
    decayed = graphwd.rewrite(step, {"version": 1, "rules": [rule | ({} if rate == "schedule" else {"tunable": "r"})]})
    rate_at = BY_HAND["linear"] if rate == "schedule" else lambda t: 0.125 / (1 + t)
    number = tf.as_dtype(dtype).as_numpy_dtype
    epsilon = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}[dtype]
    random = np.random.default_rng(6)
    for t in range(40):
        rows = random.choice(8, 3, replace=False)
        gradient = random.normal(size=(3, 3)).astype(number)
        before = table.numpy().astype(np.float64)
        if rate == "tunable":
            graphwd.state(decayed).rates["r"].assign(rate_at(t))
        decayed(tf.constant(gradient), tf.constant(rows, tf.int32))
        expected, g = before.copy(), gradient.astype(np.float64)
        lost = rate_at(t) * before[rows]
        if meaning == "coupled":
            expected[rows] -= LEARNING_RATE * (g + lost)
        elif meaning == "after":
            expected[rows] = (before[rows] - LEARNING_RATE * g) * (1 - rate_at(t))
        else:
            expected[rows] -= LEARNING_RATE * g + (LEARNING_RATE * lost if meaning == "before-lr" else lost)
        scale = np.maximum(np.abs(before), np.abs(expected)) + LEARNING_RATE * 4
        assert (np.abs(table.numpy().astype(np.float64) - expected) <= 2 * epsilon * scale).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_one_function_called_for_many_variables(jit_compile):
    """The counter counts the step once, however often the function that updates is called; each rate is its own."""
    weights = [tf.Variable(START * (1 + i), name=f"w{i}") for i in range(6)]

    @tf.function(jit_compile=jit_compile)
    def update(handle, gradient):
        tf.raw_ops.AssignSubVariableOp(resource=handle, value=LEARNING_RATE * gradient)

    @tf.function(input_signature=[tf.TensorSpec(START.shape, tf.float64)])
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(x * w) for w in weights])
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            update(weight.handle, gradient)

    linear, cosine = ({"schedule": name, **SCHEDULES[name]} for name in ("linear", "cosine"))
    rules = [
        {"name": "w[01]", "weight_decay": linear},
        {"name": "w[23]", "weight_decay": cosine, "formula": "l1"},
        {"name": "w4", "weight_decay": 0.125, "tunable": "four"},
        {"weight_decay": 0},
    ]
    policy = {"version": 1, "rules": rules}
    decayed = graphwd.rewrite(step, policy)
    exact = [START * (1 + i) for i in range(6)]
    for t, gradient in enumerate(gradients(30, "float64")):
        decayed(tf.constant(gradient))
        exact = [w - LEARNING_RATE * gradient for w in exact]
        for i in range(6):
            rate = (BY_HAND["linear"](t), BY_HAND["cosine"](t), 0.125, 0.0)[(0, 0, 1, 1, 2, 3)[i]]
            exact[i] = exact[i] - rate * (np.sign(exact[i]) if i in (2, 3) else exact[i])
    for weight, expected in zip(weights, exact, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-12)
    assert graphwd.state(decayed).steps.numpy() == 30
    assert graphwd.verify(step, decayed, policy, tf.constant(START)).ok


def constant_after(value):
    """A function of the step that is 0.125 for long."""
    return lambda step: tf.where(step < 5000, tf.constant(0.125, tf.float64), tf.constant(value, tf.float64))


PIECES = {"schedule": "piecewise", "boundaries": [100, 4000], "values": [0.125, 0.0625, 0.03125]}
COSINE = {"schedule": "cosine", "from": 0.125, "to": 0.25, "steps": 5000, "warmup_steps": 700}
KERAS_PIECES = keras.optimizers.schedules.PiecewiseConstantDecay


@pytest.mark.parametrize("kind", ["Keras SGD", "Keras Adam", "by hand"])
@pytest.mark.parametrize(
    ("written", "asked"),
    [
        (PIECES, PIECES | {"boundaries": [101, 4000]}),
        (PIECES, PIECES | {"boundaries": [100, 4001]}),
        (PIECES, PIECES | {"boundaries": [100, 3999]}),
        (PIECES, PIECES | {"values": [0.125, 0.0625, 0.03125 * 1.001]}),
        (COSINE, COSINE | {"to": 0.251}),
        (COSINE, COSINE | {"steps": 5001}),
        (COSINE, COSINE | {"warmup_steps": 701}),
        (constant_after(0.125), constant_after(0.25)),
        (KERAS_PIECES([77, 900], [0.125, 0.25, 0.5]), KERAS_PIECES([77, 901], [0.125, 0.25, 0.5])),
    ],
)
def test_verification_sees_a_schedule_that_differs_later(kind, written, asked):
    trained = Trained(kind)
    decayed, right = trained.rewritten(weight_decay=written)
    _, wrong = trained.rewritten(weight_decay=asked)
    decayed(tf.constant(START))
    before = [variable.numpy() for variable in decayed.get_concrete_function().variables]
    found = graphwd.verify(trained.step, decayed, wrong, tf.constant(START))
    assert [each.name for each in found.variables if each.verdict.value == "wrong"] == ["w"]
    assert graphwd.verify(trained.step, decayed, right, tf.constant(START)).ok
    after = [variable.numpy() for variable in decayed.get_concrete_function().variables]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (graphwd.state(decayed).steps is None) == trained.counts
    assert trained.counts or graphwd.state(decayed).steps.numpy() == 1


def test_verification_goes_no_further_than_the_step_itself():
    w, count = tf.Variable(START, name="w"), tf.Variable(0, dtype=tf.int32, trainable=False, name="count")

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w * w)
        gradient = tape.gradient(loss, w)
        tf.debugging.assert_less(count, 50, "the data ends")
        w.assign_sub(0.25 * gradient)
        count.assign_add(1)

    policy = {"version": 1, "rules": [{"weight_decay": PIECES}]}
    decayed = graphwd.rewrite(step, policy)
    assert graphwd.state(decayed).steps is None
    assert graphwd.verify(step, decayed, policy).ok
