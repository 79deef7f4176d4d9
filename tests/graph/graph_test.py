"""The read-only view: edges, order, calls."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwd.errors import GraphError
from graphwd.graph.body import Body
from graphwd.graph.edge import Edge, parse_edge
from graphwd.graph.graph import Callee, Graph
from tests.helpers.graphs import function


@pytest.mark.parametrize(
    ("text", "edge"),
    [
        ("x", Edge("x", 0)),
        ("scope/x:3", Edge("scope/x", 3)),
        ("scope/x:output:2", Edge("scope/x", 2)),
        ("x:value:0", Edge("x", 0)),
    ],
)
def test_edges(text, edge):
    assert parse_edge(text) == edge


def test_a_body_keeps_an_order_that_is_sound_and_mends_one_that_is_not():
    sound = Body(function("b Neg a", "c Neg b:y:0", results=["c:y:0"]))
    assert [node.name for node in sound.nodes] == ["b", "c"]
    assert sound.results == (Edge("c", 0),)
    mended = Body(function("c Neg b:y:0 ^d", "b Neg a", "d NoOp ^b"))
    order = [node.name for node in mended.nodes]
    assert order.index("b") < order.index("d") < order.index("c")
    assert next(node for node in mended.nodes if node.name == "c").inputs == (Edge("b", 0),)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_order_is_mended_and_nothing_is_moved_without_need(data):
    count = data.draw(st.integers(1, 9))
    waits = {f"n{later}": data.draw(st.sets(st.integers(0, later - 1))) if later else set() for later in range(count)}
    given_order = data.draw(st.permutations(list(waits)))
    body = Body(function(*(" ".join([name, "NoOp", *(f"^n{n}" for n in waits[name])]) for name in given_order)))
    order = [node.name for node in body.nodes]
    assert sorted(order) == sorted(given_order)
    assert all(order.index(f"n{n}") < order.index(name) for name in waits for n in waits[name])
    assert [order[place] for place in body.places] == given_order
    early = {name for name in waits if any(given_order.index(f"n{n}") > given_order.index(name) for n in waits[name])}
    while more := {name for name in waits if name not in early and {f"n{n}" for n in waits[name]} & early}:
        early |= more
    kept = [name for name in given_order if name not in early]
    assert [name for name in order if name not in early] == kept


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (["b Neg nowhere:y:0"], "'b' of 'f' has an input from 'nowhere', which does not exist"),
        (["b Neg a ^nowhere"], "'b' of 'f' has an input from 'nowhere'"),
        (["b Neg a", "c Neg a ^b:0"], "'c' of 'f' has an input from 'b:0', which does not exist"),
        (["b Neg c:y:0", "c Neg b:y:0"], "nodes of 'f' wait for each other"),
        (["b Neg a", "b Neg a"], "two nodes named 'b'"),
    ],
)
def test_broken_bodies_are_named(nodes, message):
    with pytest.raises(GraphError, match=message):
        Body(function(*nodes))


def test_two_arguments_of_one_name_are_named():
    body = function("b Neg a")
    body.signature.input_arg.add(name="a")
    with pytest.raises(GraphError, match="'f' has two nodes named 'a'"):
        Body(body)


def test_a_v1_loop_may_close():
    order = [n.name for n in Body(function("m Merge a n:output:0", "n NextIteration m:output:0")).nodes]
    assert order == ["m", "n"]


def test_calls():
    caller = function("i If a a", "p PartitionedCall a", "n Neg a")
    caller.node_def[0].attr["then_branch"].func.name = "then"
    caller.node_def[0].attr["else_branch"].func.name = "else"
    caller.node_def[1].attr["f"].func.name = "g"
    graph = Graph(caller, [function(name="g")], {}, [])
    branch, call, plain = graph.root.nodes
    assert graph.callees(branch) == (Callee("then_branch", 0, "then"), Callee("else_branch", 0, "else"))
    assert graph.callees(call) == (Callee("f", 0, "g"),)
    assert graph.callees(plain) == ()
    assert graph.body("g").arguments == ("a",)
    with pytest.raises(GraphError, match="calls the function 'then', which its library does not hold"):
        graph.body("then")


def test_case_lists_its_branches_in_order():
    caller = function("c Case a a")
    for name in ("x", "y"):
        caller.node_def[0].attr["branches"].list.func.add(name=name)
    graph = Graph(caller, [], {}, [])
    assert graph.callees(graph.root.nodes[0]) == (Callee("branches", 0, "x"), Callee("branches", 1, "y"))
