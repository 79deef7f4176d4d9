"""Takes the names out of a SavedModel, which its graph does not need."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel


def scramble(source: Path, target: Path) -> Path:
    """Copies a SavedModel and gives each node of its functions, and each variable, a name that says nothing.

    Args:
        source: the model.
        target: a directory that does not exist.

    Returns:
        The copy.
    """
    shutil.copytree(source, target)
    file = target / "saved_model.pb"
    model = SavedModel.FromString(file.read_bytes())
    (meta_graph,) = model.meta_graphs
    for function in meta_graph.graph_def.library.function:
        names = {node.name: f"n{i}" for i, node in enumerate(function.node_def)}
        for node in function.node_def:
            node.name = names[node.name]
            node.ClearField("experimental_debug_info")
            inputs = [_renamed(text, names) for text in node.input]
            del node.input[:]
            node.input.extend(inputs)
        for edges in (function.ret, function.control_ret):
            for key in list(edges):
                edges[key] = _renamed(edges[key], names)
    for i, node in enumerate(meta_graph.object_graph_def.nodes):
        if node.HasField("variable"):
            node.variable.name = f"Variable_{i}"
    file.write_bytes(model.SerializeToString(deterministic=True))
    return target


def _renamed(text: str, names: dict[str, str]) -> Any:
    """An edge, or a control input, after its node got another name; arguments keep theirs."""
    mark = "^" if text.startswith("^") else ""
    source, colon, rest = text.removeprefix("^").partition(":")
    return f"{mark}{names.get(source, source)}{colon}{rest}"
