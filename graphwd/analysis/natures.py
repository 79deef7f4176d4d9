"""Another domain to walk a step on: what a tensor is to the forward pass, and what ops make of it.

Here are the ops that say nothing of what a weight is for; those that do are in `graphwd.analysis.roles`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from graphwd.graph.traits import (
    DATA_OPS,
    MERGE_OPS,
    METADATA_OPS,
    PASS_THROUGH_OPS,
    SHAPE_OPS,
    Trait,
    ops_with,
)

NO_VARIABLE = -1


class Nature(IntEnum):
    """What a tensor is. Of the inputs of an op of which no more is known, the largest decides about its output."""

    NOTHING = 0  # a constant, a shape, a random number
    UNTRAINED = 1  # the content of variables that are not trainable
    ONE_HOT = 2  # rows of a unit matrix, or sums of them
    WEIGHT = 3  # made of trainable variables alone
    STATISTIC = 4  # an activation, reduced
    NORMALIZER = 5  # a root of a statistic, or one over it
    NORMALIZED = 6  # an activation times a normalizer, or over it
    ACTIVATION = 7  # anything that depends on the step's data, or that came out of a layer


_NO_IDS: frozenset[int] = frozenset()

# Read for every node, and slow to read from the class.
_WEIGHT, _STATISTIC, _ACTIVATION = Nature.WEIGHT, Nature.STATISTIC, Nature.ACTIVATION


class Known(NamedTuple):
    """What is known of a tensor.

    Attributes:
        handle: number of the variable whose handle it is, else `NO_VARIABLE`.
        nature: what it is.
        of: of a weight, the variables that it is made of; else those of the layer whose result it is, or whose result
            is normalized in it.
        alone: whether it is the result of one layer, and the whole of it.
        whole: whether a weight has all elements of its variable.
        computed: whether a weight is more than the elements of variables, moved and cast: a function of them.
        mixed: whether something else than results of layers was added to it, as by a residual connection.
        rows: whether it is rows of a variable that the step's data look up.
        scale: the variable by which it was scaled, else `NO_VARIABLE`.
        channels: the size of the last dimension of an activation, -1 where unknown.
        factors: where it is the product of weights alone, the variables of both.
    """

    handle: int = NO_VARIABLE
    nature: Nature = Nature.NOTHING
    of: frozenset[int] = _NO_IDS
    alone: bool = False
    whole: bool = True
    computed: bool = False
    mixed: bool = False
    rows: bool = False
    scale: int = NO_VARIABLE
    channels: int = -1
    factors: frozenset[int] = _NO_IDS

    @property
    def passes(self) -> bool:
        """Whether something of the forward pass is in it, for a weight to meet."""
        return self.nature >= _STATISTIC

    @property
    def is_weight(self) -> bool:
        """Whether it is made of trainable variables alone."""
        return self.nature is _WEIGHT


NOTHING = Known()
ACTIVATION = Known(nature=Nature.ACTIVATION)


@functools.cache
def activation(channels: int) -> Known:
    """An activation of which the last dimension may be known."""
    return Known(nature=Nature.ACTIVATION, channels=channels)


def result_of(layer: frozenset[int], channels: int) -> Known:
    """What comes out of a layer."""
    return Known(nature=Nature.ACTIVATION, of=layer, alone=len(layer) == 1, channels=channels)


def weight_of(variables: frozenset[int]) -> Known:
    """A weight."""
    return Known(nature=Nature.WEIGHT, of=variables)


def join(first: Known, second: Known) -> Known:
    """The value of a tensor that may be either of two; a constant, such as the first state of a loop, gives way."""
    if first == second:
        return first
    for one, other in ((first, second), (second, first)):
        if not one.nature and one.handle == NO_VARIABLE:
            return other
    same = first.nature is second.nature
    return Known(
        first.handle if first.handle == second.handle else NO_VARIABLE,
        max(first.nature, second.nature),
        first.of | second.of if same else _NO_IDS,
        same and first.alone and second.alone and first.of == second.of,
        first.whole and second.whole,
        first.computed or second.computed,
        first.mixed or second.mixed,
        first.rows and second.rows,
        first.scale if first.scale == second.scale else NO_VARIABLE,
        first.channels if first.channels == second.channels else -1,
    )


def largest(inputs: Sequence[Known]) -> Known:
    """The input that decides about the output of an op of which no more is known."""
    top = NOTHING
    for known in inputs:
        if known.nature > top.nature:
            top = known
    return top


def compute(inputs: list[Known]) -> list[Known]:
    """The rule of every op that has no rule of its own."""
    top = largest(inputs)
    if top.nature is _ACTIVATION:
        return [activation(top.channels)]
    if not top.nature:
        return []
    if top.is_weight:
        return [_of_weights(inputs)]
    if top.nature in (Nature.UNTRAINED, Nature.ONE_HOT):
        return [Known(nature=Nature.UNTRAINED)]
    return [top] if top.nature is Nature.STATISTIC else [activation(top.channels)]


def add_up(passing: Sequence[Known]) -> Known:
    """The sum of several tensors of the forward pass."""
    top = largest(passing)
    if len(passing) == 1:
        return top
    of = _NO_IDS.union(*(known.of for known in passing))
    channels = max(known.channels for known in passing)
    natures = {known.nature for known in passing}
    if natures == {Nature.ACTIVATION, Nature.STATISTIC} and top.of == of:
        return top  # less its mean
    if len(natures) > 1:
        return activation(channels)
    if top.nature is _ACTIVATION and any(known.mixed or not known.of for known in passing):
        # Past a residual connection: what counts is the layers that were met since the last one.
        return _past(_NO_IDS.union(*(known.of for known in passing if not known.mixed)), channels)
    alone = top.alone and all(known.of == top.of for known in passing)
    scale = top.scale if top.nature is not _ACTIVATION else NO_VARIABLE
    return top._replace(of=of, alone=alone, rows=False, scale=scale, channels=channels, factors=_NO_IDS)


def _past(layers: frozenset[int], channels: int) -> Known:
    """The sum of what comes out of some layers and of something else."""
    return Known(nature=_ACTIVATION, of=layers, mixed=bool(layers), channels=channels)


def _of_weights(inputs: Sequence[Known]) -> Known:
    weights = [known for known in inputs if known.is_weight]
    if len(weights) == 1:
        return weights[0]._replace(computed=True)
    of = _NO_IDS.union(*(known.of for known in weights))
    return Known(nature=Nature.WEIGHT, of=of, whole=all(known.whole for known in weights), computed=True)


def _reduce(inputs: list[Known]) -> list[Known]:
    first = inputs[0]
    if first.passes:
        return [Known(nature=Nature.STATISTIC, of=first.of, alone=first.alone, scale=first.scale)]
    return [first._replace(computed=True)] if first.nature else []


def root(inputs: list[Known]) -> list[Known]:
    """The root of something, or one over it."""
    first = inputs[0]
    if first.nature in (Nature.STATISTIC, Nature.UNTRAINED):
        return [first._replace(nature=Nature.NORMALIZER)]
    return compute(inputs)


def _reciprocal(inputs: list[Known]) -> list[Known]:
    return inputs if inputs[0].nature is Nature.NORMALIZER else compute(inputs)


def square(inputs: list[Known]) -> list[Known]:
    """The square of a layer's result still counts as its result, for the sake of the variance."""
    if inputs[0].nature is Nature.NORMALIZER:
        return [inputs[0]._replace(nature=Nature.STATISTIC)]
    return inputs[:1] if inputs[0].passes else compute(inputs)


def _part(inputs: list[Known]) -> list[Known]:
    first = next((known for known in inputs if known.nature), NOTHING)  # the axis of a split comes first
    return [first._replace(alone=False, whole=False, channels=-1)] if first.nature else []


def _keep(inputs: list[Known]) -> list[Known]:
    return inputs[:1]


def _rearrange(inputs: list[Known]) -> list[Known]:
    first = inputs[0]
    return [first._replace(channels=-1)] if first.channels >= 0 else inputs[:1]


Transfer = Callable[[list[Known]], list[Known]]

_SAME_LAST = frozenset(
    ["Cast", "ExpandDims", "Squeeze", "Pad", "PadV2", "MirrorPad", "SpaceToBatchND", "BatchToSpaceND"]
)
"""Ops that move elements, but not those of the last dimension of an activation, as layers use them."""

JOINING_OPS = frozenset(["Concat", "ConcatV2", "Pack"])
"""Ops that move the elements of several inputs into one output."""

TRANSFER: Mapping[str, Transfer] = {
    **dict.fromkeys(ops_with(Trait.STATISTIC), _reduce),
    **dict.fromkeys(METADATA_OPS | SHAPE_OPS, lambda _inputs: []),
    **dict.fromkeys(DATA_OPS, lambda _inputs: [ACTIVATION]),
    **dict.fromkeys(ops_with(Trait.LAYOUT) - JOINING_OPS, _rearrange),
    **dict.fromkeys(ops_with(Trait.SWITCH, Trait.NEGATION) | _SAME_LAST, _keep),
    **dict.fromkeys(PASS_THROUGH_OPS, lambda inputs: inputs),
    **dict.fromkeys(MERGE_OPS, lambda inputs: [functools.reduce(join, inputs), NOTHING]),
    **dict.fromkeys(ops_with(Trait.SELECT), lambda inputs: [join(*inputs[1:3])]),
    **dict.fromkeys(ops_with(Trait.PART), _part),
    **dict.fromkeys(ops_with(Trait.ONE_HOT), lambda inputs: [Known(nature=Nature.ONE_HOT)] if inputs[0].nature else []),
    **dict.fromkeys(ops_with(Trait.ROOT), root),
    **dict.fromkeys(ops_with(Trait.RECIPROCAL), _reciprocal),
    **dict.fromkeys(["Square", "SquaredDifference", "Abs", "Conj"], square),
}
"""Ops whose outputs follow from the inputs; for every op that is in neither table it is what `compute` returns."""
