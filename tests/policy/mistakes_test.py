"""Errors that are collected."""

from __future__ import annotations

import pytest

from graphwd.errors import PolicyError
from graphwd.policy.mistakes import Mistakes


def test_none():
    mistakes = Mistakes()
    with mistakes.kept():
        pass
    mistakes.check()
    assert not mistakes


def test_they_are_raised_as_one_in_the_order_of_their_lines():
    mistakes = Mistakes()
    for line, message in ((7, "b"), (2, "a"), (7, "c"), (7, "b")):
        with mistakes.kept(line):
            raise PolicyError(message)
    assert mistakes
    with pytest.raises(PolicyError, match=r"^a\nb\nc$") as error:
        mistakes.check()
    assert error.value.mistakes == ((2, "a"), (7, "b"), (7, "c"))


def test_those_of_a_part_join_those_of_the_whole():
    part, whole = Mistakes(), Mistakes()
    whole.add(PolicyError("whole", [(3, "whole")]))
    part.add(PolicyError("last"), line=4)
    part.add(PolicyError("first", [(1, "first")]))
    with whole.kept(line=9):
        part.check()
    with pytest.raises(PolicyError, match=r"^first\nwhole\nlast$"):
        whole.check()


def test_another_error_is_none_of_them():
    mistakes = Mistakes()
    with pytest.raises(ZeroDivisionError), mistakes.kept():
        raise ZeroDivisionError
    assert not mistakes
