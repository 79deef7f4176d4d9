# pyright: basic
"""Traced Python functions of tensors, as pieces of graph that can be spliced into bodies.

A function is traced in a graph of its own: it depends on no other graph, gets no automatic control edges, and holds the
ops that the function calls. Only the ops themselves are kept. The splicer names, places and orders them in a body.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.attr_value_pb2 import AttrValue, NameAttrList
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from graphwd.errors import RewriteError
from graphwd.graph.graph import MARK
from graphwd.graph.traits import READ_OPS


@dataclass(frozen=True, slots=True)
class Input:
    """A data input of an op of a fragment: a result of another op, or a parameter.

    Attributes:
        source: the number of the op; the name of the parameter.
        output: which of the op's named outputs; no text for a parameter.
        index: the number within that output.
    """

    source: int | str
    output: str = ""
    index: int = 0


@dataclass(frozen=True, slots=True)
class Op:
    """An op of a fragment.

    Attributes:
        role: what it is for: the name that the function gave it.
        node: its type and attributes, those at their defaults left out, and the mark; without name, inputs and device.
        inputs: its data inputs, in order.
        waits: the numbers of the ops that the function makes it wait for by control.
        reads: whether it reads the variable that is the parameter ``handle``.
        constant: the content of a constant, which identifies it.
    """

    role: str
    node: NodeDef
    inputs: tuple[Input, ...]
    waits: tuple[int, ...]
    reads: bool = False
    constant: bytes | None = None


@dataclass(frozen=True, slots=True)
class Fragment:
    """The trace of a function.

    Attributes:
        ops: its ops, each after those that it takes or waits for.
        result: the function's result; None where it returns nothing.
        library: the functions that its ops run, as branches and loops do, each after those that it runs itself.
    """

    ops: tuple[Op, ...]
    result: Input | None
    library: tuple[FunctionDef, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """The kind of a parameter that is a v1 reference variable, of a dtype."""

    dtype: str


_READS = READ_OPS | {"Identity", "Gather"}
"""Ops that read a variable; the last two read a v1 reference."""

_UNKNOWN: Any = tf.TensorShape(None)  # pyright: ignore[reportArgumentType] - the stubs know no unknown rank

Kind = str | Reference
"""The kind of a parameter: a tensor of a dtype, ``resource`` for a handle; or a v1 reference."""


def fragment(function: Callable[..., Any], kinds: Mapping[str, Kind], **options: Any) -> Fragment:
    """Traces a function, once for all calls with the same arguments.

    Args:
        function: a function of tensors. It may return a tensor.
        kinds: what each of its parameters is, by name. Shapes are unknown.
        **options: arguments that are no tensors; hashable.

    Returns:
        The fragment.

    Raises:
        RewriteError: the function uses a tensor or a variable that is none of its parameters.
    """
    return _traced(function, tuple(kinds.items()), tuple(options.items()))


def digest(traced: Fragment) -> str:
    """What tells a fragment from others, in this process and in others: equal for equal computations.

    Args:
        traced: the fragment.

    Returns:
        16 hexadecimal digits.
    """
    # TensorFlow numbers the functions of branches and loops through a process, and lists them in no order.
    library = {function.signature.name: function for function in traced.library}
    names: dict[str, str] = {}
    nodes = [op.node for op in traced.ops]
    for node in nodes:  # which grows by the nodes of each function that is met
        for callee in _callees(node):
            if callee not in names:
                names[callee] = f"function_{len(names)}"
                nodes += library[callee].node_def
    told = [_renamed(node, names) for node in nodes]
    told += [repr((op.inputs, op.waits)).encode() for op in traced.ops]
    for name in names:
        outside = FunctionDef()
        outside.CopyFrom(library[name])
        outside.signature.name = names[name]
        del outside.node_def[:]
        told.append(outside.SerializeToString(deterministic=True))
    return hashlib.sha256(b"\0".join([*told, repr(traced.result).encode()])).hexdigest()[:16]


def _renamed(node: NodeDef, names: Mapping[str, str]) -> bytes:
    """A node that calls functions by other names, as bytes."""
    renamed = NodeDef()
    renamed.CopyFrom(node)
    for value in renamed.attr.values():
        for callee in functions_of(value):
            callee.name = names.get(callee.name, callee.name)
    return renamed.SerializeToString(deterministic=True)


@functools.cache
def _traced(
    function: Callable[..., Any], kinds: tuple[tuple[str, Kind], ...], options: tuple[tuple[str, Any], ...]
) -> Fragment:
    with tf.Graph().as_default() as graph, _control_flow_v2():
        with tf.name_scope("parameters"):  # so that an op may have the name of a parameter
            parameters = {name: _parameter(name, kind) for name, kind in kinds}
        result = function(**parameters, **dict(options))
    names = {tensor.op.name: name for name, tensor in parameters.items()}
    traced = [op for op in graph.get_operations() if op.name not in names]
    numbers = {op.name: number for number, op in enumerate(traced)}

    def source(tensor: tf.Tensor) -> Input:
        if getattr(tensor, "graph", None) is not graph:  # an eager tensor has none
            raise RewriteError(f"'{function.__name__}' returns a tensor that it did not compute")
        if tensor.op.name in names:
            return Input(names[tensor.op.name])
        return Input(numbers[tensor.op.name], *_output(tensor.op, tensor.value_index))

    def piece(op: tf.Operation) -> Op:
        inputs = tuple(map(source, op.inputs))
        waits = tuple(numbers[before.name] for before in op.control_inputs)
        node = _plain(op)
        constant = node.SerializeToString(deterministic=True) if op.type == "Const" else None
        role = op.name.replace("/", "_")
        node.attr[MARK].s = role.encode()
        reads = op.type in _READS and any(operand.source == "handle" for operand in inputs)
        return Op(role, node, inputs, waits, reads, constant)

    ops = tuple(map(piece, traced))
    library = _callees_first(graph.as_graph_def().library.function)
    return Fragment(ops, None if result is None else source(result), library)


@contextlib.contextmanager
def _control_flow_v2() -> Iterator[None]:
    """Has branches and loops made as calls of functions, which a function body can hold in any place."""
    if tf.compat.v1.control_flow_v2_enabled():
        yield
        return
    tf.compat.v1.enable_control_flow_v2()
    try:
        yield
    finally:
        tf.compat.v1.disable_control_flow_v2()


def _callees_first(functions: Iterable[FunctionDef]) -> tuple[FunctionDef, ...]:
    """Functions in an order in which each comes after those that it runs; none runs itself."""
    waiting = {function.signature.name: function for function in functions}
    ordered: dict[str, FunctionDef] = {}
    while waiting:
        ready = [
            name
            for name, function in waiting.items()
            if not any(callee in waiting for node in function.node_def for callee in _callees(node))
        ]
        ordered.update((name, waiting.pop(name)) for name in ready)
    return tuple(ordered.values())


def _callees(node: NodeDef) -> Iterator[str]:
    """The functions that a node runs, in the order of the names of its attributes."""
    for _, value in sorted(node.attr.items()):
        yield from (callee.name for callee in functions_of(value))


def functions_of(value: AttrValue) -> Sequence[NameAttrList]:
    """The functions that an attribute names, to be read or changed."""
    return [value.func] if value.HasField("func") else list(value.list.func)


def _parameter(name: str, kind: Kind) -> tf.Tensor:
    if isinstance(kind, Reference):
        return tf.raw_ops.VariableV2(shape=_UNKNOWN, dtype=kind.dtype, name=name)
    return tf.compat.v1.placeholder(kind, name=name)


def _output(op: tf.Operation, index: int) -> tuple[str, int]:
    """The name of an output and the number within it, given its number among all outputs of the op."""
    node = op.node_def
    for output in op.op_def.output_arg:
        length = 1
        if output.number_attr:
            length = node.attr[output.number_attr].i
        elif output.type_list_attr:
            length = len(node.attr[output.type_list_attr].list.type)
        if index < length:
            return output.name, index
        index -= length
    raise AssertionError(f"'{op.name}' has no such output")


def _plain(op: tf.Operation) -> NodeDef:
    """The type and the attributes of an op, without attributes that have their default.

    Dtypes are always kept: some of TensorFlow's passes read them without looking up the default.
    """
    node = op.node_def
    defaults = {attribute.name: attribute.default_value for attribute in op.op_def.attr}
    plain = NodeDef(op=node.op)
    for name, value in sorted(node.attr.items()):
        if not name.startswith("_") and (value.type or name not in defaults or value != defaults[name]):
            plain.attr[name].CopyFrom(value)
    return plain
