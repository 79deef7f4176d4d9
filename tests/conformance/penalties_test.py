"""Every formula, in every meaning, on an optimizer of every kind, against the papers' formulas in NumPy."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from graphwd.steps.read import variables_of
from tests.helpers import references
from tests.helpers.references import FIELDS, PENALTIES, AnyDecay, Sparse

STEPS = 100
SHAPE = (6, 3)
LEARNING_RATE = 2.0**-5
RATE = 2.0**-6
ADAM = {"beta_1": 0.875, "beta_2": 1 - 2.0**-8, "epsilon": 2.0**-12}
WORDS: dict[str, Any] = {
    "huber": {"name": "huber", "delta": 0.5},
    "norm": {"name": "norm", "target": 2.5},
}
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
MEANINGS = ["after", "before", "before-lr", "coupled"]

legacy = tf_keras.optimizers.legacy


class Kind(NamedTuple):
    """A kind of update: what makes the optimizer, what it computes, and how it treats rows without gradient."""

    optimizer: Any
    reference: type[references.Optimizer]
    sparse: Sparse


KINDS = {
    "Keras SGD": Kind(lambda: keras.optimizers.SGD(LEARNING_RATE), references.SGD, Sparse.ROWS),
    "Keras Adam": Kind(lambda: keras.optimizers.Adam(LEARNING_RATE, **ADAM), references.Adam, Sparse.DENSE),
    "fused SGD": Kind(lambda: legacy.SGD(LEARNING_RATE), references.SGD, Sparse.ROWS),
    "fused Adam": Kind(lambda: legacy.Adam(LEARNING_RATE, **ADAM), references.Adam, Sparse.DENSE),
    "by hand": Kind(None, references.SGD, Sparse.ROWS),
}


class Traced(NamedTuple):
    """A traced step on one weight."""

    step: Any
    weight: tf.Variable
    variables: list[tf.Variable]
    start: list[np.ndarray]
    keep: tuple[Any, ...]


@functools.cache
def traced(kind: str, dtype: str, sparse: bool) -> Traced:
    """A step whose gradient is its argument; where it is sparse, that of the rows that are its argument."""
    for library in (keras, tf_keras):
        library.backend.set_floatx("float64" if dtype == "float64" else "float32")
    start = np.random.default_rng(1).normal(size=SHAPE)
    make = KINDS[kind].optimizer
    optimizer = make and make()
    if isinstance(optimizer, keras.optimizers.Optimizer):
        target = keras.Variable(start, dtype=dtype, name="w")
        weight = target.value
        optimizer.build([target])
    else:
        target = weight = tf.Variable(tf.cast(start, dtype), name="w")
        if optimizer is not None:
            optimizer._create_all_weights([weight])

    @tf.function(input_signature=[tf.TensorSpec((None, SHAPE[1]), dtype), tf.TensorSpec((None,), tf.int32)])
    def step(gradient, rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((tf.gather(weight, rows) if sparse else weight) * gradient)
        gradient = tape.gradient(loss, weight)
        if optimizer is not None:
            optimizer.apply_gradients([(gradient, target)])
        elif sparse:
            scaled = tf.IndexedSlices(tf.cast(LEARNING_RATE, dtype) * gradient.values, gradient.indices)
            weight.scatter_sub(scaled)
        else:
            weight.assign_sub(tf.cast(LEARNING_RATE, dtype) * gradient)

    concrete = step.get_concrete_function()
    variables = variables_of(concrete)
    for library in (keras, tf_keras):
        library.backend.set_floatx("float32")
    return Traced(concrete, weight, variables, [v.numpy() for v in variables], (step, optimizer, target))


def decayed_step(case: Traced, formula: str, meaning: str) -> Any:
    rule = {"name": "w", "weight_decay": RATE, "formula": WORDS.get(formula, formula), **FIELDS[meaning]}
    return graphwd.rewrite(case.step, {"version": 1, "rules": [rule, {"weight_decay": 0}]})


def batches(sparse: bool):
    random = np.random.default_rng(2)
    for _ in range(STEPS):
        rows = np.sort(random.choice(SHAPE[0], 3, replace=False)) if sparse else np.arange(SHAPE[0])
        yield random.normal(size=(len(rows), SHAPE[1])), rows


def check(kind: str, formula: str, meaning: str, dtype: str, sparse: bool) -> float:
    """Trains a hundred steps; returns the largest error relative to the largest weight on the way.

    At the end it would not do: by the lasso weights end at a twentieth of what they were, with the errors of before.
    """
    case = traced(kind, dtype, sparse)
    for variable, value in zip(case.variables, case.start, strict=True):
        variable.assign(value)
    decayed = decayed_step(case, formula, meaning)
    w = case.weight.numpy().astype(np.float64)
    largest = np.abs(w).max()
    training = AnyDecay(
        KINDS[kind].reference(SHAPE, LEARNING_RATE),
        meaning,
        RATE,
        KINDS[kind].sparse,
        penalty=PENALTIES[formula],
        initial=w,
    )
    number_type = tf.as_dtype(dtype).as_numpy_dtype
    for gradient, rows in batches(sparse):
        decayed(tf.cast(gradient, dtype), tf.constant(rows, tf.int32))
        exact = gradient.astype(number_type).astype(np.float64)
        w = training.step(w, exact, rows if sparse else None)
        largest = max(largest, np.abs(w).max())
    return float(np.abs(case.weight.numpy().astype(np.float64) - w).max() / largest)


FORMULAS = [name for name in PENALTIES if name != "l2"]  # which semantics_test knows


def refused(kind: str, formula: str, meaning: str, sparse: bool) -> str | None:
    """Why a combination makes no sense; None where it does."""
    if formula == "cautious" and meaning == "coupled":
        return "depends on what the optimizer's update subtracts"
    rows = sparse and (meaning == "coupled" or KINDS[kind].sparse is Sparse.ROWS)
    return "is of the whole weight" if formula == "norm" and rows else None


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_steps(kind, formula, meaning, dtype, sparse):
    if reason := refused(kind, formula, meaning, sparse):
        with pytest.raises(graphwd.GraphwdError, match=reason):
            check(kind, formula, meaning, dtype, sparse)
    else:
        bound = {"float64": 1e-12, "float32": 8 * EPSILON["float32"]}[dtype]
        assert check(kind, formula, meaning, dtype, sparse) < bound


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("meaning", ["after", "before"])
@pytest.mark.parametrize("formula", [name for name in FORMULAS if name != "norm"])  # which refuses rows
def test_half_precision_rounds_the_update_and_the_decay_and_no_more(formula, meaning, dtype, sparse):
    """From the same weight each step of a hundred ends within three roundings of float64; errors do not add up."""
    case = traced("by hand", dtype, sparse)
    case.weight.assign(case.start[[id(each) for each in case.variables].index(id(case.weight))])
    decayed = decayed_step(case, formula, meaning)
    initial = as_float64(case.weight)
    worst = 0.0
    for gradient, rows in batches(sparse):
        w = as_float64(case.weight)
        case.step(tf.cast(gradient, dtype), tf.constant(rows, tf.int32))
        plain = as_float64(case.weight)  # what the undecayed step makes of it, rounded as that does
        case.weight.assign(tf.cast(w, dtype))
        decayed(tf.cast(gradient, dtype), tf.constant(rows, tf.int32))
        weight = plain if meaning == "after" else w
        lost = RATE * PENALTIES[formula](weight=weight, before=w, update=w - plain, initial=initial)
        if sparse:
            lost[np.setdiff1d(np.arange(SHAPE[0]), rows)] = 0
        expected = plain - lost
        error = np.abs(as_float64(case.weight) - expected)
        # The update is rounded, in both steps, and so is the decay, to units of what the weight is on the way.
        largest = np.max(np.abs([w, plain, w - lost, expected]), axis=0)
        worst = max(worst, float((error / largest).max()) / EPSILON[dtype])
    assert worst <= 1.5


def as_float64(variable: tf.Variable) -> np.ndarray:
    return variable.numpy().astype(np.float64)


class Net(tf.Module):
    """One weight, updated by hand in a body of some kind."""

    def __init__(self, nest):
        self.w = tf.Variable(START, name="w")
        self.step = tf.function(functools.partial(NESTS[nest], self.update))

    def update(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.tanh(x * self.w))
        self.w.assign_sub(0.25 * tape.gradient(loss, self.w))


START = np.linspace(-2, 1.5, 18).reshape(SHAPE)
X = np.random.default_rng(3).normal(size=SHAPE)


def in_loop(update, x):
    for _ in tf.range(3):
        update(x)


NESTS = {
    "flat": lambda update, x: update(x),
    "branch": lambda update, x: tf.cond(x[0, 0] < 9, lambda: update(x), lambda: None),
    "loop": in_loop,
    "call": lambda update, x: tf.function(update)(x),
    "compiled": lambda update, x: tf.function(update, jit_compile=True)(x),
}


def by_hand(formula: str, meaning: str, turns: int) -> np.ndarray:
    w = START
    for _ in range(turns):
        gradient = X * (1 - np.tanh(X * w) ** 2)
        gradient = gradient + (RATE * PENALTIES[formula](weight=w, initial=START) if meaning == "coupled" else 0)
        plain = w - 0.25 * gradient
        weight = plain if meaning == "after" else w
        lost = PENALTIES[formula](weight=weight, before=w, update=w - plain, initial=START)
        w = plain if meaning == "coupled" else plain - RATE * lost
    return w


@pytest.mark.parametrize(
    ("formula", "meaning"),
    [
        (formula, meaning)
        for formula in FORMULAS
        for meaning in ("after", "before", "coupled")
        if not refused("by hand", formula, meaning, sparse=False)
    ],
)
@pytest.mark.parametrize("nest", NESTS)
def test_in_every_nest_and_verified(nest, formula, meaning):
    net = Net(nest)
    rule = {"weight_decay": RATE, "formula": WORDS.get(formula, formula), **FIELDS[meaning]}
    policy = {"version": 1, "rules": [rule]}
    decayed = graphwd.rewrite(net.step, policy)
    decayed(tf.constant(X))
    expected = by_hand(formula, meaning, 3 if nest == "loop" else 1)
    np.testing.assert_allclose(net.w, expected, rtol=1e-13)
    net.w.assign(START)
    found = graphwd.verify(net.step, decayed, policy, tf.constant(X), tolerance=16)
    assert (found.ok, [each.verdict.value for each in found.variables]) == (True, ["right"])
