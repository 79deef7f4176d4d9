# pyright: basic
"""Tests the learning rates of a plan: where one is doubled, the update must double.

A rate is followed from its place in the plan to the variable, the argument or the node that it comes from, so that all
its uses are doubled. A velocity that includes the rate, such as that of Keras' SGD, is doubled with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from graphwd.analysis.sites import Path
from graphwd.checking.reference import Reference
from graphwd.graph.edge import EdgeText, data_input, node_of, output_edge
from graphwd.graph.graph import Graph
from graphwd.graph.ops import CALL_OPS, CallKind
from graphwd.graph.traits import ALIAS_OPS
from graphwd.planning.injections import Injection
from graphwd.steps.read import ConcreteFunction

Array = np.ndarray

_VISIBLE = 256
"""Units in the last place of a weight: an update must be larger, in one element, for its doubling to be seen."""

_ROUNDING = 4
"""Units in the last place of a weight that two updates may round apart."""

_RELATIVE = 1e-3
"""How much an update may differ from twice another one, relative to its largest element."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a learning rate comes from.

    Attributes:
        variable: the number of the variable whose content it is; None where it is a tensor.
        tensors: the tensors to double where it is not a variable, or one that the step itself writes.
    """

    variable: int | None
    tensors: tuple[tuple[Path, EdgeText], ...]


class Rates:
    """The learning rates of a plan: their values in a run, and whether they are learning rates."""

    def __init__(
        self,
        step: ConcreteFunction,
        graph: Graph,
        injections: Iterable[Injection],
        numbers: Mapping[int, float],
    ) -> None:
        """Finds the source of each learning rate.

        Args:
            step: the original.
            graph: its view.
            injections: those of the plan whose decay is multiplied by a learning rate.
            numbers: the learning rates that are constants of the plan, by the number of the decayed variable.
        """
        self._graph = graph
        self._names: dict[int, str] = {}
        self._places: dict[int, list[tuple[Path, EdgeText]]] = {}  # by the number of the variable that is decayed
        self._guesses: dict[int, set[tuple[Path, EdgeText]]] = {}  # constants of that value
        for injection in injections:
            i = injection.variable.id
            if injection.rate.learning_rate is None and i in numbers:
                self._names[i] = f"{numbers[i]:g}"
                self._guesses.setdefault(i, set()).update(self._constants(injection.site.path, numbers[i]))
            if injection.rate.learning_rate is not None:
                place = (injection.site.path, injection.rate.learning_rate.tensor)
                self._places.setdefault(injection.variable.id, []).append(place)
                self._names[injection.variable.id] = injection.rate.learning_rate.name
        places = {place for group in self._places.values() for place in group}
        self._sources = {place: self._source(*place) for place in places}
        watched = places.union(*(source.tensors for source in self._sources.values()), *self._guesses.values())
        self._pieces = Reference(step, (), sorted(watched, key=str)) if watched else None

    def __bool__(self) -> bool:
        """Whether there are any learning rates to test."""
        return self._pieces is not None

    def name(self, variable: int) -> str:
        """The name of a decayed variable's learning rate."""
        return self._names[variable]

    @property
    def nowhere(self) -> Iterator[int]:
        """The numbers of the variables whose learning rate is a constant that is not in the body of their update."""
        return (variable for variable, places in self._guesses.items() if not places)

    def run(self, arguments: Sequence[tf.Tensor]) -> dict[int, float]:
        """Runs the original, and returns the value of each learning rate.

        Args:
            arguments: of the step, flat.

        Returns:
            The rate for each decayed variable, by its number; without those whose rate is not computed in this run, has
            several values, or is not a finite scalar.
        """
        assert self._pieces is not None
        self._pieces.run(arguments)
        rates: dict[int, float] = {}
        for variable, places in self._places.items():
            values = {
                float(v.ravel()[0]) if v.size == 1 else np.nan for p in places for v in self._pieces.seen.get(p, ())
            }
            if len(values) == 1 and np.isfinite(rate := values.pop()):
                rates[variable] = rate
        return rates

    def doubled(self, state: Sequence[Array], index: Mapping[int, int]) -> list[Array] | None:
        """A state in which every learning rate that is the content of a variable is doubled.

        Args:
            state: the variables of the step.
            index: the place of each variable in the state, by its number.

        Returns:
            The state; None where no learning rate is the content of one.
        """
        variables = {source.variable for source in self._sources.values() if source.variable in index}
        if not variables:
            return None
        doubled = list(state)
        for i in (index[variable] for variable in variables if variable is not None):
            doubled[i] = (2 * state[i]).astype(state[i].dtype)
        return doubled

    def probe(
        self,
        arguments: Sequence[tf.Tensor],
        run: Callable[[Sequence[Array], Callable[[], object]], list[Array]],
        state: Sequence[Array],
        index: Mapping[int, int],
        slots: Iterable[int],
    ) -> dict[int, bool]:
        """Finds out for which variables the update is a multiple of the learning rate.

        Args:
            arguments: of the step, flat.
            run: returns the variables after a run from some state.
            state: a state in which slot variables are not zero.
            index: the place of each variable of the step in the state, by its number.
            slots: places in the state of variables that may be velocities.

        Returns:
            For each decayed variable with a learning rate, by its number, whether it is; without those whose update is
            too small to see.
        """
        assert self._pieces is not None
        pieces = self._pieces
        plain = run(state, lambda: pieces.run(arguments))

        def twice(source: Source) -> list[Array]:
            doubled, factors = self._doubled(source, state, plain, index)
            once = lambda: pieces.run(arguments, factors)  # noqa: E731
            result = run(doubled, once)
            velocities = [i for i in slots if source.variable is None or i != index.get(source.variable)]
            velocities = [i for i in velocities if _differ(plain[i], result[i])]
            for i in velocities:
                doubled[i] = (2 * state[i]).astype(state[i].dtype)
            return run(doubled, once) if velocities else result

        results = {source: twice(source) for source in dict.fromkeys(self._sources.values())}
        guessed = {Source(None, (place,)) for places in self._guesses.values() for place in places}
        results |= {source: twice(source) for source in guessed - results.keys()}
        verdicts: dict[int, bool] = {}
        for variable, places in self._places.items():
            for source in {self._sources[place] for place in places}:
                i = index[variable]
                verdicts |= _is_double(variable, state[i], plain[i], results[source][i])
        for variable, places in self._guesses.items():
            i = index[variable]
            said = [_is_double(variable, state[i], plain[i], results[Source(None, (place,))][i]) for place in places]
            # The rate may be any of the constants of that value.
            verdicts |= {variable: True} if {variable: True} in said else next(iter(said), {})
        return verdicts

    def _doubled(
        self, source: Source, state: Sequence[Array], plain: Sequence[Array], index: Mapping[int, int]
    ) -> tuple[list[Array], Mapping[tuple[Path, EdgeText], float]]:
        """A state and factors of tensors by which a rate is doubled."""
        doubled = list(state)
        i = None if source.variable is None else index.get(source.variable)
        if i is None or state[i].tobytes() != plain[i].tobytes():
            return doubled, dict.fromkeys(source.tensors, 2.0)
        doubled[i] = (2 * state[i]).astype(state[i].dtype)
        return doubled, {}

    def _constants(self, path: Path, value: float) -> Iterator[tuple[Path, EdgeText]]:
        """The scalar constants of some value in a body."""
        for node in self._nodes(path):
            if node.op == "Const" and not node.attr["value"].tensor.tensor_shape.dim:
                held = tf.make_ndarray(node.attr["value"].tensor)
                if held.dtype.kind in "fV" and np.isclose(abs(float(held)), value, rtol=1e-6, atol=0):
                    yield path, output_edge(node.name, "output")

    def _source(self, path: Path, edge: EdgeText) -> Source:
        path, edge = self._origin(path, edge, casts=True)
        node = self._node(path, edge)
        if node is None or node.op != "ReadVariableOp":
            return Source(None, ((path, edge),))
        handle = self._origin(path, data_input(node, 0))
        variable = self._graph.handles.get(handle[1]) if not handle[0] else None
        reads = (output_edge(reader.name, "value") for reader in self._nodes(path) if reader.op == "ReadVariableOp")
        same = [(path, read) for read in reads if self._origin(path, data_input(self._node(path, read), 0)) == handle]
        return Source(None if variable is None else variable.id, tuple(same))

    def _origin(self, path: Path, edge: EdgeText, *, casts: bool = False) -> tuple[Path, EdgeText]:
        """Where a tensor comes from, through aliases and through the arguments of functions that run once."""
        while True:
            node = self._node(path, edge)
            if node is not None and (node.op in ALIAS_OPS - {"IdentityN"} or (casts and node.op == "Cast")):
                edge = data_input(node, 0)
            elif node is None and path and CALL_OPS[path[-1].op].kind in (CallKind.CALL, CallKind.BRANCH):
                names = [argument.name for argument in self._function(path).signature.input_arg]
                frame, path = path[-1], path[:-1]
                caller = next(candidate for candidate in self._nodes(path) if candidate.name == frame.node)
                edge = data_input(caller, CALL_OPS[frame.op].skip + names.index(edge))
            else:
                return path, edge

    def _function(self, path: Path) -> Any:
        return self._graph.library[path[-1].callee.function] if path else self._graph.root_function

    def _nodes(self, path: Path) -> Any:
        return self._function(path).node_def

    def _node(self, path: Path, edge: EdgeText) -> Any:
        name = node_of(edge)
        return next((node for node in self._nodes(path) if node.name == name), None)


def _differ(one: Array, other: Array) -> bool:
    """Whether two results differ by more than their rounding."""
    if one.dtype.kind not in "fV" or not one.size:
        return False
    one, other = one.astype(np.float64), other.astype(np.float64)
    return bool((np.abs(one - other) > _RELATIVE * np.maximum(np.abs(one), np.abs(other))).any())


def _is_double(variable: int, before: Array, once: Array, twice: Array) -> dict[int, bool]:
    """Whether one update is twice another; empty where the update is too small to see."""
    unit = np.spacing(np.maximum.reduce([np.abs(before), np.abs(once), np.abs(twice)])).astype(np.float64)
    wide = [array.astype(np.float64) for array in (before, once, twice)]
    update, doubled = wide[1] - wide[0], wide[2] - wide[0]
    if not np.isfinite(update).all() or not np.isfinite(doubled).all() or not (np.abs(update) > _VISIBLE * unit).any():
        return {}
    allowed = _ROUNDING * unit + _RELATIVE * np.abs(doubled).max()
    return {variable: bool((np.abs(doubled - 2 * update) <= allowed).all())}
