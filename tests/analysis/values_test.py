"""Joining and combining what is known of tensors."""

from __future__ import annotations

import itertools

import pytest

from graphwd.analysis.values import DATA, MANY, NO_VARIABLE, NOTHING, Content, Value, add, combine, join, scale

EXACT, LINEAR, DERIVED, NONE = Content.EXACT, Content.LINEAR, Content.DERIVED, Content.NONE
GRADIENT, OTHER_GRADIENT = 2, 4


def of(source, content, taint=0):
    return Value(NO_VARIABLE, taint, source, content)


W, V, MIXED = of(0, EXACT), of(1, EXACT), of(MANY, DERIVED)
G, X = Value(taint=GRADIENT), Value(taint=DATA)
W2, F = of(0, LINEAR), of(0, DERIVED)


@pytest.mark.parametrize(
    ("taint", "from_gradient"), [(0, False), (DATA, False), (GRADIENT, True), (DATA | GRADIENT, True)]
)
def test_from_gradient(taint, from_gradient):
    assert Value(taint=taint).from_gradient is from_gradient


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (NOTHING, NOTHING, NOTHING),
        (W, W, W),
        (W, NOTHING, W),
        (W, W2, W2),
        (W2, F, F),
        (W, V, MIXED),
        (W, MIXED, MIXED),
        (G, X, Value(taint=GRADIENT | DATA)),
        (G, W, of(0, EXACT, GRADIENT)),
        (Value(handle=3), Value(handle=3, taint=DATA), Value(handle=3, taint=DATA)),
        (Value(handle=3), Value(handle=4), Value(handle=MANY)),
        (Value(handle=3), NOTHING, Value(handle=MANY)),
    ],
)
def test_join(first, second, joined):
    assert join(first, second) == joined
    assert join(second, first) == joined


CONTENTS = [(NO_VARIABLE, NONE), (0, EXACT), (0, LINEAR), (0, DERIVED), (1, LINEAR), (MANY, DERIVED)]
VALUES = [Value(h, t, *c) for h in (NO_VARIABLE, 3, MANY) for t in (0, DATA, GRADIENT) for c in CONTENTS]


def test_join_is_a_least_upper_bound():
    for a, b in itertools.product(VALUES, repeat=2):
        assert join(a, b) == join(b, a)
        assert join(a, join(a, b)) == join(a, b)
    for a, b, c in itertools.product(VALUES[::2], repeat=3):
        assert join(join(a, b), c) == join(a, join(b, c))


@pytest.mark.parametrize(
    ("inputs", "combined", "product", "total"),
    [
        ([], NOTHING, NOTHING, NOTHING),
        ([NOTHING, NOTHING], NOTHING, NOTHING, NOTHING),
        ([Value(handle=3)], NOTHING, NOTHING, NOTHING),
        ([W], F, W2, W2),
        ([W, NOTHING], F, W2, F),
        ([NOTHING, W2], F, W2, F),
        ([F, NOTHING], F, F, F),
        ([W, W], F, F, W2),
        ([W, W2], F, F, W2),
        ([W, F], F, F, F),
        ([W, V], MIXED, MIXED, MIXED),
        ([MIXED, NOTHING], MIXED, MIXED, MIXED),
        ([MIXED, W], MIXED, MIXED, MIXED),
        ([NOTHING, MIXED, V], MIXED, MIXED, MIXED),
        ([W, G], of(0, DERIVED, GRADIENT), of(0, LINEAR, GRADIENT), of(0, DERIVED, GRADIENT)),
        ([W, of(0, LINEAR, DATA)], of(0, DERIVED, DATA), of(0, DERIVED, DATA), of(0, LINEAR, DATA)),
        ([G, X, Value(taint=OTHER_GRADIENT)], Value(taint=7), Value(taint=7), Value(taint=7)),
    ],
)
def test_arithmetic(inputs, combined, product, total):
    assert combine(inputs) == combined
    assert scale(inputs) == product
    assert add(inputs) == total
