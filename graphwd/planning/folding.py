"""Folds names that differ in their numbers alone, as the blocks of a deep model do: ``layer_{0…11}/kernel``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

_NUMBER = re.compile(r"([0-9]{1,18})")
_BRACES = re.compile(r"\{([0-9]{1,18}(?:[…,][0-9]{1,18})*)\}")

_MOST = 10_000
"""How many names a fold is taken apart into; no model has as many blocks."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Names in one line.

    Attributes:
        text: the name, where it stands for one; else the name with its numbers in braces. ``{0…2,5}`` is 0, 1, 2 and 5.
            Several braces count together: ``a{0,1}/b{4,5}`` is ``a0/b4`` and ``a1/b5``.
        members: where the names stand in what was folded, in the order of their numbers.
    """

    text: str
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    """A name, parsed: its place among all, and the numbers in it, as they are written."""

    place: int
    numbers: tuple[str, ...]


def fold(names: Sequence[str], alike: Sequence[Hashable]) -> list[Fold]:
    """Folds names.

    Names fold where they differ in one number, or in several that grow together, and in nothing else.

    Args:
        names: the names.
        alike: for each a value; only names with equal values fold.

    Returns:
        The folds, in the order of their first names. Each name is in exactly one.
    """
    groups: dict[Hashable, list[_Name]] = {}
    for place, (name, value) in enumerate(zip(names, alike, strict=True)):
        parts = _NUMBER.split(name)
        groups.setdefault((value, *parts[::2]), []).append(_Name(place, tuple(parts[1::2])))
    folds = [_folded(members, names) for group in groups.values() for members in _lines(group)]
    return sorted(folds, key=lambda each: min(each.members))


def unfold(text: str) -> list[str]:
    """The names that the text of a fold stands for; the text alone where it is none.

    Args:
        text: what `fold` gave, or what a user wrote.
    """
    parts = _BRACES.split(text)
    if len(parts) == 1:
        return [text]
    columns = [list(itertools.islice(_numbers(braces), _MOST)) for braces in parts[1::2]]
    names: list[str] = []
    for numbers in zip(*columns, strict=False):
        parts[1::2] = numbers
        names.append("".join(parts))
    return names


def _numbers(braces: str) -> Iterator[str]:
    """The numbers in braces, each to the width of the first of its range."""
    for run in braces.split(","):
        first, last = run.split("…")[0], run.split("…")[-1]
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))


def _lines(group: list[_Name]) -> Iterator[list[_Name]]:
    """Parts of a group, each of names in which at most one number differs, or in which all that do grow together."""
    differ = [
        (len(values), position)
        for position, values in enumerate(map(set, zip(*(name.numbers for name in group), strict=True)))
        if len(values) > 1
    ]
    if not differ:  # the same name several times
        yield from ([name] for name in group)
        return
    group = sorted(group, key=lambda name: int(name.numbers[differ[0][1]]))
    if all(_grows(group, position) for _, position in differ):
        yield group
        return
    _, fewest = min(differ)
    for value in dict.fromkeys(name.numbers[fewest] for name in group):
        yield from _lines([name for name in group if name.numbers[fewest] == value])


def _grows(group: Sequence[_Name], position: int) -> bool:
    numbers = [int(name.numbers[position]) for name in group]
    return all(before < after for before, after in itertools.pairwise(numbers))


def _folded(members: Sequence[_Name], names: Sequence[str]) -> Fold:
    parts = _NUMBER.split(names[members[0].place])
    for position, values in enumerate(zip(*(name.numbers for name in members), strict=True)):
        if len(set(values)) > 1:
            parts[2 * position + 1] = f"{{{','.join(_ranges(values))}}}"
    return Fold("".join(parts), tuple(name.place for name in members))


def _ranges(numbers: Sequence[str]) -> Iterator[str]:
    """Growing numbers, each run of at least three as its ends."""
    if any(text != str(int(text)) for text in numbers) and len(set(map(len, numbers))) > 1:
        yield from numbers  # zeros in front, not to one width: a range would not tell them
        return
    first = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or int(numbers[place]) != int(numbers[place - 1]) + 1:
            run = numbers[first:place]
            yield from [f"{run[0]}…{run[-1]}"] if len(run) > 2 else run
            first = place
