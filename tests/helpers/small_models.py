"""The smallest SavedModels that a rewrite reads, built from protos: seeds for the fuzz test.

``python -m tests.helpers.small_models`` writes them to tests/models/corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

FLOAT, RESOURCE = 1, 20


def minimal(op: str = "sgd") -> SavedModel:
    """A step that writes ``kernel`` once, by way of a call, a branch or a loop where ``op`` says so."""
    model = SavedModel()
    meta_graph = model.meta_graphs.add()
    update = meta_graph.graph_def.library.function.add()
    update.signature.name = "update_1"
    # The arguments that are bound to objects come last.
    for name, kind in (("data", FLOAT), ("kernel", RESOURCE)):
        update.signature.input_arg.add(name=name, type=kind)  # pyright: ignore[reportArgumentType]
    if op == "adam":
        _adam(update)
    else:
        _node(update, "gradient_tape/Neg", "Neg", ["data"], T=FLOAT)
        _node(update, "write", "AssignSubVariableOp", ["kernel", "gradient_tape/Neg:y:0"], dtype=FLOAT)
    update.control_ret["done"] = "write"
    update.signature.control_output.append("done")
    step = _CALLERS[op](update, meta_graph.graph_def.library) if op in _CALLERS else update
    root = meta_graph.object_graph_def.nodes.add()
    root.user_object.identifier = "_generic_user_object"
    root.children.add(node_id=1, local_name="kernel")
    root.children.add(node_id=2, local_name="step")
    variable = meta_graph.object_graph_def.nodes.add().variable
    variable.name, variable.dtype, variable.trainable = "kernel", FLOAT, True  # pyright: ignore[reportAttributeAccessIssue]
    variable.shape.dim.add(size=3)
    meta_graph.object_graph_def.nodes.add().function.concrete_functions.append(step.signature.name)
    meta_graph.object_graph_def.concrete_functions[step.signature.name].bound_inputs.append(1)
    return model


def _adam(function: Any) -> None:
    for name in ("m", "v"):
        _node(function, name, "VarHandleOp", [], dtype=FLOAT, shape=None)
    _node(function, "x", "Const", [], dtype=FLOAT, value=None)
    inputs = ["kernel", "m:resource:0", "v:resource:0", *["x:output:0"] * 6, "data"]
    _node(function, "write", "ResourceApplyAdam", inputs, T=FLOAT)


def _loop(update: Any, library: Any) -> None:
    """Makes a function the body of a loop, which gives back what it takes, and adds a condition."""
    condition = library.function.add()
    condition.signature.name = "condition_3"
    condition.signature.output_arg.add(name="go_on")
    condition.ret["go_on"] = "data"
    for argument in update.signature.input_arg:
        condition.signature.input_arg.add().CopyFrom(argument)
        update.signature.output_arg.add(name=f"{argument.name}_out")
        update.ret[f"{argument.name}_out"] = argument.name


def _caller(name: str, op: str, inputs: list[str], functions: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    def make(update: Any, library: Any) -> Any:
        if op == "While":
            _loop(update, library)
        step = library.function.add()
        step.signature.name = name
        for argument in update.signature.input_arg:
            step.signature.input_arg.add().CopyFrom(argument)
        node = _node(step, "call", op, inputs)
        for key in ("Tin", "T"):
            node.attr[key].list.type.extend([FLOAT, RESOURCE])
        node.attr["Tout"].list.SetInParent()
        if op == "If":
            node.attr["Tcond"].type = FLOAT
        for key, value in functions.items():
            if isinstance(value, list):
                for each in value:
                    node.attr[key].list.func.add(name=each)
            else:
                node.attr[key].func.name = value
        return step

    return make


_BOTH = ["data", "kernel"]
_CALLERS = {
    "call": _caller("step_2", "StatefulPartitionedCall", _BOTH, {"f": "update_1"}),
    "if": _caller("step_2", "If", ["data", *_BOTH], {"then_branch": "update_1", "else_branch": "update_1"}),
    "case": _caller("step_2", "Case", ["data", *_BOTH], {"branches": ["update_1", "update_1"]}),
    "while": _caller("step_2", "While", _BOTH, {"cond": "condition_3", "body": "update_1"}),
}

MODELS = ("sgd", "adam", *_CALLERS)


def _node(function: Any, name: str, op: str, inputs: list[str], **attributes: int | None) -> Any:
    node = function.node_def.add(name=name, op=op, input=inputs)
    for key, value in attributes.items():
        if value is not None:
            node.attr[key].type = value
        elif key == "shape":
            node.attr[key].shape.SetInParent()
        else:
            node.attr[key].tensor.dtype = FLOAT
            node.attr[key].tensor.float_val.append(0.5)
    return node


def main() -> None:
    """Writes the corpus."""
    folder = Path(__file__).parents[1] / "models" / "corpus"
    folder.mkdir(exist_ok=True)
    for name in MODELS:
        (folder / f"{name}.pb").write_bytes(minimal(name).SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
