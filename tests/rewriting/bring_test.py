"""A tensor from elsewhere, brought into the body that needs it: through each kind of nest, on replicas, compiled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from graphwd.analysis.updates import find_updates
from graphwd.planning.injections import Elsewhere, Factor, Rate
from graphwd.planning.planner import make_plan
from graphwd.policy.rules import Policy
from graphwd.rewriting.inject import inject, take_out
from graphwd.steps.emit import Emitted
from graphwd.steps.read import read

START, FIRST, SECOND, STEP = np.float32([1.0, -2.0]), 0.5, 0.25, 0.1
RATE = 0.1
POLICY = Policy.from_dict({"version": 1, "rules": [{"name": "w", "weight_decay": RATE}, {"weight_decay": 0}]})


class Model(tf.Module):
    """One weight, the gradient of which is its target's difference; and in each step a scalar of the root's own."""

    def __init__(self):
        self.w = tf.Variable(START, name="w")

    def update(self):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(self.w)) / 2
        self.w.assign_sub(STEP * tape.gradient(loss, self.w))
        return loss


def called(model):
    inner = tf.function(model.update)
    return lambda scalar: inner() + scalar


def called_twice_deep(model):
    inner = tf.function(model.update)
    outer = tf.function(lambda: inner())
    return lambda scalar: outer() + scalar


def branch(model):
    return lambda scalar: tf.cond(scalar > 0, model.update, lambda: tf.constant(0.0)) + scalar


def other_branch(model):
    return lambda scalar: tf.cond(scalar < 0, lambda: tf.constant(0.0), model.update) + scalar


def case(model):
    zero = lambda: tf.constant(0.0)  # noqa: E731
    return lambda scalar: tf.switch_case(tf.cast(scalar > 0, tf.int32), [zero, model.update, zero]) + scalar


def loop(model):
    def step(scalar):
        i, loss = tf.constant(0), tf.constant(0.0)
        while i < 1:
            loss += model.update()
            i += 1
        return loss + scalar

    return step


def loop_of_branch(model):
    def step(scalar):
        i, loss = tf.constant(0), tf.constant(0.0)
        while i < 3:
            if i == 1:
                loss += model.update()
            i += 1
        return loss + scalar

    return step


def compiled(model):
    inner = tf.function(model.update, jit_compile=True)
    return lambda scalar: inner() + scalar


def dataset(model):
    def step(scalar):
        loss = tf.constant(0.0)
        for _ in tf.data.Dataset.range(1):
            loss += model.update()
        return loss + scalar

    return step


NESTS = [called, called_twice_deep, branch, other_branch, case, loop, loop_of_branch, compiled, dataset]


def flat(model):
    return lambda scalar: model.update() + scalar


def scaled(graph, factor):
    """The plan of a step, its rates multiplied by a scalar from elsewhere."""
    plan = make_plan(find_updates(graph), POLICY)
    plan.check()
    return [replace(each, rate=Rate(each.rate.number, None, (factor,))) for each in plan.injections]


def emitted(concrete, factor, captured):
    graph = read(concrete)
    injections = scaled(graph, factor)
    return Emitted(concrete, lambda name: inject(graph, injections, name), captured.__getitem__)


def expected(*factors):
    w = START.astype(np.float64)
    for factor in factors:
        w = w - STEP * w
        w = w - RATE * factor * w
    return w.astype(np.float32)


@pytest.mark.parametrize("nest", [flat, *NESTS])
def test_a_variable_of_its_own(nest):
    model = Model()
    concrete = tf.function(nest(model)).get_concrete_function(tf.TensorSpec([], tf.float32))
    own = tf.Variable(FIRST, trainable=False, name="own")
    place = Elsewhere("own", "resource")
    step = emitted(concrete, Factor("own", "float32", place), {place: own}).concrete(concrete)
    loss = step(tf.constant(3.0))
    np.testing.assert_allclose(loss, 3.0 + np.sum(START**2) / 2)
    np.testing.assert_allclose(model.w, expected(FIRST), rtol=3e-7)
    own.assign(SECOND)  # without a retrace
    step(tf.constant(3.0))
    np.testing.assert_allclose(model.w, expected(FIRST, SECOND), rtol=5e-7)


@pytest.mark.parametrize("nest", NESTS)
def test_a_tensor_of_the_root(nest):
    model = Model()
    concrete = tf.function(nest(model)).get_concrete_function(tf.TensorSpec([], tf.float32, name="scalar"))
    (argument,) = (each.name for each in read(concrete).root_function.signature.input_arg if each.name == "scalar")
    place = Elsewhere("the scalar", "float32", (), argument)
    step = emitted(concrete, Factor("the scalar", "float32", place), {}).concrete(concrete)
    step(tf.constant(FIRST))
    step(tf.constant(SECOND))
    np.testing.assert_allclose(model.w, expected(FIRST, SECOND), rtol=5e-7)


def test_a_tensor_of_a_body_between():
    model = Model()

    @tf.function
    def inner():
        return model.update()

    @tf.function
    def outer(scalar):
        doubled = tf.add(scalar, scalar, name="doubled")
        with tf.control_dependencies([doubled]):
            return inner()

    concrete = tf.function(lambda scalar: outer(scalar)).get_concrete_function(tf.TensorSpec([], tf.float32))
    graph = read(concrete)
    (injection,) = make_plan(find_updates(graph), POLICY).injections
    place = Elsewhere("doubled", "float32", injection.site.path[:1], "doubled:z:0")
    step = emitted(concrete, Factor("doubled", "float32", place), {}).concrete(concrete)
    step(tf.constant(FIRST / 2))
    np.testing.assert_allclose(model.w, expected(FIRST), rtol=3e-7)


@pytest.mark.parametrize("nest", NESTS)
def test_inside_of_a_step_that_is_traced(nest):
    model, own = Model(), tf.Variable(FIRST, trainable=False)
    concrete = tf.function(nest(model)).get_concrete_function(tf.TensorSpec([], tf.float32))
    place = Elsewhere("own", "resource")
    body = emitted(concrete, Factor("own", "float32", place), {place: own})
    around = tf.function(lambda scalar: 2 * body.call(concrete, (scalar,), {}))
    np.testing.assert_allclose(around(tf.constant(3.0)), 2 * (3.0 + np.sum(START**2) / 2))
    own.assign(SECOND)
    around(tf.constant(3.0))
    np.testing.assert_allclose(model.w, expected(FIRST, SECOND), rtol=5e-7)


@pytest.mark.parametrize("nest", [called, branch, case, loop])
def test_through_a_gradient(nest):
    model, own = Model(), tf.Variable(FIRST, trainable=False)
    concrete = tf.function(nest(model)).get_concrete_function(tf.TensorSpec([], tf.float32))
    place = Elsewhere("own", "resource")
    step = emitted(concrete, Factor("own", "float32", place), {place: own}).concrete(concrete)
    x = tf.constant(3.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        result = step(2 * x)
    np.testing.assert_allclose(tape.gradient(result, [x, model.w])[0], 2.0)
    np.testing.assert_allclose(model.w, expected(FIRST), rtol=3e-7)
    plain = tf.function(nest(other := Model()))
    with tf.GradientTape() as tape:
        tape.watch(x)
        result = plain(2 * x)
    of_plain = tape.gradient(result, other.w)
    model.w.assign(START)
    with tf.GradientTape() as tape:
        result = step(2 * x)
    np.testing.assert_allclose(tape.gradient(result, model.w), of_plain)


def test_under_a_compiled_root():
    model, own = Model(), tf.Variable(FIRST, trainable=False)
    concrete = tf.function(loop_of_branch(model), jit_compile=True).get_concrete_function(tf.TensorSpec([], tf.float32))
    place = Elsewhere("own", "resource")
    step = emitted(concrete, Factor("own", "float32", place), {place: own}).concrete(concrete)
    step(tf.constant(3.0))
    own.assign(SECOND)
    step(tf.constant(3.0))
    np.testing.assert_allclose(model.w, expected(FIRST, SECOND), rtol=5e-7)


@pytest.mark.parametrize("nest", [flat, *NESTS])
def test_taken_out_again_the_step_is_what_it_was(nest):
    model = Model()
    concrete = tf.function(nest(model)).get_concrete_function(tf.TensorSpec([], tf.float32))
    graph = read(concrete)
    originals = {}

    def new_name(name):
        new = f"{name}_{len(originals)}"
        originals[new] = name
        return new

    made = inject(graph, scaled(graph, Factor("own", "float32", Elsewhere("own", "resource"))), new_name)
    for function in (made.root, *made.functions):
        take_out(function)
        for node in function.node_def:
            for value in node.attr.values():
                for each in [value.func, *value.list.func]:
                    if each.name in originals:
                        each.name = originals[each.name]
        name = originals.get(function.signature.name)
        original = graph.library[name] if name else graph.root_function
        function.signature.name = original.signature.name
        assert function == original


def test_two_variables_that_share_a_function_have_a_factor_each():
    variables = [tf.Variable(START, name="w"), tf.Variable(START, name="w")]

    @tf.function
    def apply(w, gradient):
        w.assign_sub(STEP * gradient)

    def step():
        for w in variables:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(w)) / 2
            apply(w, tape.gradient(loss, w))

    concrete = tf.function(step).get_concrete_function()
    graph = read(concrete)
    plan = make_plan(find_updates(graph), POLICY)
    own = {}
    injections = []
    for injection, value in zip(plan.injections, (FIRST, SECOND), strict=True):
        place = Elsewhere(f"own {value}", "resource")
        own[place] = tf.Variable(value)
        injections.append(replace(injection, rate=Rate(RATE, None, (Factor(place.name, "float32", place),))))
    made = []
    step = Emitted(concrete, lambda name: made.append(inject(graph, injections, name)) or made[0], own.__getitem__)
    step.concrete(concrete)()
    keys = [graph.variables[injection.variable.id].key for injection in injections]
    for key, factor in zip(keys, (FIRST, SECOND), strict=True):
        (w,) = (each for each in variables if id(each.handle) == key)
        np.testing.assert_allclose(w, expected(factor), rtol=3e-7)
    assert len(made[0].functions) == 2
