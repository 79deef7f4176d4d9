"""The script that checks decayed steps on a GPU, run here on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import tensorflow as tf

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu_lockstep.py"


def run(*arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=env, capture_output=True, text=True, check=False
    )
    return ran.returncode, ran.stdout.splitlines()


def test_without_a_gpu_it_says_so():
    assert not tf.config.list_physical_devices("GPU")
    assert run() == (3, ["no GPU here: nothing was run"])


def test_a_line_a_row():
    """The update of a table by Keras's RMSprop, by rows that XLA does not know the number of."""
    status, lines = run("--device", "CPU", "--only", "keras.RMSprop   tfa       touched")
    assert status == 0
    assert len(lines) == 5
    for line in lines[:4]:
        assert re.fullmatch(r"keras\.RMSprop   tfa       touched (float32|bfloat16)\s+(-|xla) +ok: [\d.]+ ulp", line), (
            line
        )
    assert lines[4] == "4 rows on CPU, 0 wrong, 0 not run"
