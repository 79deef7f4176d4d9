"""The nodes that decay one variable, for each way in which a decay enters its update.

After the write that completes an update, on its device, come three nodes::

    read  = ReadVariableOp(handle)  ^write        read  = ReadVariableOp(handle)  ^write
    scaled = Mul(read, 1 - rate)            or    scaled = Mul(read, rate)
    decay = AssignVariableOp(handle, scaled)      decay = AssignSubVariableOp(handle, scaled)

and everything that waited for the write waits for the last of them. The left form moves fewer bytes; the right one
serves where rounding 1 - rate to the variable's dtype would change the rate by more than `MAX_RATE_ERROR`, and where
the rate is a tensor, ``Mul(learning rate, rate)``, and on a parameter server.

Where only the rows are decayed that a sparse update touches, they are ``ResourceGather(handle, indices)``, ``Mul`` and
``ResourceScatterUpdate(handle, indices, scaled)``, in the second case with a ``Sub`` between.

Before an update come the same three, but the read waits for all that the write waits for, and the write for the decay.
Where the update overwrites the weight with a sum that the weight is a term of, it is ``scaled = Mul(weight, rate)`` and
``decay = Sub(sum, scaled)``, which is written in place of the sum. In a gradient come ``read``, ``scaled`` and
``decay = AddV2(gradient, scaled)``.

The device that a node asks for is often none, and then TensorFlow puts an update where its variable is, but arithmetic
on the first accelerator: the weight would travel there and back at every step. So the nodes around a write are placed
with it. Those in a gradient are not: the gradient is where TensorFlow puts it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphwd.analysis.gradient_entry import Entry
from graphwd.graph.body import node_of
from graphwd.graph.graph import DTYPE_NUMBERS, MARK
from graphwd.graph.ops import WRITE_OPS
from graphwd.planning.injections import EPSILON, Injection, Where

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

MAX_RATE_ERROR = 0.01
"""By how much, relatively, rounding the factor may change the rate (design: 1 %)."""

_SERVER = "/job:ps/"
"""In the device of what lies on a parameter server, where several workers write without waiting for each other.

There a decay only subtracts: an update that comes between its read and its write is then not lost.
"""

_REFERENCE_FORMS = {
    "AssignVariableOp": "Assign",
    "AssignSubVariableOp": "AssignSub",
    "ResourceScatterUpdate": "ScatterUpdate",
    "ResourceScatterSub": "ScatterSub",
}
"""The ops that do the same to a v1 reference variable."""


@dataclass
class Added:
    """What is added to one body: its names, and the nodes that several decays share.

    Attributes:
        function: the body.
        present: the names of what was there before.
        taken: the names of what was added.
        shared: the tensors made once, by the device of the variables that they serve and what they hold.
        carrier: of the decay that was added last, the node that carries its record: its read, else its product.
    """

    function: FunctionDef
    present: Container[str]
    taken: set[str] = field(default_factory=set)
    shared: dict[tuple[object, ...], str] = field(default_factory=dict)
    carrier: NodeDef | None = None


class DecayNodes:
    """Adds the nodes of one decay."""

    def __init__(self, added: Added, write: NodeDef, injection: Injection) -> None:
        """Prepares to add; nothing is changed yet.

        Args:
            added: the body.
            write: the write that the decay belongs to.
            injection: the decay.
        """
        self._added = added
        self._write = write
        self._injection = injection
        self._dtype = injection.variable.dtype
        self._wide = "float32" if self._dtype in ("bfloat16", "float16") else self._dtype
        self._handle = write.input[0]
        self._with_write = injection.where is not Where.GRADIENT
        self._place = write.device or (injection.variable.device if self._with_write else "")
        self._served = _SERVER in self._place or _SERVER in injection.variable.device

    def after(self) -> str:
        """Adds a decay after the write; returns the node that all successors must wait for."""
        return self._decay([f"^{self._write.name}"])

    def before(self, nodes: Mapping[str, NodeDef]) -> str:
        """Adds a decay before the write; returns the node that the write must wait for, last.

        Args:
            nodes: the nodes of the body, by name. Those of the update that read the weight will read it decayed.
        """
        readiness = self._injection.readiness
        assert readiness is not None
        decay = self._decay([f"^{name}" for name in readiness.waits])
        for name, uses in readiness.rereads:
            reread = self._copy("reread", nodes[name], f"^{decay}")
            output = "value:0" if nodes[name].op == "ReadVariableOp" else "output:0"
            for use in uses:
                nodes[use.node].input[use.position] = f"{reread}:{output}"
            self._write.input.append(f"^{reread}")  # not all that is computed from it need be part of what is written
        return decay

    def in_value(self, nodes: Mapping[str, NodeDef]) -> str:
        """Subtracts a decay from what is written, and leads the difference into the write; returns the node it is of.

        Args:
            nodes: the nodes of the body, by name.
        """
        assert self._injection.value is not None
        value, use = self._injection.value
        scaled = self._multiply(
            "scaled", self._cast("widened", self._weight([]), self._dtype, self._wide), self._rate()
        )
        wide = self._cast("widened_value", value, self._dtype, self._wide)
        total = f"{self._add(self._last, 'Sub', [wide, scaled], T=self._wide)}:z:0"
        if self._wide != self._dtype:
            total = f"{self._add('decay', 'Cast', [total], SrcT=self._wide, DstT=self._dtype)}:y:0"
        nodes[use.node].input[use.position] = total
        return node_of(total)

    def in_gradient(self, nodes: Mapping[str, NodeDef]) -> str:
        """Adds a decay to the gradient and leads the result to where the gradient went; returns the node it is of.

        Args:
            nodes: the nodes of the body, by name.
        """
        entry = self._injection.entry
        assert entry is not None
        waits = [f"^{name}" for name in entry.waits]
        rate = self._constant("rate", self._injection.rate, self._wide)
        gradient = self._cast("widened_gradient", entry.tensor, self._dtype, self._wide)
        if entry.indices is None:
            weight = self._cast("widened", self._weight(waits), self._dtype, self._wide)
            decay = self._multiply("scaled", weight, rate)
            total = f"{self._add(self._last, 'AddV2', [gradient, decay], T=self._wide)}:z:0"
        else:
            total = self._add_rows(gradient, entry, waits, rate)
        if self._wide != self._dtype:
            total = f"{self._add('decay', 'Cast', [total], SrcT=self._wide, DstT=self._dtype)}:y:0"
        for use in entry.uses:
            nodes[use.node].input[use.position] = total
        return node_of(total)

    @property
    def _last(self) -> str:
        """The role of a node that is the last of a decay unless a cast follows."""
        return "decay" if self._wide == self._dtype else "summed"

    def _decay(self, waits: Sequence[str]) -> str:
        """Reads the weight, multiplies it and writes it."""
        rate, multiplies = self._factor()
        if self._injection.rows:
            return self._decay_rows(waits, rate, multiplies=multiplies)
        wide = self._cast("widened", self._read(waits), self._dtype, self._wide)
        scaled = self._cast("narrowed", self._multiply("scaled", wide, rate), self._wide, self._dtype)
        return self._write_back("AssignVariableOp" if multiplies else "AssignSubVariableOp", [scaled])

    def _decay_rows(self, waits: Sequence[str], rate: str, *, multiplies: bool) -> str:
        """The same for the rows that the write touches.

        An index that repeats writes the same row again. Not once each, by ``Unique``: where the indices are themselves
        of a size that only the run tells, XLA's counts what lies behind their end.
        """
        row = WRITE_OPS[self._write.op].rows
        assert row is not None
        indices, number = self._write.input[row], self._write.attr["Tindices"].type
        if self._served:  # where nothing is compiled
            indices, _ = self._unique(indices, number)
            number = DTYPE_NUMBERS["int64"]
        wide = self._cast("widened", self._gather(indices, number, waits), self._dtype, self._wide)
        scaled = self._multiply("scaled", wide, rate)
        if self._served:
            narrow = self._cast("narrowed", scaled, self._wide, self._dtype)
            return self._write_back("ResourceScatterSub", [indices, narrow], Tindices=number)
        if not multiplies:
            scaled = f"{self._add('left', 'Sub', [wide, scaled], T=self._wide)}:z:0"
        narrow = self._cast("narrowed", scaled, self._wide, self._dtype)
        return self._write_back("ResourceScatterUpdate", [indices, narrow], Tindices=number)

    def _write_back(self, op: str, operands: Sequence[str], **index: int) -> str:
        inputs = [self._handle, *operands]
        if self._injection.variable.reference:
            return self._add("decay", _REFERENCE_FORMS[op], inputs, T=self._dtype, **index)
        return self._add("decay", op, inputs, dtype=self._dtype, **index)

    def _weight(self, waits: Sequence[str]) -> str:
        """The weight: the tensor of it that the body has, else a new read."""
        return self._injection.weight or self._read(waits)

    def _read(self, waits: Sequence[str]) -> str:
        inputs = [self._handle, *waits]
        if self._injection.variable.reference:
            return f"{self._add('read', 'Identity', inputs, T=self._dtype)}:output:0"
        return f"{self._add('read', 'ReadVariableOp', inputs, dtype=self._dtype)}:value:0"

    def _factor(self) -> tuple[str, bool]:
        """What the weight is multiplied by, and whether the product is the new weight rather than what it loses."""
        rate = self._injection.rate
        if self._injection.learning_rate is None and keeps_rate(rate, EPSILON[self._wide]) and not self._served:
            return self._constant("factor", 1 - rate, self._wide), True
        return self._rate(), False

    def _rate(self) -> str:
        """What the weight is multiplied by for what it loses."""
        rate, learning_rate = self._injection.rate, self._injection.learning_rate
        if learning_rate is None:
            return self._constant("factor", rate, self._wide)
        key = (self._place, learning_rate.tensor, rate, self._wide)
        if key not in self._added.shared:
            wide = self._cast("learning_rate", learning_rate.tensor, learning_rate.dtype, self._wide)
            self._added.shared[key] = self._multiply("factor", wide, self._constant("rate", rate, self._wide))
        return self._added.shared[key]

    def _gather(self, rows: str, index: int | str, waits: Sequence[str]) -> str:
        inputs = [self._handle, rows, *waits]
        if self._injection.variable.reference:
            return f"{self._add('read', 'Gather', inputs, Tparams=self._dtype, Tindices=index)}:output:0"
        return f"{self._add('read', 'ResourceGather', inputs, dtype=self._dtype, Tindices=index)}:output:0"

    def _unique(self, indices: str, number: int, *, twice: bool = False) -> tuple[str, str]:
        """The rows among some indices, each once; and for each index, the number of its row among them.

        All of them int64, whatever they were: on a GPU much of what works on int32 works in the memory of the host.
        """
        if number != DTYPE_NUMBERS["int64"]:
            indices = f"{self._add('wide_indices', 'Cast', [indices], SrcT=number, DstT='int64')}:y:0"
        vector = [indices, self._constant("vector", -1, "int32", [1])]
        flat = f"{self._add('indices', 'Reshape', vector, T='int64', Tshape='int32')}:output:0"
        if twice:  # which changes no first place, and spares XLA a list of one, whose dynamic size it trips over
            pair = [flat, flat, self._constant("axis", 0, "int32")]
            flat = f"{self._add('twice', 'ConcatV2', pair, T='int64', Tidx='int32')}:output:0"
            self._added.function.node_def[-1].attr["N"].i = 2
        unique = self._add("rows", "Unique", [flat], T="int64", out_idx="int64")
        return f"{unique}:y:0", f"{unique}:idx:0"

    def _add_rows(self, gradient: str, entry: Entry, waits: Sequence[str], rate: str) -> str:
        """Adds the decay of each row to the first of the gradients that are of that row."""
        indices, number = entry.indices, entry.index_dtype
        assert indices is not None
        assert number is not None
        rows, numbers = self._unique(indices, number, twice=True)
        read = self._cast("widened", self._gather(rows, "int64", waits), self._dtype, self._wide)
        decay = self._multiply("scaled", read, rate)
        # For each row the position of its first gradient: the least of 0, 1, 2, ... that has the row's number. No
        # Range: on a GPU its operands or its result lie in host memory. UnsortedSegmentMin has no int64 there.
        ones = f"{self._add('ones', 'OnesLike', [numbers], T='int64')}:y:0"
        counted = [ones, self._constant("axis", 0, "int32")]
        count = self._add("count", "Cumsum", counted, T="int64", Tidx="int32")
        self._added.function.node_def[-1].attr["exclusive"].b = True
        self._added.function.node_def[-1].attr["reverse"].b = False
        positions = f"{self._add('positions', 'Cast', [f'{count}:out:0'], SrcT='int64', DstT='int32')}:y:0"
        size = f"{self._add('unique', 'Size', [rows], T='int64', out_type='int32')}:output:0"
        segments = [positions, numbers, size]
        least = self._add("least", "UnsortedSegmentMin", segments, T="int32", Tindices="int64", Tnumsegments="int32")
        first = f"{self._add('first', 'Cast', [f'{least}:output:0'], SrcT='int32', DstT='int64')}:y:0"
        expanded = [first, self._constant("last_axis", 1, "int32")]
        column = f"{self._add('column', 'ExpandDims', expanded, T='int64', Tdim='int32')}:output:0"
        shape = self._injection.variable.shape or ()
        sizes = [-1, *(size for size in shape[1:] if size is not None)]
        flat = [gradient, self._constants("row_shape", sizes)]
        flat_gradient = f"{self._add('gradient', 'Reshape', flat, T=self._wide, Tshape='int32')}:output:0"
        added = [flat_gradient, column, decay]
        total = f"{self._add('added', 'TensorScatterAdd', added, T=self._wide, Tindices='int64')}:output:0"
        like = f"{self._add('shape', 'Shape', [gradient], T=self._wide, out_type='int32')}:output:0"
        return f"{self._add(self._last, 'Reshape', [total, like], T=self._wide, Tshape='int32')}:output:0"

    def _multiply(self, role: str, first: str, second: str) -> str:
        return f"{self._add(role, 'Mul', [first, second], T=self._wide)}:z:0"

    def _cast(self, role: str, tensor: str, source: str, target: str) -> str:
        if source == target:
            return tensor
        return f"{self._add(role, 'Cast', [tensor], SrcT=source, DstT=target)}:y:0"

    def _constant(self, role: str, value: float, dtype: str, shape: Sequence[int] = ()) -> str:
        return self._constants(role, [value], dtype, shape)

    def _constants(
        self, role: str, values: Sequence[float], dtype: str = "int32", shape: Sequence[int] | None = None
    ) -> str:
        """A constant, one for all decays of the body that need the same on the same device."""
        shape = [len(values)] if shape is None else shape
        key = (self._place, tuple(values), dtype, tuple(shape))
        if key not in self._added.shared:
            name = self._add(role, "Const", [], dtype=dtype)
            tensor = self._added.function.node_def[-1].attr["value"].tensor
            tensor.dtype = DTYPE_NUMBERS[dtype]  # pyright: ignore[reportAttributeAccessIssue] - the stubs know no int
            tensor.tensor_shape.SetInParent()
            for size in shape:
                tensor.tensor_shape.dim.add(size=size)
            fields = {"float64": tensor.double_val, "float32": tensor.float_val, "int32": tensor.int_val}
            fields[dtype].extend(values)
            self._added.shared[key] = f"{name}:output:0"
        return self._added.shared[key]

    def _add(self, role: str, op: str, inputs: Iterable[str], **dtypes: str | int) -> str:
        name = self._name(role)
        node = self._added.function.node_def.add(name=name, op=op, input=inputs)
        attributes = node.attr
        for key, dtype in dtypes.items():
            number = DTYPE_NUMBERS[dtype] if isinstance(dtype, str) else dtype
            attributes[key].type = number  # pyright: ignore[reportAttributeAccessIssue] - the stubs know no int
        if self._with_write:
            # No device: TensorFlow overrules one of the update that is not its variable's, but not that of a Const.
            attributes["_class"].list.s.append(f"loc:@{self._write.name}".encode())
        else:
            node.device = self._write.device
        attributes[MARK].s = role.encode()
        if role == ("read" if self._injection.weight is None else "scaled"):
            self._added.carrier = node
        return name

    def _copy(self, role: str, original: NodeDef, wait: str) -> str:
        """A copy of a node that waits for one more."""
        name = self._name(role)
        node = self._added.function.node_def.add()
        node.CopyFrom(original)
        node.name = name
        node.input.append(wait)
        node.attr[MARK].s = role.encode()
        return name

    def _name(self, role: str) -> str:
        scope, slash, leaf = self._write.name.rpartition("/")
        base = name = f"{scope}{slash}graphwd/{role}_{leaf}"
        number = 0
        while name in self._added.taken or name in self._added.present:
            number += 1
            name = f"{base}_{number}"
        self._added.taken.add(name)
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
