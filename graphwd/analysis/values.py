"""Abstract values: what is known of a tensor without running the step."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

NO_VARIABLE = -1
MANY = -2

DATA = 1
"""The taint bit of tensors that depend on the step's data; all higher bits stand for gradients."""


class Content(IntEnum):
    """How a tensor depends on the content of the one trainable variable it was read from."""

    NONE = 0  # not at all
    EXACT = 1  # it is the content, perhaps cast
    LINEAR = 2  # the content times something that does not depend on it
    DERIVED = 3  # any other way

    __hash__ = int.__hash__  # an Enum's is slow, and every node's value is hashed


class Value(NamedTuple):
    """What is known of a tensor.

    Attributes:
        handle: number of the variable whose handle it is; `NO_VARIABLE`, or `MANY` where that depends on the run.
        taint: bits of the gradients and the data that it depends on, other than through reads of trainable variables.
        source: number of the trainable variable whose content it depends on; `NO_VARIABLE`, or `MANY`.
        content: how it depends on that content.
    """

    handle: int = NO_VARIABLE
    taint: int = 0
    source: int = NO_VARIABLE
    content: Content = Content.NONE

    @property
    def from_gradient(self) -> bool:
        """Whether it comes from a gradient."""
        return self.taint > DATA


NOTHING = Value()


def join(first: Value, second: Value) -> Value:
    """The value of a tensor that may be either of two: after a branch, at the head of a loop.

    Args:
        first: one value.
        second: the other.

    Returns:
        Their least upper bound.
    """
    if first == second:
        return first
    handle = first.handle if first.handle == second.handle else MANY
    # A branch that yields a constant, such as zeros, leaves the other's dependence on a variable in place.
    return Value(handle, first.taint | second.taint, *_join_content(first, second))


def combine(inputs: list[Value]) -> Value:
    """The value of the output of an op of which only the inputs are known.

    Args:
        inputs: the values of its data inputs; handles among them are ignored.

    Returns:
        A value with the taint of all inputs, derived from every variable that they depend on.
    """
    taint = 0
    source = NO_VARIABLE
    known = NOTHING  # the last input with the taint of all before it: nearly always the result
    for value in inputs:
        handle, bits, of, _ = value
        taint |= bits
        if of != NO_VARIABLE and of != source:
            source = of if source == NO_VARIABLE else MANY
        if bits == taint and handle == NO_VARIABLE:
            known = value
    if source == NO_VARIABLE:
        return known if known.taint == taint else Value(taint=taint)
    return Value(NO_VARIABLE, taint, source, Content.DERIVED)


def scale(factors: list[Value]) -> Value:
    """A product or quotient: linear in a variable that only the first factor (or one of two) depends on.

    Args:
        factors: the numerator first.

    Returns:
        The value of the product.
    """
    plain = combine(factors)
    if plain.source < 0:
        return plain
    dependent = [value for value in factors if value.source == plain.source]
    if len(dependent) == 1 and dependent[0].content in (Content.EXACT, Content.LINEAR):
        return plain._replace(content=Content.LINEAR)
    return plain


def add(terms: list[Value]) -> Value:
    """A sum or difference: linear in a variable where every term is.

    Args:
        terms: its terms.

    Returns:
        The value of the sum.
    """
    plain = combine(terms)
    if plain.source < 0:
        return plain
    if all(value.source == plain.source and value.content in (Content.EXACT, Content.LINEAR) for value in terms):
        return plain._replace(content=Content.LINEAR)
    return plain


def _join_content(first: Value, second: Value) -> tuple[int, Content]:
    if first.source == NO_VARIABLE:
        return second.source, second.content
    if second.source == NO_VARIABLE:
        return first.source, first.content
    if first.source != second.source:
        return MANY, Content.DERIVED
    return first.source, max(first.content, second.content)
