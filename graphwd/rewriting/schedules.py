"""Computes the rates of schedules in a body: once for all decays in and below it, from one read of each counter.

What counts up in the original waits for that read, so that it sees the number of updates before this one. A counter of
graphwd's own is counted up here, after the read, and the function ends after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from graphwd.decay import arithmetic
from graphwd.graph.edge import EdgeText, control_edge, data_input, node_of
from graphwd.graph.fragment import Reference, fragment
from graphwd.graph.graph import MARK
from graphwd.planning.injections import Elsewhere, Scheduled
from graphwd.rewriting.splice import Added, Splicer

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

_DELAYS = "_graphwd_delays"
"""The attribute of the read of a counter that names the node of the original that waits for it."""
_RESULT = "graphwd_steps"
"""The control result of a function that counts in a variable of graphwd's own."""


def write_schedules(
    added: Added,
    nodes: Mapping[str, NodeDef],
    scheduled: Sequence[Scheduled],
    brought: Mapping[Elsewhere, EdgeText],
    anchor: NodeDef,
) -> tuple[dict[Elsewhere, EdgeText], dict[str, str]]:
    """Adds the rates of schedules to a body.

    Args:
        added: the body.
        nodes: by name, at least those of its nodes that count up.
        scheduled: what is to be computed.
        brought: the edges of what was brought into the body.
        anchor: the node that gives its name to what counts in a variable of graphwd's own.

    Returns:
        The edge of each rate, and for each node of the original that waits for an injected one, that.
    """
    edges: dict[Elsewhere, EdgeText] = {}
    delayed: dict[str, str] = {}
    for group in _by_counter(scheduled):
        counter = group[0]
        write = nodes[counter.write] if counter.own is None else anchor
        splicer = Splicer(added, write, "", with_write=False, device=write.device if counter.own is None else "")
        handle = {"handle": data_input(write, 0) if counter.own is None else brought[counter.own]}
        dtype = counter.counter_dtype
        kind = {"handle": Reference(dtype) if counter.reference else "resource"}
        step = splicer.splice(fragment(arithmetic.count, kind, dtype=dtype), handle)
        assert step is not None
        name = node_of(step)
        for rate in group:
            piece = fragment(arithmetic.scheduled, {"step": "float64"}, schedule=rate.schedule)
            edge = splicer.splice(piece, {"step": step})
            assert edge is not None
            edges[rate] = edge
        if counter.own is None:
            write.input.append(control_edge(name))
            splicer.nodes["step"].attr[_DELAYS].s = write.name.encode()
            delayed[write.name] = name
        else:
            splicer.splice(fragment(arithmetic.count_up, kind, dtype=dtype), handle)
            counting = splicer.nodes["steps"]
            counting.input.append(control_edge(name))
            added.function.signature.control_output.append(_RESULT)
            added.function.control_ret[_RESULT] = counting.name
    return edges, delayed


def _by_counter(scheduled: Iterable[Scheduled]) -> Iterable[list[Scheduled]]:
    groups: dict[object, list[Scheduled]] = {}
    for rate in scheduled:
        groups.setdefault(rate.own or rate.write, []).append(rate)
    return groups.values()


def take_schedules(function: FunctionDef) -> None:
    """Takes away what waits for counters, and what counts in variables of graphwd's own; the nodes themselves stay.

    Args:
        function: the function; it is changed.
    """
    waiting = {node.attr[_DELAYS].s.decode(): node.name for node in function.node_def if _DELAYS in node.attr}
    for node in function.node_def if waiting else ():
        if node.name in waiting:
            node.input.remove(control_edge(waiting[node.name]))
    marked = {node.name for node in function.node_def if MARK in node.attr} if _RESULT in function.control_ret else ()
    if marked and function.control_ret[_RESULT] in marked:
        del function.control_ret[_RESULT]
        function.signature.control_output.remove(_RESULT)
