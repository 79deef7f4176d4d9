"""SavedModels to rewrite, and the ways in which they are run and compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from graphwd.models.export import load_function
from tests.helpers.lockstep import assert_bit_equal, assert_within_ulps
from tests.helpers.steps import CLASSES, FEATURES, batches, loss_of

BATCH = (tf.TensorSpec([None, FEATURES], tf.float32, "inputs"), tf.TensorSpec([None, CLASSES], tf.float32, "targets"))
ONE_INPUT = [tf.TensorSpec([None, FEATURES], tf.float32, "inputs")]

Step = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def save(module: Any, folder: Path, *names: str, **options: Any) -> Path:
    """Saves a module with a signature for each of some of its functions, which return one tensor."""

    def signature(function: Any) -> Any:
        @tf.function(input_signature=function.input_signature, autograph=False)
        def call(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"output": function(*tensors)}

        return call

    tf.saved_model.save(module, str(folder), signatures={n: signature(getattr(module, n)) for n in names}, **options)
    return folder


class Plain(tf.Module):
    """A hand-written model: momentum in a function that two training steps share, a file, an inference function."""

    def __init__(self, asset: Path | None = None) -> None:
        super().__init__()
        random = np.random.default_rng(5)
        self.kernel = tf.Variable(random.normal(size=(FEATURES, CLASSES)), dtype=tf.float32, name="kernel")
        self.bias = tf.Variable(random.normal(size=CLASSES), dtype=tf.float32, name="bias")
        self.momentum = tf.Variable(tf.zeros_like(self.kernel), trainable=False, name="momentum")
        if asset is not None:
            self.asset = tf.saved_model.Asset(str(asset))

    @tf.function
    def _forward(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs @ self.kernel + self.bias

    @tf.function
    def _update(self, kernel: tf.Tensor, bias: tf.Tensor) -> None:
        self.momentum.assign(0.5 * self.momentum + kernel)
        self.kernel.assign_sub(0.125 * self.momentum)
        self.bias.assign_sub(0.125 * bias)

    @tf.function(input_signature=BATCH)
    def step(self, inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(self._forward(inputs), targets)
        self._update(*tape.gradient(loss, (self.kernel, self.bias)))
        return loss

    @tf.function(input_signature=BATCH)
    def fine_tune(self, inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.abs(self._forward(inputs) - targets))
        self._update(*tape.gradient(loss, (self.kernel, self.bias)))
        return loss

    @tf.function(input_signature=ONE_INPUT)
    def predict(self, inputs: tf.Tensor) -> tf.Tensor:
        return self._forward(inputs)


PLAIN = ("step", "fine_tune", "predict")
"""The functions, and signatures, of a `Plain`."""


def save_plain(folder: Path) -> Path:
    """A `Plain` with an asset, all three functions as signatures."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    asset = folder.parent / "vocabulary.txt"
    asset.write_text("one\ntwo\n", encoding="utf-8")
    return save(Plain(asset), folder, *PLAIN)


class Trainable(tf.Module):
    """A module of whatever a library's model and optimizer are, with a step of them."""

    def __init__(
        self,
        parts: Mapping[str, Any],
        step: Callable[..., Any],
        spec: Sequence[tf.TensorSpec] = BATCH,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.step = tf.function(step, input_signature=spec)
        if forward is not None:
            self.predict = tf.function(forward, input_signature=list(spec[:1]))


def read(folder: Path) -> SavedModel:
    """The proto of a SavedModel."""
    return SavedModel.FromString((folder / "saved_model.pb").read_bytes())


def deterministic(message: Any) -> bytes:
    """A message as bytes, which are equal where messages are, unknown fields included."""
    return message.SerializeToString(deterministic=True)


def library(model: SavedModel) -> dict[str, FunctionDef]:
    """The functions of a SavedModel, by name."""
    return {function.signature.name: function for function in model.meta_graphs[0].graph_def.library.function}


def graph_of(model: SavedModel) -> MetaGraphDef:
    """The only MetaGraphDef of a SavedModel."""
    (meta_graph,) = model.meta_graphs
    return meta_graph


class Stat(NamedTuple):
    """All of a file that nobody may change."""

    content: str
    mode: int
    modified: int


def snapshot(folder: Path) -> dict[str, Stat]:
    """Every file and folder below a folder: the hash of its bytes, its mode, when it was modified."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        stat = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        content = content if isinstance(content, bytes) else content.encode()
        name = str(path.relative_to(folder))
        found[name] = Stat(hashlib.sha256(content).hexdigest(), stat.st_mode, stat.st_mtime_ns)
    return found


class Loaded:
    """A function or signature of a SavedModel, by ``tf.saved_model.load``."""

    def __init__(self, folder: Path, name: str, *, signature: bool = False) -> None:
        self._concrete, self.variables = load_function(folder, name)
        loaded = self._concrete.graphwd_module
        if signature:
            self._concrete = loaded.signatures[name]
            captured = {id(tensor) for tensor in self._concrete.captured_inputs}
            self.variables = [v for v in self.variables if id(v.handle) in captured]
        self._signature = signature

    def get(self) -> dict[str, np.ndarray]:
        return {f"{i} {v.name.removesuffix(':0')}": v.numpy() for i, v in enumerate(self.variables)}

    def set(self, values: Mapping[str, np.ndarray]) -> None:
        for variable, value in zip(self.variables, values.values(), strict=True):
            variable.assign(value)

    def run(self, arguments: Mapping[str, tf.Tensor]) -> list[np.ndarray]:
        outputs = self._concrete(**arguments)
        return [leaf.numpy() for leaf in tf.nest.flatten(outputs)]


class InSession:
    """A signature of a SavedModel in a v1 session, as C, C++ and Java run it."""

    def __init__(self, folder: Path, name: str) -> None:
        graph = tf.Graph()
        with graph.as_default():
            self._session = tf.compat.v1.Session(graph=graph)
            loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder))
            self._signature = loaded.signature_def[name]
            self._reads, self._assigns = {}, {}
            for op in [op for op in graph.get_operations() if op.type == "VarHandleOp"]:
                handle, dtype = op.outputs[0], tf.as_dtype(op.get_attr("dtype"))
                if dtype != tf.string:  # strings are the paths of assets
                    if not self._session.run(tf.raw_ops.VarIsInitializedOp(resource=handle)):
                        self._initialize(handle, dtype, tf.TensorShape(op.get_attr("shape")).as_list())
                    given = tf.compat.v1.placeholder(dtype)
                    key = f"{len(self._reads)} {op.get_attr('shared_name').decode()}"
                    self._reads[key] = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
                    self._assigns[key] = (tf.raw_ops.AssignVariableOp(resource=handle, value=given), given)

    def _initialize(self, handle: Any, dtype: tf.DType, shape: Sequence[int]) -> None:
        """Gives a variable something to hold.

        Where a module holds Keras 3 objects, TensorFlow saves two handles a weight, and its own session restores only
        those that no function uses.
        """
        value = np.random.default_rng(1).uniform(size=shape).astype(dtype.as_numpy_dtype)
        self._session.run(tf.raw_ops.AssignVariableOp(resource=handle, value=value))

    def get(self) -> dict[str, np.ndarray]:
        return self._session.run(self._reads)

    def set(self, values: Mapping[str, np.ndarray]) -> None:
        feeds = {given: values[key] for key, (_, given) in self._assigns.items()}
        self._session.run([assign for assign, _ in self._assigns.values()], feeds)

    def run(self, arguments: Mapping[str, tf.Tensor]) -> list[np.ndarray]:
        feeds = {self._signature.inputs[key].name: value.numpy() for key, value in arguments.items()}
        outputs = {key: info.name for key, info in self._signature.outputs.items()}
        return list(self._session.run(outputs, feeds).values())


Way = Loaded | InSession

WAYS: Mapping[str, Callable[[Path, str], Way]] = {
    "function": Loaded,
    "signature": lambda folder, name: Loaded(folder, name, signature=True),
    "session": InSession,
}


def arguments(count: int = 3) -> list[dict[str, tf.Tensor]]:
    """Some batches, as named arguments."""
    return [{"inputs": inputs, "targets": targets} for inputs, targets in batches(count)]


def check_trains(
    original: Way,
    rewritten: Way,
    rates: Mapping[str, float],
    runs: Iterable[Mapping[str, tf.Tensor]] = (),
) -> None:
    """Checks that loading decays nothing, and that each run decays what it must and nothing else.

    Outputs and undecayed variables must be equal to the bit, decayed ones within one unit in the last place of
    ``1 - rate`` times what the original makes of them, in float64.
    """
    start = original.get()
    for name, value in rewritten.get().items():
        assert_bit_equal(start[name], value, name)
    met: set[str] = set()
    for run in runs or arguments():
        state = original.get()
        rewritten.set(state)
        for mine, theirs in zip(original.run(run), rewritten.run(run), strict=True):
            assert_bit_equal(mine, theirs)
        plain, decayed = original.get(), rewritten.get()
        assert plain.keys() == decayed.keys()
        for key, value in plain.items():
            name = key.partition(" ")[2]
            if name in rates:
                met.add(name)
                assert_within_ulps(decayed[key], value.astype(np.float64) * (1 - rates[name]), 1, name)
                assert not np.array_equal(decayed[key], value), name
            else:
                assert_bit_equal(value, decayed[key], name)
        original.set(decayed)
    assert met == set(rates)
