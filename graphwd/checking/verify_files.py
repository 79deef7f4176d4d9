"""Loads the pairs that `graphwd verify` verifies: steps or SavedModels, and their rewritten SavedModels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphwd.analysis.updates import find_updates
from graphwd.checking.verify import Pair
from graphwd.errors import StepError, UsageError
from graphwd.graph.traits import HANDLE_OPS
from graphwd.models.entry_points import Exports
from graphwd.models.export import concrete_functions, load_exported, load_function, load_model
from graphwd.models.saved_model import is_v2, read_model
from graphwd.steps.read import ConcreteFunction, is_concrete, read, rooted, undecorated, variables_of


def step_pairs(step: Any, name: str, rewritten: str | os.PathLike[str]) -> list[Pair]:
    """Pairs every trace of a step with the SavedModel that `graphwd.models.export.export` wrote of it.

    Args:
        step: the step.
        name: its name.
        rewritten: the SavedModel directory.

    Returns:
        A pair for each trace.

    Raises:
        StepError: the directory holds no such step, or the step's arguments are not known.
    """
    traces: list[Any] = concrete_functions(undecorated(step), name)
    loaded, variables = load_exported(rewritten, name)
    places: dict[int, int] = {}
    for trace in traces:
        trace.graphwd_module = step  # a trace does not keep its variables, and nobody else may hold the step
        for variable in variables_of(trace):
            places.setdefault(id(variable), len(places))
    if len(variables) < len(places):
        raise StepError(f"{rewritten}: holds {len(variables)} variables, the step has {len(places)}; rewrite it again")
    return [
        Pair(trace, loaded, [variables[places[id(v)]] for v in variables_of(trace)], _named("trace", number, traces))
        for number, trace in enumerate(traces)
    ]


def model_pairs(source: str, name: str | None, rewritten: str | os.PathLike[str]) -> list[Pair]:
    """Pairs every trace that trains, of every function and signature of a SavedModel, with that of another.

    Args:
        source: the SavedModel directory.
        name: a function or signature; None for all that train.
        rewritten: the directory of the rewritten SavedModel.

    Returns:
        A pair for each trace.

    Raises:
        StepError: a directory holds no SavedModel, or the two do not match, or the variables are v1 references.
        UsageError: a TensorFlow 1 SavedModel without a name.
    """
    model = read_model(Path(source))
    if not is_v2(model):
        if name is None:
            raise UsageError(f"{source}: name one signature of a TensorFlow 1 model to verify, as {source}:train")
        nodes = [node for meta_graph in model.meta_graphs for node in meta_graph.graph_def.node]
        references = (node.name for node in nodes if node.op in HANDLE_OPS and node.op != "VarHandleOp")
        if (reference := next(references, None)) is not None:
            raise StepError(
                f"{source}: TensorFlow 2, in which 'verify' runs a step, does not train the reference variables of "
                f"TensorFlow 1, such as '{reference}'; compare the two models in a session"
            )
        decayed, variables = load_function(rewritten, name)
        return [Pair(load_function(source, name)[0], decayed, variables)]
    entries, _, _ = Exports(model.meta_graphs[0]).choose(None if name is None else [name])
    before, after = load_model(source), load_model(rewritten)
    pairs: list[Pair] = []
    for entry, signature in dict.fromkeys((entry.name, entry.signature) for entry in entries):
        traces = _traces(before, entry, source, signature=signature)
        decayed_traces = _traces(after, entry, rewritten, signature=signature)
        if len(traces) != len(decayed_traces):
            raise StepError(
                f"{rewritten}: '{entry}' has {len(decayed_traces)} traces, but {len(traces)} in {source}; "
                "rewrite it again"
            )
        for number, (trace, decayed) in enumerate(zip(traces, decayed_traces, strict=True)):
            if _trains(trace):
                what = f"signature {entry}" if signature else entry
                title = what if len(traces) == 1 else f"{what}, trace {number + 1}"
                pairs.append(Pair(trace, decayed, variables_of(decayed), title, partial=True))
    return pairs if len(pairs) > 1 else [pair._replace(function="", partial=False) for pair in pairs]


def _trains(trace: ConcreteFunction) -> bool:
    return any(account.writes for account in find_updates(read(trace)).variables)


def _traces(loaded: Any, name: str, folder: str | os.PathLike[str], *, signature: bool) -> list[ConcreteFunction]:
    function: Any = loaded.signatures.get(name) if signature else loaded
    for part in () if signature else name.split("."):
        function = getattr(function, part, None)
    traces: list[Any] = [function] if is_concrete(function) else list(getattr(function, "concrete_functions", ()))
    if not traces:
        raise StepError(f"{folder}: holds no function or signature '{name}'")
    for trace in traces:
        trace.graphwd_module = loaded  # a restored function does not keep its variables
    return [rooted(trace, loaded) for trace in traces]


def _named(what: str, number: int, every: Sequence[object]) -> str:
    return f"{what} {number + 1}" if len(every) > 1 else ""
