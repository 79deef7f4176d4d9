"""Checks a rewritten body: the original plus marked nodes, edges sound and moved only where that was planned."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from graphwd.errors import RewriteError
from graphwd.graph import MARK, Body, is_control, is_sorted, sources_of
from graphwd.injection import Injection, Use, Where

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef


def check_rewritten(before: FunctionDef, after: FunctionDef, injections: Mapping[str, Injection]) -> None:
    """Checks what was made of a body.

    Args:
        before: the original.
        after: the rewritten body.
        injections: what was to be injected, by the write that it belongs to.

    Raises:
        RewriteError: it is not the original with one decay for each injection.
        GraphError: an edge leads nowhere, or nodes wait for each other.
    """
    name = before.signature.name
    kept, added = _apart(after)
    decays = {node.name for node in added if node.attr[MARK].s == b"decay"}
    if len(decays) != len(injections):
        raise RewriteError(f"rewriting '{name}' did not add one decay for each of {len(injections)} updates")
    decayed_after = {write for write, injection in injections.items() if injection.where is Where.AFTER}
    if early := decayed_after.intersection(after.control_ret.values()):
        raise RewriteError(f"rewriting '{name}' left something to wait for {min(early)} undecayed")
    moved = {use for injection in injections.values() for use in injection.uses}
    changed = {*(use.node for use in moved), *injections}
    for old, new in itertools.zip_longest(before.node_def, kept):
        if old is None or new is None or old.name != new.name:
            raise RewriteError(f"rewriting '{name}' lost or reordered nodes of the original")
        _check_waits(new, decayed_after, name)
        if old.input != new.input or new.name in changed:
            _check_inputs(old, new, moved, name)
        injection = injections.get(new.name)
        if injection and injection.where is Where.BEFORE and new.input[-1][1:] not in decays:
            raise RewriteError(f"rewriting '{name}' left {new.name} not to wait for its decay")
    arguments = [argument.name for argument in after.signature.input_arg]
    if not is_sorted(arguments, _merged(kept, added)):
        Body(after)  # raises where an edge leads nowhere or a circle was closed


def _apart(function: FunctionDef) -> tuple[list[NodeDef], list[NodeDef]]:
    """The nodes of the original, and the injected ones."""
    kept: list[NodeDef] = []
    added: list[NodeDef] = []
    for node in function.node_def:
        (added if MARK in node.attr else kept).append(node)
    return kept, added


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


def _merged(kept: Sequence[NodeDef], added: Sequence[NodeDef]) -> list[NodeDef]:
    """All nodes, each injected one right after the last of those that it waits for."""
    rank = {node.name: number for number, node in enumerate(kept)}
    for node in added:
        rank[node.name] = max((rank.get(source, -1) for source in sources_of(node)), default=-1)
    # Sorting keeps the order of equals: an injected node follows what has its rank.
    return sorted([*kept, *added], key=lambda node: rank[node.name])
