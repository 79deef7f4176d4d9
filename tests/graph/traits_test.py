"""Sets of ops made of the table of traits."""

from __future__ import annotations

import pytest

from graphwd.graph.traits import (
    ADDITIVE_OPS,
    ALIAS_OPS,
    KNOWN_OPS,
    PASS_THROUGH_OPS,
    QUOTIENT_OPS,
    SIGNS,
    SUM_OPS,
    Trait,
    ops_with,
)


def test_any_of_several_traits_is_enough():
    assert ops_with(Trait.ENTER, Trait.EXIT) == {"Enter", "RefEnter", "Exit", "RefExit"}


def test_a_trait_made_of_several_needs_all_of_them():
    assert "Exp" in ops_with(Trait.ELEMENTWISE)
    assert "Tanh" in ops_with(Trait.ROWWISE)
    assert "Tanh" not in ops_with(Trait.ELEMENTWISE)


def test_every_row_says_something():
    assert ops_with(*Trait) == KNOWN_OPS


@pytest.mark.parametrize("trait", list(Trait.__members__.values()), ids=list(Trait.__members__))
def test_every_trait_is_of_some_op(trait):
    assert ops_with(trait)


def test_sets_made_of_others():
    assert ALIAS_OPS < PASS_THROUGH_OPS
    assert ADDITIVE_OPS | ALIAS_OPS == SUM_OPS
    assert SIGNS.keys() == ADDITIVE_OPS | {"Cast", "Neg"}
    assert "DivNoNan" not in QUOTIENT_OPS
