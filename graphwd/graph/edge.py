"""The edges of a body, as text and parsed.

This module alone knows how edges are written: ``node:output:index`` or ``argument`` in functions, ``node:index`` or
``node`` in graphs, and ``^node`` for a control dependency in both. Only the parser of `graphwd.graph.body`, which reads
all edges of a step, has a faster way of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, NewType, TypeGuard

from graphwd.errors import GraphError

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

EdgeText = NewType("EdgeText", str)
"""A data edge as it is written in a body. To the type checker a plain text, such as the name of a node, is none."""

NO_EDGE = EdgeText("")
"""What stands in the place of an edge where there is none."""

_MAX_DIGITS = 10
"""How many digits the number of an output may have: more than any node needs."""

_NAMED_OUTPUT = re.compile(r"[^:^]+:(?P<output>[a-z]\w*):\d+")


class Edge(NamedTuple):
    """A data input: output ``index`` of ``node``, which may be an argument of the body."""

    node: str
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - nobody searches an edge as a tuple


class Use(NamedTuple):
    """One data input of one node."""

    node: str
    position: int


def parse_edge(text: EdgeText) -> Edge:
    """Reads a data edge in either of TensorFlow's two notations.

    Args:
        text: ``node:output:index`` or ``argument`` (functions), ``node:index`` or ``node`` (graphs).

    Returns:
        The node and the number at the end; 0 where none is written.

    Raises:
        GraphError: no node could have an output of that number.
    """
    node, colon, rest = text.partition(":")
    if not colon:
        return Edge(text, 0)
    digits = rest.rpartition(":")[2]
    if len(digits) > _MAX_DIGITS:
        raise GraphError(f"'{node}' has no output of number {digits[:_MAX_DIGITS]}...")
    return Edge(node, int(digits) if digits.isdecimal() else 0)


def is_control(text: str) -> bool:
    """Whether an input is a control dependency."""
    return text[:1] == "^"


def is_data(text: str) -> TypeGuard[EdgeText]:
    """Whether an input is a data edge."""
    return text[:1] != "^"


def node_of(text: EdgeText) -> str:
    """The node, or argument, that a data edge comes from."""
    return text.partition(":")[0]


def source_of(text: str) -> str:
    """The node, or argument, that an input comes from, by data or control."""
    return text[1:] if text[:1] == "^" else text.partition(":")[0]


def output_of(text: EdgeText) -> str | None:
    """The name of the output that a data edge comes from; None for an argument, and in the notation of graphs."""
    match = _NAMED_OUTPUT.fullmatch(text)
    return match and match["output"]


def output_edge(node: str, output: str, index: int = 0) -> EdgeText:
    """The data edge from an output of a node of a function.

    Args:
        node: the node.
        output: the name of the output.
        index: the number within it.
    """
    return EdgeText(f"{node}:{output}:{index}")


def graph_edge(node: str, index: int) -> EdgeText:
    """The data edge from an output of a node of a graph, outputs being counted through."""
    return EdgeText(f"{node}:{index}" if index else node)


def argument_edge(argument: str) -> EdgeText:
    """The data edge from an argument of a function."""
    return EdgeText(argument)


def control_edge(node: str) -> str:
    """The input that makes a node wait for another."""
    return f"^{node}"


def with_node(text: str, node: str) -> str:
    """The same output of another node; of a control dependency, the one on that node."""
    if is_control(text):
        return control_edge(node)
    _, colon, output = text.partition(":")
    return f"{node}{colon}{output}"


def data_input(proto: NodeDef, position: int) -> EdgeText:
    """One of the inputs of a node that are data; these come before the others."""
    return EdgeText(proto.input[position])


def data_inputs(proto: NodeDef) -> list[EdgeText]:
    """The inputs of a node that are data, in order."""
    return [text for text in proto.input if is_data(text)]


def result_edge(function: FunctionDef, result: str) -> EdgeText:
    """The edge of one of the results of a function."""
    return EdgeText(function.ret[result])


def sources_of(proto: NodeDef) -> list[str]:
    """The names of all that a node waits for, by data or control."""
    return list(map(source_of, proto.input))
