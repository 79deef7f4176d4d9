"""Measures what tracing a decorated step costs beside tracing the original, and importing graphwd beside TensorFlow.

The step trains MobileNetV2 on images of 96 x 96 with Keras 3 Adam, and is traced anew, plain and decorated in turn, in
one process. Printed are the medians, their quartiles, and the median ratio of each pair. Imports are timed in processes
of their own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import graphwd

import keras  # isort: skip - after TensorFlow, whose remarks it would set free

RULES = [{"regex": "kernel", "weight_decay": 1e-4}, {"weight_decay": 0}]
SPECS = [tf.TensorSpec([8, 96, 96, 3]), tf.TensorSpec([8], tf.int32)]


def make_step(semantics: str | None) -> tuple[Any, Any]:
    """What traces the step: as it is, or decorated."""
    made: Any = keras.applications.MobileNetV2  # its stubs take weights for a text
    model = made((96, 96, 3), weights=None, classes=10)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy()

    def trace() -> Any:
        @tf.function
        def step(images: tf.Tensor, labels: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                outputs: Any = model(images, training=True)
                loss: Any = loss_of(labels, outputs)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(list(zip(gradients, model.trainable_variables, strict=True)))
            return loss

        policy = {"version": 1, "defaults": {"semantics": semantics or "decoupled"}, "rules": RULES}
        traced = step if semantics is None else graphwd.with_weight_decay(policy)(step)
        return traced.get_concrete_function(*SPECS)

    return model, trace


def seconds(call: Any) -> float:
    """Wall seconds of a call, which does not pay for the garbage of what ran before."""
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def import_seconds(module: str, repetitions: int) -> float:
    """The median time that a process takes which imports a module, less that of one which imports none."""

    def process(program: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", program], check=True, capture_output=True))

    return statistics.median(process(f"import {module}") - process("pass") for _ in range(repetitions))


def main() -> None:
    """Prints a line a measurement, or all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kept, traces = zip(*(make_step(semantics) for semantics in (None, "decoupled", "adamw")), strict=True)
    times = np.array([[seconds(trace) for trace in traces] for _ in range(options.repetitions + 1)])[1:]
    names = ["plain", "decoupled", "adamw"]
    result: dict[str, Any] = {
        "tracing": {
            name: {
                "seconds": float(np.median(column)),
                "quartiles": [float(each) for each in np.percentile(column, [25, 75])],
                "ratio": float(np.median(column / times[:, 0])),
            }
            for name, column in zip(names, times.T, strict=True)
        },
        "imports": {name: import_seconds(name, 3) for name in ("graphwd", "tensorflow", "graphwd.steps.decorator")},
    }
    assert len(kept) == len(names)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, row in result["tracing"].items():
        low, high = row["quartiles"]
        print(f"tracing MobileNetV2, {name:9}: {row['seconds']:.2f} s ({low:.2f} to {high:.2f}), {row['ratio']:.2f} x")
    for name, took in result["imports"].items():
        print(f"import {name:17}: {took:.2f} s")


if __name__ == "__main__":
    main()
