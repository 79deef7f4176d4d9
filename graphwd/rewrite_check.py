"""Checks a rewritten body: the original plus marked nodes, edges sound and moved only where that was planned."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from graphwd.body import Body, is_control, sources_of
from graphwd.errors import RewriteError
from graphwd.graph import MARK
from graphwd.injection import Injection, Use, Where

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef


def check_rewritten(
    before: FunctionDef, after: FunctionDef, injections: Mapping[str, Injection], *, places: Sequence[int]
) -> None:
    """Checks what was made of a body.

    Args:
        before: the original, in which no edge leads nowhere and no nodes wait for each other.
        after: the rewritten body.
        injections: what was to be injected, by the write that it belongs to.
        places: where each node of the original comes in an order in which they may run.

    Raises:
        RewriteError: it is not the original with one decay for each injection.
        GraphError: an edge leads nowhere, or nodes wait for each other.
    """
    name = before.signature.name
    count = len(before.node_def)
    added = after.node_def[count:]
    decays = {node.name for node in added if node.attr[MARK].s == b"decay"}
    if len(decays) != len(injections):
        raise RewriteError(f"rewriting '{name}' did not add one decay for each of {len(injections)} updates")
    decayed_after = {write for write, injection in injections.items() if injection.where is Where.AFTER}
    if early := decayed_after.intersection(after.control_ret.values()):
        raise RewriteError(f"rewriting '{name}' left something to wait for {min(early)} undecayed")
    moved = {use for injection in injections.values() for use in injection.uses}
    changed = {*(use.node for use in moved), *injections}
    order = _Order(after, places)
    keeps_order = order.is_whole
    for number, (old, new) in enumerate(
        itertools.zip_longest(before.node_def, itertools.islice(after.node_def, count))
    ):
        if new is None or old.name != new.name:
            raise RewriteError(f"rewriting '{name}' lost or reordered nodes of the original")
        _check_waits(new, decayed_after, name)
        if old.input == new.input and new.name not in changed:
            continue
        _check_inputs(old, new, moved, name)
        injection = injections.get(new.name)
        if injection and injection.where is Where.BEFORE and new.input[-1][1:] not in decays:
            raise RewriteError(f"rewriting '{name}' left {new.name} not to wait for its decay")
        keeps_order = keeps_order and order.allows(places[number], new)
    if not keeps_order:
        Body(after)  # raises where an edge leads nowhere or a circle was closed


class _Order:
    """An order in which a rewritten body may run: each injected node right after the last of those it waits for."""

    def __init__(self, function: FunctionDef, original: Sequence[int]) -> None:
        """Places the injected nodes, which come after those of the original, where what they follow is."""
        added = function.node_def[len(original) :]
        wanted = {source for node in added for source in sources_of(node)}
        places = {argument.name: -1 for argument in function.signature.input_arg}
        places |= {
            node.name: place for place, node in zip(original, function.node_def, strict=False) if node.name in wanted
        }
        self.is_whole = True
        self._places: dict[str, int] = {}
        for node in added:
            sources = list(sources_of(node))
            self.is_whole = self.is_whole and all(source in places for source in sources)
            places[node.name] = max((places.get(source, -1) for source in sources), default=-1)
            self._places[node.name] = places[node.name]

    def allows(self, place: int, node: NodeDef) -> bool:
        """Whether a node of the original comes after all injected nodes that it waits for."""
        return all(self._places.get(source, -1) < place for source in sources_of(node))


def _check_waits(node: NodeDef, decayed_after: Collection[str], name: str) -> None:
    """Refuses a node that waits for a write where it must wait for the decay after it."""
    inputs = node.input
    if not inputs or not is_control(inputs[-1]):
        return  # what a node waits for comes after what it takes
    for text in inputs:
        if is_control(text) and text[1:] in decayed_after:
            raise RewriteError(f"rewriting '{name}' left something to wait for {text[1:]} undecayed")


def _check_inputs(old: NodeDef, new: NodeDef, moved: Collection[Use], name: str) -> None:
    for position, (was, now) in enumerate(zip(old.input, new.input, strict=False)):
        if not is_control(was) and (was == now) == (Use(old.name, position) in moved):
            raise RewriteError(f"rewriting '{name}' changed the wrong inputs of '{old.name}'")
