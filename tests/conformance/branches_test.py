"""Rates that change where updates lie in different bodies: beside a branch, in each branch, in a loop and after it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd

START = np.array([1.0, -2.0, 3.0])
GRADIENT = np.array([0.5, -0.25, 0.125])
LEARNING_RATE = 0.125
CALLS = 6


def loss_gradient(weight):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weight * tf.constant(GRADIENT))
    return tape.gradient(loss, weight)


def update(weight):
    weight.assign_sub(LEARNING_RATE * loss_gradient(weight))


def cond_then_update(w, v, n):
    if n % 2 == 0:
        update(w)
    update(v)


def update_then_cond(w, v, n):
    update(v)
    if n % 2 == 0:
        update(w)


def while_then_update(w, v, n):
    for _ in tf.range(n % 3):
        update(w)
    update(v)


def update_then_while(w, v, n):
    update(v)
    for _ in tf.range(n % 3):
        update(w)


def cond_beside_cond(w, v, n):
    if n % 2 == 0:
        update(w)
    if n % 3 == 0:
        update(v)


def nested(w, v, n):
    if n % 2 == 0:
        update(v)
        for _ in tf.range(2):
            if n % 3 == 0:
                update(w)


def switch_then_update(w, v, n):
    branches = [lambda: None, lambda: update(w), lambda: None]
    tf.switch_case(tf.cast(n % 3, tf.int32), branches)
    update(v)


PLACES = {  # and how often a call updates w and v
    cond_then_update: lambda n: (n % 2 == 0, 1),
    update_then_cond: lambda n: (n % 2 == 0, 1),
    while_then_update: lambda n: (n % 3, 1),
    update_then_while: lambda n: (n % 3, 1),
    cond_beside_cond: lambda n: (n % 2 == 0, n % 3 == 0),
    nested: lambda n: (2 * (n % 6 == 0), n % 2 == 0),
    switch_then_update: lambda n: (n % 3 == 1, 1),
}


class Steps:
    """Two weights and the calls that a step was given, in it."""

    def __init__(self, places, *, jit_compile=False):
        self.w, self.v = (tf.Variable(START * k, name=name) for k, name in ((1, "w"), (2, "v")))
        self.calls = tf.Variable(0, trainable=False, name="calls")

        @tf.function(input_signature=[], jit_compile=jit_compile)
        def step():
            places(self.w, self.v, self.calls)
            self.calls.assign(self.calls + 2 - 1)

        self.step = step


def decayed(before, rate, penalty, initial):
    after = before - LEARNING_RATE * GRADIENT
    return after - rate * (after - initial if penalty == "l2_sp" else after)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", ["tunable", "variable", "l2_sp"])
@pytest.mark.parametrize("places", PLACES, ids=lambda places: places.__name__)
def test_an_update_in_a_branch_or_a_loop_beside_one_outside(places, kind, jit_compile):
    """What is brought into one branch goes into all of them, also where the body itself has a decay."""
    steps = Steps(places, jit_compile=jit_compile)
    rate = tf.Variable(0.25, dtype=tf.float64)
    rule = {"tunable": {"weight_decay": 0.25, "tunable": "x"}, "variable": {"weight_decay": rate}}
    policy = {"version": 1, "rules": [rule.get(kind, {"weight_decay": 0.25, "formula": kind})]}
    step = graphwd.rewrite(steps.step, policy)
    exact = [START, 2 * START]
    for n in range(CALLS):
        step()
        if kind == "tunable":
            graphwd.state(step).rates["x"].assign(0.125)
        for k, times in enumerate(PLACES[places](n)):
            for _ in range(times):
                exact[k] = decayed(exact[k], 0.125 if kind == "tunable" and n else 0.25, kind, (k + 1) * START)
        for weight, expected in zip((steps.w, steps.v), exact, strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-13)
    assert graphwd.verify(steps.step, step, policy, tolerance=16).ok


@pytest.mark.parametrize("rule", [{"tunable": "x"}, {"formula": "l2_sp"}], ids=["tunable", "l2_sp"])
def test_two_networks_under_fit_of_which_one_trains_every_other_step(rule):
    class Networks(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.one, self.other = (keras.layers.Dense(2, name=name) for name in ("one", "other"))

        def build(self, shape):
            self.one.build(shape)
            self.other.build(shape)
            self.calls = self.add_weight(shape=(), dtype="int32", trainable=False, name="calls")
            self.built = True

        def call(self, x):
            return self.one(x) + self.other(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x) - y) ** 2)
            kernels = [self.one.kernel.value, self.other.kernel.value]
            one, other = tape.gradient(loss, kernels)
            tf.cond(
                self.calls.value % 2 == 0,
                lambda: kernels[0].assign_sub(0.125 * one),
                lambda: tf.identity(kernels[0]),
            )
            kernels[1].assign_sub(0.125 * other)
            self.calls.assign(self.calls + 2 - 1)
            return {"loss": loss}

    keras.utils.set_random_seed(0)
    model = Networks()
    model.build((None, 3))
    model.compile("sgd", run_eagerly=False)
    rules = [{"name": "*/kernel", "weight_decay": 0.25, **rule}, {"weight_decay": 0}]
    initial = [layer.kernel.numpy().astype(np.float64) for layer in (model.one, model.other)]
    graphwd.keras.attach(model, {"version": 1, "rules": rules})
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20, 3)).astype("f4"), random.normal(size=(20, 2)).astype("f4")
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    exact = list(initial)
    for n in range(5):
        xs, ys = (each[4 * n : 4 * n + 4].astype(np.float64) for each in (x, y))
        gradient = 2 * xs.T @ (xs @ (exact[0] + exact[1]) - ys) / ys.size
        for k in range(2) if n % 2 == 0 else (1,):
            after = exact[k] - 0.125 * gradient
            exact[k] = after - 0.25 * (after - initial[k] if "formula" in rule else after)
    for layer, expected in zip((model.one, model.other), exact, strict=True):
        np.testing.assert_allclose(layer.kernel, expected, atol=1e-5)


LINEAR = {"schedule": "linear", "from": 0.0, "to": 0.8, "steps": 8}


def linear_at(t):
    return 0.8 * min(t / 8, 1)


class Counted:
    """A weight that a step updates in some branches of a conditional, and counters that it counts in some of them."""

    def __init__(self, updates, counts):
        """Makes the step.

        Args:
            updates: for each branch whether it updates the weight.
            counts: for each branch the number of its counter, or None.
        """
        self.w = tf.Variable(START, name="w")
        self.calls = tf.Variable(0, trainable=False, name="calls")
        numbers = sorted({number for number in counts if number is not None})
        self.counters = [tf.Variable(0, dtype=tf.int64, trainable=False, name=f"c{number}") for number in numbers]

        def branch(updating, number):
            def run():
                if updating:
                    update(self.w)
                if number is not None:
                    self.counters[number].assign_add(1)
                return 0

            return run

        branches = [branch(*each) for each in zip(updates, counts, strict=True)]

        @tf.function(input_signature=[])
        def step():
            which = self.calls % len(branches)
            if len(branches) == 2:
                tf.cond(which == 0, *branches)
            else:
                tf.switch_case(which, branches)
            self.calls.assign(self.calls + 2 - 1)

        self.step = step


@pytest.mark.parametrize(
    ("updates", "counts", "used"),
    [
        ((1, 1), (0, 1), False),  # each branch by its own counter: neither counts all updates
        ((1, 1), (0, None), False),
        ((1, 1), (None, 0), False),
        ((1, 1), (0, 0), True),
        ((1, 0), (0, 0), False),  # which counts more than the updates
        ((1, 0), (0, 1), True),
        ((1, 1, 0), (0, 1, None), False),
        ((1, 0, 1), (0, None, None), False),
        ((1, 0, 1), (0, 1, 0), True),
        ((1, 1, 1), (0, 0, 1), False),
        ((0, 1, 1), (0, 0, 0), False),
    ],
)
def test_a_counter_of_the_step_is_used_where_it_counts_every_update(updates, counts, used):
    counted = Counted(updates, counts)
    policy = {"version": 1, "rules": [{"weight_decay": LINEAR}]}
    step = graphwd.rewrite(counted.step, policy)
    exact, t = START, 0
    for n in range(4 * len(updates)):
        step()
        if updates[n % len(updates)]:
            exact, t = decayed(exact, linear_at(t), "l2", None), t + 1
        np.testing.assert_allclose(counted.w, exact, rtol=1e-13, err_msg=str(n))
    assert (graphwd.state(step).steps is None) == used
    assert used or graphwd.state(step).steps.numpy() == t
    assert graphwd.verify(counted.step, step, policy).ok


@pytest.mark.parametrize("shared", [False, True])
def test_two_optimizers_for_one_weight_and_one_in_both_branches(shared):
    keras.backend.set_floatx("float64")
    target = keras.Variable(START, name="w")
    first = keras.optimizers.SGD(LEARNING_RATE, name="first")
    second = first if shared else keras.optimizers.SGD(LEARNING_RATE, name="second")
    for optimizer in {id(each): each for each in (first, second)}.values():
        optimizer.build([target])
    keras.backend.set_floatx("float32")
    calls = tf.Variable(0, trainable=False, name="calls")

    @tf.function(input_signature=[])
    def step():
        if calls < 3:
            first.apply([loss_gradient(target.value)], [target])
        else:
            second.apply([loss_gradient(target.value)], [target])
        calls.assign(calls + 2 - 1)

    policy = {"version": 1, "rules": [{"weight_decay": LINEAR}]}
    rewritten = graphwd.rewrite(step, policy)
    exact = START
    for t in range(8):
        rewritten()
        exact = decayed(exact, linear_at(t), "l2", None)
    np.testing.assert_allclose(target.value, exact, rtol=1e-13)
    assert (graphwd.state(rewritten).steps is None) == shared
    assert graphwd.verify(step, rewritten, policy).ok
    if not shared:
        rules = [{"weight_decay": LINEAR, "step": "first/*"}]
        assert "names none of the variables that count up by one whenever its update is done (none)" in str(
            graphwd.plan(step, {"version": 1, "rules": rules}).problems
        )


def test_a_counter_for_each_trace_is_refused():
    w = tf.Variable(START, name="w")
    counters = {name: tf.Variable(0, dtype=tf.int64, trainable=False, name=name) for name in ("c", "d")}

    @tf.function
    def step(which):
        update(w)
        counters[which].assign_add(1)

    rewritten = graphwd.rewrite(step, {"version": 1, "rules": [{"weight_decay": LINEAR}]})
    rewritten("c")
    message = "the schedule of 'w' goes by 'c' in one trace of the step, and by 'd' in another"
    with pytest.raises(graphwd.PlanError, match=message):
        rewritten("d")
    rewritten("c")


@pytest.mark.parametrize("places", [cond_then_update, update_then_while, cond_beside_cond], ids=lambda p: p.__name__)
def test_one_weight_that_is_updated_apart_has_no_counter(places):
    w, calls = tf.Variable(START, name="w"), tf.Variable(0, trainable=False, name="calls")

    @tf.function(input_signature=[])
    def step():
        places(w, w, calls)
        calls.assign_add(1)

    policy = {"version": 1, "rules": [{"weight_decay": LINEAR, "updates": "each"}]}
    (problem,) = graphwd.plan(step, policy).problems
    assert problem.startswith("'w' is updated at ")
    assert problem.endswith("a tf.Variable that the training sets")


def test_one_callback_for_two_models_of_the_same_names():
    def model():
        net = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="hidden")], name="net")
        net.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
        return net

    rules = [{"name": "*/kernel", "weight_decay": LINEAR}, {"weight_decay": 0}]
    callback = graphwd.keras.WeightDecay({"version": 1, "rules": rules})
    x, y = np.zeros((4, 3), "f4"), np.zeros((4, 2), "f4")
    model().fit(x, y, verbose=0, callbacks=[callback])
    with pytest.raises(graphwd.PlanError, match=r"make one WeightDecay, or one decorated function, for each model"):
        model().fit(x, y, verbose=0, callbacks=[callback])


@pytest.mark.parametrize(
    ("first", "each", "masked"), [(1, False, False), (0, True, False), (0, False, True)], ids=["from 1", "each", "mask"]
)
def test_what_t_is(first, each, masked):
    """A counter is read as it is; updates of one body share a t; a masked update is an update."""
    w, count = tf.Variable(START, name="w"), tf.Variable(first, dtype=tf.int64, trainable=False, name="count")

    @tf.function(input_signature=[tf.TensorSpec([], tf.bool)])
    def step(good):
        gradient = loss_gradient(w)
        w.assign_sub(LEARNING_RATE * (tf.where(good, gradient, 0) if masked else gradient))
        if each:
            update(w)
        count.assign_add(1)

    rewritten = graphwd.rewrite(step, {"version": 1, "rules": [{"weight_decay": LINEAR, "updates": "each"}]})
    exact = START
    for call in range(4):
        good = call % 2 == 0 or not masked
        rewritten(tf.constant(good))
        rate = linear_at(call + first)
        exact = (exact - LEARNING_RATE * GRADIENT * good) * (1 - rate)
        if each:
            exact = decayed(exact, rate, "l2", None)
    np.testing.assert_allclose(w, exact, rtol=1e-13)
    assert graphwd.state(rewritten).steps is None
