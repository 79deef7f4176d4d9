"""What to write instead of a selector that was copied from a table, or that takes a path for a name.

A table tells more of a variable than a glob can: a label tells variables of one name apart, and a fold stands for
several names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from graphwd.graph.graph import Variable
from graphwd.messages import listed
from graphwd.planning.folding import unfold
from graphwd.policy.globs import glob_matches
from graphwd.policy.selectors import Selectors

_FEW = 4
"""How many names are listed, rather than told by a regular expression."""

_BRACES = re.compile(r"\{[^{}]*\}")


def what_was_meant(selectors: Selectors, variables: Sequence[Variable]) -> str:
    """What is said of the names and the path of a rule that matches nothing.

    Args:
        selectors: the selectors of the rule.
        variables: the trainable variables.

    Returns:
        The advice; empty where none of them is recognized.
    """
    return "; ".join(_advice(selectors, variables))


def _advice(selectors: Selectors, variables: Sequence[Variable]) -> Iterator[str]:
    for glob in selectors.name or ():
        if labelled := _found(glob, variables, _label):
            yield f"'{glob}' is what tables call variables of one name: {_by_path(labelled)}"
        elif any(variable.reached_by is not None and variable.reached_by(glob) for variable in variables):
            yield f"'{glob}' is a path: write 'path: {glob}'"
        elif _BRACES.search(glob):
            yield f"a glob has no braces: write {_without_braces(glob, variables)}"
    path = selectors.path
    if path is None:
        return
    if labelled := _found(path, variables, _label):
        yield f"'{path}' is what tables call variables of one name: {_by_path(labelled)}"
    elif any(glob_matches(variable.name, path) for variable in variables):
        yield f"'{path}' is a name: write 'name: {path}'"


def _label(variable: Variable) -> str | None:
    """What tables call a variable that shares its name; None for others."""
    return variable.shown if variable.label else None


def _found(glob: str, variables: Sequence[Variable], text: Callable[[Variable], str | None]) -> list[Variable]:
    """The variables that a glob, or a name that is folded in it, matches by some text of theirs."""
    names = unfold(glob)
    if len(names) > 1:
        by_text = {text(variable): variable for variable in variables}
        return [by_text[name] for name in names if name in by_text]
    return [variable for variable in variables if (own := text(variable)) and glob_matches(own, glob)]


def _by_path(variables: Sequence[Variable]) -> str:
    """How to select variables that share a name."""
    paths = [variable.path for variable in variables if variable.path and variable.label.startswith("path ")]
    if len(paths) < len(variables):
        return "no path tells them apart, so select by another key, as role, rank or used_by"
    several = "" if len(paths) == 1 else "a rule for each of "
    return f"write {several}{listed(f'path: {path}' for path in paths)}"


def _without_braces(glob: str, variables: Sequence[Variable]) -> str:
    """How to select the variables that a fold stands for."""
    names = [variable.name for variable in _found(glob, variables, lambda variable: variable.name)]
    if not names:
        return "a list of names, or a regex, which has (a|b)"
    pattern = re.compile(_pattern(glob))
    exact = sorted(names) == sorted(variable.name for variable in variables if pattern.search(variable.name))
    if exact and len(names) > _FEW:
        return f"regex: '{pattern.pattern}'"
    return f"name: [{', '.join(names)}]"


def _pattern(glob: str) -> str:
    """A regular expression of what a fold stands for, and of more where several of its numbers grow together."""
    pieces = [re.escape(piece) for piece in _BRACES.split(glob)]
    numbers = [f"({'|'.join(unfold(braces))})" for braces in _BRACES.findall(glob)]
    return "^" + "".join(piece + number for piece, number in zip(pieces, [*numbers, ""], strict=True)) + "$"
