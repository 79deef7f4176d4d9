"""Finds injected nodes that race with the rest of a step, so that a decay may not happen in its place on every run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from graphwd.graph.body import Body, Node
from graphwd.graph.edge import sources_of
from graphwd.graph.graph import MARK, Graph
from graphwd.graph.ops import WRITE_OPS
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
            yield from _races_in(Body(function))


def _races_in(body: Body) -> Iterator[str]:
    accesses = list(_accesses(body))
    bit: dict[str, int] = {}
    for nodes in accesses:
        for node in nodes:
            bit.setdefault(node.name, 1 << len(bit))
    before = _reachable(body, bit)
    for first, second in (pair for nodes in accesses for pair in itertools.combinations(nodes, 2)):
        injected = MARK in first.proto.attr or MARK in second.proto.attr
        writes = not (first.op in READ_OPS and second.op in READ_OPS)
        if injected and writes and not before[second.name] & bit[first.name]:
            yield f"in '{body.name}', {first.name} ({first.op}) and {second.name} ({second.op}) are not ordered"


def _accesses(body: Body) -> Iterator[list[Node]]:
    """For every variable that an injected node reads or writes, all nodes that take its handle, in order."""
    handles: dict[str, str] = {}  # by the name of an alias
    takers: dict[str, list[Node]] = {}
    injected: set[str] = set()
    for node in body.nodes:
        sources = [handles.get(edge.node, edge.node) for edge in node.inputs]
        if node.op == "Identity":
            handles[node.name] = sources[0]
        elif node.op not in METADATA_OPS:
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
