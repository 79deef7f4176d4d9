"""Edges: every notation of TensorFlow's, read and written."""

import pytest
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from graphwd.errors import GraphError
from graphwd.graph.edge import (
    argument_edge,
    control_edge,
    data_input,
    data_inputs,
    graph_edge,
    is_control,
    is_data,
    node_of,
    output_edge,
    output_of,
    parse_edge,
    result_edge,
    source_of,
    sources_of,
    with_node,
)

NODE = NodeDef(name="n", input=["argument", "scope/x:3", "scope/y:output:2", "^scope/z"])


@pytest.mark.parametrize(
    ("text", "source", "output", "of_another"),
    [
        ("argument", "argument", None, "other"),
        ("scope/x:3", "scope/x", None, "other:3"),
        ("scope/y:output:2", "scope/y", "output", "other:output:2"),
        ("^scope/z", "scope/z", None, "^other"),
    ],
)
def test_an_input_is_cut_into_its_parts(text, source, output, of_another):
    assert source_of(text) == source
    assert output_of(text) == output
    assert with_node(text, "other") == of_another
    assert is_control(text) == text.startswith("^")
    assert is_control(text) or parse_edge(text).node == node_of(text) == source


def test_what_is_written_is_read_again():
    assert source_of(control_edge("x")) == "x"
    assert is_control(control_edge("x"))
    for index in (0, 1, 12):
        edge, in_graph = output_edge("x", "value", index), graph_edge("x", index)
        assert parse_edge(edge) == parse_edge(in_graph) == ("x", index)
        assert (output_of(edge), output_of(in_graph)) == ("value", None)
    assert output_edge("x", "value") == "x:value:0"
    assert graph_edge("x", 0) == "x"


def test_inputs_of_a_node():
    assert data_inputs(NODE) == ["argument", "scope/x:3", "scope/y:output:2"]
    assert sources_of(NODE) == ["argument", "scope/x", "scope/y", "scope/z"]
    assert data_inputs(NodeDef()) == sources_of(NodeDef()) == []


def test_edges_are_taken_from_protos_as_they_are():
    assert [text for text in NODE.input if is_data(text)] == data_inputs(NODE)
    assert [data_input(NODE, position) for position in range(3)] == data_inputs(NODE)
    assert result_edge(FunctionDef(ret={"y": "x:value:1"}), "y") == "x:value:1"
    assert parse_edge(argument_edge("x")) == ("x", 0)


def test_an_output_of_a_number_that_no_node_has_is_refused():
    with pytest.raises(GraphError, match=r"'x' has no output of number 1234567890\.\.\."):
        parse_edge("x:output:12345678901")
