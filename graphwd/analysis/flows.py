"""The flow of data in all bodies of a step that write variables."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

from graphwd.analysis.flow import Flow
from graphwd.analysis.interpreter import BodyValues
from graphwd.analysis.sites import Path, Site, Write
from graphwd.graph.body import Node
from graphwd.graph.edge import EdgeText, data_input
from graphwd.graph.graph import Graph, Variable, is_compiled
from graphwd.graph.ops import WRITE_OPS


class Flows:
    """The flow of data in the bodies of a step that write variables, each read when it is first asked for."""

    def __init__(self, graph: Graph, values: Mapping[Path, BodyValues]) -> None:
        """Remembers the step.

        Args:
            graph: the step.
            values: what is known of the tensors of its bodies, by the calls that lead to each.
        """
        self._graph = graph
        self._values = values
        self._flows: dict[Path, Flow] = {}

    def __contains__(self, path: Path) -> bool:
        """Whether the body that some calls lead to is known: only bodies that write variables are."""
        return path in self._values

    def at(self, path: Path) -> Flow:
        """The flow in the body that some calls lead to."""
        if path not in self._flows:
            body = self._graph.body(path[-1].callee.function) if path else self._graph.root
            outside = (self.at(path[:-1]), path[-1]) if path and path[:-1] in self._values else None
            is_kept = functools.partial(self._is_kept_elsewhere, path)
            self._flows[path] = Flow(self._graph, body, self._values[path], outside, is_kept)
        return self._flows[path]

    def is_compiled(self, path: Path) -> bool:
        """Whether XLA compiles the body that some calls lead to, by itself or in another."""
        functions = (self._graph.library[frame.callee.function] for frame in path)
        return any(map(is_compiled, (self._graph.root_function, *functions)))

    def run_together(self, first: Site, second: Site) -> bool:
        """Whether nothing is run for one of two places without the other, as far as a main graph is concerned.

        A session is taken to be asked for nodes that no other waits for: all that waits for one place has to wait for
        the other. But it is not asked for reads of other variables, as of the powers of beta, which Adam of TensorFlow
        1 reads for nobody when it has written them.
        """
        if not self._graph.is_main:
            return True
        flow = self.at(())
        nodes = [flow.nodes[site.path[0].node if site.path else site.node] for site in (first, second)]
        own = {flow.value(data_input(node.proto, 0)).handle for node in nodes if node.op in WRITE_OPS}

        def ends(node: Node) -> set[str]:
            read = {end: flow.read_by(flow.nodes[end]) for end in flow.reach.ends(node.name)}
            return {end for end, variable in read.items() if variable is None or variable.id in own}

        return ends(nodes[0]) == ends(nodes[1])

    def _is_kept_elsewhere(self, path: Path, variable: Variable) -> bool:
        here = Site(path, "", "")
        writing = [other for other in self._values if other != path and self.at(other).written(variable)]
        # Where no body is known to write it, it is written by a function that updates nothing.
        return not writing or any(
            self.at(other).keeps(variable) for other in writing if not here.excludes(Site(other, "", ""))
        )

    def made_of(self, write: Write) -> frozenset[EdgeText]:
        """The provenance of the written tensor, from the gradient on."""
        flow = self.at(write.site.path)
        return flow.made_of(data_input(flow.nodes[write.site.node].proto, write.op.value))

    def certainly_reads(self, write: Write, variable: Variable) -> bool:
        """Whether the written tensor is computed from a read of a variable in its body."""
        flow = self.at(write.site.path)
        return flow.certainly_reads(data_input(flow.nodes[write.site.node].proto, write.op.value), variable)

    def reads(self, write: Write, without: Collection[EdgeText] = ()) -> frozenset[int]:
        """The variables, by number, that the arithmetic behind a write reads, from the gradient on.

        Args:
            write: the write.
            without: tensors that do not count.
        """
        flow = self.at(write.site.path)
        tensor = data_input(flow.nodes[write.site.node].proto, write.op.value)
        return flow.reads_behind(flow.origin(tensor), without)
