"""Rewrites SavedModels as files: their protos are edited, and nothing is loaded, run, or read of their weights.

TensorFlow internals used here, and why there is no public way:

* ``fingerprinting.CreateFingerprintDef``: the hashes in ``fingerprint.pb``, which TensorFlow alone defines.

Checked on TensorFlow 2.21.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

from graphwd.entry_points import EntryPoint, choose, entry_points, is_wrapper, rewritten_functions, signature_call, view
from graphwd.errors import StepError
from graphwd.function_library import NewNames, original_name, reachable, rename, set_library
from graphwd.graph import RECORD, Graph
from graphwd.inject import Rewritten, decay_of, inject, refuse_rewritten, take_out
from graphwd.interpreter import Interpreter, Site
from graphwd.model_files import Files, fill, new_directory, refuse_existing
from graphwd.placement import place
from graphwd.planner import Plan, make_plan
from graphwd.policy import PolicyLike, as_policy
from graphwd.updates import find_updates
from graphwd.well_formed import check_meta_graph

MODEL_FILE = "saved_model.pb"
FINGERPRINT_FILE = "fingerprint.pb"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Bounds the depth of what is read: a chain of thousands of nodes, functions or objects is refused."""
    try:
        yield
    except RecursionError:
        raise StepError("the model's graph is nested too deeply to be read") from None


def as_saved_model(text: str) -> tuple[str, str | None] | None:
    """Reads ``DIR`` or ``DIR:NAME``.

    Args:
        text: what a user wrote.

    Returns:
        The directory and the name of a function or signature; None where it names no directory.
    """
    if os.path.isdir(text):
        return text, None
    folder, _, name = text.rpartition(":")
    return (folder, name) if folder and os.path.isdir(folder) else None


@_bounded()
def plan_saved_model(
    source: str | os.PathLike[str], policy: PolicyLike, functions: Iterable[str] | None = None
) -> Plan:
    """Decides what `rewrite_saved_model` would do, and writes nothing.

    Args:
        source: a SavedModel directory.
        policy: a `Policy`, a path or a mapping.
        functions: names of exported functions or signatures; None for all that train.

    Returns:
        The plan; where `rewrite_saved_model` would refuse, its ``problems`` say why.

    Raises:
        GraphwdError: the policy or the SavedModel is malformed, or there is no such function.
    """
    meta_graph = _only_meta_graph(_read(Path(source)), Path(source))
    graph, _ = _view(meta_graph, functions)
    return make_plan(find_updates(graph), as_policy(policy))


@_bounded()
def rewrite_saved_model(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    policy: PolicyLike,
    functions: Iterable[str] | None = None,
    *,
    overwrite: bool = False,
    link: bool = False,
) -> Plan:
    """Gives the training steps of a SavedModel weight decay.

    Save, restore, initializers and every function not asked for stay as they are, and so does every other file.

    Args:
        source: a SavedModel directory; it is never modified.
        target: the directory to write; it appears complete or not at all.
        policy: a `Policy`, a path or a mapping.
        functions: names of exported functions or signatures; None for all that train.
        overwrite: whether a target that exists is replaced, in one step.
        link: whether weights and assets are hard links to those of the source, where they cannot be shared otherwise.

    Returns:
        The plan.

    Raises:
        GraphwdError: the policy does not fit the model, the model is malformed, or the target cannot be written.
    """
    source, target = Path(source), Path(target)
    rules = as_policy(policy)
    model = _read(source)
    refuse_existing(target, source, overwrite=overwrite)
    meta_graph = _only_meta_graph(model, source)
    graph, entries = _view(meta_graph, functions)
    plan = make_plan(find_updates(graph), rules)
    plan.check()
    _replace(meta_graph, entries, inject(graph, plan.injections, NewNames(graph.library)))
    write_model(model, source, target, overwrite=overwrite, link=link)
    return plan


@_bounded()
def describe_saved_model(source: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Says what graphwd has done to a SavedModel.

    Args:
        source: a SavedModel directory.

    Returns:
        For every decay in it, and every way that leads to it: ``variable``, ``at``, ``where``, ``rate``,
        ``learning_rate``, ``rows``. Empty where graphwd has not rewritten it.

    Raises:
        GraphwdError: the SavedModel is malformed.
    """
    meta_graph = _only_meta_graph(_read(Path(source)), Path(source))
    if not any(RECORD in node.attr for f in meta_graph.graph_def.library.function for node in f.node_def):
        return []
    graph = view(meta_graph, entry_points(meta_graph))
    run = Interpreter(graph, told_apart=False).run()
    found = []
    for site, variable in run.injected.items():
        function = graph.library[site.path[-1].callee.function]
        (node,) = (node for node in function.node_def if node.name == site.node)
        record = decay_of(node)
        keys = ("where", "rate", "learning_rate", "rows")
        at = place(Site(site.path, record["write"], ""))
        found.append({"variable": variable.name, "at": at, **{key: record[key] for key in keys}})
    return found


@_bounded()
def strip(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    link: bool = False,
) -> int:
    """Takes graphwd's own decay out of a SavedModel again.

    Args:
        source: a SavedModel that graphwd has rewritten; it is never modified.
        target: the directory to write. Its graph equals the one that was rewritten.
        overwrite: whether a target that exists is replaced, in one step.
        link: whether weights and assets are hard links to those of the source, where they cannot be shared otherwise.

    Returns:
        How many decays were taken out.

    Raises:
        GraphwdError: there is none, the model is malformed, or the target cannot be written.
    """
    source, target = Path(source), Path(target)
    model = _read(source)
    refuse_existing(target, source, overwrite=overwrite)
    meta_graph = _only_meta_graph(model, source)
    library = {function.signature.name: function for function in meta_graph.graph_def.library.function}
    count = sum(len(take_out(function)) for function in library.values())
    renamed = {name: original_name(name) for name in library if original_name(name) != name}
    if not count:
        raise StepError(f"{source}: holds no decay of graphwd")
    rename(meta_graph, renamed)
    # Where the original had to stay, its copy is the same again.
    kept: dict[str, FunctionDef] = {}
    for function in meta_graph.graph_def.library.function:
        kept.setdefault(function.signature.name, function)
    set_library(meta_graph, list(kept.values()))
    write_model(model, source, target, overwrite=overwrite, link=link)
    return count


def write_model(model: SavedModel, source: Path, target: Path, *, overwrite: bool, link: bool) -> None:
    """Writes a changed SavedModel with all other files of the original.

    Args:
        model: the changed proto.
        source: the original directory.
        target: the directory to write.
        overwrite: whether a target that exists is replaced.
        link: whether other files are hard links.

    Raises:
        StepError: a file cannot be read or written.
    """
    files = Files.LINK if link else Files.COPY
    content = model.SerializeToString(deterministic=True)
    # Where nothing changed, the fingerprint stays, too: a new one would have another UUID.
    changed = {} if content == (source / MODEL_FILE).read_bytes() else {MODEL_FILE: content}
    with new_directory(target, overwrite=overwrite) as folder:
        fill(folder, source, changed, files, removed=[FINGERPRINT_FILE] if changed else [])
        if changed and (source / FINGERPRINT_FILE).exists():
            # Without one TensorFlow makes do; with a wrong one it would not.
            with contextlib.suppress(fingerprinting.FingerprintException):
                path: Any = os.fsencode(folder)  # a path need not be UTF-8; the stubs know no bytes
                made = fingerprinting.CreateFingerprintDef(path)
                (folder / FINGERPRINT_FILE).write_bytes(made)


def read_model(source: Path) -> SavedModel:
    """Reads the proto of a SavedModel.

    Args:
        source: the directory.

    Returns:
        The proto.

    Raises:
        StepError: there is none, or it is malformed.
    """
    return _read(source)


def _read(source: Path) -> SavedModel:
    if not os.path.isdir(source):
        raise StepError(f"{source}: no such directory; name a SavedModel directory")
    path = source / MODEL_FILE
    if not path.exists():
        for other, what in (("saved_model.pbtxt", "in text form"), ("saved_model.cpb", "in chunks")):
            if (source / other).exists():
                raise StepError(f"{source / other}: a SavedModel {what} is not supported; save it as {MODEL_FILE}")
        raise StepError(f"{source}: holds no {MODEL_FILE}, so it is no SavedModel")
    if not path.is_file():
        raise StepError(f"{path}: cannot be read: it is no file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StepError(f"{path}: cannot be read: {error.strerror}") from None
    model = SavedModel()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise StepError(f"{path}: is truncated or damaged: it does not parse as a SavedModel") from None
    if not model.meta_graphs:
        raise StepError(f"{path}: is empty: it holds no graph")
    return model


def _only_meta_graph(model: SavedModel, source: Path) -> MetaGraphDef:
    if len(model.meta_graphs) > 1 or not model.meta_graphs[0].object_graph_def.nodes:
        raise StepError(f"{source}: a SavedModel of TensorFlow 1, which this version does not rewrite")
    check_meta_graph(model.meta_graphs[0])
    return model.meta_graphs[0]


def _view(meta_graph: MetaGraphDef, functions: Iterable[str] | None) -> tuple[Graph, list[EntryPoint]]:
    refuse_rewritten(view(meta_graph, ()))
    entries = choose(meta_graph, functions)
    return view(meta_graph, entries), entries


def _replace(meta_graph: MetaGraphDef, entries: list[EntryPoint], rewritten: Rewritten) -> None:
    """Puts the rewritten functions into the model, and takes out those that nothing refers to any more."""
    before = reachable(meta_graph)
    called = rewritten_functions(rewritten.root, rewritten.functions, entries)
    library = meta_graph.graph_def.library.function
    copies: dict[str, list[FunctionDef]] = {}
    for function in rewritten.functions:
        if not is_wrapper(function.signature.name):
            copies.setdefault(original_name(function.signature.name), []).append(function)
    # Beside the original, so that taking the decay out again gives the library in its order.
    together = [each for function in library for each in (function, *copies.get(function.signature.name, ()))]
    set_library(meta_graph, together)
    for entry, name in zip(entries, called, strict=True):
        if name != entry.function:
            _refer_to(meta_graph, entry, name)
    lost = before - reachable(meta_graph)
    set_library(meta_graph, [function for function in library if function.signature.name not in lost])
    for name in lost:
        meta_graph.object_graph_def.concrete_functions.pop(name, None)
        meta_graph.meta_info_def.function_aliases.pop(name, None)


def _refer_to(meta_graph: MetaGraphDef, entry: EntryPoint, name: str) -> None:
    """Lets everything that refers to an entry point's function refer to another."""
    objects = meta_graph.object_graph_def
    for number in entry.nodes:
        node = objects.nodes[number]
        if node.WhichOneof("kind") == "function":
            names = [name if each == entry.function else each for each in node.function.concrete_functions]
            node.function.concrete_functions[:] = names
        else:
            node.bare_concrete_function.concrete_function_name = name
    objects.concrete_functions[name].CopyFrom(objects.concrete_functions[entry.function])
    aliases = meta_graph.meta_info_def.function_aliases
    if entry.function in aliases:
        aliases[name] = aliases[entry.function]
    if entry.signature:
        _call_instead(meta_graph, entry, name)


def _call_instead(meta_graph: MetaGraphDef, entry: EntryPoint, name: str) -> None:
    """Lets the main graph run a signature's rewritten function."""
    names = set(signature_call(meta_graph, entry.name))
    calls = [node for node in meta_graph.graph_def.node if node.name in names and "f" in node.attr]
    calls = [node for node in calls if node.attr["f"].func.name == entry.function]
    if names and not calls:
        raise StepError(f"the outputs of the signature '{entry.name}' do not come from its function; name another")
    for node in calls:
        node.attr["f"].func.name = name
