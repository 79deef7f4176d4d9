"""Which nodes of a traced function must run before which."""

from __future__ import annotations

import pytest
import tensorflow as tf

from graphwd.analysis.reachability import Reachability
from graphwd.graph.body import Body
from graphwd.graph.edge import Use


@pytest.fixture(scope="module")
def reach():
    """Of ``a -> b -> d`` by data, ``c -> d`` by control, ``b -> e`` by data, where ``d`` is returned."""

    @tf.function(input_signature=[tf.TensorSpec([], name="x")], autograph=False)
    def step(x):
        a = tf.exp(x, name="a")
        b = tf.sin(a, name="b")
        c = tf.cos(x, name="c")
        tf.tan(b, name="e")
        with tf.control_dependencies([c]):
            return tf.multiply(b, b, name="d")

    body = Body(step.get_concrete_function().function_def)
    return Reachability(body, {node.name: node for node in body.nodes})


def test_upstream_is_by_data(reach):
    assert reach.upstream(["d"]) == {"a", "b", "d"}
    assert reach.upstream(["x"]) == set()


def test_downstream_is_by_data_and_control(reach):
    assert reach.downstream(["c"], "d") == {"c", "d"}
    assert reach.downstream(["a"], "d") - {"e"} == {"a", "b", "d"}
    assert reach.downstream(["d"], "a") == set()


def test_one_node_before_another(reach):
    assert reach.precedes("c", "d")
    assert reach.precedes("a", "d")
    assert reach.precedes("a", "a")
    assert not reach.precedes("d", "a")
    assert not reach.precedes("c", "b")
    assert reach.place("x") == -1 < reach.place("a") < reach.place("b") < reach.place("d")


def test_nodes_between(reach):
    assert reach.between(["a", "c"], "d") == {"a", "b", "c", "d"}
    assert reach.between(["b"], "a") == set()


def test_fan_in_and_fan_out(reach):
    assert reach.needs("a") == []
    assert reach.needs("d") == ["b", "b", "c"]
    assert set(reach.uses("b")) == {Use("d", 0), Use("d", 1), Use("e", 0)}
    assert reach.uses("x") == [Use("a", 0), Use("c", 0)]
    assert reach.uses("e") == ()


def test_what_no_other_waits_for(reach):
    assert reach.ends("e") == {"e"}
    assert reach.ends("a") == reach.ends("b") == {"e"} | reach.ends("d")
    assert reach.ends("c") == reach.ends("d")
    assert "e" not in reach.ends("c")
