"""Brings tensors into other bodies: each function on the way gets one more argument.

A call gets one more input. So does a branch, with all its functions. A loop carries one more value, which its condition
takes and its body returns unchanged. The function of a dataset gets one more captured argument. The root gets one more
argument, for which the emitter of the step adds a capture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graphwd.errors import RewriteError
from graphwd.graph.edge import EdgeText, argument_edge, data_inputs, is_control
from graphwd.graph.graph import DTYPE_NUMBERS, MARK, NAME
from graphwd.graph.ops import CALL_OPS, CallKind
from graphwd.planning.injections import Elsewhere

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

_BROUGHT = "_graphwd_brought"
"""The attribute of a call that says how many of its last arguments were brought."""


def add_arguments(function: FunctionDef, outside: Sequence[Elsewhere]) -> dict[Elsewhere, EdgeText]:
    """Gives a function one more argument for each of some tensors, after its own arguments.

    Args:
        function: the function; it is changed.
        outside: the tensors.

    Returns:
        The edges of the new arguments.
    """
    edges: dict[Elsewhere, EdgeText] = {}
    if not outside:
        return edges
    taken = {argument.name for argument in function.signature.input_arg} | {node.name for node in function.node_def}
    for tensor in outside:
        name = _free("graphwd_argument", taken)
        edges[tensor] = argument_edge(name)
        taken.add(name)
        argument = function.signature.input_arg.add(name=name)
        argument.type = DTYPE_NUMBERS[tensor.dtype]  # pyright: ignore[reportAttributeAccessIssue] - the stubs know no int
        attributes = function.arg_attr[len(function.signature.input_arg) - 1].attr
        attributes[MARK].s = b"argument"
        attributes[NAME].s = tensor.name.encode()
    return edges


def return_arguments(function: FunctionDef, count: int) -> None:
    """Makes the body of a loop return its last arguments unchanged, after its own results.

    Args:
        function: the body; it is changed.
        count: the number of these arguments.
    """
    signature = function.signature
    taken = {result.name for result in signature.output_arg}
    for argument in list(signature.input_arg)[len(signature.input_arg) - count :]:
        name = _free("graphwd_result", taken)
        taken.add(name)
        signature.output_arg.add(name=name, type=argument.type)
        function.ret[name] = argument.name


def pass_on(node: NodeDef, edges: Mapping[Elsewhere, EdgeText]) -> None:
    """Gives a call more arguments, after its own.

    Args:
        node: the call; it is changed.
        edges: the tensors, as edges of the body that the node lies in.

    Raises:
        RewriteError: arguments of such a call cannot be added.
    """
    call = CALL_OPS[node.op]
    if call.types is None:
        names = ", ".join(tensor.name for tensor in edges)
        raise RewriteError(f"{names} cannot be brought through '{node.name}' ({node.op}), which sorts its arguments")
    data = data_inputs(node)
    end = len(data) - call.drop
    inputs = [*data[:end], *edges.values(), *data[end:], *(text for text in node.input if is_control(text))]
    del node.input[:]
    node.input.extend(inputs)
    for tensor in edges:
        node.attr[call.types].list.type.append(DTYPE_NUMBERS[tensor.dtype])  # pyright: ignore[reportArgumentType]
    if call.kind is CallKind.LOOP and node.attr["output_shapes"].list.shape:
        for _ in edges:
            node.attr["output_shapes"].list.shape.add().unknown_rank = True
    if edges:
        node.attr[_BROUGHT].i = len(edges)


def brings_variables(function: FunctionDef) -> bool:
    """Whether a variable of graphwd's own was brought into a function."""
    resource = DTYPE_NUMBERS["resource"]
    return any(
        MARK in attributes.attr and function.signature.input_arg[i].type == resource
        for i, attributes in function.arg_attr.items()
    )


def take_back(function: FunctionDef) -> None:
    """Removes the arguments that were brought into a function, and those that it brings into others.

    Args:
        function: the function; it is changed.
    """
    signature = function.signature
    marked = {i for i, attributes in function.arg_attr.items() if MARK in attributes.attr}
    for i in sorted(marked, reverse=True):
        name = signature.input_arg[i].name
        del signature.input_arg[i], function.arg_attr[i]
        for j, result in reversed(list(enumerate(signature.output_arg))):
            if function.ret[result.name] == name:
                del function.ret[result.name], signature.output_arg[j]
    for node in function.node_def:
        if _BROUGHT in node.attr:
            _take_inputs(node, node.attr[_BROUGHT].i)
            del node.attr[_BROUGHT]


def _take_inputs(node: NodeDef, count: int) -> None:
    """Removes the last arguments of a call."""
    call = CALL_OPS[node.op]
    end = len(data_inputs(node)) - call.drop
    del node.input[end - count : end]
    if call.types is not None:
        del node.attr[call.types].list.type[-count:]
    if call.kind is CallKind.LOOP:
        del node.attr["output_shapes"].list.shape[-count:]


def _free(base: str, taken: set[str]) -> str:
    number = 0
    while f"{base}_{number}" in taken:
        number += 1
    return f"{base}_{number}"
