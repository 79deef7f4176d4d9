"""Measures what rewriting a SavedModel costs in time and memory when its weights are gigabytes.

Makes a model with real, random weights, and the same graph with 1 MiB of them. Rewrites each, by copy and by hard
links, in a process of its own; printed are the seconds of the rewrite, without the import of TensorFlow, and the
process's peak memory. ``cp`` is what copying the files takes alone, flushed to the disk as graphwd does. The files were
written a moment before, so as much of them as fits is in the page cache. All files are deleted again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

POLICY = {"version": 1, "rules": [{"weight_decay": 1e-3}]}
VARIABLES = 16
GIB, MIB = 2**30, 2**20


def make(folder: Path, size: int) -> None:
    """Saves a model with a step of SGD on weights of so many bytes."""
    import tensorflow as tf

    module: Any = tf.Module()
    length = size // VARIABLES // 4
    module.weights = [tf.Variable(tf.random.uniform([length]), name=f"weight_{i}") for i in range(VARIABLES)]

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
    def step(target: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_mean(tf.square(weight - target)) for weight in module.weights])
        gradients: Any = tape.gradient(loss, module.weights)
        for weight, gradient in zip(module.weights, gradients, strict=True):
            weight.assign_sub(0.01 * gradient)
        return loss

    module.step = step
    tf.saved_model.save(module, str(folder))


def rewrite(source: Path, target: Path, link: bool) -> None:
    """Rewrites a model and prints what it took, as JSON."""
    from graphwd.models.saved_model import rewrite_saved_model

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    rewrite_saved_model(source, target, POLICY, link=link)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024, "before_mib": before / 1024}))


def copy(source: Path, target: Path) -> dict[str, float]:
    """Copies a model with ``cp`` and flushes it."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
    files = [str(path) for path in target.rglob("*") if path.is_file()]
    subprocess.run(["sync", *files], check=True)
    return {"seconds": time.perf_counter() - start}


def in_a_process(*arguments: str) -> str:
    """Runs this file again; memory is measured by process."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def measure(folder: Path, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Makes the models below a folder and rewrites them; one row for each way."""
    rows = []
    for name, size in sizes.items():
        source, target = folder / "model", folder / "out"
        in_a_process("--make", str(source), str(size))
        os.sync()
        for way in ("cp", "copy", "link"):
            if way == "cp":
                row = copy(source, target)
            else:
                row = json.loads(in_a_process("--rewrite", str(source), str(target), way))
            rows.append({"weights": name, "way": way, **row})
            shutil.rmtree(target)
        shutil.rmtree(source)
    return rows


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1, help="how much the weights are")
    parser.add_argument("--folder", help="where the models are made; by default a temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rewrite", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(Path(options.make[0]), int(options.make[1]))
        return
    if options.rewrite:
        rewrite(Path(options.rewrite[0]), Path(options.rewrite[1]), options.rewrite[2] == "link")
        return
    size = int(options.gib * GIB)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        needed, free = int(3.1 * size), shutil.disk_usage(folder).free
        if free < needed:
            sys.exit(f"{folder}: {needed / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free")
        rows = measure(Path(folder), {"1 MiB": MIB, f"{options.gib:g} GiB": size})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'weights':10}{'way':8}{'seconds':>9}{'peak RSS':>12}{'RSS before':>12}")
    for row in rows:
        memory = [f"{row[key]:.0f} MiB" if key in row else "-" for key in ("peak_mib", "before_mib")]
        print(f"{row['weights']:10}{row['way']:8}{row['seconds']:9.2f}{memory[0]:>12}{memory[1]:>12}")


if __name__ == "__main__":
    main()
