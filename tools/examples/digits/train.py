"""Trains the digit classifier with and without weight decay, and prints what the decay did."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from digits import Digits, load_digits, make_model, make_step
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import graphwd

BATCH = 50


def batches(data: Digits, epochs: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """The training batches of all epochs, shuffled anew in each, the same in every run."""
    images, labels = data.train
    random = np.random.default_rng(1)
    for _ in range(epochs):
        for rows in np.split(random.permutation(len(labels)), len(labels) // BATCH):
            yield tf.constant(images[rows]), tf.constant(labels[rows])


def train(step: Callable[..., tf.Tensor], data: Digits, epochs: int, progress: Progress, title: str) -> None:
    """Runs a step over all batches under a progress bar."""
    total = epochs * len(data.train[1]) // BATCH
    for batch in progress.track(batches(data, epochs), total=total, description=title):
        step(*batch)


def accuracy(model: keras.Model, data: Digits) -> float:
    """The share of test images that a model classifies correctly."""
    images, labels = data.test
    return float(np.mean(np.argmax(model(images, training=False), axis=1) == labels))


def main() -> None:
    """Trains twice from the same weights on the same batches and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--policy", default=str(Path(__file__).with_name("policy.yaml")))
    options = parser.parse_args()

    data = load_digits()
    plain, decayed = make_model(), make_model()
    with Progress() as progress:
        train(make_step(plain), data, options.epochs, progress, "without decay")
        decayed_step = graphwd.rewrite(make_step(decayed), options.policy)
        train(decayed_step, data, options.epochs, progress, "with decay   ")

    table = Table("", "without decay", "with decay")
    table.add_row("test accuracy", f"{accuracy(plain, data):.4f}", f"{accuracy(decayed, data):.4f}")
    for before, after in zip(plain.trainable_variables, decayed.trainable_variables, strict=True):
        if before.path.endswith("kernel"):
            table.add_row(f"‖{before.path}‖", f"{np.linalg.norm(before):.3f}", f"{np.linalg.norm(after):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
