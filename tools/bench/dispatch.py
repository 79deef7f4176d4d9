"""Measures what a call of a rewritten step costs beside a call of the original, in one run.

The step is as small as a step can be, so that dispatch is all there is to measure. The two are called in turn in short
blocks; printed are the medians of the blocks, their quartiles, and the ratio of each pair of blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import graphwd

POLICY = {"version": 1, "rules": [{"weight_decay": 1e-3}]}


def make_step() -> Callable[..., tf.Tensor]:
    """A step of SGD on one number."""
    weight: Any = tf.Variable(tf.constant(1.0), name="weight")

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
    def step(target: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.square(weight - target)
        gradient: Any = tape.gradient(loss, weight)
        weight.assign_sub(1e-3 * gradient)
        return loss

    return step


def block(step: Callable[..., tf.Tensor], argument: tf.Tensor, calls: int) -> float:
    """Seconds a call, over one block of calls."""
    start = time.perf_counter()
    for _ in range(calls):
        step(argument)
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Prints one line a pair as text, or all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    argument = tf.constant(0.5)
    original = make_step()
    decayed = graphwd.with_weight_decay(POLICY)(make_step())
    concrete = original.get_concrete_function()
    pairs = {
        "tf.function": (original, decayed),
        "ConcreteFunction": (concrete, graphwd.rewrite(concrete, POLICY)),
    }
    results = {}
    for name, pair in pairs.items():
        for step in pair:
            block(step, argument, options.calls)
        times = np.array([[block(step, argument, options.calls) for step in pair] for _ in range(options.blocks)])
        ratios = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75])
        results[name] = {
            "original_us": float(np.median(times[:, 0]) * 1e6),
            "decayed_us": float(np.median(times[:, 1]) * 1e6),
            "ratio_quartiles": ratios.tolist(),
        }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, row in results.items():
        low, middle, high = row["ratio_quartiles"]
        print(
            f"{name:17} original {row['original_us']:7.1f} us   decayed {row['decayed_us']:7.1f} us   "
            f"ratio {middle:.3f} (quartiles {low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
