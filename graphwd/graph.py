"""A read-only view of a traced step: its function bodies, their edges, their call sites, and its variables.

This module alone knows how edges are written (``node:output:index``, ``node:index``, ``argument``, ``^node``) and
which functions a node calls.
"""

from __future__ import annotations

import functools
import graphlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from graphwd.errors import GraphError
from graphwd.update_ops import CALL_OPS, CallKind

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

MARK = "_graphwd"
"""The attribute that every injected node carries; its value is the node's role."""

RECORD = "_graphwd_decay"
"""The attribute of each injected read that says, as JSON, which decay it belongs to and how to take that out again."""

DTYPE_NUMBERS: Mapping[str, int] = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "string": 7, "complex64": 8, "int64": 9,
    "bool": 10, "bfloat16": 14, "uint16": 17, "complex128": 18, "float16": 19, "resource": 20, "variant": 21,
    "uint32": 22, "uint64": 23,
}  # fmt: skip
"""Of tensorflow/core/framework/types.proto; written out so that a rewrite needs no import of TensorFlow."""

DTYPE_NAMES: Mapping[int, str] = {number: name for name, number in DTYPE_NUMBERS.items()}


def differentiable(dtype: str) -> bool:
    """Whether a variable of a dtype can have a gradient; a counter is ``trainable`` where nobody said otherwise."""
    return not dtype.startswith(("int", "uint", "bool", "string"))


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the step.

    Attributes:
        id: its number among the step's variables: names are not identities, two variables may share one.
        name: the name that a user sees, without ``:0``.
        shape: its dimensions, None for one that is unknown; None where not even the rank is known.
        dtype: the name of its dtype, such as ``float32``.
        trainable: whether it is trained, which takes a dtype that is `differentiable`.
        path: its path in the object graph, where one is known.
        reference: whether it is a v1 reference variable, whose handle is the variable itself.
        device: the device that holds it, where one is known.
    """

    id: int
    name: str
    shape: tuple[int | None, ...] | None
    dtype: str
    trainable: bool
    path: str | None = None
    reference: bool = False
    device: str = ""

    @property
    def rank(self) -> int | None:
        """Its number of dimensions."""
        return None if self.shape is None else len(self.shape)


_MAX_DIGITS = 10
"""Of the number of an output: more than any node has."""


class Edge(NamedTuple):
    """A data input: output ``index`` of ``node``, which may be an argument of the body."""

    node: str
    index: int


class Callee(NamedTuple):
    """One function that a node calls.

    Attributes:
        attribute: the attribute of the node that names it.
        position: its position in that attribute, where it is a list.
        function: its name in the library.
    """

    attribute: str
    position: int
    function: str


class Node(NamedTuple):
    """A node of a body, its data inputs parsed.

    Attributes:
        name: its name, unique in the body.
        op: its op type.
        inputs: its data inputs, in order.
        proto: the node as TensorFlow keeps it.
    """

    name: str
    op: str
    inputs: tuple[Edge, ...]
    proto: NodeDef


def parse_edge(text: str) -> Edge:
    """Reads a data edge in either of TensorFlow's two notations.

    Args:
        text: ``node:output:index`` or ``argument`` (functions), ``node:index`` or ``node`` (graphs).

    Returns:
        The node and the number at the end; 0 where none is written.

    Raises:
        GraphError: the number is none that a node could have.
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
    return text.startswith("^")


class Body:
    """A function body: arguments, nodes in an order in which they may run, results.

    Attributes:
        name: the name of the function.
        arguments: names of its arguments, in order.
        nodes: its nodes, each after all that it waits for.
        was_sorted: whether TensorFlow kept them so.
        results: where its results come from, in order.
    """

    def __init__(self, function: FunctionDef) -> None:
        """Parses a function.

        Args:
            function: the function; it is read and never changed.

        Raises:
            GraphError: an edge leads nowhere, or the nodes wait for each other in a circle.
        """
        self.name: str = function.signature.name
        self.arguments: tuple[str, ...] = tuple(argument.name for argument in function.signature.input_arg)
        self.nodes: Sequence[Node]
        self.nodes, self.was_sorted = _in_order(self.name, self.arguments, function.node_def)
        self.results: tuple[Edge, ...] = tuple(_results(self, function))


class Graph:
    """A traced step.

    Attributes:
        root: the body of the step itself.
        library: every function that the step may call, by name.
        handles: for every argument of the root that is a variable's handle, the variable.
        data: the arguments of the root that carry the step's data.
        variables: every variable of the step, by number.
    """

    def __init__(
        self, root: FunctionDef, library: Iterable[FunctionDef], handles: Mapping[str, Variable], data: Iterable[str]
    ) -> None:
        """Makes the view; bodies are parsed when they are first asked for.

        Args:
            root: the step itself, as a function.
            library: the functions that it may call.
            handles: the arguments of ``root`` that are variables' handles.
            data: the arguments of ``root`` that carry data.
        """
        self.root_function = root
        self.library: Mapping[str, FunctionDef] = {function.signature.name: function for function in library}
        self._bodies: dict[str, Body] = {}
        self._sorted: dict[str, bool] = {}  # by name, the step itself by none
        self.handles = dict(handles)
        self.data = frozenset(data)
        self.variables: tuple[Variable, ...] = tuple(
            sorted(set(self.handles.values()), key=lambda variable: variable.id)
        )

    @functools.cached_property
    def root(self) -> Body:
        """The body of the step itself."""
        return Body(self.root_function)

    def body(self, function: str) -> Body:
        """The parsed body of a library function.

        Args:
            function: its name.

        Returns:
            The body.

        Raises:
            GraphError: the library holds no such function.
        """
        if function not in self.library:
            raise GraphError(f"the graph calls the function '{function}', which its library does not hold")
        if function not in self._bodies:
            self._bodies[function] = Body(self.library[function])
        return self._bodies[function]

    def was_sorted(self, function: FunctionDef) -> bool:
        """Whether TensorFlow kept the nodes of a body, the step's own or that of a function, in an order to run in."""
        name = "" if function is self.root_function else function.signature.name
        if name not in self._sorted:
            self._sorted[name] = (self.body(name) if name else self.root).was_sorted
        return self._sorted[name]

    def forget_bodies(self) -> None:
        """Drops the parsed bodies, which take more memory than the functions do; whoever asks has them parsed again."""
        for function in (self.root_function, *(self.library[name] for name in self._bodies)):
            self.was_sorted(function)
        self._bodies.clear()
        vars(self).pop("root", None)

    def callees(self, node: Node) -> tuple[Callee, ...]:
        """The functions that a node calls, as far as graphwd follows calls.

        Args:
            node: a node of any body.

        Returns:
            Its functions, in the order of its attributes; empty where the node calls none.
        """
        call = CALL_OPS.get(node.op)
        if call is None:
            return ()
        found = tuple(callee for attribute in call.attributes for callee in _callees(node.proto, attribute))
        if len(found) < len(call.attributes):
            raise GraphError(f"the node '{node.name}' ({node.op}) does not name the functions that it calls")
        return found

    def functions_of(self, node: Node) -> Iterator[str]:
        """Names of all functions that any attribute of a node refers to, followed by graphwd or not."""
        for value in node.proto.attr.values():
            if value.func.name:
                yield value.func.name
            for function in value.list.func:
                yield function.name


def state_count(node: Node) -> int:
    """How many loop-carried values a dataset op with a function feeds back.

    Args:
        node: a node whose op is of `CallKind.SCAN`.
    """
    return len(node.proto.attr["Tstate"].list.type)


def call_kind(node: Node) -> CallKind:
    """What a node does with the functions it calls."""
    return CALL_OPS[node.op].kind


def _results(body: Body, function: FunctionDef) -> Iterator[Edge]:
    known = {*body.arguments, *(node.name for node in body.nodes)}
    for result in function.signature.output_arg:
        # A protobuf map that is asked for what it does not hold adds it.
        if result.name not in function.ret:
            raise GraphError(f"the function '{body.name}' does not say where its result '{result.name}' comes from")
        edge = parse_edge(function.ret[result.name])
        if edge.node not in known:
            raise GraphError(f"the function '{body.name}' has a result from '{edge.node}', which does not exist")
        yield edge
    if missing := [node for node in function.control_ret.values() if node not in known]:
        raise GraphError(f"the function '{body.name}' waits for '{missing[0]}', which does not exist")


def _callees(node: NodeDef, attribute: str) -> Iterator[Callee]:
    if attribute not in node.attr:
        return
    value = node.attr[attribute]
    if value.func.name:
        yield Callee(attribute, 0, value.func.name)
    for position, function in enumerate(value.list.func):
        yield Callee(attribute, position, function.name)


def sources_of(proto: NodeDef) -> Iterator[str]:
    """The names of all that a node waits for, by data or control."""
    for text in proto.input:
        yield text[1:] if is_control(text) else text.partition(":")[0]


def _in_order(body: str, arguments: Iterable[str], protos: Iterable[NodeDef]) -> tuple[list[Node], bool]:
    """Parses nodes and, where TensorFlow did not already keep them so, sorts each after what it waits for."""
    known = {name: name for name in arguments}
    nodes: list[Node] = []
    edges: dict[str, Edge] = {}
    sorted_already = True
    for proto in protos:
        inputs: list[Edge] = []
        for text in proto.input:
            if is_control(text):
                source = text[1:]
            else:
                edge = edges.get(text)
                if edge is None:
                    parsed = parse_edge(text)
                    # One text for each name: there are as many edges as nodes, and more.
                    edge = edges[text] = Edge(known.get(parsed.node, parsed.node), parsed.index)
                inputs.append(edge)
                source = edge.node
            sorted_already = sorted_already and source in known
        name = proto.name
        if name in known:
            raise GraphError(f"the function '{body}' has two nodes named '{name}'")
        known[name] = name
        nodes.append(Node(name, sys.intern(proto.op), tuple(inputs), proto))
    if sorted_already:
        return nodes, True
    waits = {node.name: list(sources_of(node.proto)) for node in nodes}
    for name, before in waits.items():
        if missing := [other for other in before if other not in known]:
            raise GraphError(f"the node '{name}' of '{body}' has an input from '{missing[0]}', which does not exist")
    by_name = {node.name: node for node in nodes}
    # A v1 loop feeds NextIteration back into Merge: the one edge that may point backwards.
    graph = {
        name: [b for b in before if by_name[name].op not in _LOOP_HEADS or not _closes_loop(by_name.get(b))]
        for name, before in waits.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise GraphError(f"nodes of '{body}' wait for each other: {' -> '.join(error.args[1])}") from None
    return [by_name[name] for name in order if name in by_name], False


_LOOP_HEADS = frozenset({"Merge", "RefMerge"})


def _closes_loop(node: Node | None) -> bool:
    return node is not None and node.op in {"NextIteration", "RefNextIteration"}
