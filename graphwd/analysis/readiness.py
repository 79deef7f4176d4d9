"""Finds when an update is ready to run, and which of its nodes read the weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphwd.analysis.flow import Flow, sinks
from graphwd.analysis.values import MANY, NO_VARIABLE
from graphwd.errors import UnclearError
from graphwd.graph.edge import EdgeText, Use, control_edge, data_input, data_inputs, node_of
from graphwd.graph.graph import Variable
from graphwd.graph.ops import CALL_OPS, WRITE_OPS
from graphwd.graph.traits import ALIAS_OPS, SCALING_OPS, SHAPE_OPS, SUM_OPS, Trait, ops_with


@dataclass(frozen=True, slots=True)
class Readiness:
    """When an update is ready to run, and where its arithmetic reads the weight.

    Attributes:
        waits: the nodes to wait for: every read of the forward pass and the gradient precedes one of them.
        rereads: reads of the weight that belong to the update, each with its uses.
        followers: the first nodes of the update's arithmetic that wait for the decay.
    """

    waits: tuple[str, ...]
    rereads: tuple[tuple[str, tuple[Use, ...]], ...] = ()
    followers: tuple[str, ...] = ()


_ARITHMETIC = ops_with(Trait.ROWWISE, Trait.FUSIBLE) - SHAPE_OPS
"""Ops that compute an element, or a row, from the same of their inputs, and keep nothing."""

_SUMS = ops_with(Trait.SUM)


def when_ready(flow: Flow, write: str) -> Readiness:
    """Finds what a decay right before a write waits for: the nodes that the write waits for.

    And no earlier ones, from which these are computed: Grappler's constant folding pushes constants down a chain of
    products, so that a node inside of it may become a product of constants, which waits for no gradient.

    Args:
        flow: the body of the write.
        write: its name.
    """
    return Readiness(in_order(flow, _awaited(flow, write)))


def ahead_of_arithmetic(flow: Flow, write: str, variable: Variable, reads: Iterable[EdgeText]) -> Readiness:
    """Finds what a decay before a write waits for, and which of the update's arithmetic waits for the decay.

    Else TensorFlow may compute the updates of many variables before it decays the first of them, and keep them all
    meanwhile. The arithmetic sees no decayed weight: all that it is computed from was read before.

    Args:
        flow: the body of the write.
        write: its name; it adds to the variable.
        variable: what it writes, no v1 reference.
        reads: the edges that the decay is computed from.

    Returns:
        What the decay waits for, and which nodes wait for it.
    """
    kept = set(map(node_of, reads))  # what only these are computed from is then not for the update alone
    arithmetic = _last_arithmetic(flow, write, variable, kept)
    while moved := {name for name in arithmetic if not _keeps_operands(flow, name, arithmetic)}:
        kept |= moved
        arithmetic = _last_arithmetic(flow, write, variable, kept)
    needs = {name: _awaited(flow, name) for name in (write, *arithmetic)}
    waits = [need for name in needs for need in needs[name] if need not in arithmetic]
    followers = [name for name in arithmetic if arithmetic.isdisjoint(needs[name])]
    return Readiness(in_order(flow, waits), followers=in_order(flow, followers))


def _awaited(flow: Flow, name: str) -> list[str]:
    """The nodes that a node waits for, but no constants that wait for nothing themselves."""
    needs = ((need, flow.nodes[need]) for need in flow.reach.needs(name))
    return [need for need, node in needs if node.op != "Const" or node.controls]


def _last_arithmetic(flow: Flow, write: str, variable: Variable, kept: Collection[str]) -> set[str]:
    """The nodes that compute what a write takes from the gradient, and that nothing else waits for.

    Args:
        flow: the body.
        write: the write.
        variable: what it writes.
        kept: nodes that are not to wait.
    """
    arithmetic: set[str] = set()
    if flow.is_fetched:  # who asks for one of these nodes does not ask for a decay
        return arithmetic
    proto = flow.nodes[write].proto
    waiting = [data_input(proto, WRITE_OPS[proto.op].value)]
    while waiting:
        tensor = waiting.pop()
        node = flow.producer(tensor)
        if node is None or node.op not in _ARITHMETIC or node.name in arithmetic or node.name in kept:
            continue
        if node.proto.device != proto.device or flow.is_source(tensor) or not flow.carries(tensor):
            continue
        operands = data_inputs(node.proto)
        if any(flow.read(operand) == variable or flow.value(operand).handle != NO_VARIABLE for operand in operands):
            continue  # the decay could not be done in place while a read is kept; nor may a v1 reference be read later
        if flow.reach.is_only_for(node.name, {write, *arithmetic}):
            arithmetic.add(node.name)
            waiting.extend(operands)
    return arithmetic


def _keeps_operands(flow: Flow, name: str, arithmetic: Collection[str]) -> bool:
    """Whether Grappler computes the operands of a node from what they are computed from in the graph.

    Its constant folding makes ``(c * d) * x`` of ``c * (d * x)``, and ``d * x``, which a decay may wait for, no longer
    waits for ``x``. For that one operand has to be a constant, or to become one, and the other a node of the same kind:
    sums and differences are one kind, products and quotients the other. A variable that is read is neither.

    Args:
        flow: the body.
        name: the node.
        arithmetic: the nodes that wait for the decay, so that it waits for none of them.
    """
    node = flow.nodes[name]
    operands = data_inputs(node.proto)
    if len(operands) == 1 or (len(operands) == 2 and any(_is_of_variable(flow, each) for each in operands)):
        return True
    # The sum itself has a read of a variable for an operand, or it would not be in the arithmetic, and is no constant.
    producers = [flow.nodes[node_of(each)] for each in operands if node_of(each) in arithmetic]
    return node.op in SCALING_OPS and len(producers) == 2 and any(each.op in _SUMS for each in producers)


def _is_of_variable(flow: Flow, tensor: EdgeText) -> bool:
    """Whether a tensor is read from a variable, or computed from one that is read by ops of one operand."""
    while (node := flow.producer(tensor)) is not None:
        if flow.read_by(node) is not None:
            return True
        operands = data_inputs(node.proto)
        if node.op not in _ARITHMETIC or len(operands) != 1:
            return False
        (tensor,) = operands
    return False


def find_readiness(flow: Flow, variable: Variable, writes: Sequence[str], others: Collection[str] = ()) -> Readiness:
    """Finds which nodes must run before the weight may be decayed ahead of an update.

    Args:
        flow: the body of the update.
        variable: what is updated.
        writes: the names of the update's writes, in order.
        others: the nodes of the body that write the variable and do not belong to the update.

    Returns:
        The nodes to wait for, so that every read of the forward pass and the gradient comes first. Reads of the weight
        by the optimizer's own arithmetic come later, and see the decayed weight.

    Raises:
        UnclearError: the arithmetic reads the weight in a place that cannot be made to read it later.
    """
    rereads: dict[str, list[Use]] = {}
    seen: set[EdgeText] = set()
    met: set[Use] = set()
    waiting = sinks(flow, writes)
    while waiting:
        use, tensor = waiting.pop()
        met.add(use)
        if flow.read(tensor) == variable:
            rereads.setdefault(node_of(tensor), []).append(use)
            continue
        node = flow.producer(tensor)
        if node is None and flow.value(tensor).source == variable.id:
            raise UnclearError("its update reads the weight outside the function that makes the update")
        if tensor in seen or node is None or flow.is_source(tensor):
            continue
        if node.name in flow.forward:
            value = flow.value(tensor)
            if value.source == variable.id and not value.taint:
                raise UnclearError(
                    f"its update uses '{node.name}', which the forward pass computes of the weight, so that it would "
                    "not see the decay; compute it anew for the update, or write 'order: after'"
                )
            continue
        seen.add(tensor)
        own = flow.value(tensor).source in (variable.id, MANY)  # else it is the gradient that is computed there
        if (
            own
            and node.op in CALL_OPS
            and any(flow.value(text).handle == variable.id for text in data_inputs(node.proto))
        ):
            raise UnclearError(f"its update reads the weight inside a function that '{node.name}' calls")
        waiting.extend(flow.behind(tensor))
    first = writes[0]
    if len(writes) > 1:
        # A read that comes after the first write of the update sees the decayed weight as it is.
        rereads = {name: uses for name, uses in rereads.items() if flow.reach.precedes(name, first)}
    _refuse_older_reads(flow, rereads, first, others)
    _refuse_shared(flow, rereads, met)
    reading = {first, *flow.reach.between([use.node for uses in rereads.values() for use in uses], first)}
    # The reads themselves, too: their other uses, such as an output of the step, must not see the decay.
    needed = [*rereads, *(need for name in reading for need in _awaited(flow, name))]
    waits = [need for need in needed if need not in reading]
    return Readiness(in_order(flow, waits), tuple((name, tuple(dict.fromkeys(uses))) for name, uses in rereads.items()))


def _refuse_shared(flow: Flow, reads: Mapping[str, Iterable[Use]], own: Collection[Use]) -> None:
    """Refuses an update if another node uses a tensor that it computes from the weight, and so would see the decay."""
    waiting = [use.node for uses in reads.values() for use in uses]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or flow.nodes[name].op in WRITE_OPS:
            continue
        seen.add(name)
        for use in flow.reach.uses(name):
            if use is None or not (use in own or flow.nodes[use.node].op in ALIAS_OPS):
                where = "the function gives it out" if use is None else f"'{use.node}' takes it, too"
                raise UnclearError(
                    f"its update computes '{name}' of the weight, and {where}, which would see the decay; write "
                    "'order: after'"
                )
            waiting.append(use.node)


def _refuse_older_reads(flow: Flow, reads: Iterable[str], first: str, others: Collection[str]) -> None:
    """Refuses an update that reads the weight before another write of the same step."""
    reach = flow.reach
    for name in reads:
        if between := [other for other in others if reach.precedes(name, other) and reach.precedes(other, first)]:
            raise UnclearError(
                f"its update starts from what the weight was before '{between[0]}' wrote it, so a decay right before "
                "the update would be of something else; write 'order: after'"
            )


def refuse_forward_reads(flow: Flow, variable: Variable, writes: Sequence[str]) -> None:
    """Refuses an update that changes the gradient by the weight as the forward pass has read it.

    The gradient of a ``tf.custom_gradient``, which lies in no gradient scope, does so. It must be computed at the
    undecayed weight, before any decay joins it. An optimizer's arithmetic that shares that read looks the same.

    Args:
        flow: the body of the update.
        variable: what is updated.
        writes: the names of the update's writes, in order.

    Raises:
        UnclearError: the update does so.
    """
    # A tensor that the gradient is merely added to or subtracted from is not part of a gradient.
    waiting = [(tensor, True) for _, tensor in sinks(flow, writes)]
    seen: set[tuple[EdgeText, bool]] = set()
    while waiting:
        tensor, summed = waiting.pop()
        node = flow.producer(tensor)
        if (tensor, summed) in seen or node is None or flow.is_source(tensor):
            continue
        seen.add((tensor, summed))
        if flow.carries(tensor):
            summed = summed and node.op in SUM_OPS
            waiting.extend((operand, summed) for _, operand in flow.behind(tensor))
        elif not summed and (read := _forward_read(flow, variable, tensor)):
            raise UnclearError(
                f"its update bends the gradient by '{node.name}', made of the weight as the forward pass read it at "
                f"'{read}'; it cannot be told whether that is the gradient of a tf.custom_gradient or the optimizer's "
                "arithmetic; for the latter, read the weight anew; else write 'mode: decoupled' and 'order: after'"
            )


def _forward_read(flow: Flow, variable: Variable, tensor: EdgeText) -> str | None:
    """The forward pass' read of a variable that a tensor is computed from; None where there is none."""
    if flow.value(tensor).source not in (variable.id, MANY):
        return None
    for name in flow.reach.upstream([node_of(tensor)]) & flow.forward:
        if flow.read_by(flow.nodes[name]) == variable:
            return name
    return None


def in_order(flow: Flow, names: Sequence[str]) -> tuple[str, ...]:
    """Sorts nodes into an order in which they may run, without duplicates."""
    return tuple(sorted(set(names), key=flow.reach.place))


def waits_of_read(flow: Flow, write: str, later: Collection[str]) -> tuple[str, ...]:
    """Finds what a read of the weight ahead of a write waits for: the write's control inputs that do not come later."""
    return in_order(
        flow, [need for need in flow.reach.needs(write) if need not in later and _is_controlling(flow, write, need)]
    )


def _is_controlling(flow: Flow, write: str, need: str) -> bool:
    return control_edge(need) in flow.nodes[write].proto.input
