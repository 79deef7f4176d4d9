"""Runs decayed steps of real optimizers on a GPU and checks every variable: one line a row.

Each row is an optimizer, a meaning, a kind of update, a dtype, and whether XLA compiles the step. `graphwd.verify` runs
the original in pieces with the decay in NumPy in float64 between them, and the rewritten step, from the same state.
Then the step runs once more with its devices recorded: every injected node must have run on the GPU.

Exit status: 0 all rows are right; 1 a row is wrong; 3 there is no GPU, and nothing was run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.python.eager import context

import graphwd
from graphwd.errors import PlanError

import keras  # isort: skip - after TensorFlow, whose remarks it would set free

NOT_RUN = 3
ROWS, WIDTH, CLASSES = 50, 8, 4
BATCH = np.arange(6), np.zeros((6, CLASSES), np.float32)

OPTIMIZERS = {
    "keras.SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "keras.Adam": lambda: keras.optimizers.Adam(0.01),
    "keras.RMSprop": lambda: keras.optimizers.RMSprop(0.01),
    "legacy.SGD": lambda: tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9),
    "legacy.Adam": lambda: tf_keras.optimizers.legacy.Adam(0.01),
    "legacy.Adagrad": lambda: tf_keras.optimizers.legacy.Adagrad(0.1),
}
MEANINGS = ["decoupled", "tfa", "adamw", "l2"]
TOLERANCE = {False: 4.0, True: 32.0}
"""In units in the last place. XLA contracts products and sums of the optimizer's own arithmetic, which verify does not
compile; that the decay is not one of them shows where the step is not compiled."""


class Row(NamedTuple):
    """One case."""

    optimizer: str
    semantics: str
    update: str
    dtype: str
    jit_compile: bool

    def __str__(self) -> str:
        """The case as the line begins."""
        compiled = "xla" if self.jit_compile else "-"
        return f"{self.optimizer:15} {self.semantics:9} {self.update:7} {self.dtype:8} {compiled:3}"


def rows() -> Iterator[Row]:
    """Every case; a coupled decay of a whole table by a sparse gradient is refused, and no row."""
    for row in itertools.product(
        OPTIMIZERS, MEANINGS, ["dense", "touched", "all"], ["float32", "bfloat16"], [False, True]
    ):
        if row[1:3] != ("l2", "all"):
            yield Row(*row)


def make_step(row: Row) -> Any:
    """A classifier on sums of embeddings; the table's gradient is sparse unless the update is dense."""
    library = keras if row.optimizer.startswith("keras") else tf_keras
    random = np.random.default_rng(1)
    make: Any = keras.Variable if library is keras else tf.Variable
    table, kernel = (
        make(random.normal(size=size).astype(np.float32), dtype=row.dtype, name=name)
        for name, size in (("table", (ROWS, WIDTH)), ("kernel", (WIDTH, CLASSES)))
    )
    optimizer = OPTIMIZERS[row.optimizer]()
    if library is keras:
        optimizer.build([table, kernel])

    @tf.function(
        jit_compile=row.jit_compile, input_signature=[tf.TensorSpec([6], tf.int64), tf.TensorSpec([6, CLASSES])]
    )
    def step(ids: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        weights = [each.value if library is keras else each for each in (table, kernel)]
        with tf.GradientTape() as tape:
            looked_up = weights[0] * 1 if row.update == "dense" else weights[0]
            outputs = tf.matmul(tf.gather(looked_up, tf.math.floormod(ids, ROWS)), weights[1])
            loss = tf.reduce_mean(tf.square(tf.cast(outputs, tf.float32) - targets))
        gradients = tape.gradient(loss, weights)
        optimizer.apply_gradients(list(zip(gradients, [table, kernel], strict=True)))
        return loss

    return step


def run(row: Row, device: str) -> str:
    """What one row comes to: ``ok`` and the largest error, or ``refused``, ``not run`` or ``WRONG``, and why."""
    with tf.device(f"{device}:0"):
        step = make_step(row)
        rows_decayed = "all" if row.update == "dense" else row.update
        rule = {"weight_decay": 0.125, "semantics": row.semantics, "sparse": rows_decayed}
        policy = {"version": 1, "rules": [rule]}
        concrete = step.get_concrete_function()
        try:
            concrete(*BATCH)
        except tf.errors.OpError as error:
            return f"not run, nor is the original: {str(error).splitlines()[0][:120]}"
        try:
            rewritten = graphwd.rewrite(concrete, policy)
        except PlanError as error:
            return f"refused: {str(error).splitlines()[0]}"
        found = graphwd.verify(concrete, rewritten, policy, runs=3, tolerance=TOLERANCE[row.jit_compile])
        elsewhere = set() if row.jit_compile else off_device(rewritten, device)
    if elsewhere:
        return f"WRONG: not on the {device}: {', '.join(sorted(elsewhere))}"
    if not found.ok:
        return f"WRONG: {str(found).splitlines()[-1]}"
    return f"ok: {found.largest_error:.3g} ulp"


def off_device(step: Any, device: str) -> set[str]:
    """The injected nodes that do not run on a kind of device."""
    context.enable_run_metadata()
    try:
        step(*BATCH)
        graphs = context.export_run_metadata().partition_graphs
    finally:
        context.disable_run_metadata()
    injected = [node for graph in graphs for node in graph.node if "graphwd/" in node.name]
    return {f"{node.op} {node.name}" for node in injected if f"device:{device}" not in node.device}


def main() -> int:
    """Prints a line a row.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="GPU", choices=["CPU", "GPU"], help="where to run (default: %(default)s)")
    parser.add_argument("--only", default="", help="the rows whose line holds this text")
    options = parser.parse_args()
    if not tf.config.list_physical_devices(options.device):
        print(f"no {options.device} here: nothing was run")
        return NOT_RUN
    outcomes = []
    for row in rows():
        if options.only in str(row):
            outcomes.append(run(row, options.device))
            print(f"{row} {outcomes[-1]}", flush=True)
    wrong, not_run = (sum(outcome.startswith(start) for outcome in outcomes) for start in ("WRONG", "not run"))
    print(f"{len(outcomes)} rows on {options.device}, {wrong} wrong, {not_run} not run")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
