"""Measures a step of TensorFlow Addons beside the undecayed one; runs on TensorFlow 2.15.

Usage: addons_program.py JSON, as `addons` gives it. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import measuring
import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa  # pyright: ignore[reportMissingImports] - it is in no environment but its own
import workloads


def main() -> None:
    """Makes both steps, checks the decay, and times them."""
    asked = json.loads(sys.argv[1])
    workload = workloads.Workload(**asked["workload"])
    make: Any = getattr(tf.keras.optimizers.legacy, asked["optimizer"])
    extended = tfa.optimizers.extend_with_decoupled_weight_decay(make)
    rate = asked["rate"]
    optimizers = {
        "undecayed": make(asked["learning_rate"]),
        "decayed": extended(learning_rate=asked["learning_rate"], weight_decay=rate),
    }
    steps, after = {}, {}
    for name, optimizer in optimizers.items():
        built = workloads.build(workload, tf.Variable)
        before = [variable.numpy() for variable in built.variables]
        decayed = [each for each in built.variables if workload.decays_all or len(each.shape) >= 2]
        steps[name] = make_step(built, optimizer, decayed if name == "decayed" else None, asked["jit_compile"])
        steps[name]()
        after[name] = built.variables[0].numpy()
    start = before[0]
    rows = np.asarray(built.rows) if len(built.rows) else slice(None)
    wanted = after["undecayed"] - (rate * start if len(start.shape) >= 2 or workload.decays_all else 0)
    size = np.spacing(np.maximum(np.abs(wanted), np.float32(asked["learning_rate"])))
    ulps = float(np.max((np.abs(after["decayed"] - wanted) / size)[rows]))
    times, calls = measuring.interleaved(steps, asked["rounds"], asked["budget"])
    print(
        json.dumps(
            {
                "tensorflow": tf.__version__,
                "addons": tfa.__version__,
                "ulps": ulps,
                "calls": calls,
                "times": {name: each.tolist() for name, each in times.items()},
            }
        )
    )


def make_step(built: workloads.Built, optimizer: Any, decayed: list[Any] | None, jit_compile: bool) -> Any:
    """A step; where variables decay the optimizer is told which."""
    optimizer._create_all_weights(built.variables)
    options = {} if decayed is None else {"decay_var_list": decayed}

    @tf.function(jit_compile=jit_compile or None)
    def step(*arguments: Any) -> None:
        with tf.GradientTape() as tape:
            targets, gradients_of_targets = built.losses(*arguments)
        gradients: Any = tape.gradient(targets, built.variables, output_gradients=gradients_of_targets)
        optimizer.apply_gradients(zip(gradients, built.variables), **options)  # noqa: B905

    return lambda: step(*built.arguments)


if __name__ == "__main__":
    main()
