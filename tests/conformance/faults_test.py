"""Forms of step whose decay once was wrong without a word: right now, or refused with the word that makes them right.

Each is held against the undecayed step run whole from the same state; no plan and no verifier is asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd

RATE = 0.1
LEARNING_RATE = 0.01
RANDOM = np.random.default_rng(5)
X = tf.constant(RANDOM.normal(size=(4, 3)), tf.float32)
Y = tf.constant(RANDOM.normal(size=(4, 2)), tf.float32)
WEIGHT = RANDOM.normal(size=(3, 2)).astype(np.float32)
TOLERANCE = 1e-6


@dataclass
class Result:
    """What one run of a step did, undecayed and decayed, each variable by its number."""

    start: list[np.ndarray]
    plain: list[np.ndarray]
    decayed: list[np.ndarray]
    plain_output: object
    output: object

    def check(self, weight, others=True):
        """Checks the first variable's value; all else must be what the undecayed step makes."""
        np.testing.assert_allclose(self.decayed[0], weight, rtol=0, atol=TOLERANCE)
        if others:
            for plain, decayed in zip(self.plain[1:], self.decayed[1:], strict=True):
                np.testing.assert_array_equal(plain, decayed)
        tf.nest.map_structure(np.testing.assert_array_equal, self.plain_output, self.output)

    def after(self):
        """The first variable decayed after its update."""
        return (1 - RATE) * self.plain[0]

    def before(self, factor=1.0):
        """The first variable decayed before an update that adds."""
        return self.plain[0] - factor * RATE * self.start[0]


def policy(*rules, **top):
    """The rules given, or one for all variables."""
    return {"version": 1, "rules": list(rules), **top}


def rule(semantics="decoupled", **fields):
    return {"weight_decay": RATE, "semantics": semantics, **fields}


def run(step, variables, policy, *args):
    """Runs a Python step undecayed, then decayed, from the same state."""
    start = [variable.numpy() for variable in variables]

    def restore():
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)

    concrete = tf.function(step).get_concrete_function(*args)
    rewritten = graphwd.rewrite(concrete, policy)
    plain_output = concrete(*args)
    plain = [variable.numpy() for variable in variables]
    restore()
    output = rewritten(*args)
    decayed = [variable.numpy() for variable in variables]
    restore()
    return Result(start, plain, decayed, plain_output, output)


@pytest.fixture
def w():
    return tf.Variable(WEIGHT, name="w")


def loss_gradient(w, x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(x @ w))
    return tape.gradient(loss, w)


def step_of(optimizer, w):
    """A step of a Keras optimizer on one variable."""

    def step(x):
        optimizer.apply([loss_gradient(w.value, x)], [w])

    return step


def notes(step, policy, *args):
    return "\n".join(graphwd.plan(step, policy, *args).notes)


# --- Gradients that no name tells -------------------------------------------------------------------------------------


def by_hand(w, x):
    w.assign_sub(LEARNING_RATE * (2.0 * tf.transpose(x) @ (x @ w - Y)))


def of_a_branch(w, x):
    v = tf.identity(w)

    def there():
        with tf.GradientTape() as tape:
            tape.watch(v)
            loss = tf.reduce_sum(tf.square(x @ v))
        return tape.gradient(loss, v)

    w.assign_sub(LEARNING_RATE * tf.cond(x[0, 0] > -9, there, lambda: tf.zeros_like(v)))


def of_tf_gradients(w, x):
    v = w.read_value()
    (gradient,) = tf.gradients(tf.reduce_sum(tf.square(x @ v)), [v], name="mine")
    w.assign_sub(LEARNING_RATE * gradient)


def of_a_map(w, x):
    v = w.read_value()

    def example(row):
        with tf.GradientTape() as tape:
            tape.watch(v)
            loss = tf.reduce_sum(tf.square(row[None] @ v))
        return tape.gradient(loss, v)

    w.assign_sub(LEARNING_RATE * tf.reduce_mean(tf.map_fn(example, x), 0))


def of_a_function(w, x):
    inner = tf.function(lambda x: 2.0 * tf.transpose(x) @ (x @ w - Y))
    w.assign_sub(LEARNING_RATE * inner(x))


ORIGINS = [by_hand, of_a_branch, of_tf_gradients, of_a_map, of_a_function]


@pytest.mark.parametrize("form", ORIGINS)
def test_before_is_taken_at_the_undecayed_weight_whatever_names_say(w, form):
    result = run(lambda x: form(w, x), [w], policy(rule("tfa")), X)
    result.check(result.before())
    assert np.abs(result.plain[0] - result.start[0]).max() > 1e-3


@pytest.mark.parametrize("form", ORIGINS)
def test_after_is_right_whatever_names_say(w, form):
    result = run(lambda x: form(w, x), [w], policy(rule()), X)
    result.check(result.after())


@pytest.mark.parametrize("form", ORIGINS)
def test_adamw_asks_for_the_learning_rate_and_is_right_with_it(w, form):
    def step(x):
        form(w, x)

    with pytest.raises(graphwd.PlanError, match="learning_rate: ") as refused:
        run(step, [w], policy(rule("adamw")), X)
    name = re.search("with (?:one of )?'([^']*)'", str(refused.value))[1]
    result = run(step, [w], policy(rule("adamw", learning_rate=name)), X)
    result.check(result.before(LEARNING_RATE))


def test_before_with_an_optimizer_of_keras_and_a_gradient_by_hand():
    w = keras.Variable(WEIGHT, name="w")
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build([w])

    def step(x):
        optimizer.apply([2.0 * tf.transpose(x) @ (x @ w.value - Y)], [w])

    state = [w.value, *(variable.value for variable in optimizer.variables)]
    result = run(step, state, policy(rule("tfa")), X)
    result.check(result.before())
    result = run(step, state, policy(rule("adamw")), X)
    result.check(result.before(LEARNING_RATE))


def test_a_wrong_learning_rate_or_several_are_refused(w):
    def step(x):
        by_hand(w, x)

    with pytest.raises(graphwd.PlanError, match=r"'learning_rate: mul\*' names several"):
        run(step, [w], policy(rule("adamw", learning_rate="mul*")), X)
    with pytest.raises(graphwd.PlanError, match="'learning_rate: matmul_1' names nothing"):
        run(step, [w], policy(rule("adamw", learning_rate="matmul_1")), X)


def test_l2_of_a_gradient_that_no_name_tells_takes_gradient(w):
    def step(x):
        by_hand(w, x)

    with pytest.raises(graphwd.PlanError, match="write 'gradient: GLOB'"):
        run(step, [w], policy(rule("l2")), X)
    result = run(step, [w], policy(rule("l2", gradient="matmul_1")), X)
    result.check(result.before(LEARNING_RATE))


# --- Reads of the weight that others share ----------------------------------------------------------------------------


def test_a_norm_that_clips_two_gradients_is_that_of_the_undecayed_weight():
    kernel, bias = tf.Variable(2.0, name="kernel"), tf.Variable(1.0, name="bias")

    def step():
        with tf.GradientTape() as tape:
            loss = 3.0 * kernel + 2.0 * bias
        for_kernel, for_bias = tape.gradient(loss, [kernel, bias])
        norm = tf.abs(kernel)
        clip = tf.minimum(1.0, 0.01 * norm / tf.abs(for_kernel))
        kernel.assign_sub(for_kernel * clip)
        bias.assign_sub(for_bias * clip)
        return norm

    result = run(step, [kernel, bias], policy(rule("tfa", name="kernel"), {"weight_decay": 0}))
    result.check(1.78)
    assert float(result.output) == 2.0
    np.testing.assert_allclose(result.decayed[1], 0.9866667, rtol=1e-6)


@pytest.mark.parametrize("kind", ["check_numerics", "assert"])
def test_a_guard_of_the_gradient_guards_the_decay_too(w, kind):
    def step(x):
        gradient = loss_gradient(w, x)
        if kind == "check_numerics":
            gradient = tf.debugging.check_numerics(gradient, "g")
        else:
            fine = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(gradient)), ["not finite"])
            with tf.control_dependencies([fine]):
                gradient = tf.identity(gradient)
        w.assign_sub(LEARNING_RATE * gradient)

    rewritten = graphwd.rewrite(tf.function(step).get_concrete_function(X), policy(rule("l2")))
    for _ in range(20):
        with pytest.raises(tf.errors.InvalidArgumentError):
            rewritten(X * np.nan)
        np.testing.assert_array_equal(w, WEIGHT)
    rewritten(X)
    gradient = 2 * X.numpy().T @ (X.numpy() @ WEIGHT)
    np.testing.assert_allclose(w, WEIGHT - LEARNING_RATE * (gradient + RATE * WEIGHT), rtol=0, atol=TOLERANCE)


# --- What is an update and what is not --------------------------------------------------------------------------------


def teacher(w, ema, _, x):
    fresh = w - LEARNING_RATE * loss_gradient(w, x)
    w.assign(fresh)
    ema.assign(0.9 * ema + 0.1 * fresh)


def copy_of_the_fresh(w, copy, _, x):
    fresh = w - LEARNING_RATE * loss_gradient(w, x)
    w.assign(fresh)
    copy.assign(fresh)


def teacher_of_a_read(w, ema, _, x):
    w.assign_sub(LEARNING_RATE * loss_gradient(w, x))
    ema.assign_sub(0.1 * (ema - w.read_value()))


def adam(w, m, v, x):
    gradient = loss_gradient(w, x)
    m.assign(0.9 * m + 0.1 * gradient)
    v.assign(0.99 * v + 0.01 * tf.square(gradient))
    w.assign_sub(0.1 * m / (tf.sqrt(v) + 1e-3))


def momentum_of_fresh_tensors(w, m, _, x):
    fresh = 0.9 * m + loss_gradient(w, x)
    m.assign(fresh)
    w.assign_sub(LEARNING_RATE * fresh)


def adagrad(w, total, _, x):
    gradient = loss_gradient(w, x)
    total.assign_add(gradient * gradient)
    w.assign_sub(0.1 * gradient / (tf.sqrt(total) + 1e-3))


def accumulated(w, total, _, x):
    gradient = loss_gradient(w, x)
    total.assign_add(gradient)
    w.assign_sub(LEARNING_RATE * total)


KEEPERS = [teacher, copy_of_the_fresh, teacher_of_a_read, adam, momentum_of_fresh_tensors, adagrad, accumulated]


@pytest.mark.parametrize("semantics", ["decoupled", "tfa"])
@pytest.mark.parametrize("form", KEEPERS)
def test_what_keeps_something_is_refused_and_left_alone_at_a_word(w, form, semantics):
    one, two = (tf.Variable(np.abs(WEIGHT) * 0.3, name="variable") for _ in range(2))

    def step(x):
        form(w, one, two, x)

    with pytest.raises(graphwd.PlanError, match="'not_updated: leave'") as refused:
        run(step, [w, one, two], policy(rule(semantics)), X)
    assert "'variable" in str(refused.value)
    assert "'w'" not in str(refused.value).partition(":\n")[0]
    result = run(step, [w, one, two], policy(rule(semantics), not_updated="leave"), X)
    average_of_a_decayed_weight = form is teacher_of_a_read
    result.check(result.after() if semantics == "decoupled" else result.before(), not average_of_a_decayed_weight)
    if average_of_a_decayed_weight:  # it follows the weight that is there when it reads
        np.testing.assert_allclose(result.decayed[1], 0.9 * result.start[1] + 0.1 * result.decayed[0], atol=TOLERANCE)


def summed(w, total, _):
    total.assign_add(w)


def sum_of_a_function(w, total, _):
    total.assign_add(tf.reduce_sum(w * w) * tf.ones_like(w))


def path_integral(w, total, step):
    gradient, old = step
    total.assign_add(gradient * (w - old))


def running_mean(w, total, _):
    total.assign_add((w - total) / 3.0)


@pytest.mark.parametrize("top", [{}, {"not_updated": "leave"}], ids=["error", "leave"])
@pytest.mark.parametrize("form", [summed, sum_of_a_function, path_integral, running_mean])
def test_a_weight_that_something_trainable_takes_up_is_a_weight(w, form, top):
    total = tf.Variable(tf.zeros_like(w), name="total")

    def step(x):
        gradient, old = loss_gradient(w, x), tf.identity(w)
        w.assign_sub(LEARNING_RATE * gradient)
        form(w, total, (gradient, old))

    named = policy({"name": "total", "weight_decay": 0}, rule(), **top)
    result = run(step, [w, total], named, X)
    result.check(result.after(), others=False)  # the other variable takes up the decayed weight


def test_a_statistic_of_gradients_is_no_weight(w):
    norm, mean = tf.Variable(0.0, name="norm"), tf.Variable(tf.zeros_like(w), name="mean")

    def step(x):
        gradient = loss_gradient(w, x)
        w.assign_sub(LEARNING_RATE * gradient)
        norm.assign(0.9 * norm + 0.1 * tf.norm(gradient))
        mean.assign(0.9 * mean + 0.1 * gradient)

    for top in ({}, {"not_updated": "leave"}):
        with pytest.raises(graphwd.PlanError, match="as a slot variable or a statistic does") as refused:
            run(step, [w, norm, mean], policy(rule(), **top), X)
        assert "'w'" not in str(refused.value)
    result = run(step, [w, norm, mean], policy({"name": "w", **rule()}, {"weight_decay": 0}), X)
    result.check(result.after())


def test_a_sum_of_gradients_that_is_decayed_is_noted(w):
    total = tf.Variable(tf.zeros_like(w), name="total")

    def step(x):
        gradient = loss_gradient(w, x)
        w.assign_sub(LEARNING_RATE * gradient)
        total.assign_add(gradient)

    assert "'total': it grows with its gradient" in notes(step, policy(rule()), X)


def test_a_number_is_no_gradient(w):
    velocity = tf.Variable(tf.zeros_like(w), trainable=False)

    def step(x):
        velocity.assign(0.9 * velocity + (1 - 0.9) * loss_gradient(w, x))
        w.assign_sub(LEARNING_RATE * velocity)

    with pytest.raises(graphwd.PlanError, match="first of all multiplied by 'mul_1/x'") as refused:
        run(step, [w, velocity], policy(rule("l2")), X)
    with pytest.raises(graphwd.PlanError, match="names 'mul_1/x', which is a number; there is"):
        run(step, [w, velocity], policy(rule("l2", gradient="mul_1/x")), X)
    name = re.search("its gradient '([^']*)'", str(refused.value))[1]
    result = run(step, [w, velocity], policy(rule("l2", gradient=name)), X)
    result.check(result.before((1 - 0.9) * LEARNING_RATE), others=False)


def test_an_ascent_and_an_assignment_from_the_value_before_it(w):
    """Sharpness-aware: l2 is of the weight at which the update starts, not of the perturbed one."""

    def step(x):
        gradient = loss_gradient(w, x)
        old = w.read_value()
        w.assign_add(0.05 * gradient)
        w.assign(old - LEARNING_RATE * loss_gradient(w, x))

    for semantics, factor in {"l2": LEARNING_RATE, "adamw": LEARNING_RATE, "tfa": 1.0}.items():
        result = run(step, [w], policy(rule(semantics, updates="last")), X)
        result.check(result.before(factor))
    result = run(step, [w], policy(rule(updates="last")), X)
    result.check(result.after())


def test_a_decay_within_the_update_is_noted(w):
    def step(x):
        w.assign(w - LEARNING_RATE * (loss_gradient(w, x) + 0.1 * w))

    assert "holds a decay already, and now two" in notes(step, policy(rule()), X)


def test_a_native_decay_that_a_rule_calls_0_is_noted_and_one_of_0_is_none():
    for native in (0.0, 0.5):
        w = keras.Variable(WEIGHT, name="w")
        optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=native)
        optimizer.build([w])
        step = step_of(optimizer, w)

        assert ("its rule says 0, but the step itself decays it" in notes(step, policy({"weight_decay": 0}), X)) == (
            native > 0
        )
        state = [w.value, *(variable.value for variable in optimizer.variables)]
        if native:
            with pytest.raises(graphwd.PlanError, match="'double_decay: allow'"):
                run(step, state, policy(rule()), X)
            result = run(step, state, policy(rule(double_decay="allow")), X)
        else:
            result = run(step, state, policy(rule()), X)
        result.check(result.after())


@pytest.mark.parametrize("place", ["branch", "loop"])
def test_one_update_of_several_in_a_branch_or_loop_is_noted(w, place):
    def branch(x):
        w.assign_sub(LEARNING_RATE * loss_gradient(w, x))
        if x[0, 0] > -9:
            w.assign_sub(LEARNING_RATE * loss_gradient(w, x))

    def loop(x):
        for _ in tf.range(5):
            w.assign_sub(LEARNING_RATE * loss_gradient(w, x))

    said = notes({"branch": branch, "loop": loop}[place], policy(rule(updates="last")), X)
    assert {"branch": "a run that does not take that branch", "loop": "decays in every turn"}[place] in said


def test_what_is_not_trainable_but_updated_from_a_gradient_is_noted(w):
    frozen = tf.Variable(WEIGHT, trainable=False, name="frozen")

    def step(x):
        with tf.GradientTape() as tape:
            value = frozen.read_value()
            tape.watch(value)
            loss = tf.reduce_sum(tf.square(x @ w @ tf.transpose(value)))
        mine, its = tape.gradient(loss, [w, value])
        w.assign_sub(LEARNING_RATE * mine)
        frozen.assign_sub(LEARNING_RATE * its)

    assert "'frozen' is not trainable, but" in notes(step, policy(rule()), X)
    result = run(step, [w, frozen], policy(rule()), X)
    result.check(result.after())


def test_an_update_that_a_mask_switches_off_is_noted(w):
    total, count = tf.Variable(WEIGHT * 0, trainable=False), tf.Variable(0, trainable=False)

    def step(x):
        total.assign_add(loss_gradient(w, x))
        count.assign_add(1)
        mask = tf.cast(tf.equal(count % 4, 0), tf.float32)
        w.assign_sub(LEARNING_RATE * total * mask)
        total.assign(total * (1 - mask))

    assert "which is 0 or 1, and happens at every run all the same" in notes(step, policy(rule()), X)


def test_a_pruning_mask_is_told_from_a_decay_at_a_word(w):
    mask = tf.constant(RANDOM.random((3, 2)) > 0.5, tf.float32)

    def step(x):
        w.assign_sub(LEARNING_RATE * loss_gradient(w, x))
        w.assign(w * mask)

    with pytest.raises(graphwd.PlanError, match="a mask, as in pruning"):
        run(step, [w], policy(rule()), X)
    result = run(step, [w], policy(rule(double_decay="allow")), X)
    result.check(result.after())


def test_rows_touched_by_an_update_of_all_rows_are_noted():
    w = keras.Variable(WEIGHT, name="w")
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build([w])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(w.value, [1, 2])))
        optimizer.apply([tape.gradient(loss, w.value)], [w])

    assert "writes all rows" in notes(step, policy(rule(sparse="touched")))


# --- Weights that read each other's gradients -------------------------------------------------------------------------


def of_both(w, other, wrt, x):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(wrt)
        loss = tf.reduce_sum(tf.square(x @ (w + 0.5 * other)))
    return tape.gradient(loss, wrt)


@pytest.mark.parametrize("origin", ["loop", "map"])
def test_a_weight_that_anothers_gradient_reads_is_no_slot_and_its_average_no_weight(w, origin):
    other, ema = tf.Variable(WEIGHT * 0.5, name="other"), tf.Variable(WEIGHT, name="ema")

    def step(x):
        mine, its = w.read_value(), other.read_value()
        if origin == "loop":
            gradient = tf.while_loop(
                lambda i, _: i < 3,
                lambda i, total: (i + 1, total + of_both(mine, its, mine, x[i : i + 1])),
                [0, tf.zeros_like(mine)],
            )[1]
        else:
            gradient = tf.reduce_sum(tf.map_fn(lambda row: of_both(mine, its, mine, row[None]), x), 0)
        w.assign_sub(LEARNING_RATE * gradient)
        other.assign_sub(LEARNING_RATE * of_both(mine, its, its, x))
        ema.assign(0.9 * ema + 0.1 * its)

    result = run(step, [w, other, ema], policy(rule(), not_updated="leave"), X)
    result.check(result.after(), others=False)
    np.testing.assert_allclose(result.decayed[1], (1 - RATE) * result.plain[1], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(result.decayed[2], result.plain[2])


@pytest.mark.parametrize("semantics", ["decoupled", "tfa"])
def test_a_weight_updated_after_another_whose_gradient_read_it_is_decayed(w, semantics):
    other = tf.Variable(WEIGHT * 0.5, name="other")
    inner = tf.function(lambda w, other, x: 2.0 * tf.transpose(x) @ (x @ (w + other)))

    def step(x):
        w.assign(w - LEARNING_RATE * inner(w.read_value(), other.read_value(), x))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(x @ (w.read_value() + other)))
        other.assign_sub(LEARNING_RATE * tape.gradient(loss, other))

    with pytest.raises(graphwd.PlanError, match="'updates: each'"):  # by hand, beside a tape
        run(step, [w, other], policy(rule(semantics), not_updated="leave"), X)
    rules = [rule(semantics, name="other"), {"weight_decay": 0}]  # the second gradient would see the first decay
    result = run(step, [w, other], policy(*rules, not_updated="leave"), X)
    np.testing.assert_array_equal(result.decayed[0], result.plain[0])
    expected = (1 - RATE) * result.plain[1] if semantics == "decoupled" else result.plain[1] - RATE * result.start[1]
    np.testing.assert_allclose(result.decayed[1], expected, rtol=0, atol=TOLERANCE)


def test_l2_never_joins_the_gradient_of_another_weight(w):
    """Its own gradient is a jacobian, the other's comes by tape and goes through Adagrad."""
    other, total = tf.Variable(WEIGHT * 0.5, name="other"), tf.Variable(WEIGHT * 0, trainable=False)

    def step(x):
        mine, its = w.read_value(), other.read_value()
        with tf.GradientTape() as tape:
            tape.watch(mine)
            outputs = x @ (mine + its)
        rows = tape.jacobian(outputs, mine, experimental_use_pfor=False)
        w.assign(mine - LEARNING_RATE * tf.einsum("bc,bcij->ij", outputs, rows))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(x @ (w.read_value() + other)))
        gradient = tape.gradient(loss, other)
        total.assign_add(tf.square(gradient))
        other.assign_sub(LEARNING_RATE * gradient * tf.math.rsqrt(total + 0.01))

    try:
        rewritten = graphwd.rewrite(
            tf.function(step).get_concrete_function(X), policy(rule("l2", name="w"), {"weight_decay": 0})
        )
    except graphwd.PlanError:
        return
    rewritten(X)
    sums = X.numpy().T @ (X.numpy() @ (1.5 * WEIGHT)) + RATE * WEIGHT
    np.testing.assert_allclose(w, WEIGHT - LEARNING_RATE * sums, rtol=0, atol=TOLERANCE)


# --- Refused, with a word that settles it -----------------------------------------------------------------------------


@pytest.mark.parametrize("semantics", ["decoupled", "tfa"])
def test_an_update_of_data_alone_takes_update(w, semantics):
    def step(x):
        w.assign_sub(0.1 * (2 * w * x * x))

    with pytest.raises(graphwd.PlanError, match="write 'update: GLOB'"):
        run(step, [w], policy(rule(semantics)), tf.constant(0.3))
    result = run(step, [w], policy(rule(semantics, update="AssignSub*")), tf.constant(0.3))
    result.check(result.after() if semantics == "decoupled" else result.before())


def test_an_update_of_captured_data_alone(w):
    noise = tf.constant(RANDOM.normal(size=(3, 2)), tf.float32)

    def step():
        w.assign_add(0.1 * noise)

    result = run(step, [w], policy(rule()))
    result.check(result.after())
    result = run(step, [w], policy(rule("tfa")))
    result.check(result.before())


def test_a_gradient_that_another_function_accumulated(w):
    total = tf.Variable(WEIGHT * 0, trainable=False, name="total")
    total.assign(loss_gradient(w, X))

    def step():
        w.assign_sub(LEARNING_RATE * total)
        total.assign(tf.zeros_like(total))

    with pytest.raises(graphwd.PlanError, match="write 'update: GLOB'"):
        run(step, [w, total], policy(rule()))
    word = {"update": "AssignSub*"}
    result = run(step, [w, total], policy(rule(**word)))
    result.check(result.after())
    result = run(step, [w, total], policy(rule("tfa", **word)))
    result.check(result.before())
    with pytest.raises(graphwd.PlanError, match="its learning rate is not found"):
        run(step, [w, total], policy(rule("adamw", **word)))
    result = run(step, [w, total], policy(rule("adamw", learning_rate="mul/x", **word)))
    result.check(result.before(LEARNING_RATE))


def test_a_gradient_that_is_an_argument_of_a_step_of_keras():
    w = keras.Variable(WEIGHT, name="w")
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build([w])

    def step(gradient):
        optimizer.apply([gradient], [w])

    state = [w.value, *(variable.value for variable in optimizer.variables)]
    gradient = tf.constant(RANDOM.normal(size=(3, 2)), tf.float32)
    rate = f"{optimizer.name}/learning_rate"
    for word in ({}, {"learning_rate": rate}, {"learning_rate": "sgd*/learning_rate"}):
        result = run(step, state, policy(rule("adamw", **word)), gradient)
        result.check(result.before(0.5))
    with pytest.raises(graphwd.PlanError, match="not known to be one number, or is one times the gradient"):
        run(step, state, policy(rule("adamw", learning_rate=f"{optimizer.name}/Mul*")), gradient)


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """The transformer's schedule, as TensorFlow's tutorial has it."""

    def __call__(self, step):
        step = tf.cast(step, tf.float32) + 1.0
        return 16.0**-0.5 * tf.minimum(tf.math.rsqrt(step), step * 4.0**-1.5)

    def get_config(self):
        return {}


def test_a_schedule_of_ones_own():
    w = keras.Variable(WEIGHT, name="w")
    optimizer = keras.optimizers.Adam(Warmup())
    optimizer.build([w])
    step = step_of(optimizer, w)

    state = [w.value, *(variable.value for variable in optimizer.variables)]
    for count in range(6):
        optimizer.iterations.assign(count)
        result = run(step, state, policy(rule("adamw")), X)
        result.check(result.before(float(Warmup()(count))))


def test_a_learned_learning_rate(w):
    rate = tf.Variable(0.02, name="rate")

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(x @ (w - rate * 0.1)))
        mine, its = tape.gradient(loss, [w, rate])
        w.assign_sub(rate * mine)
        rate.assign_sub(1e-4 * its)

    rules = policy(rule("adamw", name="w", learning_rate="rate"), {"weight_decay": 0})
    result = run(step, [w, rate], rules, X)
    result.check(result.before(0.02))


# What is done to a gradient before the optimizer, as the decay of l2 must not see it: the gradient in NumPy.
def masked(gradient):
    return gradient * MASK


def scaled(gradient):
    return gradient * 0.5


def sign(gradient):
    return tf.sign(gradient)


MASK = np.array([[0, 1], [1, 1], [1, 0]], np.float32)


@pytest.mark.parametrize("form", [masked, scaled, sign])
def test_l2_joins_the_gradient_where_the_word_says(w, form):
    def step(x):
        with tf.name_scope("mine"):
            gradient = tf.identity(form(loss_gradient(w, x)), name="ready")
        w.assign_sub(LEARNING_RATE * gradient)

    result = run(step, [w], policy(rule("l2", gradient="mine/ready")), X)
    result.check(result.before(LEARNING_RATE))


@pytest.mark.parametrize("place", ["loop", "map", "branch"])
def test_l2_of_a_gradient_that_leaves_a_loop_a_map_or_a_branch(w, place):
    def step(x):
        with tf.name_scope("mine"):
            if place == "loop":
                gradient = tf.zeros_like(w)
                for i in tf.range(4):
                    gradient += loss_gradient(w, x[i : i + 1])
            elif place == "map":
                gradient = tf.reduce_sum(tf.map_fn(lambda row: loss_gradient(w, row[None]), x), 0)
            else:
                gradient = tf.cond(x[0, 0] > -9, lambda: loss_gradient(w, x), lambda: tf.zeros_like(w))
            gradient = tf.identity(gradient, name="ready")
        w.assign_sub(LEARNING_RATE * gradient)

    result = run(step, [w], policy(rule("l2", gradient="mine/ready")), X)
    result.check(result.before(LEARNING_RATE))


def test_a_nadam_of_keras_keeps_a_number_that_is_no_weight():
    w = keras.Variable(WEIGHT, name="w")
    optimizer = keras.optimizers.Nadam(LEARNING_RATE)
    optimizer.build([w])
    step = step_of(optimizer, w)

    state = [w.value, *(variable.value for variable in optimizer.variables)]
    for semantics in ("decoupled", "tfa", "adamw"):
        result = run(step, state, policy(rule(semantics), not_updated="leave"), X)
        factor = {"adamw": LEARNING_RATE}.get(semantics, 1.0)
        result.check(result.after() if semantics == "decoupled" else result.before(factor))


def test_weights_tied_to_the_output_layer():
    w = keras.Variable(RANDOM.normal(size=(6, 3)).astype(np.float32), name="w")
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build([w])

    def step(tokens):
        with tf.GradientTape() as tape:
            hidden = tf.tanh(tf.gather(w.value, tokens))
            logits = tf.matmul(hidden, w.value, transpose_b=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tokens, logits))
        optimizer.apply(tape.gradient(loss, [w.value]), [w])
        return loss

    state = [w.value, *(variable.value for variable in optimizer.variables)]
    result = run(step, state, policy(rule("adamw")), tf.constant([1, 2, 2]))
    result.check(result.before(LEARNING_RATE))


def test_weights_in_a_function_called_as_an_op(w):
    """``tf.nn.ctc_loss`` calls a v1 function as an op."""
    w.assign(WEIGHT)

    def step(x):
        with tf.GradientTape() as tape:
            logits = tf.reshape(tf.tile(x @ w, [2, 2]), [8, 1, 4])
            loss = tf.reduce_sum(
                tf.nn.ctc_loss(tf.constant([[1, 2]]), logits, tf.constant([2]), tf.constant([8]), blank_index=0)
            )
        w.assign_sub(LEARNING_RATE * tape.gradient(loss, w))
        return loss

    for semantics, factor in {"tfa": 1.0, "adamw": LEARNING_RATE, "l2": LEARNING_RATE}.items():
        result = run(step, [w], policy(rule(semantics)), X)
        result.check(result.before(factor))


@pytest.mark.parametrize("pattern", ["*", "*sub*", "sub"])
def test_the_new_value_of_a_weight_is_no_gradient(w, pattern):
    """What was written with a decay added to it grew."""

    def step(x):
        w.assign(w - LEARNING_RATE * loss_gradient(w, x))

    with pytest.raises(graphwd.PlanError, match=r"'gradient: .*names (several tensors|no gradient)"):
        run(step, [w], policy(rule("l2", gradient=pattern)), X)
