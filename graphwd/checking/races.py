"""Finds injected nodes that race with the rest of a step, so that a decay may not happen in its place on every run."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator

from graphwd.graph.body import Body, Node
from graphwd.graph.edge import sources_of
from graphwd.graph.graph import MARK, Graph
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, CallKind
from graphwd.graph.traits import METADATA_OPS, READ_OPS


def races(graph: Graph) -> Iterator[str]:
    """Finds every injected read or write of a variable that is not ordered against another access of it.

    Two accesses of one variable in one body are ordered where one of them waits for the other, by data or control.

    Args:
        graph: a rewritten step.

    Yields:
        One message for each pair of nodes that may run in either order, one of them a write.
    """
    for function in (graph.root_function, *graph.library.values()):
        if any(MARK in node.attr for node in function.node_def):
            yield from _races_in(Body(function), graph)


def _races_in(body: Body, graph: Graph) -> Iterator[str]:
    accesses = list(_accesses(body))
    bit: dict[str, int] = {}
    for nodes in accesses:
        for node in nodes:
            bit.setdefault(node.name, 1 << len(bit))
    before = _reachable(body, bit)
    for first, second in (pair for nodes in accesses for pair in itertools.combinations(nodes, 2)):
        injected = MARK in first.proto.attr or MARK in second.proto.attr
        if not injected or before[second.name] & bit[first.name]:
            continue
        if not (_only_reads(graph, body, first, second) and _only_reads(graph, body, second, first)):
            yield f"in '{body.name}', {first.name} ({first.op}) and {second.name} ({second.op}) are not ordered"


def _only_reads(graph: Graph, body: Body, node: Node, other: Node) -> bool:
    """Whether a node writes no variable that another node takes, too."""
    if node.op in READ_OPS:
        return True
    aliases = _aliases(body)
    shared = {aliases.get(edge.node, edge.node) for edge in other.inputs}
    return _reads_all(graph, node, {i for i, e in enumerate(node.inputs) if aliases.get(e.node, e.node) in shared})


def _reads_all(graph: Graph, node: Node, positions: Container[int]) -> bool:
    """Whether a node does no more than read the variables that it gets at some positions, itself and in its calls."""
    if node.op in READ_OPS | METADATA_OPS:
        return True
    call = CALL_OPS.get(node.op)
    if call is None or call.kind is CallKind.SCAN:
        return False
    for callee in graph.callees(node):
        body = graph.body(callee.function)
        aliases = _aliases(body)
        handles = {argument for i, argument in enumerate(body.arguments, call.skip) if i in positions}
        for below in body.nodes:
            taken = {i for i, e in enumerate(below.inputs) if aliases.get(e.node, e.node) in handles}
            if taken and below.op != "Identity" and not _reads_all(graph, below, taken):
                return False
    return True


def _aliases(body: Body) -> dict[str, str]:
    """What each copy of a handle is a copy of."""
    aliases: dict[str, str] = {}
    for node in body.nodes:
        if node.op == "Identity":
            source = node.inputs[0].node
            aliases[node.name] = aliases.get(source, source)
    return aliases


def _accesses(body: Body) -> Iterator[list[Node]]:
    """For every variable that an injected node reads or writes, all nodes that take its handle, in order."""
    handles = _aliases(body)
    takers: dict[str, list[Node]] = {}
    injected: set[str] = set()
    for node in body.nodes:
        sources = [handles.get(edge.node, edge.node) for edge in node.inputs]
        if node.op != "Identity" and node.op not in METADATA_OPS:
            for source in dict.fromkeys(sources):
                takers.setdefault(source, []).append(node)
        if MARK in node.proto.attr and (node.op in READ_OPS or node.op in WRITE_OPS):
            injected.add(sources[0])
    return (takers[handle] for handle in injected)


def _reachable(body: Body, bit: dict[str, int]) -> dict[str, int]:
    """For every node, the bits of the accesses that precede it."""
    before: dict[str, int] = {}
    for node in body.nodes:
        bits = 0
        for source in sources_of(node.proto):
            bits |= before.get(source, 0) | bit.get(source, 0)
        before[node.name] = bits
    return before
