"""Two logical devices on the one CPU that there is."""

from __future__ import annotations

import tensorflow as tf

from tests.helpers.by_hand import skip_by_hand


def split_cpu() -> None:
    """Makes the devices ``CPU:0`` and ``CPU:1``, unless they are there; skips where TensorFlow has started without."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    except RuntimeError:
        if len(tf.config.list_logical_devices("CPU")) == 1:
            skip_by_hand(
                "TensorFlow can split the CPU in two only before it starts, and another test file has started it in "
                "this process; run this file alone"
            )
