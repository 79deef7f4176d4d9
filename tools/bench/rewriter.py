"""Measures what rewriting a graph costs beside parsing and serializing it, and how that grows with the graph.

The graph is a chain of layers: for each variable a matrix product and elementwise ops, their gradients, and an update
by plain arithmetic, as Keras 3 emits it; it is planned and rewritten as a step is, but not run. Every size runs in a
process of its own, the sizes in turn, several rounds of them. Printed are, of each, CPU seconds of parsing plus
serializing the proto and of the rewrite, microseconds a node, and the peak of memory over that before the parse as a
multiple of what the parsed proto takes; then the exponent of growth, by least squares over the sizes from 10,000 nodes
up. A time is the median of a run's repetitions and the least of all runs, for what makes a run slower is what else the
machine does, and lasts for minutes; the column "to" is the most of all runs.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table
from tensorflow.core.framework.function_pb2 import FunctionDef

from graphwd.garbage import collection_paused
from graphwd.graph import DTYPE_NUMBERS, Graph, Variable
from graphwd.inject import inject
from graphwd.planner import make_plan
from graphwd.policy import Policy
from graphwd.updates import find_updates

SIZES = {
    "100 nodes a variable": [(1_000, 10), (10_000, 100), (100_000, 1_000), (600_000, 6_000), (1_000_000, 10_000)],
    "12 nodes a variable": [(1_200, 100), (12_000, 1_000), (120_000, 10_000), (600_000, 50_000)],
}
SEMANTICS = ["decoupled", "adamw", "l2"]
_SMALLEST_OF_GROWTH = 10_000
_FLOAT = DTYPE_NUMBERS["float32"]
_RESOURCE = DTYPE_NUMBERS["resource"]
_FIXED = 6
"""Nodes of a variable besides the elementwise ones: its read, two products forward and back, and its update."""


def build(nodes: int, variables: int) -> tuple[FunctionDef, dict[str, Variable]]:
    """Makes a training step as a function, and says which of its arguments are variables."""
    step = FunctionDef()
    step.signature.name = "step"
    step.signature.input_arg.add(name="inputs", type=_FLOAT)
    handles: dict[str, Variable] = {}
    elementwise = (nodes // variables - _FIXED) // 2

    def add(name: str, op: str, inputs: list[str], attribute: str = "T") -> None:
        node = step.node_def.add(name=name, op=op)
        node.input.extend(inputs)
        node.attr[attribute].type = _FLOAT  # pyright: ignore[reportAttributeAccessIssue] - the stubs know no int

    tensor = "inputs"
    into: list[str] = []
    for number in range(variables):
        handle, layer = f"handle_{number}", f"net/layer_{number}"
        step.signature.input_arg.add(name=handle, type=_RESOURCE)
        handles[handle] = Variable(number, f"{layer}/kernel", (4, 4), "float32", True)
        into.append(tensor)
        add(f"{layer}/ReadVariableOp", "ReadVariableOp", [handle], "dtype")
        add(f"{layer}/MatMul", "MatMul", [tensor, f"{layer}/ReadVariableOp:value:0"])
        tensor = f"{layer}/MatMul:product:0"
        for each in range(elementwise):
            add(f"{layer}/Tanh_{each}", "Tanh", [tensor])
            tensor = f"{layer}/Tanh_{each}:y:0"
    gradient = tensor
    add("learning_rate", "Const", [], "dtype")
    for number in reversed(range(variables)):
        layer, scope = f"net/layer_{number}", f"gradient_tape/net/layer_{number}"
        for each in reversed(range(elementwise)):
            add(f"{scope}/TanhGrad_{each}", "TanhGrad", [f"{layer}/Tanh_{each}:y:0", gradient])
            gradient = f"{scope}/TanhGrad_{each}:z:0"
        add(f"{scope}/MatMul_1", "MatMul", [into[number], gradient])
        add(f"{scope}/MatMul", "MatMul", [gradient, f"{layer}/ReadVariableOp:value:0"])
        add(f"sgd/Mul_{number}", "Mul", ["learning_rate:output:0", f"{scope}/MatMul_1:product:0"])
        update = [f"handle_{number}", f"sgd/Mul_{number}:z:0", f"^{layer}/ReadVariableOp"]
        add(f"sgd/AssignSubVariableOp_{number}", "AssignSubVariableOp", update, "dtype")
        gradient = f"{scope}/MatMul:product:0"
    return step, handles


def _serialized(nodes: int, variables: int) -> tuple[bytes, int, dict[str, Variable]]:
    made, handles = build(nodes, variables)
    return made.SerializeToString(), len(made.node_def), handles


def measure(nodes: int, variables: int, semantics: str, repetitions: int, *, fuse: bool = False) -> dict[str, float]:
    """Measures one size in this process."""
    # In another process, so that what making it takes is not there to be used again.
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as maker:
        content, count, handles = maker.submit(_serialized, nodes, variables).result()
    rule = {"weight_decay": 0.01, "semantics": semantics}
    policy = Policy.from_dict({"version": 1, "fuse": "xla" if fuse else "none", "rules": [rule]})
    before = _memory()
    step = FunctionDef()
    step.ParseFromString(content)
    proto = _memory() - before

    def rewrite() -> None:
        with collection_paused():
            graph = Graph(step, [], handles, ["inputs"])
            plan = make_plan(find_updates(graph), policy)
            plan.check()
            inject(graph, plan.injections, lambda name: f"{name}_rewritten", fuse=plan.fuse)
            assert len(plan.injections) == variables

    def parse_and_serialize() -> None:
        again = FunctionDef()
        again.ParseFromString(content)
        again.SerializeToString()

    first = _seconds(rewrite)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    rewriting = statistics.median([first, *(_seconds(rewrite) for _ in range(repetitions - 1))])
    return {
        "nodes": count,
        "variables": variables,
        "megabytes": len(content) / 1e6,
        "parse_and_serialize_s": statistics.median(_seconds(parse_and_serialize) for _ in range(repetitions)),
        "rewrite_s": rewriting,
        "us_a_node": rewriting / count * 1e6,
        "peak_over_proto": peak / proto if proto > 0 else float("nan"),
    }


def _seconds(call: Callable[[], None]) -> float:
    """CPU seconds of this process: other processes of the machine count little."""
    start = time.process_time()
    call()
    return time.process_time() - start


def _memory() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def growth(rows: list[Mapping[str, float]]) -> float:
    """The exponent of the time a rewrite takes in the number of nodes, for large graphs."""
    large = [row for row in rows if row["nodes"] >= 0.9 * _SMALLEST_OF_GROWTH]
    if len(large) < 2:
        return float("nan")
    nodes = [math.log(row["nodes"]) for row in large]
    seconds = [math.log(row["rewrite_s"]) for row in large]
    return statistics.linear_regression(nodes, seconds).slope


def in_processes(
    sizes: Iterable[tuple[int, int]], semantics: str, rounds: int, repetitions: int, *, fuse: bool
) -> list[dict[str, float]]:
    """Measures sizes in turn, several rounds of them: of each the least, and the most that the rewrite took."""
    sizes = list(sizes)
    rows: list[list[dict[str, float]]] = [[] for _ in sizes]
    for _ in range(rounds):
        for (nodes, variables), measured in zip(sizes, rows, strict=True):
            one = ["--one", str(nodes), str(variables), "--semantics", semantics, "--repetitions", str(repetitions)]
            one += ["--fuse"] if fuse else []
            ran = subprocess.run([sys.executable, __file__, *one], check=True, capture_output=True, text=True)
            measured.append(json.loads(ran.stdout.splitlines()[-1]))
    return [_together(measured) for measured in rows]


def _together(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    least = {key: min(row[key] for row in rows) for key in rows[0]}
    return least | {
        "most_us_a_node": max(row["us_a_node"] for row in rows),
        "peak_over_proto": max(row["peak_over_proto"] for row in rows),
    }


def main() -> None:
    """Prints a table a meaning and shape, or all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000_000, help="the largest graph, in nodes (%(default)s)")
    parser.add_argument("--semantics", choices=SEMANTICS, help="one meaning; by default all")
    parser.add_argument("--rounds", type=int, default=3, help="times that each size is run (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="rewrites in each of these runs (%(default)s)")
    parser.add_argument("--one", type=int, nargs=2, metavar=("NODES", "VARIABLES"), help="one size, as JSON")
    parser.add_argument("--fuse", action="store_true", help="outline the updates, as 'fuse: xla' does (XLA is not run)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.one:
        nodes, variables = options.one
        semantics = options.semantics or "decoupled"
        print(json.dumps(measure(nodes, variables, semantics, options.repetitions, fuse=options.fuse)))
        return
    results: list[dict[str, Any]] = []
    for semantics in [options.semantics] if options.semantics else SEMANTICS:
        for shape, sizes in SIZES.items():
            asked = [size for size in sizes if size[0] <= options.most]
            rows = in_processes(asked, semantics, options.rounds, options.repetitions, fuse=options.fuse)
            results.append({"semantics": semantics, "shape": shape, "rows": rows, "growth": growth([*rows])})
            if not options.json:
                show(results[-1])
    if options.json:
        print(json.dumps(results, indent=2))


def show(result: Mapping[str, Any]) -> None:
    """Prints one table."""
    table = Table(title=f"{result['semantics']}, {result['shape']}: growth exponent {_growth(result['growth'])}")
    for column in (
        "nodes",
        "variables",
        "MB",
        "parse + serialize (s)",
        "rewrite (s)",
        "us a node",
        "to",
        "peak / proto",
    ):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            f"{row['nodes']:,}", f"{row['variables']:,}", f"{row['megabytes']:.1f}",
            f"{row['parse_and_serialize_s']:.3f}", f"{row['rewrite_s']:.3f}", f"{row['us_a_node']:.1f}",
            f"{row['most_us_a_node']:.1f}",
            f"{row['peak_over_proto']:.1f}",
        )  # fmt: skip
    Console(width=110).print(table)


def _growth(exponent: float) -> str:
    return "unknown, of fewer than two large graphs" if math.isnan(exponent) else f"{exponent:.2f}"


if __name__ == "__main__":
    main()
