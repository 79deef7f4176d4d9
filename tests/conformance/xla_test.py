"""Compiled steps stay compiled: the injected nodes are part of the one cluster that a step was and stays."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import graphwd
from tests.helpers.lockstep import assert_bit_equal

RATE = 0.25
MEANINGS = ["decoupled", "tfa", "adamw", "l2"]


def policy_of(semantics, sparse="touched"):
    rule = {"weight_decay": RATE, "semantics": semantics, "sparse": sparse}
    if semantics == "adamw":
        rule["learning_rate"] = "learning_rate"
    return {"version": 1, "rules": [rule]}


def embedding_step(jit_compile, dtype="float32", *, unique=False):
    """SGD on a table of six rows, by its sparse gradient, and on a kernel; all numbers are sums of powers of two.

    With ``unique`` the rows are looked up once each: XLA knows only at most how many those are.
    """
    table = tf.Variable(np.arange(1, 13).reshape(6, 2) / 4, dtype=dtype, name="table")
    kernel = tf.Variable(np.ones((2, 2)), dtype=dtype, name="kernel")
    learning_rate = tf.Variable(0.5, dtype=dtype, name="learning_rate", trainable=False)

    @tf.function(jit_compile=jit_compile)
    def step(ids):
        with tf.GradientTape() as tape:
            used, places = tf.unique(ids) if unique else (ids, tf.range(tf.size(ids)))
            loss = tf.reduce_sum(tf.gather(tf.gather(table, used), places) @ kernel)
        sparse, dense = tape.gradient(loss, [table, kernel])
        table.scatter_sub(tf.IndexedSlices(sparse.values * learning_rate, sparse.indices))
        kernel.assign_sub(learning_rate * dense)
        return loss

    return step, [table, kernel]


def cases():
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        for semantics in MEANINGS:
            for sparse in ("touched", "all"):
                if (semantics, sparse) != ("l2", "all"):  # refused: a sparse gradient has no place for other rows
                    yield dtype, semantics, sparse


@pytest.mark.parametrize(("dtype", "semantics", "sparse"), list(cases()))
def test_compiled_it_computes_the_same(dtype, semantics, sparse):
    results = []
    for jit_compile in (False, True):
        step, variables = embedding_step(jit_compile, dtype)
        decayed = graphwd.with_weight_decay(policy_of(semantics, sparse))(step)
        start = [variable.numpy() for variable in variables]
        loss = decayed(tf.constant([1, 3, 1, 5]))
        decayed(tf.constant([4]))
        results.append([loss.numpy(), *(variable.numpy() for variable in variables)])
        assert decayed.get_concrete_function(tf.TensorSpec([4], tf.int32)).function_def.attr["_XlaMustCompile"].b is (
            jit_compile
        )
        if sparse == "all":
            assert (variables[0].numpy()[0] != start[0][0]).all()
    for plain, compiled in zip(*results, strict=True):
        assert_bit_equal(plain, compiled)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("semantics", MEANINGS)
def test_rows_of_a_number_that_only_the_run_tells(semantics, dtype):
    """What lies behind the end of such a list is no row to be decayed."""
    results = []
    for jit_compile in (False, True):
        step, variables = embedding_step(jit_compile, unique=True)
        decayed = graphwd.with_weight_decay(policy_of(semantics))(step)
        for ids in ([1, 3, 1, 5], [2, 2, 2, 2], [5, 4, 3, 4], [3]):
            decayed(tf.constant(ids, dtype))
        results.append([variable.numpy() for variable in variables])
    for plain, compiled in zip(*results, strict=True):
        assert_bit_equal(plain, compiled)
    assert_bit_equal(results[1][0][0], np.float32([0.25, 0.5]))  # row 0 was never touched


def test_the_decay_is_in_the_compiled_program():
    step, _ = embedding_step(True, "float32")
    programs = [
        each.experimental_get_compiler_ir(tf.constant([1, 3]))(stage="hlo")
        for each in (step, graphwd.with_weight_decay(policy_of("decoupled", "all"))(step))
    ]
    assert ["constant(0.75)" in program for program in programs] == [False, True]


_TRAINING = """
import json, sys
import keras
import numpy as np
import graphwd
where, policy = json.loads(sys.argv[1])
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
optimizer = keras.optimizers.Adam(0.5)
optimizer.build(model.trainable_variables)
model.compile(optimizer, "mse", jit_compile=True)
if policy:
    graphwd.keras.attach(model, policy)
model.fit(np.ones((8, 3)), np.ones((8, 2)), batch_size=4, epochs=3, verbose=0)
"""


_PRODUCT = re.compile(r"= f32\[\d[\d,]*\]\S* multiply\(")  # of numbers: f32[]


def clusters(policy, directory):
    """For each cluster that a training by ``fit`` compiles, the tensors multiplied in the program that XLA dumps."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": f"--xla_dump_to={directory} --xla_dump_hlo_as_text",
    }
    arguments = json.dumps([str(directory), policy])
    subprocess.run([sys.executable, "-c", _TRAINING, arguments], env=env, check=True, capture_output=True)
    programs = [path.read_text() for path in directory.glob("*.before_optimizations.txt")]
    return [len(_PRODUCT.findall(program)) for program in programs]


def test_the_number_of_compiled_clusters_stays(tmp_path):
    """One for the step; the decay of two kernels and two biases is four more products of tensors in it."""
    plain = clusters(None, tmp_path / "plain")
    assert len(plain) == 1
    assert clusters(policy_of("decoupled"), tmp_path / "decayed") == [plain[0] + 4]
    adamw = policy_of("adamw")
    del adamw["rules"][0]["learning_rate"]
    assert clusters(adamw, tmp_path / "adamw") == [plain[0] + 4]
