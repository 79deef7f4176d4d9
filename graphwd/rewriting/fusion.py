# pyright: basic
"""Outlines an optimizer's arithmetic, decay included, into a function that XLA compiles.

An optimizer that is written in single ops, as those of Keras 3 are, goes through memory once an op: some twenty times
for Adam. Compiled, its arithmetic is one loop. The outlined nodes of a body are the write of each decayed variable, its
decay, the elementwise ops that they depend on, back to the gradient, and the writes of slot variables on the way. The
set is convex: a node on a path between two of its nodes is in the set. So the call of the outlined function closes no
cycle.

TensorFlow internals used here, and why there is no public way:

* ``op_def_registry``: the dtypes of a node's results, which different ops keep in different attributes.

Checked on TensorFlow 2.16 and 2.21 (tools/test_versions).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tensorflow.python.framework import op_def_registry

from graphwd.graph.edge import (
    EdgeText,
    control_edge,
    data_inputs,
    is_control,
    is_data,
    node_of,
    output_edge,
    output_of,
    parse_edge,
    result_edge,
    source_of,
    sources_of,
)
from graphwd.graph.gradient_scopes import in_gradient_scope
from graphwd.graph.graph import MARK
from graphwd.graph.ops import WRITE_OPS, Form
from graphwd.graph.traits import Trait, ops_with

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

_READS = frozenset({"ReadVariableOp"})
_WRITES = frozenset(
    op
    for op, row in WRITE_OPS.items()
    if row.form in (Form.ASSIGN, Form.ADD, Form.SUB) and row.rows is None and not (row.partial or row.reference)
)
_ELEMENTWISE = ops_with(Trait.FUSIBLE)
FUSED = b"fused"
"""The role of the call of an outlined function."""


def outline(
    function: FunctionDef, writes: Iterable[str], name: str, device: str
) -> tuple[FunctionDef | None, list[str]]:
    """Moves the arithmetic behind some writes of a body into a function of its own.

    Args:
        function: the body; it is changed.
        writes: the nodes that write decayed variables, and those that decay them.
        name: the name of the new function.
        device: the device of the variables, on which the function runs.

    Returns:
        The new function, which the body calls, or None where nothing can be outlined; and the writes that stay in the
        body.
    """
    nodes = {node.name: node for node in function.node_def}
    asked = list(writes)
    chosen = _behind([write for write in asked if nodes[write].op in _WRITES], nodes)
    chosen = _convex(chosen - set(_foreign_reads(chosen, nodes)), nodes)
    left_out = [write for write in asked if write not in chosen]
    if len(left_out) == len(asked):
        return None, left_out
    return _Outline(function, nodes, chosen, name).make(device), left_out


def _behind(writes: Iterable[str], nodes: Mapping[str, NodeDef]) -> set[str]:
    """Some writes and the elementwise ops that they depend on, slot variables that are written on the way included."""
    chosen: set[str] = set()
    waiting = list(writes)
    while waiting:
        name = waiting.pop()
        if name in chosen:
            continue
        chosen.add(name)
        for text in nodes[name].input:
            source = nodes.get(source_of(text))
            if source is None or in_gradient_scope(source.name):
                continue
            if source.op in _WRITES or (not is_control(text) and source.op in _ELEMENTWISE | _READS):
                waiting.append(source.name)
    return chosen


def _foreign_reads(chosen: Iterable[str], nodes: Mapping[str, NodeDef]) -> Iterator[str]:
    """The reads of variables that no node of a set writes, such as the learning rate and the number of the step.

    These may be on another device than the weights, where a compiled function cannot reach them.
    """
    written = {nodes[name].input[0] for name in chosen if nodes[name].op in _WRITES}
    return (name for name in chosen if nodes[name].op in _READS and nodes[name].input[0] not in written)


def _convex(chosen: set[str], nodes: Mapping[str, NodeDef]) -> set[str]:
    """The largest convex subset: without nodes from which a path leads out of the set and back into it.

    Removed are, for example, a read of the weight that the forward pass shares, and operands of a gradient.
    """
    successors: dict[str, list[str]] = defaultdict(list)
    predecessors: dict[str, list[str]] = {}
    for node in nodes.values():
        predecessors[node.name] = [source for source in sources_of(node) if source in nodes]
        for source in predecessors[node.name]:
            successors[source].append(node.name)
    kept = set(chosen)
    before: set[str] = set()  # the nodes outside from which a path leads into the set
    waiting = [source for name in kept for source in predecessors[name] if source not in kept]
    while waiting:
        outside = waiting.pop()
        if outside in before:
            continue
        before.add(outside)
        for source in predecessors[outside]:
            kept.discard(source)
            waiting.append(source)
    return kept


class _Outline:
    """Outlines one function."""

    def __init__(self, function: FunctionDef, nodes: Mapping[str, NodeDef], chosen: set[str], name: str) -> None:
        self._function = function
        self._nodes = nodes
        self._chosen = chosen
        self._inputs: dict[EdgeText, str] = {}
        self._outputs: dict[EdgeText, int] = {}
        self._arguments = {argument.name: argument.type for argument in function.signature.input_arg}
        self._outlined = type(function)()
        self._outlined.signature.name = name

    def make(self, device: str) -> FunctionDef:
        """Moves the nodes into the function, and puts a call in their place."""
        function, outlined = self._function, self._outlined
        call_name = self._call_name()
        moved = [node for node in function.node_def if node.name in self._chosen]
        kept = [node for node in function.node_def if node.name not in self._chosen]
        waits = dict.fromkeys(wait for node in moved for wait in self._move(node))
        for node in kept:
            self._redirect(node, call_name)
        for result in list(function.ret):
            function.ret[result] = self._redirected(result_edge(function, result), call_name)
        self._end_with(call_name)
        del function.node_def[:]
        function.node_def.extend(kept)
        self._call(call_name, device, waits)
        outlined.signature.is_stateful = True
        for key in ("_XlaMustCompile", "_noinline"):
            outlined.attr[key].b = True
        return outlined

    def _move(self, original: NodeDef) -> Iterator[str]:
        """Copies a node into the new function; yields its control inputs from outside."""
        node = self._outlined.node_def.add()
        node.CopyFrom(original)
        node.device = ""  # the whole of it runs on the device of the call
        node.attr.pop("_class", None)
        del node.input[:]
        for text in original.input:
            if is_data(text):
                node.input.append(text if node_of(text) in self._chosen else self._input(text))
            elif source_of(text) in self._chosen:
                node.input.append(text)
            else:
                yield text
        if node.op in _WRITES:
            self._outlined.signature.control_output.append(node.name)
            self._outlined.control_ret[node.name] = node.name

    def _call_name(self) -> str:
        names = itertools.chain(["graphwd/fused"], (f"graphwd/fused_{number}" for number in itertools.count(1)))
        return next(name for name in names if name not in self._nodes)

    def _input(self, text: EdgeText) -> str:
        """The argument of the new function that stands for a tensor from outside."""
        if text not in self._inputs:
            self._inputs[text] = f"input_{len(self._inputs)}"
            argument = self._outlined.signature.input_arg.add(name=self._inputs[text])
            argument.type = self._dtype(text)
        return self._inputs[text]

    def _redirected(self, text: EdgeText, call: str) -> EdgeText:
        """A data edge; if its producer was moved, the edge of the call that replaces it."""
        if node_of(text) not in self._chosen:
            return text
        if text not in self._outputs:
            number = self._outputs[text] = len(self._outputs)
            result = self._outlined.signature.output_arg.add(name=f"output_{number}")
            result.type = self._dtype(text)
            self._outlined.ret[result.name] = text
        return output_edge(call, "output", self._outputs[text])

    def _redirect(self, node: NodeDef, call: str) -> None:
        """Redirects the inputs of a remaining node from moved nodes to the call."""
        texts = list(node.input)
        data = [self._redirected(text, call) for text in data_inputs(node)]
        control = [
            control_edge(call) if source_of(text) in self._chosen else text for text in texts if is_control(text)
        ]
        new = [*data, *dict.fromkeys(control)]
        if new != texts:
            del node.input[:]
            node.input.extend(new)

    def _end_with(self, call: str) -> None:
        """Replaces moved nodes among the control outputs by the call: once, since no node may occur twice."""
        function = self._function
        moved = sorted(output for output, node in function.control_ret.items() if node in self._chosen)
        if not moved:
            return
        for output in moved:
            del function.control_ret[output]
        function.control_ret[moved[0]] = call
        kept = [output for output in function.signature.control_output if output in function.control_ret]
        del function.signature.control_output[:]
        function.signature.control_output.extend(kept)

    def _call(self, name: str, device: str, waits: Iterable[str]) -> None:
        call = self._function.node_def.add(name=name, op="StatefulPartitionedCall", device=device)
        call.input.extend([*self._inputs, *waits])
        signature = self._outlined.signature
        call.attr["Tin"].list.type.extend(argument.type for argument in signature.input_arg)
        call.attr["Tout"].list.type.extend(result.type for result in signature.output_arg)
        call.attr["f"].func.name = signature.name
        for key in ("config", "config_proto", "executor_type"):
            call.attr[key].s = b""
        call.attr["_XlaMustCompile"].b = True
        call.attr[MARK].s = FUSED

    def _dtype(self, text: EdgeText) -> Any:
        """The dtype of a tensor of the body, as a number."""
        name = node_of(text)
        if name not in self._nodes:
            return self._arguments[name]
        node = self._nodes[name]
        definition: Any = op_def_registry.get(node.op)
        output = next(result for result in definition.output_arg if result.name == output_of(text))
        if output.type_list_attr:
            return node.attr[output.type_list_attr].list.type[parse_edge(text).index]
        return node.attr[output.type_attr].type if output.type_attr else output.type
