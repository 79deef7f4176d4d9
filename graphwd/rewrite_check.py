"""Checks a rewritten body: the original plus marked nodes, edges sound and moved only where that was planned."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
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
    order = _Order(after, count)
    touched: list[tuple[int, NodeDef]] = []
    undecayed = {f"^{write}" for write in decayed_after}
    for place, old, new in itertools.zip_longest(places, before.node_def, itertools.islice(after.node_def, count)):
        if new is None or old.name != new.name:
            raise RewriteError(f"rewriting '{name}' lost or reordered nodes of the original")
        inputs = new.input
        if new.name in order.wanted:
            order.places[new.name] = place
        # What a node waits for comes after what it takes.
        if undecayed and inputs and is_control(inputs[-1]) and (early := undecayed.intersection(inputs)):
            raise RewriteError(f"rewriting '{name}' left something to wait for {min(early)[1:]} undecayed")
        if old.input == inputs and new.name not in changed:
            continue
        _check_inputs(old, new, moved, name)
        injection = injections.get(new.name)
        if injection and injection.where is Where.BEFORE and new.input[-1][1:] not in decays:
            raise RewriteError(f"rewriting '{name}' left {new.name} not to wait for its decay")
        touched.append((place, new))
    if not order.allows(touched):
        Body(after)  # raises where an edge leads nowhere or a circle was closed


class _Order:
    """An order in which a rewritten body may run: each injected node right after the last of those it waits for.

    Attributes:
        wanted: the names of all that injected nodes wait for.
        places: of these, where they come; to be filled in.
    """

    def __init__(self, function: FunctionDef, count: int) -> None:
        """Reads what the injected nodes wait for, which come after the first ``count``."""
        self._added = [(node.name, list(sources_of(node))) for node in function.node_def[count:]]
        self.wanted = {source for _, sources in self._added for source in sources}
        self.places = {argument.name: -1 for argument in function.signature.input_arg}

    def allows(self, nodes: Iterable[tuple[int, NodeDef]]) -> bool:
        """Whether each of some nodes of the original, given with its place, comes after what is injected before it."""
        added: dict[str, int] = {}
        for name, sources in self._added:
            if not all(source in self.places for source in sources):
                return False
            self.places[name] = added[name] = max((self.places[source] for source in sources), default=-1)
        return all(added.get(source, -1) < place for place, node in nodes for source in sources_of(node))


def _check_inputs(old: NodeDef, new: NodeDef, moved: Collection[Use], name: str) -> None:
    for position, (was, now) in enumerate(zip(old.input, new.input, strict=False)):
        if not is_control(was) and (was == now) == (Use(old.name, position) in moved):
            raise RewriteError(f"rewriting '{name}' changed the wrong inputs of '{old.name}'")
