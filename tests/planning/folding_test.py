"""Names that are folded: which, into what, and that each can be told from the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphwd.planning.folding import fold, unfold


def texts(*names, alike=None):
    return [(each.text, len(each.members)) for each in fold(names, alike or [None] * len(names))]


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([], []),
        (["w"], [("w", 1)]),
        (["layer_0/k", "layer_1/k"], [("layer_{0,1}/k", 2)]),
        ([f"layer_{i}/k" for i in range(12)], [("layer_{0…11}/k", 12)]),
        (["b3", "b1", "b2", "b7"], [("b{1…3,7}", 4)]),
        (["x_09", "x_10", "x_11"], [("x_{09…11}", 3)]),
        (["x_9", "x_10", "x_11"], [("x_{9…11}", 3)]),
        (["x_08", "x_9", "x_10"], [("x_{08,9,10}", 3)]),
        # Two places in step, by one or by more.
        (["a0/d_3", "a1/d_7", "a2/d_11"], [("a{0…2}/d_{3,7,11}", 3)]),
        # Two places not in step: the one with fewer values stays.
        (["s2b1", "s2b2", "s2b3", "s3b1", "s3b2"], [("s2b{1…3}", 3), ("s3b{1,2}", 2)]),
        (["b1s2", "b2s2", "b3s2", "b1s3", "b2s3"], [("b{1…3}s2", 3), ("b{1,2}s3", 2)]),
        # In step, but one falls: no fold.
        (["a0b1", "a1b0"], [("a0b1", 1), ("a1b0", 1)]),
        # What is no number does not fold, nor a name without one.
        (["query/k", "key/k"], [("query/k", 1), ("key/k", 1)]),
        (["dense", "dense_1", "dense_2"], [("dense", 1), ("dense_{1,2}", 2)]),
        # The same number, written in two ways.
        (["l1", "l01"], [("l01", 1), ("l1", 1)]),
        (["w1", "w1"], [("w1", 1), ("w1", 1)]),
        (["9" * 5000, "9" * 4999 + "8"], [("9" * 4986 + "{" + "9" * 13 + "8," + "9" * 14 + "}", 2)]),
    ],
)  # fmt: skip
def test_folded(names, folded):
    assert sorted(texts(*names)) == sorted(folded)


def test_only_what_is_alike():
    names = [f"layer_{i}/k" for i in range(6)]
    assert texts(*names, alike=[0, 0, 0, 1, 1, 0]) == [("layer_{0…2,5}/k", 4), ("layer_{3,4}/k", 2)]


def test_the_order_is_that_of_the_first_names():
    assert texts("z", "b1", "a", "b0") == [("z", 1), ("b{0,1}", 2), ("a", 1)]
    assert fold(["z", "b1", "a", "b0"], [0] * 4)[1].members == (3, 1)


def expanded(text: str) -> list[str]:
    """The names that a folded text stands for, as the page of plans says to read it."""
    parts = re.split(r"\{([0-9…,]+)\}", text)
    choices = [[number for item in part.split(",") for number in numbers(item)] for part in parts[1::2]]
    names = []
    for row in zip(*choices, strict=True) if choices else [()]:
        pieces = [parts[0]]
        for number, rest in zip(row, parts[2::2], strict=True):
            pieces += [number, rest]
        names.append("".join(pieces))
    return names


def numbers(item: str) -> list[str]:
    first, _, last = item.partition("…")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)] if last else [item]


NAMES = st.lists(st.text(alphabet="ab/_0129", max_size=7), max_size=30, unique=True)


@given(NAMES, st.data())
def test_every_name_can_be_told_from_the_text_and_is_there_once(names, data):
    alike = [data.draw(st.integers(0, 1)) for _ in names]
    told = []
    for each in fold(names, alike):
        members = [names[place] for place in each.members]
        assert expanded(each.text) == members
        assert len({alike[place] for place in each.members}) == 1
        told += members
    assert sorted(told) == sorted(names)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("w", ["w"]),
        ("block_{2,3}_expand/kernel", ["block_2_expand/kernel", "block_3_expand/kernel"]),
        ("b{1…3,7}", ["b1", "b2", "b3", "b7"]),
        ("x_{09…11}", ["x_09", "x_10", "x_11"]),
        ("a{0…2}/d_{3,7,11}", ["a0/d_3", "a1/d_7", "a2/d_11"]),
        ("{a,b}", ["{a,b}"]),
        ("x{2…1}", []),
    ],
)
def test_the_names_of_a_fold(text, names):
    assert unfold(text) == names


def test_a_fold_of_no_model_is_not_taken_apart_to_its_end():
    assert len(unfold("w{0…999999999999999999}")) == 10_000
