"""Finds where the gradient enters an optimizer's arithmetic.

A coupled decay is added to the gradient before the optimizer sees it and after clipping, unscaling, and the sum over
accumulated or replicated gradients. An Apply op takes the gradient as an operand. In an update of plain arithmetic it
is the last tensor that all of the gradient goes through and that is not yet mixed with a slot variable, the weight, or
the learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from graphwd.analysis.direct_terms import direct_terms
from graphwd.analysis.flow import Flow, is_apply, sinks
from graphwd.analysis.learning_rate import LearningRate
from graphwd.analysis.readiness import waits_of_read
from graphwd.analysis.values import NO_VARIABLE, Content
from graphwd.errors import UnclearError
from graphwd.graph.body import Node
from graphwd.graph.edge import NO_EDGE, EdgeText, Use, data_input, data_inputs, node_of
from graphwd.graph.graph import Variable
from graphwd.graph.ops import CALL_OPS, WRITE_OPS
from graphwd.graph.traits import PRODUCT_OPS, QUOTIENT_OPS, READ_OPS, SCALING_OPS, SUM_OPS, Trait, ops_with
from graphwd.messages import listed
from graphwd.policy.globs import glob_matches


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a gradient enters an optimizer's arithmetic.

    Attributes:
        tensor: the gradient there, as an edge of the update's body.
        uses: its uses in the arithmetic.
        indices: the row indices of a sparse gradient, as an edge; None for a dense one.
        index_dtype: the dtype of the indices, as a number.
        after: the producer of the gradient there, as a node and its op type; None for the gradient as computed.
        waits: nodes that the weight must be read after.
    """

    tensor: EdgeText
    uses: tuple[Use, ...]
    indices: EdgeText | None = None
    index_dtype: int | None = None
    after: str | None = None
    waits: tuple[str, ...] = ()


_ROWWISE = ops_with(Trait.ROWWISE)
_SUMS = ops_with(Trait.SUM, Trait.CAST)
_RECIPROCALS = ops_with(Trait.RECIPROCAL, Trait.QUOTIENT)
"""Ops that compute the factor of an unscaling; an optimizer's coefficients come from other ops."""

_STATISTICS = ops_with(Trait.STATISTIC)

_PREPARATIONS = SUM_OPS.union(
    CALL_OPS,
    READ_OPS,
    SCALING_OPS,
    ops_with(Trait.PREPARATION, Trait.CAST, Trait.NEGATION, Trait.SELECT, Trait.STATISTIC),
)
"""Ops that sum, unscale, clip, centre, cast or rearrange a gradient; an optimizer uses other ops, too."""

_CALLED_PREPARATIONS = _PREPARATIONS | {"Const"}


class _State(IntEnum):
    """The state of the gradient in a tensor."""

    PURE = 0  # it is gradient alone
    SCALED = 1  # times a coefficient, or bent
    MIXED = 2  # combined with a slot variable, the learning rate or the weight


_DENSE = NO_EDGE
_UNKNOWN = EdgeText("?")


def find_entry(flow: Flow, variable: Variable, writes: Sequence[str], rate: LearningRate | None) -> Entry:
    """Finds where the gradient of an update enters the optimizer's arithmetic.

    Args:
        flow: the body of the update.
        variable: what is updated.
        writes: the names of the update's writes, in order.
        rate: the learning rate of the update; needed unless an Apply op is the whole update, or the gradient goes
            into slot variables before it is combined with anything else.

    Returns:
        The place.

    Raises:
        UnclearError: there is no one tensor that all of the gradient goes through, or it cannot be told whose rows it
            holds.
    """
    if len(writes) == 1 and is_apply(flow, writes[0]):
        ((use, tensor),) = sinks(flow, writes)
        row = WRITE_OPS[flow.nodes[writes[0]].op]
        indices = None if row.rows is None else data_input(flow.nodes[writes[0]].proto, row.rows)
        dtype = None if indices is None else flow.index_dtype(indices)
        waits = waits_of_read(flow, writes[0], [writes[0]])
        return Entry(_guarded(flow, [use]), (use,), indices, dtype, _before(flow, tensor), waits)
    return _Entrance(flow, rate).find(variable, writes)


def named_entry(flow: Flow, variable: Variable, writes: Sequence[str], pattern: str) -> Entry:
    """Finds the place that a rule names as the entry of an update's gradient.

    Args:
        flow: the body of the update.
        variable: what is updated.
        writes: the names of the update's writes, in order.
        pattern: a glob for the node, or the argument of the body, that makes the gradient as the optimizer gets it.

    Returns:
        The place, with all uses of the gradient in the update, those by way of slot variables included.

    Raises:
        UnclearError: no tensor that the update is computed from has that name, or several have.
    """
    matches = _look_for(flow, variable, writes, pattern)
    uses, known = matches.uses, matches.known
    if len(uses) != 1 or len(together := next(iter(uses.values()))) != 1:
        several = listed(dict.fromkeys(node_of(name) for names in uses.values() for name in names), 12)
        what = f"names several tensors: {several}" if uses else "names no gradient that its update is made of"
        raise UnclearError(f"'gradient: {pattern}' {what}; there is {listed(known, 12)}")
    (origin,) = uses
    ((tensor, used),) = together.items()
    if _is_number(flow, variable, origin):
        raise UnclearError(
            f"'gradient: {pattern}' names '{node_of(tensor)}', which is a number; there is {listed(known, 12)}"
        )
    used = [*used, *matches.by_slots.get(origin, ())]
    indices = matches.rows[origin] - {_UNKNOWN}
    if len(indices) != 1:
        raise UnclearError(f"it cannot be told which rows of '{variable.name}' the gradient '{tensor}' is of")
    (which,) = indices
    dtype = flow.index_dtype(which) if which else None
    later = flow.reach.downstream([use.node for use in used], writes[0])
    waits = waits_of_read(flow, writes[0], later)
    return Entry(tensor, tuple(dict.fromkeys(used)), which or None, dtype, None, waits)


@dataclass
class _Named:
    """The tensors in the provenance of an update that match the name of a gradient in a rule.

    Attributes:
        uses: the uses of each match, by its origin and its name.
        by_slots: by origin, the uses that lead into trainable variables that may be slot variables.
        known: the nodes that could have been named.
        rows: by origin, the indices of its rows.
    """

    uses: dict[EdgeText, dict[EdgeText, list[Use]]] = field(default_factory=dict[EdgeText, dict[EdgeText, list[Use]]])
    by_slots: dict[EdgeText, list[Use]] = field(default_factory=dict[EdgeText, list[Use]])
    known: dict[str, None] = field(default_factory=dict[str, None])
    rows: dict[EdgeText, set[EdgeText]] = field(default_factory=dict[EdgeText, set[EdgeText]])


def _look_for(flow: Flow, variable: Variable, writes: Sequence[str], pattern: str) -> _Named:
    matches = _Named()
    waiting = [(*sink, _rows_of(flow, name), False) for sink, name in zip(sinks(flow, writes), writes, strict=True)]
    seen: set[tuple[Use, EdgeText, bool]] = set()
    while waiting:
        use, tensor, indices, by_slot = waiting.pop()
        if (use, indices, by_slot) in seen:
            continue
        seen.add((use, indices, by_slot))
        aliases = [] if _is_new_weight(flow, variable, tensor) else flow.aliases(use)
        if not by_slot and not (len(aliases) == 1 and _is_number(flow, variable, tensor)):
            matches.known.update(dict.fromkeys(map(node_of, aliases)))
        named = next((alias for alias in aliases if glob_matches(node_of(alias), pattern)), None)
        further = [(place, operand, by_slot) for place, operand in flow.behind(tensor)]
        if named is None:
            further += [(place, operand, True) for place, operand in flow.written_before(tensor, variable)]
        else:
            matches.rows.setdefault(tensor, set()).add(indices)
            uses = matches.by_slots if by_slot else matches.uses.setdefault(tensor, {})
            uses.setdefault(tensor if by_slot else named, []).append(use)
        waiting.extend((place, operand, _rows_behind(flow, place, indices), by) for place, operand, by in further)
    return matches


def _is_new_weight(flow: Flow, variable: Variable, tensor: EdgeText) -> bool:
    """Whether a tensor is a sum with the weight, unscaled, as a term, such as its new value: that is no gradient."""
    return direct_terms(flow, variable, tensor).coefficient == 1


def _is_number(flow: Flow, variable: Variable, tensor: EdgeText) -> bool:
    """Whether a tensor is a constant, or a scalar where the weight is not one: such a tensor is no gradient."""
    node = flow.producer(tensor)
    return (node is not None and node.op == "Const") or (variable.rank != 0 and flow.is_scalar(tensor) is True)


def _rows_of(flow: Flow, write: str) -> EdgeText:
    """The indices of the rows that are written; `_DENSE` for a dense write."""
    node = flow.nodes[write]
    rows = WRITE_OPS[node.op].rows
    return _DENSE if rows is None else flow.origin(data_input(node.proto, rows))


def _rows_behind(flow: Flow, use: Use, rows: EdgeText) -> EdgeText:
    """The indices of the rows of an input, given those of the output."""
    node = flow.nodes[use.node]
    if node.op in WRITE_OPS:  # a write to a slot variable
        return _rows_of(flow, use.node)
    if node.op in _ROWWISE:
        return rows
    if node.op == "UnsortedSegmentSum" and rows == _DENSE and use.position == 0:
        return flow.origin(data_input(node.proto, 1))
    return _UNKNOWN


def _guarded(flow: Flow, uses: Sequence[Use]) -> EdgeText:
    """The tensor that a decay joins: after the guards of the gradient."""
    tensor = flow.guarded(uses)
    if tensor is None:
        raise UnclearError(
            "its gradient goes into the optimizer by several ways, one of them through something that may raise; "
            "write 'gradient: GLOB' with the one that it is to join"
        )
    return tensor


def _before(flow: Flow, tensor: EdgeText) -> str | None:
    """The last op on the gradient's way to a tensor: a node and its op type; None for a gradient as computed."""
    node = flow.producer(tensor)
    return None if node is None or flow.is_source(tensor) else f"{node.name} ({node.op})"


class _Entrance:
    """The search through an update of plain arithmetic."""

    def __init__(self, flow: Flow, rate: LearningRate | None) -> None:
        self._flow = flow
        self._rate = None if rate is None else rate.tensor
        self._states: dict[EdgeText, _State] = {}
        self._statistics: dict[EdgeText, bool] = {}
        self._rows: dict[EdgeText, set[EdgeText]] = {}  # for each gradient met, the indices of its rows
        self._uses: dict[EdgeText, list[Use]] = {}
        self._written: set[EdgeText] = set()

    def find(self, variable: Variable, writes: Sequence[str]) -> Entry:
        flow = self._flow
        self._written = {tensor for _, tensor in sinks(flow, writes)}
        frontier = self._frontier(writes)
        while len(frontier) > 1:
            # All of the gradient goes through one tensor further back: go back from the last tensor in the order.
            last = max(frontier, key=flow.order)
            frontier.remove(last)
            if flow.is_source(last):
                places = sorted(node_of(entry) for entry in (last, *frontier))
                raise UnclearError(
                    f"its gradient enters the optimizer's arithmetic at several places ({', '.join(places)}); write a "
                    "decoupled 'semantics'"
                )
            frontier.update(self._step_back(last))
        if not frontier:
            raise UnclearError("it cannot be told where its gradient enters the optimizer's arithmetic")
        (tensor,) = frontier
        self._refuse_begun_outside(tensor)
        uses = tuple(dict.fromkeys(self._uses[tensor]))
        if self._rate is None and not self._is_sum(tensor):
            raise UnclearError("it cannot be told whether its learning rate is in its gradient already")
        if len(first := {self._first(use) for use in uses}) == 1 and (what := first.pop()):
            raise UnclearError(
                f"its gradient '{node_of(tensor)}' is first of all {what}, and it cannot be told whether the optimizer "
                "does that or what comes before it; to unscale a gradient divide it, or write a decoupled 'semantics'"
            )
        rows = self._rows[tensor] - {_UNKNOWN}
        if len(rows) != 1:
            raise UnclearError(f"it cannot be told which rows of '{variable.name}' its gradient is of")
        (indices,) = rows
        later = flow.reach.downstream([use.node for use in uses], writes[0])
        waits = waits_of_read(flow, writes[0], later)
        dtype = flow.index_dtype(indices) if indices else None
        return Entry(_guarded(flow, uses), uses, indices or None, dtype, _before(flow, tensor), waits)

    def _refuse_begun_outside(self, tensor: EdgeText) -> None:
        """Refuses a gradient that the body gets from a caller in which the optimizer may have begun."""
        outside = self._flow.outside(tensor)
        while outside is not None:
            flow, given = outside
            if not _Entrance(flow, None)._is_pure(given):
                raise UnclearError(
                    f"its gradient comes into the function of its update as '{node_of(tensor)}', out of "
                    f"'{node_of(given)}', which does more than to sum, unscale or clip it, so it cannot be told where "
                    "the optimizer begins; write a decoupled 'semantics'"
                )
            outside = flow.outside(given)

    def _frontier(self, writes: Sequence[str]) -> set[EdgeText]:
        """The last tensors before the gradient is mixed with slot variables, the weight or the learning rate."""
        flow = self._flow
        frontier: set[EdgeText] = set()
        waiting: list[tuple[Use, EdgeText, EdgeText]] = []
        for (use, tensor), name in zip(sinks(flow, writes), writes, strict=True):
            waiting.append((use, tensor, _rows_of(flow, name)))
        done: set[tuple[Use, EdgeText]] = set()
        while waiting:
            use, tensor, rows = waiting.pop()
            self._note(use, tensor, rows)
            if self._is_pure(tensor):
                frontier.add(tensor)
            elif (use, rows) not in done:
                done.add((use, rows))
                self._refuse_call(tensor)
                self._refuse_late_scaling(tensor)
                for further, operand in flow.behind(tensor):
                    if self._flow.carries(operand):
                        waiting.append((further, operand, _rows_behind(flow, further, rows)))
        return frontier

    def _refuse_call(self, tensor: EdgeText) -> None:
        """Refuses a called function that transforms a gradient: it may both clip and belong to the optimizer."""
        node = self._flow.producer(tensor)
        if node is None or node.op not in CALL_OPS:
            return
        carried = [operand for _, operand in self._flow.behind(tensor) if self._flow.carries(operand)]
        if any(self._state(operand) is not _State.MIXED for operand in carried):
            raise UnclearError(
                f"its gradient goes through the function that '{node.name}' ({node.op}) calls, and it cannot be told "
                "where in it the optimizer begins; write a decoupled 'semantics'"
            )

    def _refuse_late_scaling(self, tensor: EdgeText) -> None:
        """Refuses to clip a gradient that is already combined with the learning rate or a slot variable."""
        operands = self._operands(tensor)
        scales = [operand for operand in operands if self._is_statistic(operand)]
        early = [scale for scale in scales if self._state(scale) is not _State.MIXED]
        if early and any(
            self._state(operand) is _State.MIXED and not self._is_statistic(operand) for operand in operands
        ):
            raise UnclearError(
                f"its gradient is scaled by '{node_of(early[0])}', which is computed from it, only after the "
                "optimizer's arithmetic began, so a decay would be scaled with it; scale it first, or write a "
                "decoupled 'semantics'"
            )
        either = [scale for scale in scales if self._state(scale) is _State.MIXED and not self._depends_on_rate(scale)]
        if either and any(self._is_pure(operand) and not self._is_statistic(operand) for operand in operands):
            raise UnclearError(
                f"its gradient is scaled by '{node_of(either[0])}', which is computed from it and from the "
                "weight or a slot variable, and it cannot be told whether that clips it or is a part of the optimizer; "
                "write a decoupled 'semantics'"
            )

    def _depends_on_rate(self, tensor: EdgeText) -> bool:
        if self._rate is None:
            return False
        return node_of(self._rate) in self._flow.reach.upstream([node_of(tensor)])

    def _operands(self, tensor: EdgeText) -> list[EdgeText]:
        """The operands of a product or quotient that carry gradient; none of any other op."""
        node = self._flow.producer(tensor)
        if node is None or node.op not in SCALING_OPS or self._flow.is_source(tensor):
            return []
        return [
            operand for operand in map(self._flow.origin, data_inputs(node.proto)[:2]) if self._flow.carries(operand)
        ]

    def _is_statistic(self, tensor: EdgeText) -> bool:
        """Whether all of the gradient in a tensor went through an op that reduces it to a statistic."""
        if tensor not in self._statistics:
            self._statistics[tensor] = False  # where a slot leads back here
            node = self._flow.producer(tensor)
            if node is not None and not self._flow.is_source(tensor) and node.op not in READ_OPS:
                carried = [operand for _, operand in self._flow.behind(tensor) if self._flow.carries(operand)]
                self._statistics[tensor] = bool(carried) and (
                    node.op in _STATISTICS or all(map(self._is_statistic, carried))
                )
        return self._statistics[tensor]

    def _is_sum(self, tensor: EdgeText) -> bool:
        """Whether a tensor is a gradient, or nothing but a sum of gradients."""
        seen: set[EdgeText] = set()
        waiting = [tensor]
        while waiting:
            term = waiting.pop()
            node = self._flow.producer(term)
            if term in seen or node is None or self._flow.is_source(term):
                continue
            if node.op not in _SUMS:
                return False
            seen.add(term)
            waiting.extend(operand for _, operand in self._flow.behind(term))
        return True

    def _step_back(self, tensor: EdgeText) -> Iterator[EdgeText]:
        for use, operand in self._flow.behind(tensor):
            if self._flow.carries(operand):
                for rows in list(self._rows[tensor]):
                    self._note(use, operand, _rows_behind(self._flow, use, rows))
                yield operand

    def _note(self, use: Use, tensor: EdgeText, rows: EdgeText) -> None:
        self._rows.setdefault(tensor, set()).add(rows)
        self._uses.setdefault(tensor, []).append(use)

    def _is_pure(self, tensor: EdgeText) -> bool:
        return self._state(tensor) is _State.PURE

    def _state(self, tensor: EdgeText) -> _State:
        if tensor not in self._states:
            self._states[tensor] = (
                _State.PURE
            )  # where a cycle through a variable that is not a slot variable leads back here
            self._states[tensor] = self._compute_state(tensor)
        return self._states[tensor]

    def _compute_state(self, tensor: EdgeText) -> _State:
        flow = self._flow
        if tensor == self._rate:
            return _State.MIXED
        if flow.is_source(tensor):
            return _State.PURE
        variable = flow.read(tensor)
        if variable is not None and (variable.trainable or flow.is_slot(variable)):
            return _State.MIXED
        node = flow.producer(tensor)
        if node is None or (node.name in flow.forward and not flow.carries(tensor)):
            return _State.PURE if flow.value(tensor).source == NO_VARIABLE else _State.MIXED
        return self._state_of_output(tensor, node)

    def _state_of_output(self, tensor: EdgeText, node: Node) -> _State:
        flow = self._flow
        if node.op in CALL_OPS and flow.value(tensor).source == NO_VARIABLE and not flow.carries(tensor):
            return _State.PURE  # it depends on no weight, whatever the inputs of the call are
        handles = any(flow.value(text).handle != NO_VARIABLE for text in data_inputs(node.proto))
        if node.op in CALL_OPS and handles and flow.value(tensor).from_gradient:
            return _State.MIXED  # its reads inside are not followed
        carried = [operand for _, operand in flow.behind(tensor) if flow.carries(operand)]
        whole = [operand for operand in carried if not self._is_statistic(operand)]
        states = {operand: self._state(operand) for _, operand in flow.behind(tensor)}
        if self._is_regularized(tensor, node, carried, states):
            return _State.PURE
        if _State.MIXED in states.values():
            return _State.MIXED
        if whole and len(whole) < len(carried):
            # Clipping, centring: the scale of the statistics does not matter.
            if node.op in QUOTIENT_OPS and flow.origin(data_input(node.proto, 0)) in whole:
                return _State.PURE  # clipping by norm: a common factor of both sides cancels
            return max(states[operand] for operand in whole)
        if carried and (node.op == "Neg" or self._coefficient(node) is not None or self._is_curved(node)):
            return _State.SCALED
        return max(states.values(), default=_State.PURE)

    def _is_regularized(
        self, tensor: EdgeText, node: Node, carried: Sequence[EdgeText], states: Mapping[EdgeText, _State]
    ) -> bool:
        """Whether a tensor is a gradient plus a multiple of the weight, such as the gradient of a loss with a penalty.

        It counts as a gradient: later ops may still clip or mask it.
        """
        others = states.keys() - set(carried)
        return (
            node.op in _SUMS
            and tensor not in self._written
            and bool(carried and others)
            and all(states[operand] is _State.PURE for operand in carried)
            and all(self._flow.value(operand).content is Content.LINEAR for operand in others)
        )

    def _is_curved(self, node: Node) -> bool:
        """Whether a node does anything to a gradient but sum, unscale, clip, centre, cast or rearrange it."""
        if node.op in QUOTIENT_OPS and not self._flow.carries(self._flow.origin(data_input(node.proto, 1))):
            return False
        product = node.op in PRODUCT_OPS and all(
            self._flow.carries(self._flow.origin(x)) for x in data_inputs(node.proto)[:2]
        )
        return product or node.op not in _PREPARATIONS or self._flow.calls_more_than(node, _CALLED_PREPARATIONS)

    def _first(self, use: Use) -> str | None:
        """Describes an op on a gradient that may belong to the optimizer or come before it; None for any other op."""
        node = self._flow.nodes[use.node]
        if coefficient := self._coefficient(node):
            return None if self._is_of_rate(coefficient) else f"multiplied by '{node_of(coefficient)}'"
        if node.op == "Neg" or node.op in WRITE_OPS:
            return None
        output = next((tensor for tensor in self._uses if self._flow.producer(tensor) == node), None)
        bent = output is not None and self._state(output) is _State.SCALED
        return f"put through '{node.name}' ({node.op})" if bent or self._is_curved(node) else None

    def _is_of_rate(self, tensor: EdgeText) -> bool:
        """Whether a coefficient is computed from the learning rate."""
        return self._rate is not None and self._state(tensor) is _State.MIXED

    def _coefficient(self, node: Node) -> EdgeText | None:
        """The factor of a gradient in a product, where it depends on no gradient and is not a reciprocal."""
        if node.op not in PRODUCT_OPS:
            return None
        flow = self._flow
        factors = [flow.origin(text) for text in data_inputs(node.proto)[:2] if not flow.carries(flow.origin(text))]
        if len(factors) != 1:
            return None
        producer = flow.producer(factors[0])
        return None if producer is not None and producer.op in _RECIPROCALS else factors[0]
