"""Tables of the TensorFlow ops that write variables, and of those that run functions. Data, no behaviour.

All other ops are rows of `graphwd.graph.traits`.

The operand names are those of TensorFlow's op registry; ``tests/graph/ops_test.py`` holds every row against the
registry of the installed TensorFlow and fails on a training op that has no row here.
"""

from __future__ import annotations

import functools
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


@dataclass(frozen=True)  # no slots: the properties are cached
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

    @functools.cached_property
    def value(self) -> int:
        """Position of the written operand: the gradient of an Apply op, the value of any other op."""
        names = ("grad", "delta") if self.form is Form.APPLY else ("value", "updates")
        return next(i for i, name in enumerate(self.operands) if name in names)

    @functools.cached_property
    def rows(self) -> int | None:
        """Position of the indices of the written rows; None where the op takes no such list."""
        return self.operands.index("indices") if "indices" in self.operands and not self.partial else None

    @functools.cached_property
    def learning_rate(self) -> int | None:
        """Position of the learning rate of an Apply op."""
        names = ("lr", "alpha") if self.value and "lr" not in self.operands else ("lr",)
        return next((i for i, name in enumerate(self.operands) if name in names), None)

    @functools.cached_property
    def proximal(self) -> bool:
        """Whether an Apply op ends in a proximal step, the soft threshold of an L1 penalty.

        Such an op does not add a function of the gradient to the weight: the Proximal ops cut that sum off at the
        threshold, FTRL and AdagradDA compute the weight from their slot variables.
        """
        return "l1" in self.operands

    @functools.cached_property
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

_OTHERS: Mapping[str, tuple[Form, str]] = {
    "Assign": (Form.ASSIGN, "ref value"),
    "AssignAdd": (Form.ADD, "ref value"),
    "AssignAddVariableOp": (Form.ADD, "resource value"),
    "AssignSub": (Form.SUB, "ref value"),
    "AssignSubVariableOp": (Form.SUB, "resource value"),
    "AssignVariableOp": (Form.ASSIGN, "resource value"),
    "ResourceScatterAdd": (Form.ADD, "resource indices updates"),
    "ResourceScatterDiv": (Form.OTHER, "resource indices updates"),
    "ResourceScatterMax": (Form.OTHER, "resource indices updates"),
    "ResourceScatterMin": (Form.OTHER, "resource indices updates"),
    "ResourceScatterMul": (Form.OTHER, "resource indices updates"),
    "ResourceScatterSub": (Form.SUB, "resource indices updates"),
    "ResourceScatterUpdate": (Form.ASSIGN, "resource indices updates"),
    "ScatterAdd": (Form.ADD, "ref indices updates"),
    "ScatterDiv": (Form.OTHER, "ref indices updates"),
    "ScatterMax": (Form.OTHER, "ref indices updates"),
    "ScatterMin": (Form.OTHER, "ref indices updates"),
    "ScatterMul": (Form.OTHER, "ref indices updates"),
    "ScatterSub": (Form.SUB, "ref indices updates"),
    "ScatterUpdate": (Form.ASSIGN, "ref indices updates"),
}

# The indices of ScatterNd ops have a trailing axis: they are of elements or slices, not of rows.
_PARTIAL: Mapping[str, tuple[Form, str]] = {
    "ResourceScatterNdAdd": (Form.ADD, "ref indices updates"),
    "ResourceScatterNdMax": (Form.OTHER, "ref indices updates"),
    "ResourceScatterNdMin": (Form.OTHER, "ref indices updates"),
    "ResourceScatterNdSub": (Form.SUB, "ref indices updates"),
    "ResourceScatterNdUpdate": (Form.ASSIGN, "ref indices updates"),
    "ResourceStridedSliceAssign": (Form.OTHER, "ref begin end strides value"),
    "ScatterNdAdd": (Form.ADD, "ref indices updates"),
    "ScatterNdMax": (Form.OTHER, "ref indices updates"),
    "ScatterNdMin": (Form.OTHER, "ref indices updates"),
    "ScatterNdSub": (Form.SUB, "ref indices updates"),
    "ScatterNdUpdate": (Form.ASSIGN, "ref indices updates"),
    "StridedSliceAssign": (Form.OTHER, "ref begin end strides value"),
}


def _write_op(name: str, form: Form, operands: str, partial: bool = False) -> WriteOp:
    reference = not (name.startswith("Resource") or name.endswith("VariableOp"))
    return WriteOp(tuple(operands.split()), form, reference, partial)


WRITE_OPS: Mapping[str, WriteOp] = {
    **{name: _write_op(name, Form.APPLY, operands) for name, operands in _APPLY.items()},
    **{name: _write_op(name, *row) for name, row in _OTHERS.items()},
    **{name: _write_op(name, *row, partial=True) for name, row in _PARTIAL.items()},
}
"""The ops that write variables. A new op is one row above, and the names of its new slot variables go to `_SLOTS`."""


class CallKind(Enum):
    """How a call op runs its functions."""

    CALL = "call"  # runs it once
    BRANCH = "branch"  # runs exactly one of them
    LOOP = "loop"  # runs them again and again, results fed back to the arguments
    SCAN = "scan"  # runs it for every element of a dataset; its arguments are the state, the element and the captures


@dataclass(frozen=True, slots=True)
class CallOp:
    """An op that runs functions of the library.

    Attributes:
        kind: how it runs them.
        attributes: the attributes that name the functions.
        skip: how many of its inputs come before the arguments.
        drop: how many of its inputs come after them.
        folds: whether a scan returns its final state; other scans return a result for each element.
        types: the attribute that lists the dtypes of its arguments, or of the last of them; None where the arguments
            are sorted, so that none can be added at the end.
    """

    kind: CallKind
    attributes: tuple[str, ...]
    skip: int = 0
    drop: int = 0
    folds: bool = False
    types: str | None = "Tin"


CALL_OPS: Mapping[str, CallOp] = {
    "PartitionedCall": CallOp(CallKind.CALL, ("f",)),
    "StatefulPartitionedCall": CallOp(CallKind.CALL, ("f",)),
    "TPUPartitionedCall": CallOp(CallKind.CALL, ("f",), drop=1),
    "RemoteCall": CallOp(CallKind.CALL, ("f",), skip=1),
    "XlaLaunch": CallOp(CallKind.CALL, ("function",), types=None),
    "XlaLaunchV2": CallOp(CallKind.CALL, ("function",), types=None),
    "If": CallOp(CallKind.BRANCH, ("then_branch", "else_branch"), skip=1),
    "StatelessIf": CallOp(CallKind.BRANCH, ("then_branch", "else_branch"), skip=1),
    "Case": CallOp(CallKind.BRANCH, ("branches",), skip=1),
    "StatelessCase": CallOp(CallKind.BRANCH, ("branches",), skip=1),
    "While": CallOp(CallKind.LOOP, ("cond", "body"), types="T"),
    "StatelessWhile": CallOp(CallKind.LOOP, ("cond", "body"), types="T"),
    # AutoGraph turns `for batch in dataset` inside a step into these, the loop's body being their function.
    "ScanDataset": CallOp(CallKind.SCAN, ("f",), skip=1, types="Targuments"),
    "ReduceDataset": CallOp(CallKind.SCAN, ("f",), skip=1, folds=True, types="Targuments"),
}
