"""Objects that refer to each other by names, and which paths of names lead to which of them."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence

Edges = Sequence[Sequence[tuple[str, int]]]
"""For each object, by number, the name and the number of every object that it refers to. The first is the root."""


def composed(text: str) -> str:
    """A text in the one Unicode normal form in which names and patterns are compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def glob_matches(name: str, pattern: str, separator: str = "/") -> bool:
    """Whether a pattern is a name, or a glob of all of it; ``*`` matches ``/``, too, and ``*/x`` also ``x``."""
    name, pattern = composed(name), composed(pattern)
    return name == pattern or any(fnmatch.fnmatchcase(name, each) for each in _forms(pattern, separator))


def _forms(pattern: str, separator: str) -> Iterator[str]:
    """A glob, and what is left of it where its first part matches nothing."""
    yield pattern
    if pattern.startswith("*" + separator):
        yield pattern[2:]


class ObjectGraph:
    """The paths from a root to objects: the names on the way, joined by dots.

    A path does not come back to an object that it has passed on the shortest way: a layer that refers to its model does
    not thereby hold the other layers.
    """

    def __init__(self, edges: Edges) -> None:
        """Finds the shortest path to each object, in breadth-first order."""
        self._edges = edges
        self._parents: dict[int, tuple[int, str]] = {0: (0, "")} if edges else {}
        waiting = deque(self._parents)
        while waiting:
            number = waiting.popleft()
            for name, child in edges[number]:
                if child not in self._parents:
                    self._parents[child] = (number, name)
                    waiting.append(child)
        self._reached: dict[str, frozenset[int]] = {}

    def path(self, number: int) -> str | None:
        """The shortest path to an object; None where none leads there."""
        if number not in self._parents:
            return None
        parts: list[str] = []
        while number:
            number, part = self._parents[number]
            parts.append(part)
        return ".".join(reversed(parts))

    def paths(self) -> dict[int, str]:
        """The shortest path to every object that one leads to, by number, in breadth-first order."""
        return {number: self.path(number) or "" for number in self._parents}

    def reached_by(self, number: int, glob: str) -> bool:
        """Whether a glob is the whole of some path to an object."""
        if glob not in self._reached:
            pattern = composed(glob)
            machines = [_Glob(_tokens(each)) for each in _forms(pattern, ".")]
            machines.append(_Glob([re.escape(character) for character in pattern]))
            self._reached[glob] = frozenset().union(*(self._run(machine) for machine in machines))
        return number in self._reached[glob]

    def _run(self, machine: _Glob) -> set[int]:
        """The objects that some path leads to that a glob matches: all paths at once, for there may be very many."""
        places = {0: machine.start}
        waiting = deque([0])
        found: set[int] = set()
        while waiting:
            number = waiting.popleft()
            passed = self._ancestors(number)
            for name, child in self._edges[number]:
                if child in passed:
                    continue
                text = composed(name) if number == 0 else "." + composed(name)
                after = machine.after(places[number], text) | places.get(child, 0)
                if after != places.get(child, 0):
                    places[child] = after
                    waiting.append(child)
                    if after & machine.end:
                        found.add(child)
        return found

    def _ancestors(self, number: int) -> set[int]:
        passed = {number}
        while number:
            number = self._parents[number][0]
            passed.add(number)
        return passed


class _Glob:
    """A glob as a machine that reads a text piece by piece; bit i of a state says that i tokens may be read."""

    def __init__(self, tokens: Sequence[str | None]) -> None:
        self._stars = [token is None for token in tokens]
        self._patterns = [None if token is None else re.compile(token, re.DOTALL) for token in tokens]
        self._seen: dict[tuple[int, str], int] = {}
        self.start = self._rest(1)
        self.end = 1 << len(tokens)

    def after(self, state: int, text: str) -> int:
        """The state after a text."""
        key = (state, text)
        if key not in self._seen:
            for character in text:
                state = self._step(state, character)
            self._seen[key] = state
        return self._seen[key]

    def _step(self, state: int, character: str) -> int:
        after = 0
        for i, pattern in enumerate(self._patterns):
            if state >> i & 1:
                if pattern is None:
                    after |= 1 << i
                elif pattern.fullmatch(character):
                    after |= 1 << i + 1
        return self._rest(after)

    def _rest(self, state: int) -> int:
        """A state, with the stars that may match nothing."""
        for i, star in enumerate(self._stars):
            if star and state >> i & 1:
                state |= 1 << i + 1
        return state


def _tokens(glob: str) -> list[str | None]:
    """The regular expression of each character that a glob matches; None for a ``*``."""
    tokens: list[str | None] = []
    i = 0
    while i < len(glob):
        length = 1
        if glob[i] == "[" and (end := glob.find("]", i + (3 if glob[i + 1 : i + 2] == "!" else 2))) > 0:
            length = end - i + 1
        piece = glob[i : i + length]
        tokens.append(None if piece == "*" else fnmatch.translate(piece))
        i += length
    return tokens
