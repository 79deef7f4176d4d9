"""What decay does to a weight, as it is measured in the step, against the same by NumPy from outside."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.errors import StepError
from graphwd.steps.watch import measures
from tests.helpers.events import scalars

W0 = np.array([[3.0, 4.0], [1.0, -2.0], [0.5, 0.25]])
X = np.array([[1.0, 2.0], [3.0, 4.0], [-1.0, 0.5]])
LEARNING_RATE = 0.125


def policy(semantics="decoupled", rate=0.25, **fields):
    return {"version": 1, "defaults": {"semantics": semantics}, "rules": [{"weight_decay": rate, **fields}]}


def assign_sub(w, g):
    w.assign_sub(LEARNING_RATE * g)


def assign(w, g):
    w.assign(w - LEARNING_RATE * g)


def fused(w, g):
    tf.raw_ops.ResourceApplyGradientDescent(var=w.handle, alpha=tf.constant(LEARNING_RATE, g.dtype), delta=g)


def keras_sgd(w):
    optimizer = keras.optimizers.SGD(LEARNING_RATE)
    optimizer.build([w])
    return lambda w, g: optimizer.apply([g], [w])


def make(w, update, **options):
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w * x)
        update(w, tf.convert_to_tensor(tape.gradient(loss, w)))

    return tf.function(step, **options)


@pytest.mark.parametrize("update", [assign_sub, assign, fused, keras_sgd])
@pytest.mark.parametrize("semantics", ["decoupled", "adamw", "tfa", "l2"])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_one_step_did(update, semantics, compiled):
    w = tf.Variable(W0, name="w")
    step = make(w, keras_sgd(w) if update is keras_sgd else update, jit_compile=compiled)
    watched = graphwd.rewrite(step, policy(semantics), summaries=True)
    watched(tf.constant(X))
    updated = W0 - LEARNING_RATE * X
    rate = 0.25 * (LEARNING_RATE if semantics == "adamw" else 1)
    taken = rate * (updated if semantics == "decoupled" else W0)
    new = W0 - LEARNING_RATE * (X + taken) if semantics == "l2" else updated - taken
    whole = X + taken if semantics == "l2" else new - W0
    np.testing.assert_allclose(w.numpy(), new, rtol=1e-12)
    (measured,) = measures(watched).values()
    norms = [np.linalg.norm(array) for array in (new, taken, whole)]
    expected = [rate, norms[0], norms[1], norms[1] / norms[2]]
    found = [measured.rate, measured.weight_norm, measured.decay_norm, measured.share]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "l2"])
def test_a_watched_step_computes_the_same_bits(dtype, semantics):
    weights = [tf.Variable(tf.cast(W0, dtype), name="w") for _ in range(2)]
    given = policy(semantics, 0.3)
    watched = graphwd.rewrite(make(weights[0], assign_sub), given, summaries=True)
    plain = graphwd.rewrite(make(weights[1], assign_sub), given)
    for _ in range(5):
        watched(tf.cast(X, dtype))
        plain(tf.cast(X, dtype))
    assert weights[0].numpy().tobytes() == weights[1].numpy().tobytes()


@pytest.mark.parametrize("rate", [0.25, 1e-17])  # by multiplying, and by subtracting
def test_rows_that_are_touched_count_once_each(rate):
    table = tf.Variable(W0, name="table")

    @tf.function
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, rows))
        gradient = tape.gradient(loss, table)
        tf.raw_ops.ResourceScatterSub(
            resource=table.handle, indices=gradient.indices, updates=LEARNING_RATE * gradient.values
        )

    watched = graphwd.rewrite(step, policy(rate=rate, sparse="touched"), summaries=True)
    watched(tf.constant([2, 0, 2, 2]))
    updated = W0 - LEARNING_RATE * np.array([[1, 1], [0, 0], [3, 3]])
    (measured,) = measures(watched).values()
    np.testing.assert_allclose(measured.decay_norm, np.linalg.norm(rate * updated[[0, 2]]), rtol=1e-12)


def test_several_updates_of_a_run_and_none():
    w = tf.Variable(W0, name="w")

    @tf.function
    def step(x, times):
        for _ in tf.range(times):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(w * x)
            w.assign_sub(LEARNING_RATE * tf.convert_to_tensor(tape.gradient(loss, w)))

    watched = graphwd.rewrite(step, policy(), summaries=True)
    watched(tf.constant(X), 2)
    first = W0 - LEARNING_RATE * X
    second = 0.75 * first - LEARNING_RATE * X
    (measured,) = measures(watched).values()
    total = 0.25 * (np.linalg.norm(first) + np.linalg.norm(second))
    change = np.linalg.norm(0.75 * second - W0)
    np.testing.assert_allclose(
        [measured.rate, measured.decay_norm, measured.share], [0.25, total, total / change], rtol=1e-12
    )
    watched(tf.constant(X), 0)
    assert not measures(watched)


def test_a_schedule_and_a_tunable():
    w = tf.Variable(W0, name="w")
    schedule = {"schedule": "linear", "from": 0.0, "to": 0.5, "steps": 10}
    watched = graphwd.rewrite(make(w, assign_sub), policy(rate=schedule, tunable="all"), summaries=True)
    for expected in (0.0, 0.05, 0.1):
        watched(tf.constant(X))
        assert measures(watched)["w"].rate == pytest.approx(expected, abs=1e-15)
    graphwd.state(watched).rates["all"].assign(2.0)
    watched(tf.constant(X))
    assert measures(watched)["w"].rate == pytest.approx(0.3)


def test_a_method_of_two_instances():
    class Trainer(tf.Module):
        def __init__(self, scale):
            super().__init__()
            self.w = tf.Variable(scale * W0, name="w")

        def step(self, x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self.w * x)
            self.w.assign_sub(LEARNING_RATE * tf.convert_to_tensor(tape.gradient(loss, self.w)))

    Trainer.step = graphwd.with_weight_decay(policy(), summaries=True)(tf.function(Trainer.step))
    for scale in (1, 2):
        trainer = Trainer(scale)
        trainer.step(tf.constant(X))
        np.testing.assert_allclose(
            measures(trainer.step)["w"].decay_norm, 0.25 * np.linalg.norm(scale * W0 - LEARNING_RATE * X)
        )


def test_what_another_trace_has_decayed_is_not_told():
    weights = {True: tf.Variable(W0, name="x"), False: tf.Variable(2 * W0, name="x")}

    @tf.function
    def step(first):
        w = weights[first]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w * X)
        w.assign_sub(LEARNING_RATE * tf.convert_to_tensor(tape.gradient(loss, w)))

    watched = graphwd.rewrite(step, policy(), summaries=True)
    for first in (True, False, True):
        watched(first)
        (measured,) = measures(watched).values()
        np.testing.assert_allclose(measured.weight_norm, np.linalg.norm(weights[first].numpy()), rtol=1e-12)


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("make_optimizer", [keras.optimizers.SGD, keras.optimizers.Adagrad])
def test_a_coupled_decay_of_rows(width, make_optimizer):
    start = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    table = keras.Variable(start, name="table")
    optimizer = make_optimizer(LEARNING_RATE)
    optimizer.build([table])

    @tf.function
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table.value, rows))
        optimizer.apply_gradients([(tape.gradient(loss, table.value), table)])

    watched = graphwd.rewrite(step, policy("l2"), summaries=True)
    watched(tf.constant([1, 3, 1, 1]))
    (measured,) = measures(watched).values()
    np.testing.assert_allclose(measured.decay_norm, 0.25 * np.linalg.norm(start[[1, 3]]), rtol=1e-6)
    assert measured.share is None


def test_it_is_refused_where_nothing_is_watched():
    w = tf.Variable(W0, name="w")
    step = make(w, assign_sub)
    plain = graphwd.rewrite(step, policy())
    with pytest.raises(StepError, match="give 'summaries=True'"):
        graphwd.write_summaries(plain, step=0)
    with pytest.raises(StepError, match=r"graphwd\.state takes a step"):
        graphwd.write_summaries(step, step=0)
    concrete = step.get_concrete_function(tf.constant(X))
    with pytest.raises(StepError, match=r"rewrite the tf\.function"):
        graphwd.rewrite(concrete, policy(), summaries=True)


TAGS = ["decay_norm", "decay_rate", "decay_share", "weight_norm"]


def test_event_files(tmp_path):
    w = tf.Variable(W0, name="w")
    watched = graphwd.rewrite(make(w, assign_sub), policy(), summaries=True)
    watched(tf.constant(X))
    assert not graphwd.write_summaries(watched, step=0)  # no writer
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        assert graphwd.write_summaries(watched, step=7)
        with tf.summary.record_if(False):
            assert not graphwd.write_summaries(watched, step=8)
    found = scalars(tmp_path)
    assert sorted(found) == [(f"{tag}/w", 7) for tag in TAGS]
    np.testing.assert_allclose(found["weight_norm/w", 7], np.linalg.norm(0.75 * (W0 - LEARNING_RATE * X)), rtol=1e-6)


def test_tensorboard_shows_them(tmp_path):
    w = tf.Variable(W0, name="dense/kernel")
    watched = graphwd.rewrite(make(w, assign_sub), policy(), summaries=True)
    with tf.summary.create_file_writer(str(tmp_path / "run")).as_default():
        for number in range(3):
            watched(tf.constant(X))
            graphwd.write_summaries(watched, step=number)
    program = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path), "--port", "0", "--load_fast=false"]
    log = tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(program, stdout=output, stderr=output) as server:
        try:
            address = _address(server, log)
            tags = _answer(f"{address}data/plugin/scalars/tags")
            assert sorted(tags["run"]) == [f"{tag}/dense/kernel" for tag in TAGS]
            query = urllib.parse.urlencode({"run": "run", "tag": "decay_rate/dense/kernel"})
            points = _answer(f"{address}data/plugin/scalars/scalars?{query}")
            assert [(step, value) for _, step, value in points] == [(0, 0.25), (1, 0.25), (2, 0.25)]
        finally:
            server.terminate()


def _address(server, log):
    """The address that TensorBoard prints once it serves."""
    while server.poll() is None:
        words = log.read_text().split()
        if (found := next((word for word in words if word.startswith("http://localhost")), None)) is not None:
            return found
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def _answer(address):
    """What it answers, once it has read the event files."""
    while True:
        try:
            with urllib.request.urlopen(address) as response:
                if answer := json.load(response):
                    return answer
        except urllib.error.HTTPError as error:
            assert error.code == 404, error  # noqa: PT017 - until it has read them
        time.sleep(0.5)


@pytest.mark.parametrize("semantics", ["decoupled", "adamw", "l2"])
def test_fused_it_measures_the_same(semantics):
    found = []
    for fuse in ({}, {"fuse": "xla"}):
        w = tf.Variable(W0, name="w")
        watched = graphwd.rewrite(make(w, keras_sgd(w)), {**policy(semantics), **fuse}, summaries=True)
        watched(tf.constant(X))
        found.append(measures(watched)["w"])
    np.testing.assert_allclose(dataclasses.astuple(found[1]), dataclasses.astuple(found[0]), rtol=1e-12)


def test_in_a_branch_and_a_function_of_many_variables():
    weights = [tf.Variable(scale * W0, name=f"w{scale}") for scale in (1, 2)]

    @tf.function
    def update(w, x):
        w.assign_sub(LEARNING_RATE * x)

    @tf.function
    def step(x, now):
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(w * x) for w in weights])
        gradients = tape.gradient(loss, weights)
        if now:
            for w, gradient in zip(weights, gradients, strict=True):
                update(w, tf.convert_to_tensor(gradient))

    watched = graphwd.rewrite(step, policy(), summaries=True)
    watched(tf.constant(X), tf.constant(True))
    for scale in (1, 2):
        taken = 0.25 * np.linalg.norm(scale * W0 - LEARNING_RATE * X)
        np.testing.assert_allclose(measures(watched)[f"w{scale}"].decay_norm, taken, rtol=1e-12)
    watched(tf.constant(X), tf.constant(False))
    assert not measures(watched)
