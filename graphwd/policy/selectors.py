"""The selectors of a policy rule: which variables it decides."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphwd.policy.globs import composed, glob_matches
from graphwd.policy.roles import Role

__all__ = ["RANK_COMPARISONS", "Listed", "Rank", "Selectors", "Subject", "glob_matches", "is_variable"]

RANK_COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A variable as selectors see it.

    Attributes:
        name: the name that a user sees, without ``:0``.
        rank: number of dimensions; None where the shape is unknown.
        dtype: the name of the dtype, such as ``float32``.
        path: the path in the object graph, such as ``layers/0/kernel``; None where it is not known.
        used_by: op types that read the variable outside the gradient computation.
        key: the identity of its handle; None where it is in a file.
        reached_by: whether a glob is the whole of some path to it; None where ``path`` is the only one.
        role: what the forward pass uses it for.
        followed_by: what its result goes straight into; None where that is nothing known.
    """

    name: str
    rank: int | None
    dtype: str
    path: str | None = None
    used_by: frozenset[str] = frozenset()
    key: int | None = None
    reached_by: Callable[[str], bool] | None = None
    role: Role = Role.OTHER
    followed_by: str | None = None

    def at(self, glob: str) -> bool:
        """Whether a glob matches a path of it; where none is known, no glob does."""
        if self.reached_by is not None:
            return self.reached_by(glob)
        return self.path is not None and glob_matches(self.path, glob, ".")


@dataclass(frozen=True, slots=True)
class Rank:
    """A condition on the number of dimensions, such as ``>=2``."""

    comparison: str
    number: int

    def match(self, rank: int | None) -> bool:
        """Whether a rank satisfies the condition; an unknown rank satisfies none."""
        return rank is not None and RANK_COMPARISONS[self.comparison](rank, self.number)


class Listed:
    """Variables that a policy made in Python lists: of TensorFlow, of Keras, of a distribution strategy."""

    def __init__(self, variables: Sequence[Any]) -> None:
        """Keeps the variables, so that their identities stay theirs."""
        self._variables = tuple(variables)
        self._known: list[frozenset[int]] = []

    def holds(self, key: int | None) -> bool:
        """Whether an identity is that of a handle of one of them."""
        return any(key in identities for identities in self._identities())

    def without(self, keys: Collection[int | None]) -> list[str]:
        """The names of the variables none of whose handles has one of some identities."""
        pairs = zip(self._variables, self._identities(), strict=True)
        return [_shown(variable) for variable, identities in pairs if not identities & set(keys)]

    def _identities(self) -> list[frozenset[int]]:
        """For each of them, the identities of its handles; read anew until Keras has made them all."""
        if not self._known or not all(self._known):
            self._known = [frozenset(map(id, _handles(variable))) for variable in self._variables]
        return self._known

    def __str__(self) -> str:
        """Their names."""
        return ", ".join(map(_shown, self._variables))


def _shown(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name.removesuffix(":0"))


def is_hashable(value: object) -> bool:
    """Whether a value may be a key, as what is traced once must be."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def is_variable(value: object) -> bool:
    """Whether a value is a variable, to be listed by a policy; no library is imported to find out."""
    kind: type[object] = type(value)
    return all(hasattr(kind, name) for name in ("assign", "name", "dtype")) and (
        hasattr(kind, "handle")
        or hasattr(value, "_variable")  # tf_keras wraps the weights of mixed precision
        or _is_sharded(value)
    )


def _is_sharded(value: object) -> bool:
    kind: type[object] = type(value)
    return hasattr(kind, "assign") and hasattr(kind, "variables")


def _handles(variable: Any) -> Iterator[object]:
    """The handles of a variable; under a strategy, those of all its copies."""
    if hasattr(variable, "_value"):  # of Keras; a distributed variable has none of that name
        variable = variable._value
    if variable is None:
        return
    if not hasattr(variable, "handle"):
        for shard in variable.variables:
            yield from _handles(shard)
        return
    for replica in getattr(variable, "_values", None) or (variable,):
        yield replica.handle


@dataclass(frozen=True, slots=True)
class Selectors:
    """The conditions of one rule; a variable must satisfy all that are given. None given matches every variable.

    Attributes:
        name: globs, of which one is the whole variable name; ``*`` matches ``/`` too, and ``*/x`` a top-level ``x``.
        regex: regular expressions, of which one is found anywhere in the name.
        path: glob over a whole path in the object graph, of which a variable may have several.
        rank: condition on the number of dimensions.
        dtype: the names of the dtypes of which it must have one.
        used_by: op types of which at least one must read the variable.
        role: the roles of which it must have one.
        followed_by: what its result must go straight into.
        variables: the variables themselves, in policies made in Python.
    """

    name: tuple[str, ...] | None = None
    regex: tuple[str, ...] | None = None
    path: str | None = None
    rank: Rank | None = None
    dtype: frozenset[str] | None = None
    used_by: frozenset[str] | None = None
    role: frozenset[Role] | None = None
    followed_by: str | None = None
    variables: Listed | None = None

    @property
    def by_use(self) -> bool:
        """Whether it must be known what variables are used for."""
        return self.role is not None or self.followed_by is not None

    @property
    def any_given(self) -> bool:
        """Whether the rule selects at all, or takes every variable that is left."""
        return self != Selectors()

    def match(self, subject: Subject) -> bool:
        """Whether a variable satisfies every condition given."""
        return (
            (self.name is None or any(glob_matches(subject.name, glob) for glob in self.name))
            and (self.regex is None or any(_found(pattern, subject.name) for pattern in self.regex))
            and (self.path is None or subject.at(self.path))
            and (self.rank is None or self.rank.match(subject.rank))
            and (self.dtype is None or subject.dtype in self.dtype)
            and (self.used_by is None or bool(self.used_by & subject.used_by))
            and (self.role is None or subject.role in self.role)
            and (self.followed_by is None or self.followed_by == subject.followed_by)
            and (self.variables is None or self.variables.holds(subject.key))
        )

    def __str__(self) -> str:
        """The conditions as a policy writes them."""
        given = {
            "name": self.name and _one_or_list(self.name),
            "regex": self.regex and _one_or_list(self.regex),
            "path": self.path,
            "rank": self.rank and f"{self.rank.comparison}{self.rank.number}",
            "dtype": self.dtype and _one_or_list(sorted(self.dtype)),
            "used_by": self.used_by and _one_or_list(sorted(self.used_by)),
            "role": self.role and _one_or_list([role.value for role in Role if role in self.role]),
            "followed_by": self.followed_by,
            "variables": self.variables,
        }
        return ", ".join(f"{key}: {value}" for key, value in given.items() if value is not None) or "every variable"


def _found(pattern: str, name: str) -> bool:
    """Whether a regular expression is found in a name."""
    return re.search(composed(pattern), composed(name)) is not None


def _one_or_list(values: Sequence[str]) -> str:
    """Values of a key as YAML has them."""
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"
