"""Finds the learning rate that an update really uses, schedules and warm-up included.

In this order: the tensor that the rule names; the operand of an Apply op; a scalar variable called ``learning_rate``
that the update depends on; the output of one of Keras' schedules, told by its name scope; the one factor of the whole
update, where there is exactly one and no part of it can be taken for something else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from graphwd.analysis.factors import Factors, Sign, number, tensors_of
from graphwd.analysis.flow import Flow, sinks
from graphwd.analysis.values import Content
from graphwd.errors import UnclearError
from graphwd.graph.body import Node
from graphwd.graph.edge import NO_EDGE, EdgeText, Use, data_input, data_inputs, node_of
from graphwd.graph.graph import DTYPE_NAMES
from graphwd.graph.ops import WRITE_OPS, Form
from graphwd.graph.traits import LINEAR_OPS, PRODUCT_OPS, QUOTIENT_OPS, READ_OPS, SCALING_OPS, SUM_OPS, Trait, ops_with
from graphwd.messages import listed
from graphwd.policy.globs import glob_matches


@dataclass(frozen=True, slots=True)
class LearningRate:
    """The learning rate that an update uses.

    Attributes:
        name: the name that a user knows: of a variable, an argument, a node, or the number itself.
        tensor: the tensor, a scalar, as an edge of the update's body.
        dtype: the dtype of the tensor.
        number: its value, where it is a constant of the graph.
        certain: whether it is one number for certain; else the step has to see to that as it runs.
    """

    name: str
    tensor: EdgeText
    dtype: str
    number: float | None = None
    certain: bool = True


_NAMED = re.compile(r"(?:^|/|_)learning_rate(?:_\d+)?$")

_SCHEDULES = re.compile(
    r"^(?P<scope>(?:.*?/)?(?:CosineDecay|CosineDecayRestarts|ExponentialDecay|InverseTimeDecay|PiecewiseConstant"
    r"|PiecewiseConstantDecay|PolynomialDecay|SGDRDecay)(?:_\d+)?)/"
)
"""The name scopes that the schedules of Keras 3 and tf_keras open."""

_DECAY_HYPERPARAMETER = re.compile(r"(?:^|/)decay(?:_\d+)?$")
"""tf_keras legacy optimizers divide their learning rate by 1 + decay * iterations, in place."""

_POSITIVE = ops_with(Trait.POSITIVE)
_OF_CONSTANTS = _POSITIVE | ops_with(Trait.CAST) | {"Const"}
_PROPORTIONAL = LINEAR_OPS | SCALING_OPS
_OF_PARTS = _PROPORTIONAL | SUM_OPS | READ_OPS
_SIGNED = ops_with(Trait.NEGATION, Trait.CAST)
_RECIPROCALS = ops_with(Trait.RECIPROCAL)

_POWER = re.compile(r"(?:^|/|_)beta_?\d?_power(?:_\d+)?$")
"""The variables in which v1 optimizers keep the powers that Adam's bias correction needs."""


def find_learning_rate(
    flow: Flow, writes: Sequence[str], asked: str | None = None, *, exact: bool = True
) -> LearningRate:
    """Finds the learning rate of an update.

    Args:
        flow: the body of the update.
        writes: the names of its writes.
        asked: the name of a variable or node, where a rule gives one.
        exact: whether it must be the very number that the update uses; otherwise it may be one of its operands.

    Returns:
        The learning rate.

    Raises:
        UnclearError: none is found, or several could be it; the message lists the candidates.
    """
    search = _Search(flow, writes)
    if asked is not None:
        return search.asked(asked)
    for name in writes:
        position = WRITE_OPS[flow.nodes[name].op].learning_rate
        if position is not None:
            return search.of(flow.origin(data_input(flow.nodes[name].proto, position)))
    candidates = search.named or search.scheduled
    if len(candidates) == 1 and not (search.named and search.scheduled) and not search.divided:
        search.refuse_unless_used_as_it_is(candidates[0], exact=exact)
        return search.of(candidates[0])
    if not search.named and not search.scheduled and (common := search.common()):
        return common
    raise UnclearError(f"its learning rate is not found; write 'learning_rate: NAME' with {search.candidates()}")


class _Search:
    """The candidates for the learning rate in an update's arithmetic."""

    def __init__(self, flow: Flow, writes: Sequence[str]) -> None:
        self._flow = flow
        self._sinks = sinks(flow, writes)
        self._writes = writes
        self._scalars: dict[str, EdgeText] = {}  # by variable, or by tensor for any other tensor
        self._users: dict[str, dict[Use, EdgeText]] = {}  # by node, its uses, each with the tensor that is used
        self._provenance: dict[EdgeText, None] = {}
        named: dict[int, EdgeText] = {}
        scheduled: dict[EdgeText, None] = {}
        self.divided = False
        self._factors = Factors(flow, [tensor for _, tensor in self._sinks])
        seen: set[EdgeText] = set()
        waiting = list(reversed(self._sinks))
        while waiting:
            use, tensor = waiting.pop()
            self._users.setdefault(node_of(tensor), {})[use] = tensor
            self._provenance[tensor] = None
            if self._scope_left(use, tensor):
                scheduled[tensor] = None
                self._scalars.setdefault(tensor, tensor)
                continue
            if tensor in seen or flow.is_source(tensor):
                continue
            seen.add(tensor)
            variable = flow.content_of(tensor)
            if variable is not None and variable.trainable and variable.rank != 0:
                continue
            if variable is not None and variable.rank == 0 and "float" in variable.dtype:
                self._scalars.setdefault(f"variable {variable.id}", tensor)
                self.divided = self.divided or _DECAY_HYPERPARAMETER.search(variable.name) is not None
                if _NAMED.search(variable.name):
                    named.setdefault(variable.id, tensor)
                    continue  # its content includes what is written to it, as tf_keras does with a schedule
            waiting.extend(flow.behind(tensor))
        self.named = tuple(named.values())
        self.scheduled = tuple(scheduled)

    def _scope_left(self, use: Use, tensor: EdgeText) -> bool:
        """Whether a use of a tensor lies outside the schedule's name scope that the tensor comes from."""
        match = _SCHEDULES.match(node_of(tensor))
        if match is None or use.node.startswith(f"{match['scope']}/") or self._is_constant(tensor):
            return False
        return self._may_be_number(tensor) and not self._flow.carries(tensor)

    def _is_constant(self, tensor: EdgeText) -> bool:
        node = self._flow.producer(tensor)
        return node is not None and node.op == "Const"

    def asked(self, pattern: str) -> LearningRate:
        """The learning rate that a rule names.

        It may be a variable, an argument of the step, or a node, in the body of the update or where that is called.
        """
        candidates: dict[str, EdgeText] = {}
        for tensor, names in self._tensors():
            if any(glob_matches(name, pattern) for name in names):
                variable = self._flow.content_of(tensor)
                candidates.setdefault(tensor if variable is None else f"variable {variable.id}", tensor)
        if len(candidates) > 1:
            candidates = self._narrowed(candidates)
        if len(candidates) > 1:
            places = listed(map(node_of, candidates.values()), 8)
            raise UnclearError(
                f"'learning_rate: {pattern}' names several things that the update could use: {places}; write one of "
                "these nodes"
            )
        if not candidates:
            raise UnclearError(
                f"'learning_rate: {pattern}' names nothing that is read where the update is made; there is "
                f"{self.candidates()}"
            )
        (tensor,) = candidates.values()
        node = self._flow.producer(tensor)
        if node is not None and node.op == "Neg":
            tensor = self._flow.origin(data_input(node.proto, 0))
        self._refuse_what_is_none(tensor, pattern)
        return self.of(tensor)

    def _narrowed(self, candidates: dict[str, EdgeText]) -> dict[str, EdgeText]:
        """The candidates that this very update depends on; only one where all are the same number.

        A body that updates a variable several times has a learning rate for each of these updates.
        """
        mine = {key: tensor for key, tensor in candidates.items() if tensor in self._provenance} or candidates
        values = {number(self._flow.producer(tensor)) for tensor in mine.values()}
        if len(values) == 1 and None not in values:
            return dict([next(iter(mine.items()))])
        return mine

    def _refuse_what_is_none(self, tensor: EdgeText, pattern: str) -> None:
        """Refuses a tensor that is no learning rate: one that is not a number, or no factor of the whole update."""
        if not self._may_be_number(tensor):
            raise UnclearError(
                f"'learning_rate: {pattern}' names '{node_of(tensor)}', which is not known to be one number, or is one "
                f"times the gradient; there is {self.candidates()}"
            )
        if self._holds_gradient(tensor):
            raise UnclearError(
                f"'learning_rate: {pattern}' names '{node_of(tensor)}', which is all that the update is made of, its "
                f"gradient included; there is {self.candidates()}"
            )
        if self._divides(tensor):
            raise UnclearError(
                f"'learning_rate: {pattern}' names '{node_of(tensor)}', by which the update is divided; multiply by a "
                "tensor that is one over that, and name it"
            )
        ends = {use.node for use in self._users.get(node_of(tensor), {})}
        writes = set(self._writes) | {use.node for use, _ in self._sinks}
        if not ends and not writes & self._flow.reach.downstream([node_of(tensor)], self._writes[-1]):
            raise UnclearError(f"'learning_rate: {pattern}' names '{node_of(tensor)}', which the update does not use")
        factors = tensors_of(self._factors.of_update())
        constant = self._is_constant(tensor)
        if constant and factors and node_of(tensor) not in self._flow.reach.upstream(map(node_of, factors)):
            raise UnclearError(
                f"'learning_rate: {pattern}' names '{node_of(tensor)}', which is not a factor of the whole update; "
                f"there is {self.candidates()}"
            )

    def _holds_gradient(self, tensor: EdgeText) -> bool:
        """Whether the gradient must be in a tensor.

        It must where the tensor depends on data, and the rest of the update is numbers and the weight. A gradient
        that the step is given is known by nothing else, where the weight is one number.
        """
        flow, seen = self._flow, {tensor}
        if not flow.value(tensor).taint:
            return False
        waiting = [written for _, written in self._sinks]
        while waiting:
            part = waiting.pop()
            if part in seen or flow.value(part).content is Content.EXACT:
                continue
            seen.add(part)
            behind = [] if flow.is_source(part) else [operand for _, operand in flow.behind(part)]
            if not behind and (flow.carries(part) or flow.value(part).taint or not self._may_be_number(part)):
                return False
            waiting.extend(behind)
        return True

    def _divides(self, tensor: EdgeText) -> bool:
        """Whether all that the update does with a tensor is to divide by it."""
        uses = self._users.get(node_of(tensor), {})
        return bool(uses) and all(
            (op := self._flow.nodes[use.node].op) in _RECIPROCALS or (op in QUOTIENT_OPS and use.position == 1)
            for use in uses
        )

    def _may_be_factor(self, tensor: EdgeText) -> bool:
        """Whether a tensor is offered as the learning rate."""
        return self._may_be_number(tensor) and not self._divides(tensor) and not self._holds_gradient(tensor)

    def _may_be_number(self, tensor: EdgeText) -> bool:
        """Whether a tensor may be a scalar. For a tensor that depends on data, that must be certain."""
        scalar = self._flow.is_scalar(tensor)
        return scalar is True or (scalar is None and not self._flow.value(tensor).taint)

    def _tensors(self) -> Iterator[tuple[EdgeText, list[str]]]:
        """Every tensor that could be a learning rate, with its names.

        Gradients are left out, and so are tensors that depend on a weight, but not a learned scalar.
        """
        for tensor in self._scalars.values():
            yield tensor, self._flow.names(tensor)
        for node in self._flow.nodes.values():
            for position, tensor in self._flow.inputs(node):
                value = self._flow.value(tensor)
                variable = self._flow.content_of(tensor)
                learned = variable is not None and variable.rank == 0
                if not value.from_gradient and (learned or value.content is Content.NONE):
                    *aliases, origin = self._flow.aliases(Use(node.name, position))
                    yield origin, [*map(node_of, aliases), *self._flow.names(origin)]

    def of(self, tensor: EdgeText) -> LearningRate:
        """A tensor as a learning rate."""
        value = number(self._flow.producer(tensor))
        dtype = DTYPE_NAMES.get(self._flow.dtype(tensor) or 0)
        if dtype is None:
            raise UnclearError(f"the learning rate '{self.name(tensor)}' is not of a dtype that can be multiplied")
        if value is not None:
            return LearningRate(f"{abs(value):g}", tensor, dtype, abs(value))
        return LearningRate(self.name(tensor), tensor, dtype, certain=self._flow.is_scalar(tensor) is True)

    def name(self, tensor: EdgeText) -> str:
        """The name of a tensor that a user knows."""
        return self._flow.names(tensor)[-1]

    def refuse_unless_used_as_it_is(self, tensor: EdgeText, *, exact: bool) -> None:
        """Refuses a learning rate that has the right name but is not the factor of the gradient.

        Args:
            tensor: the learning rate.
            exact: whether it must be the very number that the update uses.
        """
        name = self.name(tensor)
        if exact and (changed := self.changed(tensor)):
            last = node_of(changed)
            if self._flow.carries(changed):
                raise UnclearError(
                    f"its learning rate '{name}' is not all that its gradient is multiplied by: '{last}' changes it "
                    f"further; make that a part of the learning rate, or write 'learning_rate: {name}'"
                )
            then = "" if self._holds_gradient(changed) else f"'learning_rate: {last}' for what it then is, or "
            raise UnclearError(
                f"its learning rate '{name}' is changed before it meets the gradient; write {then}"
                f"'learning_rate: {name}'"
            )
        factors = set(map(node_of, tensors_of(self._factors.of_update())))
        if exact and factors and node_of(tensor) not in self._flow.reach.upstream(factors) | factors:
            raise UnclearError(
                f"what is called '{name}' is not a factor of the whole update; write 'learning_rate: NAME' with "
                f"{self.candidates()}"
            )

    def changed(self, tensor: EdgeText) -> EdgeText | None:
        """The changed learning rate, where it changes before it meets the gradient or right after; else None.

        Adam's bias correction and a factor computed from the weight, such as a trust ratio, do not count.
        """
        variable = self._flow.content_of(tensor)
        same = [read for read in self._provenance if variable is not None and self._flow.content_of(read) == variable]
        rates = same or [tensor]
        waiting: list[tuple[EdgeText, EdgeText | None]] = [(rate, None) for rate in rates]
        seen = set(waiting)
        met: dict[Use, EdgeText | None] = {}  # the uses where it meets the gradient, and what has changed it by then
        while waiting:
            tensor, changed = waiting.pop()
            for user in self._users[node_of(tensor)]:
                outputs = self._users.get(user.node, {})
                if any(map(self._meets, outputs.values())) or user.node in self._writes:
                    met[user] = changed or self._changed_later(user.node)
                    continue
                for output in outputs.values():
                    further = (output, changed if self._keeps(user) else output)
                    if further not in seen:
                        seen.add(further)
                        waiting.append(further)
        if len(met) > 1:
            for user in met:
                if self._multiplies_itself(user, rates):
                    return next(iter(self._users[user.node].values()))
        return None if None in met.values() else next(reversed(met.values()), None)

    def _meets(self, tensor: EdgeText) -> bool:
        """Whether a tensor depends on a gradient, or on data and is certainly not a scalar."""
        flow = self._flow
        return flow.carries(tensor) or (flow.value(tensor).taint != 0 and flow.is_scalar(tensor) is False)

    def _changed_later(self, node: str) -> EdgeText | None:
        """The tensor after a later factor or divisor of learning rate times gradient; None where there is none."""
        while len(users := self._users.get(node, {})) == 1:
            ((user, tensor),) = users.items()
            proto = self._flow.nodes[user.node]
            others = [
                self._flow.origin(operand)
                for position, operand in self._flow.inputs(proto)
                if position != user.position
            ]
            if proto.op in SCALING_OPS and not self._flow.carries(others[0]):
                value = number(self._flow.producer(others[0]))
                if self._flow.value(others[0]).content is Content.NONE and (value is None or abs(value) != 1):
                    return next(iter(self._users.get(user.node, {}).values()), tensor)
            elif proto.op not in _PROPORTIONAL:
                return None
            node = user.node
        return None

    def _multiplies_itself(self, use: Use, rates: Collection[EdgeText]) -> bool:
        """Whether what a use multiplies by the learning rate, such as a velocity, is a multiple of it already.

        Args:
            use: a use of the learning rate.
            rates: the tensors that hold the learning rate.
        """
        flow = self._flow
        node = flow.nodes[use.node]
        if node.op not in PRODUCT_OPS:
            return False
        waiting = [flow.origin(operand) for position, operand in flow.inputs(node) if position != use.position]
        seen: set[EdgeText] = set()
        while waiting:
            tensor = waiting.pop()
            node = flow.producer(tensor)
            if tensor in seen or node is None or node.op not in _OF_PARTS or flow.is_source(tensor):
                continue
            seen.add(tensor)
            behind = [operand for _, operand in flow.behind(tensor)]
            if node.op in PRODUCT_OPS and not set(behind).isdisjoint(rates):
                return True
            waiting.extend(behind)
        return False

    def _keeps(self, use: Use) -> bool:
        """Whether the output of a node still counts as the learning rate, for weight decay."""
        node = self._flow.nodes[use.node]
        if node.op in WRITE_OPS or node.op in LINEAR_OPS:
            return True
        others = [
            self._flow.origin(operand) for position, operand in self._flow.inputs(node) if position != use.position
        ]
        if node.op not in SCALING_OPS or len(others) != 1:
            return False
        (other,) = others
        if self._flow.value(other).content is not Content.NONE:
            return True
        if node.op in QUOTIENT_OPS:
            return use.position == 0 and self._is_bias_correction(self._flow.producer(other))
        return self._is_adam_factor(self._flow.producer(other))

    def _is_adam_factor(self, node: Node | None) -> bool:
        """Whether a node computes the root of a bias correction, divided by another bias correction or not."""
        if node is None or node.op not in ("Sqrt", *QUOTIENT_OPS):
            return False
        producers = [self._flow.producer(self._flow.origin(operand)) for _, operand in self._flow.inputs(node)]
        if node.op == "Sqrt":
            return self._is_bias_correction(producers[0])
        return self._is_adam_factor(producers[0]) and self._is_bias_correction(producers[1])

    def _is_bias_correction(self, node: Node | None) -> bool:
        """Whether a node computes 1 - beta ** step."""
        if node is None or node.op != "Sub":
            return False
        one, power = (self._flow.origin(operand) for operand in data_inputs(node.proto)[:2])
        producer, variable = self._flow.producer(power), self._flow.read(power)
        is_power = (
            _POWER.search(variable.name) is not None if variable else producer is not None and producer.op == "Pow"
        )
        return is_power and number(self._flow.producer(one)) == 1

    def candidates(self, most: int = 8) -> str:
        """The scalars that flow into the update, for a message."""
        self._factors.of_update()
        tensors = [*self._scalars.values(), *map(self._uncorrected, self._factors.uses)]
        numbers = filter(self._may_be_factor, tensors)
        names = {self.name(tensor): number(self._flow.producer(tensor)) for tensor in numbers}
        if not names:
            return "the variable or node that holds it (nothing here looks like one)"
        values = {name: f"{value:g}" for name, value in names.items() if value is not None}
        return ("one of " if len(names) > 1 else "") + listed(names, most, values)

    def common(self) -> LearningRate | None:
        """The one factor of the whole update; None where there is none, or more than one."""
        factors = self._factors.of_update()
        # A rate of the wrong sign would make weights grow: the update must be seen to go against the gradient.
        descending = Sign.PLUS if WRITE_OPS[self._flow.nodes[self._writes[-1]].op].form is Form.SUB else Sign.MINUS
        if len(factors) != 2 or descending not in factors:
            return None
        (factor,) = tensors_of(factors)
        tensor = self._uncorrected(factor)
        return self.of(tensor) if self._is_plain(tensor) else None

    def _is_plain(self, tensor: EdgeText) -> bool:
        """Whether a factor is no product; Adam's step size, for example, is a learning rate times something else."""
        leaves = list(self._leaves(tensor))
        numbers = [number(self._flow.producer(leaf)) for leaf in leaves if self._is_constant(leaf)]
        numbers += [1.0 for leaf in leaves if not self._is_constant(leaf) and self._is_positive_constant(leaf)]
        return (
            self._flow.value(tensor).content is Content.NONE
            and self._may_be_number(tensor)
            and NO_EDGE not in leaves
            and len(leaves) - len(numbers) <= 1
            and (leaves == [tensor] or all(value is not None and value > 0 for value in numbers))
            and all(value != 0 for value in numbers)
            and all(variable is None or variable.rank == 0 for variable in map(self._flow.read, leaves))
        )

    def _is_positive_constant(self, tensor: EdgeText) -> bool:
        """Whether a tensor is computed from constants alone, by an op whose output is not negative."""
        node = self._flow.producer(tensor)
        if node is None or node.op not in _POSITIVE:
            return False
        return all(self._flow.nodes[name].op in _OF_CONSTANTS for name in self._flow.reach.upstream([node.name]))

    def _leaves(self, tensor: EdgeText) -> Iterator[EdgeText]:
        """The factors of a product; no edge stands for a divisor that is not a constant, and for a power."""
        seen: set[EdgeText] = set()
        waiting = [tensor]
        while waiting:
            factor = waiting.pop()
            node = self._flow.producer(factor)
            if node is None or node.op not in (*PRODUCT_OPS, *QUOTIENT_OPS, *_SIGNED):
                yield factor
                continue
            if factor in seen:
                yield NO_EDGE
                continue
            seen.add(factor)
            first, *others = [self._flow.origin(operand) for _, operand in self._flow.inputs(node)]
            waiting += [*others, first] if node.op in PRODUCT_OPS else [first]
            if node.op in QUOTIENT_OPS and not self._is_constant(others[0]):
                yield NO_EDGE

    def _uncorrected(self, tensor: EdgeText) -> EdgeText:
        """A factor without Adam's bias correction."""
        node = self._flow.producer(tensor)
        if node is None or node.op not in SCALING_OPS:
            return tensor
        for position, operand in self._flow.inputs(node):
            if self._keeps(Use(node.name, position)):
                return self._uncorrected(self._flow.origin(operand))
        return tensor
