"""A function body: its nodes, sorted, and their edges."""

from __future__ import annotations

import graphlib
import sys
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from graphwd.errors import GraphError
from graphwd.graph.edge import Edge, EdgeText, is_data, parse_edge, result_edge, source_of
from graphwd.graph.traits import MERGE_OPS, Trait, ops_with

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef


class Node(NamedTuple):
    """A node of a body, its data inputs parsed.

    Attributes:
        name: its name, unique in the body.
        op: its op type.
        inputs: its data inputs, in order.
        controls: the names of the nodes that it waits for by control.
        protos: the nodes of the body as TensorFlow keeps them.
        index: which of these it is.
    """

    name: str
    op: str
    inputs: tuple[Edge, ...]
    controls: tuple[str, ...]
    protos: Sequence[NodeDef]
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - nobody searches a node as a tuple

    @property
    def proto(self) -> NodeDef:
        """The node as TensorFlow keeps it; not held, since it is rarely needed again."""
        return self.protos[self.index]


class Layout(NamedTuple):
    """Where the nodes of a function are: kept after its body is dropped.

    Attributes:
        indices: the index of each node of the function, by name.
        places: for each node of the function, its place in an order in which they may run; mostly the same order.
        waiting: the indices of the nodes that wait for others by control.
    """

    indices: Mapping[str, int]
    places: Sequence[int]
    waiting: Sequence[int]


class Body:
    """A function body: arguments, nodes in an order in which they may run, results.

    Attributes:
        name: the name of the function.
        arguments: names of its arguments, in order.
        nodes: its nodes, each after all that it waits for.
        places: for each node of the function, in its order there, the place among ``nodes``; mostly the same order.
        results: the edges of its results, in order.
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
        self.places: Sequence[int]
        order = _in_order(self.name, self.arguments, function.node_def)
        self.nodes, self.places = order.nodes, order.places(function.node_def)
        self.results: tuple[Edge, ...] = tuple(_results(function, order.known))

    @property
    def layout(self) -> Layout:
        """Where the nodes of the function are."""
        waiting = array("q", (node.index for node in self.nodes if node.controls))
        return Layout({node.name: node.index for node in self.nodes}, self.places, waiting)


def _results(function: FunctionDef, known: Container[str]) -> Iterator[Edge]:
    body = function.signature.name
    for result in function.signature.output_arg:
        # Access to a missing key of a protobuf map would add the key.
        if result.name not in function.ret:
            raise GraphError(f"the function '{body}' does not say where its result '{result.name}' comes from")
        edge = parse_edge(result_edge(function, result.name))
        if edge.node not in known:
            raise GraphError(f"the function '{body}' has a result from '{edge.node}', which does not exist")
        yield edge
    if missing := [node for node in function.control_ret.values() if node not in known]:
        raise GraphError(f"the function '{body}' waits for '{missing[0]}', which does not exist")


def _in_order(body: str, arguments: Iterable[str], protos: RepeatedCompositeFieldContainer[NodeDef]) -> _Order:
    """Parses nodes and orders them, each after all that it waits for.

    The order stays as it is, except for the few nodes that TensorFlow leaves before something they wait for. Such a
    node is put right after the last node that it waits for.
    """
    order = _Order(body, arguments)
    for index, proto in enumerate(protos):
        node, missing = order.parse(proto, protos, index)
        if missing and node.op in _LOOP_HEADS:
            # A v1 loop feeds NextIteration back into Merge: the one edge that may point backwards.
            missing = missing - _loop_ends(protos)
        if missing:
            order.put_later(node, missing)
        else:
            order.put(node)
    order.refuse_late()
    return order


class _Order:
    """Nodes that are put one by one, each after the nodes that it waits for.

    Attributes:
        known: the first output of each argument and node, by name; nearly all edges share these objects.
        nodes: the nodes, in order.
    """

    def __init__(self, body: str, arguments: Iterable[str]) -> None:
        self._body = body
        self.known: dict[str, Edge] = {}
        for name in arguments:
            self._name(name)
        self._late: dict[str, set[str]] = {}  # for each node to be put later, the nodes that it still waits for
        self._waiting_for: dict[str, list[Node]] = {}
        self.nodes: list[Node] = []
        self._stayed = True

    def places(self, protos: Iterable[NodeDef]) -> Sequence[int]:
        """The place of each node of the function, in the function's order."""
        if self._stayed:
            return range(len(self.nodes))
        places = {node.name: place for place, node in enumerate(self.nodes)}
        return array("q", (places[proto.name] for proto in protos))

    def parse(self, proto: NodeDef, protos: Sequence[NodeDef], index: int) -> tuple[Node, set[str] | None]:
        """A node, and the names that it waits for and that are not put yet."""
        known, late = self.known, self._late
        inputs: list[Edge] = []
        controls: list[str] = []
        missing: set[str] | None = None
        for text in proto.input:
            source, _, output = text.partition(":")
            edge = known.get(source)
            if edge is not None:
                first = not output or output.endswith(":0") or output == "0"
                inputs.append(edge if first else Edge(edge.node, parse_edge(EdgeText(text)).index))
            elif is_data(text):
                inputs.append(parse_edge(text))
            else:
                source = source_of(text)
                edge = known.get(source)
                controls.append(source if edge is None else edge.node)
            if edge is None or (late and source in late):
                missing = {source, *(missing or ())}
        name = proto.name
        self._name(name)
        node = Node(name, sys.intern(proto.op), tuple(inputs), tuple(controls), protos, index)
        return node, missing

    def _name(self, name: str) -> None:
        """Takes the name of an argument or a node, which no other may have."""
        if name in self.known:
            raise GraphError(f"the function '{self._body}' has two nodes named '{name}'")
        self.known[name] = Edge(name, 0)

    def put_later(self, node: Node, missing: set[str]) -> None:
        """Puts a node as soon as all that it waits for is put."""
        self._stayed = False
        self._late[node.name] = missing
        for source in missing:
            self._waiting_for.setdefault(source, []).append(node)

    def put(self, node: Node) -> None:
        """Puts a node, and those that waited only for it."""
        if not self._waiting_for:
            self.nodes.append(node)
            return
        ready = [node]
        while ready:
            node = ready.pop()
            self.nodes.append(node)
            for waiter in self._waiting_for.pop(node.name, ()):
                missing = self._late[waiter.name]
                missing.remove(node.name)
                if not missing:
                    del self._late[waiter.name]
                    ready.append(waiter)

    def refuse_late(self) -> None:
        """Refuses nodes that wait for a missing node or for each other."""
        for name, missing in self._late.items():
            if nowhere := sorted(missing - self.known.keys()):
                raise GraphError(
                    f"the node '{name}' of '{self._body}' has an input from '{nowhere[0]}', which does not exist"
                )
        try:
            graphlib.TopologicalSorter(self._late).prepare()
        except graphlib.CycleError as error:
            raise GraphError(f"nodes of '{self._body}' wait for each other: {' -> '.join(error.args[1])}") from None


_LOOP_HEADS = MERGE_OPS
_LOOP_ENDS = ops_with(Trait.NEXT_ITERATION)


def _loop_ends(protos: Iterable[NodeDef]) -> set[str]:
    return {proto.name for proto in protos if proto.op in _LOOP_ENDS}
