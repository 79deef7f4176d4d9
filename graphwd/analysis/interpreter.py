"""Runs a step on abstract values, in program order: every body once for each call that reaches it.

Data is followed through tensors, calls, branches, loops and slot variables, but never through a read of a trainable
variable. A `Value` says what is known of a tensor; the `Interpreter` collects the results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from graphwd.analysis.op_rules import ALIASES, ARITHMETIC
from graphwd.analysis.sites import Path, Site, Write
from graphwd.analysis.values import DATA, MANY, NO_VARIABLE, NOTHING, Content, Value, combine, join
from graphwd.analysis.walk import Walk
from graphwd.errors import GraphError
from graphwd.graph.body import Node
from graphwd.graph.graph import RECORD, Graph, Variable, differentiable
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, Form, WriteOp
from graphwd.graph.traits import DATA_OPS, METADATA_OPS, READ_OPS, REFERENCE_OPS, Trait, ops_with

_PYTHON_CALLS = ops_with(Trait.PYTHON_CALL)


_INTEGERS = ("int32", "int64")

BodyValues = Mapping[str, Sequence[Value]]
"""The values of the tensors of one body: by node or argument, one for each output, or one for all of them."""


_Run = Callable[[Node, list[Value], Path], list[Value]]
"""Runs a node, given its inputs and the calls that lead to its body, as `Interpreter.node` does."""


class Interpreter(Walk[Value]):
    """Runs the step on abstract values; every body once for each call that reaches it.

    Attributes:
        graph: the step.
        told_apart: whether each gradient node has a taint bit of its own.
        records: whether decays that graphwd injected before are looked for.
        seen: for each body in or below which a trainable variable is written, the values of its tensors, by the calls
            that lead to the body.
        memory: content of the variables that are not trainable.
        writes: every write to a trainable variable, in program order.
        unresolved: writes of a gradient to a variable that is not known.
        opaque: variables that go where graphwd does not follow, and where.
        python_calls: calls of Python code that get a gradient.
        untrained: variables that are not trainable and to which a gradient is added, and where.
        integer_writes: the writes of each variable that is one integer, by its number.
        used_by: for every variable, the op types that read it.
        read: the variables that are read.
        injected: the nodes that carry the records of decays that graphwd injected before, and the variable of each.
    """

    def __init__(self, graph: Graph, *, told_apart: bool, records: bool = False) -> None:
        """Notes whether there are v1 references at all, and which scopes are gradients'.

        Args:
            graph: the step.
            told_apart: whether each gradient node has a taint bit of its own.
            records: whether decays that graphwd injected before are looked for.
        """
        super().__init__(graph, NOTHING)
        self.told_apart = told_apart
        self.records = records
        self.seen: dict[Path, BodyValues] = {}
        self.writes: dict[Site, Write] = {}
        self.unresolved: dict[Site, None] = {}
        self.opaque: dict[tuple[int, Site], tuple[Variable, Site]] = {}
        self.python_calls: dict[Site, None] = {}
        self.untrained: dict[Site, tuple[Variable, Site]] = {}
        self.integer_writes: dict[int, dict[Site, None]] = {}
        self.used_by: dict[int, set[str]] = {}
        self.read: set[int] = set()
        self.injected: dict[Site, Variable] = {}
        self._bits: dict[tuple[Path, str], int] = {}
        self._known: dict[Value, list[Value]] = {}
        self._by_op: dict[str, _Run] = {}
        self._writing: set[Path] = set()
        self._in_gradient = graph.gradient_scopes.hold
        self._references = any(variable.reference for variable in graph.variables)

    def run(self) -> Interpreter:
        """Runs the step once and returns itself."""
        self.walk()
        return self

    def writes_by_variable(self) -> Mapping[int, list[Write]]:
        """The writes of each variable, by its number."""
        result: dict[int, list[Write]] = {}
        for write in self.writes.values():
            result.setdefault(write.variable.id, []).append(write)
        return result

    def passed_on(self) -> set[Variable]:
        """The variables that go where graphwd does not follow."""
        return {variable for variable, _ in self.opaque.values()}

    def root_value(self, name: str) -> Value:
        """The value of an argument of the step."""
        if name in self.graph.handles:
            return Value(handle=self.graph.handles[name].id)
        return Value(taint=DATA) if name in self.graph.data else NOTHING

    def join(self, first: Value, second: Value) -> Value:
        """The value of a tensor that may be either of two."""
        return join(first, second)

    def element(self) -> Value:
        """The value of an element of a dataset."""
        return Value(taint=DATA)

    def elements(self, results: list[Value]) -> Value:
        """The value of a dataset whose elements are made of some results."""
        return combine(results)

    def leave(self, path: Path, values: BodyValues) -> None:
        """Keeps the values of a body in or below which a trainable variable is written."""
        if path in self._writing:
            self.seen[path] = values

    def node(self, node: Node, inputs: list[Value], path: Path) -> list[Value]:
        """The values of a node's outputs: a single one stands for all of them, none means that nothing is known."""
        op = node.op
        if self.records and RECORD in node.proto.attr:
            # The variable that is read here, or whose content is the input.
            decayed = max(inputs[0].handle, inputs[0].source)
            if decayed >= 0:
                self.injected[Site(path, node.name, op)] = self.graph.variables[decayed]
        if self._references:
            inputs = self._dereferenced(op, inputs)
        run = self._by_op.get(op)
        if run is None:
            run = self._by_op[op] = self._run_of(op)
        return run(node, inputs, path)

    def _run_of(self, op: str) -> _Run:
        """The function that runs the nodes of an op type."""
        if op in WRITE_OPS:
            return functools.partial(self._write, WRITE_OPS[op])
        if op in CALL_OPS:
            return self._call
        if op in READ_OPS:
            return lambda _node, inputs, _path: [self._read(op, inputs)]
        if op in METADATA_OPS:
            return lambda _node, _inputs, _path: []
        if op in ALIASES:
            alias = ALIASES[op]
            return lambda _node, inputs, _path: alias(inputs)
        if op in self.graph.library and self._writes_variables(op, set()):
            return _refuse_function_as_op
        if op in _PYTHON_CALLS:
            return self._call_python
        return functools.partial(self._compute, ARITHMETIC.get(op, combine))

    def _dereferenced(self, op: str, inputs: list[Value]) -> list[Value]:
        """Replaces the v1 references among inputs by what they refer to, unless the op takes references."""
        if op in REFERENCE_OPS or op in METADATA_OPS or op in CALL_OPS:
            return inputs
        keeps = (0, *WRITE_OPS[op].slots) if op in WRITE_OPS else ()
        return [
            self._read("Identity", [value])
            if value.handle >= 0 and self.graph.variables[value.handle].reference and position not in keeps
            else value
            for position, value in enumerate(inputs)
        ]

    def _compute(
        self, compute: Callable[[list[Value]], Value], node: Node, inputs: list[Value], path: Path
    ) -> list[Value]:
        gradient = self._in_gradient(node.name)
        for value in inputs:
            if value.source != NO_VARIABLE and value.content is Content.EXACT and node.op != "Cast":
                self.used_by.setdefault(value.source, set()).add(node.op)
            if value.handle != NO_VARIABLE:
                self._note_opaque(node, value, path)
        result = compute(inputs)
        if gradient and node.op not in DATA_OPS:
            taint = result.taint | self._bit(node, path)
            if taint != result.taint or result.source != NO_VARIABLE:
                result = Value(taint=taint)
        if result == NOTHING:
            return []
        # Nodes with equal values share one list, which is never changed.
        return self._known.get(result) or self._known.setdefault(result, [result])

    def _call_python(self, node: Node, inputs: list[Value], path: Path) -> list[Value]:
        if any(value.from_gradient for value in inputs):
            self.python_calls[Site(path, node.name, node.op)] = None
        return self._compute(combine, node, inputs, path)

    def _bit(self, node: Node, path: Path) -> int:
        if not self.told_apart:
            return DATA << 1
        return DATA << 1 << self._bits.setdefault((path, node.name), len(self._bits))

    def _note_opaque(self, node: Node, value: Value, path: Path) -> None:
        """Remembers a variable that goes where graphwd does not follow, if it can be written there."""
        site = Site(path, node.name, node.op)
        if value.handle >= 0 and any(self._writes_variables(name, set()) for name in self.graph.functions_of(node)):
            self.opaque[value.handle, site] = (self.graph.variables[value.handle], site)

    def _writes_variables(self, function: str, seen: set[str]) -> bool:
        if function in seen or function not in self.graph.library:
            return False
        seen.add(function)
        return any(
            node.op in WRITE_OPS or any(self._writes_variables(name, seen) for name in self.graph.functions_of(node))
            for node in self.graph.body(function).nodes
        )

    def _read(self, op: str, inputs: list[Value]) -> Value:
        handle = inputs[0].handle
        if handle < 0:
            return NOTHING
        if not self.graph.variables[handle].trainable:
            return self.memory.get(handle, NOTHING)
        self.read.add(handle)
        if op not in ("ReadVariableOp", "Identity"):
            self.used_by.setdefault(handle, set()).add(op)
        return Value(source=handle, content=Content.EXACT)

    def _write(self, op: WriteOp, node: Node, inputs: list[Value], path: Path) -> list[Value]:
        handle = inputs[0].handle
        value = inputs[op.value]
        site = Site(path, node.name, node.op)
        for slot in op.slots:
            self._store(inputs[slot].handle, Value(taint=value.taint), replace=False)
        if handle == MANY or (handle == NO_VARIABLE and value.from_gradient):
            self.unresolved[site] = None
        elif handle >= 0 and self.graph.variables[handle].trainable:
            met = self.writes.get(site)
            gradients, number = (met.gradients, met.number) if met else (value.taint, len(self.writes))
            self._writing.update(path[:depth] for depth in range(len(path) + 1))
            self.writes[site] = Write(self.graph.variables[handle], site, value, gradients, number)
        else:
            self._note_integer(handle, site)
            self._note_untrained(handle, value, op, site)
            self._store(handle, value, replace=op.form is Form.ASSIGN and op.rows is None)
        return [Value(handle=handle)] if op.reference else []

    def _note_integer(self, handle: int, site: Site) -> None:
        if handle >= 0 and self.graph.variables[handle].rank == 0 and self.graph.variables[handle].dtype in _INTEGERS:
            self.integer_writes.setdefault(handle, {})[site] = None

    def _note_untrained(self, handle: int, value: Value, op: WriteOp, site: Site) -> None:
        if handle < 0 or not (op.form is Form.APPLY or (op.form in (Form.ADD, Form.SUB) and value.from_gradient)):
            return
        variable = self.graph.variables[handle]
        if variable.rank != 0 and differentiable(variable.dtype):  # a number is a count of something
            self.untrained[site] = (variable, site)

    def _store(self, variable: int, value: Value, *, replace: bool) -> None:
        if variable < 0 or self.graph.variables[variable].trainable:
            return
        if value.from_gradient:
            value = Value(taint=value.taint)  # a slot variable's content counts as its own, not as the weight's
        before = NOTHING if replace else self.memory.get(variable, NOTHING)
        self.memory[variable] = join(before, value) if before != NOTHING else value

    def _call(self, node: Node, inputs: list[Value], path: Path) -> list[Value]:
        outputs = self.call(node, inputs, path)
        if self._in_gradient(node.name):
            bit = self._bit(node, path)
            return [Value(value.handle, value.taint | bit) for value in outputs]
        return outputs


def _refuse_function_as_op(node: Node, _inputs: list[Value], _path: Path) -> list[Value]:
    raise GraphError(
        f"the node '{node.name}' calls the function '{node.op}', which writes variables, as an op, as v1 Defun did"
    )
