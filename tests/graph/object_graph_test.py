"""Paths and globs of them, held against every path written out."""

from __future__ import annotations

import fnmatch
import random
import unicodedata

import pytest

from graphwd.graph.object_graph import ObjectGraph
from graphwd.policy.globs import glob_matches

# 0: root, 1: net, 2: a list, 3 and 4: layers, 5 and 6: kernels; the layers refer to the net.
EDGES = [
    [("net", 1), ("first", 3)],
    [("blocks", 2), ("head", 4)],
    [("0", 3), ("1", 4)],
    [("kernel", 5), ("net", 1)],
    [("kernel", 6), ("owner", 1), ("tied", 5)],
    [],
    [],
    [("orphan", 5)],
]


def test_shortest_paths():
    graph = ObjectGraph(EDGES)
    assert graph.paths() == {
        0: "",
        1: "net",
        3: "first",
        2: "net.blocks",
        4: "net.head",
        5: "first.kernel",
        6: "net.head.kernel",
    }
    assert graph.path(7) is None
    assert ObjectGraph([]).paths() == {}


@pytest.mark.parametrize(
    ("glob", "reached"),
    [
        ("first.kernel", {5}),
        ("net.blocks.0.kernel", {5}),
        ("net.blocks.1.kernel", {6}),
        ("net.head.tied", {5}),
        ("*.kernel", {5, 6}),
        ("*.first.kernel", {5}),  # the star and its dot match nothing
        ("net.*.k?rnel", {5, 6}),
        ("net.blocks.[!0].kernel", {6}),
        ("net.blocks.[0].kernel", {5}),
        ("kernel", set()),
        ("net.head.owner.blocks.0.kernel", set()),  # comes back to the net
        ("", set()),
        ("orphan", set()),
    ],
)
def test_globs_of_paths(glob, reached):
    graph = ObjectGraph(EDGES)
    assert {number for number in (5, 6) if graph.reached_by(number, glob)} == reached


def written_out(edges, most=7):
    """Every path of a graph without cycles, by the number of what it leads to."""
    paths = {}

    def follow(number, path):
        for name, child in edges[number]:
            longer = (*path, name)
            paths.setdefault(child, set()).add(".".join(longer))
            if len(longer) < most:
                follow(child, longer)

    follow(0, ())
    return paths


@pytest.mark.parametrize("seed", range(20))
def test_a_glob_reaches_what_one_of_all_paths_matches(seed):
    pick = random.Random(seed)
    names = ["a", "b", "ab", "[0]", "ä"]
    edges = [
        [(pick.choice(names), child) for child in pick.choices(range(number + 1, 9), k=pick.randint(1, 3))]
        if number < 8
        else []
        for number in range(9)
    ]
    paths, graph = written_out(edges), ObjectGraph(edges)
    for _ in range(40):
        glob = "".join(
            pick.choices(["a", "b", ".", "*", "?", "[ab]", "[!a]", "[", "]", "0", "*.", "ä"], k=pick.randint(1, 6))
        )
        expected = {number for number, found in paths.items() if any(glob_matches(path, glob, ".") for path in found)}
        assert {number for number in range(1, 9) if graph.reached_by(number, glob)} == expected, glob


@pytest.mark.parametrize(
    ("name", "glob", "matches"),
    [
        ("head/kernel", "*/head/kernel", True),
        ("net/head/kernel", "*/head/kernel", True),
        ("ahead/kernel", "*/head/kernel", False),
        ("a[0]/w", "a[0]/w", True),
        ("a0/w", "a[0]/w", True),
        ("a[0]/w", "a[[]0]/w", True),
        ("a[0]/w", "*/a[[]0]/w", True),
        (unicodedata.normalize("NFD", "ö/w"), unicodedata.normalize("NFC", "ö/*"), True),
        (unicodedata.normalize("NFC", "ö/w"), unicodedata.normalize("NFD", "?/w"), True),
        ("o/w", unicodedata.normalize("NFD", "ö/w"), False),
    ],
)
def test_globs_of_names(name, glob, matches):
    assert glob_matches(name, glob) is matches


def test_a_graph_of_very_many_paths():
    """Two ways to each of 60 objects, one behind the other: 2 ** 60 paths to the last."""
    edges = [[("a", number + 1), ("b", number + 1)] for number in range(60)] + [[]]
    graph = ObjectGraph(edges)
    assert graph.reached_by(60, "*" + "b.a." * 10 + "b")
    assert not graph.reached_by(60, "*c*")
    assert fnmatch.fnmatchcase(graph.path(60) or "", "a.*.a")
