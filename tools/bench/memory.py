"""Measures how much memory a step takes at its peak, with and without decay: `.venv/bin/python tools/bench/memory.py`.

Each contender of a case trains in a process of its own. The peak of a step is the most memory that the process has
resident while it takes that step, less what it had before, as Linux counts it (``VmHWM`` of /proc/self/status, set back
before each step). So that what a step has used is free again after it, glibc maps each piece of memory by itself, and
the allocator of oneDNN, which keeps its memory, is off. Printed are the median of the steps and the quartiles, in MB,
what the median is above that of the undecayed step, and the same in multiples of the largest variable that decays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from contenders import DENSE, OWN, UNDECAYED, Case, make
from measuring import quartiles
from rich.console import Console
from rich.table import Table
from workloads import Workload, tensor_of, workloads

CONTENDERS = (UNDECAYED, "graphwd decoupled", "graphwd adamw", "graphwd adamw, fuse: xla", OWN)
MB = 1e6


ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "TF_ENABLE_ONEDNN_OPTS": "0"}


def peaks(case: Case, contender: str, steps: int) -> dict[str, Any]:
    """How many bytes each of some steps takes at its peak, and how many the largest decayed variable has."""
    step, call = make(case, contender)
    for _ in range(3):
        call()
    taken: list[int] = []
    for _ in range(steps):
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident now
        before = resident("VmRSS")
        call()
        taken.append(resident("VmHWM") - before)
    return {"peaks": taken, "largest": max(tensor_of(each).shape.num_elements() for each in step.decayed) * 4}


def resident(key: str) -> int:
    """A number of bytes of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measured(workload: Workload, optimizer: str, contender: str, options: argparse.Namespace) -> dict[str, Any]:
    """The same, in a process of its own."""
    one = json.dumps([workload.name, optimizer, contender])
    command = [sys.executable, __file__, "--one", one, "--steps", str(options.steps), *["--quick"] * options.quick]
    env = {**os.environ, **ALLOCATION}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each contender of each case."""
    rows: list[dict[str, Any]] = []
    for workload in workloads(options.quick):
        for optimizer in DENSE if workload.kind == "dense" else ():
            if options.only not in f"{workload.name}, {optimizer}":
                continue
            undecayed = 0.0
            for contender in CONTENDERS:
                if contender == OWN and not optimizer.startswith("keras"):
                    continue
                found = measured(workload, optimizer, contender, options)
                low, median, high = quartiles(np.array(found["peaks"]))
                undecayed = median if contender == UNDECAYED else undecayed
                rows.append(
                    {
                        "case": f"{workload.name}, {optimizer}",
                        "contender": contender,
                        "peak": median,
                        "from": low,
                        "to": high,
                        "more": median - undecayed,
                        "in variables": (median - undecayed) / found["largest"],
                    }
                )
    return rows


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds it")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        name, optimizer, contender = json.loads(options.one)
        workload = next(workload for workload in workloads(options.quick) if workload.name == name)
        print(json.dumps(peaks(Case(workload, optimizer, jit_compile=False), contender, options.steps)))
        return
    rows = measure(options)
    if not rows:
        parser.error(f"no case's name holds '{options.only}'")
    if options.json:
        print(json.dumps(rows))
        return
    table = Table(title="What a step takes at its peak, in MB")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("case", "contender") else "right")
    for row in rows:
        numbers = (f"{row[key] / MB:.1f}" for key in ("peak", "from", "to", "more"))
        table.add_row(row["case"], row["contender"], *numbers, f"{row['in variables']:+.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
