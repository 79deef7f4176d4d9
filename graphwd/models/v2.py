"""Rewrites the functions of a TensorFlow 2 SavedModel: its object graph, its function library and its signatures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

from graphwd.analysis.updates import Analysis, find_updates
from graphwd.errors import RewriteError
from graphwd.graph.function_library import original_name, reachable, rename, set_library
from graphwd.graph.graph import RECORD
from graphwd.models.entry_points import EntryPoint, Exports, is_wrapper, rewritten_functions, signature_call
from graphwd.planning.plan import Plan
from graphwd.rewriting.bring import brings_variables
from graphwd.rewriting.inject import FRAGMENT, Rewritten, decay_records, refuse_rewritten, take_out
from graphwd.rewriting.part import without_own_variables


class TrainingFunctions:
    """The functions and signatures of a SavedModel that train, as a part to plan and to write.

    Attributes:
        graph: a view of them.
    """

    def __init__(self, meta_graph: MetaGraphDef, functions: Iterable[str] | None) -> None:
        """Chooses and views the functions.

        Args:
            meta_graph: the SavedModel's only MetaGraphDef.
            functions: names of exported functions or signatures; None for all that train.

        Raises:
            GraphwdError: the model is malformed or rewritten already, or there is no such function.
        """
        self._meta_graph = meta_graph
        exports = Exports(meta_graph)
        # Before the search, as in all parts. Here the functions themselves are chosen by a search.
        refuse_rewritten(exports.view(()))
        self._entries, self.graph, analysis = exports.choose(functions)
        self._analysis: Analysis | None = analysis

    def find_updates(self) -> Analysis:
        """Finds every update of every trainable variable."""
        analysis, self._analysis = self._analysis, None
        return analysis or find_updates(self.graph)

    def limited(self, plan: Plan) -> Plan:
        """The plan, which refuses a signature that is run by a function other than its own."""
        decayed = sorted({injection.site.path[0].callee.position for injection in plan.injections})
        problems = (_signature_problem(self._meta_graph, self._entries[number]) for number in decayed)
        first = itertools.islice(filter(None, problems), 1)
        return without_own_variables(replace(plan, problems=(*plan.problems, *first)))

    def replace(self, rewritten: Rewritten, _plan: Plan) -> None:
        """Gives the functions weight decay, in place, and removes those that are no longer referred to.

        Args:
            rewritten: the rewritten view.
        """
        meta_graph = self._meta_graph
        called = rewritten_functions(rewritten.root, rewritten.functions, self._entries)
        copies: dict[str, list[FunctionDef]] = {}
        for function in rewritten.functions:
            if not is_wrapper(function.signature.name):
                copies.setdefault(original_name(function.signature.name), []).append(function)
        # Next to the original, so that taking the decay out again restores the order of the library.
        library = [
            member
            for function in meta_graph.graph_def.library.function
            for member in (function, *copies.get(function.signature.name, ()))
        ]
        library += [function for function in rewritten.functions if function.signature.name.startswith(FRAGMENT)]
        for entry, name in zip(self._entries, called, strict=True):
            if name != entry.function:
                _refer_to(meta_graph, entry, name)
        # Where a copy no longer refers to a function of the original, that function has a copy itself.
        lost = copies.keys() - reachable(meta_graph, library) if copies else set[str]()
        set_library(meta_graph, [function for function in library if function.signature.name not in lost])
        for name in lost:
            meta_graph.object_graph_def.concrete_functions.pop(name, None)
            meta_graph.meta_info_def.function_aliases.pop(name, None)


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
    if any(map(brings_variables, library.values())):
        raise RewriteError(
            "the model was exported from Python with variables of graphwd's own (a tunable rate, a counter, first "
            "weights), which cannot be taken out of it: take the original step"
        )
    count = sum(len(take_out(function)) for function in library.values())
    rename(meta_graph, {name: original_name(name) for name in library if original_name(name) != name})
    # Where the original is still there, its copy equals it again.
    kept: dict[str, FunctionDef] = {}
    for function in meta_graph.graph_def.library.function:
        if not function.signature.name.startswith(FRAGMENT):
            kept.setdefault(function.signature.name, function)
    set_library(meta_graph, list(kept.values()))
    return count


def describe_functions(meta_graph: MetaGraphDef) -> list[dict[str, Any]]:
    """Reads the records of graphwd's decays in the model, as `describe_saved_model` does."""
    if not any(RECORD in node.attr for f in meta_graph.graph_def.library.function for node in f.node_def):
        return []
    exports = Exports(meta_graph)
    return decay_records(exports.view(exports.entry_points()))


def _refer_to(meta_graph: MetaGraphDef, entry: EntryPoint, name: str) -> None:
    """Redirects all references to an entry point's function to another function."""
    objects = meta_graph.object_graph_def
    for number in entry.nodes:
        node = objects.nodes[number]
        if node.WhichOneof("kind") == "function":
            names = [name if other == entry.function else other for other in node.function.concrete_functions]
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
    """Makes the main graph run a signature's rewritten function."""
    for node in _calls(meta_graph, entry):
        node.attr["f"].func.name = name


def _calls(meta_graph: MetaGraphDef, entry: EntryPoint) -> list[NodeDef]:
    """The nodes of the main graph that run a signature's function."""
    names = set(signature_call(meta_graph, entry.name))
    calls = [node for node in meta_graph.graph_def.node if node.name in names and "f" in node.attr]
    return [node for node in calls if node.attr["f"].func.name == entry.function]
