"""Several threads that run one step at once on the same variables: no update of any of them is lost.

Each step takes `STEP` from the weight, and the decay a share of it. How old the weight is that a decay is computed from
depends on the run, and changes it by less than 1e-8. A lost update is `STEP`.
"""

from __future__ import annotations

from concurrent import futures
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.models.saved_model import rewrite_saved_model

v1 = tf.compat.v1

RATE = 2.0**-18
STEP = 2.0**-12
THREADS = 4
STEPS = 40  # of each thread
ROWS, COLUMNS = 400, 500

WEIGHT_DECAY: dict[str, dict[str, Any]] = {
    "constant": {"weight_decay": RATE},
    "adamw": {"weight_decay": RATE / STEP, "semantics": "adamw"},
    "lasso": {"weight_decay": RATE, "formula": "l1"},
}


def policy(rule: str, writers: str = "several", fuse: str = "none") -> dict[str, Any]:
    return {"version": 1, "rules": [WEIGHT_DECAY[rule]], "writers": writers, "fuse": fuse}


def run_at_once(step: Any) -> None:
    """Has every thread run the step over and over again, all at once."""

    def run_often(_: int) -> None:
        for _ in range(STEPS):
            step()

    with futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run_often, range(THREADS)))


def check_no_update_is_lost(weight: np.ndarray, rule: str) -> None:
    """Each of the subtractions rounds, by half a unit of float32 below 1: 2 ** -25."""
    expected = 1.0
    for _ in range(THREADS * STEPS):
        expected -= STEP
        expected -= RATE * (1.0 if rule == "lasso" else expected)
    np.testing.assert_allclose(weight, expected, rtol=0, atol=2 * THREADS * STEPS * 2.0**-25)


class Training:
    """A weight of ones, and a step that takes `STEP` from each element, or from those of half the rows."""

    def __init__(self, *, sparse: bool = False, jit_compile: bool = False) -> None:
        self.weight = tf.Variable(tf.ones([ROWS, COLUMNS]), name="weight")
        self.learning_rate = tf.Variable(STEP, trainable=False, name="learning_rate")
        self.iterations = tf.Variable(0, dtype=tf.int64, trainable=False, name="iterations")
        rows = tf.range(0, ROWS, 2)

        @tf.function(jit_compile=jit_compile)
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(self.weight, rows) if sparse else self.weight)
            gradient = tape.gradient(loss, self.weight)
            if sparse:
                self.weight.scatter_sub(tf.IndexedSlices(self.learning_rate * gradient.values, gradient.indices))
            else:
                self.weight.assign_sub(self.learning_rate * gradient)
            self.iterations.assign_add(1)

        self.step = step


@pytest.mark.parametrize("fuse", ["none", "xla"])
@pytest.mark.parametrize("rule", WEIGHT_DECAY)
def test_threads_that_call_a_decorated_step(rule, fuse):
    training = Training()
    run_at_once(graphwd.with_weight_decay(policy(rule, fuse=fuse))(training.step))
    assert training.iterations == THREADS * STEPS
    check_no_update_is_lost(training.weight.numpy(), rule)


@pytest.mark.parametrize("rule", WEIGHT_DECAY)
def test_rows_are_subtracted_from(rule):
    """In one op, as the update does it. Threads would tell nothing: TensorFlow does not lock what such an op writes."""
    training = Training(sparse=True)
    concrete = training.step.get_concrete_function()
    decayed = graphwd.rewrite(concrete, policy(rule))

    def writes(function: Any) -> list[str]:
        ops = (operation.type for operation in function.graph.get_operations())
        return sorted(op for op in ops if op.startswith(("ResourceScatter", "Assign")))

    assert writes(decayed) == sorted([*writes(concrete), "ResourceScatterSub"])
    for _ in range(THREADS * STEPS):
        decayed()
    touched, others = training.weight.numpy()[::2], training.weight.numpy()[1::2]
    check_no_update_is_lost(touched, rule)
    np.testing.assert_array_equal(others, 1)


@pytest.mark.parametrize("writers", ["one", "several"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("rule", ["constant", "adamw"])
def test_a_compiled_step_needs_no_word(rule, sparse, writers):
    """TensorFlow locks the variables of what XLA compiles while it runs."""
    training = Training(sparse=sparse, jit_compile=True)
    run_at_once(graphwd.with_weight_decay(policy(rule, writers))(training.step))
    check_no_update_is_lost(training.weight.numpy()[::2], rule)
    if sparse:
        np.testing.assert_array_equal(training.weight.numpy()[1::2], 1)


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
@pytest.mark.parametrize("rule", WEIGHT_DECAY)
def test_threads_at_one_session(tmp_path, rule, resource):
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("net", use_resource=resource):
            weight = v1.get_variable("weight", initializer=np.ones([ROWS, COLUMNS], np.float32))
        counter = v1.train.get_or_create_global_step()
        optimizer = v1.train.GradientDescentOptimizer(STEP, use_locking=True)
        train = optimizer.minimize(tf.reduce_sum(weight), global_step=counter)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        with tf.control_dependencies([train]):
            signature = v1.saved_model.build_signature_def(
                outputs={"steps": v1.saved_model.build_tensor_info(tf.identity(counter))}
            )
        builder.add_meta_graph_and_variables(session, ["train"], {"train": signature})
        builder.save()
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy(rule))
    with tf.Graph().as_default(), v1.Session() as session:
        v1.saved_model.load(session, ["train"], str(tmp_path / "decayed"))
        (train,) = v1.get_collection("train_op")
        run_at_once(lambda: session.run(train))
        (weight,) = v1.trainable_variables()
        check_no_update_is_lost(session.run(weight), rule)


def test_a_formula_of_the_update_is_refused():
    rule = {"weight_decay": RATE, "formula": "cautious"}
    step = graphwd.with_weight_decay({"version": 1, "rules": [rule], "writers": "several"})(Training().step)
    with pytest.raises(graphwd.PlanError, match="it is one of several writers, where the formula cautious cannot tell"):
        step()
