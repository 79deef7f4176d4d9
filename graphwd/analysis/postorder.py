"""Works out a value for a tensor from those of the tensors that it is computed from, each once and without recursion.

A graph is no tree: a sum of a tensor with itself, and so on sixty times, has more paths than a lifetime has seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)
V = TypeVar("V")


def evaluate(
    start: T,
    operands: Callable[[T], Sequence[T]],
    value: Callable[[T, Sequence[V]], V],
    cyclic: V,
    known: dict[T, V] | None = None,
) -> V:
    """Works out the value of a node of a directed graph.

    Args:
        start: the node.
        operands: the nodes that the value of a node depends on.
        value: makes the value of a node from those of its operands, in their order.
        cyclic: what stands for the value of an operand that depends on the node itself.
        known: values of nodes from other calls with the same functions, to which this one adds; for graphs without
            cycles, since within one a value depends on where it was entered.

    Returns:
        The value.
    """
    values: dict[T, V] = {} if known is None else known
    entered: dict[T, Sequence[T]] = {}
    path: list[tuple[T, Iterator[T]]] = []

    def enter(node: T) -> None:
        entered[node] = operands(node)
        path.append((node, iter(entered[node])))

    if start not in values:
        enter(start)
    while path:
        node, further = path[-1]
        if (
            operand := next((each for each in further if each not in entered and each not in values), None)
        ) is not None:
            enter(operand)
        else:
            path.pop()
            values[node] = value(node, [values.get(each, cyclic) for each in entered[node]])
    return values[start]
