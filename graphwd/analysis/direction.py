"""Whether an update goes against its gradient, as one that makes a loss smaller does, or along it.

A gradient is added to a slot variable, an accumulator or a statistic. So a variable from which a gradient is subtracted
is a weight, whoever else reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

from graphwd.analysis.factors import is_zero, number
from graphwd.analysis.flow import Flow
from graphwd.analysis.postorder import evaluate
from graphwd.analysis.sites import Write
from graphwd.graph.edge import EdgeText, data_input
from graphwd.graph.ops import Form
from graphwd.graph.traits import SCALING_OPS, SIGNS, Trait, ops_with

_KEEPING = ops_with(Trait.SAME_SIGN)
_POSITIVE = ops_with(Trait.MAGNITUDE)
_CHOICES = ops_with(Trait.SELECT)


def direction(flow: Flow, write: Write) -> int:
    """Finds the sign with which a write adds its gradient.

    Args:
        flow: the body of the write.
        write: the write; not an Apply op.

    Returns:
        1 where the write adds the gradient, -1 where it subtracts it, 0 where that is not known. A factor that is not
        a constant, such as a learning rate, counts as positive.
    """
    written = flow.origin(data_input(flow.nodes[write.site.node].proto, write.op.value))
    sign = evaluate(written, partial(_operands, flow), partial(_sign, flow), 0)
    return -sign if write.op.form is Form.SUB else sign


def _operands(flow: Flow, tensor: EdgeText) -> Sequence[EdgeText]:
    """The tensors whose signs make that of a tensor."""
    node = flow.producer(tensor)
    if node is None or not flow.carries(tensor) or flow.is_source(tensor) or node.op in _POSITIVE:
        return ()
    inputs = [flow.origin(text) for _, text in flow.inputs(node)]
    if node.op in _KEEPING:
        return inputs[:1]
    if node.op in _CHOICES:
        return inputs[1:]
    if node.op in SIGNS or (node.op in SCALING_OPS and inputs[0] != inputs[-1]):
        return [operand for operand in inputs if flow.carries(operand)]
    return ()


def _sign(flow: Flow, tensor: EdgeText, signs: Sequence[int]) -> int:
    """The sign of a tensor, from those of its operands."""
    node = flow.producer(tensor)
    if not flow.carries(tensor):
        return 0
    if flow.is_source(tensor):
        return 1
    if node is None:
        return 0
    if node.op in _POSITIVE:
        return 1
    if node.op in _KEEPING:
        return signs[0]
    inputs = [flow.origin(text) for _, text in flow.inputs(node)]
    if node.op in _CHOICES:
        return _common(
            sign for sign, choice in zip(signs, inputs[1:], strict=True) if not is_zero(flow.producer(choice))
        )
    if node.op in SIGNS:
        places = [position for position, operand in enumerate(inputs) if flow.carries(operand)]
        return _common(SIGNS[node.op][min(position, 1)] * sign for position, sign in zip(places, signs, strict=True))
    if node.op in SCALING_OPS:
        others = [factor for factor in inputs if not flow.carries(factor)] if inputs[0] != inputs[-1] else []
        return math.prod(signs) * math.prod(-1 if _is_negative(flow, factor) else 1 for factor in others)
    return 0


def _common(signs: Iterable[int]) -> int:
    """The sign that all have; 0 where they differ."""
    different = set(signs)
    return different.pop() if len(different) == 1 else 0


def _is_negative(flow: Flow, tensor: EdgeText) -> bool:
    node = flow.producer(tensor)
    value = number(node)
    return (node is not None and node.op == "Neg") if value is None else value < 0
