"""Finds the factors of an update: the tensors that every part of it was multiplied by, and its sign."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

import numpy as np

from graphwd.analysis.flow import Flow
from graphwd.analysis.values import Content
from graphwd.graph.body import Node
from graphwd.graph.edge import NO_EDGE, EdgeText, Use, data_input
from graphwd.graph.graph import DTYPE_NAMES, Variable
from graphwd.graph.ops import Form, WriteOp
from graphwd.graph.traits import ADDITIVE_OPS, LINEAR_OPS, PRODUCT_OPS, QUOTIENT_OPS, Trait, ops_with

_SUMS = ops_with(Trait.SUM)


class Sign(Enum):
    """The sign with which a tensor holds the gradient."""

    PLUS = "+"
    MINUS = "-"


_Known = frozenset[EdgeText | Sign]
_Factors = _Known | None
"""The factors of a tensor, and the sign of the gradient in it, where that is known; None for zero, which is a multiple
of anything."""

_FLIPPED: Mapping[EdgeText | Sign, Sign] = {Sign.PLUS: Sign.MINUS, Sign.MINUS: Sign.PLUS}


class Factors:
    """The factors of an update.

    Attributes:
        uses: for each factor, of the update or of a part of it, one of its uses.
    """

    def __init__(self, flow: Flow, written: Sequence[EdgeText]) -> None:
        """Prepares to search.

        Args:
            flow: the body of the update.
            written: the tensors that the update writes.
        """
        self._flow = flow
        self._written = written
        self.uses: dict[EdgeText, Use] = {}

    def of_update(self) -> _Known:
        """The factors of the whole update, and its sign, where that is known."""
        slots: dict[int, _Factors] = {}
        while True:
            before = dict(slots)
            memo: dict[EdgeText, _Factors] = {}
            result = _common(self._factors(tensor, slots, memo) for tensor in self._written)
            if slots == before:
                return result or frozenset()

    def _factors(self, tensor: EdgeText, slots: dict[int, _Factors], memo: dict[EdgeText, _Factors]) -> _Factors:
        if tensor not in memo:
            memo[tensor] = None  # a slot leads back here: it was zero before the first update
            memo[tensor] = self._compute_factors(tensor, slots, memo)
        return memo[tensor]

    def _compute_factors(
        self, tensor: EdgeText, slots: dict[int, _Factors], memo: dict[EdgeText, _Factors]
    ) -> _Factors:
        flow = self._flow
        node = flow.producer(tensor)
        if node is None or flow.is_source(tensor):
            return frozenset({Sign.PLUS})
        variable = flow.read(tensor)
        if variable is not None:
            if variable.trainable or not flow.is_slot(variable):
                return frozenset()
            for _, op, value in flow.written(variable):
                value = self._news(variable, op, value) or value
                written = self._factors(value, slots, memo) if op.form is not Form.APPLY else _Known()
                slots[variable.id] = _common([slots.get(variable.id), written])
            return slots.get(variable.id, frozenset())
        inputs = [(Use(node.name, position), flow.origin(edge)) for position, edge in flow.inputs(node)]
        carrying = [source for _, source in inputs if self._flow.carries(source)]
        if node.op in LINEAR_OPS and carrying:
            factors = self._factors(carrying[0], slots, memo)
            return _flip(factors) if node.op == "Neg" else factors
        if node.op in ADDITIVE_OPS:
            terms = [(use, term) for use, term in inputs if not self._is_own(term)]
            if all(self._flow.carries(term) for _, term in terms):
                factors_of_terms = ((use, self._factors(term, slots, memo)) for use, term in terms)
                return _common(_flip(f) if node.op == "Sub" and use.position else f for use, f in factors_of_terms)
        if node.op in PRODUCT_OPS or (node.op in QUOTIENT_OPS and inputs[0][1] in carrying):
            return self._product(node.op, inputs, slots, memo)
        return frozenset()

    def _news(self, variable: Variable, op: WriteOp, value: EdgeText) -> EdgeText | None:
        """The new term of a moving average; None for anything else.

        The average is ``a + (new - a) * share``, or ``a * (1 - share) + new * share`` of constants. The share does not
        scale the update, since the old content is scaled down by as much.
        """
        flow = self._flow
        node = flow.producer(flow.origin(value))
        if node is None:
            return None
        terms = [flow.origin(edge) for _, edge in flow.inputs(node)]
        if op.form is Form.ADD and node.op in PRODUCT_OPS:
            for producer in map(flow.producer, terms):
                if (
                    producer is not None
                    and producer.op == "Sub"
                    and flow.read(flow.origin(data_input(producer.proto, 1))) == variable
                ):
                    return flow.origin(data_input(producer.proto, 0))
        if op.form is Form.ASSIGN and node.op in _SUMS and len(terms) == 2:
            pairs = [self._pair(term) for term in terms]
            for (kept, old), (taken, share) in (pairs, reversed(pairs)):
                if flow.read(kept) == variable and taken and self._sum_to_one(old, share):
                    return taken
        return None

    def _pair(self, tensor: EdgeText) -> tuple[EdgeText, EdgeText]:
        """The operands of a product, the constant last; empty for anything else."""
        node = self._flow.producer(tensor)
        if node is None or node.op not in PRODUCT_OPS:
            return NO_EDGE, NO_EDGE
        first, second = (self._flow.origin(edge) for _, edge in self._flow.inputs(node))
        return (second, first) if number(self._flow.producer(first)) is not None else (first, second)

    def _sum_to_one(self, first: EdgeText, second: EdgeText) -> bool:
        numbers = [number(self._flow.producer(tensor)) for tensor in (first, second)]
        return None not in numbers and abs(sum(value for value in numbers if value is not None) - 1) < 1e-6

    def _product(
        self, op: str, inputs: list[tuple[Use, EdgeText]], slots: dict[int, _Factors], memo: dict[EdgeText, _Factors]
    ) -> _Factors:
        flow = self._flow
        result: _Factors = frozenset({Sign.PLUS})
        for use, operand in inputs if op in PRODUCT_OPS else inputs[:1]:
            factors = self._factors(operand, slots, memo) if flow.carries(operand) else self._factor(use, operand)
            result = None if result is None or factors is None else _times(result, factors)
        use, divisor = inputs[-1]
        if op in QUOTIENT_OPS and result is not None and tensors_of(result) and not flow.carries(divisor):
            self.uses.setdefault(divisor, use)  # dividing a multiple of the learning rate divides the learning rate
            return result | {divisor}
        return result

    def _factor(self, use: Use, tensor: EdgeText) -> _Known:
        """A factor that does not carry the gradient."""
        node = self._flow.producer(tensor)
        if node is not None and node.op == "Neg":
            (position, inner), *_ = self._flow.inputs(node)
            return _flip(self._factor(Use(node.name, position), self._flow.origin(inner))) or frozenset()
        value = number(node)
        sign = frozenset({Sign.MINUS}) if value is not None and value < 0 else frozenset({Sign.PLUS})
        if value is not None and abs(value) == 1:
            return sign
        self.uses.setdefault(tensor, use)
        return sign | {tensor}

    def _is_own(self, tensor: EdgeText) -> bool:
        """Whether a term of a sum is the weight itself, to which the update is added."""
        return self._flow.value(tensor).content is Content.EXACT


def tensors_of(factors: Iterable[EdgeText | Sign]) -> frozenset[EdgeText]:
    """The factors themselves, without the sign."""
    return frozenset(factor for factor in factors if not isinstance(factor, Sign))


def _flip(factors: _Factors) -> _Factors:
    return factors and frozenset(_FLIPPED.get(factor, factor) for factor in factors)


def _times(first: _Known, second: _Known) -> _Known:
    """The factors of a product; its sign is known where both signs are."""
    tensors = tensors_of(first | second)
    signs = [Sign.MINUS in factors for factors in (first, second) if not factors.isdisjoint(Sign)]
    return tensors | {Sign.MINUS if signs[0] != signs[1] else Sign.PLUS} if len(signs) == 2 else tensors


def _common(sets: Iterable[_Factors]) -> _Factors:
    known = [factors for factors in sets if factors is not None]
    return known[0].intersection(*known) if known else None


def number(node: Node | None) -> float | None:
    """The number that a constant node holds; None for any other node, and for a tensor of several."""
    if node is None or node.op != "Const":
        return None
    tensor = node.proto.attr["value"].tensor
    if tensor.tensor_shape.dim:
        return None
    dtype = DTYPE_NAMES.get(tensor.dtype)
    if dtype in ("bfloat16", "float16"):
        content = np.frombuffer(tensor.tensor_content, np.uint16)
        bits = np.array([*tensor.half_val, *content, 0][:1], np.uint16)
        # A bfloat16 is the upper half of a float32; NumPy alone does not know it.
        return float(
            bits.view(np.float16)[0] if dtype == "float16" else (bits.astype(np.uint32) << 16).view(np.float32)[0]
        )
    field = _NUMBER_FIELDS.get(dtype or "")
    if field is None:
        return None
    if tensor.tensor_content:
        return float(np.frombuffer(tensor.tensor_content, dtype)[0])
    values = getattr(tensor, field)
    return float(values[0]) if values else 0.0


def is_zero(node: Node | None) -> bool:
    """Whether a node makes zeros, of any shape."""
    if node is None or node.op != "Const":
        return node is not None and node.op == "ZerosLike"
    tensor = node.proto.attr["value"].tensor
    values = (value for field in ("half_val", *_NUMBER_FIELDS.values()) for value in getattr(tensor, field))
    return not any(tensor.tensor_content) and not any(values)


_NUMBER_FIELDS: Mapping[str, str] = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int64": "int64_val",
}
"""Where a TensorProto keeps its numbers, by dtype."""
