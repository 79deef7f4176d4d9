"""TensorFlow Addons, which ended with TensorFlow 2.15, in a virtual environment and a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from contenders import LEARNING_RATE, RATE, CannotRunError, Case

PACKAGES = ["tensorflow==2.15.1", "tensorflow-addons==0.23.0"]
PYTHON = "python3.11"
"""The last Python that this TensorFlow is there for."""


def install(folder: Path) -> Path:
    """Makes the environment below a folder, unless it is there.

    Returns:
        Its Python.

    Raises:
        CannotRunError: there is no such Python, or pip fails.
    """
    python, stamp = folder / "venv" / "bin" / "python", folder / "installed"
    if stamp.exists() and stamp.read_text().split() == PACKAGES:
        return python
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which(PYTHON)
    if base is None:
        raise CannotRunError(f"{PYTHON} is not there, and TensorFlow 2.15 is for no later one")
    print(f"installing {' and '.join(PACKAGES)} below {folder}", file=sys.stderr)
    for command in (
        [base, "-m", "venv", str(folder / "venv")],
        [str(python), "-m", "pip", "install", "--quiet", *PACKAGES],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRunError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")
    stamp.write_text("\n".join(PACKAGES))
    return python


def measure(python: Path, case: Case, rounds: int, budget: float) -> dict[str, Any]:
    """Measures the undecayed step and the one with its decay, on its TensorFlow.

    Returns:
        What `addons_program` prints.

    Raises:
        CannotRunError: it failed.
    """
    asked = {
        "workload": case.workload._asdict(),
        "optimizer": case.optimizer.removeprefix("legacy."),
        "jit_compile": case.jit_compile,
        "rounds": rounds,
        "budget": budget,
        "learning_rate": LEARNING_RATE,
        "rate": RATE,
    }
    program = Path(__file__).parent / "addons_program.py"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-W", "ignore", str(program), json.dumps(asked)]  # it warns that it has ended
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        raise CannotRunError(errors[-1][:300] if errors else f"exit status {done.returncode}")
    return json.loads(lines[-1])
