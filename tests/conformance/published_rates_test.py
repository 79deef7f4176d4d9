"""Decays with rates that change, as other projects publish them, against the policy that does the same.

Every expected value is computed here in NumPy, from the source of the project that is named:

- TensorFlow Addons: ``tensorflow_addons/optimizers/tests/weight_decay_optimizers_test.py``, whose numbers these
  are, and the schedule in the docstring of ``DecoupledWeightDecayExtension``.
- timm: ``timm/optim/adamw.py``, ``corrected_weight_decay`` (arXiv 2506.02285).
- Cautious weight decay: arXiv 2510.12402, algorithm 1.
- DINO: ``utils.py``, ``cosine_scheduler``; ``main_dino.py``, which sets the decay and the learning rate of each step.
- mmpretrain: ``mmpretrain/engine/schedulers/weight_decay_scheduler.py``, ``CosineAnnealingWeightDecay``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import yaml

import graphwd
from tests.helpers.pages import policies_in

# TensorFlow Addons.

STARTS = ([1.0, 2.0], [3.0, 4.0])
GRADIENTS = ([0.1, 0.1], [0.01, 0.01])


# tf_keras keeps hyperparameters in float32, whatever the weights are in.
LEARNING_RATE, NINE_TENTHS, BETA = (float(np.float32(value)) for value in (0.001, 0.9, 0.999))


def addons_adamw(w: np.ndarray, g: np.ndarray, slots: dict[str, Any], decay: float) -> np.ndarray:
    t = slots["t"] = slots.get("t", 0) + 1
    m = slots["m"] = NINE_TENTHS * slots.get("m", 0) + (1 - NINE_TENTHS) * g
    v = slots["v"] = BETA * slots.get("v", 0) + (1 - BETA) * g**2
    rate = LEARNING_RATE * np.sqrt(1 - BETA**t) / (1 - NINE_TENTHS**t)
    return w * (1 - decay) - rate * m / (np.sqrt(v) + 1e-8)


def addons_sgdw(w: np.ndarray, g: np.ndarray, slots: dict[str, Any], decay: float) -> np.ndarray:
    slots["m"] = NINE_TENTHS * slots.get("m", 0) + g
    return w * (1 - decay) - LEARNING_RATE * slots["m"]


ADDONS: dict[str, tuple[Callable[[], Any], Callable[..., np.ndarray]]] = {
    "AdamW": (lambda: tf_keras.optimizers.legacy.Adam(0.001, 0.9, 0.999, 1e-8), addons_adamw),
    # The momentum of tf_keras has the learning rate in it, which is the same as long as that stays the same.
    "SGDW": (lambda: tf_keras.optimizers.legacy.SGD(0.001, momentum=0.9), addons_sgdw),
}
BOUNDS = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-12}  # of Addons, but 1e-6 for float64 there


def piecewise(t: int) -> float:
    """PiecewiseConstantDecay([10000, 15000], [1e-0, 1e-1, 1e-2]) of the docstring, with fewer steps."""
    return 1.0 if t <= 3 else 0.1 if t <= 6 else 0.01


def like_addons(step: tf.Tensor) -> tf.Tensor:
    values = [tf.constant(value, tf.float64) for value in (1.0, 0.1, 0.01)]
    return 1e-2 * tf.where(step <= 3, values[0], tf.where(step <= 6, values[1], values[2]))


RATES: dict[str, tuple[Any, Callable[[int], float]]] = {
    "callable": (lambda step: 0.01, lambda t: 0.01),
    "callable schedule": (like_addons, lambda t: 1e-2 * piecewise(t)),
    "schedule in a file": (
        {"schedule": "piecewise", "boundaries": [3, 6], "values": [1e-2, 1e-3, 1e-4]},
        lambda t: 1e-2 * piecewise(t),
    ),
}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("optimizer", ADDONS)
def test_the_numbers_of_tensorflow_addons(optimizer, rate, dtype, sparse):
    weights = [tf.Variable(start, dtype=dtype, name=f"var{i}") for i, start in enumerate(STARTS)]
    tf_keras.backend.set_floatx(dtype)
    plain = ADDONS[optimizer][0]()
    plain._create_all_weights(weights)
    tf_keras.backend.set_floatx("float32")

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            read = [tf.gather(weight, [0, 1]) if sparse else tf.identity(weight) for weight in weights]
            losses = [tf.reduce_sum(w * tf.constant(g, dtype)) for w, g in zip(read, GRADIENTS, strict=True)]
        gradients = tape.gradient(losses, weights)
        plain.apply_gradients(zip(gradients, weights, strict=True))

    given, rate_at = RATES[rate]
    policy = {"version": 1, "defaults": {"semantics": "tfa"}, "rules": [{"weight_decay": given, "sparse": "all"}]}
    decayed = graphwd.rewrite(step, policy)
    exact, slots = [np.array(start) for start in STARTS], [{}, {}]
    for t in range(10):
        decayed()
        for i, gradient in enumerate(GRADIENTS):
            rounded = np.array(gradient).astype(dtype).astype(np.float64)
            exact[i] = ADDONS[optimizer][1](exact[i], rounded, slots[i], rate_at(t))
        for weight, expected in zip(weights, exact, strict=True):
            np.testing.assert_allclose(weight.numpy().astype(np.float64), expected, rtol=BOUNDS[dtype] * (1 + t))


# The others, on Keras's Adam, with a learning rate that changes.

STEPS = 100
PEAK = 2.0**-5
START = np.linspace(-1.5, 2, 12).reshape(4, 3)
BETA_1, BETA_2, EPSILON = 0.875, 1 - 2.0**-8, 2.0**-12


def learning_rate_at(t: int) -> float:
    """A warm-up of ten steps to the peak, then a cosine to a tenth of it."""
    if t < 10:
        return PEAK * (t + 1) / 10
    return PEAK * (0.1 + 0.9 * (1 + np.cos(np.pi * (t - 9) / (STEPS - 9))) / 2)


class Adam:
    """What Adam subtracts without the decay, with a learning rate of each step; epsilon where Keras has it."""

    def __init__(self) -> None:
        self.m, self.v, self.t = np.zeros_like(START), np.zeros_like(START), 0

    def update(self, g: np.ndarray, lr: float) -> np.ndarray:
        self.t += 1
        self.m = BETA_1 * self.m + (1 - BETA_1) * g
        self.v = BETA_2 * self.v + (1 - BETA_2) * g**2
        corrected = lr * np.sqrt(1 - BETA_2**self.t) / (1 - BETA_1**self.t)
        return corrected * self.m / (np.sqrt(self.v) + EPSILON)


def trained(rule: dict[str, Any], decay: Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]) -> None:
    """Trains by a rule, and by a decay of what it, the update, the learning rate and the step are; compares."""
    keras.backend.set_floatx("float64")
    weight = keras.Variable(START, name="w")
    optimizer = keras.optimizers.Adam(PEAK, BETA_1, BETA_2, EPSILON)
    optimizer.build([weight])
    keras.backend.set_floatx("float32")

    @tf.function(input_signature=[tf.TensorSpec(START.shape, tf.float64)])
    def step(gradient):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * gradient)
        optimizer.apply([tape.gradient(loss, weight.value)], [weight])

    decayed = graphwd.rewrite(step, {"version": 1, "rules": [rule]})
    exact, adam = START, Adam()
    for t, gradient in enumerate(np.random.default_rng(5).normal(size=(STEPS, *START.shape))):
        lr = learning_rate_at(t)
        optimizer.learning_rate = lr
        decayed(tf.constant(gradient))
        update = adam.update(gradient, lr)
        exact = exact - decay(exact, update, lr, t) - update
    np.testing.assert_allclose(weight.numpy(), exact, rtol=1e-12)
    assert not np.allclose(weight.numpy(), START, atol=0.1)


def from_page(section: str, **numbers: Any) -> dict[str, Any]:
    """The last rule of a policy that the page on migration shows, with its defaults, and with numbers of the test."""
    policy = yaml.safe_load(policies_in("migration", section)[-1])
    rule = policy["defaults"] | policy["rules"][-1]
    assert numbers.keys() <= rule.keys()
    return rule | numbers


def test_the_corrected_decay_of_timm():
    rule = from_page("timm", weight_decay=0.5, peak_learning_rate=PEAK)
    trained(rule, lambda w, update, lr, t: lr**2 / PEAK * 0.5 * w)


def test_the_schedule_alone_of_loshchilov_and_hutter():
    """Their eta_t multiplies the decay, and their alpha does not."""
    rule = {"weight_decay": 0.01, "order": "before", "scale": "relative", "peak_learning_rate": PEAK}
    trained(rule, lambda w, update, lr, t: lr / PEAK * 0.01 * w)


def test_a_cautious_adamw():
    rule = {"weight_decay": 0.5, "semantics": "adamw", "formula": "cautious"}
    trained(rule, lambda w, update, lr, t: lr * 0.5 * w * (update * w >= 0))


def test_the_cosine_of_dino():
    at_step = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS))
    rate = {"schedule": "cosine", "from": 0.04, "to": 0.4, "steps": STEPS}
    trained({"weight_decay": rate, "semantics": "adamw"}, lambda w, update, lr, t: lr * at_step[t] * w)


def test_the_cosine_of_i_jepa_which_counts_before_it_computes():
    def rate(step):
        q = tf.cast(step + 1, tf.float64) / STEPS
        return 0.4 + (0.04 - 0.4) * (1 + tf.cos(np.pi * q)) / 2

    at_step = [min(0.4, 0.4 + (0.04 - 0.4) * 0.5 * (1 + np.cos(np.pi * t / STEPS))) for t in range(1, STEPS + 1)]
    trained({"weight_decay": rate, "semantics": "adamw"}, lambda w, update, lr, t: lr * at_step[t] * w)


def test_the_cosine_of_mmpretrain():
    """It computes a rate from the one before, which drifts by some ulp from the cosine itself."""
    rates = [0.5]
    for last in range(1, STEPS):
        ratio = (1 + np.cos(np.pi * last / STEPS)) / (1 + np.cos(np.pi * (last - 1) / STEPS))
        rates.append(ratio * (rates[-1] - 0.05) + 0.05)
    rule = from_page("mmpretrain")
    rule["weight_decay"] |= {"from": 0.5, "to": 0.05, "steps": STEPS}
    trained(rule, lambda w, update, lr, t: lr * rates[t] * w)


@pytest.mark.parametrize("name", ["recipes", "migration"])
def test_every_policy_of_a_page_can_be_read(name, tmp_path):
    texts = policies_in(name, None)
    assert texts
    for text in texts:
        path = tmp_path / "policy.yaml"
        path.write_text(text, encoding="utf-8")
        graphwd.load_policy(path)
