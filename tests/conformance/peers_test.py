"""Weight decay as other optimizers have it built in, from the plain optimizer and a policy.

Keras' ``weight_decay`` is reproduced on a real model; PyTorch's on the same gradients.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd
from tests.helpers import steps
from tests.helpers.agreement import assert_agree, train, ulps_of_largest, values

STEPS = 100
FEATURES, CLASSES = steps.FEATURES, steps.CLASSES


def cosine_with_warmup() -> Any:
    """From 0.001 up to 0.02 in 20 steps, then down along a cosine to 0.002."""
    return keras.optimizers.schedules.CosineDecay(0.001, 80, alpha=0.1, warmup_target=0.02, warmup_steps=20)


LEARNING_RATES = {"constant": lambda: 0.01, "cosine with warm-up": cosine_with_warmup}


class Peer(NamedTuple):
    """An optimizer with a decay of its own, and the plain one."""

    native: Callable[..., Any]
    plain: Callable[..., Any]
    rate: float


def sgd(rate: Any, **options: Any) -> Any:
    return keras.optimizers.SGD(rate, **options)


RATE = 0.125
"""Which float32 holds: Keras rounds a rate to it, whatever the dtype of the weight."""

KERAS = {
    "AdamW": Peer(keras.optimizers.AdamW, keras.optimizers.Adam, RATE),
    "SGD": Peer(sgd, sgd, RATE),
    "SGD with momentum": Peer(
        lambda rate, **options: sgd(rate, momentum=0.9, **options), lambda rate: sgd(rate, momentum=0.9), RATE
    ),
    "Lion": Peer(keras.optimizers.Lion, keras.optimizers.Lion, RATE),
}


@pytest.mark.parametrize("excluding", [False, True], ids=["every variable", "no biases"])
@pytest.mark.parametrize("learning_rate", LEARNING_RATES)
@pytest.mark.parametrize("peer", KERAS)
def test_keras(peer, learning_rate, excluding):
    """The same training, but for rounding: graphwd multiplies by 1 - lr * wd, Keras subtracts w * wd * lr.

    In float64 both agree to 32 ulp of each variable's largest element: a hundred steps round four times each, by up to
    half an ulp, and training carries each error on. Seen: 6 on TensorFlow 2.21, 17 on 2.16. In float32 graphwd's is as
    near to that training as Keras's own is: of the variable that is furthest off, within twice as much and 16 ulp.
    """
    peer, learning_rate = KERAS[peer], LEARNING_RATES[learning_rate]
    exact, wide, _ = trained_by_keras(peer, learning_rate, excluding, "float64")
    expected, actual, undecayed = trained_by_keras(peer, learning_rate, excluding, "float32")
    assert_agree(exact, wide, 32, ulps_of_largest)
    assert float32_ulps(actual, exact) <= 2 * float32_ulps(expected, exact) + 16
    assert ulps_of_largest(undecayed[0], actual[0]) > 1e4, "the decay does not show"


def float32_ulps(rounded: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """How far float32 weights are from those of float64, at most, in units of the largest element of each variable."""
    pairs = zip(rounded, exact, strict=True)
    return max(np.abs(one - other).max() / np.spacing(np.abs(one).max()) for one, other in pairs)


def trained_by_keras(peer: Peer, learning_rate: Callable[[], Any], excluding: bool, dtype: str) -> list[Any]:
    """What a model is trained to by the decay of the optimizer itself, by graphwd's, and without decay."""
    native = peer.native(learning_rate(), weight_decay=peer.rate)
    if excluding:
        native.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    exempt = [{"regex": "(bias|beta|gamma)$", "weight_decay": 0}] if excluding else []
    policy = {"version": 1, "rules": [*exempt, {"weight_decay": peer.rate, "semantics": "adamw"}]}
    models = [model_of_dtype(dtype) for _ in range(3)]
    batches = [tuple(tf.cast(tensor, dtype) for tensor in batch) for batch in steps.batches(STEPS, 16)]
    train(steps.keras_step(native, models[0]), batches)
    step = steps.keras_step(peer.plain(learning_rate()), models[1])
    train(graphwd.rewrite(step.get_concrete_function(*batches[0]), policy), batches)
    train(steps.keras_step(peer.plain(learning_rate()), models[2]), batches)
    return [values(model.trainable_variables) for model in models]


def model_of_dtype(dtype: str) -> Any:
    """A model that begins with the same float32 numbers, whatever its dtype."""
    start = steps.keras_model().get_weights()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = steps.keras_model()
    finally:
        keras.config.set_dtype_policy(before)
    model.set_weights(start)
    return model


# PyTorch. The gradient of step t is a_t * w + b_t, a product and a sum, which both libraries round alike. Rates and
# coefficients are exact in float32: PyTorch keeps them as Python floats, TensorFlow in the dtype of the weight.

SHAPES = {"kernel": (FEATURES, CLASSES), "bias": (CLASSES,)}
WEIGHT_DECAY = 2.0**-4
MOMENTUM = 0.875
BETAS = (0.875, 1 - 2.0**-8)


def numbers(dtype: str, constant: bool) -> dict[str, np.ndarray]:
    """The weights at the start, the coefficients of a hundred gradients, and the learning rates."""
    random = np.random.default_rng(5)
    made = {name: random.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    for name, shape in SHAPES.items():
        made[f"{name}_a"] = random.uniform(0.5, 1.5, size=(STEPS, *shape)).astype(dtype)
        made[f"{name}_b"] = random.normal(size=(STEPS, *shape)).astype(dtype)
    schedule = cosine_with_warmup()
    rates = [2.0**-7 if constant else float(schedule(t)) for t in range(STEPS)]
    made["learning_rates"] = np.array(rates, np.float32).astype(np.float64)
    return made


Apply = Callable[[list[tuple[Any, Any]]], object]


class Trained:
    """A kernel and a bias, and the slot variables of the updates below."""

    def __init__(self, given: dict[str, np.ndarray]) -> None:
        self.weights = [tf.Variable(given[name], name=name) for name in SHAPES]
        self.first, self.second = (
            [tf.Variable(tf.zeros_like(w), trainable=False, name=f"{slot}_{i}") for i, w in enumerate(self.weights)]
            for slot in ("first", "second")
        )
        dtype = self.weights[0].dtype
        self.count = tf.Variable(tf.zeros([], dtype), trainable=False, name="count")
        self.learning_rate = tf.Variable(
            tf.cast(given["learning_rates"][0], dtype), trainable=False, name="learning_rate"
        )

    def step(self, apply: Apply) -> Any:
        """A step whose gradient is ``a * w + b``."""

        @tf.function
        def step(learning_rate: tf.Tensor, *coefficients: tf.Tensor) -> None:
            self.learning_rate.assign(learning_rate)
            with tf.GradientTape() as tape:
                pairs = zip(self.weights, coefficients[::2], coefficients[1::2], strict=True)
                loss = tf.add_n([tf.reduce_sum(tf.stop_gradient(a * w + b) * w) for w, a, b in pairs])
            apply(list(zip(tape.gradient(loss, self.weights), self.weights, strict=True)))

        return step


def torch_adam(trained: Trained) -> Apply:
    """Adam as PyTorch writes it: epsilon is added to the bias-corrected root."""
    dtype = trained.count.dtype
    beta_1, beta_2 = (tf.constant(beta, dtype) for beta in BETAS)
    epsilon = tf.constant(1e-8, dtype)

    def apply(pairs: list[tuple[Any, Any]]) -> None:
        t = trained.count.assign_add(1)
        correction_1, correction_2 = 1 - tf.pow(beta_1, t), tf.sqrt(1 - tf.pow(beta_2, t))
        for (gradient, w), m, v in zip(pairs, trained.first, trained.second, strict=True):
            m.assign(m + (gradient - m) * (1 - beta_1))
            v.assign(v * beta_2 + gradient * gradient * (1 - beta_2))
            w.assign_sub(trained.learning_rate / correction_1 * (m / (tf.sqrt(v) / correction_2 + epsilon)))

    return apply


def torch_momentum(trained: Trained) -> Apply:
    """Momentum as PyTorch writes it: the learning rate is not in the buffer."""

    def apply(pairs: list[tuple[Any, Any]]) -> None:
        for (gradient, w), buffer in zip(pairs, trained.first, strict=True):
            buffer.assign(MOMENTUM * buffer + gradient)
            w.assign_sub(trained.learning_rate * buffer)

    return apply


def apply_op(make: Callable[[Any], Any]) -> Callable[[Trained], Apply]:
    """An optimizer of ``tf.compat.v1``, which makes its slot variables on the first call."""

    def prepared(trained: Trained) -> Apply:
        optimizer = make(lambda: trained.learning_rate)
        optimizer.apply_gradients([(tf.zeros_like(w), w) for w in trained.weights])
        return optimizer.apply_gradients

    return prepared


def keras_optimizer(make: Callable[[float], Any]) -> Callable[[Trained], Apply]:
    """An optimizer of Keras with a constant learning rate."""

    def prepared(trained: Trained) -> Apply:
        optimizer = make(float(trained.learning_rate.numpy()))
        optimizer.build(trained.weights)
        return optimizer.apply_gradients

    return prepared


class TorchCase(NamedTuple):
    """An optimizer of PyTorch with weight decay, and what it is in TensorFlow without."""

    kind: str
    options: dict[str, Any]
    plain: Callable[[Trained], Apply]
    semantics: str
    constant: bool = False  # the learning rate


MomentumOptimizer = tf.compat.v1.train.MomentumOptimizer
_ADAM = {"betas": BETAS}
_BUFFER = {"momentum": MOMENTUM}
TORCH = {
    "AdamW": TorchCase("AdamW", _ADAM, torch_adam, "adamw"),
    # Keras adds epsilon to the root that is not bias-corrected. One so small changes neither: a float64 has 16 digits.
    "AdamW, Keras": TorchCase(
        "AdamW",
        {**_ADAM, "eps": 1e-30},
        keras_optimizer(lambda rate: keras.optimizers.Adam(rate, *BETAS, epsilon=1e-30)),
        "adamw",
        constant=True,
    ),
    "Adam": TorchCase("Adam", _ADAM, torch_adam, "l2"),
    "SGD": TorchCase("SGD", {}, apply_op(tf.compat.v1.train.GradientDescentOptimizer), "l2"),
    "momentum": TorchCase("SGD", _BUFFER, torch_momentum, "l2"),
    "momentum, Apply op": TorchCase("SGD", _BUFFER, apply_op(lambda rate: MomentumOptimizer(rate, MOMENTUM)), "l2"),
    "Nesterov, Apply op": TorchCase(
        "SGD",
        {**_BUFFER, "nesterov": True},
        apply_op(lambda rate: MomentumOptimizer(rate, MOMENTUM, use_nesterov=True)),
        "l2",
    ),
    # Keras keeps lr * buffer, which is the same as long as the learning rate stays.
    "momentum, Keras": TorchCase(
        "SGD",
        _BUFFER,
        keras_optimizer(lambda rate: keras.optimizers.SGD(rate, momentum=MOMENTUM)),
        "l2",
        constant=True,
    ),
}
DTYPES = ("float32", "float64")

RECORD = Path(__file__).with_name("torch_weights.json")
PROGRAM = """
import pickle
import sys

import torch

cases = pickle.load(sys.stdin.buffer)
trained = {}
for key, (kind, options, decay, given) in cases.items():
    weights = {name: torch.nn.Parameter(torch.tensor(given[name])) for name in ("kernel", "bias")}
    groups = [
        {"params": [weights["kernel"]], "weight_decay": decay},
        {"params": [weights["bias"]], "weight_decay": 0.0},
    ]
    optimizer = getattr(torch.optim, kind)(groups, lr=1.0, **options)
    for t, rate in enumerate(given["learning_rates"].tolist()):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, weight in weights.items():
            a, b = (torch.tensor(given[f"{name}_{each}"][t]) for each in "ab")
            weight.grad = a * weight.detach() + b
        optimizer.step()
    trained[key] = [weight.detach().numpy() for weight in weights.values()]
pickle.dump(trained, sys.stdout.buffer)
"""


def torch_cases():
    """What PyTorch is given in each case."""
    return {
        (name, dtype): (case.kind, case.options, WEIGHT_DECAY, numbers(dtype, case.constant))
        for name, case in TORCH.items()
        for dtype in DTYPES
    }


def trained_by_torch(python):
    """What PyTorch trains in each case; in a process of its own, as it and TensorFlow bring OpenMP runtimes each."""
    command = [python, "-c", PROGRAM]
    result = subprocess.run(command, input=pickle.dumps(torch_cases()), check=True, stdout=subprocess.PIPE)
    return pickle.loads(result.stdout)


def digest(case):
    """A digest of what PyTorch is given in a case, so that a record of others is noticed."""
    kind, options, decay, given = case
    told = repr((kind, sorted(options.items()), decay)).encode()
    return hashlib.sha256(told + b"".join(given[name].tobytes() for name in sorted(given))).hexdigest()


def recorded():
    """What PyTorch trained when `tests.conformance.record_torch` was run; its wheel is too large for every run."""
    record = json.loads(RECORD.read_text())
    weights = {}
    for (name, dtype), case in torch_cases().items():
        held = record["cases"][f"{name}, {dtype}"]
        assert held["given"] == digest(case), "PyTorch was given something else: run tests.conformance.record_torch"
        weights[name, dtype] = [np.array(weight, dtype) for weight in held["weights"]]
    return weights


@pytest.fixture(scope="module", params=["recorded", *(["installed"] if importlib.util.find_spec("torch") else [])])
def torch_weights(request):
    """What PyTorch trains in each case."""
    return recorded() if request.param == "recorded" else trained_by_torch(sys.executable)


# In ulps of the largest element: the libraries order the products of an update differently, and so round otherwise. At
# most 10 were measured after 100 steps, 0 for the momentum of Keras.
TORCH_ULPS = 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORCH)
def test_torch(name, dtype, torch_weights):
    case = TORCH[name]
    given = numbers(dtype, case.constant)
    trained = Trained(given)
    step = trained.step(case.plain(trained))
    coefficients = [given[f"{weight}_{each}"] for weight in SHAPES for each in "ab"]
    batches = [
        tuple(tf.constant(each, dtype) for each in arguments)
        for arguments in zip(given["learning_rates"], *coefficients, strict=True)
    ]
    rule = {"weight_decay": WEIGHT_DECAY, "semantics": case.semantics}
    policy = {"version": 1, "rules": [{"name": "bias", "weight_decay": 0}, rule]}
    train(graphwd.rewrite(step.get_concrete_function(*batches[0]), policy), batches)
    assert_agree(torch_weights[name, dtype], values(trained.weights), TORCH_ULPS, ulps_of_largest)
