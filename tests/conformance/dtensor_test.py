"""Weights that DTensor lays out over the devices of a mesh, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.experimental import dtensor

import graphwd
from graphwd.steps.watch import measures
from tests.helpers import references
from tests.helpers.devices import split_cpu
from tests.helpers.references import FIELDS, PENALTIES, AnyDecay

STEPS = 10
SHAPE = (4, 6)
LEARNING_RATE = 2.0**-5
RATE = 2.0**-6
BOUNDS = {"float64": 1e-14, "float32": 2e-6}  # of the largest weight; units are 2e-16 and 1e-7
ADAM = {"beta_1": 0.875, "beta_2": 1 - 2.0**-8, "epsilon": 2.0**-12}
WORDS: Mapping[str, Any] = {"huber": {"name": "huber", "delta": 0.5}, "norm": {"name": "norm", "target": 2.5}}

sharded, WHOLE = "batch", dtensor.UNSHARDED
LAYOUTS = {"rows": [sharded, WHOLE], "columns": [WHOLE, sharded], "replicated": [WHOLE, WHOLE]}
OPTIMIZERS: Mapping[str, tuple[Callable[[Any], Any], type[references.Optimizer]]] = {
    "by hand": (lambda _: None, references.SGD),
    "SGD": (
        lambda mesh: tf_keras.dtensor.experimental.optimizers.SGD(LEARNING_RATE, momentum=0.875, mesh=mesh),
        references.HeavyBall,
    ),
    "Adam": (
        lambda mesh: tf_keras.dtensor.experimental.optimizers.Adam(LEARNING_RATE, **ADAM, mesh=mesh),
        references.Adam,
    ),
}


@pytest.fixture(scope="module")
def mesh():
    split_cpu()
    return dtensor.create_mesh([(sharded, 2)], devices=["CPU:0", "CPU:1"])


class Training:
    """A step on one weight, whose gradient is its argument.

    The optimizers of tf_keras for DTensor know float32 only.
    """

    def __init__(self, mesh: Any, layout: str, optimizer: str = "by hand") -> None:
        self._mesh = mesh
        self._random = np.random.default_rng(2)
        self._dtype = "float64" if optimizer == "by hand" else "float32"
        self.start = np.random.default_rng(1).normal(size=SHAPE).astype(self._dtype).astype(np.float64)
        value = dtensor.relayout(self.on_mesh(self.start), dtensor.Layout(LAYOUTS[layout], mesh))
        self.weight = weight = dtensor.DVariable(value, name="w")
        make, self._reference = OPTIMIZERS[optimizer]
        self._optimizer = made = make(mesh)
        if made is not None:
            made.build([weight])

        @tf.function
        def step(gradient):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(weight * gradient)
            gradient = tape.gradient(loss, weight)
            if made is None:
                weight.assign_sub(LEARNING_RATE * gradient)
            else:
                made.apply_gradients([(gradient, weight)])
            return loss

        self.step = step

    def on_mesh(self, value: Any) -> Any:
        """A value on every device."""
        value = tf.constant(value, self._dtype)
        return dtensor.copy_to_mesh(value, dtensor.Layout.replicated(self._mesh, value.shape.rank))

    def value(self) -> np.ndarray:
        """The whole weight, put together from what the devices hold."""
        whole = dtensor.relayout(self.weight.read_value(), dtensor.Layout.replicated(self._mesh, 2))
        first, second = (part.numpy() for part in dtensor.unpack(whole))
        np.testing.assert_array_equal(first, second)
        return first

    def check(self, decayed: Any, steps: int = STEPS, **decay: Any) -> None:
        """Trains with a rewritten step; compares the weight with NumPy's after every step."""
        expected = self.start
        training = AnyDecay(self._reference(SHAPE, LEARNING_RATE), **{"rate": RATE, "initial": expected} | decay)
        for number in range(steps):
            gradient = self._random.normal(size=SHAPE).astype(self._dtype).astype(np.float64)
            decayed(self.on_mesh(gradient))
            expected = training.step(expected, gradient)
            error = np.abs(self.value() - expected).max() / np.abs(expected).max()
            assert error < BOUNDS[self._dtype], f"step {number}: {error}"


def rewritten(training: Training, rate: Any = RATE, meaning: str = "after", **fields: Any) -> Any:
    rule = {"name": "w", "weight_decay": rate, **FIELDS[meaning], **fields}
    return graphwd.with_weight_decay({"version": 1, "rules": [rule]})(training.step)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("meaning", FIELDS)
def test_every_meaning(mesh, meaning, optimizer, layout):
    training = Training(mesh, layout, optimizer)
    training.check(rewritten(training, meaning=meaning), meaning=meaning)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("formula", [name for name in PENALTIES if name != "l2"])
def test_every_formula(mesh, formula, layout):
    training = Training(mesh, layout)
    decayed = rewritten(training, formula=WORDS.get(formula, formula))
    training.check(decayed, meaning="after", penalty=PENALTIES[formula])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("optimizer", ["by hand", "Adam"], ids=["own counter", "counter of the optimizer"])
def test_a_schedule_counts_each_step_once(mesh, optimizer, layout):
    training = Training(mesh, layout, optimizer)
    schedule = {"schedule": "piecewise", "boundaries": [3, 6], "values": [2.0**-3, 2.0**-5, 2.0**-7]}
    decayed = rewritten(training, schedule)
    training.check(decayed, meaning="after", rate_at=lambda done: 2.0 ** (-3 if done <= 3 else -5 if done <= 6 else -7))
    if optimizer == "by hand":
        assert graphwd.state(decayed).steps.numpy() == STEPS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rate_that_is_assigned(mesh, layout):
    training = Training(mesh, layout)
    decayed = rewritten(training, tunable="body")
    training.check(decayed, 3, meaning="after")
    graphwd.state(decayed).rates["body"].assign(4 * RATE)
    training.start = training.value()
    training.check(decayed, 3, meaning="after", rate=4 * RATE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_decay_does_is_measured(mesh, layout):
    training = Training(mesh, layout)
    rule = {"name": "w", "weight_decay": RATE}
    decayed = graphwd.rewrite(training.step, {"version": 1, "rules": [rule]}, summaries=True)
    gradient = np.zeros(SHAPE)
    for _ in range(2):
        decayed(training.on_mesh(gradient))
    (measured,) = measures(decayed).values()
    before = np.linalg.norm(training.start) * (1 - RATE)
    np.testing.assert_allclose(measured.rate, RATE, rtol=1e-12)
    np.testing.assert_allclose(measured.decay_norm, RATE * before, rtol=1e-12)
    np.testing.assert_allclose(measured.weight_norm, (1 - RATE) * before, rtol=1e-12)
