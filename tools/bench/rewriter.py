"""Measures what rewriting a graph costs beside parsing and serializing it, and how that grows with the graph.

The graph is a chain of layers: for each variable a matrix product and elementwise ops, their gradients, and an update
by plain arithmetic, as Keras 3 emits it; it is planned and rewritten as a step is, but not run. Every size runs in a
process of its own, once, the sizes in turn, several rounds of them: were it repeated there, a small graph would find
the memory of the last time, and a large one would not. Printed are, of each, the medians of CPU seconds of parsing plus
serializing the proto and of the rewrite, of microseconds a node, and of the peak of memory over that before the parse
as a multiple of what the parsed proto takes; then the exponent of growth, by least squares over the sizes from 10,000
nodes up.

With --files, the same graph is rewritten in memory, as above ("passes"); as a traced Python step, which is read from
TensorFlow, rewritten and registered there ("python"); and as a model in a file, which is read, checked, rewritten and
written: as a TensorFlow 1 MetaGraph, as a SavedModel of TensorFlow 1, and as a function of a SavedModel of TensorFlow
2. Each in a process of its own, in turn. Printed are the medians of CPU microseconds for each node of the step, and of
the ratios to the first two in the same round. The models have no weights: none are read.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.variable_pb2 import VariableDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from graphwd.analysis.updates import find_updates
from graphwd.garbage import collection_paused
from graphwd.graph.edge import is_data, node_of
from graphwd.graph.graph import DTYPE_NUMBERS, Graph, Variable
from graphwd.models.saved_model import rewrite_saved_model
from graphwd.planning.planner import make_plan
from graphwd.policy.rules import Policy
from graphwd.rewriting.inject import inject

_Result = TypeVar("_Result")

SIZES = {
    "100 nodes a variable": [(1_000, 10), (10_000, 100), (100_000, 1_000), (600_000, 6_000), (1_000_000, 10_000)],
    "12 nodes a variable": [(1_200, 100), (12_000, 1_000), (120_000, 10_000), (600_000, 50_000)],
}
SEMANTICS = ["decoupled", "adamw", "l2"]
_SMALLEST_OF_GROWTH = 10_000
_SMALLEST_PROTO = 2e6
"""Bytes of a parsed proto that can be told from what else a process does with its memory."""
_FLOAT = DTYPE_NUMBERS["float32"]
_RESOURCE = DTYPE_NUMBERS["resource"]
_WARM_UP = (1_000, 10)
"""The size of what is rewritten first, so that what Python does once is not counted."""
_QUIET = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
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
    value = step.node_def[-1].attr["value"].tensor
    value.dtype = _FLOAT  # pyright: ignore[reportAttributeAccessIssue] - the stubs know no int
    value.float_val.append(0.1)
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


def measure(nodes: int, variables: int, semantics: str, *, fuse: bool = False) -> dict[str, float]:
    """Measures one size in this process, which must have done nothing of the kind before."""
    rule = {"weight_decay": 0.01, "semantics": semantics}
    policy = Policy.from_dict({"version": 1, "fuse": "xla" if fuse else "none", "rules": [rule]})

    def rewrite(step: FunctionDef, handles: Mapping[str, Variable]) -> int:
        with collection_paused():
            graph = Graph(step, [], handles, ["inputs"])
            plan = make_plan(find_updates(graph), policy)
            plan.check()
            inject(graph, plan.injections, lambda name: f"{name}_rewritten", fuse=plan.fuse)
        return len(plan.injections)

    rewrite(*build(*_WARM_UP))
    # In another process, so that the memory that making it takes is not there to be used again.
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as maker:
        content, count, handles = maker.submit(_serialized, nodes, variables).result()
    before = _memory()
    step = FunctionDef()
    parsing, _ = _timed(lambda: step.ParseFromString(content))
    proto = _memory() - before
    rewriting, injected = _timed(lambda: rewrite(step, handles))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert injected == variables
    serializing, _ = _timed(step.SerializeToString)
    return {
        "nodes": count,
        "variables": variables,
        "megabytes": len(content) / 1e6,
        "parse_and_serialize_s": parsing + serializing,
        "rewrite_s": rewriting,
        "us_a_node": rewriting / count * 1e6,
        "peak_over_proto": peak / proto if proto > _SMALLEST_PROTO else float("nan"),
    }


def measure_in_file(nodes: int, variables: int, semantics: str, form: str) -> dict[str, float]:
    """Measures one size in a file, in this process, which must have done nothing of the kind before.

    Args:
        nodes: the nodes of the step.
        variables: its variables.
        semantics: what decay means.
        form: one of `FORMS`.
    """
    policy = {"version": 1, "rules": [{"weight_decay": 0.01, "semantics": semantics}]}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as maker:
        rewriting, counts = 0.0, (0, 0)
        for name, size in (("warm", _WARM_UP), ("one", (nodes, variables))):
            count = maker.submit(_write, *size, form, Path(folder, name)).result()
            source = Path(folder, name, "step.meta" if form == "meta" else "")
            rewriting, plan = _timed(lambda source=source: rewrite_saved_model(source, f"{source}_decayed", policy))
            counts = count, len(plan.injections)
    assert counts[1] == variables
    return {
        "nodes": counts[0],
        "variables": variables,
        "rewrite_s": rewriting,
        "us_a_node": rewriting / counts[0] * 1e6,
    }


def measure_python(nodes: int, variables: int, semantics: str) -> dict[str, float]:
    """Measures one size as a traced step, in this process, which must have done nothing of the kind before."""
    from graphwd.steps.pipeline import emit_rewritten
    from graphwd.steps.state import State

    policy = Policy.from_dict({"version": 1, "rules": [{"weight_decay": 0.01, "semantics": semantics}]})
    rewriting, injected, count = 0.0, 0, 0
    for size in (_WARM_UP, (nodes, variables)):
        step, handles = build(*size)
        traced, weights = _traced(step, handles)
        rewriting, (_, plan) = _timed(lambda traced=traced: emit_rewritten(traced, policy, State(policy)))
        injected, count = len(plan.injections), len(step.node_def)
        del weights  # which a trace does not keep
    assert injected == variables
    return {"nodes": count, "variables": variables, "rewrite_s": rewriting, "us_a_node": rewriting / count * 1e6}


def _traced(step: FunctionDef, handles: Mapping[str, Variable]) -> tuple[Any, Any]:
    """A trace of the step, and its variables."""
    import tensorflow as tf

    graph_def = as_main_graph(step, handles).graph_def
    weights = {handle: tf.Variable(tf.zeros(each.shape or ()), name=each.name) for handle, each in handles.items()}

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([4, 4])])
    def imported(inputs: Any) -> None:
        graph: Any = tf.compat.v1.get_default_graph()
        captured = {handle: graph.capture(weight.handle) for handle, weight in weights.items()}
        tf.graph_util.import_graph_def(graph_def, {"inputs": inputs, **captured}, name="")

    return imported.get_concrete_function(), weights


def _write(nodes: int, variables: int, form: str, folder: Path) -> int:
    """Writes the step as a model; returns the number of its nodes."""
    step, handles = build(nodes, variables)
    (folder / "variables").mkdir(parents=True)
    for name in ("variables.index", "variables.data-00000-of-00001"):
        (folder / "variables" / name).touch()
    meta_graph = FORMS[form](step, handles)
    if form == "meta":
        (folder / "step.meta").write_bytes(meta_graph.SerializeToString())
    else:
        model = SavedModel(saved_model_schema_version=1, meta_graphs=[meta_graph])
        (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return len(step.node_def)


def as_main_graph(step: FunctionDef, handles: Mapping[str, Variable]) -> MetaGraphDef:
    """A step as TensorFlow 1 has it: the nodes of a graph, among them the variables."""
    made = MetaGraphDef()
    graph = made.graph_def.node
    graph.add(name="inputs", op="Placeholder").attr["dtype"].type = _FLOAT  # pyright: ignore[reportAttributeAccessIssue]
    trainable = made.collection_def["trainable_variables"].bytes_list.value
    for handle, variable in handles.items():
        node = graph.add(name=handle, op="VarHandleOp")
        node.attr["dtype"].type = _FLOAT  # pyright: ignore[reportAttributeAccessIssue] - the stubs know no int
        for size in variable.shape or ():
            node.attr["shape"].shape.dim.add(size=size)
        trainable.append(VariableDef(variable_name=f"{handle}:0", trainable=True).SerializeToString())
    for node in step.node_def:
        copied = graph.add()
        copied.CopyFrom(node)
        copied.input[:] = [node_of(text) if is_data(text) else text for text in node.input]
    return made


def as_function(step: FunctionDef, handles: Mapping[str, Variable]) -> MetaGraphDef:
    """A step as TensorFlow 2 has it: a function that an object holds, bound to other objects, the variables."""
    made = MetaGraphDef()
    made.graph_def.library.function.append(step)
    objects = made.object_graph_def
    root = objects.nodes.add()
    root.user_object.identifier = "_generic_user_object"
    for number, variable in enumerate(handles.values(), start=1):
        root.children.add(node_id=number, local_name=f"weight_{number}")
        saved = objects.nodes.add().variable
        saved.name, saved.trainable = variable.name, True
        saved.dtype = _FLOAT  # pyright: ignore[reportAttributeAccessIssue] - the stubs know no int
        for size in variable.shape or ():
            saved.shape.dim.add(size=size)
    root.children.add(node_id=len(objects.nodes), local_name="step")
    objects.nodes.add().function.concrete_functions.append(step.signature.name)
    objects.concrete_functions[step.signature.name].bound_inputs.extend(range(1, 1 + len(handles)))
    return made


FORMS: Mapping[str, Callable[[FunctionDef, Mapping[str, Variable]], MetaGraphDef]] = {
    "meta": as_main_graph,
    "v1": as_main_graph,
    "v2": as_function,
}
"""What the graph can be in a file: a TensorFlow 1 MetaGraph, a SavedModel of TensorFlow 1 or one of TensorFlow 2."""


def _timed(call: Callable[[], _Result]) -> tuple[float, _Result]:
    """CPU seconds of this process, of which other processes of the machine take few; and the result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


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


def files_beside_step(size: tuple[int, int], semantics: str, rounds: int) -> list[dict[str, Any]]:
    """Measures one size in memory, as a Python step and in each form of file, in turn, several rounds of them."""
    measured: dict[str, list[dict[str, float]]] = {"passes": [], "python": [], **{form: [] for form in FORMS}}
    for form in [*measured] * rounds:
        measured[form].append(_in_process([*map(str, size), "--semantics", semantics, "--as", form]))
    times = {form: [row["us_a_node"] for row in rows] for form, rows in measured.items()}
    return [
        {
            "form": form,
            "nodes": rows[0]["nodes"],
            "variables": rows[0]["variables"],
            "us_a_node": statistics.median(times[form]),
            "of_passes": _median_ratio(times[form], times["passes"]),
            "of_python": _median_ratio(times[form], times["python"]),
        }
        for form, rows in measured.items()
    ]


def _median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios in each round."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def _in_process(arguments: Sequence[str]) -> dict[str, float]:
    """What this program prints of one size in a process of its own."""
    ran = subprocess.run(
        [sys.executable, __file__, "--one", *arguments], check=True, stdout=subprocess.PIPE, text=True, env=_QUIET
    )
    return json.loads(ran.stdout.splitlines()[-1])


def in_processes(
    sizes: Iterable[tuple[int, int]], semantics: str, rounds: int, *, fuse: bool
) -> list[dict[str, float]]:
    """Measures sizes in turn, several rounds of them: of each the medians, and how far the rewrite's go."""
    sizes = list(sizes)
    rows: list[list[dict[str, float]]] = [[] for _ in sizes]
    for _ in range(rounds):
        for (nodes, variables), measured in zip(sizes, rows, strict=True):
            one = [str(nodes), str(variables), "--semantics", semantics, *(["--fuse"] if fuse else [])]
            measured.append(_in_process(one))
    return [_together(measured) for measured in rows]


def _together(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    times = [row["us_a_node"] for row in rows]
    return medians | {"least_us_a_node": min(times), "most_us_a_node": max(times)}


def main() -> None:
    """Prints a table a meaning and shape, or one of files beside a step, or all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000_000, help="the largest graph, in nodes (%(default)s)")
    parser.add_argument("--semantics", choices=SEMANTICS, help="one meaning; by default all")
    parser.add_argument("--rounds", type=int, default=5, help="times that each size is run (%(default)s)")
    parser.add_argument("--one", type=int, nargs=2, metavar=("NODES", "VARIABLES"), help="one size, as JSON")
    parser.add_argument(
        "--files", type=int, nargs=2, metavar=("NODES", "VARIABLES"), help="one size in files, beside it"
    )
    parser.add_argument(
        "--as", dest="form", choices=["passes", "python", *FORMS], default="passes", help=argparse.SUPPRESS
    )
    parser.add_argument("--fuse", action="store_true", help="outline the updates, as 'fuse: xla' does (XLA is not run)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.one:
        nodes, variables = options.one
        semantics = options.semantics or "decoupled"
        if options.form in FORMS:
            measured = measure_in_file(nodes, variables, semantics, options.form)
        elif options.form == "python":
            measured = measure_python(nodes, variables, semantics)
        else:
            measured = measure(nodes, variables, semantics, fuse=options.fuse)
        print(json.dumps(measured))
        return
    if options.files:
        rows = files_beside_step(tuple(options.files), options.semantics or "decoupled", options.rounds)
        print(json.dumps(rows, indent=2)) if options.json else show_files(rows)
        return
    results: list[dict[str, Any]] = []
    for semantics in [options.semantics] if options.semantics else SEMANTICS:
        for shape, sizes in SIZES.items():
            asked = [size for size in sizes if size[0] <= options.most]
            rows = in_processes(asked, semantics, options.rounds, fuse=options.fuse)
            results.append({"semantics": semantics, "shape": shape, "rows": rows, "growth": growth([*rows])})
            if not options.json:
                show(results[-1])
    if options.json:
        print(json.dumps(_with_nulls(results), indent=2))


def show(result: Mapping[str, Any]) -> None:
    """Prints one table."""
    table = Table(
        title=f"{result['semantics']}, {result['shape']}: growth exponent {_or_unknown(result['growth'], '{:.2f}')}"
    )
    for column in (
        "nodes",
        "variables",
        "MB",
        "parse + serialize (s)",
        "rewrite (s)",
        "us a node",
        "least",
        "most",
        "peak / proto",
    ):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            f"{row['nodes']:,.0f}", f"{row['variables']:,.0f}", f"{row['megabytes']:.1f}",
            f"{row['parse_and_serialize_s']:.3f}", f"{row['rewrite_s']:.3f}", f"{row['us_a_node']:.1f}",
            f"{row['least_us_a_node']:.1f}", f"{row['most_us_a_node']:.1f}",
            _or_unknown(row["peak_over_proto"], "{:.1f}"),
        )  # fmt: skip
    Console(width=110).print(table)


def show_files(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the table of files beside the step."""
    table = Table(title=f"{rows[0]['nodes']:,.0f} nodes, {rows[0]['variables']:,.0f} variables")
    for column in ("as", "us a node", "of the passes", "of the Python step"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["form"], f"{row['us_a_node']:.1f}", f"{row['of_passes']:.2f}", f"{row['of_python']:.2f}")
    Console(width=110).print(table)


def _with_nulls(value: Any) -> Any:
    """The same with null for what is not a number, for which JSON has no sign."""
    if isinstance(value, dict):
        return {key: _with_nulls(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_nulls(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _or_unknown(number: float, form: str) -> str:
    return "unknown" if math.isnan(number) else form.format(number)


if __name__ == "__main__":
    main()
