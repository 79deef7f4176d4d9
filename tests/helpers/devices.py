"""Two logical devices on the one CPU that there is."""

from __future__ import annotations

import pytest
import tensorflow as tf


def split_cpu() -> None:
    """Makes the devices ``CPU:0`` and ``CPU:1``; skips the test where TensorFlow has started without them."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    except RuntimeError:
        pytest.skip("a process sets TensorFlow's devices once, and an earlier file did: run this file by itself")
