"""The function library of a MetaGraphDef: which functions anything refers to, and their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

_SUFFIX = "__graphwd"
_COPY = re.compile(rf"{_SUFFIX}_\d+$")


class NewNames:
    """Makes names for rewritten copies of functions.

    TensorFlow's fingerprint takes the number at the end of a function's name for its identity. Of two functions with
    one number it picks either, and not always the same. So every copy has a number of its own.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        """Remembers the names of the library's functions."""
        self._numbers = {name.rpartition("_")[2] for name in taken}
        self._next = 1

    def __call__(self, base: str) -> str:
        """A name, unused so far, for a copy of the function of the given name."""
        while str(self._next) in self._numbers:
            self._next += 1
        self._numbers.add(str(self._next))
        return f"{base}{_SUFFIX}_{self._next}"


def original_name(function: str) -> str:
    """The name of the original of a rewritten copy; the function's own name where it is not a copy."""
    return _COPY.sub("", function)


def set_library(meta_graph: MetaGraphDef, functions: Iterable[FunctionDef]) -> None:
    """Replaces the functions of the library by the given ones, in their order."""
    functions = list(functions)
    if not functions and not meta_graph.graph_def.HasField("library"):
        return  # access alone would create the field
    # Messages that are removed from a field stay valid as long as a reference to them exists.
    del meta_graph.graph_def.library.function[:]
    meta_graph.graph_def.library.function.extend(functions)


def rename(meta_graph: MetaGraphDef, names: Mapping[str, str]) -> None:
    """Renames functions, wherever they are referred to.

    Args:
        meta_graph: the MetaGraphDef.
        names: the new name of each, by the old one.
    """
    if not names:
        return
    for function in meta_graph.graph_def.library.function:
        function.signature.name = names.get(function.signature.name, function.signature.name)
    nodes = [*meta_graph.graph_def.node]
    nodes += [node for function in meta_graph.graph_def.library.function for node in function.node_def]
    for node in nodes:
        for value in node.attr.values():
            for function in (value.func, *value.list.func) if value.func.name or value.list.func else ():
                function.name = names.get(function.name, function.name)
    _rename_in_objects(meta_graph, names)


def _rename_in_objects(meta_graph: MetaGraphDef, names: Mapping[str, str]) -> None:
    objects = meta_graph.object_graph_def
    for node in objects.nodes:
        if node.WhichOneof("kind") == "function":
            node.function.concrete_functions[:] = [names.get(name, name) for name in node.function.concrete_functions]
        elif node.WhichOneof("kind") == "bare_concrete_function":
            name = node.bare_concrete_function.concrete_function_name
            node.bare_concrete_function.concrete_function_name = names.get(name, name)
    aliases = meta_graph.meta_info_def.function_aliases
    for old, new in names.items():
        if old in objects.concrete_functions:
            objects.concrete_functions[new].CopyFrom(objects.concrete_functions[old])
            del objects.concrete_functions[old]
        if old in aliases:
            aliases[new] = aliases.pop(old)


def reachable(meta_graph: MetaGraphDef, functions: Iterable[FunctionDef]) -> set[str]:
    """The functions that the main graph, the objects or a gradient refer to, directly or not.

    Args:
        meta_graph: the MetaGraphDef.
        functions: all functions, in its library or not.
    """
    library = {function.signature.name: function for function in functions}
    gradients = meta_graph.graph_def.library
    waiting = [name for node in meta_graph.graph_def.node for name in _mentioned(node.attr, library)]
    for node in meta_graph.object_graph_def.nodes:
        waiting += [*node.function.concrete_functions, node.bare_concrete_function.concrete_function_name]
    waiting += [gradient.gradient_func for gradient in gradients.gradient]
    waiting += [gradient.gradient_func for gradient in gradients.registered_gradients]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in library and name not in reached:
            reached.add(name)
            function = library[name]
            waiting += _mentioned(function.attr, library)
            waiting += [other for node in function.node_def for other in _mentioned(node.attr, library)]
    return reached


def _mentioned(attributes: Mapping[str, Any], library: dict[str, FunctionDef]) -> Iterator[str]:
    """The functions that attributes name: as functions, or, of gradients, as text."""
    for name in attributes:  # which is much faster than by values()
        value = attributes[name]
        kind = value.WhichOneof("value")
        if kind == "func":
            yield value.func.name
        elif kind == "list":
            yield from (function.name for function in value.list.func)
        elif kind == "s" and (text := value.s.decode("utf-8", "replace")) in library:
            yield text
