"""Verification: right steps are found right, and every mutant of the rewriter is found wrong."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from graphwd.checking.verify import Verdict, ulps, verify
from graphwd.errors import VerifyError
from graphwd.planning.injections import After, Rate
from graphwd.rewriting import inject, part
from tests.helpers import steps
from tests.helpers.graphs import gradient_of, variable
from tests.helpers.lockstep import policy_for

SEMANTICS = ["decoupled", "tfa", "adamw", "l2"]


def kernels(semantics, **fields):
    return policy_for(steps.KERAS_KERNELS, semantics=semantics, **fields)


def verified(step, policy, *args, **options):
    """The verification of a step against its own rewriting."""
    concrete = step.get_concrete_function(*args)
    return verify(concrete, graphwd.rewrite(concrete, policy), policy, **options)


def verdicts(verification):
    return {each.name: each.verdict for each in verification.variables}


STEPS = {
    "Adam, clipped": lambda: keras.optimizers.Adam(0.01, global_clipnorm=1.0),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.01),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2, clipvalue=0.5),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9)),
    "Lamb": lambda: keras.optimizers.Lamb(0.01),
}


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("optimizer", STEPS)
def test_what_rewrite_makes_is_right(optimizer, semantics):
    verification = verified(steps.keras_step(STEPS[optimizer]()), kernels(semantics), *steps.batches()[0])
    verification.check()
    assert verification.ok
    assert verification.largest_error <= 4
    assert {each.name for each in verification.variables if each.decayed} == steps.KERAS_KERNELS.keys()
    assert f"right in {verification.runs} runs" in str(verification)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("make", [steps.Accumulating, steps.Looping])
def test_branches_and_loops(make, semantics):
    model = make()
    # A run of the loop makes six updates, each with a rounding of its own.
    policy = policy_for({"kernel": 0.01}, semantics=semantics)
    verified(model.step, policy, *steps.batches()[0], tolerance=8).check()


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("sparse", ["touched", "all"])
def test_rows(semantics, sparse):
    table = variable("table", np.arange(1.0, 13.0, dtype=np.float32).reshape(6, 2))
    optimizer = tf_keras.optimizers.legacy.Adagrad(0.125)
    optimizer._create_all_weights([table])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(table, rows)))
        optimizer.apply_gradients([(tape.gradient(loss, table), table)])

    policy = policy_for({"table": 0.01}, semantics=semantics, sparse=sparse)
    rows = tf.constant([1, 4, 1])
    concrete = step.get_concrete_function()
    if semantics == "l2" and sparse == "all":
        with pytest.raises(graphwd.PlanError, match="a coupled decay cannot reach the others"):
            graphwd.rewrite(concrete, policy)
        return
    verify(concrete, graphwd.rewrite(concrete, policy), policy, rows).check()
    assert table.numpy().ravel().tolist() == list(range(1, 13))  # left as it was


def test_a_decorated_and_a_compiled_step():
    step = steps.keras_step(keras.optimizers.SGD(0.1, momentum=0.9), jit_compile=True)
    inputs = steps.batches()[0]
    # XLA fuses, so a compiled step rounds in other places than its pieces.
    verify(step, graphwd.with_weight_decay(kernels("adamw"))(step), kernels("adamw"), *inputs, tolerance=64).check()


def mutate(monkeypatch, change):
    """Makes the pipeline inject something else than was planned."""
    original = inject.inject
    monkeypatch.setattr(
        part,
        "inject",
        lambda graph, injections, *rest, **options: original(graph, change(list(injections)), *rest, **options),
    )


def drop(monkeypatch, role, edge):
    """Makes the rewriter drop a control edge: from a node that the write's decay waits for, or the reverse."""
    splice = inject._splice

    def spliced(function, *rest):
        splice(function, *rest)
        for node in function.node_def:
            if role(node):
                kept = [text for text in node.input if not edge(text)]
                assert len(kept) < len(node.input)
                del node.input[:]
                node.input.extend(kept)

    monkeypatch.setattr(inject, "_splice", spliced)
    monkeypatch.setattr(inject, "check_rewritten", lambda *args, **options: None)


def is_injected_read(node):
    return "_graphwd" in node.attr and node.attr["_graphwd"].s == b"read"


def is_decay(text):
    return text.startswith("^") and "/graphwd/decay" in text


def waits_for_decay(node):
    return any(map(is_decay, node.input))


@pytest.fixture
def step():
    return steps.keras_step(keras.optimizers.Adam(0.01))


def wrong(step, semantics, **fields):
    """What a verification of a mutant finds wrong; its own check must refuse it."""
    verification = verified(step, kernels(semantics, **fields), *steps.batches()[0])
    assert not verification.ok
    with pytest.raises(VerifyError):
        verification.check()
    lines = verification.to_text(width=10_000).splitlines()
    assert lines[-1 - len(verification.races)].startswith("WRONG")
    return verification


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_a_skipped_variable_is_found(step, semantics, monkeypatch):
    mutate(monkeypatch, lambda injections: injections[1:])
    verification = wrong(step, semantics)
    assert verdicts(verification)["net/hidden/kernel"] is Verdict.WRONG


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.01])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_a_wrong_rate_is_found(step, semantics, factor, monkeypatch):
    mutate(monkeypatch, lambda injections: [replace(each, rate=factor * each.rate) for each in injections])
    assert verdicts(wrong(step, semantics))["net/out/kernel"] is Verdict.WRONG


@pytest.mark.parametrize("semantics", ["tfa", "adamw"])
def test_a_decay_after_what_it_should_come_before_is_found(step, semantics, monkeypatch):
    mutate(
        monkeypatch,
        lambda injections: [After(each.variable, each.site, each.rate, rows=each.rows) for each in injections],
    )
    assert verdicts(wrong(step, semantics))["net/out/kernel"] is Verdict.WRONG


@pytest.mark.parametrize("semantics", ["decoupled"])
def test_a_decay_before_what_it_should_come_after_is_found(step, semantics, monkeypatch):
    concrete = step.get_concrete_function(*steps.batches()[0])
    before = graphwd.plan(concrete, kernels("tfa")).injections
    mutate(monkeypatch, lambda injections: list(before))
    assert verdicts(wrong(step, semantics))["net/out/kernel"] is Verdict.WRONG


def test_a_decay_twice_is_found(step, monkeypatch):
    twice = lambda rate: Rate(1 - (1 - rate.number) ** 2)  # noqa: E731
    mutate(monkeypatch, lambda injections: [replace(each, rate=twice(each.rate)) for each in injections])
    assert verdicts(wrong(step, "decoupled"))["net/out/kernel"] is Verdict.WRONG


def test_a_decay_of_the_wrong_variable_is_found(step, monkeypatch):
    other = policy_for({"net/hidden/bias": 0.01, "net/out/kernel": 0.2})
    concrete = step.get_concrete_function(*steps.batches()[0])
    exchanged = graphwd.plan(concrete, other).injections
    mutate(monkeypatch, lambda injections: list(exchanged))
    found = verdicts(wrong(step, "decoupled"))
    assert found["net/hidden/kernel"] is found["net/hidden/bias"] is Verdict.WRONG
    assert found["net/out/kernel"] is Verdict.RIGHT


def test_a_decay_that_does_not_wait_for_the_update_is_found(step, monkeypatch):
    drop(monkeypatch, is_injected_read, lambda text: text.startswith("^"))
    assert wrong(step, "decoupled").races


def test_an_update_that_does_not_wait_for_the_decay_is_found(step, monkeypatch):
    drop(monkeypatch, waits_for_decay, is_decay)
    assert wrong(step, "tfa").races


def test_a_decay_that_does_not_wait_for_the_gradient_is_found(step, monkeypatch):
    drop(monkeypatch, is_injected_read, lambda text: text.startswith("^"))
    assert wrong(step, "adamw").races


@pytest.mark.parametrize("tunable", [False, True])
def test_a_read_races_with_a_branch_that_writes_and_with_none_that_only_reads(tunable, monkeypatch):
    w, n = (tf.Variable(value, name=name, trainable=name == "w") for name, value in (("w", [1.0, 2.0]), ("n", 0.0)))

    @tf.function(input_signature=[])
    def step():
        tf.cond(n > 0, lambda: w.assign_sub(gradient_of(w)), lambda: tf.identity(w))
        w.assign_sub(gradient_of(w))

    policy = {"version": 1, "rules": [{"weight_decay": 0.1, "updates": "each"} | ({"tunable": "x"} if tunable else {})]}
    assert verified(step, policy).races == ()
    drop(monkeypatch, is_injected_read, lambda text: text.startswith("^"))
    races = verified(step, policy).races
    assert any("cond (If)" in race for race in races)
    assert not any("factor" in race for race in races)


@pytest.mark.parametrize("asked", [{}, {"scale": "lr"}])
def test_a_decay_that_is_right_at_one_learning_rate_only_is_found(asked):
    """0.1, and 0.2 times a learning rate of 0.5, are the same until the learning rate changes."""
    w = variable("w", [1.0, 2.0])
    rate = tf.Variable(0.5, trainable=False, name="rate")
    step = tf.function(lambda: w.assign_sub(rate * gradient_of(w)), autograph=False).get_concrete_function()
    right, other = policy_for({"w": 0.1}), policy_for({"w": 0.2}, scale="lr")
    if asked:
        right, other = other, right
    assert verdicts(verify(step, graphwd.rewrite(step, right), right))["w"] is Verdict.RIGHT
    assert verdicts(verify(step, graphwd.rewrite(step, other), right))["w"] is Verdict.WRONG


@pytest.mark.parametrize("number", [lambda rate: tf.sqrt(rate - 0.4), lambda rate: checked(rate)])
def test_a_step_need_not_run_at_half_of_what_it_reads(number):
    w = variable("w", [1.0, 2.0])
    rate = tf.Variable(0.5, trainable=False, name="rate")
    step = tf.function(lambda: w.assign_sub(number(rate) * gradient_of(w)), autograph=False)
    assert verified(step, policy_for({"w": 0.1})).ok


def checked(rate):
    tf.debugging.assert_greater(rate, 0.4)
    return rate


def test_a_rate_that_cannot_be_seen_is_said_so():
    w = variable("w", [1.0, 2.0])
    step = tf.function(lambda: w.assign_sub(gradient_of(w)))
    verification = verified(step, policy_for({"w": 1e-9}))
    assert verdicts(verification) == {"w": Verdict.UNSEEN}
    assert str(verification).startswith("too small to see, decayed")
    closing = "right in 5 runs, but for 1 variable whose decay is too small to see; largest error 0 ulp"
    assert str(verification).splitlines()[-1] == closing
    verification.check()


@pytest.mark.parametrize("learning_rate", [np.nan, np.inf])
def test_of_what_is_not_finite_nothing_is_told(learning_rate):
    w = variable("w", [1.0, 2.0])
    step = tf.function(lambda rate: w.assign_sub(rate * gradient_of(w)))
    concrete, policy = step.get_concrete_function(tf.TensorSpec([])), policy_for({"w": 0.5})
    rewritten = graphwd.rewrite(concrete, policy)
    verification = verify(concrete, rewritten, policy, tf.constant(learning_rate, tf.float32))
    assert verdicts(verification) == {"w": Verdict.WRONG}
    with pytest.raises(VerifyError, match="'w': the step itself makes it infinite or NaN, so nothing can be told"):
        verification.check()
    verify(concrete, rewritten, policy, tf.constant(0.5)).check()


def test_what_is_not_finite_in_a_part_is_compared_in_the_rest():
    w = variable("w", [1.0, 2.0])
    step = tf.function(lambda rate: w.assign_sub(rate * gradient_of(w)))
    rate = tf.constant([np.nan, 0.5])
    verification = verified(step, policy_for({"w": 0.5}), rate)
    assert verdicts(verification) == {"w": Verdict.RIGHT}


def test_a_random_step_is_refused():
    w = variable("w", [1.0, 2.0])
    step = tf.function(lambda: w.assign_sub(gradient_of(w) * tf.random.normal([2])))
    with pytest.raises(
        VerifyError, match=r"different results from the same state: it draws random .*RandomStandardNormal"
    ):
        verified(step, policy_for({"w": 0.1}))


def test_a_decay_in_the_function_of_a_dataset_is_refused():
    w = variable("w", [1.0, 2.0])
    data = tf.data.Dataset.range(2)

    @tf.function
    def step():
        for _ in data:
            w.assign_sub(0.1 * gradient_of(w))

    with pytest.raises(VerifyError, match="a decay lies in the function of a dataset"):
        verified(step, policy_for({"w": 0.1}))


def test_arguments_that_cannot_be_made_are_asked_for():
    w = variable("w", [1.0, 2.0])

    @tf.function(input_signature=[tf.RaggedTensorSpec([2, None], tf.float32)])
    def step(rows):
        w.assign_sub(gradient_of(w) * tf.reduce_sum(rows))

    with pytest.raises(VerifyError, match=r"no argument can be made for RaggedTensorSpec.* to graphwd\.verify"):
        verified(step, policy_for({"w": 0.1}))
    rows = tf.ragged.constant([[1.0], [2.0, 3.0]])
    verify(step, graphwd.rewrite(step, policy_for({"w": 0.1})), policy_for({"w": 0.1}), rows).check()


@pytest.mark.parametrize(
    ("dtype", "to_float"), [(tf.string, tf.strings.to_number), (tf.complex64, tf.abs)], ids=["texts", "complex"]
)
def test_texts_and_complex_numbers_are_made(dtype, to_float):
    w, seen = variable("w", [1.0, 2.0]), []

    @tf.function(input_signature=[tf.TensorSpec([None, 2], dtype)])
    def step(values):
        tf.numpy_function(lambda made: seen.append(made), [values], [])
        w.assign_sub(gradient_of(w) * tf.reduce_mean(to_float(values)))

    verified(step, policy_for({"w": 0.1})).check()
    assert all(made.shape == (4, 2) for made in seen)
    assert len({str(made.tolist()) for made in seen}) > 1


def test_a_node_that_holds_the_learning_rate():
    """One that the graph computes from a variable, and that a rule names."""
    w, base = variable("w", [1.0, 2.0]), variable("base", 0.5, trainable=False)

    @tf.function
    def step(x):
        rate = tf.multiply(base, tf.minimum(1.0, x), name="warm")
        w.assign_sub(rate * 0.5 * gradient_of(w))

    for semantics in ("adamw", "l2"):
        policy = policy_for({"w": 0.25}, semantics=semantics, learning_rate="warm")
        verified(step, policy, tf.constant(0.75)).check()


@pytest.mark.parametrize("seed", range(6))
def test_slots_whose_terms_cancel(seed):
    """A momentum is a sum of terms: how far off one of its elements is says nothing where they cancelled."""
    verification = verified(
        steps.keras_step(keras.optimizers.SGD(0.001, momentum=0.9)), kernels("l2"), *steps.batches()[0], seed=seed
    )
    verification.check()
    elementwise = np.array([1e-6, 1.0], np.float32), np.array([1.01e-6, 1.0], np.float32)
    assert ulps(*elementwise, elementwise[0]) > 1000
    assert ulps(*elementwise, elementwise[0], whole=True) < 1


def test_what_cannot_be_called_is_named():
    w = variable("w", [1.0, 2.0])
    step = tf.function(lambda: w.assign_sub(gradient_of(w)))
    with pytest.raises(graphwd.StepError, match="the rewritten step must be a function, got a str; load a SavedModel"):
        verify(step, "decayed", policy_for({"w": 0.1}))


class Nameless(tf.Module):
    """Weights and momenta, all named Variable."""

    def __init__(self):
        super().__init__()
        self.a, self.b = tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])
        self.momenta = [tf.Variable([0.0, 0.0], trainable=False) for _ in "ab"]

    @tf.function(input_signature=[tf.TensorSpec([2])])
    def step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.a * self.b * x)
        for weight, momentum, gradient in zip(
            (self.a, self.b), self.momenta, tape.gradient(loss, (self.a, self.b)), strict=True
        ):
            weight.assign_sub(momentum.assign(0.5 * momentum + gradient))


def test_variables_of_one_name_are_told_apart():
    module = Nameless()
    rules = {"version": 1, "rules": [{"path": "b", "weight_decay": 0.5}, {"weight_decay": 0}]}
    found = verify(module.step, graphwd.rewrite(module.step, rules), rules)
    names = {"Variable (path a)", "Variable (path b)", "Variable (path momenta.0)", "Variable (path momenta.1)"}
    assert {checked.label for checked in found.variables} == names
    assert {checked.name for checked in found.variables} == {"Variable"}
    assert {line.strip().split("  ")[0] for line in found.to_text(all=True).splitlines()} >= names
    other = {"version": 1, "rules": [{"path": "b", "weight_decay": 0.25}, {"weight_decay": 0}]}
    with pytest.raises(VerifyError, match=r"'Variable \(path b\)' is .* from what the policy says"):
        verify(module.step, graphwd.rewrite(module.step, rules), other).check()


def test_units_in_the_last_place():
    one = np.array([1.0, -2.0], np.float32)
    assert ulps(one, one, one) == 0
    assert ulps(one, np.nextafter(one, np.float32(9)), one) == 1
    assert ulps(one, one + np.float32(2) ** -22, np.array([4.0, 4.0], np.float32)) == 0.5
    assert ulps(one, np.array([np.nan, -2.0], np.float32), one) == np.inf
    nans = np.array([np.nan, np.inf], np.float32)
    assert ulps(nans, np.array([np.float32(-np.nan), np.inf], np.float32), one) == 0
    assert ulps(np.array([1, 2]), np.array([1, 3]), np.array([1, 2])) == np.inf
    half = np.array([1.0], tf.bfloat16.as_numpy_dtype)
    assert ulps(half, half * half.dtype.type(1 + 2.0**-7), half) == 1


def normalizing_model():
    layers = keras.layers
    keras.utils.set_random_seed(4)
    model = keras.Sequential([layers.Input((steps.FEATURES,)), layers.Dense(4), layers.LayerNormalization()])
    model.add(layers.Dense(steps.CLASSES))
    return model


@pytest.mark.parametrize("semantics", ["decoupled", "adamw", "l2"])
@pytest.mark.parametrize(
    ("selectors", "count"),
    [
        ({"role": "bias"}, 2),
        ({"role": ["bias", "norm"]}, 4),
        ({"role": "kernel", "followed_by": "norm"}, 1),
        ({"used_by": "BiasAdd"}, 2),
    ],
)
def test_rules_by_use(selectors, count, semantics):
    policy = {
        "version": 1,
        "defaults": {"semantics": semantics},
        "rules": [{**selectors, "weight_decay": 0, "optional": True}, {"weight_decay": 0.25}],
    }
    model = normalizing_model()
    step = steps.keras_step(keras.optimizers.SGD(0.125, momentum=0.5), model)
    batch = steps.batches()[0]
    verification = verified(step, policy, *batch)
    verification.check()
    assert sum(each.decayed for each in verification.variables) == 6 - count
    # What is wrong is still seen: a step that decays all of them.
    concrete = step.get_concrete_function(*batch)
    everything = graphwd.rewrite(concrete, {**policy, "rules": policy["rules"][1:]})
    found = verify(concrete, everything, policy).variables
    wrong = {each.name for each in found if each.verdict is Verdict.WRONG}
    assert len(wrong & {weight.path for weight in model.trainable_weights}) == count
