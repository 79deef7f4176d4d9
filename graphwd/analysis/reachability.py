"""Which nodes of a body must run before which."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from graphwd.analysis.postorder import evaluate
from graphwd.graph.body import Body, Node
from graphwd.graph.edge import Use


class Reachability:
    """The paths of a body, by data and control edges."""

    def __init__(self, body: Body, nodes: Mapping[str, Node]) -> None:
        """Remembers a body, which is indexed when that is first needed.

        Args:
            body: the body.
            nodes: its nodes, by name, in an order in which they may run.
        """
        self._nodes = nodes
        self._places = body.places
        self._arguments = frozenset(body.arguments)
        self._results = body.results
        self._ends: dict[str, frozenset[str]] = {}

    def place(self, name: str) -> int:
        """The place of a node in the order of the body; -1 for an argument."""
        node = self._nodes.get(name)
        return -1 if node is None else self._places[node.index]

    def upstream(self, names: Iterable[str]) -> set[str]:
        """The nodes that some nodes depend on by data, directly or not, and these nodes themselves."""
        upstream = {name for name in names if name in self._nodes}
        waiting = list(upstream)
        while waiting:
            for source, _ in self._nodes[waiting.pop()].inputs:
                if source not in upstream and source in self._nodes:
                    upstream.add(source)
                    waiting.append(source)
        return upstream

    @functools.cached_property
    def _users(self) -> Mapping[str, Sequence[str]]:
        """For each node, the nodes that wait for it, by data or control."""
        users: dict[str, list[str]] = defaultdict(list)
        for name, node in self._nodes.items():
            for need, _ in node.inputs:
                users[need].append(name)
            for need in node.controls:
                users[need].append(name)
        return users

    @functools.cached_property
    def _uses(self) -> Mapping[str, Sequence[Use | None]]:
        uses: dict[str, list[Use | None]] = defaultdict(list)
        for name, node in self._nodes.items():
            for position, edge in enumerate(node.inputs):
                uses[edge.node].append(Use(name, position))
        for edge in self._results:
            uses[edge.node].append(None)
        return uses

    def uses(self, name: str) -> Sequence[Use | None]:
        """The fan-out of a node or an argument, as uses; None stands for a result of the body."""
        return self._uses.get(name, ())

    def is_only_for(self, name: str, users: Collection[str]) -> bool:
        """Whether nothing but some nodes waits for a node, by data or control, and it gives no result of the body."""
        return None not in self.uses(name) and all(user in users for user in self._users.get(name, ()))

    def downstream(self, names: Iterable[str], last: str) -> set[str]:
        """The nodes that wait, by data or control, for any of some nodes, and these nodes themselves.

        Args:
            names: the nodes waited for.
            last: the last node that counts, in the order of the body.
        """
        end = self.place(last)
        downstream: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in downstream and self.place(name) <= end:
                downstream.add(name)
                waiting.extend(self._users.get(name, ()))
        return downstream

    def ends(self, name: str) -> frozenset[str]:
        """The nodes at the end of all that waits for a node, which no other waits for."""

        def ends(each: str, behind: Sequence[frozenset[str]]) -> frozenset[str]:
            return frozenset(itertools.chain(*behind)) if behind else frozenset([each])

        return evaluate(name, lambda each: self._users.get(each, ()), ends, frozenset(), self._ends)

    def precedes(self, name: str, last: str) -> bool:
        """Whether a node must run before another, or is that node."""
        return last in self.downstream([name], last)

    def between(self, names: Iterable[str], last: str) -> set[str]:
        """The nodes on the paths from some nodes to another, these included."""
        after = self.downstream(names, last)
        between: set[str] = set()
        waiting = [last] if last in after else []
        while waiting:
            name = waiting.pop()
            if name not in between:
                between.add(name)
                waiting.extend(need for need in self._needs(name) if need in after)
        return between

    def needs(self, name: str) -> list[str]:
        """The nodes that a node waits for, by data or control; arguments are none."""
        return [need for need in self._needs(name) if need not in self._arguments]

    def _needs(self, name: str) -> Iterator[str]:
        node = self._nodes[name]
        yield from (edge.node for edge in node.inputs)
        yield from node.controls
