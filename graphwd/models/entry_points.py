"""Finds the callable functions of a TF2 SavedModel, and views those that train as one graph.

The view is a step that runs one of the entry points: a ``Case`` of functions that each call one of them. So updates of
one variable in two of them exclude each other, as branches do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphwd.analysis.sites import SAVED_MODEL
from graphwd.analysis.updates import Analysis, find_updates
from graphwd.errors import StepError
from graphwd.graph.edge import EdgeText, node_of
from graphwd.graph.graph import DTYPE_NAMES, Graph, Variable, differentiable, labels
from graphwd.graph.object_graph import ObjectGraph
from graphwd.messages import listed

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
    from tensorflow.core.protobuf.saved_object_graph_pb2 import SavedObjectGraph, SavedVariable

SIGNATURES = "signatures"
"""The name under which the root of a SavedModel holds its signatures."""

_LISTS_OF_OTHERS = frozenset({"_trainable_variables"})
"""Attributes of a Keras optimizer that list the model's weights; a path through them does not count."""

_WRAPPER = "graphwd_entry_point_{}"


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One function that a user of a SavedModel can call.

    Attributes:
        name: the object path of the function, or the key of the signature.
        function: its name in the library.
        nodes: the objects that refer to it, by number.
        signature: whether it is a signature.
        bound: the numbers of the objects that are bound to its last arguments.
    """

    name: str
    function: str
    nodes: tuple[int, ...]
    signature: bool
    bound: tuple[int, ...]


class Exports:
    """The exports of a TF2 SavedModel, read once.

    Attributes:
        meta_graph: the SavedModel's only MetaGraphDef.
    """

    def __init__(self, meta_graph: MetaGraphDef) -> None:
        """Reads the function library and the objects.

        Args:
            meta_graph: the SavedModel's only MetaGraphDef.

        Raises:
            StepError: the object graph is malformed, or a function has a name that graphwd keeps for itself.
        """
        self.meta_graph = meta_graph
        self._library = {function.signature.name: function for function in meta_graph.graph_def.library.function}
        if own := next(filter(is_wrapper, self._library), None):
            raise StepError(f"the model has a function '{own}', a name that graphwd keeps for itself")
        self._objects = _object_graph(meta_graph.object_graph_def)

    def entry_points(self) -> list[EntryPoint]:
        """Finds every function and signature.

        Functions that save and restore single objects are left out.

        Returns:
            The entry points, functions first; a function has one for each of its traces.

        Raises:
            StepError: the object graph is malformed.
        """
        objects = self.meta_graph.object_graph_def
        numbers_by_name: dict[tuple[str, str, bool], list[int]] = {}
        for number, path in self._objects.paths().items():
            node = objects.nodes[number]
            kind = node.WhichOneof("kind")
            parts = path.split(".")
            signature = parts[0] == SIGNATURES
            if kind == "function":
                for function in node.function.concrete_functions:
                    numbers_by_name.setdefault((path, function, False), []).append(number)
            elif kind == "bare_concrete_function":
                function = node.bare_concrete_function.concrete_function_name
                if signature:
                    numbers_by_name.setdefault((".".join(parts[1:]), function, True), []).append(number)
                else:
                    # TensorFlow lists the traces of a function as its children, too.
                    parent = (".".join(parts[:-1]), function, False)
                    numbers_by_name.setdefault(
                        parent if parent in numbers_by_name else (path, function, False), []
                    ).append(number)
        entries = [
            EntryPoint(name, function, tuple(numbers), signature, _bound(objects, function))
            for (name, function, signature), numbers in numbers_by_name.items()
        ]
        return sorted(entries, key=lambda entry: entry.signature)

    def choose(self, names: Iterable[str] | None) -> tuple[list[EntryPoint], Graph, Analysis]:
        """Chooses the entry points to rewrite.

        Args:
            names: functions and signatures; None for all that train.

        Returns:
            The entry points, their `view`, and the updates in it.

        Raises:
            StepError: there is no such function, one asked for does not train, or none does.
        """
        entries = self.entry_points()
        known = list(dict.fromkeys(entry.name for entry in entries))
        if names is not None:
            asked = list(names)
            if missing := [name for name in asked if name not in known]:
                raise StepError(f"no function or signature '{missing[0]}'; there is {listed(known, 12) or 'none'}")
            entries = [entry for entry in entries if entry.name in asked]
        graph = self.view(entries)
        analysis = find_updates(graph) if entries else Analysis((), (), ())
        training = [entries[number] for number in _training(analysis)]
        # A function trains if one of its traces does: another may be that of ``training=False``.
        trained = {entry.name for entry in training}
        if names is not None and (idle := [entry.name for entry in entries if entry.name not in trained]):
            raise StepError(f"'{idle[0]}' is not a training step: it updates no trainable variable from a gradient")
        if not training:
            raise StepError(f"no function or signature trains; there is {listed(known, 12) or 'none'}")
        if training != entries:
            # The account of a variable depends on the whole view, so a new view needs a new search.
            graph = self.view(training, graph)
            analysis = find_updates(graph)
        return training, graph, analysis

    def view(self, entries: Sequence[EntryPoint], like: Graph | None = None) -> Graph:
        """Views a choice of entry points as one step.

        Args:
            entries: the entry points.
            like: a view of others of the model's entry points.

        Returns:
            A step that calls one of them. The call of entry point i is the only node of the i-th branch.

        Raises:
            StepError: an entry point does not fit its function.
        """
        from tensorflow.core.framework.function_pb2 import FunctionDef

        root = FunctionDef()
        root.signature.name = "graphwd_root"
        arguments: dict[str, None] = {}
        data: list[str] = []
        wrappers: list[FunctionDef] = []
        for number, entry in enumerate(entries):
            wrapper = FunctionDef()
            wrapper.signature.name = _WRAPPER.format(number)
            call = wrapper.node_def.add(name=entry.name, op="StatefulPartitionedCall")
            call.attr["f"].func.name = entry.function
            own = _own_arguments(self._library, entry)
            call.input.extend([*(f"data_{number}_{i}" for i in range(own)), *map(_bound_name, entry.bound)])
            data.extend(f"data_{number}_{i}" for i in range(own))
            arguments.update(dict.fromkeys(call.input))
            wrappers.append(wrapper)
        case = root.node_def.add(name=SAVED_MODEL, op="Case", input=["index", *arguments])
        root.signature.input_arg.add(name="index")
        for function in (root, *wrappers):
            for argument in arguments:
                function.signature.input_arg.add(name=argument)
        for wrapper in wrappers:
            case.attr["branches"].list.func.add(name=wrapper.signature.name)
        objects, bound = self.meta_graph.object_graph_def, {number for entry in entries for number in entry.bound}
        handles = _variables(objects, bound, self._objects)
        constants = [number for number in sorted(bound) if objects.nodes[number].WhichOneof("kind") == "constant"]
        data += map(_bound_name, constants)
        return Graph(root, [*self._library.values(), *wrappers], handles, data, like=like)


def _training(analysis: Analysis) -> list[int]:
    """Which entry points of a view train."""
    updates = [update for writes in analysis.variables for update in (*writes.updates, *writes.guesses)]
    sites = [update.site for update in updates] + list(analysis.unresolved)
    return sorted({site.path[0].callee.position for site in sites if site.path})


def _object_graph(objects: SavedObjectGraph) -> ObjectGraph:
    edges: list[list[tuple[str, int]]] = []
    for number, node in enumerate(objects.nodes):
        edges.append([])
        for child in node.children:
            if not 0 <= child.node_id < len(objects.nodes):
                raise StepError(f"the object graph is malformed: object {number} has a child {child.node_id}")
            if child.local_name not in _LISTS_OF_OTHERS:
                edges[-1].append((child.local_name, child.node_id))
    return ObjectGraph(edges)


def rewritten_functions(
    root: FunctionDef, functions: Iterable[FunctionDef], entries: Sequence[EntryPoint]
) -> list[str]:
    """Finds the functions that the entry points of a rewritten view call.

    Args:
        root: the rewritten root of a `view`.
        functions: the rewritten functions.
        entries: the entry points of the view.

    Returns:
        For each entry point, the name of the function that it now calls, which is its own where nothing is decayed.
    """
    by_name = {function.signature.name: function for function in functions}
    branches = [function.name for function in root.node_def[0].attr["branches"].list.func]
    return [
        by_name[branch].node_def[0].attr["f"].func.name if branch in by_name else entry.function
        for branch, entry in zip(branches, entries, strict=True)
    ]


def is_wrapper(function: str) -> bool:
    """Whether a function is one that a view adds, or a copy of it."""
    return function.startswith(_WRAPPER.partition("{")[0])


def _own_arguments(library: Mapping[str, FunctionDef], entry: EntryPoint) -> int:
    if entry.function not in library:
        raise StepError(f"'{entry.name}' is the function '{entry.function}', which the library does not hold")
    own = len(library[entry.function].signature.input_arg) - len(entry.bound)
    if own < 0:
        raise StepError(f"'{entry.name}' has more bound inputs than its function has arguments")
    return own


def _bound(objects: SavedObjectGraph, function: str) -> tuple[int, ...]:
    if function not in objects.concrete_functions:
        raise StepError(f"the object graph is malformed: it says nothing of the function '{function}'")
    bound = tuple(objects.concrete_functions[function].bound_inputs)
    if any(not 0 <= number < len(objects.nodes) for number in bound):
        raise StepError(f"the object graph is malformed: '{function}' is bound to an object that does not exist")
    return bound


def _bound_name(number: int) -> str:
    return f"bound_{number}"


def _variables(objects: SavedObjectGraph, numbers: Iterable[int], graph: ObjectGraph) -> dict[str, Variable]:
    # Tables and constants are bound, too, and may come before variables.
    variables = [number for number in sorted(numbers) if objects.nodes[number].WhichOneof("kind") == "variable"]
    handles = {
        _bound_name(number): _variable(objects.nodes[number].variable, index, graph, number)
        for index, number in enumerate(variables)
    }
    told = {name: variable for name, variable in handles.items() if variable.trainable}
    texts = labels([(variable.name, variable.path) for variable in told.values()])
    return handles | {
        name: dataclasses.replace(variable, label=label)
        for (name, variable), label in zip(told.items(), texts, strict=True)
    }


def _variable(saved: SavedVariable, index: int, graph: ObjectGraph, number: int) -> Variable:
    shape = None
    if not saved.shape.unknown_rank:
        shape = tuple(None if dim.size < 0 else dim.size for dim in saved.shape.dim)
    dtype = DTYPE_NAMES.get(saved.dtype, f"dtype {saved.dtype}")
    return Variable(
        index,
        saved.name.removesuffix(":0"),
        shape,
        dtype,
        saved.trainable and differentiable(dtype),
        graph.path(number),
        device=saved.device,
        reached_by=functools.partial(graph.reached_by, number),
    )


def signature_call(meta_graph: MetaGraphDef, key: str) -> Iterator[str]:
    """The nodes of the main graph that run a signature: the producers of its outputs.

    Args:
        meta_graph: the MetaGraphDef.
        key: the signature's key.
    """
    if key in meta_graph.signature_def:
        names = {node_of(EdgeText(info.name)) for info in meta_graph.signature_def[key].outputs.values()}
        yield from sorted(names)
