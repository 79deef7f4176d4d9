"""Rewrites the functions of a TensorFlow 2 SavedModel: its object graph, its function library and its signatures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

from graphwd.analysis.updates import find_updates
from graphwd.graph.function_library import NewNames, original_name, reachable, rename, set_library
from graphwd.graph.graph import RECORD
from graphwd.models.entry_points import (
    EntryPoint,
    choose,
    entry_points,
    is_wrapper,
    rewritten_functions,
    signature_call,
    view,
)
from graphwd.planning.planner import make_plan
from graphwd.policy.rules import Policy
from graphwd.rewriting.inject import Rewritten, decay_records, inject, refuse_rewritten, take_out
from graphwd.rewriting.whole_plan import Pending


def pending_functions(meta_graph: MetaGraphDef, policy: Policy, functions: Iterable[str] | None) -> Pending:
    """Plans weight decay for functions and signatures.

    Args:
        meta_graph: the SavedModel's only MetaGraphDef.
        policy: the policy.
        functions: names of exported functions or signatures; None for all that train.

    Returns:
        The rewrite, which is done in place; where it would be refused, the plan has problems.

    Raises:
        GraphwdError: the model is malformed or rewritten already, or there is no such function.
    """
    refuse_rewritten(view(meta_graph, ()))
    entries = choose(meta_graph, functions)
    graph = view(meta_graph, entries)
    plan = make_plan(find_updates(graph), policy)
    decayed = {injection.site.path[0].callee.position for injection in plan.injections}
    problems = filter(None, (_signature_problem(meta_graph, entries[number]) for number in sorted(decayed)))
    plan = replace(plan, problems=(*plan.problems, *itertools.islice(problems, 1)))

    def write() -> None:
        plan.check()
        _replace(meta_graph, entries, inject(graph, plan.injections, NewNames(graph.library)))

    return Pending(plan, write)


def _signature_problem(meta_graph: MetaGraphDef, entry: EntryPoint) -> str | None:
    if not entry.signature or not any(signature_call(meta_graph, entry.name)) or _calls(meta_graph, entry):
        return None
    return f"the outputs of the signature '{entry.name}' do not come from its function; name another"


def strip_functions(meta_graph: MetaGraphDef) -> int:
    """Takes graphwd's own decay out again, in place.

    Args:
        meta_graph: the SavedModel's only MetaGraphDef.

    Returns:
        How many decays were taken out.

    Raises:
        RewriteError: the record of one is damaged.
    """
    library = {function.signature.name: function for function in meta_graph.graph_def.library.function}
    count = sum(len(take_out(function)) for function in library.values())
    rename(meta_graph, {name: original_name(name) for name in library if original_name(name) != name})
    # Where the original had to stay, its copy is the same again.
    kept: dict[str, FunctionDef] = {}
    for function in meta_graph.graph_def.library.function:
        kept.setdefault(function.signature.name, function)
    set_library(meta_graph, list(kept.values()))
    return count


def describe_functions(meta_graph: MetaGraphDef) -> list[dict[str, Any]]:
    """Says what graphwd has done to the model: as `describe_saved_model` does."""
    if not any(RECORD in node.attr for f in meta_graph.graph_def.library.function for node in f.node_def):
        return []
    return decay_records(view(meta_graph, entry_points(meta_graph)))


def _replace(meta_graph: MetaGraphDef, entries: list[EntryPoint], rewritten: Rewritten) -> None:
    """Puts the rewritten functions into the model, and takes out those that nothing refers to any more."""
    before = reachable(meta_graph)
    called = rewritten_functions(rewritten.root, rewritten.functions, entries)
    library = meta_graph.graph_def.library.function
    copies: dict[str, list[FunctionDef]] = {}
    for function in rewritten.functions:
        if not is_wrapper(function.signature.name):
            copies.setdefault(original_name(function.signature.name), []).append(function)
    # Beside the original, so that taking the decay out again gives the library in its order.
    together = [each for function in library for each in (function, *copies.get(function.signature.name, ()))]
    set_library(meta_graph, together)
    for entry, name in zip(entries, called, strict=True):
        if name != entry.function:
            _refer_to(meta_graph, entry, name)
    lost = before - reachable(meta_graph)
    set_library(meta_graph, [function for function in library if function.signature.name not in lost])
    for name in lost:
        meta_graph.object_graph_def.concrete_functions.pop(name, None)
        meta_graph.meta_info_def.function_aliases.pop(name, None)


def _refer_to(meta_graph: MetaGraphDef, entry: EntryPoint, name: str) -> None:
    """Lets everything that refers to an entry point's function refer to another."""
    objects = meta_graph.object_graph_def
    for number in entry.nodes:
        node = objects.nodes[number]
        if node.WhichOneof("kind") == "function":
            names = [name if each == entry.function else each for each in node.function.concrete_functions]
            node.function.concrete_functions[:] = names
        else:
            node.bare_concrete_function.concrete_function_name = name
    objects.concrete_functions[name].CopyFrom(objects.concrete_functions[entry.function])
    aliases = meta_graph.meta_info_def.function_aliases
    if entry.function in aliases:
        aliases[name] = aliases[entry.function]
    if entry.signature:
        _call_instead(meta_graph, entry, name)


def _call_instead(meta_graph: MetaGraphDef, entry: EntryPoint, name: str) -> None:
    """Lets the main graph run a signature's rewritten function."""
    for node in _calls(meta_graph, entry):
        node.attr["f"].func.name = name


def _calls(meta_graph: MetaGraphDef, entry: EntryPoint) -> list[NodeDef]:
    """The nodes of the main graph that run a signature's function."""
    names = set(signature_call(meta_graph, entry.name))
    calls = [node for node in meta_graph.graph_def.node if node.name in names and "f" in node.attr]
    return [node for node in calls if node.attr["f"].func.name == entry.function]
