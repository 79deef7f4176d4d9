"""Formulas and schedules in models that are edited as files: what needs no new variable works, the rest is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.models.saved_model import describe_saved_model, rewrite_saved_model, strip
from tests.helpers import v1_models

v1 = tf.compat.v1
SCHEDULE = {"schedule": "linear", "from": 0.5, "to": 0.0, "steps": 4}
START = np.linspace(-1.5, 2, 6).reshape(2, 3)


def policy(name, **rule):
    return {"version": 1, "rules": [{"name": name, "weight_decay": 0.125, **rule}, {"weight_decay": 0}]}


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
@pytest.mark.parametrize("optimizer", [v1.train.GradientDescentOptimizer, v1.train.AdamOptimizer])
@pytest.mark.parametrize("formula", ["l2", "l1"])
def test_a_schedule_by_the_global_step_of_tensorflow_1(tmp_path, optimizer, resource, formula):
    v1_models.save(tmp_path / "model", lambda: optimizer(0.05), resource=resource)
    rule = policy("net/kernel", weight_decay=SCHEDULE, formula=formula)
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", rule)
    runs = iter(range(9))

    def by_hand(kernel):
        rate = 0.5 - 0.125 * next(runs)
        return (kernel - rate * (np.sign(kernel) if formula == "l1" else kernel)).astype(np.float32)

    mine = v1_models.run(v1_models.from_saved_model(tmp_path / "decayed"))
    theirs = v1_models.run(v1_models.from_saved_model(tmp_path / "model"), set_kernel=by_hand)
    for ours, other in zip(mine.kernels, theirs.kernels, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)
    assert strip(tmp_path / "decayed", tmp_path / "stripped") == 1
    original, stripped = (tmp_path / name / "saved_model.pb" for name in ("model", "stripped"))
    assert stripped.read_bytes() == original.read_bytes()


class Net(tf.Module):
    """A weight under Keras's SGD, whose counter the SavedModel holds."""

    def __init__(self):
        self.w = keras.Variable(START, dtype="float64", name="w")
        self.optimizer = keras.optimizers.SGD(0.25)
        self.optimizer.build([self.w])
        self.held = [self.w.value, *(variable.value for variable in self.optimizer.variables)]

    @tf.function(input_signature=[tf.TensorSpec(START.shape, tf.float64)])
    def step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.w.value * x)
        self.optimizer.apply([tape.gradient(loss, self.w.value)], [self.w])


def weight_of(loaded):
    """The weight that the loaded step trains, which is an object apart from that of Keras."""
    return next(each for each in loaded.step.concrete_functions[0].variables if each.name == "w:0")


CASES = {
    "schedule": ({"weight_decay": SCHEDULE}, lambda w, plain, t: plain * (1 - max(0.5 - 0.125 * t, 0))),
    "huber": (
        {"formula": {"name": "huber", "delta": 0.5}, "order": "before"},
        lambda w, plain, _: plain - 0.125 * np.clip(w, -0.5, 0.5),
    ),
    "cautious": (
        {"formula": "cautious"},
        lambda w, plain, _: plain - 0.125 * np.where(w * (w - plain) >= 0, w, 0),
    ),
    "function": (
        {"formula": lambda weight: tf.cond(weight[0, 0] > -1, lambda: weight, lambda: tf.zeros_like(weight))},
        lambda w, plain, _: plain - 0.125 * (plain if plain[0, 0] > -1 else 0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_saved_model(tmp_path, name):
    rule, by_hand = CASES[name]
    tf.saved_model.save(Net(), str(tmp_path / "model"))
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy("w", **rule))
    loaded = tf.saved_model.load(str(tmp_path / "decayed"))
    exact = START
    for t, x in enumerate(np.random.default_rng(5).normal(size=(6, *START.shape))):
        loaded.step(tf.constant(x))
        exact = by_hand(exact, exact - 0.25 * x, t)
        np.testing.assert_allclose(weight_of(loaded), exact, rtol=1e-12, atol=1e-15)
    (decay,) = describe_saved_model(tmp_path / "decayed")
    assert decay["factors"] == (["linear(from=0.5, to=0, steps=4)"] if name == "schedule" else [])
    assert decay["formula"] == {"schedule": "l2", "huber": "huber(delta=0.5)", "function": "<lambda>"}.get(name, name)
    assert strip(tmp_path / "decayed", tmp_path / "stripped") == 1
    original, stripped = (tmp_path / name / "saved_model.pb" for name in ("model", "stripped"))
    assert stripped.read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    "rule", [{"tunable": "body"}, {"formula": "l2_sp"}, {"weight_decay": {**SCHEDULE}, "tunable": "body"}]
)
def test_what_needs_a_new_variable_is_refused(tmp_path, rule):
    tf.saved_model.save(Net(), str(tmp_path / "model"))
    with pytest.raises(graphwd.PlanError, match="the policy needs variables that the model does not have"):
        rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy("w", **rule))
    assert not (tmp_path / "decayed").exists()


def test_an_exported_step_carries_its_variables(tmp_path):
    net = Net()
    decayed = graphwd.rewrite(net.step, policy("w", tunable="body"))
    module = tf.Module()
    module.step, module.held, module.decay = decayed, net.held, graphwd.state(decayed)
    decayed.get_concrete_function()
    tf.saved_model.save(module, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    for rate in (0.125, 0.5):
        loaded.decay.rates["body"].assign(rate)
        before = weight_of(loaded).numpy()
        loaded.step(tf.zeros(START.shape, tf.float64))
        np.testing.assert_allclose(weight_of(loaded), before * (1 - rate), rtol=1e-15)


@pytest.mark.parametrize("rule", [{"tunable": "body"}, {"formula": "l2_sp"}])
def test_the_decay_of_an_exported_step_with_variables_is_not_taken_out(tmp_path, rule):
    net = Net()
    decayed = graphwd.rewrite(net.step.get_concrete_function(), policy("w", **rule))
    module = tf.Module()
    module.step, module.held, module.decay = decayed, net.held, graphwd.state(decayed)
    tf.saved_model.save(module, str(tmp_path / "model"))
    with pytest.raises(graphwd.RewriteError, match="exported from Python with variables of graphwd's own"):
        strip(tmp_path / "model", tmp_path / "stripped")
    assert not (tmp_path / "stripped").exists()


class Counting(tf.Module):
    """A weight and a counter. Its one function TensorFlow makes the default signature, if none is given."""

    def __init__(self):
        self.w = tf.Variable(START, name="w")
        self.c = tf.Variable(0, dtype=tf.int64, trainable=False, name="c")

    def update(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.w * x)
        self.w.assign_sub(0.25 * tape.gradient(loss, self.w))

    @tf.function(input_signature=[tf.TensorSpec(START.shape, tf.float64, name="x")])
    def step(self, x):
        self.update(x)
        self.c.assign_add(1)
        return {"count": self.c.read_value()}


class CountingTwice(Counting):
    """The same with another function that updates the weight, and may count."""

    def __init__(self, *, counts=True):
        super().__init__()
        self.counts = counts

    @tf.function(input_signature=[tf.TensorSpec(START.shape, tf.float64, name="x")])
    def other(self, x):
        self.update(2 * x)
        if self.counts:
            self.c.assign_add(1)


SIGNATURES = {
    "the one function": lambda net: None,
    "a signature": lambda net: {"train": net.step},
    "two signatures of one function": lambda net: {"train": net.step, "again": net.step},
}


@pytest.mark.parametrize("signatures", SIGNATURES)
@pytest.mark.parametrize("step", [None, "c"])
def test_a_function_and_its_signatures_share_a_counter(tmp_path, signatures, step):
    """A run is of one of them, and each counts: t is the number of updates, whichever made them."""
    net = Counting()
    tf.saved_model.save(net, str(tmp_path / "model"), signatures=SIGNATURES[signatures](net))
    rule = policy("w", weight_decay=SCHEDULE, **({"step": step} if step else {}))
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", rule)
    check_counted(tmp_path, ["step", *tf.saved_model.load(str(tmp_path / "model")).signatures])
    strip(tmp_path / "decayed", tmp_path / "stripped")
    original, stripped = (tmp_path / name / "saved_model.pb" for name in ("model", "stripped"))
    assert stripped.read_bytes() == original.read_bytes()


def check_counted(tmp_path, names):
    """Trains by several functions in turn; each counts."""
    loaded = tf.saved_model.load(str(tmp_path / "decayed"))
    exact = START
    for t, x in enumerate(np.random.default_rng(5).normal(size=(3 * len(names), *START.shape))):
        name = names[t % len(names)]
        if name in loaded.signatures:
            loaded.signatures[name](x=tf.constant(x))
        else:
            getattr(loaded, name)(tf.constant(x))
        exact = (exact - 0.25 * x * (2 if name == "other" else 1)) * (1 - max(0.5 - 0.125 * t, 0))
        np.testing.assert_allclose(loaded.w, exact, rtol=1e-12)


def test_two_functions_that_share_a_counter(tmp_path):
    net = CountingTwice()
    tf.saved_model.save(net, str(tmp_path / "model"), signatures={"train": net.step})
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy("w", weight_decay=SCHEDULE))
    check_counted(tmp_path, ["step", "other", "train", "other"])


def test_two_functions_of_which_one_does_not_count_are_refused(tmp_path):
    tf.saved_model.save(CountingTwice(counts=False), str(tmp_path / "model"))
    with pytest.raises(graphwd.PlanError, match="the policy needs variables that the model does not have"):
        rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy("w", weight_decay=SCHEDULE))
    with pytest.raises(graphwd.PlanError, match="'step: c' names none of the variables"):
        rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy("w", weight_decay=SCHEDULE, step="c"))


def test_the_export_of_an_optimizer_of_keras_with_a_signature(tmp_path):
    net = Net()
    net.train = tf.function(lambda x: [net.step(x), x][1], input_signature=[tf.TensorSpec(START.shape, tf.float64)])
    tf.saved_model.save(net, str(tmp_path / "model"), signatures={"train": net.train})
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy("w", weight_decay=SCHEDULE))
    loaded = tf.saved_model.load(str(tmp_path / "decayed"))
    weight, exact = weight_of(loaded), START
    train, name = loaded.signatures["train"], next(iter(loaded.signatures["train"].structured_input_signature[1]))
    for t, x in enumerate(np.random.default_rng(5).normal(size=(6, *START.shape))):
        if t % 2:
            loaded.step(tf.constant(x))
        else:
            train(**{name: tf.constant(x)})
        exact = (exact - 0.25 * x) * (1 - max(0.5 - 0.125 * t, 0))
        np.testing.assert_allclose(weight, exact, rtol=1e-12)
