"""Reads what was written for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf


def scalars(directory: Path) -> Mapping[tuple[str, int], float]:
    """The scalars in the event files of a directory, by tag and step."""
    found: dict[tuple[str, int], float] = {}
    for file in sorted(directory.iterdir()):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found
