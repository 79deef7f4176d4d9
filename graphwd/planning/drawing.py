# pyright: basic
"""Places the boxes and edges of update graphs, each structure once; the layout itself is grandalf's."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grandalf.graphs import Edge, Graph, Vertex
from grandalf.layouts import SugiyamaLayout, VertexViewer
from grandalf.routing import EdgeViewer, route_with_lines

from graphwd.planning.update_graph import Box, Line, Structure, When

WIDTH, HEIGHT = 180, 44
"""The size of a box, in pixels."""

_GAP_X, _GAP_Y, _MARGIN = 16, 34, 14
_SWEEPS = 8
"""How often the layers are gone through to have fewer edges cross."""

_ATTEMPTS = 24
"""How many layouts are made of a structure, to take the best."""

_TOGETHER = 4
"""How many times worse it is if a new edge is long than if another is."""

_SPREAD = 0.7
"""The part of the width of a box over which edges are spread that meet it on one side."""

_ARROW = 6
_Point = tuple[float, float]
_Pair = tuple[int, int]
"""The numbers of two boxes, with an edge from the first to the second."""


@dataclass(frozen=True, slots=True)
class PlacedBox:
    """A box, its upper left corner and its size."""

    box: Box
    x: int
    y: int
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True, slots=True)
class PlacedLine:
    """An edge: its path as SVG has it, and the point of its arrow."""

    line: Line
    path: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """A structure, placed; in pixels.

    Attributes:
        width: its width.
        height: its height.
        boxes: its boxes, in the order of the structure.
        lines: its edges.
    """

    width: int
    height: int
    boxes: tuple[PlacedBox, ...]
    lines: tuple[PlacedLine, ...]


def drawing_of(structure: Structure) -> Drawing:
    """Places a structure: what an op is computed from lies above it, as near as can be.

    Args:
        structure: what is drawn; its edges close no cycle.
    """
    # What is injected is to be seen at once, and so lies together.
    weights = {(line.source, line.target): _TOGETHER if line.when is When.AFTER else 1 for line in structure.lines}
    pairs = list(weights)
    layout = _layout(len(structure.boxes), weights)
    centres, bends = layout.centres, layout.bends
    starts, ends = _ports(pairs, centres, bends)
    paths = {pair: [starts[pair], *bends[pair], ends[pair]] for pair in pairs}
    return Drawing(
        round(layout.width),
        round(max(y for _, y in centres) + HEIGHT / 2 + _MARGIN),
        tuple(
            PlacedBox(box, round(x - WIDTH / 2), round(y - HEIGHT / 2))
            for box, (x, y) in zip(structure.boxes, centres, strict=True)
        ),
        tuple(_placed(line, paths[line.source, line.target]) for line in structure.lines),
    )


class _Vertex(Vertex):
    """A vertex by whose number sets of vertices are ordered, and not by where in memory it lies."""

    def __hash__(self) -> int:
        return hash(self.data)


class _Edge(Edge):
    """Likewise an edge, whose data are the numbers of its vertices."""

    def __hash__(self) -> int:
        return hash(self.data)


@dataclass(frozen=True, slots=True)
class _Layout:
    """A layout of boxes and edges.

    Attributes:
        centres: the centre of each box.
        bends: for each pair of boxes the points by which its edge leads around others.
        width: the width of the whole.
    """

    centres: Sequence[_Point]
    bends: Mapping[_Pair, Sequence[_Point]]
    width: float

    def length(self, weights: Mapping[_Pair, int]) -> float:
        """How far all edges go to the side, each times a weight."""
        total = 0.0
        for (source, target), bent in self.bends.items():
            xs = [x for x, _ in (self.centres[source], *bent, self.centres[target])]
            total += weights[source, target] * sum(abs(one - other) for one, other in itertools.pairwise(xs))
        return total


def _layout(count: int, weights: Mapping[_Pair, int]) -> _Layout:
    """The best of some layouts: what grandalf finds depends on the order in which it is given boxes and edges.

    Args:
        count: the number of boxes.
        weights: for each pair of boxes with an edge, how much is lost where that is long.
    """
    pairs = list(weights)
    layouts: list[_Layout] = []
    for attempt in range(_ATTEMPTS):
        choose = random.Random(attempt)
        layouts.append(_attempt(choose.sample(range(count), count), choose.sample(pairs, len(pairs))))
    return min(layouts, key=lambda layout: layout.length(weights))


def _attempt(order: Sequence[int], pairs: Iterable[_Pair]) -> _Layout:
    vertices = {number: _Vertex(number) for number in order}
    # Upside down: grandalf puts each vertex next to what leads to it, and here each input next to what uses it.
    edges = [_Edge(vertices[target], vertices[source], data=(source, target)) for source, target in pairs]
    graph: Any = Graph(list(vertices.values()), edges)
    centres: dict[int, _Point] = {}
    bends: dict[_Pair, Sequence[_Point]] = {}
    left = 0.0
    for component in graph.C:
        for vertex in component.sV:
            vertex.view = VertexViewer(w=WIDTH, h=HEIGHT)
        for edge in component.sE:
            edge.view = EdgeViewer()
        layout: Any = SugiyamaLayout(component)
        layout.xspace, layout.yspace = _GAP_X, _GAP_Y
        layout.route_edge = route_with_lines
        layout.init_all()
        layout.draw(_SWEEPS)
        points = {edge.data: [(x, -y) for x, y in reversed(edge.view._pts[1:-1])] for edge in component.sE}
        sides = [vertex.view.xy[0] + side for vertex in component.sV for side in (-WIDTH / 2, WIDTH / 2)]
        sides += [x for bent in points.values() for x, _ in bent]
        shift = left + _MARGIN - min(sides)
        centres |= {vertex.data: (vertex.view.xy[0] + shift, -vertex.view.xy[1]) for vertex in component.sV}
        bends |= {pair: [(x + shift, y) for x, y in bent] for pair, bent in points.items()}
        left = max(sides) + shift
    top = min(y for _, y in centres.values()) - HEIGHT / 2 - _MARGIN
    return _Layout(
        [(centres[number][0], centres[number][1] - top) for number in range(len(order))],
        {pair: [(x, y - top) for x, y in bent] for pair, bent in bends.items()},
        left + _MARGIN,
    )


def _ports(
    pairs: Iterable[_Pair],
    centres: Sequence[_Point],
    bends: Mapping[_Pair, Sequence[_Point]],
) -> tuple[Mapping[_Pair, _Point], Mapping[_Pair, _Point]]:
    """Where each edge leaves its source and meets its target, spread in the order of where it goes and comes from."""
    leaving: dict[int, list[tuple[float, _Pair]]] = defaultdict(list)
    meeting: dict[int, list[tuple[float, _Pair]]] = defaultdict(list)
    for pair in pairs:
        source, target = pair
        points = [centres[source], *bends[pair], centres[target]]
        leaving[source].append((points[1][0], pair))
        meeting[target].append((points[-2][0], pair))
    return (
        {pair: (x, centres[pair[0]][1] + HEIGHT / 2) for pair, x in _spread(leaving, centres)},
        {pair: (x, centres[pair[1]][1] - HEIGHT / 2) for pair, x in _spread(meeting, centres)},
    )


def _spread(sides: Mapping[int, list[tuple[float, _Pair]]], centres: Sequence[_Point]) -> Iterable[tuple[_Pair, float]]:
    for number, edges in sides.items():
        for place, (_, pair) in enumerate(sorted(edges), 1):
            yield pair, centres[number][0] + WIDTH * _SPREAD * (place / (len(edges) + 1) - 0.5)


def _placed(line: Line, points: Sequence[_Point]) -> PlacedLine:
    """An edge as a curve that leaves, passes and arrives upright."""
    (x, y), *rest = points
    rest[-1] = rest[-1][0], rest[-1][1] - _ARROW
    path = [f"M{x:.0f} {y:.0f}"]
    for next_x, next_y in rest:
        middle = (y + next_y) / 2
        path.append(f"C{x:.0f} {middle:.0f} {next_x:.0f} {middle:.0f} {next_x:.0f} {next_y:.0f}")
        x, y = next_x, next_y
    return PlacedLine(line, "".join(path), round(x), round(y + _ARROW))
