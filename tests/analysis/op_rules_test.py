"""What the interpreter knows of the outputs of each op."""

from __future__ import annotations

import pytest

from graphwd.analysis.op_rules import ALIASES, ARITHMETIC
from graphwd.analysis.values import DATA, MANY, NO_VARIABLE, NOTHING, Content, Value
from graphwd.graph.ops import CALL_OPS, WRITE_OPS
from graphwd.graph.traits import DATA_OPS, METADATA_OPS, READ_OPS, SHAPE_OPS

WEIGHT = Value(source=0, content=Content.EXACT)
OTHER = Value(source=1, content=Content.EXACT)
GRADIENT = Value(taint=2)
SCALED = Value(source=0, content=Content.LINEAR, taint=2)


def test_no_op_has_two_rules():
    tables = [ALIASES, ARITHMETIC, CALL_OPS, METADATA_OPS, READ_OPS, WRITE_OPS]
    for number, table in enumerate(tables):
        for other in tables[number + 1 :]:
            assert not set(table) & set(other)


@pytest.mark.parametrize(
    ("op", "inputs", "output"),
    [
        ("Mul", [WEIGHT, GRADIENT], SCALED),
        ("Mul", [WEIGHT, OTHER], Value(source=MANY, content=Content.DERIVED)),
        ("RealDiv", [WEIGHT, GRADIENT], SCALED),
        ("RealDiv", [GRADIENT, WEIGHT], Value(source=0, content=Content.DERIVED, taint=2)),
        ("Neg", [WEIGHT], Value(source=0, content=Content.LINEAR)),
        ("Sub", [WEIGHT, SCALED], SCALED),
        ("AddN", [WEIGHT, GRADIENT], Value(source=0, content=Content.DERIVED, taint=2)),
        ("Cast", [WEIGHT], WEIGHT),
    ],
)
def test_arithmetic(op, inputs, output):
    assert ARITHMETIC[op](inputs) == output


@pytest.mark.parametrize("op", sorted(SHAPE_OPS))
def test_a_shape_keeps_nothing_but_that_it_depends_on_data(op):
    assert ARITHMETIC[op]([WEIGHT._replace(taint=2 | DATA)]) == Value(taint=DATA)
    assert ARITHMETIC[op]([GRADIENT]) == NOTHING


@pytest.mark.parametrize("op", sorted(DATA_OPS))
def test_data_comes_in(op):
    assert ARITHMETIC[op]([]) == Value(taint=DATA)
    assert ARITHMETIC[op]([GRADIENT]) == Value(taint=DATA | 2)


def test_aliases():
    assert ALIASES["IdentityN"]([WEIGHT, GRADIENT]) == [WEIGHT, GRADIENT]
    assert ALIASES["Switch"]([WEIGHT, GRADIENT]) == [WEIGHT]
    assert ALIASES["Merge"]([WEIGHT, GRADIENT]) == [Value(NO_VARIABLE, 2, 0, Content.EXACT), NOTHING]
