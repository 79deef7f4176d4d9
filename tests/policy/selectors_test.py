"""Selectors against variables."""

from __future__ import annotations

import pytest

from graphwd.policy.roles import Role
from graphwd.policy.selectors import RANK_COMPARISONS, Listed, Rank, Selectors, Subject


class Held:
    """All of a variable that is asked for its identity."""

    def __init__(self, name):
        self.name, self.handle = name, object()


FIRST, HELD = Held("first:0"), Held("held:0")
KERNEL = Subject(
    "net/conv32/kernel", 4, "float32", "layers/0/kernel", frozenset({"Conv2D", "MatMul"}), key=id(HELD.handle)
)
UNKNOWN = Subject("w", None, "float32")


@pytest.mark.parametrize(
    ("selectors", "matches"),
    [
        ({}, True),
        ({"name": ("net/conv32/kernel",)}, True),
        ({"name": ("net/*",)}, True),
        ({"name": ("*/kernel",)}, True),
        ({"name": ("*kernel",)}, True),
        ({"name": ("net/conv3?/kernel",)}, True),
        ({"name": ("net/conv[1-3]2/kernel",)}, True),
        ({"name": ("conv32/*",)}, False),
        ({"name": ("kernel",)}, False),
        ({"name": ("NET/*",)}, False),
        ({"regex": ("conv",)}, True),
        ({"regex": ("kernel$",)}, True),
        ({"regex": ("^conv",)}, False),
        ({"regex": ("(gamma|beta)$",)}, False),
        ({"name": ("bias", "*/kernel")}, True),
        ({"name": ("bias", "kernel")}, False),
        ({"regex": ("bias", "^net", "beta")}, True),
        ({"regex": ("bias", "^conv")}, False),
        ({"dtype": frozenset({"float16", "float32"})}, True),
        ({"dtype": frozenset({"float16", "float64"})}, False),
        ({"path": "layers/*"}, True),
        ({"path": "layers"}, False),
        ({"path": "net/conv32/kernel"}, False),
        ({"variables": Listed([FIRST, HELD])}, True),
        ({"variables": Listed([FIRST])}, False),
        ({"variables": Listed([HELD]), "regex": ("bias",)}, False),
        ({"rank": Rank(">=", 2)}, True),
        ({"rank": Rank("==", 2)}, False),
        ({"dtype": frozenset({"float32"})}, True),
        ({"dtype": frozenset({"float16"})}, False),
        ({"used_by": frozenset({"MatMul", "ResourceGather"})}, True),
        ({"used_by": frozenset({"ResourceGather"})}, False),
        ({"name": ("net/*",), "rank": Rank("==", 4), "dtype": frozenset({"float32"})}, True),
        ({"name": ("net/*",), "rank": Rank("==", 4), "dtype": frozenset({"float16"})}, False),
        ({"name": ("net/*",), "regex": ("bias",)}, False),
    ],
)
def test_match(selectors, matches):
    assert Selectors(**selectors).match(KERNEL) is matches


@pytest.mark.parametrize(
    "selectors",
    [
        {"path": "*"},
        {"variables": Listed([HELD])},
        {"rank": Rank(">=", 0)},
        {"rank": Rank("!=", 9)},
        {"used_by": frozenset({"MatMul"})},
    ],
)
def test_what_is_not_known_matches_no_condition(selectors):
    assert not Selectors(**selectors).match(UNKNOWN)


@pytest.mark.parametrize(
    ("comparison", "ranks"),
    [
        (">=", {2, 3}),
        ("<=", {0, 1, 2}),
        ("==", {2}),
        ("!=", {0, 1, 3}),
        (">", {3}),
        ("<", {0, 1}),
    ],
)
def test_rank(comparison, ranks):
    assert {rank for rank in range(4) if Rank(comparison, 2).match(rank)} == ranks


def test_rank_comparisons():
    assert set(RANK_COMPARISONS) == {">=", "<=", "==", "!=", ">", "<"}


@pytest.mark.parametrize(
    ("selectors", "text"),
    [
        ({}, "every variable"),
        ({"name": ("*/bias",)}, "name: */bias"),
        ({"name": ("b", "a"), "regex": ("c,d", "e")}, "name: [b, a], regex: [c,d, e]"),
        ({"dtype": frozenset({"float32", "bfloat16"})}, "dtype: [bfloat16, float32]"),
        ({"role": frozenset({Role.NORM, Role.BIAS})}, "role: [bias, norm]"),
        ({"rank": Rank("==", 0)}, "rank: ==0"),
        ({"variables": Listed([FIRST, HELD])}, "variables: first, held"),
        (
            {
                "name": ("a",),
                "regex": ("b",),
                "path": "c",
                "rank": Rank(">=", 2),
                "dtype": frozenset({"float32"}),
                "used_by": frozenset({"MatMul", "Conv2D"}),
            },
            "name: a, regex: b, path: c, rank: >=2, dtype: float32, used_by: [Conv2D, MatMul]",
        ),
    ],
)
def test_text(selectors, text):
    assert str(Selectors(**selectors)) == text
    assert Selectors(**selectors).any_given is bool(selectors)


def test_listed_variables_that_are_not_there():
    listed = Listed([FIRST, HELD])
    assert listed.without({id(HELD.handle), None}) == ["first"]
    assert listed.without(set()) == ["first", "held"]
    assert not listed.holds(None)
