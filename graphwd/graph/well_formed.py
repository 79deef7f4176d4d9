# pyright: basic
"""Checks the nodes of a graph from a file against TensorFlow's op registry.

TensorFlow has checked the nodes of a ConcreteFunction; a file may hold anything. After this check every node of a known
op has the inputs and the attributes that the op requires, so that no other module has to check them.

TensorFlow internals used here, and why there is no public way:

* ``op_def_registry``: what inputs and attributes an op has; the public API has no view of the registry.

Checked on TensorFlow 2.16, 2.17, 2.18, 2.19, 2.20 and 2.21 (tools/test_versions).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorflow.python.framework import op_def_registry

from graphwd.errors import GraphError
from graphwd.graph.edge import data_inputs

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

_FIELDS: Mapping[str, str] = {
    "string": "s",
    "int": "i",
    "float": "f",
    "bool": "b",
    "type": "type",
    "shape": "shape",
    "tensor": "tensor",
    "func": "func",
}
"""The field of an AttrValue that holds an attribute of each type."""


class _Attribute(NamedTuple):
    name: str
    field: str
    required: bool


class _Op(NamedTuple):
    """The attributes and inputs that a node of an op must have.

    Attributes:
        attributes: its attributes.
        inputs: the fixed number of inputs.
        numbers: the attributes that give the number of further inputs, with their defaults.
        lists: the attributes that list the types of further inputs.
    """

    attributes: tuple[_Attribute, ...]
    inputs: int
    numbers: tuple[tuple[str, int], ...]
    lists: tuple[tuple[str, int], ...]


def check_meta_graph(meta_graph: MetaGraphDef) -> None:
    """Checks all nodes of a MetaGraphDef, those of its functions included.

    Args:
        meta_graph: the MetaGraphDef.

    Raises:
        GraphError: a node lacks an input or an attribute, or two functions have one name.
    """
    _check_nodes("the main graph", meta_graph.graph_def.node)
    names: set[str] = set()
    for function in meta_graph.graph_def.library.function:
        name = function.signature.name
        if name in names:
            raise GraphError(f"the library holds two functions named '{name}'")
        names.add(name)
        _check_nodes(f"'{name}'", function.node_def)


def _check_nodes(where: str, nodes: Iterable[NodeDef]) -> None:
    for node in nodes:
        op = _op(node.op)
        if op is not None:
            _check_attributes(where, node, op)
            _check_inputs(where, node, op)


def _check_attributes(where: str, node: NodeDef, op: _Op) -> None:
    given = node.attr
    for name, field, required in op.attributes:
        if name in given:
            value: Any = given[name]  # the stubs know fields by their names alone
            if not value.HasField(field) and not value.HasField("placeholder"):
                raise GraphError(f"the node '{node.name}' ({node.op}) of {where} has a wrong attribute '{name}'")
        elif required:
            raise GraphError(f"the node '{node.name}' ({node.op}) of {where} has no attribute '{name}'")


def _check_inputs(where: str, node: NodeDef, op: _Op) -> None:
    wanted = op.inputs
    for name, default in op.numbers:
        wanted += node.attr[name].i if name in node.attr else default
    for name, default in op.lists:
        wanted += len(node.attr[name].list.type) if name in node.attr else default
    given = len(data_inputs(node))
    if given != wanted:
        raise GraphError(f"the node '{node.name}' ({node.op}) of {where} has {given} inputs; it needs {wanted}")


@functools.cache
def _op(name: str) -> _Op | None:
    """The requirements of an op; None where this TensorFlow does not know the op."""
    definition = op_def_registry.get(name)
    if definition is None:
        return None
    defaults = {attr.name: attr.default_value for attr in definition.attr}
    attributes = tuple(
        _Attribute(
            attr.name,
            "list" if attr.type.startswith("list(") else _FIELDS[attr.type],
            not attr.HasField("default_value"),
        )
        for attr in definition.attr
    )
    counted = [argument.number_attr for argument in definition.input_arg if argument.number_attr]
    listed = [argument.type_list_attr for argument in definition.input_arg if argument.type_list_attr]
    return _Op(
        attributes,
        len(definition.input_arg) - len(counted) - len(listed),
        tuple((name, defaults[name].i) for name in counted),
        tuple((name, len(defaults[name].list.type)) for name in listed),
    )
