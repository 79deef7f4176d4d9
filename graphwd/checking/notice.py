"""Finds the parts of a step that could notice a decay of a weight: all others must be as the original leaves them.

If a weight is written by one node, and used by none after that node, no other node sees a decay there. A later user of
the weight, and every node downstream of it, may see it. Only handles and the order of nodes count here: updates,
gradients and slot variables are not told apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from graphwd.graph.body import Body, Node
from graphwd.graph.edge import Edge
from graphwd.graph.graph import Graph, Variable, call_kind
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, CallKind, Form
from graphwd.graph.traits import ALIAS_OPS, METADATA_OPS, READ_OPS, SIGNS, Trait, ops_with

_SUMS = SIGNS  # it includes casts, which are handled before

_PARTS = ops_with(Trait.PRODUCT, Trait.QUOTIENT, Trait.QUOTIENT_OR_ZERO, Trait.SELECT)
"""Ops that may keep a part of the weight."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How a step, or a function, writes one variable.

    Attributes:
        once: whether one run writes it once at most.
        always: whether every run does.
        rows: whether it writes a list of rows.
        adds: whether it writes the sum of the variable and something.
        quiet: whether nothing in it uses the variable after the write.
    """

    once: bool
    always: bool
    rows: bool
    adds: bool
    quiet: bool


_UNKNOWN = Writing(once=False, always=False, rows=False, adds=False, quiet=False)


class Notice:
    """The parts of a step's own body that may notice decays."""

    def __init__(self, graph: Graph, decayed: Iterable[Variable]) -> None:
        """Follows the handles of a step.

        Args:
            graph: the step.
            decayed: the variables that are decayed.
        """
        self._graph = graph
        self._written: dict[tuple[str, frozenset[str]], Writing | None] = {}
        self._users: dict[str, list[str]] = {}
        for node in graph.root.nodes:
            for source in (*(edge.node for edge in node.inputs), *node.controls):
                self._users.setdefault(source, []).append(node.name)
        arguments: dict[Variable, set[str]] = {}
        for name, variable in graph.handles.items():
            arguments.setdefault(variable, set()).add(name)
        self._accesses = {
            variable: self._in_body(graph.root, frozenset(names)) for variable, names in arguments.items()
        }
        late = [name for variable in decayed for name in self._accesses[variable].late] if self._accesses else []
        self._affected = self._after(late)

    def writing(self, variable: Variable) -> Writing | None:
        """How the step writes a variable; None where it does not."""
        return self._accesses[variable].writing

    def affects(self, variable: Variable) -> bool:
        """Whether a decay, of this variable or another, may change what the step itself writes to a variable."""
        return any(name in self._affected for name in self._accesses[variable].writers)

    def affects_result(self, position: int) -> bool:
        """Whether a decay may change one of the step's results."""
        return self._graph.root.results[position].node in self._affected

    def _after(self, names: Iterable[str]) -> set[str]:
        """Some nodes, and all nodes downstream of them."""
        waiting = list(names)
        seen = set(waiting)
        while waiting:
            for user in self._users.get(waiting.pop(), ()):
                if user not in seen:
                    seen.add(user)
                    waiting.append(user)
        return seen

    def _in_function(self, name: str, arguments: frozenset[str]) -> Writing | None:
        key = name, arguments
        if key not in self._written:
            self._written[key] = _UNKNOWN  # of a function that calls itself
            self._written[key] = self._in_body(self._graph.body(name), arguments).writing
        return self._written[key]

    def _in_body(self, body: Body, arguments: frozenset[str]) -> _Accesses:
        handles = {Edge(name, 0) for name in arguments}
        takers: list[Node] = []
        for node in body.nodes:
            if not any(edge in handles for edge in node.inputs):
                continue
            if node.op in ALIAS_OPS:
                handles |= {Edge(node.name, index) for index, edge in enumerate(node.inputs) if edge in handles}
            elif node.op not in METADATA_OPS:
                takers.append(node)
        writings = {node.name: self._by_node(body, node, handles) for node in takers}
        writers = {name: writing for name, writing in writings.items() if writing is not None}
        after = _later(body, writers)
        late = [node.name for node in takers if node.name in after]
        late += [name for name, writing in writers.items() if not writing.quiet and name not in late]
        if not writers:
            return _Accesses(None, (), ())
        if len(writers) > 1:
            return _Accesses(_UNKNOWN, tuple(writers), tuple(late))
        ((name, writing),) = writers.items()
        return _Accesses(replace(writing, quiet=not late), (name,), tuple(late))

    def _by_node(self, body: Body, node: Node, handles: set[Edge]) -> Writing | None:
        """How one node that takes a variable writes it."""
        if node.op in READ_OPS:
            return None
        if node.op in WRITE_OPS:
            return _by_op(body, node, handles)
        if node.op not in CALL_OPS:
            return _UNKNOWN
        call, scans = CALL_OPS[node.op], call_kind(node) is CallKind.SCAN
        taken = [index for index, edge in enumerate(node.inputs) if edge in handles]
        writings: list[Writing | None] = []
        for callee in self._graph.callees(node):
            arguments = self._graph.library[callee.function].signature.input_arg
            # The captures of a dataset's function come after the element, which is not an input of the node.
            shift = len(arguments) - len(node.inputs) if scans else -call.skip
            names = frozenset(arguments[i + shift].name for i in taken if 0 <= i + shift < len(arguments))
            writings.append(self._in_function(callee.function, names) if names else None)
        return _joined(writings, call_kind(node))


@dataclass(frozen=True, slots=True)
class _Accesses:
    """The accesses of a body to one variable: how it is written, the writers, and the users after the first write."""

    writing: Writing | None
    writers: tuple[str, ...]
    late: tuple[str, ...]


def _joined(of_callees: list[Writing | None], kind: CallKind) -> Writing | None:
    """How a call writes a variable, given how each of its functions does."""
    writings = [writing for writing in of_callees if writing is not None]
    if not writings:
        return None
    if kind in (CallKind.LOOP, CallKind.SCAN) or (kind is CallKind.CALL and len(writings) > 1):
        return _UNKNOWN
    return Writing(
        once=all(writing.once for writing in writings),
        always=len(writings) == len(of_callees) and all(writing.always for writing in writings),
        rows=any(writing.rows for writing in writings),
        adds=all(writing.adds for writing in writings),
        quiet=all(writing.quiet for writing in writings),
    )


def _by_op(body: Body, node: Node, handles: set[Edge]) -> Writing:
    row = WRITE_OPS[node.op]
    if node.inputs[0] not in handles or row.partial:
        return _UNKNOWN  # a slot variable, or a part of the variable that is not rows
    if row.form is Form.APPLY:
        adds = not row.proximal
    elif row.form is Form.ASSIGN and row.rows is None:
        adds = _is_sum(body, node.inputs[row.value], handles)
    else:
        adds = row.form in (Form.ADD, Form.SUB)
    return Writing(once=True, always=True, rows=row.rows is not None, adds=adds, quiet=True)


def _is_sum(body: Body, edge: Edge, handles: set[Edge]) -> bool:
    """Whether a tensor is the content of the variable, once and whole, plus or minus something."""
    nodes = {node.name: node for node in body.nodes}
    shares: dict[Edge, float] = {}

    def share(edge: Edge) -> float:
        """The coefficient of the content in a tensor; NaN where a product may hold a part of it."""
        if edge not in shares:
            shares[edge] = 0.0
            shares[edge] = _share(nodes.get(edge.node), edge.index, share, handles)
        return shares[edge]

    return share(edge) == 1


def _share(node: Node | None, index: int, share: Callable[[Edge], float], handles: set[Edge]) -> float:
    if node is None or not node.inputs:
        return 0.0
    if node.op == "ReadVariableOp":
        return float(node.inputs[0] in handles)
    if node.op in ALIAS_OPS or node.op == "Cast":
        return share(node.inputs[index])
    if node.op in _SUMS:
        signs = itertools.chain((_SUMS[node.op][0],), itertools.repeat(_SUMS[node.op][1]))
        return sum(sign * share(edge) for sign, edge in zip(signs, node.inputs, strict=False))
    return math.nan if node.op in _PARTS and any(share(edge) for edge in node.inputs) else 0.0


def _later(body: Body, names: Iterable[str]) -> set[str]:
    """The nodes downstream of some nodes."""
    waited = set(names)
    later: set[str] = set()
    for node in body.nodes:
        if any(edge.node in waited for edge in node.inputs) or any(name in waited for name in node.controls):
            waited.add(node.name)
            later.add(node.name)
    return later
