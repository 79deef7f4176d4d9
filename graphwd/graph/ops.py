"""Tables of the TensorFlow ops that graphwd understands, by what they do with a variable. Data, no behaviour.

The operand names are those of TensorFlow's op registry; ``tests/graph/ops_test.py`` holds every row against the
registry of the installed TensorFlow and fails on a training op that has no row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Form(Enum):
    """How a write changes its variable."""

    APPLY = "apply"  # the op computes the optimizer's update itself
    ASSIGN = "assign"  # w <- value
    ADD = "add"  # w <- w + value
    SUB = "sub"  # w <- w - value
    OTHER = "other"  # w <- w * value, min(w, value), ...


@dataclass(frozen=True, slots=True)
class WriteOp:
    """An op that writes a variable.

    Attributes:
        operands: the names of its inputs, in order.
        form: how it changes the variable.
        reference: whether it takes a v1 reference and returns it, where others take a resource handle.
        partial: whether it writes a part of the variable that is not a list of rows: elements or a slice.
    """

    operands: tuple[str, ...]
    form: Form
    reference: bool
    partial: bool = False

    @property
    def value(self) -> int:
        """Position of what is written: the gradient of an Apply op, the value of every other."""
        names = ("grad", "delta") if self.form is Form.APPLY else ("value", "updates")
        return next(i for i, name in enumerate(self.operands) if name in names)

    @property
    def rows(self) -> int | None:
        """Position of the indices of the rows written; None where no such list says what is."""
        return self.operands.index("indices") if "indices" in self.operands and not self.partial else None

    @property
    def learning_rate(self) -> int | None:
        """Position of the learning rate of an Apply op."""
        names = ("lr", "alpha") if self.value and "lr" not in self.operands else ("lr",)
        return next((i for i, name in enumerate(self.operands) if name in names), None)

    @property
    def slots(self) -> tuple[int, ...]:
        """Positions of the slot variables that an Apply op reads and writes besides its variable."""
        return tuple(i for i, name in enumerate(self.operands) if i and name in _SLOTS)


_SLOTS = frozenset(
    [
        "accum",
        "accum_update",
        "gradient_accumulator",
        "gradient_squared_accumulator",
        "linear",
        "m",
        "mg",
        "mom",
        "ms",
        "v",
        "vhat",
    ]
)

_APPLY: Mapping[str, str] = {
    "ResourceApplyAdaMax": "var m v beta1_power lr beta1 beta2 epsilon grad",
    "ResourceApplyAdadelta": "var accum accum_update lr rho epsilon grad",
    "ResourceApplyAdagrad": "var accum lr grad",
    "ResourceApplyAdagradDA": "var gradient_accumulator gradient_squared_accumulator grad lr l1 l2 global_step",
    "ResourceApplyAdagradV2": "var accum lr epsilon grad",
    "ResourceApplyAdam": "var m v beta1_power beta2_power lr beta1 beta2 epsilon grad",
    "ResourceApplyAdamWithAmsgrad": "var m v vhat beta1_power beta2_power lr beta1 beta2 epsilon grad",
    "ResourceApplyAddSign": "var m lr alpha sign_decay beta grad",
    "ResourceApplyCenteredRMSProp": "var mg ms mom lr rho momentum epsilon grad",
    "ResourceApplyFtrl": "var accum linear grad lr l1 l2 lr_power",
    "ResourceApplyFtrlV2": "var accum linear grad lr l1 l2 l2_shrinkage lr_power",
    "ResourceApplyGradientDescent": "var alpha delta",
    "ResourceApplyKerasMomentum": "var accum lr grad momentum",
    "ResourceApplyMomentum": "var accum lr grad momentum",
    "ResourceApplyPowerSign": "var m lr logbase sign_decay beta grad",
    "ResourceApplyProximalAdagrad": "var accum lr l1 l2 grad",
    "ResourceApplyProximalGradientDescent": "var alpha l1 l2 delta",
    "ResourceApplyRMSProp": "var ms mom lr rho momentum epsilon grad",
    "ResourceSparseApplyAdadelta": "var accum accum_update lr rho epsilon grad indices",
    "ResourceSparseApplyAdagrad": "var accum lr grad indices",
    "ResourceSparseApplyAdagradDA": (
        "var gradient_accumulator gradient_squared_accumulator grad indices lr l1 l2 global_step"
    ),
    "ResourceSparseApplyAdagradV2": "var accum lr epsilon grad indices",
    "ResourceSparseApplyCenteredRMSProp": "var mg ms mom lr rho momentum epsilon grad indices",
    "ResourceSparseApplyFtrl": "var accum linear grad indices lr l1 l2 lr_power",
    "ResourceSparseApplyFtrlV2": "var accum linear grad indices lr l1 l2 l2_shrinkage lr_power",
    "ResourceSparseApplyKerasMomentum": "var accum lr grad indices momentum",
    "ResourceSparseApplyMomentum": "var accum lr grad indices momentum",
    "ResourceSparseApplyProximalAdagrad": "var accum lr l1 l2 grad indices",
    "ResourceSparseApplyProximalGradientDescent": "var alpha l1 l2 grad indices",
    "ResourceSparseApplyRMSProp": "var ms mom lr rho momentum epsilon grad indices",
    "ApplyAdaMax": "var m v beta1_power lr beta1 beta2 epsilon grad",
    "ApplyAdadelta": "var accum accum_update lr rho epsilon grad",
    "ApplyAdagrad": "var accum lr grad",
    "ApplyAdagradDA": "var gradient_accumulator gradient_squared_accumulator grad lr l1 l2 global_step",
    "ApplyAdagradV2": "var accum lr epsilon grad",
    "ApplyAdam": "var m v beta1_power beta2_power lr beta1 beta2 epsilon grad",
    "ApplyAddSign": "var m lr alpha sign_decay beta grad",
    "ApplyCenteredRMSProp": "var mg ms mom lr rho momentum epsilon grad",
    "ApplyFtrl": "var accum linear grad lr l1 l2 lr_power",
    "ApplyFtrlV2": "var accum linear grad lr l1 l2 l2_shrinkage lr_power",
    "ApplyGradientDescent": "var alpha delta",
    "ApplyMomentum": "var accum lr grad momentum",
    "ApplyPowerSign": "var m lr logbase sign_decay beta grad",
    "ApplyProximalAdagrad": "var accum lr l1 l2 grad",
    "ApplyProximalGradientDescent": "var alpha l1 l2 delta",
    "ApplyRMSProp": "var ms mom lr rho momentum epsilon grad",
    "SparseApplyAdadelta": "var accum accum_update lr rho epsilon grad indices",
    "SparseApplyAdagrad": "var accum lr grad indices",
    "SparseApplyAdagradDA": "var gradient_accumulator gradient_squared_accumulator grad indices lr l1 l2 global_step",
    "SparseApplyAdagradV2": "var accum lr epsilon grad indices",
    "SparseApplyCenteredRMSProp": "var mg ms mom lr rho momentum epsilon grad indices",
    "SparseApplyFtrl": "var accum linear grad indices lr l1 l2 lr_power",
    "SparseApplyFtrlV2": "var accum linear grad indices lr l1 l2 l2_shrinkage lr_power",
    "SparseApplyMomentum": "var accum lr grad indices momentum",
    "SparseApplyProximalAdagrad": "var accum lr l1 l2 grad indices",
    "SparseApplyProximalGradientDescent": "var alpha l1 l2 grad indices",
    "SparseApplyRMSProp": "var ms mom lr rho momentum epsilon grad indices",
}

_FORMS: Mapping[str, Form] = {
    "Add": Form.ADD,
    "Sub": Form.SUB,
    "Update": Form.ASSIGN,
    "Mul": Form.OTHER,
    "Div": Form.OTHER,
    "Min": Form.OTHER,
    "Max": Form.OTHER,
}


def _write_ops() -> dict[str, WriteOp]:
    def row(operands: str, form: Form, reference: bool, partial: bool = False) -> WriteOp:
        return WriteOp(tuple(operands.split()), form, reference, partial)

    ops = {name: row(operands, Form.APPLY, not name.startswith("Resource")) for name, operands in _APPLY.items()}
    ops["Assign"] = row("ref value", Form.ASSIGN, True)
    ops["AssignVariableOp"] = row("resource value", Form.ASSIGN, False)
    ops["StridedSliceAssign"] = row("ref begin end strides value", Form.OTHER, True, True)
    ops["ResourceStridedSliceAssign"] = row("ref begin end strides value", Form.OTHER, False, True)
    for suffix in ("Add", "Sub"):
        ops[f"Assign{suffix}"] = row("ref value", _FORMS[suffix], True)
        ops[f"Assign{suffix}VariableOp"] = row("resource value", _FORMS[suffix], False)
    for suffix, form in _FORMS.items():
        ops[f"Scatter{suffix}"] = row("ref indices updates", form, True)
        ops[f"ResourceScatter{suffix}"] = row("resource indices updates", form, False)
    # ScatterNd indexes elements or slices, not rows: its indices have a trailing axis.
    for suffix in ("Add", "Sub", "Update", "Min", "Max"):
        ops[f"ScatterNd{suffix}"] = row("ref indices updates", _FORMS[suffix], True, True)
        ops[f"ResourceScatterNd{suffix}"] = row("ref indices updates", _FORMS[suffix], False, True)
    return ops


WRITE_OPS: Mapping[str, WriteOp] = _write_ops()

READ_OPS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd"})
"""Ops whose output is the content of the variable that their first input is the handle of."""

METADATA_OPS = frozenset({"VarIsInitializedOp", "VariableShape", "IsVariableInitialized", "DestroyResourceOp"})
"""Ops that take a variable but neither read nor write its content."""

SHAPE_OPS = frozenset({"OnesLike", "Rank", "Shape", "ShapeN", "Size", "ZerosLike"})
"""Ops whose outputs depend on the shapes of their inputs alone."""

HANDLE_OPS = frozenset({"VarHandleOp", "VariableV2", "Variable"})
"""Ops that make a variable's handle (or v1 reference) inside the graph."""

PASS_THROUGH_OPS = frozenset(
    {
        "Identity", "IdentityN", "RefIdentity", "StopGradient", "PreventGradient", "CheckNumerics", "Snapshot",
        "Enter", "RefEnter", "Exit", "RefExit", "NextIteration", "RefNextIteration", "EnsureShape",
    }
)  # fmt: skip
"""Ops whose output i is their input i."""

SAME_OPS = frozenset({"Identity", "IdentityN", "StopGradient", "PreventGradient", "CheckNumerics", "Snapshot"})
"""Those of them that are mere aliases in any body."""

GUARD_OPS = frozenset({"CheckNumerics"})
"""Those of them that raise where their input is not as it should be."""

PRODUCT_OPS = frozenset({"Mul", "MulNoNan"})
"""Ops that multiply their inputs."""

QUOTIENT_OPS = frozenset({"RealDiv", "Div"})
"""Ops that divide their first input by their second."""

SUM_OPS = frozenset({"Add", "AddN", "AddV2", "Sub", *SAME_OPS})
"""Ops that add up what they are given, with a sign."""

SCALAR_OPS = frozenset(
    {"Cast", "Exp", "Log", "Maximum", "Minimum", "Neg", "Pow", "Reciprocal", "Rsqrt", "Sqrt", "Square"}
)
"""Further ops that make one number of numbers."""

SWITCH_OPS = frozenset({"Switch", "RefSwitch"})
"""Ops of v1 control flow whose outputs are both their first input."""

MERGE_OPS = frozenset({"Merge", "RefMerge"})
"""Ops of v1 control flow whose first output is one of their inputs."""

REFERENCE_OPS = frozenset(
    {"RefIdentity", "RefEnter", "RefExit", "RefNextIteration", "RefSwitch", "RefMerge", "RefSelect"}
)
"""Ops that hand a v1 reference on, where every op but these and writes takes the content."""

DATA_OPS = frozenset(
    {
        "IteratorGetNext", "IteratorGetNextSync", "IteratorGetNextAsOptional", "OptionalGetValue", "Placeholder",
        "PlaceholderV2", "PlaceholderWithDefault", "QueueDequeueV2", "QueueDequeueManyV2", "QueueDequeueUpToV2",
        "InfeedDequeue", "InfeedDequeueTuple", "MultiDeviceIteratorGetNextFromShard", "Recv",
    }
)  # fmt: skip
"""Ops that bring the step's data into the graph."""


class CallKind(Enum):
    """What a call op does with its functions."""

    CALL = "call"  # runs it once
    BRANCH = "branch"  # runs exactly one of them
    LOOP = "loop"  # runs them again and again, results fed back to the arguments
    SCAN = "scan"  # runs it for every element of a dataset: state, element and captures are its arguments


@dataclass(frozen=True, slots=True)
class CallOp:
    """An op that runs functions of the library.

    Attributes:
        kind: how it runs them.
        attributes: the attributes that name the functions.
        skip: how many of its inputs come before the arguments.
        drop: how many of its inputs come after them.
    """

    kind: CallKind
    attributes: tuple[str, ...]
    skip: int = 0
    drop: int = 0


CALL_OPS: Mapping[str, CallOp] = {
    "PartitionedCall": CallOp(CallKind.CALL, ("f",)),
    "StatefulPartitionedCall": CallOp(CallKind.CALL, ("f",)),
    "TPUPartitionedCall": CallOp(CallKind.CALL, ("f",), drop=1),
    "RemoteCall": CallOp(CallKind.CALL, ("f",), skip=1),
    "XlaLaunch": CallOp(CallKind.CALL, ("function",)),
    "XlaLaunchV2": CallOp(CallKind.CALL, ("function",)),
    "If": CallOp(CallKind.BRANCH, ("then_branch", "else_branch"), skip=1),
    "StatelessIf": CallOp(CallKind.BRANCH, ("then_branch", "else_branch"), skip=1),
    "Case": CallOp(CallKind.BRANCH, ("branches",), skip=1),
    "StatelessCase": CallOp(CallKind.BRANCH, ("branches",), skip=1),
    "While": CallOp(CallKind.LOOP, ("cond", "body")),
    "StatelessWhile": CallOp(CallKind.LOOP, ("cond", "body")),
    # AutoGraph turns `for batch in dataset` inside a step into these, the loop's body being their function.
    "ScanDataset": CallOp(CallKind.SCAN, ("f",), skip=1),
    "ReduceDataset": CallOp(CallKind.SCAN, ("f",), skip=1),
}
