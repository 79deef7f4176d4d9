"""Writes weight decay into function bodies: the only module that changes protos, and only copies of them.

After the write that completes an update, in its body and on its device, come three nodes::

    read  = ReadVariableOp(handle)  ^write        read  = ReadVariableOp(handle)  ^write
    decay = Mul(read, 1 - rate)             or    decay = Mul(read, rate)
            AssignVariableOp(handle, decay)               AssignSubVariableOp(handle, decay)

and everything that waited for the write waits for the last of them. The left form moves fewer bytes; the right one
serves where rounding 1 - rate to the variable's dtype would change the rate by more than `MAX_RATE_ERROR`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphwd.errors import RewriteError
from graphwd.graph import Body, Graph, is_control
from graphwd.planner import EPSILON, Injection
from graphwd.update_ops import WRITE_OPS
from graphwd.updates import Frame

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

MARK = "_graphwd"
"""The attribute that every injected node carries."""

MAX_RATE_ERROR = 0.01
"""By how much, relatively, rounding the factor may change the rate (design: 1 %)."""

# tensorflow/core/framework/types.proto; written out so that a rewrite needs no import of TensorFlow.
_DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bfloat16": 14, "float16": 19}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A rewritten step.

    Attributes:
        root: the step itself.
        functions: the rewritten library functions, callees before callers, each under a new name.
    """

    root: FunctionDef
    functions: tuple[FunctionDef, ...]


@dataclass
class _Branch:
    """The injections below one body: at its own nodes, and in the functions that its nodes call."""

    here: dict[str, Injection] = field(default_factory=dict)
    calls: dict[Frame, _Branch] = field(default_factory=dict)

    def signature(self) -> tuple[object, ...]:
        """What tells two rewritings of one body apart: not the variables, but what is done at which node."""
        here = tuple(sorted((node, i.rate, i.variable.dtype, i.rows) for node, i in self.here.items()))
        below = tuple(sorted((frame, branch.signature()) for frame, branch in self.calls.items()))
        return here, below


def inject(graph: Graph, injections: Iterable[Injection], new_name: Callable[[str], str]) -> Rewritten:
    """Makes a copy of a step with weight decay in it.

    A library function is copied once for each way in which it is rewritten, and not at all where nothing below it is:
    call sites that need no decay go on calling the original.

    Args:
        graph: the step; it is not changed.
        injections: where decay goes.
        new_name: makes a name, unused so far, for a rewritten copy of the function of the given name.

    Returns:
        The rewritten step.

    Raises:
        RewriteError: the step holds injected nodes already, or the result is not what was planned.
    """
    refuse_rewritten(graph)
    tree = _Branch()
    for injection in injections:
        branch = tree
        for frame in injection.site.path:
            branch = branch.calls.setdefault(frame, _Branch())
        branch.here[injection.site.node] = injection
    writer = _Writer(graph, new_name)
    root = writer.rewrite(graph.root_function, tree)
    return Rewritten(root, tuple(writer.functions))


def is_rewritten(function: FunctionDef) -> bool:
    """Whether a function holds nodes that graphwd injected."""
    return any(MARK in node.attr for node in function.node_def)


def refuse_rewritten(graph: Graph) -> None:
    """Refuses a step that graphwd has rewritten.

    Args:
        graph: the step.

    Raises:
        RewriteError: it holds injected nodes.
    """
    for function in (graph.root_function, *graph.library.values()):
        if is_rewritten(function):
            raise RewriteError(
                "this step was rewritten by graphwd before; a second pass would decay twice. Rewrite the original"
            )


class _Writer:
    def __init__(self, graph: Graph, new_name: Callable[[str], str]) -> None:
        self._graph = graph
        self._new_name = new_name
        self._names: dict[tuple[str, tuple[object, ...]], str] = {}
        self.functions: list[FunctionDef] = []

    def rewrite(self, original: FunctionDef, branch: _Branch) -> FunctionDef:
        """A copy of a function with the injections of ``branch`` in it."""
        function = type(original)()
        function.CopyFrom(original)
        if branch.calls:
            nodes = {node.name: node for node in function.node_def}
            for frame, below in branch.calls.items():
                _set_callee(nodes[frame.node], frame, self._copy(frame.callee.function, below))
        if branch.here:
            _splice(function, branch.here)
            _verify(original, function, branch.here)
        return function

    def _copy(self, name: str, branch: _Branch) -> str:
        key = (name, branch.signature())
        if key not in self._names:
            function = self.rewrite(self._graph.library[name], branch)
            function.signature.name = self._new_name(name)
            self._names[key] = function.signature.name
            self.functions.append(function)
        return self._names[key]


def _set_callee(node: NodeDef, frame: Frame, function: str) -> None:
    value = node.attr[frame.callee.attribute]
    target = value.func if value.func.name else value.list.func[frame.callee.position]
    target.name = function


def _splice(function: FunctionDef, injections: Mapping[str, Injection]) -> None:
    last: dict[str, str] = {}
    taken = {node.name for node in function.node_def}
    constants: dict[tuple[str, float, str], str] = {}
    for node in [node for node in function.node_def if node.name in injections]:
        maker = _NodeMaker(function, node, taken, constants)
        last[node.name] = maker.decay(injections[node.name])
    for node in function.node_def:
        if MARK not in node.attr and any(is_control(text) and text[1:] in last for text in node.input):
            moved = [f"^{last[text[1:]]}" if is_control(text) and text[1:] in last else text for text in node.input]
            del node.input[:]
            node.input.extend(moved)
    # Over a copy: a protobuf map that is written while it is iterated skips entries.
    for output, node_name in list(function.control_ret.items()):
        if node_name in last:
            function.control_ret[output] = last[node_name]


@dataclass
class _NodeMaker:
    """Adds the nodes that decay the variable of one write."""

    function: FunctionDef
    write: NodeDef
    taken: set[str]
    constants: dict[tuple[str, float, str], str]

    def decay(self, injection: Injection) -> str:
        """Adds the nodes and returns the name of the one that all successors must wait for."""
        dtype = injection.variable.dtype
        rate = injection.rate
        multiplies = keeps_rate(rate, EPSILON[_compute_dtype(dtype)])
        factor = self._factor(1 - rate if multiplies else rate, _compute_dtype(dtype))
        handle = self.write.input[0]
        if injection.rows:
            rows = WRITE_OPS[self.write.op].rows
            assert rows is not None
            return self._decay_rows(handle, self.write.input[rows], factor, injection, multiplies=multiplies)
        read = self._add("read", "ReadVariableOp", [handle, f"^{self.write.name}"], dtype=dtype)
        scaled = self._scaled(f"{read}:value:0", factor, dtype)
        op = "AssignVariableOp" if multiplies else "AssignSubVariableOp"
        return self._add("decay", op, [handle, scaled], dtype=dtype)

    def _decay_rows(self, handle: str, indices: str, factor: str, injection: Injection, *, multiplies: bool) -> str:
        """Decays the rows that a sparse write touched, each once however often an index repeats."""
        dtype = injection.variable.dtype
        index = self.write.attr["Tindices"].type
        flat = self._add("indices", "Reshape", [indices, self._vector_shape()], T=index, Tshape="int32")
        rows = self._add("rows", "Unique", [f"{flat}:output:0", f"^{self.write.name}"], T=index, out_idx="int32")
        read = self._add(
            "read", "ResourceGather", [handle, f"{rows}:y:0", f"^{self.write.name}"], dtype=dtype, Tindices=index
        )
        scaled = self._scaled(f"{read}:output:0", factor, dtype)
        op = "ResourceScatterUpdate" if multiplies else "ResourceScatterSub"
        return self._add("decay", op, [handle, f"{rows}:y:0", scaled], dtype=dtype, Tindices=index)

    def _scaled(self, tensor: str, factor: str, dtype: str) -> str:
        """The product of a tensor and the factor, computed in float32 where the dtype is narrower."""
        wide = _compute_dtype(dtype)
        if wide != dtype:
            tensor = f"{self._add('widened', 'Cast', [tensor], SrcT=dtype, DstT=wide)}:y:0"
        product = f"{self._add('scaled', 'Mul', [tensor, factor], T=wide)}:z:0"
        if wide != dtype:
            product = f"{self._add('narrowed', 'Cast', [product], SrcT=wide, DstT=dtype)}:y:0"
        return product

    def _factor(self, value: float, dtype: str) -> str:
        """A scalar, one for all writes of the body that have the same device, value and dtype."""
        return self._constant("factor", value, dtype, [])

    def _vector_shape(self) -> str:
        """The shape [-1], which makes a vector of any tensor."""
        return self._constant("vector", -1, "int32", [1])

    def _constant(self, role: str, value: float, dtype: str, shape: Sequence[int]) -> str:
        key = (self.write.device, value, dtype)
        if key not in self.constants:
            name = self._add(role, "Const", [], dtype=dtype)
            tensor = self.function.node_def[-1].attr["value"].tensor
            tensor.dtype = _DTYPES[dtype]  # pyright: ignore[reportAttributeAccessIssue] - the stubs know no int
            tensor.tensor_shape.SetInParent()
            for size in shape:
                tensor.tensor_shape.dim.add(size=size)
            fields = {"float64": tensor.double_val, "float32": tensor.float_val, "int32": tensor.int_val}
            fields[dtype].append(value)
            self.constants[key] = f"{name}:output:0"
        return self.constants[key]

    def _add(self, role: str, op: str, inputs: Iterable[str], **dtypes: str | int) -> str:
        name = self._name(role)
        node = self.function.node_def.add(name=name, op=op, device=self.write.device)
        node.input.extend(inputs)
        for key, dtype in dtypes.items():
            number = _DTYPES[dtype] if isinstance(dtype, str) else dtype
            node.attr[key].type = number  # pyright: ignore[reportAttributeAccessIssue] - the stubs know no int
        node.attr[MARK].s = role.encode()
        return name

    def _name(self, role: str) -> str:
        scope, slash, leaf = self.write.name.rpartition("/")
        base = name = f"{scope}{slash}graphwd/{role}_{leaf}"
        number = 0
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name


def keeps_rate(rate: float, epsilon: float) -> bool:
    """Whether 1 - rate, rounded to nearest, stands for a rate close enough to the one asked for.

    Args:
        rate: the rate, in [0, 1).
        epsilon: the distance from 1 to the next larger number of the dtype.

    Returns:
        Whether the rounding changes the rate by at most `MAX_RATE_ERROR`, relatively.
    """
    step = epsilon / 2  # numbers below 1 are at most half as far apart as those above it
    rounded = round(rate / step) * step
    return abs(rounded - rate) <= MAX_RATE_ERROR * rate


def _compute_dtype(dtype: str) -> str:
    return "float32" if dtype in ("bfloat16", "float16") else dtype


def _verify(before: FunctionDef, after: FunctionDef, writes: Collection[str]) -> None:
    """Checks a rewritten body: the original plus marked nodes, sound edges, and nothing that waits only for a write."""
    kept = [node for node in after.node_def if MARK not in node.attr]
    added = [node for node in after.node_def if MARK in node.attr]
    if [node.name for node in kept] != [node.name for node in before.node_def]:
        raise RewriteError(f"rewriting '{before.signature.name}' lost or reordered nodes of the original")
    if sum(node.attr[MARK].s == b"decay" for node in added) != len(writes):
        raise RewriteError(
            f"rewriting '{before.signature.name}' did not add one decay for each of {len(writes)} updates"
        )
    waited_for = {text[1:] for node in kept for text in node.input if is_control(text)} | {*after.control_ret.values()}
    if early := waited_for.intersection(writes):
        raise RewriteError(f"rewriting '{before.signature.name}' left something to wait for {min(early)} undecayed")
    Body(after)  # raises where an edge leads nowhere or a circle was closed
