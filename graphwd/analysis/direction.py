"""Whether an update goes against its gradient, as one that makes a loss smaller does, or along it.

A gradient is added to a slot variable, an accumulator or a statistic. So a variable from which a gradient is subtracted
is a weight, whoever else reads it.
"""

from __future__ import annotations

from graphwd.analysis.factors import number
from graphwd.analysis.flow import Flow
from graphwd.analysis.sites import Write
from graphwd.graph.edge import EdgeText, data_input
from graphwd.graph.ops import Form
from graphwd.graph.traits import SCALING_OPS, SIGNS, Trait, ops_with

_MAX_DEPTH = 100

_KEEPING = ops_with(Trait.SAME_SIGN)
_POSITIVE = ops_with(Trait.MAGNITUDE)


def direction(flow: Flow, write: Write) -> int:
    """Finds the sign with which a write adds its gradient.

    Args:
        flow: the body of the write.
        write: the write; not an Apply op.

    Returns:
        1 where the write adds the gradient, -1 where it subtracts it, 0 where that is not known. A factor that is not
        a constant, such as a learning rate, counts as positive.
    """
    sign = _sign(flow, data_input(flow.nodes[write.site.node].proto, write.op.value), 0)
    return -sign if write.op.form is Form.SUB else sign


def _sign(flow: Flow, tensor: EdgeText, depth: int) -> int:
    tensor = flow.origin(tensor)
    if depth > _MAX_DEPTH or not flow.carries(tensor):
        return 0
    if flow.is_source(tensor):
        return 1
    node = flow.producer(tensor)
    if node is None:
        return 0
    inputs = [flow.origin(text) for _, text in flow.inputs(node)]
    if node.op in _POSITIVE:
        return 1
    if node.op in _KEEPING:
        return _sign(flow, inputs[0], depth + 1)
    if node.op in SIGNS:
        terms = [
            SIGNS[node.op][min(position, 1)] * _sign(flow, operand, depth + 1)
            for position, operand in enumerate(inputs)
            if flow.carries(operand)
        ]
        return terms[0] if len(set(terms)) == 1 else 0
    if node.op in SCALING_OPS:
        return _of_product(flow, inputs, depth)
    return 0


def _of_product(flow: Flow, factors: list[EdgeText], depth: int) -> int:
    if factors[0] == factors[-1]:
        return 1
    sign = 1
    for factor in factors:
        if flow.carries(factor):
            sign *= _sign(flow, factor, depth + 1)
        elif _is_negative(flow, factor):
            sign = -sign
    return sign


def _is_negative(flow: Flow, tensor: EdgeText) -> bool:
    node = flow.producer(tensor)
    value = number(node)
    return (node is not None and node.op == "Neg") if value is None else value < 0
