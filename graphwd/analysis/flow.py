"""How data flows through one body in one of the contexts in which it runs: through tensors and through slot variables.

A tensor is written as in the body, ``node:output:index`` or the name of an argument.
"""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from graphwd.analysis.interpreter import BodyValues
from graphwd.analysis.sites import Frame, Path, Site, Write
from graphwd.analysis.values import MANY, NO_VARIABLE, NOTHING, Value
from graphwd.graph.body import Body, Node
from graphwd.graph.edge import Edge, Use, node_of, output_edge, parse_edge
from graphwd.graph.graph import DTYPE_NUMBERS, Callee, Graph, Variable, state_count
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, CallKind, Form, WriteOp
from graphwd.graph.traits import (
    ALIAS_OPS,
    HANDLE_OPS,
    PRODUCT_OPS,
    READ_OPS,
    SHAPE_OPS,
    SUM_OPS,
    Trait,
    ops_with,
)

_FIRST_ONLY = ops_with(Trait.FIRST_OPERAND)
"""Ops whose first input says what, and all others where: a sparse gradient's indices are no part of its value."""

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
            outside: the body that calls it there, and how; None for the step itself, and where that is not known.
            is_kept_elsewhere: whether another body of the same run keeps something of a gradient in a variable.
        """
        self._graph = graph
        self._is_kept_elsewhere = is_kept_elsewhere
        self._in_gradient = graph.gradient_scopes.hold
        self.variables = graph.variables
        self._values = values
        self.nodes: dict[str, Node] = {node.name: node for node in body.nodes}
        self._places = body.places
        self._arguments = frozenset(body.arguments)
        self._results = body.results
        self._outside = outside
        self._body_arguments = body.arguments
        signature = (graph.root_function if body is graph.root else graph.library[body.name]).signature
        self._types = {argument.name: argument.type for argument in signature.input_arg}
        self._ranks = graph.ranks if body is graph.root else {}
        # What has been found out, by tensor: the same is asked over and over.
        self._origins: dict[str, str] = {}
        self._sources: dict[str, bool] = {}
        self._carrying: dict[str, bool] = {}
        self._made_of: dict[str, int] = {}
        self._writes: dict[int, list[tuple[Node, WriteOp]]] = defaultdict(list)
        self._indices: dict[str, int] = {}
        for node in body.nodes:
            if node.op in WRITE_OPS:
                row = WRITE_OPS[node.op]
                self._writes[self.value(node.proto.input[0]).handle].append((node, row))
                if row.rows is not None:
                    self._note_indices(node, row.rows)
            elif node.op in _INDEXED:
                self._note_indices(node, 1)

    def _note_indices(self, node: Node, position: int) -> None:
        self._indices[self.origin(node.proto.input[position])] = node.proto.attr["Tindices"].type

    def index_dtype(self, tensor: str) -> int:
        """The dtype, as a number, of a tensor that the indices of rows are."""
        return self._indices[self.origin(tensor)]

    def value(self, tensor: str) -> Value:
        """What is known of a tensor."""
        return self._value(parse_edge(tensor))

    def _value(self, edge: Edge) -> Value:
        known = self._values.get(edge.node)
        if not known:
            return NOTHING
        return known[edge.index] if edge.index < len(known) else known[0]

    def producer(self, tensor: str) -> Node | None:
        """The node that a tensor comes from; None for an argument."""
        return self.nodes.get(node_of(tensor))

    def order(self, tensor: str) -> int:
        """A number that is larger the later in the body a tensor is made; -1 for an argument."""
        node = self.producer(tensor)
        return -1 if node is None else self._places[node.index]

    def origin(self, tensor: str) -> str:
        """The tensor that this one is a mere alias of; itself where it is none."""
        if tensor not in self._origins:
            node = self.producer(tensor)
            alias = node is not None and node.op in ALIAS_OPS
            self._origins[tensor] = (
                self.origin(node.proto.input[parse_edge(tensor).index]) if node is not None and alias else tensor
            )
        return self._origins[tensor]

    def guarded(self, uses: Iterable[Use]) -> str | None:
        """The tensor that some inputs of one origin come from: the last alias that raises, else the origin.

        An alias that raises, or waits for what raises, must be gone through: what joins a gradient behind it would go
        around it.

        Args:
            uses: inputs of one origin.

        Returns:
            The tensor; None where one of them has such an alias of its own.
        """
        chains = [self.aliases(use) for use in uses]
        shared = [each for each in chains[0] if all(each in chain for chain in chains)]
        own = {each for chain in chains for each in chain if each not in shared}
        if any(map(self._is_guard, own)):
            return None
        return next((each for each in shared if self._is_guard(each)), shared[-1])

    def aliases(self, use: Use) -> list[str]:
        """The tensors from an input back to its origin."""
        chain = [self.nodes[use.node].proto.input[use.position]]
        while (node := self.producer(chain[-1])) is not None and node.op in ALIAS_OPS:
            chain.append(node.proto.input[parse_edge(chain[-1]).index])
        return chain

    def _is_guard(self, tensor: str) -> bool:
        node = self.producer(tensor)
        return node is not None and node.op in ALIAS_OPS and (node.op in _GUARDS or bool(node.controls))

    def is_scalar(self, tensor: str) -> bool | None:
        """Whether a tensor holds one number: true or false where that is certain, else None."""
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
        known = {self.is_scalar(text) for _, text in self.inputs(node)}
        return False if False in known else None if None in known else True

    def inputs(self, node: Node) -> Iterator[tuple[int, str]]:
        """The data inputs of a node that are not handles of variables: position and tensor."""
        for position, edge in enumerate(node.inputs):
            if self._value(edge).handle == NO_VARIABLE:
                yield position, node.proto.input[position]

    def read(self, tensor: str) -> Variable | None:
        """The variable of whose content a tensor was read; None where it was not, or it is not known of which."""
        node = self.producer(tensor)
        if node is None or node.op not in READ_OPS:
            return None
        handle = self.value(node.proto.input[0]).handle
        return self.variables[handle] if handle >= 0 else None

    def outside(self, argument: str) -> tuple[Flow, str] | None:
        """What an argument of the body is where the body is called: a tensor there; None where that is not known."""
        if self._outside is None or argument not in self._arguments:
            return None
        flow, frame = self._outside
        node, call = flow.nodes[frame.node], CALL_OPS[frame.op]
        given = node.proto.input[call.skip : len(node.inputs) - call.drop]
        place = self._body_arguments.index(argument)
        if call.kind is CallKind.SCAN and place >= state_count(node):
            place -= len(self._body_arguments) - len(given)  # the elements of the dataset are given by nobody
            if place < state_count(node):
                return None
        return (flow, flow.origin(given[place])) if place < len(given) else None

    def content_of(self, tensor: str) -> Variable | None:
        """The variable whose content a tensor is, be it read here or where the body is called."""
        variable = self.read(tensor)
        if variable is None and (outside := self.outside(tensor)) is not None:
            flow, given = outside
            return flow.content_of(given)
        return variable

    def names(self, tensor: str) -> list[str]:
        """What a tensor is called, by its node and by where it comes from; what a user calls it comes last."""
        names = [node_of(tensor)]
        variable = self.read(tensor)
        if variable is not None:
            names.append(variable.name)
        elif (outside := self.outside(tensor)) is not None:
            flow, given = outside
            names += flow.names(given)
        return list(dict.fromkeys(names))

    def written(self, variable: Variable) -> Sequence[tuple[Node, WriteOp, str]]:
        """What the body writes into a variable, in program order: the node, the row of its op, the tensor."""
        return [(node, op, node.proto.input[op.value]) for node, op in self._writes.get(variable.id, ())]

    def given_to_others(self, tensor: str, variable: Variable) -> bool:
        """Whether a tensor is assigned to a trainable variable other than some variable: it is what that then holds."""
        return bool(self._assigned.get(tensor, frozenset()) - {variable.id})

    @functools.cached_property
    def _assigned(self) -> Mapping[str, frozenset[int]]:
        """By tensor, the trainable variables, as numbers, that it is assigned to."""
        found: dict[str, frozenset[int]] = {}
        for number, writes in self._writes.items():
            if number >= 0 and self.variables[number].trainable:
                for node, row in writes:
                    if row.form is Form.ASSIGN and row.rows is None and not row.partial:
                        tensor = self.origin(node.proto.input[row.value])
                        found[tensor] = found.get(tensor, frozenset()) | {number}
        return found

    def of_update(self, write: str, others: Collection[str]) -> Flow:
        """The body as one of several updates of a variable sees it.

        What leads to another update by way of a slot variable is the other's: its gradient is not that of this one.

        Args:
            write: a write of the update.
            others: the writes of the other updates.
        """
        others = [name for name in others if name in self.nodes]
        former = [name for name in others if self.precedes(name, write)]

        def is_of_other(slot: Node) -> bool:
            leads_to = others if not self.precedes(slot.name, write) else former
            return any(self.precedes(slot.name, name) for name in leads_to)

        if not others:
            return self
        seen = copy.copy(self)
        seen._writes = defaultdict(list)
        for number, writes in self._writes.items():
            is_slot = number >= 0 and not self.variables[number].trainable
            seen._writes[number] = [(node, row) for node, row in writes if not (is_slot and is_of_other(node))]
        seen._sources, seen._carrying, seen._made_of = {}, {}, {}
        seen.__dict__.pop("slotted", None)
        return seen

    def is_slot(self, variable: Variable) -> bool:
        """Whether a variable carries something of this run's gradient into the next: not one that is reset here."""
        if variable.trainable:
            return False
        writes = self.written(variable)
        if writes:
            return self.value(writes[-1][2]).from_gradient
        return variable.id in self._gradients and self._is_kept_elsewhere(variable)

    @functools.cached_property
    def _gradients(self) -> frozenset[int]:
        """The variables, as numbers, whose content, as the body reads it, comes from a gradient of the same run."""
        read = (node for node in self.nodes.values() if node.op in READ_OPS)
        return frozenset(self.value(node.proto.input[0]).handle for node in read if self.value(node.name).from_gradient)

    def keeps(self, variable: Variable) -> bool:
        """Whether the body writes something of a gradient to a variable otherwise than by adding to what that holds."""
        for _, op, value in self.written(variable):
            if self.value(value).from_gradient and op.form not in (Form.ADD, Form.SUB):
                node = self.producer(self.origin(value))
                terms = [] if node is None or node.op not in SUM_OPS else [self.origin(x) for x in node.proto.input]
                if not any(self.read(each) == variable for each in terms):
                    return True
        return False

    def is_source(self, tensor: str) -> bool:
        """Whether a tensor is a gradient as it comes into the body, or out of the computation of gradients."""
        known = self._sources.get(tensor)
        if known is None:
            known = self._sources[tensor] = self._is_source(tensor)
        return known

    def _is_source(self, tensor: str) -> bool:
        if not self.value(tensor).from_gradient:
            return False
        node = self.producer(tensor)
        if node is None or self._in_gradient(node.name) or self._computes_gradient(tensor):
            return True
        variable = self.read(tensor)
        return variable is not None and not self.is_slot(variable)  # gradients accumulated in earlier runs

    def _computes_gradient(self, tensor: str) -> bool:
        """Whether a tensor comes out of a call of a function that gives it out as the computation of gradients made it.

        So does what TensorFlow makes of a function that the forward pass calls.
        """
        node = self.producer(tensor)
        if node is None or node.op not in CALL_OPS or CALL_OPS[node.op].kind is not CallKind.CALL:
            return False
        for callee in self._graph.callees(node):
            body = self._graph.body(callee.function)
            nodes = {each.name: each for each in body.nodes}
            waiting = [body.results[parse_edge(tensor).index].node]
            while waiting:
                made = nodes.get(waiting.pop())
                if made is None or not (self._in_gradient(made.name) or made.op in ALIAS_OPS or made.op == "AddN"):
                    return False
                if not self._in_gradient(made.name):
                    waiting.extend(edge.node for edge in made.inputs)
        return True

    def carries(self, tensor: str) -> bool:
        """Whether a tensor brings gradient on: this run's, or what a slot variable has of earlier ones."""
        known = self._carrying.get(tensor)
        if known is None:
            known = self._carrying[tensor] = self._carries(tensor)
        return known

    def _carries(self, tensor: str) -> bool:
        node = self.producer(tensor)
        shape = node is not None and node.op == "Const" and node.proto.attr["dtype"].type in _INTEGERS
        carried = self.value(tensor).from_gradient or node_of(tensor) in self.slotted
        return carried and not shape and self.origin(tensor) not in self._indices

    @functools.cached_property
    def slotted(self) -> frozenset[str]:
        """The nodes whose outputs are made of what slot variables have of earlier gradients."""
        found: set[str] = set()
        if not any(self.is_slot(self.variables[handle]) for handle in self._writes if handle >= 0):
            return frozenset()
        for node in self.nodes.values():
            if node.op in READ_OPS:
                variable = self.read(node.name)
                made = variable is not None and self.is_slot(variable)
            else:
                made = (
                    bool(found)
                    and any(edge.node in found for edge in node.inputs)  # rarely; the rest takes longer to find out
                    and node.op not in SHAPE_OPS
                    and not self._in_gradient(node.name)
                    and any(node_of(tensor) in found for _, tensor in self.contents(node))
                )
            if made:
                found.add(node.name)
        return frozenset(found)

    def contents(self, node: Node) -> Iterator[tuple[int, str]]:
        """The inputs of a node that say what its outputs are, not where: position and tensor."""
        for position, source in self.inputs(node):
            if position == 0 or node.op not in _FIRST_ONLY:
                yield position, source

    def behind(self, tensor: str) -> Iterator[tuple[Use, str]]:
        """The tensors that one is made of, each with the input through which it comes: a slot's are its writes."""
        node = self.producer(tensor)
        if node is None:
            return
        variable = self.read(tensor)
        if variable is not None and not variable.trainable:
            for write, op, value in self.written(variable):
                yield Use(write.name, op.value), self.origin(value)
        for position, source in self.contents(node):
            yield Use(node.name, position), self.origin(source)

    def written_before(self, tensor: str, weight: Variable) -> Iterator[tuple[Use, str]]:
        """What was written before to the trainable variable that a tensor is read of, which may be a slot variable.

        Args:
            tensor: the tensor.
            weight: what is updated, which is no slot variable.
        """
        variable = self.read(tensor)
        if variable is not None and variable.trainable and variable != weight:
            for write, op, value in self.written(variable):
                if self.precedes(write.name, node_of(tensor)):
                    yield Use(write.name, op.value), self.origin(value)

    def calls_more_than(self, node: Node, ops: Collection[str]) -> bool:
        """Whether a function that a node calls holds other ops than some, or multiplies by a constant."""
        for callee in self._graph.callees(node):
            body = self._graph.body(callee.function)
            constants = {each.name for each in body.nodes if each.op == "Const"}
            for each in body.nodes:
                scaled = each.op in PRODUCT_OPS and any(edge.node in constants for edge in each.inputs)
                if each.op not in ops or scaled or self.calls_more_than(each, ops):
                    return True
        return False

    @functools.cached_property
    def forward(self) -> frozenset[str]:
        """The nodes that a gradient was computed from: the forward pass."""
        ends = {node.name for node in self.nodes.values() if self._is_gradient(node)}
        return frozenset(self.upstream(ends) - ends)

    def _is_gradient(self, node: Node) -> bool:
        if self._in_gradient(node.name):
            return True
        if node.op not in CALL_OPS:
            return False
        outputs = (output_edge(node.name, "output", number) for number in range(len(self._values.get(node.name, ()))))
        return any(self.value(each).from_gradient and self.is_source(each) for each in outputs)

    def reads_behind(self, tensor: str, without: Collection[str] = ()) -> frozenset[int]:
        """The variables whose content a tensor is made of, from the gradient on, by number; `MANY` for more.

        Args:
            tensor: the tensor.
            without: tensors that do not count.
        """
        mask = 0
        for each in self._unless(tensor, without):
            mask |= self._reads_behind(each)
        numbers = [number for number in range(mask.bit_length()) if mask >> number & 1]
        return frozenset(number - 1 if number else MANY for number in numbers)

    def made_of(self, tensor: str) -> frozenset[str]:
        """The tensors that one is made of, from the gradient on, and itself: none that are read, given or constant."""
        found: set[str] = set()
        seen: set[str] = set()
        waiting = [self.origin(tensor)]
        while waiting:
            each = waiting.pop()
            node = self.producer(each)
            if each in seen or node is None:
                continue
            seen.add(each)
            if node.op not in READ_OPS and node.op != "Const":
                found.add(each)
            if not self.is_source(each):
                waiting.extend(further for _, further in self.behind(each))
        return frozenset(found)

    def certainly_reads(self, tensor: str, variable: Variable) -> bool:
        """Whether a tensor is made of what this body reads of a variable.

        What comes by way of a call does not count: of which of its arguments a result is made is not known.
        """
        seen: set[str] = set()
        waiting = [self.origin(tensor)]
        while waiting:
            each = waiting.pop()
            node = self.producer(each)
            if each in seen or node is None or node.op in CALL_OPS or self.is_source(each):
                continue
            seen.add(each)
            if self.read(each) == variable:
                return True
            waiting.extend(further for _, further in self.behind(each))
        return False

    def _unless(self, tensor: str, without: Collection[str]) -> Iterator[str]:
        """A tensor, or, of a sum that some tensors are terms of, what else it is made of."""
        if tensor in without:
            return
        if not without or not self._holds(tensor, without):
            yield tensor
            return
        for _, each in self.behind(tensor):
            yield from self._unless(each, without)

    def _holds(self, tensor: str, terms: Collection[str], depth: int = 0) -> bool:
        node = self.producer(tensor)
        if tensor in terms or node is None or depth > _MAX_DEPTH:
            return tensor in terms
        return node.op in _SUMMING and any(self._holds(each, terms, depth + 1) for _, each in self.behind(tensor))

    def _reads_behind(self, start: str) -> int:
        """A bit for each variable that a tensor is made of: bit n + 1 for variable n, bit 0 where not all is seen."""
        known = self._made_of
        waiting = [start]
        entered: set[str] = set()
        while waiting:
            tensor = waiting[-1]
            if tensor in known:
                waiting.pop()
                continue
            mask, further = self._direct_reads(tensor)
            missing = [each for each in further if each not in known and each not in entered]
            if missing and tensor not in entered:
                entered.add(tensor)
                waiting.extend(missing)
                continue
            for each in further:  # a slot that leads back here has nothing more to say
                mask |= known.get(each, 0)
            known[tensor] = mask
            waiting.pop()
        return known[start]

    def _direct_reads(self, tensor: str) -> tuple[int, list[str]]:
        """The variable that a tensor is read of, as a bit, and the tensors that it is made of besides."""
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
        return bit, [each for _, each in self.behind(tensor)]

    def _given_to(self, node: Node) -> int:
        """A bit for each variable that a call can read, as in `_reads_behind`: those whose handles it is given."""
        handles = [self._value(edge).handle for edge in node.inputs]
        bits = int(MANY in handles or any(map(self._holds_handles, self._graph.callees(node))))
        for handle in handles:
            bits |= 2 << handle if handle >= 0 else 0
        return bits

    def _holds_handles(self, callee: Callee) -> bool:
        """Whether a function makes handles itself, or a function that it calls does."""
        nodes = self._graph.body(callee.function).nodes
        return any(node.op in HANDLE_OPS or any(map(self._holds_handles, self._graph.callees(node))) for node in nodes)

    def gate(self, write: Write) -> str | None:
        """The node that makes a factor of what is written of a condition, so that it is 0 or 1; None without one."""
        waiting = [self.nodes[write.site.node].proto.input[write.op.value]]
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

    def upstream(self, names: Iterable[str]) -> set[str]:
        """The nodes whose outputs go, through whatever, into any of some nodes, and these."""
        found = {name for name in names if name in self.nodes}
        waiting = list(found)
        while waiting:
            for source, _ in self.nodes[waiting.pop()].inputs:
                if source not in found and source in self.nodes:
                    found.add(source)
                    waiting.append(source)
        return found

    @functools.cached_property
    def _users(self) -> Mapping[str, Sequence[str]]:
        """For each node those that wait for it, by data or control."""
        users: dict[str, list[str]] = defaultdict(list)
        for name, node in self.nodes.items():
            for need, _ in node.inputs:
                users[need].append(name)
            for need in node.controls:
                users[need].append(name)
        return users

    @functools.cached_property
    def _uses(self) -> Mapping[str, Sequence[Use | None]]:
        uses: dict[str, list[Use | None]] = defaultdict(list)
        for name, node in self.nodes.items():
            for position, edge in enumerate(node.inputs):
                uses[edge.node].append(Use(name, position))
        for edge in self._results:
            uses[edge.node].append(None)
        return uses

    def uses(self, name: str) -> Sequence[Use | None]:
        """The inputs that the outputs of a node, or an argument, go to; None for a result of the body."""
        return self._uses.get(name, ())

    def dtype(self, tensor: str) -> int | None:
        """The dtype of a tensor, as a number, as far as its node or the body says it."""
        node = self.producer(tensor)
        if node is None:
            return self._types.get(tensor)
        for key in ("Tout", "T") if node.op in CALL_OPS else ():
            types = node.proto.attr[key].list.type if key in node.proto.attr else ()
            index = parse_edge(tensor).index
            if index < len(types):
                return types[index]
        for key in ("DstT", "dtype", "out_type", "T"):
            if key in node.proto.attr and node.proto.attr[key].type:
                return node.proto.attr[key].type
        return None

    def downstream(self, names: Iterable[str], last: str) -> set[str]:
        """The nodes that wait, by data or control, for any of some nodes, and these.

        Args:
            names: the nodes waited for.
            last: the node up to which nodes are looked at, in the order of the body.
        """
        end = self.order(last)
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found and self.order(name) <= end:
                found.add(name)
                waiting.extend(self._users.get(name, ()))
        return found

    def precedes(self, name: str, last: str) -> bool:
        """Whether a node must be done before another, or is it."""
        return last in self.downstream([name], last)

    def between(self, names: Iterable[str], last: str) -> set[str]:
        """The nodes that wait for any of some nodes, and that another waits for; all of these included."""
        after = self.downstream(names, last)
        found: set[str] = set()
        waiting = [last] if last in after else []
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(need for need in self._needs(name) if need in after)
        return found

    def needs(self, name: str) -> list[str]:
        """The nodes that a node waits for, by data or control; arguments are none."""
        return [need for need in self._needs(name) if need not in self._arguments]

    def _needs(self, name: str) -> Iterator[str]:
        node = self.nodes[name]
        yield from (edge.node for edge in node.inputs)
        yield from node.controls


def sinks(flow: Flow, nodes: Iterable[str]) -> list[tuple[Use, str]]:
    """The tensors that the writes of an update write: the gradient of an Apply op, the value of every other."""
    found: list[tuple[Use, str]] = []
    for name in nodes:
        node = flow.nodes[name]
        position = WRITE_OPS[node.op].value
        found.append((Use(name, position), flow.origin(node.proto.input[position])))
    return found


def is_apply(flow: Flow, name: str) -> bool:
    """Whether a write is an Apply op."""
    return WRITE_OPS[flow.nodes[name].op].form is Form.APPLY


class Flows:
    """The flow of data in the bodies of a step that write variables, each read when it is first asked for."""

    def __init__(self, graph: Graph, values: Mapping[Path, BodyValues]) -> None:
        """Remembers the step.

        Args:
            graph: the step.
            values: what is known of the tensors of its bodies, by the calls that lead to each.
        """
        self._graph = graph
        self._values = values
        self._flows: dict[Path, Flow] = {}

    def __contains__(self, path: Path) -> bool:
        """Whether anything is known of the body that some calls lead to: it writes variables."""
        return path in self._values

    def at(self, path: Path) -> Flow:
        """The flow in the body that some calls lead to."""
        if path not in self._flows:
            body = self._graph.body(path[-1].callee.function) if path else self._graph.root
            outside = (self.at(path[:-1]), path[-1]) if path and path[:-1] in self._values else None
            is_kept = functools.partial(self._is_kept_elsewhere, path)
            self._flows[path] = Flow(self._graph, body, self._values[path], outside, is_kept)
        return self._flows[path]

    def _is_kept_elsewhere(self, path: Path, variable: Variable) -> bool:
        here = Site(path, "", "")
        writing = [other for other in self._values if other != path and self.at(other).written(variable)]
        # Where none is seen to, a function writes it that updates nothing, and is not looked at.
        return not writing or any(
            self.at(each).keeps(variable) for each in writing if not here.excludes(Site(each, "", ""))
        )

    def made_of(self, write: Write) -> frozenset[str]:
        """The tensors that what is written is made of, from the gradient on."""
        flow = self.at(write.site.path)
        return flow.made_of(flow.nodes[write.site.node].proto.input[write.op.value])

    def certainly_reads(self, write: Write, variable: Variable) -> bool:
        """Whether what is written is made of what its body reads of a variable."""
        flow = self.at(write.site.path)
        return flow.certainly_reads(flow.nodes[write.site.node].proto.input[write.op.value], variable)

    def reads(self, write: Write, without: Collection[str] = ()) -> frozenset[int]:
        """The variables, by number, that the arithmetic behind a write reads, from the gradient on.

        Args:
            write: the write.
            without: tensors that do not count.
        """
        flow = self.at(write.site.path)
        tensor = flow.nodes[write.site.node].proto.input[write.op.value]
        return flow.reads_behind(flow.origin(tensor), without)
