"""Finds where each trainable variable is updated: an abstract interpretation of the step in program order.

An update is a write to a trainable variable whose value comes from a gradient. Data is followed through tensors,
calls, branches, loops and slot variables, but never through a read of a trainable variable: so constraints, overwrites
by an average, decay that is already there, and checkpoint restore are writes, not updates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from graphwd.errors import GraphError
from graphwd.graph import Body, Callee, Graph, Node, Variable, call_kind, state_count
from graphwd.update_ops import (
    CALL_OPS,
    DATA_OPS,
    METADATA_OPS,
    PASS_THROUGH_OPS,
    READ_OPS,
    WRITE_OPS,
    CallKind,
    Form,
    WriteOp,
)
from graphwd.values import DATA, MANY, NO_VARIABLE, NOTHING, Content, Value, add, combine, join, scale

_GRADIENT_SCOPE = re.compile(r"(?:^|/)(?:gradient_tape|gradients)(?:_\d+)?/")

_MAX_DEPTH = 64
_MAX_NODES_VISITED = 50_000_000


class Evidence(Enum):
    """What makes a write an update, strongest first."""

    APPLY_OP = "gradient input of an Apply op"
    GRADIENT_SCOPE = "computed from a gradient scope"
    DATA_PATH = "computed from the step's data"


_STRONG = (Evidence.APPLY_OP, Evidence.GRADIENT_SCOPE)

_PYTHON_CALLS = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless"})


class Frame(NamedTuple):
    """One call on the way from the step to a node: the calling node, the function it calls, and how."""

    node: str
    op: str
    callee: Callee


@dataclass(frozen=True, slots=True)
class Site:
    """A node in one of the contexts in which its body runs.

    Attributes:
        path: the calls that lead to the body, outermost first.
        node: the name of the node in it.
        op: its op type.
    """

    path: tuple[Frame, ...]
    node: str
    op: str

    def excludes(self, other: Site) -> bool:
        """Whether the two lie in different branches of one conditional, so that a run meets only one of them."""
        for mine, theirs in zip(self.path, other.path, strict=False):
            if mine != theirs:
                return (
                    mine.node == theirs.node
                    and CALL_OPS[mine.op].kind is CallKind.BRANCH
                    and mine.callee[:2] != theirs.callee[:2]
                )
        return False


@dataclass(frozen=True, slots=True)
class Write:
    """A write to a trainable variable.

    Attributes:
        variable: the variable.
        site: where.
        value: what is known of the tensor written (of the gradient, for an Apply op).
        gradients: taint of the tensor the first time the write is met. In a loop, slot variables carry the gradients
            of one iteration into the next, and ``value`` has them all.
    """

    variable: Variable
    site: Site
    value: Value
    gradients: int

    @property
    def op(self) -> WriteOp:
        """The row of its op."""
        return WRITE_OPS[self.site.op]

    @property
    def is_native_decay(self) -> bool:
        """Whether it multiplies the variable by something that does not depend on it: decay that is already there."""
        if self.value.from_gradient or self.value.source != self.variable.id or self.op.form is Form.APPLY:
            return False
        if self.op.form is Form.ASSIGN:
            return self.value.content is Content.LINEAR
        return self.op.form in (Form.ADD, Form.SUB) and self.value.content in (Content.EXACT, Content.LINEAR)

    @property
    def evidence(self) -> Evidence | None:
        """What makes it an update; None where nothing does."""
        if self.op.form is Form.APPLY:
            return Evidence.APPLY_OP
        if self.value.from_gradient:
            return Evidence.GRADIENT_SCOPE
        if self.is_native_decay or not self.value.taint & DATA:
            return None
        # Data assigned as it is (restored, set by the caller) is no update; a step from the current value is.
        moves = self.op.form in (Form.ADD, Form.SUB) or self.value.source in (self.variable.id, MANY)
        return Evidence.DATA_PATH if moves else None


@dataclass(frozen=True, slots=True)
class Update:
    """One update of one variable; it may take several writes.

    Attributes:
        variable: the variable.
        writes: its writes, in program order; decay goes after the last.
    """

    variable: Variable
    writes: tuple[Write, ...]

    @property
    def site(self) -> Site:
        """Where the update is complete."""
        return self.writes[-1].site

    @property
    def evidence(self) -> Evidence:
        """What makes it an update."""
        evidence = self.writes[0].evidence
        assert evidence is not None
        return evidence


@dataclass(frozen=True, slots=True)
class VariableWrites:
    """All that the step does to one trainable variable.

    Attributes:
        variable: the variable.
        updates: its updates, in program order.
        native_decays: writes that already decay it.
        others: every other write.
        used_by: op types that read it outside gradient scopes.
        guesses: what looks like an update by the step's data alone, in a step that has gradients.
    """

    variable: Variable
    updates: tuple[Update, ...]
    native_decays: tuple[Write, ...]
    others: tuple[Write, ...]
    used_by: frozenset[str]
    guesses: tuple[Update, ...] = ()


@dataclass(frozen=True, slots=True)
class Analysis:
    """What every trainable variable of a step goes through.

    Attributes:
        variables: one account for each trainable variable, in the order of their numbers.
        unresolved: writes of which it is not known what variable they write.
        opaque: for variables that reach a function graphwd does not follow and that writes variables: the site.
        python_calls: calls of Python code that get a gradient: what they write is not in the graph.
    """

    variables: tuple[VariableWrites, ...]
    unresolved: tuple[Site, ...]
    opaque: tuple[tuple[Variable, Site], ...]
    python_calls: tuple[Site, ...] = ()


def find_updates(graph: Graph) -> Analysis:
    """Finds every update of every trainable variable.

    Args:
        graph: the step.

    Returns:
        The account of every trainable variable.

    Raises:
        GraphError: the graph cannot be followed: a dangling edge, a missing or recursive function.
    """
    run = _Interpreter(graph, told_apart=False).run()
    if any(len(_update_writes(writes)) > 1 for writes in run.writes_by_variable().values()):
        # Which writes belong to one gradient matters only now, and telling gradients apart costs memory.
        run = _Interpreter(graph, told_apart=True).run()
    writes = run.writes_by_variable()
    has_gradients = any(write.evidence in _STRONG for each in writes.values() for write in each)
    accounts = tuple(
        _account(variable, writes.get(variable.id, []), frozenset(run.used_by.get(variable.id, ())), has_gradients)
        for variable in graph.variables
        # A handle that is only passed on, as the token that orders collective ops is, belongs to no weight.
        if variable.trainable and (variable.id in writes or variable.id in run.read or variable in run.passed_on())
    )
    return Analysis(accounts, tuple(run.unresolved), tuple(run.opaque.values()), tuple(run.python_calls))


def _account(variable: Variable, writes: list[Write], used_by: frozenset[str], has_gradients: bool) -> VariableWrites:
    updating = _update_writes(writes)
    decays = tuple(write for write in writes if write.is_native_decay)
    others = tuple(write for write in writes if write not in updating and write not in decays)
    updates = _group(variable, updating)
    if has_gradients and updates and updates[0].evidence is Evidence.DATA_PATH:
        return VariableWrites(variable, (), decays, others, used_by, guesses=updates)
    return VariableWrites(variable, updates, decays, others, used_by)


def _update_writes(writes: list[Write]) -> list[Write]:
    strong = [write for write in writes if write.evidence in _STRONG]
    return strong or [write for write in writes if write.evidence is Evidence.DATA_PATH]


def _group(variable: Variable, writes: Sequence[Write]) -> tuple[Update, ...]:
    """Joins the writes that together make one update: those that no new gradient came between."""
    groups: list[list[Write]] = []
    for write in writes:
        previous = next((group for group in reversed(groups) if _continues(group[-1], write)), None)
        if previous is None:
            groups.append([write])
        else:
            previous.append(write)
    return tuple(Update(variable, tuple(group)) for group in groups)


def _continues(earlier: Write, later: Write) -> bool:
    return (
        later.op.form is not Form.APPLY
        and earlier.site.path == later.site.path
        and earlier.gradients | later.gradients == earlier.gradients
    )


@dataclass
class _Interpreter:
    """Runs the step on abstract values; every body once for each call that reaches it."""

    graph: Graph
    told_apart: bool  # whether each gradient node has a taint bit of its own
    memory: dict[int, Value] = field(default_factory=dict)  # content of the variables that are not trainable
    writes: dict[Site, Write] = field(default_factory=dict)
    unresolved: dict[Site, None] = field(default_factory=dict)
    opaque: dict[tuple[int, Site], tuple[Variable, Site]] = field(default_factory=dict)
    python_calls: dict[Site, None] = field(default_factory=dict)
    used_by: dict[int, set[str]] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)
    _bits: dict[tuple[tuple[Frame, ...], str], int] = field(default_factory=dict)
    _visited: int = 0

    def run(self) -> _Interpreter:
        arguments = [self._root_value(name) for name in self.graph.root.arguments]
        self._body(self.graph.root, arguments, ())
        return self

    def writes_by_variable(self) -> Mapping[int, list[Write]]:
        result: dict[int, list[Write]] = {}
        for write in self.writes.values():
            result.setdefault(write.variable.id, []).append(write)
        return result

    def passed_on(self) -> set[Variable]:
        """The variables that go where graphwd does not follow."""
        return {variable for variable, _ in self.opaque.values()}

    def _root_value(self, name: str) -> Value:
        if name in self.graph.handles:
            return Value(handle=self.graph.handles[name].id)
        return Value(taint=DATA) if name in self.graph.data else NOTHING

    def _body(self, body: Body, arguments: Sequence[Value], path: tuple[Frame, ...]) -> list[Value]:
        if len(path) > _MAX_DEPTH or any(frame.callee.function == body.name for frame in path[:-1]):
            raise GraphError(f"the function '{body.name}' calls itself, or calls are nested deeper than {_MAX_DEPTH}")
        self._visited += len(body.nodes)
        if self._visited > _MAX_NODES_VISITED:
            raise GraphError(f"following every call of the step takes more than {_MAX_NODES_VISITED} nodes")
        values: dict[str, list[Value]] = {name: [value] for name, value in zip(body.arguments, arguments, strict=True)}
        for node in body.nodes:
            inputs = []
            for source, index in node.inputs:
                known = values.get(source)
                if known:
                    inputs.append(known[index] if index < len(known) else known[0])
                else:
                    inputs.append(NOTHING)
            outputs = self._node(node, inputs, path)
            if outputs:
                values[node.name] = outputs
        return [_result(values, source, index) for source, index in body.results]

    def _node(self, node: Node, inputs: list[Value], path: tuple[Frame, ...]) -> list[Value]:
        """The outputs of a node: one value for all of them where only one is given, none where nothing is known."""
        op = node.op
        if op in WRITE_OPS:
            return self._write(node, WRITE_OPS[op], inputs, path)
        if op in CALL_OPS:
            return self._call(node, inputs, path)
        if op in READ_OPS:
            return [self._read(op, inputs)]
        if op in METADATA_OPS:
            return []
        if op in PASS_THROUGH_OPS:
            return inputs
        if op in self.graph.library:
            raise GraphError(f"the node '{node.name}' calls the function '{op}' as an op, as v1 Defun did")
        return self._compute(node, inputs, path)

    def _compute(self, node: Node, inputs: list[Value], path: tuple[Frame, ...]) -> list[Value]:
        for value in inputs:
            if value.content is Content.EXACT and node.op != "Cast" and not _GRADIENT_SCOPE.search(node.name):
                self.used_by.setdefault(value.source, set()).add(node.op)
            if value.handle != NO_VARIABLE:
                self._note_opaque(node, value, path)
        result = _ARITHMETIC.get(node.op, combine)(inputs)
        if node.op in DATA_OPS:
            result = result._replace(taint=result.taint | DATA)
        elif _GRADIENT_SCOPE.search(node.name):
            result = Value(taint=result.taint | self._bit(node, path))
        if node.op in _PYTHON_CALLS and any(value.from_gradient for value in inputs):
            self.python_calls[Site(path, node.name, node.op)] = None
        return [] if result == NOTHING else [result]

    def _bit(self, node: Node, path: tuple[Frame, ...]) -> int:
        if not self.told_apart:
            return DATA << 1
        return DATA << 1 << self._bits.setdefault((path, node.name), len(self._bits))

    def _note_opaque(self, node: Node, value: Value, path: tuple[Frame, ...]) -> None:
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
        if op != "ReadVariableOp":
            self.used_by.setdefault(handle, set()).add(op)
        return Value(source=handle, content=Content.EXACT)

    def _write(self, node: Node, op: WriteOp, inputs: list[Value], path: tuple[Frame, ...]) -> list[Value]:
        handle = inputs[0].handle
        value = inputs[op.value]
        site = Site(path, node.name, node.op)
        for slot in op.slots:
            self._store(inputs[slot].handle, Value(taint=value.taint), replace=False)
        if handle == MANY or (handle == NO_VARIABLE and value.from_gradient):
            self.unresolved[site] = None
        elif handle >= 0 and self.graph.variables[handle].trainable:
            met = self.writes.get(site)
            gradients = met.gradients if met else value.taint
            self.writes[site] = Write(self.graph.variables[handle], site, value, gradients)
        else:
            self._store(handle, value, replace=op.form is Form.ASSIGN and op.rows is None)
        return [Value(handle=handle)] if op.reference else []

    def _store(self, variable: int, value: Value, *, replace: bool) -> None:
        if variable < 0 or self.graph.variables[variable].trainable:
            return
        if value.from_gradient:
            value = Value(taint=value.taint)  # a slot's content is a matter of its own
        before = NOTHING if replace else self.memory.get(variable, NOTHING)
        self.memory[variable] = join(before, value) if before != NOTHING else value

    def _call(self, node: Node, inputs: list[Value], path: tuple[Frame, ...]) -> list[Value]:
        call = CALL_OPS[node.op]
        arguments = inputs[call.skip : len(inputs) - call.drop]
        callees = self.graph.callees(node)
        outputs = _CALLS[call_kind(node)](self, node, callees, arguments, path)
        if _GRADIENT_SCOPE.search(node.name):
            bit = self._bit(node, path)
            return [Value(value.handle, value.taint | bit) for value in outputs]
        return outputs

    def _enter(self, node: Node, callee: Callee, arguments: Sequence[Value], path: tuple[Frame, ...]) -> list[Value]:
        body = self.graph.body(callee.function)
        if len(arguments) != len(body.arguments):
            raise GraphError(
                f"the node '{node.name}' gives {len(arguments)} arguments to '{callee.function}', "
                f"which takes {len(body.arguments)}"
            )
        return self._body(body, arguments, (*path, Frame(node.name, node.op, callee)))

    def _plain_call(
        self, node: Node, callees: Sequence[Callee], arguments: list[Value], path: tuple[Frame, ...]
    ) -> list[Value]:
        return [value for callee in callees for value in self._enter(node, callee, arguments, path)]

    def _branches(
        self, node: Node, callees: Sequence[Callee], arguments: list[Value], path: tuple[Frame, ...]
    ) -> list[Value]:
        before = self.memory
        after: dict[int, Value] = {}
        outputs: list[Value] | None = None
        for callee in callees:
            self.memory = dict(before)
            results = self._enter(node, callee, arguments, path)
            after = _join_memory(after, self.memory)
            outputs = results if outputs is None else [join(*pair) for pair in zip(outputs, results, strict=True)]
        self.memory = after
        return outputs or []

    def _loop(
        self, node: Node, callees: Sequence[Callee], arguments: list[Value], path: tuple[Frame, ...]
    ) -> list[Value]:
        condition, body = callees

        def once(state: list[Value]) -> list[Value]:
            self._enter(node, condition, state, path)
            return self._enter(node, body, state, path)

        return self._until_stable(once, arguments)

    def _scan(
        self, node: Node, callees: Sequence[Callee], arguments: list[Value], path: tuple[Frame, ...]
    ) -> list[Value]:
        (callee,) = callees
        carried = state_count(node)
        captures = arguments[carried:]
        elements = len(self.graph.body(callee.function).arguments) - len(arguments)
        outputs: list[Value] = []

        def once(state: list[Value]) -> list[Value]:
            outputs[:] = self._enter(node, callee, [*state, *[Value(taint=DATA)] * elements, *captures], path)
            return outputs[:carried]

        state = self._until_stable(once, arguments[:carried])
        # What the dataset yields may depend on whatever its function computes.
        return state if node.op == "ReduceDataset" else [combine(outputs)]

    def _until_stable(self, once: Callable[[list[Value]], list[Value]], state: list[Value]) -> list[Value]:
        while True:
            before = dict(self.memory)
            results = once(state)
            joined = [join(*pair) for pair in zip(state, results, strict=True)]
            self.memory = _join_memory(before, self.memory)
            if joined == state and self.memory == before:
                return state
            state = joined


def _join_memory(first: Mapping[int, Value], second: Mapping[int, Value]) -> dict[int, Value]:
    return {key: join(first.get(key, NOTHING), second.get(key, NOTHING)) for key in (*first, *second)}


def _result(values: Mapping[str, list[Value]], source: str, index: int) -> Value:
    known = values.get(source)
    if not known:
        return NOTHING
    return known[index] if index < len(known) else known[0]


_ARITHMETIC: Mapping[str, Callable[[list[Value]], Value]] = {
    "Mul": scale,
    "MulNoNan": scale,
    "RealDiv": lambda inputs: scale(inputs) if inputs[1].source == NO_VARIABLE else combine(inputs),
    "Div": lambda inputs: scale(inputs) if inputs[1].source == NO_VARIABLE else combine(inputs),
    "Neg": scale,
    "Add": add,
    "AddV2": add,
    "AddN": add,
    "Sub": add,
    "Cast": lambda inputs: inputs[0],
}

_CALLS = {
    CallKind.CALL: _Interpreter._plain_call,
    CallKind.BRANCH: _Interpreter._branches,
    CallKind.LOOP: _Interpreter._loop,
    CallKind.SCAN: _Interpreter._scan,
}
