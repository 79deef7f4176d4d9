# pyright: basic
"""Checks the nodes that graphwd would inject against TensorFlow's kernel registry; the device need not be there.

On a GPU some kernels have an input or output in the memory of the host, nearly always one of int32. Where only one end
of an edge lies there, TensorFlow copies the tensor at every step, and waits.

TensorFlow internals used here, and why there is no public way:

* ``kernels.get_registered_kernels_for_op``: which kernels there are, for which dtypes, and what they keep in host
  memory. The ordinary wheel for Linux lists those for GPUs, too.
* ``op_def_registry``: the names of an op's operands and results, which the kernel registry refers to.

Checked on TensorFlow 2.16, 2.18, 2.20 and 2.21 (tools/test_versions).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorflow.python.framework import kernels, op_def_registry

from graphwd.errors import PlanError
from graphwd.graph.edge import EdgeText, data_inputs, node_of, output_of, parse_edge
from graphwd.graph.graph import DTYPE_NAMES, MARK
from graphwd.planning.plan import Plan
from graphwd.rewriting.inject import inject

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

_ANY_DEVICE = "DEFAULT"


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """The result of checking a plan for a device.

    Attributes:
        device: the type of the device, such as ``GPU``.
        nodes: how many nodes would be injected.
        problems: which of them have no kernel there, and which edges are copied between host and device.
    """

    device: str
    nodes: int
    problems: tuple[str, ...]

    def check(self) -> None:
        """Refuses a plan that the device cannot run.

        Raises:
            PlanError: the message lists all problems.
        """
        if self.problems:
            raise PlanError("\n".join(self.problems))

    def record(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"type": self.device, "nodes": self.nodes, "problems": list(self.problems)}


def check_device(plan: Plan, device: str) -> DeviceCheck:
    """Checks that all nodes that a plan would inject run on a kind of device, without copies from or to the host.

    Args:
        plan: the plan of a step that can be rewritten.
        device: a type of device, as TensorFlow names it: ``CPU``, ``GPU``.

    Returns:
        The result.
    """
    if plan.parts:
        checks = [check_device(part, device) for part in plan.parts]
        problems = dict.fromkeys(problem for check in checks for problem in check.problems)
        return DeviceCheck(device, sum(check.nodes for check in checks), tuple(problems))
    assert plan.graph is not None
    numbers = itertools.count()
    rewritten = inject(plan.graph, plan.injections, lambda name: f"{name}__graphwd_{next(numbers)}")
    bodies = (rewritten.root, *rewritten.functions)
    problems = dict.fromkeys(problem for body in bodies for problem in _problems(body, device))
    count = sum(MARK in node.attr for body in bodies for node in body.node_def)
    return DeviceCheck(device, count, tuple(problems))


def _problems(body: FunctionDef, device: str) -> Iterator[str]:
    kernels_of = {node.name: _kernel(node, device) for node in body.node_def}
    for node in body.node_def:
        if MARK in node.attr and kernels_of[node.name] is None:
            yield f"{node.op} has no {device} kernel for {_dtypes(node)}"
    if device == "CPU":
        return
    nodes = {node.name: node for node in body.node_def}
    edges = list(_edges(body, nodes, kernels_of))
    # TensorFlow copies a tensor once for all its uses: where the step itself needs the copy, none is added.
    copied = {edge.text for edge in edges if not edge.injected and edge.crosses}
    for edge in edges:
        if edge.injected and edge.crosses and edge.text not in copied:
            source, node = nodes[node_of(edge.text)], nodes[edge.node]
            places = [device, "the host"]
            yield (
                f"{node.op} ({node.name}) takes from the memory of {places[edge.takes]} what {source.op} "
                f"({source.name}) leaves in that of {places[edge.gives]}"
            )


class _Edge(NamedTuple):
    """An edge: whether its producer and its consumer have the tensor in the memory of the host."""

    text: EdgeText
    node: str
    gives: bool
    takes: bool
    injected: bool

    @property
    def crosses(self) -> bool:
        return self.gives != self.takes


def _edges(body: FunctionDef, nodes: Mapping[str, NodeDef], kernels_of: Mapping[str, Any]) -> Iterator[_Edge]:
    """The data edges between nodes that have a kernel on the device; those of calls are not known."""
    for node in body.node_def:
        kernel = kernels_of[node.name]
        for position, text in enumerate(() if kernel is None else data_inputs(node)):
            source = nodes.get(node_of(text))
            giving = kernels_of[source.name] if source is not None else None
            if source is None or giving is None:
                continue
            operand = _operand(_definition(node.op).input_arg, position)
            result = _result(_definition(source.op).output_arg, text)
            if operand is not None and result is not None:
                gives = result in giving.host_memory_arg
                takes = kernel is not None and operand in kernel.host_memory_arg
                yield _Edge(text, node.name, gives, takes, MARK in node.attr or MARK in source.attr)


def _kernel(node: NodeDef, device: str) -> Any:
    """The kernel that runs a node on a device; None where there is none."""
    fallback = None
    for kernel in _kernels(node.op):
        fits = kernel.device_type in (device, _ANY_DEVICE) and not kernel.label
        if fits and all(
            _dtype(node, constraint.name) in constraint.allowed_values.list.type for constraint in kernel.constraint
        ):
            if kernel.device_type == device:
                return kernel
            fallback = kernel
    return fallback


@functools.cache
def _kernels(op: str) -> Sequence[Any]:
    return tuple(kernels.get_registered_kernels_for_op(op).kernel)


def _definition(op: str) -> Any:
    """The operands and results of an op that has a kernel."""
    return op_def_registry.get(op)


def _dtype(node: NodeDef, attribute: str) -> int:
    if attribute in node.attr:
        return node.attr[attribute].type
    return next((attr.default_value.type for attr in _definition(node.op).attr if attr.name == attribute), 0)


def _dtypes(node: NodeDef) -> str:
    numbers = {key: value.type for key, value in node.attr.items() if value.WhichOneof("value") == "type"}
    return ", ".join(f"{key} {DTYPE_NAMES.get(number, number)}" for key, number in sorted(numbers.items()))


def _operand(definitions: Sequence[Any], position: int) -> str | None:
    """The name of an operand; None where the op takes a list of them."""
    if any(definition.number_attr or definition.type_list_attr for definition in definitions):
        return None
    return definitions[position].name


def _result(definitions: Sequence[Any], text: EdgeText) -> str | None:
    """The name of the result that an edge starts from, in either of TensorFlow's two notations."""
    return output_of(text) or _operand(definitions, parse_edge(text).index)
