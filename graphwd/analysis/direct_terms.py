"""Finds the coefficient of a variable in the value that is written to it.

The value is followed back through sums and products to the reads of variables. An update adds something to the weight,
so the weight is a term of the sum exactly once, with coefficient 1. An average, a momentum, a decay keep a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from graphwd.analysis.factors import number
from graphwd.analysis.flow import Flow
from graphwd.analysis.postorder import evaluate
from graphwd.analysis.sites import Write
from graphwd.analysis.values import NO_VARIABLE, Content
from graphwd.graph.body import Node
from graphwd.graph.edge import EdgeText, data_input
from graphwd.graph.graph import Variable
from graphwd.graph.ops import Form
from graphwd.graph.traits import PRODUCT_OPS, QUOTIENT_OPS, READ_OPS, SCALING_OPS, SIGNS, Trait, ops_with

_SELECTS = ops_with(Trait.SELECT)


@dataclass(frozen=True, slots=True)
class DirectTerms:
    """The variables that are direct terms of a sum: not by way of a product of two of them, or of a function.

    Attributes:
        coefficient: the factor of the weight itself; 0 where it is no term, NaN where the factor is not a constant.
        weights: the tensors that are the weight as it was read.
        of_others: whether another trainable variable is a term.
        rest: whether there are terms other than variables.
    """

    coefficient: float = 0.0
    weights: tuple[EdgeText, ...] = ()
    of_others: bool = False
    rest: bool = False

    def times(self, factor: float) -> DirectTerms:
        """The terms of a product with something that is no variable."""
        return replace(self, coefficient=self.coefficient * factor if self.coefficient else 0.0)

    def plus(self, other: DirectTerms) -> DirectTerms:
        """The terms of a sum."""
        return DirectTerms(
            self.coefficient + other.coefficient,
            tuple(dict.fromkeys((*self.weights, *other.weights))),
            self.of_others or other.of_others,
            self.rest or other.rest,
        )


NO_TERMS = DirectTerms(rest=True)
"""The terms of a tensor that holds no variable."""


def terms_after(flow: Flow, write: Write) -> DirectTerms:
    """Finds the direct terms of a variable's content after a write.

    Args:
        flow: the body of the write.
        write: the write; not an Apply op, whose value is a gradient.

    Returns:
        The terms of the new content.
    """
    proto = flow.nodes[write.site.node].proto
    written = direct_terms(flow, write.variable, data_input(proto, write.op.value))
    match write.op.form:
        case Form.ADD:
            return DirectTerms(1.0).plus(written)
        case Form.SUB:
            return DirectTerms(1.0).plus(written.times(-1.0))
        case _:
            return written


def direct_terms(flow: Flow, variable: Variable, tensor: EdgeText) -> DirectTerms:
    """Finds which variables are direct terms of a tensor.

    Args:
        flow: the body of the tensor.
        variable: the weight.
        tensor: the tensor.

    Returns:
        Its terms. A gradient holds no variable.
    """
    return evaluate(flow.origin(tensor), partial(_operands, flow), partial(_terms, flow, variable), NO_TERMS)


def _operands(flow: Flow, tensor: EdgeText) -> Sequence[EdgeText]:
    """The tensors whose terms make those of a tensor."""
    node = flow.producer(tensor)
    if _is_without_terms(flow, tensor) or node is None or _is_read(flow, tensor):
        return ()
    inputs = [flow.origin(text) for _, text in flow.inputs(node)]
    if node.op in SCALING_OPS:
        return inputs[:2]
    if node.op in _SELECTS:
        return inputs[1:]
    return inputs if node.op in SIGNS else ()


def _is_without_terms(flow: Flow, tensor: EdgeText) -> bool:
    return flow.value(tensor).source == NO_VARIABLE or flow.is_source(tensor)


def _is_read(flow: Flow, tensor: EdgeText) -> bool:
    """Whether a tensor is the content of a variable."""
    node = flow.producer(tensor)
    return flow.value(tensor).content is Content.EXACT and (node is None or node.op in READ_OPS)


def _terms(flow: Flow, variable: Variable, tensor: EdgeText, operands: Sequence[DirectTerms]) -> DirectTerms:
    """The terms of a tensor, from those of its operands."""
    if _is_without_terms(flow, tensor):
        return NO_TERMS
    terms = _terms_of_node(flow, variable, tensor, operands)
    if not terms.coefficient and flow.given_to_others(tensor, variable):
        return DirectTerms(of_others=True)  # it is the new content of another variable, whatever it is computed from
    return terms


def _terms_of_node(flow: Flow, variable: Variable, tensor: EdgeText, operands: Sequence[DirectTerms]) -> DirectTerms:
    known, node = flow.value(tensor), flow.producer(tensor)
    if _is_read(flow, tensor):
        return DirectTerms(1.0, (tensor,)) if known.source == variable.id else DirectTerms(of_others=True)
    if node is None:
        return NO_TERMS
    if node.op in SCALING_OPS:
        return _of_product(flow, node, operands)
    if node.op in _SELECTS:
        return _of_choice(operands)
    if node.op not in SIGNS:
        return NO_TERMS
    signs = SIGNS[node.op]
    terms = DirectTerms()
    for position, term in enumerate(operands):
        terms = terms.plus(term.times(signs[min(position, 1)]))
    return terms


def _of_product(flow: Flow, node: Node, operands: Sequence[DirectTerms]) -> DirectTerms:
    first, second = operands
    if node.op in QUOTIENT_OPS and second != NO_TERMS:
        return NO_TERMS
    if (first == NO_TERMS) == (second == NO_TERMS):
        return NO_TERMS
    inputs = [text for _, text in flow.inputs(node)]
    terms, other = (first, inputs[1]) if first != NO_TERMS else (second, inputs[0])
    other = flow.origin(other)
    if flow.value(other).source != NO_VARIABLE or (flow.value(other).taint and flow.is_scalar(other) is False):
        return NO_TERMS  # a function of the weight, or of each example: no rate
    factor = _factor(flow, other)
    if factor is None:
        return terms.times(math.nan)
    return terms.times(1 / factor if node.op in QUOTIENT_OPS and factor else factor)


def _factor(flow: Flow, tensor: EdgeText) -> float | None:
    """The value of a constant, else None. A product with zero is zero, whatever its other factors are."""
    tensor = flow.through_casts(tensor)
    node = flow.producer(tensor)
    if node is None or node.op not in PRODUCT_OPS:
        return number(node)
    seen: set[EdgeText] = set()
    waiting = [tensor]
    while waiting:
        tensor = flow.through_casts(waiting.pop())
        node = flow.producer(tensor)
        if tensor in seen or node is None:
            continue
        seen.add(tensor)
        if number(node) == 0:
            return 0.0
        if node.op in PRODUCT_OPS:
            waiting.extend(text for _, text in flow.inputs(node))
    return None


def _of_choice(terms: Iterable[DirectTerms]) -> DirectTerms:
    """The terms of a tensor that takes each element from one of two others."""
    first, second = terms
    both = first.plus(second)
    same = first.coefficient == second.coefficient
    return replace(both, coefficient=first.coefficient if same else math.nan)
