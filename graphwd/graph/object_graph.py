"""Objects that refer to each other by names, and the paths of names that lead to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from graphwd.policy.globs import Glob, composed, forms

Edges = Sequence[Sequence[tuple[str, int]]]
"""For each object, by number, the name and the number of every object that it refers to. The first is the root."""


class ObjectGraph:
    """The paths from a root to objects: the names on the way, joined by dots.

    A path does not return to an object on its shortest path: a layer that refers to its model does not hold the other
    layers by that.
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
        """The shortest path to every reachable object, by number, in breadth-first order."""
        return {number: self.path(number) or "" for number in self._parents}

    def reached_by(self, number: int, glob: str) -> bool:
        """Whether a glob matches the whole of some path to an object."""
        if glob not in self._reached:
            pattern = composed(glob)
            machines = [Glob.of(form) for form in forms(pattern, ".")]
            machines.append(Glob.literal(pattern))
            self._reached[glob] = frozenset().union(*(self._run(machine) for machine in machines))
        return number in self._reached[glob]

    def _run(self, machine: Glob) -> set[int]:
        """The objects with a path that a glob matches. All paths are followed at once, since there may be very many."""
        places = {0: machine.start}
        waiting = deque([0])
        reached: set[int] = set()
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
                        reached.add(child)
        return reached

    def _ancestors(self, number: int) -> set[int]:
        passed = {number}
        while number:
            number = self._parents[number][0]
            passed.add(number)
        return passed
