# pyright: basic
"""Tests the learning rates of a plan: where one is doubled, the update must double.

A rate is followed from its place in the plan to the variable, the argument or the node that it comes from, so that all
its uses are doubled. A velocity that includes the rate, such as that of Keras' SGD, is doubled with it. Of a variable
that the step writes, only reads of the same content are doubled: where the step halves its rate first, what it reads
for that is not, for then the rate would be four times as large.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from graphwd.analysis.sites import Path
from graphwd.checking.reference import Reference
from graphwd.graph.edge import EdgeText, data_input, node_of, output_edge, sources_of
from graphwd.graph.graph import Graph
from graphwd.graph.ops import CALL_OPS, CallKind
from graphwd.graph.traits import ALIAS_OPS
from graphwd.planning.injections import Injection
from graphwd.steps.read import ConcreteFunction

Array = np.ndarray
Place = tuple[Path, EdgeText]
Factors = Mapping[Place, float]
Run = Callable[[Sequence[Array], Callable[[], object]], list[Array]]

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
    tensors: tuple[Place, ...]


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
        self._places: dict[int, list[Place]] = {}  # by the number of the variable that is decayed
        self._guesses: dict[int, set[Place]] = {}  # constants of that value
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

    def can_be_named(self, variable: int) -> bool:
        """Whether that is a name that a rule can give, and not the value of a constant."""
        return variable in self._places

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
        run: Run,
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
        trial = _Trial(self._pieces, arguments, run, state, index, slots)
        users: dict[Source, list[int]] = {}
        for variable, places in self._places.items():
            for source in dict.fromkeys(self._sources[place] for place in places):
                users.setdefault(source, []).append(variable)
        verdicts: dict[int, bool] = {}
        for source, variables in users.items():
            said = trial.of_source(source, variables)
            # Each branch may have a rate of its own, and the run takes one of them.
            verdicts |= {variable: verdicts.get(variable, False) or doubles for variable, doubles in said.items()}
        return verdicts | trial.of_constants(self._guesses)

    def _constants(self, path: Path, value: float) -> Iterator[Place]:
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
        reads = (reader for reader in self._nodes(path) if reader.op == "ReadVariableOp")
        of_variable = [reader for reader in reads if self._origin(path, data_input(reader, 0)) == handle]
        written = self._written_before(path, node)
        same = [reader for reader in of_variable if self._written_before(path, reader) == written]
        tensors = tuple((path, output_edge(reader.name, "value")) for reader in same)
        return Source(None if variable is None else variable.id, tensors)

    def _written_before(self, path: Path, read: NodeDef) -> frozenset[str]:
        """The nodes that a read waits for and that may write what it reads."""
        handle = read.input[0]
        nodes = {node.name: node for node in self._nodes(path)}
        writing: set[str] = set()
        seen: set[str] = set()
        waiting = sources_of(read)
        while waiting:
            name = waiting.pop()
            if name in seen or name not in nodes:
                continue
            seen.add(name)
            if nodes[name].op != "ReadVariableOp" and handle in nodes[name].input:
                writing.add(name)
            waiting.extend(sources_of(nodes[name]))
        return frozenset(writing)

    def _origin(self, path: Path, edge: EdgeText, *, casts: bool = False) -> Place:
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


class _Trial:
    """Runs of the original from one state, as it is and with a rate doubled."""

    def __init__(
        self,
        pieces: Reference,
        arguments: Sequence[tf.Tensor],
        run: Run,
        state: Sequence[Array],
        index: Mapping[int, int],
        slots: Iterable[int],
    ) -> None:
        """Runs the original as it is; the arguments are as for `Rates.probe`."""
        self._pieces = pieces
        self._arguments = arguments
        self._run = run
        self._state = state
        self._index = index
        self._slots = list(slots)
        self._plain = run(state, lambda: pieces.run(arguments))

    def of_source(self, source: Source, variables: Sequence[int]) -> dict[int, bool]:
        """Whether the updates of some variables double with their rate; without those that are too small to see."""
        verdicts: dict[int, bool] = {}
        rate = None if source.variable is None else self._index.get(source.variable)
        for doubled, factors in self._ways(source, rate):
            result = self._twice(doubled, factors, rate)
            verdicts = {}
            for variable in variables:
                verdicts |= self._is_double(variable, result)
            if any(verdicts.values()):
                break
        return verdicts

    def of_constants(self, guesses: Mapping[int, Collection[Place]]) -> dict[int, bool]:
        """Whether the update of each variable doubles with one of some constants."""
        places = {place for group in guesses.values() for place in group}
        results = {place: self._twice(list(self._state), {place: 2.0}, None) for place in places}
        verdicts: dict[int, bool] = {}
        for variable, group in guesses.items():
            said = [self._is_double(variable, results[place]) for place in group]
            # The rate may be any of the constants of that value.
            verdicts |= {variable: True} if {variable: True} in said else next(iter(said), {})
        return verdicts

    def _ways(self, source: Source, rate: int | None) -> Iterator[tuple[list[Array], Factors]]:
        """The ways to double a rate, each a state and factors of tensors.

        Where it is the content of a variable that a run leaves as it is, that is doubled. The step may write it all the
        same, before it is used: then what is read is to be doubled.

        Args:
            source: where the rate comes from.
            rate: the place of its variable in the state; None where there is none.
        """
        if rate is not None and self._state[rate].tobytes() == self._plain[rate].tobytes():
            doubled = list(self._state)
            doubled[rate] = self._double(rate)
            yield doubled, {}
        yield list(self._state), dict.fromkeys(source.tensors, 2.0)

    def _twice(self, doubled: list[Array], factors: Factors, rate: int | None) -> list[Array]:
        """The variables after a run with a doubled rate, for which velocities that include it are doubled, too."""
        once = lambda: self._pieces.run(self._arguments, factors)  # noqa: E731
        result = self._run(doubled, once)
        velocities = [i for i in self._slots if i != rate and _differ(self._plain[i], result[i])]
        for i in velocities:
            doubled[i] = self._double(i)
        return self._run(doubled, once) if velocities else result

    def _double(self, i: int) -> Array:
        return (2 * self._state[i]).astype(self._state[i].dtype)

    def _is_double(self, variable: int, result: Sequence[Array]) -> dict[int, bool]:
        i = self._index[variable]
        return _is_double(variable, self._state[i], self._plain[i], result[i])


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
