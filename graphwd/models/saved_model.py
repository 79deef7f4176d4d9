"""Rewrites SavedModels as files: edits their protos, without loading or running them or reading their weights.

TensorFlow internals used here, and why there is no public way:

* ``fingerprinting.CreateFingerprintDef``: the hashes in ``fingerprint.pb``, which TensorFlow alone defines.

Checked on TensorFlow 2.16, 2.17, 2.18, 2.19, 2.20 and 2.21 (tools/test_versions).
"""

from __future__ import annotations

import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

from graphwd.errors import StepError
from graphwd.garbage import collection_paused
from graphwd.graph.well_formed import check_meta_graph
from graphwd.models.files import Files, check_files, fill, new_directory, refuse_existing
from graphwd.models.target import Model, Output, describe, plan, rewrite, strip_model
from graphwd.models.v1 import MainGraph, describe_main_graph, strip_main_graph
from graphwd.models.v2 import TrainingFunctions, describe_functions, strip_functions
from graphwd.planning.plan import Plan
from graphwd.policy.rules import Policy, PolicyLike, as_policy
from graphwd.rewriting.part import Prepared, plan_part

_Proto = TypeVar("_Proto", SavedModel, MetaGraphDef)

MODEL_FILE = "saved_model.pb"
FINGERPRINT_FILE = "fingerprint.pb"
_SHARD = re.compile(r"variables\.data-\d{5}-of-(\d{5})")


@contextlib.contextmanager
def _bounded() -> Generator[None]:
    """Limits the depth of a model: a chain of thousands of nodes, functions or objects is refused."""
    try:
        with collection_paused():
            yield
    except RecursionError:
        raise StepError("the model's graph is nested too deeply to be read") from None


def plan_saved_model(
    source: str | os.PathLike[str], policy: PolicyLike, functions: Iterable[str] | None = None
) -> Plan:
    """Decides what `rewrite_saved_model` would do, and writes nothing.

    Args:
        source: a SavedModel directory, or a ``.meta`` file.
        policy: a `Policy`, a path or a mapping.
        functions: names of exported functions or signatures; None for all that train.

    Returns:
        The plan, of all graphs; where `rewrite_saved_model` would refuse, its ``problems`` say why.

    Raises:
        GraphwdError: the policy or the SavedModel is malformed, or there is no such function.
    """
    rules = as_policy(policy)
    return plan(open_model(source, functions), rules)


def rewrite_saved_model(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    policy: PolicyLike,
    functions: Iterable[str] | None = None,
    *,
    overwrite: bool = False,
    link: bool = False,
) -> Plan:
    """Gives the training steps of a SavedModel, or a TensorFlow 1 MetaGraph, weight decay.

    Save, restore, initializers and every function not asked for stay as they are, and so does every other file.

    Args:
        source: a SavedModel directory, or a ``.meta`` file; it is never modified.
        target: the directory to write; it appears complete or not at all. Of a ``.meta`` file it gets the changed file
            and its checkpoint, under their own names.
        policy: a `Policy`, a path or a mapping.
        functions: names of exported functions or signatures, of a TensorFlow 1 SavedModel the tags of a graph; None for
            all that train.
        overwrite: whether a target that exists is replaced, in one step.
        link: whether weights and assets are hard links to those of the source, where they cannot be shared otherwise.

    Returns:
        The plan, of all graphs.

    Raises:
        GraphwdError: the policy does not fit the model, the model is malformed, or the target cannot be written.
    """
    rules = as_policy(policy)
    return rewrite(open_model(source, functions), rules, Output(Path(target), overwrite, link))


def describe_saved_model(source: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Says what graphwd has done to a SavedModel or a MetaGraph.

    Args:
        source: a SavedModel directory, or a ``.meta`` file.

    Returns:
        For every decay in it, and every way that leads to it: ``variable``, ``label``, ``at``, ``where``,
        ``rate``, ``learning_rate``, ``power``, ``formula``, ``rows``. Empty where graphwd has not rewritten it.

    Raises:
        GraphwdError: the SavedModel is malformed.
    """
    return describe(open_model(source))


def strip(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    link: bool = False,
) -> int:
    """Takes graphwd's own decay out of a SavedModel or a MetaGraph again.

    Args:
        source: a SavedModel, or a ``.meta`` file, that graphwd has rewritten; it is never modified.
        target: the directory to write. Its graph equals the one that was rewritten.
        overwrite: whether a target that exists is replaced, in one step.
        link: whether weights and assets are hard links to those of the source, where they cannot be shared otherwise.

    Returns:
        How many decays were taken out.

    Raises:
        GraphwdError: there is none, the model is malformed, or the target cannot be written.
    """
    return strip_model(open_model(source), Output(Path(target), overwrite, link))


@dataclass(frozen=True, slots=True)
class _Version:
    """The operations on the graphs of one version of TensorFlow."""

    take_out: Callable[[MetaGraphDef], int]
    decays: Callable[[MetaGraphDef], list[dict[str, Any]]]


_V1 = _Version(strip_main_graph, describe_main_graph)
_V2 = _Version(strip_functions, describe_functions)


class _Model(ABC):
    """A model that was read, to be planned, changed in place, and written with all its other files.

    Attributes:
        name: its path.
    """

    def __init__(self, source: Path, version: _Version, meta_graphs: Sequence[MetaGraphDef]) -> None:
        self.name = str(source)
        self._source = source
        self._version = version
        self._meta_graphs = meta_graphs

    @abstractmethod
    def parts(self) -> Sequence[MainGraph | TrainingFunctions]:
        """Its graphs that train or are asked for."""

    @abstractmethod
    def faults(self) -> Iterator[str]:
        """Why its files cannot be written anew."""

    @abstractmethod
    def refuse_output(self, output: Output) -> None:
        """Refuses a place that cannot be written."""

    @abstractmethod
    def save(self, output: Output) -> None:
        """Writes it as it is now."""

    def bounds(self) -> AbstractContextManager[None]:
        """The context in which it is read and written."""
        return _bounded()

    def prepare(self, policy: Policy) -> Sequence[Prepared[MainGraph | TrainingFunctions]]:
        """Reads and plans its graphs."""
        if policy.fuse:  # a fused decay could not be taken out again
            raise StepError(f"{policy.where}: 'fuse: xla' is for Python steps; leave it out to rewrite a file")
        return [plan_part(part, policy) for part in self.parts()]

    def problems(self) -> Iterator[str]:
        """Why it could not be written, for its plan: none, since the plans of its graphs say that."""
        return iter(())

    def replace(self, prepared: Sequence[Prepared[MainGraph | TrainingFunctions]], _policy: Policy, /) -> None:
        """Gives its graphs weight decay."""
        for ready in prepared:
            ready.part.replace(ready.inject(), ready.plan)

    def take_out(self) -> int:
        """Takes graphwd's own decay out again; returns how many decays those were."""
        return sum(map(self._version.take_out, self._meta_graphs))

    def decays(self) -> list[dict[str, Any]]:
        """Reads the records of graphwd's decays in it."""
        return [decay for meta_graph in self._meta_graphs for decay in self._version.decays(meta_graph)]


class _SavedModel(_Model):
    """A SavedModel directory."""

    def __init__(self, source: Path, functions: Iterable[str] | None) -> None:
        self._model = read_model(source)
        self._functions = functions
        super().__init__(source, _V2 if is_v2(self._model) else _V1, self._model.meta_graphs)

    def parts(self) -> Sequence[MainGraph | TrainingFunctions]:
        """Its functions that train, or its main graphs."""
        if self._version is _V2:
            return [TrainingFunctions(self._meta_graphs[0], self._functions)]
        return _training_graphs(self._meta_graphs, self._source, self._functions)

    def faults(self) -> Iterator[str]:
        """Why its files cannot be written anew."""
        yield from _missing_weights(self._source / "variables")
        try:
            check_files(self._source)
        except StepError as error:
            yield str(error)

    def refuse_output(self, output: Output) -> None:
        """Refuses a place that cannot be written."""
        refuse_existing(output.path, self._source, overwrite=output.overwrite)

    def save(self, output: Output) -> None:
        """Writes it as it is now, with all other files of the original."""
        source, files = self._source, Files.LINK if output.link else Files.COPY
        content = self._model.SerializeToString(deterministic=True)
        # Where nothing changed, the fingerprint stays, too: a new one would have another UUID.
        changed = {} if content == (source / MODEL_FILE).read_bytes() else {MODEL_FILE: content}
        with new_directory(output.path, overwrite=output.overwrite) as folder:
            fill(folder, source, changed, files, keep=lambda path: not changed or path != FINGERPRINT_FILE)
            if changed and (source / FINGERPRINT_FILE).exists():
                # TensorFlow accepts a missing fingerprint, but not a wrong one.
                with contextlib.suppress(fingerprinting.FingerprintException):
                    path: Any = os.fsencode(folder)  # a path need not be UTF-8; the stubs know no bytes
                    fingerprint = fingerprinting.CreateFingerprintDef(path)
                    (folder / FINGERPRINT_FILE).write_bytes(fingerprint)


class _MetaGraph(_Model):
    """A ``.meta`` file; its other files are those of its checkpoint."""

    def __init__(self, source: Path, functions: Iterable[str] | None) -> None:
        self._meta_graph = _read_proto(source, MetaGraphDef())
        self._functions = functions
        check_meta_graph(self._meta_graph)
        super().__init__(source, _V1, [self._meta_graph])

    def parts(self) -> Sequence[MainGraph]:
        """Its graph."""
        if self._functions is not None:
            raise StepError(f"{self._source}: a .meta file holds one graph; name no function of it")
        return [MainGraph(self._meta_graph)]

    def faults(self) -> Iterator[str]:
        """Why its files cannot be written anew."""
        try:
            check_files(self._source.parent, self._belongs)
        except StepError as error:
            yield str(error)

    def refuse_output(self, output: Output) -> None:
        """Refuses a place that cannot be written."""
        if Path(os.path.realpath(output.path)) in Path(os.path.realpath(self._source)).parents:
            raise StepError(
                f"{output.path}: holds the file that is read, which is never modified; name another --output"
            )
        refuse_existing(output.path, None, overwrite=output.overwrite)

    def save(self, output: Output) -> None:
        """Writes it as it is now, with its checkpoint."""
        with new_directory(output.path, overwrite=output.overwrite) as folder:
            fill(
                folder,
                self._source.parent,
                {self._source.name: self._meta_graph.SerializeToString(deterministic=True)},
                Files.LINK if output.link else Files.COPY,
                keep=self._belongs,
            )

    def _belongs(self, path: str) -> bool:
        """Whether a file beside it belongs to its checkpoint."""
        return re.fullmatch(rf"{re.escape(self._source.stem)}\.(index|data-\d+-of-\d+)", path) is not None


@_bounded()
def open_model(source: str | os.PathLike[str], functions: Iterable[str] | None = None) -> Model:
    """Reads a model in files, as a target to plan and to write.

    Args:
        source: a SavedModel directory, or a ``.meta`` file.
        functions: names of exported functions or signatures, of a TensorFlow 1 SavedModel the tags of a graph; None for
            all that train.

    Raises:
        GraphwdError: there is no model, or it is malformed.
    """
    return (_MetaGraph if is_meta_file(source) else _SavedModel)(Path(source), functions)


def is_meta_file(source: str | os.PathLike[str]) -> bool:
    """Whether a path names a TensorFlow 1 MetaGraph, not a SavedModel directory."""
    return os.fspath(source).endswith(".meta") and not os.path.isdir(source)


def _missing_weights(folder: Path) -> Iterator[str]:
    """Refuses a model with an incomplete checkpoint: the result would not load."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    counts = {int(match[1]) for match in map(_SHARD.fullmatch, names) if match}
    needed = {"variables.index"}
    needed |= {f"variables.data-{number:05}-of-{count:05}" for count in counts or {1} for number in range(count)}
    if missing := sorted(needed - names):
        yield f"{folder / missing[0]}: no such file; the model's weights are not all there"


def read_model(source: Path) -> SavedModel:
    """Reads the proto of a SavedModel.

    Args:
        source: the directory.

    Returns:
        The proto.

    Raises:
        StepError: there is none, or it is malformed.
    """
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
    model = _read_proto(path, SavedModel())
    if not model.meta_graphs:
        raise StepError(f"{path}: is empty: it holds no graph")
    for meta_graph in model.meta_graphs:
        check_meta_graph(meta_graph)
    return model


def _read_proto(path: Path, message: _Proto) -> _Proto:
    """Reads a file into a message and returns the message."""
    try:
        message.ParseFromString(path.read_bytes())
    except OSError as error:
        raise StepError(f"{path}: cannot be read: {error.strerror}") from None
    except DecodeError:
        kind = type(message).__name__
        raise StepError(f"{path}: is truncated or damaged: it does not parse as a {kind}") from None
    return message


def is_v2(model: SavedModel) -> bool:
    """Whether a SavedModel has an object graph, as those of TensorFlow 2 have."""
    return len(model.meta_graphs) == 1 and len(model.meta_graphs[0].object_graph_def.nodes) > 0


def _training_graphs(meta_graphs: Iterable[MetaGraphDef], source: Path, names: Iterable[str] | None) -> list[MainGraph]:
    """The main graphs of a TensorFlow 1 SavedModel that train, or those with some tags."""
    by_tags = {",".join(meta_graph.meta_info_def.tags): meta_graph for meta_graph in meta_graphs}
    known = ", ".join(f"'{tags}'" for tags in by_tags)
    if names is not None:
        asked = list(names)
        if missing := [name for name in asked if name not in by_tags]:
            raise StepError(f"{source}: no graph with the tags '{missing[0]}'; there is {known}")
        return [MainGraph(by_tags[name]) for name in asked]
    if training := [graph for graph in map(MainGraph, by_tags.values()) if graph.trains()]:
        return training
    raise StepError(f"{source}: no graph updates a trainable variable from a gradient; there is {known}")
