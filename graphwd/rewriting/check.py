"""Checks a rewritten body: the original plus marked nodes, edges sound and moved only where that was planned."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING

from graphwd.errors import RewriteError
from graphwd.graph.body import Body, Layout
from graphwd.graph.edge import Use, control_edge, is_control, source_of, sources_of
from graphwd.graph.graph import MARK
from graphwd.planning.injections import After, Before, Injection

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef


def check_rewritten(
    before: FunctionDef,
    after: FunctionDef,
    layout: Layout,
    injections: Mapping[str, Injection],
    calls: Mapping[str, Collection[str]],
    counting: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Checks a rewritten body against the original.

    Args:
        before: the original, which has no dangling edge and no cycle.
        after: the rewritten body.
        layout: where the nodes of the original are.
        injections: the planned injections, by the write that each belongs to.
        calls: for each call of which a function was replaced, the attributes that name those functions.
        counting: for each node that counts updates, the read of its counter that it waits for.

    Raises:
        RewriteError: it is not the original with one decay for each injection.
        GraphError: an edge leads nowhere, or nodes wait for each other.
    """
    name = before.signature.name
    count = len(before.node_def)
    waits = {control_edge(decay) for decay in _decays(before, after, injections)}
    waits |= set(map(control_edge, counting.values()))
    waits |= {control_edge(node.name) for node in after.node_def[count:] if node.attr[MARK].s == b"before"}
    moved = {use for injection in injections.values() for use in injection.uses}
    delayed = {write for write, injection in injections.items() if isinstance(injection, Before)}
    delayed |= {each.early.write for each in injections.values() if isinstance(each, After) and each.early is not None}
    delayed |= {name for each in injections.values() if isinstance(each, Before) for name in each.readiness.followers}
    delayed |= counting.keys()
    unchanged = {*(use.node for use in moved), *delayed, *calls}
    changed: list[tuple[int, NodeDef]] = []
    undecayed = {control_edge(write) for write, injection in injections.items() if isinstance(injection, After)}
    for place, old, new in zip(layout.places, before.node_def, after.node_def, strict=False):
        if old == new:
            continue
        unchanged.discard(old.name)
        _check_changed(old, new, calls.get(old.name, ()), moved, name)
        if old.name in delayed and new.input[-1] not in waits:
            raise RewriteError(f"rewriting '{name}' left {old.name} not to wait for its decay")
        changed.append((place, new))
    waiting = (after.node_def[index] for index in layout.waiting) if undecayed else ()
    for node in itertools.chain(waiting, (node for _, node in changed)):
        if early := undecayed.intersection(node.input):
            raise RewriteError(f"rewriting '{name}' left something to wait for {source_of(min(early))} undecayed")
    if unchanged:
        raise RewriteError(f"rewriting '{name}' left '{min(unchanged)}' as it was")
    if not _keeps_order(after, count, layout, changed):
        Body(after)  # raises for a dangling edge or a cycle


def _decays(before: FunctionDef, after: FunctionDef, injections: Mapping[str, Injection]) -> set[str]:
    """The nodes that decay; checks that there is one for each injection, and that the function ends after them."""
    name = before.signature.name
    count = len(before.node_def)
    if len(after.node_def) < count:
        raise RewriteError(f"rewriting '{name}' lost nodes of the original")
    decays = {node.name for node in after.node_def[count:] if node.attr[MARK].s == b"decay"}
    if len(decays) != len(injections):
        raise RewriteError(f"rewriting '{name}' did not add one decay for each of {len(injections)} updates")
    ends = injections.keys() & after.control_ret.values()
    if early := [node for node in ends if isinstance(injections[node], After)]:
        raise RewriteError(f"rewriting '{name}' left something to wait for {min(early)} undecayed")
    return decays


def _check_changed(old: NodeDef, new: NodeDef, retargeted: Iterable[str], moved: Collection[Use], name: str) -> None:
    """Checks that a node is unchanged, except for the given attributes and the moved inputs."""
    same = type(new)()
    same.CopyFrom(new)
    del same.input[:]
    same.input.extend(old.input)
    for attribute in retargeted:
        same.attr[attribute].CopyFrom(old.attr[attribute])
    # By bytes: a NaN is not equal to itself.
    if same.SerializeToString(deterministic=True) != old.SerializeToString(deterministic=True):
        raise RewriteError(f"rewriting '{name}' changed, lost or reordered '{old.name}'")
    for position, (was, now) in enumerate(zip(old.input, new.input, strict=False)):
        if not is_control(was) and (was == now) == (Use(old.name, position) in moved):
            raise RewriteError(f"rewriting '{name}' changed the wrong inputs of '{old.name}'")


def _keeps_order(after: FunctionDef, count: int, layout: Layout, changed: Iterable[tuple[int, NodeDef]]) -> bool:
    """Whether a rewritten body may run in the order of the original, but for what waits for injected nodes.

    Each injected node comes right after its sources, and a node that waits for it right after it.

    Args:
        after: the rewritten body.
        count: the number of original nodes, which come first in it.
        layout: where the original nodes are.
        changed: the original nodes with other inputs than before, each with its place.

    Returns:
        Whether it may; False also where that would take long to tell.
    """
    places: dict[str, int] = {argument.name: -1 for argument in after.signature.input_arg}
    of_nodes, indices = layout.places, layout.indices
    injected = after.node_def[count:]
    for node in injected:
        last = -1
        for source in sources_of(node):
            index = indices.get(source)
            place = places.get(source) if index is None else of_nodes[index]
            if place is None:
                return False
            if place > last:
                last = place
        places[node.name] = last
    moved: set[str] = set()
    in_order: Sequence[int] = ()
    left = count  # of the steps that this may take
    for place, node in sorted(changed, key=itemgetter(0)):
        last = max((places.get(source, -1) for source in sources_of(node)), default=-1)
        if last < place:
            continue
        left -= last - place
        if left < 0:
            return False
        in_order = in_order or sorted(range(count), key=of_nodes.__getitem__)
        moved.add(node.name)
        # What comes between and takes it moves as well; all else that takes it comes later.
        for other in map(after.node_def.__getitem__, in_order[place + 1 : last + 1]):
            if not moved.isdisjoint(sources_of(other)):
                moved.add(other.name)
    return not moved or all(moved.isdisjoint(sources_of(node)) for node in injected)
