"""The transfer rules of ops: the abstract values of outputs, computed from those of the inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from graphwd.analysis.values import DATA, NO_VARIABLE, NOTHING, Value, add, combine, join, scale
from graphwd.graph.traits import (
    ADDITIVE_OPS,
    DATA_OPS,
    MERGE_OPS,
    PASS_THROUGH_OPS,
    QUOTIENT_OPS,
    SHAPE_OPS,
    Trait,
    ops_with,
)

ALIASES: Mapping[str, Callable[[list[Value]], list[Value]]] = {
    **dict.fromkeys(PASS_THROUGH_OPS, list),
    **dict.fromkeys(ops_with(Trait.SWITCH), lambda inputs: inputs[:1]),
    **dict.fromkeys(MERGE_OPS, lambda inputs: [functools.reduce(join, inputs), NOTHING]),
}
"""Ops whose outputs are inputs: a value for each output, or one for all of them."""

ARITHMETIC: Mapping[str, Callable[[list[Value]], Value]] = {
    **dict.fromkeys(ops_with(Trait.PRODUCT, Trait.NEGATION), scale),
    **dict.fromkeys(QUOTIENT_OPS, lambda inputs: scale(inputs) if inputs[1].source == NO_VARIABLE else combine(inputs)),
    **dict.fromkeys(ADDITIVE_OPS, add),
    **dict.fromkeys(ops_with(Trait.CAST), lambda inputs: inputs[0]),
    **dict.fromkeys(SHAPE_OPS, lambda inputs: Value(taint=combine(inputs).taint & DATA)),
    **dict.fromkeys(DATA_OPS, lambda inputs: (known := combine(inputs))._replace(taint=known.taint | DATA)),
}
"""Ops that compute: the value of all outputs. For every other op it is the value that `combine` returns."""
