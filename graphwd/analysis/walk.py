"""Goes through a step in program order: every body once for each call that reaches it, on values of some domain.

What a value is, and what a node makes of those of its inputs, the subclasses say. This module knows how functions are
called, which branch may be taken, that loops feed their results back, and that variables keep what they are given.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

from graphwd.analysis.sites import Frame, Path
from graphwd.errors import GraphError
from graphwd.graph.body import Body, Node
from graphwd.graph.graph import Callee, Graph, call_kind, state_count
from graphwd.graph.ops import CALL_OPS, CallKind

_MAX_DEPTH = 64
_MAX_NODES_VISITED = 50_000_000
_CALL = 50
"""The cost of entering a body, in nodes."""

V = TypeVar("V")
"""What is known of a tensor. Immutable; equality tells when a loop has nothing new to say."""


class Walk(abc.ABC, Generic[V]):
    """A walk through a step.

    Attributes:
        graph: the step.
        memory: content of the variables that are not trainable, by their numbers.
    """

    def __init__(self, graph: Graph, nothing: V) -> None:
        """Prepares it.

        Args:
            graph: the step.
            nothing: the value of a tensor of which nothing is known.
        """
        self.graph = graph
        self.memory: dict[int, V] = {}
        self._nothing = nothing
        self._visited = 0

    @abc.abstractmethod
    def root_value(self, name: str) -> V:
        """The value of an argument of the step."""

    @abc.abstractmethod
    def node(self, node: Node, inputs: list[V], path: Path) -> list[V]:
        """The values of a node's outputs: a single one stands for all of them, none means that nothing is known."""

    @abc.abstractmethod
    def join(self, first: V, second: V) -> V:
        """The value of a tensor that may be either of two: after a branch, at the head of a loop."""

    @abc.abstractmethod
    def element(self) -> V:
        """The value of an element of a dataset."""

    @abc.abstractmethod
    def elements(self, results: list[V]) -> V:
        """The value of a dataset whose elements are made of some results."""

    def leave(self, path: Path, values: Mapping[str, Sequence[V]]) -> None:
        """Is told the values of the tensors of a body, by node or argument, once it is done."""

    def walk(self) -> None:
        """Walks through the step once."""
        arguments = [self.root_value(name) for name in self.graph.root.arguments]
        self._body(self.graph.root, arguments, ())

    def call(self, node: Node, inputs: list[V], path: Path) -> list[V]:
        """The values of the outputs of a node that calls functions."""
        call = CALL_OPS[node.op]
        arguments = inputs[call.skip : len(inputs) - call.drop]
        return self._CALLS[call_kind(node)](self, node, self.graph.callees(node), arguments, path)

    def _body(self, body: Body, arguments: Sequence[V], path: Path) -> list[V]:
        if len(path) > _MAX_DEPTH or any(frame.callee.function == body.name for frame in path[:-1]):
            raise GraphError(f"the function '{body.name}' calls itself, or calls are nested deeper than {_MAX_DEPTH}")
        self._visited += len(body.nodes) + _CALL
        if self._visited > _MAX_NODES_VISITED:
            raise GraphError(f"following every call of the step visits more than {_MAX_NODES_VISITED} nodes")
        nothing, run = self._nothing, self.node
        values: dict[str, list[V]] = {name: [value] for name, value in zip(body.arguments, arguments, strict=True)}
        for node in body.nodes:
            inputs: list[V] = []
            for source, index in node.inputs:
                known = values.get(source)
                if known:
                    inputs.append(known[index] if index < len(known) else known[0])
                else:
                    inputs.append(nothing)
            outputs = run(node, inputs, path)
            if outputs:
                values[node.name] = outputs
        self.leave(path, values)
        return [self._result(values, source, index) for source, index in body.results]

    def _result(self, values: Mapping[str, list[V]], source: str, index: int) -> V:
        known = values.get(source)
        if not known:
            return self._nothing
        return known[index] if index < len(known) else known[0]

    def _enter(self, node: Node, callee: Callee, arguments: Sequence[V], path: Path) -> list[V]:
        body = self.graph.body(callee.function)
        if len(arguments) != len(body.arguments):
            raise GraphError(
                f"the node '{node.name}' gives {len(arguments)} arguments to '{callee.function}', "
                f"which takes {len(body.arguments)}"
            )
        return self._body(body, arguments, (*path, Frame(node.name, node.op, callee)))

    def _plain_call(self, node: Node, callees: Sequence[Callee], arguments: list[V], path: Path) -> list[V]:
        return [value for callee in callees for value in self._enter(node, callee, arguments, path)]

    def _branches(self, node: Node, callees: Sequence[Callee], arguments: list[V], path: Path) -> list[V]:
        before = self.memory
        after: dict[int, V] = {}
        outputs: list[V] | None = None
        for callee in callees:
            self.memory = dict(before)
            results = self._enter(node, callee, arguments, path)
            after = self._join_memory(after, self.memory)
            outputs = results if outputs is None else self._joined(node, outputs, results)
        self.memory = after
        return outputs or []

    def _loop(self, node: Node, callees: Sequence[Callee], arguments: list[V], path: Path) -> list[V]:
        condition, body = callees

        def once(state: list[V]) -> list[V]:
            self._enter(node, condition, state, path)
            return self._enter(node, body, state, path)

        return self._until_stable(node, once, arguments)

    def _scan(self, node: Node, callees: Sequence[Callee], arguments: list[V], path: Path) -> list[V]:
        (callee,) = callees
        carried = state_count(node)
        captures = arguments[carried:]
        elements = len(self.graph.body(callee.function).arguments) - len(arguments)
        outputs: list[V] = []

        def once(state: list[V]) -> list[V]:
            outputs[:] = self._enter(node, callee, [*state, *[self.element()] * elements, *captures], path)
            return outputs[:carried]

        state = self._until_stable(node, once, arguments[:carried])
        # The elements of the dataset may depend on any result of its function.
        return state if CALL_OPS[node.op].folds else [self.elements(outputs)]

    def _until_stable(self, node: Node, once: Callable[[list[V]], list[V]], state: list[V]) -> list[V]:
        while True:
            before = dict(self.memory)
            results = once(state)
            joined = self._joined(node, state, results)
            self.memory = self._join_memory(before, self.memory)
            if joined == state and self.memory == before:
                return state
            state = joined

    def _joined(self, node: Node, first: Sequence[V], second: Sequence[V]) -> list[V]:
        if len(first) != len(second):
            raise GraphError(
                f"the functions of the node '{node.name}' ({node.op}) do not fit together: one gives {len(second)} "
                f"results where {len(first)} are needed"
            )
        return [self.join(*pair) for pair in zip(first, second, strict=True)]

    def _join_memory(self, first: Mapping[int, V], second: Mapping[int, V]) -> dict[int, V]:
        nothing = self._nothing
        return {key: self.join(first.get(key, nothing), second.get(key, nothing)) for key in (*first, *second)}

    _CALLS: ClassVar = {
        CallKind.CALL: _plain_call,
        CallKind.BRANCH: _branches,
        CallKind.LOOP: _loop,
        CallKind.SCAN: _scan,
    }
