"""Measures the rate that weights lose over many steps, against the rate asked for, in float64.

The steps are those of Keras 3 SGD with a gradient of 0, so that nothing but the decay changes a weight: once decayed by
graphwd with ``semantics: adamw``, once by the ``weight_decay`` of the optimizer itself. The weights are float32 and
begin between 1 and 2, evenly by their logarithm. After each block of steps they are multiplied by powers of 2, which is
exact, so that they stay of that size. The effective rate of a weight is 1 - exp(s / T) with s the sum of the logarithms
of what was left of it after T steps; the logarithms are taken of float64 numbers. Printed are the mean over all
weights, and that of the weight which is furthest off, each relative to the rate asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track
from rich.table import Table

import graphwd

import keras  # isort: skip - after TensorFlow, whose remarks it would set free

RATES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
LEARNING_RATE = 2.0**-10
WEIGHTS = 1000


class Trained:
    """Weights that nothing but decay changes, and the steps that change them."""

    def __init__(self, rate: float, native: bool) -> None:
        """Makes them.

        Args:
            rate: what a step takes of a weight.
            native: whether the optimizer decays, rather than graphwd.
        """
        weight_decay = rate / LEARNING_RATE
        self._start = np.exp2((np.arange(WEIGHTS) + 0.5) / WEIGHTS).astype(np.float32)
        self._weight: Any = keras.Variable(self._start, name="weight")
        optimizer = keras.optimizers.SGD(LEARNING_RATE, weight_decay=weight_decay if native else None)
        optimizer.build([self._weight])
        zero = tf.zeros([WEIGHTS])

        def step() -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self._weight.value * zero)
            optimizer.apply_gradients([(tape.gradient(loss, self._weight.value), self._weight)])

        run: Callable[[], None] = tf.function(step)
        if not native:
            policy = {"version": 1, "rules": [{"weight_decay": weight_decay, "semantics": "adamw"}]}
            run = graphwd.with_weight_decay(policy)(run)
        self._block: Any = tf.function(lambda steps: _repeat(run, steps))

    def effective_rates(self, steps: int, block: int, say: str) -> np.ndarray:
        """The effective rate of each weight.

        Args:
            steps: how many steps.
            block: after how many the weights are scaled.
            say: what the progress bar says.

        Returns:
            A rate for each weight, float64.
        """
        left = np.zeros(WEIGHTS)
        start = self._start
        console = Console(stderr=True)
        for _ in track(range(steps // block), say, transient=True, console=console, disable=not console.is_terminal):
            self._block(tf.constant(block))
            end = self._weight.numpy()
            left += np.log(end.astype(np.float64) / start)
            start = (end * np.exp2(-np.floor(np.log2(end)))).astype(np.float32)
            self._weight.assign(start)
        return -np.expm1(left / (steps // block * block))


def _repeat(run: Callable[[], None], steps: tf.Tensor) -> None:
    for _ in tf.range(steps):
        run()


def measure(rate: float, steps: int) -> list[dict[str, Any]]:
    """The relative errors of both, at one rate."""
    block = min(steps, max(1000, int(1 / rate) // 10))  # a tenth of a power of e, or little more
    rows = []
    for name, native in (("graphwd adamw", False), ("Keras's own", True)):
        rates = Trained(rate, native).effective_rates(steps, block, f"{name}, {rate:g}")
        errors = rates / rate - 1
        rows.append(
            {"decay": name, "rate": rate, "steps": steps, "mean": errors.mean(), "worst": errors[abs(errors).argmax()]}
        )
    return rows


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for rate in options.rates for row in measure(rate, options.steps)]
    if options.json:
        print(json.dumps(rows))
        return
    table = Table(title="effective rates, relative to the rate asked for, less 1")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "decay" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else
                        f"{value:g}" if key == "rate" else f"{value:+.2e}" for key, value in row.items()))  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
