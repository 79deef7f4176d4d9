"""A table of the TensorFlow ops that write no variable and call no function: one row an op. Data, no behaviour.

`ops_with` makes sets of ops from the rows. Sets that several modules use are made here, others in the module that uses
them. So a new op is one more row, and its row says all that is known of it. A module names an op itself only where it
reads the operands or attributes of just that op. ``tests/graph/ops_test.py`` compares the rows with the registry of the
installed TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto


class Trait(Flag):
    """A property of an op: what it computes, or its part in a step."""

    # Ops of variables.
    HANDLE = auto()  # makes a variable's handle, or v1 reference, inside the graph
    READ = auto()  # reads the variable whose handle is its first input
    METADATA = auto()  # takes a variable but neither reads nor writes its content
    REFERENCE = auto()  # passes a v1 reference on; every other op but a write reads its content

    # Ops with values from outside.
    DATA = auto()  # brings the step's data into the graph
    PYTHON_CALL = auto()  # runs Python code

    # Ops that pass their inputs on.
    ALIAS = auto()  # output i is input i, in any body
    PASS_THROUGH = auto()  # output i is input i, but not as a mere alias: a frame, a shape, a reference matters
    GUARD = auto()  # an alias that raises where its input is invalid
    SWITCH = auto()  # v1 control flow: both outputs are the first input
    MERGE = auto()  # v1 control flow: the first output is one of the inputs
    ENTER = auto()  # v1 control flow: goes into a loop
    EXIT = auto()  # v1 control flow: comes out of a loop
    NEXT_ITERATION = auto()  # v1 control flow: goes back to the head of a loop, which is a merge

    # Ops that compute.
    SUM = auto()  # adds its inputs
    DIFFERENCE = auto()  # subtracts its second input from its first
    NEGATION = auto()  # changes the sign of its input
    CAST = auto()  # changes the dtype of its input
    PRODUCT = auto()  # multiplies its inputs
    QUOTIENT = auto()  # divides its first input by its second
    QUOTIENT_OR_ZERO = auto()  # likewise, but no analysis follows it
    RECIPROCAL = auto()  # divides 1 by its input
    SELECT = auto()  # takes each element from its second or its third input, as the first says
    MATRIX = auto()  # multiplies matrices
    SHAPE = auto()  # its outputs depend on the shapes of its inputs alone
    STATISTIC = auto()  # reduces a whole tensor to a number, or a few, by which a gradient is clipped or centred
    LINEAR = auto()  # is linear in its first input, with factor 1 or -1

    # How an output corresponds to the inputs.
    SCALAR = auto()  # computes a scalar from scalars
    ROWWISE = auto()  # has a row for each row of its inputs
    FUSIBLE = auto()  # elementwise for XLA, which makes one loop of several of these
    FIRST_OPERAND = auto()  # only the first input holds values; the others are indices, axes, shapes
    INDEXED = auto()  # the second input holds indices of rows

    # What the forward pass uses a weight for.
    LAYOUT = auto()  # holds the elements of its inputs, moved, repeated or cast
    PART = auto()  # likewise, but leaves some out
    CONTRACTION = auto()  # sums products of its inputs: matrices, filters, any Einstein sum
    DEPTHWISE = auto()  # a filter for each channel, the second input
    LOOKUP = auto()  # takes rows of its first input, by indices
    OFFSET = auto()  # adds its second input to each row of the first
    NORMALIZATION = auto()  # normalizes its first input; scales by the second and adds the third
    ONE_HOT = auto()  # makes rows of a unit matrix
    ROOT = auto()  # the square root of its input, or one over that

    # The sign of the output.
    SAME_SIGN = auto()  # that of its first input
    MAGNITUDE = auto()  # independent of the inputs' signs, as for a statistic of squares
    POSITIVE = auto()  # never negative, where it is computed from constants

    # Prepares a gradient before the optimizer: sums, unscales, clips, centres, casts or rearranges it. Left out where
    # another trait implies it.
    PREPARATION = auto()

    # Common combinations. An op that has only a part of a combination is written with the single traits.
    ELEMENTWISE = SCALAR | ROWWISE | FUSIBLE
    CONDITION = FUSIBLE | PREPARATION  # compares, or combines the results of comparisons
    REARRANGEMENT = FIRST_OPERAND | PREPARATION
    REDUCTION = FIRST_OPERAND | STATISTIC


_TABLE: Mapping[str, Trait] = {
    "Abs": Trait.ROWWISE | Trait.FUSIBLE | Trait.MAGNITUDE,
    "Add": Trait.ELEMENTWISE | Trait.SUM,
    "AddN": Trait.ELEMENTWISE | Trait.SUM,
    "AddV2": Trait.ELEMENTWISE | Trait.SUM,
    "All": Trait.STATISTIC,
    "Any": Trait.STATISTIC,
    "BatchMatMul": Trait.MATRIX | Trait.CONTRACTION,
    "BatchMatMulV2": Trait.MATRIX | Trait.CONTRACTION,
    "BatchMatMulV3": Trait.CONTRACTION,
    "BatchToSpaceND": Trait.LAYOUT,
    "BiasAdd": Trait.OFFSET,
    "BiasAddV1": Trait.OFFSET,
    "BroadcastTo": Trait.REARRANGEMENT | Trait.LAYOUT,
    "Cast": Trait.ELEMENTWISE | Trait.CAST | Trait.LINEAR | Trait.SAME_SIGN | Trait.LAYOUT,
    "CheckNumerics": Trait.ALIAS | Trait.GUARD,
    "ClipByValue": Trait.PREPARATION,
    "CollectiveReduceV2": Trait.PREPARATION,
    "CollectiveReduceV3": Trait.PREPARATION,
    "Concat": Trait.PREPARATION | Trait.LAYOUT,
    "ConcatV2": Trait.PREPARATION | Trait.LAYOUT,
    "Const": Trait.FUSIBLE,
    "Conv": Trait.CONTRACTION,
    "Conv2D": Trait.CONTRACTION,
    "Conv2DBackpropInput": Trait.CONTRACTION,
    "Conv2DBackpropInputV2": Trait.CONTRACTION,
    "Conv3D": Trait.CONTRACTION,
    "Conv3DBackpropInput": Trait.CONTRACTION,
    "Conv3DBackpropInputV2": Trait.CONTRACTION,
    "DeepCopy": Trait.PREPARATION | Trait.LAYOUT,
    "DepthwiseConv2dNative": Trait.DEPTHWISE,
    "DestroyResourceOp": Trait.METADATA,
    "Div": Trait.ELEMENTWISE | Trait.QUOTIENT,
    "DivNoNan": Trait.FUSIBLE | Trait.QUOTIENT_OR_ZERO,
    "EagerPyFunc": Trait.PYTHON_CALL,
    "Einsum": Trait.CONTRACTION,
    "EnsureShape": Trait.PASS_THROUGH | Trait.PREPARATION,
    "Enter": Trait.PASS_THROUGH | Trait.ENTER,
    "Equal": Trait.CONDITION,
    "EuclideanNorm": Trait.STATISTIC,
    "Exit": Trait.PASS_THROUGH | Trait.EXIT,
    "Exp": Trait.ELEMENTWISE | Trait.POSITIVE,
    "ExpandDims": Trait.REARRANGEMENT | Trait.SAME_SIGN | Trait.LAYOUT,
    "FusedBatchNorm": Trait.NORMALIZATION,
    "FusedBatchNormV2": Trait.NORMALIZATION,
    "FusedBatchNormV3": Trait.NORMALIZATION,
    "Gather": Trait.REARRANGEMENT | Trait.LOOKUP,
    "GatherNd": Trait.REARRANGEMENT | Trait.LOOKUP,
    "GatherV2": Trait.REARRANGEMENT | Trait.INDEXED | Trait.LOOKUP,
    "Greater": Trait.CONDITION,
    "GreaterEqual": Trait.CONDITION,
    "Identity": Trait.ALIAS | Trait.FUSIBLE,
    "IdentityN": Trait.ALIAS,
    "InfeedDequeue": Trait.DATA,
    "InfeedDequeueTuple": Trait.DATA,
    "Inv": Trait.FUSIBLE | Trait.RECIPROCAL,
    "IsFinite": Trait.PREPARATION,
    "IsInf": Trait.PREPARATION,
    "IsNan": Trait.PREPARATION,
    "IsVariableInitialized": Trait.METADATA,
    "IteratorGetNext": Trait.DATA,
    "IteratorGetNextAsOptional": Trait.DATA,
    "IteratorGetNextSync": Trait.DATA,
    "L2Loss": Trait.STATISTIC | Trait.MAGNITUDE,
    "Less": Trait.CONDITION,
    "LessEqual": Trait.CONDITION,
    "Log": Trait.ELEMENTWISE,
    "Log1p": Trait.ROWWISE | Trait.FUSIBLE,
    "LogicalAnd": Trait.CONDITION,
    "LogicalNot": Trait.CONDITION,
    "LogicalOr": Trait.CONDITION,
    "MatMul": Trait.MATRIX | Trait.CONTRACTION,
    "MatrixDiagPartV3": Trait.PART,
    "Max": Trait.REDUCTION | Trait.SAME_SIGN,
    "Maximum": Trait.ELEMENTWISE | Trait.PREPARATION,
    "Mean": Trait.REDUCTION | Trait.SAME_SIGN,
    "Merge": Trait.MERGE,
    "Min": Trait.REDUCTION,
    "Minimum": Trait.ELEMENTWISE | Trait.PREPARATION,
    "MirrorPad": Trait.LAYOUT,
    "Mul": Trait.ELEMENTWISE | Trait.PRODUCT,
    "MulNoNan": Trait.ELEMENTWISE | Trait.PRODUCT,
    "MultiDeviceIteratorGetNextFromShard": Trait.DATA,
    "NcclAllReduce": Trait.PREPARATION,
    "Neg": Trait.ELEMENTWISE | Trait.NEGATION | Trait.LINEAR,
    "NextIteration": Trait.PASS_THROUGH | Trait.NEXT_ITERATION,
    "NotEqual": Trait.FUSIBLE,
    "OneHot": Trait.ONE_HOT,
    "OnesLike": Trait.SHAPE | Trait.FUSIBLE,
    "OptionalGetValue": Trait.DATA,
    "Pack": Trait.PREPARATION | Trait.LAYOUT,
    "Pad": Trait.REARRANGEMENT | Trait.LAYOUT,
    "PadV2": Trait.PREPARATION | Trait.LAYOUT,
    "Placeholder": Trait.DATA,
    "PlaceholderV2": Trait.DATA,
    "PlaceholderWithDefault": Trait.DATA,
    "Pow": Trait.ELEMENTWISE,
    "PreventGradient": Trait.ALIAS,
    "Prod": Trait.REDUCTION,
    "PyFunc": Trait.PYTHON_CALL,
    "PyFuncStateless": Trait.PYTHON_CALL,
    "QueueDequeueManyV2": Trait.DATA,
    "QueueDequeueUpToV2": Trait.DATA,
    "QueueDequeueV2": Trait.DATA,
    "Rank": Trait.SHAPE,
    "ReadVariableOp": Trait.READ,
    "RealDiv": Trait.ELEMENTWISE | Trait.QUOTIENT,
    "Reciprocal": Trait.ELEMENTWISE | Trait.RECIPROCAL,
    "Recv": Trait.DATA,
    "RefEnter": Trait.PASS_THROUGH | Trait.ENTER | Trait.REFERENCE,
    "RefExit": Trait.PASS_THROUGH | Trait.EXIT | Trait.REFERENCE,
    "RefIdentity": Trait.PASS_THROUGH | Trait.REFERENCE,
    "RefMerge": Trait.MERGE | Trait.REFERENCE,
    "RefNextIteration": Trait.PASS_THROUGH | Trait.NEXT_ITERATION | Trait.REFERENCE,
    "RefSelect": Trait.REFERENCE,
    "RefSwitch": Trait.SWITCH | Trait.REFERENCE,
    "Reshape": Trait.REARRANGEMENT | Trait.LINEAR | Trait.SAME_SIGN | Trait.LAYOUT,
    "ResourceGather": Trait.READ | Trait.FIRST_OPERAND | Trait.INDEXED | Trait.LOOKUP,
    "ResourceGatherNd": Trait.READ | Trait.FIRST_OPERAND | Trait.LOOKUP,
    "ReverseV2": Trait.LAYOUT,
    "Roll": Trait.LAYOUT,
    "Rsqrt": Trait.ELEMENTWISE | Trait.POSITIVE | Trait.ROOT,
    "Select": Trait.ROWWISE | Trait.FUSIBLE | Trait.SELECT,
    "SelectV2": Trait.ROWWISE | Trait.FUSIBLE | Trait.SELECT,
    "Shape": Trait.SHAPE,
    "ShapeN": Trait.SHAPE,
    "Sigmoid": Trait.ROWWISE,
    "Sign": Trait.ROWWISE | Trait.FUSIBLE,
    "Size": Trait.SHAPE,
    "Slice": Trait.REARRANGEMENT | Trait.PART,
    "Snapshot": Trait.ALIAS | Trait.LAYOUT,
    "SpaceToBatchND": Trait.LAYOUT,
    "SparseMatMul": Trait.CONTRACTION,
    "SparseTensorDenseMatMul": Trait.CONTRACTION,
    "Split": Trait.PREPARATION | Trait.PART,
    "SplitV": Trait.PREPARATION | Trait.PART,
    "Sqrt": Trait.ELEMENTWISE | Trait.MAGNITUDE | Trait.POSITIVE | Trait.ROOT,
    "Square": Trait.ELEMENTWISE | Trait.MAGNITUDE | Trait.POSITIVE,
    "SquaredDifference": Trait.ROWWISE | Trait.FUSIBLE,
    "Squeeze": Trait.REARRANGEMENT | Trait.SAME_SIGN | Trait.LAYOUT,
    "StopGradient": Trait.ALIAS,
    "StridedSlice": Trait.REARRANGEMENT | Trait.PART,
    "Sub": Trait.ELEMENTWISE | Trait.DIFFERENCE,
    "Sum": Trait.REDUCTION | Trait.SAME_SIGN,
    "Switch": Trait.SWITCH,
    "Tanh": Trait.ROWWISE,
    "Tile": Trait.REARRANGEMENT | Trait.LAYOUT,
    "Transpose": Trait.REARRANGEMENT | Trait.SAME_SIGN | Trait.LAYOUT,
    "Unpack": Trait.PREPARATION | Trait.PART,
    "UnsortedSegmentMax": Trait.FIRST_OPERAND,
    "UnsortedSegmentMin": Trait.FIRST_OPERAND,
    "UnsortedSegmentSum": Trait.REARRANGEMENT | Trait.INDEXED | Trait.LINEAR | Trait.SAME_SIGN,
    "VarHandleOp": Trait.HANDLE,
    "VarIsInitializedOp": Trait.METADATA,
    "Variable": Trait.HANDLE,
    "VariableShape": Trait.METADATA,
    "VariableV2": Trait.HANDLE,
    "Where": Trait.PREPARATION,
    "XlaConv": Trait.CONTRACTION,
    "XlaConvV2": Trait.CONTRACTION,
    "XlaDot": Trait.CONTRACTION,
    "XlaDotV2": Trait.CONTRACTION,
    "ZerosLike": Trait.SHAPE | Trait.FUSIBLE,
}

KNOWN_OPS = frozenset(_TABLE)


def ops_with(*traits: Trait) -> frozenset[str]:
    """The ops that have any of some traits. To be called when a module is loaded, not for every node."""
    return frozenset(op for op, row in _TABLE.items() if any(trait in row for trait in traits))


HANDLE_OPS = ops_with(Trait.HANDLE)
READ_OPS = ops_with(Trait.READ)
METADATA_OPS = ops_with(Trait.METADATA)
REFERENCE_OPS = ops_with(Trait.REFERENCE)
DATA_OPS = ops_with(Trait.DATA)
SHAPE_OPS = ops_with(Trait.SHAPE)

ALIAS_OPS = ops_with(Trait.ALIAS)
PASS_THROUGH_OPS = ops_with(Trait.ALIAS, Trait.PASS_THROUGH)
MERGE_OPS = ops_with(Trait.MERGE)
SWITCH_OPS = ops_with(Trait.SWITCH)

PRODUCT_OPS = ops_with(Trait.PRODUCT)
QUOTIENT_OPS = ops_with(Trait.QUOTIENT)
SCALING_OPS = ops_with(Trait.PRODUCT, Trait.QUOTIENT)
ADDITIVE_OPS = ops_with(Trait.SUM, Trait.DIFFERENCE)
SUM_OPS = ops_with(Trait.SUM, Trait.DIFFERENCE, Trait.ALIAS)
"""Ops that add their inputs, with a sign."""

LINEAR_OPS = ops_with(Trait.LINEAR)

SIGNS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(ops_with(Trait.SUM, Trait.CAST), (1, 1)),
    **dict.fromkeys(ops_with(Trait.DIFFERENCE), (1, -1)),
    **dict.fromkeys(ops_with(Trait.NEGATION), (-1, -1)),
}
"""The signs of the first and of the further terms of ops that add up."""
