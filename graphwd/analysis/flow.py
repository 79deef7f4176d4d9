"""How data flows through one body in one of the contexts in which it runs: through tensors and through slot variables.

A tensor is an `EdgeText`, written as in the body: ``node:output:index`` or the name of an argument.
"""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from graphwd.analysis.interpreter import BodyValues
from graphwd.analysis.postorder import evaluate
from graphwd.analysis.reachability import Reachability
from graphwd.analysis.sites import Frame, Write
from graphwd.analysis.values import MANY, NO_VARIABLE, NOTHING, Value
from graphwd.graph.body import Body, Node
from graphwd.graph.edge import Edge, EdgeText, Use, data_input, data_inputs, node_of, output_edge, parse_edge
from graphwd.graph.graph import DTYPE_NUMBERS, Callee, Graph, Variable, state_count
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, CallKind, Form, WriteOp
from graphwd.graph.traits import (
    ALIAS_OPS,
    HANDLE_OPS,
    PRODUCT_OPS,
    READ_OPS,
    SHAPE_OPS,
    SUM_OPS,
    SWITCH_OPS,
    Trait,
    ops_with,
)

_FIRST_ONLY = ops_with(Trait.FIRST_OPERAND)
"""Ops whose first input holds values and whose other inputs hold positions, such as a sparse gradient's indices."""

_INDEXED = ops_with(Trait.INDEXED)
_GUARDS = ops_with(Trait.GUARD)
_MATRIX_OPS = ops_with(Trait.MATRIX)
_OF_NUMBERS = ops_with(Trait.SCALAR, Trait.ALIAS)
"""Ops whose output is one number where all inputs are."""

_SUMMING = SUM_OPS | ops_with(Trait.CAST, Trait.SELECT)
_GATING = ops_with(Trait.PRODUCT, Trait.DIFFERENCE, Trait.NEGATION, Trait.CAST)
_MAX_DEPTH = 100

_INTEGERS = (DTYPE_NUMBERS["int32"], DTYPE_NUMBERS["int64"])


class Flow:
    """The flow of data in one body.

    Attributes:
        nodes: its nodes, by name, in an order in which they may run.
        reach: which of them must run before which.
        variables: the variables of the step, by number.
    """

    def __init__(
        self,
        graph: Graph,
        body: Body,
        values: BodyValues,
        outside: tuple[Flow, Frame] | None = None,
        is_kept_elsewhere: Callable[[Variable], bool] = lambda _: False,
    ) -> None:
        """Indexes a body.

        Args:
            graph: the step.
            body: the body.
            values: what is known of its tensors in the context in question.
            outside: the body that calls it, and the call; None for the step itself, and where that is not known.
            is_kept_elsewhere: whether another body of the same run keeps something of a gradient in a variable.
        """
        self._graph = graph
        self._is_kept_elsewhere = is_kept_elsewhere
        self._in_gradient = graph.gradient_scopes.hold
        self.variables = graph.variables
        self.is_fetched = graph.is_main and body is graph.root
        """Whether each of its nodes may be asked for by its name, and be run without the others."""
        self._values = values
        self.nodes: dict[str, Node] = {node.name: node for node in body.nodes}
        self.reach = Reachability(body, self.nodes)
        self._outside = outside
        self._arguments = body.arguments
        signature = (graph.root_function if body is graph.root else graph.library[body.name]).signature
        self._types = {argument.name: argument.type for argument in signature.input_arg}
        self._ranks = graph.ranks if body is graph.root else {}
        # Results by tensor: the same questions are asked over and over.
        self._origins: dict[EdgeText, EdgeText] = {}
        self._sources: dict[EdgeText, bool] = {}
        self._carrying: dict[EdgeText, bool] = {}
        self._provenance: dict[EdgeText, int] = {}
        self._known_scalars: dict[EdgeText, bool | None] = {}
        self._writes: dict[int, list[tuple[Node, WriteOp]]] = defaultdict(list)
        self._indices: dict[EdgeText, int] = {}
        for node in body.nodes:
            if node.op in WRITE_OPS:
                row = WRITE_OPS[node.op]
                self._writes[self.value(data_input(node.proto, 0)).handle].append((node, row))
                if row.rows is not None:
                    self._note_indices(node, row.rows)
            elif node.op in _INDEXED:
                self._note_indices(node, 1)

    def _note_indices(self, node: Node, position: int) -> None:
        self._indices[self.origin(data_input(node.proto, position))] = node.proto.attr["Tindices"].type

    def index_dtype(self, tensor: EdgeText) -> int:
        """The dtype, as a number, of a tensor of row indices."""
        return self._indices[self.origin(tensor)]

    def value(self, tensor: EdgeText) -> Value:
        """What is known of a tensor."""
        return self._value(parse_edge(tensor))

    def _value(self, edge: Edge) -> Value:
        known = self._values.get(edge.node)
        if not known:
            return NOTHING
        return known[edge.index] if edge.index < len(known) else known[0]

    def producer(self, tensor: EdgeText) -> Node | None:
        """The node that a tensor comes from; None for an argument."""
        return self.nodes.get(node_of(tensor))

    def order(self, tensor: EdgeText) -> int:
        """The place of a tensor's producer in the order of the body; -1 for an argument."""
        return self.reach.place(node_of(tensor))

    def origin(self, tensor: EdgeText) -> EdgeText:
        """The tensor that this one is a mere alias of; itself where it is none."""
        aliases: dict[EdgeText, None] = {}
        while tensor not in self._origins and tensor not in aliases:
            node = self.producer(tensor)
            if node is None or node.op not in ALIAS_OPS:
                break
            aliases[tensor] = None
            tensor = data_input(node.proto, parse_edge(tensor).index)
        origin = self._origins.setdefault(tensor, tensor)
        self._origins.update(dict.fromkeys(aliases, origin))
        return origin

    def through_casts(self, tensor: EdgeText) -> EdgeText:
        """The tensor that this one is an alias of, or casts of; itself where it is none."""
        tensor = self.origin(tensor)
        while (node := self.producer(tensor)) is not None and node.op == "Cast":
            tensor = self.origin(data_input(node.proto, 0))
        return tensor

    def guarded(self, uses: Iterable[Use]) -> EdgeText | None:
        """The tensor that some inputs of one origin come from: the last alias that is a guard, else the origin.

        A guard raises, or waits for a node that may. A decay must join a gradient after its guard, since otherwise it
        would go around the guard.

        Args:
            uses: inputs of one origin.

        Returns:
            The tensor; None where one of them has such an alias of its own.
        """
        chains = [self.aliases(use) for use in uses]
        shared = [alias for alias in chains[0] if all(alias in chain for chain in chains)]
        own = {alias for chain in chains for alias in chain if alias not in shared}
        if any(map(self._is_guard, own)):
            return None
        return next((alias for alias in shared if self._is_guard(alias)), shared[-1])

    def aliases(self, use: Use) -> list[EdgeText]:
        """The tensors from an input back to its origin."""
        chain = [data_input(self.nodes[use.node].proto, use.position)]
        while (node := self.producer(chain[-1])) is not None and node.op in ALIAS_OPS:
            chain.append(data_input(node.proto, parse_edge(chain[-1]).index))
        return chain

    def _is_guard(self, tensor: EdgeText) -> bool:
        node = self.producer(tensor)
        return node is not None and node.op in ALIAS_OPS and (node.op in _GUARDS or bool(node.controls))

    def is_scalar(self, tensor: EdgeText) -> bool | None:
        """Whether a tensor holds one number: true or false where that is certain, else None."""
        return evaluate(tensor, self._numbers_behind, self._is_scalar, None, self._known_scalars)

    def _numbers_behind(self, tensor: EdgeText) -> Sequence[EdgeText]:
        """The operands that tell whether a tensor holds one number."""
        node = self.producer(tensor)
        if node is None or node.op not in _OF_NUMBERS or self.read(tensor) is not None:
            return ()
        return [text for _, text in self.inputs(node)]

    def _is_scalar(self, tensor: EdgeText, behind: Sequence[bool | None]) -> bool | None:
        node = self.producer(tensor)
        if node is None:
            if (outside := self.outside(tensor)) is not None:
                flow, given = outside
                return flow.is_scalar(given)
            rank = self._ranks.get(tensor)
            return None if rank is None else rank == 0
        if node.op == "Const":
            return not node.proto.attr["value"].tensor.tensor_shape.dim
        variable = self.read(tensor)
        if variable is not None:
            return variable.rank == 0 if node.op == "ReadVariableOp" and variable.rank is not None else None
        if node.op in _MATRIX_OPS:
            return False
        if node.op not in _OF_NUMBERS:
            return None
        return False if False in behind else None if None in behind else True

    def inputs(self, node: Node) -> Iterator[tuple[int, EdgeText]]:
        """The data inputs of a node that are not handles of variables: position and tensor."""
        for position, edge in enumerate(node.inputs):
            if self._value(edge).handle == NO_VARIABLE:
                yield position, data_input(node.proto, position)

    def read(self, tensor: EdgeText) -> Variable | None:
        """The variable that a tensor was read from; None where it was not read, or the variable is not known."""
        return self.read_by(self.producer(tensor))

    def read_by(self, node: Node | None) -> Variable | None:
        """The variable that a node reads; None where it reads none, or the variable is not known."""
        if node is None or node.op not in READ_OPS:
            return None
        handle = self.value(data_input(node.proto, 0)).handle
        return self.variables[handle] if handle >= 0 else None

    def outside(self, argument: EdgeText) -> tuple[Flow, EdgeText] | None:
        """The tensor that the caller passes as an argument of the body; None where that is not known."""
        if self._outside is None or argument not in self._arguments:
            return None
        flow, frame = self._outside
        node, call = flow.nodes[frame.node], CALL_OPS[frame.op]
        given = len(node.inputs) - call.skip - call.drop
        place = self._arguments.index(argument)
        if call.kind is CallKind.SCAN and place >= state_count(node):
            place -= len(self._arguments) - given  # no input of the call holds the elements of the dataset
            if place < state_count(node):
                return None
        return (flow, flow.origin(data_input(node.proto, call.skip + place))) if place < given else None

    def content_of(self, tensor: EdgeText) -> Variable | None:
        """The variable whose content a tensor is, read in this body or in its caller."""
        variable = self.read(tensor)
        if variable is None and (outside := self.outside(tensor)) is not None:
            flow, given = outside
            return flow.content_of(given)
        return variable

    def first_read(self, tensor: EdgeText) -> EdgeText:
        """The first read of the variable that a tensor was read from, if all reads give the same; else the tensor."""
        node = self.producer(tensor)
        variable = self.read_by(node) if node is not None and node.op == "ReadVariableOp" else None
        return tensor if variable is None else self._first_reads.get(variable.id, tensor)

    @functools.cached_property
    def _first_reads(self) -> Mapping[int, EdgeText]:
        """The first read of each variable that the body neither writes nor gives to a function, by number."""
        if self.has_v1_branches or self._graph.is_main:
            return {}  # the first may lie in a branch that a run does not take, or that a session is not asked for
        calls = (node for node in self.nodes.values() if node.op in CALL_OPS)
        given = (self._value(edge).handle for node in calls for edge in node.inputs)
        changed = {*self._writes, *(handle for handle in given if handle != NO_VARIABLE)}
        if changed & {MANY, NO_VARIABLE}:
            return {}
        first: dict[int, EdgeText] = {}
        for node in self.nodes.values():
            if node.op == "ReadVariableOp" and (variable := self.read_by(node)) and variable.id not in changed:
                first.setdefault(variable.id, output_edge(node.name, "value"))
        return first

    @functools.cached_property
    def has_v1_branches(self) -> bool:
        """Whether a run may leave out nodes of the body: whether it has branches of TensorFlow 1."""
        return any(node.op in SWITCH_OPS for node in self.nodes.values())

    def in_v1_branch(self, name: str) -> bool:
        """Whether a node depends, by data, on a branch of TensorFlow 1."""
        return self.has_v1_branches and any(self.nodes[node].op in SWITCH_OPS for node in self.reach.upstream([name]))

    def names(self, tensor: EdgeText) -> list[str]:
        """The names of a tensor: its node, and where it comes from. The name that a user knows comes last."""
        names = [node_of(tensor)]
        variable = self.read(tensor)
        if variable is not None:
            names.append(variable.name)
        elif (outside := self.outside(tensor)) is not None:
            flow, given = outside
            names += flow.names(given)
        return list(dict.fromkeys(names))

    def written(self, variable: Variable) -> Sequence[tuple[Node, WriteOp, EdgeText]]:
        """The writes of the body to a variable, in program order: the node, the row of its op, the tensor."""
        return [(node, op, data_input(node.proto, op.value)) for node, op in self._writes.get(variable.id, ())]

    def given_to_others(self, tensor: EdgeText, variable: Variable) -> bool:
        """Whether a tensor is assigned, as new content, to a trainable variable other than the given one."""
        return bool(self._assigned.get(tensor, frozenset()) - {variable.id})

    @functools.cached_property
    def _assigned(self) -> Mapping[EdgeText, frozenset[int]]:
        """For each tensor, the numbers of the trainable variables that it is assigned to."""
        assigned: dict[EdgeText, frozenset[int]] = {}
        for number, writes in self._writes.items():
            if number >= 0 and self.variables[number].trainable:
                for node, row in writes:
                    if row.form is Form.ASSIGN and row.rows is None and not row.partial:
                        tensor = self.origin(data_input(node.proto, row.value))
                        assigned[tensor] = assigned.get(tensor, frozenset()) | {number}
        return assigned

    def of_update(self, write: str, others: Collection[str]) -> Flow:
        """The body as one of several updates of a variable sees it.

        Slot variables that feed another update are left out: they hold the gradient of that update.

        Args:
            write: a write of the update.
            others: the writes of the other updates.
        """
        others = [name for name in others if name in self.nodes]
        former = [name for name in others if self.reach.precedes(name, write)]

        def is_of_other(slot: Node) -> bool:
            leads_to = others if not self.reach.precedes(slot.name, write) else former
            return any(self.reach.precedes(slot.name, name) for name in leads_to)

        if not others:
            return self
        seen = copy.copy(self)
        seen._writes = defaultdict(list)
        for number, writes in self._writes.items():
            is_slot = number >= 0 and not self.variables[number].trainable
            seen._writes[number] = [(node, row) for node, row in writes if not (is_slot and is_of_other(node))]
        seen._sources, seen._carrying, seen._provenance = {}, {}, {}
        seen.__dict__.pop("slotted", None)
        return seen

    def is_slot(self, variable: Variable) -> bool:
        """Whether a variable carries a gradient of this run into the next run; one that is reset here does not."""
        if variable.trainable:
            return False
        writes = self.written(variable)
        if writes:
            return self.value(writes[-1][2]).from_gradient
        return variable.id in self._gradients and self._is_kept_elsewhere(variable)

    @functools.cached_property
    def _gradients(self) -> frozenset[int]:
        """The numbers of the variables that the body reads after a gradient of the same run was written to them."""
        read = (node for node in self.nodes.values() if node.op in READ_OPS)
        return frozenset(
            self.value(data_input(node.proto, 0)).handle
            for node in read
            if self._value(Edge(node.name, 0)).from_gradient
        )

    def keeps(self, variable: Variable) -> bool:
        """Whether the body writes a gradient to a variable other than by adding it to the variable's content."""
        for _, op, value in self.written(variable):
            if self.value(value).from_gradient and op.form not in (Form.ADD, Form.SUB):
                node = self.producer(self.origin(value))
                terms = (
                    [] if node is None or node.op not in SUM_OPS else [self.origin(x) for x in data_inputs(node.proto)]
                )
                if not any(self.read(term) == variable for term in terms):
                    return True
        return False

    def is_source(self, tensor: EdgeText) -> bool:
        """Whether a tensor is a gradient as the body gets it, or as the computation of gradients produces it."""
        known = self._sources.get(tensor)
        if known is None:
            known = self._sources[tensor] = self._is_source(tensor)
        return known

    def _is_source(self, tensor: EdgeText) -> bool:
        if not self.value(tensor).from_gradient:
            return False
        node = self.producer(tensor)
        if node is None or self._in_gradient(node.name) or self._computes_gradient(tensor):
            return True
        variable = self.read(tensor)
        return variable is not None and not self.is_slot(variable)  # gradients accumulated in earlier runs

    def _computes_gradient(self, tensor: EdgeText) -> bool:
        """Whether a tensor is the result of a called function that computes gradients and returns them unchanged.

        TensorFlow generates such a function for each function that the forward pass calls.
        """
        node = self.producer(tensor)
        if node is None or node.op not in CALL_OPS or CALL_OPS[node.op].kind is not CallKind.CALL:
            return False
        for callee in self._graph.callees(node):
            body = self._graph.body(callee.function)
            nodes = {inner.name: inner for inner in body.nodes}
            waiting = [body.results[parse_edge(tensor).index].node]
            while waiting:
                inner = nodes.get(waiting.pop())
                if inner is None or not (self._in_gradient(inner.name) or inner.op in ALIAS_OPS or inner.op == "AddN"):
                    return False
                if not self._in_gradient(inner.name):
                    waiting.extend(edge.node for edge in inner.inputs)
        return True

    def carries(self, tensor: EdgeText) -> bool:
        """Whether a tensor carries a gradient: this run's, or earlier ones by way of a slot variable."""
        known = self._carrying.get(tensor)
        if known is None:
            known = self._carrying[tensor] = self._carries(tensor)
        return known

    def _carries(self, tensor: EdgeText) -> bool:
        node = self.producer(tensor)
        shape = node is not None and node.op == "Const" and node.proto.attr["dtype"].type in _INTEGERS
        carried = self.value(tensor).from_gradient or node_of(tensor) in self.slotted
        return carried and not shape and self.origin(tensor) not in self._indices

    @functools.cached_property
    def slotted(self) -> frozenset[str]:
        """The nodes whose outputs depend on earlier gradients by way of slot variables."""
        slotted: set[str] = set()
        if not any(self.is_slot(self.variables[handle]) for handle in self._writes if handle >= 0):
            return frozenset()
        for node in self.nodes.values():
            if node.op in READ_OPS:
                variable = self.read_by(node)
                is_slotted = variable is not None and self.is_slot(variable)
            else:
                is_slotted = (
                    bool(slotted)
                    and any(edge.node in slotted for edge in node.inputs)  # rarely; the rest takes longer to find out
                    and node.op not in SHAPE_OPS
                    and not self._in_gradient(node.name)
                    and any(node_of(tensor) in slotted for _, tensor in self.contents(node))
                )
            if is_slotted:
                slotted.add(node.name)
        return frozenset(slotted)

    def contents(self, node: Node) -> Iterator[tuple[int, EdgeText]]:
        """The inputs of a node that hold values, not indices or shapes: position and tensor."""
        for position, source in self.inputs(node):
            if position == 0 or node.op not in _FIRST_ONLY:
                yield position, source

    def behind(self, tensor: EdgeText) -> Iterator[tuple[Use, EdgeText]]:
        """The operands of a tensor, each with its use; those of a slot variable's read are the values written to it."""
        node = self.producer(tensor)
        if node is None:
            return
        variable = self.read(tensor)
        if variable is not None and not variable.trainable:
            for write, op, value in self.written(variable):
                yield Use(write.name, op.value), self.origin(value)
        for position, source in self.contents(node):
            yield Use(node.name, position), self.origin(source)

    def written_before(self, tensor: EdgeText, weight: Variable) -> Iterator[tuple[Use, EdgeText]]:
        """The earlier writes to the trainable variable that a tensor is read from, which may be a slot variable.

        Args:
            tensor: the tensor.
            weight: the variable that is updated, which is not a slot variable.
        """
        variable = self.read(tensor)
        if variable is not None and variable.trainable and variable != weight:
            for write, op, value in self.written(variable):
                if self.reach.precedes(write.name, node_of(tensor)):
                    yield Use(write.name, op.value), self.origin(value)

    def calls_more_than(self, node: Node, ops: Collection[str]) -> bool:
        """Whether a function that a node calls holds an op that is not among some, or multiplies by a constant."""
        for callee in self._graph.callees(node):
            body = self._graph.body(callee.function)
            constants = {inner.name for inner in body.nodes if inner.op == "Const"}
            for inner in body.nodes:
                scaled = inner.op in PRODUCT_OPS and any(edge.node in constants for edge in inner.inputs)
                if inner.op not in ops or scaled or self.calls_more_than(inner, ops):
                    return True
        return False

    @functools.cached_property
    def forward(self) -> frozenset[str]:
        """The nodes that a gradient was computed from: the forward pass."""
        ends = {node.name for node in self.nodes.values() if self._is_gradient(node)}
        return frozenset(self.reach.upstream(ends) - ends)

    def _is_gradient(self, node: Node) -> bool:
        if self._in_gradient(node.name):
            return True
        if node.op not in CALL_OPS:
            return False
        outputs = (output_edge(node.name, "output", number) for number in range(len(self._values.get(node.name, ()))))
        return any(self.value(output).from_gradient and self.is_source(output) for output in outputs)

    def reads_behind(self, tensor: EdgeText, without: Collection[EdgeText] = ()) -> frozenset[int]:
        """The numbers of the variables that a tensor is computed from, from the gradient on; `MANY` for unknown ones.

        Args:
            tensor: the tensor.
            without: tensors that do not count.
        """
        mask = 0
        for term in self._unless(tensor, without):
            mask |= self._reads_behind(term)
        numbers = [number for number in range(mask.bit_length()) if mask >> number & 1]
        return frozenset(number - 1 if number else MANY for number in numbers)

    def made_of(self, tensor: EdgeText) -> frozenset[EdgeText]:
        """The provenance of a tensor from the gradient on, itself included, without reads, arguments and constants."""
        provenance: set[EdgeText] = set()
        seen: set[EdgeText] = set()
        waiting = [self.origin(tensor)]
        while waiting:
            operand = waiting.pop()
            node = self.producer(operand)
            if operand in seen or node is None:
                continue
            seen.add(operand)
            if node.op not in READ_OPS and node.op != "Const":
                provenance.add(operand)
            if not self.is_source(operand):
                waiting.extend(further for _, further in self.behind(operand))
        return frozenset(provenance)

    def certainly_reads(self, tensor: EdgeText, variable: Variable) -> bool:
        """Whether a tensor is computed from a read of a variable in this body.

        The results of calls do not count: it is not known which arguments a result depends on.
        """
        seen: set[EdgeText] = set()
        waiting = [self.origin(tensor)]
        while waiting:
            operand = waiting.pop()
            node = self.producer(operand)
            if operand in seen or node is None or node.op in CALL_OPS or self.is_source(operand):
                continue
            seen.add(operand)
            if self.read(operand) == variable:
                return True
            waiting.extend(further for _, further in self.behind(operand))
        return False

    def _unless(self, tensor: EdgeText, without: Collection[EdgeText]) -> Iterator[EdgeText]:
        """A tensor; for a sum that has some tensors among its terms, its other terms."""
        seen: set[EdgeText] = set()
        waiting = [tensor]
        while waiting:
            term = waiting.pop()
            if term in without or term in seen:
                continue
            seen.add(term)
            if without and self._holds(term, without):
                waiting.extend(operand for _, operand in self.behind(term))
            else:
                yield term

    def _holds(self, tensor: EdgeText, terms: Collection[EdgeText]) -> bool:
        """Whether a tensor is one of some terms, or a sum that has one among its terms."""
        seen: set[EdgeText] = set()
        waiting = [tensor]
        while waiting:
            term = waiting.pop()
            if term in terms:
                return True
            node = self.producer(term)
            if term not in seen and node is not None and node.op in _SUMMING:
                waiting.extend(operand for _, operand in self.behind(term))
            seen.add(term)
        return False

    def _reads_behind(self, start: EdgeText) -> int:
        """A bit for each variable that a tensor depends on: bit n + 1 for variable n, bit 0 for unknown ones.

        Slot variables may lead back to where they are written, and what lies on one such cycle depends on the same. So
        these are kept together: Tarjan's algorithm (SIAM Journal on Computing, 1972), without recursion.
        """
        known = self._provenance
        met: dict[EdgeText, int] = {}
        lowest: dict[EdgeText, int] = {}
        masks: dict[EdgeText, int] = {}
        open_tensors: list[EdgeText] = []
        entered: list[tuple[EdgeText, Iterator[EdgeText]]] = []

        def enter(tensor: EdgeText) -> None:
            masks[tensor], further = self._direct_reads(tensor)
            met[tensor] = lowest[tensor] = len(met)
            open_tensors.append(tensor)
            entered.append((tensor, iter(further)))

        if start not in known:
            enter(start)
        while entered:
            tensor, further = entered[-1]
            for operand in further:
                if operand in known:
                    masks[tensor] |= known[operand]
                elif operand in met:
                    lowest[tensor] = min(lowest[tensor], met[operand])
                else:
                    enter(operand)
                    break
            else:
                entered.pop()
                if entered:
                    user = entered[-1][0]
                    masks[user] |= masks[tensor]
                    lowest[user] = min(lowest[user], lowest[tensor])
                if lowest[tensor] == met[tensor]:
                    _close(open_tensors, tensor, masks, known)
        return known[start]

    def _direct_reads(self, tensor: EdgeText) -> tuple[int, list[EdgeText]]:
        """The variable that a tensor is read from, as a bit, and the operands of the tensor."""
        known = self.value(tensor)
        node = self.producer(tensor)
        if self.is_source(tensor):
            return 0, []
        if node is None:
            return (2 << known.source if known.source >= 0 else known.source == MANY), []
        variable = self.read(tensor)
        if variable is not None and variable.trainable:
            return 2 << variable.id, []
        bit = 0 if variable is None else 2 << variable.id
        if node.op in CALL_OPS and known.source == MANY:
            bit |= self._given_to(node)
        elif node.op in CALL_OPS and known.source >= 0:
            bit |= 2 << known.source
        return bit, [operand for _, operand in self.behind(tensor)]

    def _given_to(self, node: Node) -> int:
        """A bit for each variable that a call can read, as in `_reads_behind`: those whose handles are its inputs."""
        handles = [self._value(edge).handle for edge in node.inputs]
        bits = int(MANY in handles or any(map(self._holds_handles, self._graph.callees(node))))
        for handle in handles:
            bits |= 2 << handle if handle >= 0 else 0
        return bits

    def _holds_handles(self, callee: Callee) -> bool:
        """Whether a function makes handles itself, or a function that it calls does."""
        seen: set[str] = set()
        waiting = [callee.function]
        while waiting:
            function = waiting.pop()
            for node in self._graph.body(function).nodes if function not in seen else ():
                if node.op in HANDLE_OPS:
                    return True
                waiting.extend(called.function for called in self._graph.callees(node))
            seen.add(function)
        return False

    def gate(self, write: Write) -> str | None:
        """The node that casts a condition to a factor, 0 or 1, of the written value; None where there is none."""
        waiting = [data_input(self.nodes[write.site.node].proto, write.op.value)]
        for _ in range(_MAX_DEPTH):
            if not waiting:
                break
            node = self.producer(self.origin(waiting.pop()))
            if node is None:
                continue
            if node.op == "Cast" and node.proto.attr["SrcT"].type == DTYPE_NUMBERS["bool"]:
                return node.name
            if node.op in _GATING:
                waiting.extend(text for _, text in self.inputs(node))
        return None

    def dtype(self, tensor: EdgeText) -> int | None:
        """The dtype of a tensor, or of what a v1 reference refers to, as a number; None where nothing says it."""
        node = self.producer(tensor)
        if node is None:
            handle = self.value(tensor).handle
            reference = handle >= 0 and self.variables[handle].reference
            return DTYPE_NUMBERS.get(self.variables[handle].dtype) if reference else self._types.get(tensor)
        for key in ("Tout", "T") if node.op in CALL_OPS else ():
            types = node.proto.attr[key].list.type if key in node.proto.attr else ()
            index = parse_edge(tensor).index
            if index < len(types):
                return types[index]
        for key in ("DstT", "dtype", "out_type", "T"):
            if key in node.proto.attr and node.proto.attr[key].type:
                return node.proto.attr[key].type
        return None


def sinks(flow: Flow, nodes: Iterable[str]) -> list[tuple[Use, EdgeText]]:
    """The tensors that the writes of an update take: the gradient of an Apply op, the value of any other write."""
    written: list[tuple[Use, EdgeText]] = []
    for name in nodes:
        node = flow.nodes[name]
        position = WRITE_OPS[node.op].value
        written.append((Use(name, position), flow.origin(data_input(node.proto, position))))
    return written


def is_apply(flow: Flow, name: str) -> bool:
    """Whether a write is an Apply op."""
    return WRITE_OPS[flow.nodes[name].op].form is Form.APPLY


def _close(
    open_tensors: list[EdgeText], first: EdgeText, masks: Mapping[EdgeText, int], known: dict[EdgeText, int]
) -> None:
    """Gives all tensors of a cycle, the last of the open ones from ``first`` on, what they depend on together."""
    cycle: list[EdgeText] = []
    while not cycle or cycle[-1] != first:
        cycle.append(open_tensors.pop())
    mask = 0
    for tensor in cycle:
        mask |= masks[tensor]
    known.update(dict.fromkeys(cycle, mask))
