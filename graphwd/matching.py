"""The selectors of a policy rule: which variables it decides."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

RANK_COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def glob_matches(name: str, pattern: str) -> bool:
    """Whether a pattern is a name, or is a glob that matches all of it; ``*`` matches ``/`` too."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


@dataclass(frozen=True, slots=True)
class Subject:
    """A variable as selectors see it.

    Attributes:
        name: the name that a user sees, without ``:0``.
        rank: number of dimensions; None where the shape is unknown.
        dtype: the name of the dtype, such as ``float32``.
        path: the path in the object graph, such as ``layers/0/kernel``; None where it is not known.
        used_by: op types that read the variable outside the gradient computation.
    """

    name: str
    rank: int | None
    dtype: str
    path: str | None = None
    used_by: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rank:
    """A condition on the number of dimensions, such as ``>=2``."""

    comparison: str
    number: int

    def match(self, rank: int | None) -> bool:
        """Whether a rank satisfies the condition; an unknown rank satisfies none."""
        return rank is not None and RANK_COMPARISONS[self.comparison](rank, self.number)


@dataclass(frozen=True, slots=True)
class Selectors:
    """The conditions of one rule; a variable must satisfy all that are given. None given matches every variable.

    Attributes:
        name: glob over the whole variable name; ``*`` matches ``/`` too.
        regex: regular expression, searched for anywhere in the name.
        path: glob over the whole object-graph path.
        rank: condition on the number of dimensions.
        dtype: name of the dtype.
        used_by: op types of which at least one must read the variable.
    """

    name: str | None = None
    regex: str | None = None
    path: str | None = None
    rank: Rank | None = None
    dtype: str | None = None
    used_by: frozenset[str] | None = None

    @property
    def any_given(self) -> bool:
        """Whether the rule selects at all, or takes every variable that is left."""
        return self != Selectors()

    def match(self, subject: Subject) -> bool:
        """Whether a variable satisfies every condition given."""
        return (
            (self.name is None or fnmatch.fnmatchcase(subject.name, self.name))
            and (self.regex is None or re.search(self.regex, subject.name) is not None)
            and (self.path is None or (subject.path is not None and fnmatch.fnmatchcase(subject.path, self.path)))
            and (self.rank is None or self.rank.match(subject.rank))
            and (self.dtype is None or self.dtype == subject.dtype)
            and (self.used_by is None or bool(self.used_by & subject.used_by))
        )

    def __str__(self) -> str:
        """The conditions as a policy writes them."""
        given = {
            "name": self.name,
            "regex": self.regex,
            "path": self.path,
            "rank": self.rank and f"{self.rank.comparison}{self.rank.number}",
            "dtype": self.dtype,
            "used_by": self.used_by and ", ".join(sorted(self.used_by)),
        }
        return ", ".join(f"{key}: {value}" for key, value in given.items() if value is not None) or "every variable"
