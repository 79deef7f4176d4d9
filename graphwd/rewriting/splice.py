"""Splices fragments into a body: names, marks, places and orders the traced ops.

An injected node is named after the write that it belongs to: ``scope/graphwd/role_leaf`` for the write ``scope/leaf``.

A node often asks for no device. Then TensorFlow puts an update where its variable is, but arithmetic on the first
accelerator: the weight would travel there and back at every step. So the nodes around a write are placed with it. Nodes
in a gradient are not, since TensorFlow places the gradient itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from graphwd.graph.edge import EdgeText, control_edge, node_of, output_edge
from graphwd.graph.fragment import Fragment, Input, Op, fragment, functions_of
from graphwd.graph.graph import MARK

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef


@dataclass
class Added:
    """The additions to one body: their names, and the nodes that several decays share.

    Attributes:
        function: the body.
        present: the names of the original nodes.
        library: adds the functions of a fragment to the step, and gives their new names by the old.
        taken: the names of the added nodes.
        shared: tensors that several decays share, by the device of their variables and by content.
    """

    function: FunctionDef
    present: Container[str]
    library: Callable[[Fragment], Mapping[str, str]]
    taken: set[str] = field(default_factory=set[str])
    shared: dict[Hashable, EdgeText] = field(default_factory=dict[Hashable, EdgeText])


class Splicer:
    """Adds the nodes of one decay to a body."""

    def __init__(
        self, added: Added, write: NodeDef, place: str, *, with_write: bool, device: str | None = None
    ) -> None:
        """Prepares to add; nothing is changed yet.

        Args:
            added: the body.
            write: the write that the decay belongs to.
            place: the device of the variable, which shared tensors are for.
            with_write: whether the nodes are placed with the write, rather than on the device that the write asks for.
            device: that device, where it is another.
        """
        self._added = added
        self._write = write
        self._place = place
        self._with_write = with_write
        self._device = write.device if device is None else device
        self._location = f"loc:@{write.name}".encode()
        self._scope, self._leaf = _split(write.name)
        self.nodes: dict[str, NodeDef] = {}
        """The last added node of each role."""

    def splice(self, piece: Fragment, arguments: Mapping[str, EdgeText], waits: Sequence[str] = ()) -> EdgeText | None:
        """Adds a fragment.

        Args:
            piece: the fragment.
            arguments: the edges that are its parameters, by name.
            waits: nodes that its reads of variables wait for.

        Returns:
            The edge of its result; None where it has none.
        """
        names: Mapping[str, str] = self._added.library(piece) if piece.library else {}
        sources: list[str] = []  # the name of each op
        for op in piece.ops:
            if op.constant is not None:
                sources.append(node_of(self._constant(op, op.constant)))
                continue
            inputs = [_edge(operand, arguments, sources) for operand in op.inputs]
            inputs += [control_edge(sources[number]) for number in op.waits]
            if op.reads:
                inputs += map(control_edge, waits)
            node = self._add(op, inputs)
            rename_functions(node, names)
            sources.append(node.name)
        return None if piece.result is None else _edge(piece.result, arguments, sources)

    def constant(self, role: str, value: float, dtype: str) -> EdgeText:
        """A scalar constant, shared by all decays of the body on the same device."""
        (op,) = fragment(_scalar, {}, value=value, dtype=dtype, role=role).ops
        assert op.constant is not None
        return self._constant(op, op.constant)

    def shared(self, piece: Fragment, arguments: Mapping[str, EdgeText]) -> EdgeText:
        """The result of a fragment, computed once for all decays of the body on the same device.

        Args:
            piece: the fragment; its result does not depend on when in a step it is computed.
            arguments: the edges that are its parameters, by name.
        """
        key = (self._place, id(piece), *sorted(arguments.items()))  # fragments are kept for good
        if key not in self._added.shared:
            result = self.splice(piece, arguments)
            assert result is not None
            self._added.shared[key] = result
        return self._added.shared[key]

    def copy(self, role: str, original: NodeDef, wait: str) -> str:
        """Adds a copy of a node that waits for one more; returns its name."""
        node = self._added.function.node_def.add()
        node.CopyFrom(original)
        node.name = self._name(role)
        node.input.append(control_edge(wait))
        node.attr[MARK].s = role.encode()
        return node.name

    def _constant(self, op: Op, content: bytes) -> EdgeText:
        """The edge of a constant."""
        key = (self._place, content)
        if key not in self._added.shared:
            self._added.shared[key] = output_edge(self._add(op, []).name, "output")
        return self._added.shared[key]

    def _add(self, op: Op, inputs: Sequence[str]) -> NodeDef:
        node = self._added.function.node_def.add()
        node.CopyFrom(op.node)
        node.name = self._name(op.role)
        node.input.extend(inputs)
        if self._with_write:
            # No device: TensorFlow would override a wrong device of the update, but not of a Const.
            node.attr["_class"].list.s.append(self._location)
        else:
            node.device = self._device
        self.nodes[op.role] = node
        return node

    def _name(self, role: str) -> str:
        base = name = f"{self._scope}graphwd/{role}_{self._leaf}"
        number = 0
        while name in self._added.taken or name in self._added.present:
            number += 1
            name = f"{base}_{number}"
        self._added.taken.add(name)
        return name


def rename_functions(node: NodeDef, names: Mapping[str, str]) -> None:
    """Makes a node run functions by their new names."""
    for value in node.attr.values() if names else ():
        for function in functions_of(value):
            function.name = names.get(function.name, function.name)


def _split(name: str) -> tuple[str, str]:
    """The scope of a node, with a slash, and its name there."""
    scope, slash, leaf = name.rpartition("/")
    return scope + slash, leaf


def _edge(source: Input, arguments: Mapping[str, EdgeText], sources: Sequence[str]) -> EdgeText:
    """The edge of a body that an input of a fragment becomes."""
    if isinstance(source.source, str):
        return arguments[source.source]
    return output_edge(sources[source.source], source.output, source.index)


def _scalar(*, value: float, dtype: str, role: str) -> Any:
    return tf.constant(value, dtype, name=role)
