# pyright: basic
"""Runs a step with the decays of its plan, without rewriting it: the reference for a rewritten step.

The bodies of the original are run in pieces, one after the other, eagerly. Between two pieces the decay is computed by
its formula, in float64. Nothing here depends on how a decay is written into a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef

from graphwd.analysis.sites import Path
from graphwd.checking.own_values import OwnValues
from graphwd.decay.formulas import Formula
from graphwd.errors import VerifyError
from graphwd.graph.body import Body, Node
from graphwd.graph.edge import (
    EdgeText,
    Use,
    data_input,
    data_inputs,
    is_data,
    node_of,
    output_edge,
    result_edge,
    source_of,
    sources_of,
)
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, CallKind
from graphwd.planning.injections import (
    After,
    Before,
    Elsewhere,
    InGradient,
    Injection,
    InValue,
    Nest,
    Own,
    Scheduled,
    nested,
)
from graphwd.steps.emit import Parts
from graphwd.steps.read import ConcreteFunction, read

_Values = dict[str, Any]
_Instruction = Callable[[_Values], None]


class Reference:
    """A step with the decay of a plan, run by the plan's formulas."""

    def __init__(
        self,
        step: ConcreteFunction,
        injections: Iterable[Injection],
        watched: Iterable[tuple[Path, EdgeText]] = (),
        own: OwnValues | None = None,
    ) -> None:
        """Prepares to run.

        Args:
            step: the original.
            injections: where which decay goes.
            own: what the variables of graphwd's own hold; needed where decays read such.
            watched: tensors, each by the calls that lead to its body and its edge there, whose values are kept.
        """
        self._graph = read(step)
        self.own = own
        self._parts = Parts(step)
        captured: Any = step.captured_inputs
        self._captured: list[Any] = list(captured)
        injections = tuple(injections)
        self._nest = nested(injections)
        self._programs: dict[tuple[str, int], _Program] = {}
        self._watched: dict[int, list[tuple[Path, EdgeText]]] = {}  # by the nest of their body
        for path, edge in watched:
            nest = self._nest
            for frame in path:
                nest = nest.calls.setdefault(frame, Nest())
            self._watched.setdefault(id(nest), []).append((path, edge))
        self._scheduled: dict[int, dict[Scheduled, None]] = {}  # by the nest of the body where they are computed
        for rate in (rate for injection in injections for rate in injection.schedules):
            nest = self._nest
            for frame in rate.path or ():
                nest = nest.calls[frame]
            self._scheduled.setdefault(id(nest), {})[rate] = None
        self._rates: dict[Scheduled, float] = {}  # of each schedule, as the body began that computes it
        self._factors: Mapping[tuple[Path, EdgeText], float] = {}
        self.seen: dict[tuple[Path, EdgeText], list[Any]] = {}
        """For each watched tensor its values in the last run, as NumPy arrays, one for each time it was computed."""

    def run(
        self, arguments: Sequence[tf.Tensor], factors: Mapping[tuple[Path, EdgeText], float] | None = None
    ) -> list[tf.Tensor]:
        """Runs one step on the step's own variables.

        Args:
            arguments: its tensors, flat.
            factors: the factors of watched tensors, for all their uses.

        Returns:
            Its results, flat.

        Raises:
            VerifyError: a decay lies in the function of a dataset.
        """
        self._factors = factors or {}
        self.seen.clear()
        return self._run(self._graph.root_function, self._nest, [*arguments, *self._captured])

    def value(self, tensor: Elsewhere) -> np.ndarray:
        """The value of a variable of graphwd's own, or of the rate of a schedule."""
        if isinstance(tensor, Scheduled):
            return np.asarray(self._rates[tensor])
        assert self.own is not None
        assert isinstance(tensor, Own)
        return self.own.value(tensor)

    def watched_in(self, nest: Nest) -> list[tuple[Path, EdgeText]]:
        """The watched tensors of a body."""
        return self._watched.get(id(nest), [])

    def observe(self, watched: tuple[Path, EdgeText], values: dict[str, Any]) -> None:
        """Keeps the value of a watched tensor, and multiplies it by its factor."""
        _, edge = watched
        self.seen.setdefault(watched, []).append(values[edge].numpy())
        if watched in self._factors:
            values[edge] = values[edge] * tf.cast(self._factors[watched], values[edge].dtype)

    def _run(self, function: FunctionDef, nest: Nest, arguments: Sequence[Any]) -> list[Any]:
        key = (function.signature.name, id(nest))
        if key not in self._programs:
            self._programs[key] = _Compiler(self, function, nest).program()
        program = self._programs[key]
        values: _Values = dict(zip(program.arguments, arguments, strict=True))
        scheduled = self._scheduled.get(id(nest), ())
        if scheduled:
            assert self.own is not None
            self._rates.update((rate, self.own.rate(rate)) for rate in scheduled)
            self.own.steps += any(rate.own is not None for rate in scheduled)
        values[_FROM_ELSEWHERE] = self.value
        for instruction in program.instructions:
            instruction(values)
        return [values[edge] for edge in program.results]

    def call(self, node: Node, nest: Nest, inputs: Sequence[Any]) -> list[Any]:
        """Runs a call op whose functions hold decays.

        Args:
            node: the node.
            nest: the injections of the body that it lies in.
            inputs: its data inputs.
        """
        call = CALL_OPS[node.op]
        arguments = list(inputs[call.skip : len(inputs) - call.drop])
        callees = self._graph.callees(node)
        below = {frame.callee: nest.calls[frame] for frame in nest.calls if frame.node == node.name}
        run = [
            lambda given, callee=callee: self._run(
                self._graph.library[callee.function], below.get(callee, _NOTHING), given
            )
            for callee in callees
        ]
        match call.kind:
            case CallKind.CALL:
                return run[0](arguments)
            case CallKind.BRANCH if len(callees) == 2 and callees[0].attribute == "then_branch":
                return run[0 if bool(inputs[0]) else 1](arguments)
            case CallKind.BRANCH:
                index = int(inputs[0])
                return run[index if 0 <= index < len(run) else -1](arguments)
            case CallKind.LOOP:
                while bool(run[0](arguments)[0]):
                    arguments = run[1](arguments)
                return arguments
            case CallKind.SCAN:
                raise VerifyError(
                    f"a decay lies in the function of a dataset ('{node.name}'), which cannot be verified"
                )


_NOTHING = Nest()

_FROM_ELSEWHERE = "from elsewhere"
"""The key, which is no edge, of what gives the value of a tensor that is from no body of the step."""


@dataclass(frozen=True)
class _Program:
    arguments: tuple[str, ...]
    instructions: tuple[_Instruction, ...]
    results: tuple[EdgeText, ...]


class _Compiler:
    """Cuts a body into pieces wherever a decay happens or a decayed value is used."""

    def __init__(self, reference: Reference, function: FunctionDef, nest: Nest) -> None:
        self._reference = reference
        self._function = function
        self._nest = nest
        self._body = Body(function)
        self._nodes = {node.name: node for node in self._body.nodes}
        self._types = reference._parts.dtypes(function)
        self._used_by: dict[EdgeText, set[str]] = {}
        for node in self._body.nodes:
            for text in data_inputs(node.proto):
                self._used_by.setdefault(text, set()).add(node.name)
        self._results = tuple(result_edge(function, result.name) for result in function.signature.output_arg)
        self._overrides: dict[Use, Injection] = {
            use: injection for injection in nest.here.values() for use in injection.uses
        }
        self._needs: dict[str, list[str]] = {}  # what must be computed before a node, for the formula of its inputs
        for name, injection in nest.here.items():
            for text in self._formula(name, injection):
                # By a formula: it must outlast the piece that computes it.
                self._used_by.setdefault(text, set()).add("")
                for user in {name, *(use.node for use in injection.uses)}:
                    self._needs.setdefault(user, []).append(node_of(text))
        self._watched: dict[str, list[tuple[Path, EdgeText]]] = {}  # by the node that makes them
        for watched in reference.watched_in(nest):
            self._used_by.setdefault(watched[1], set()).add("")
            self._watched.setdefault(node_of(watched[1]), []).append(watched)
        self._instructions: list[_Instruction] = []

    def _formula(self, write: str, injection: Injection) -> Iterator[EdgeText]:
        """The operands of a formula, besides the weight."""
        proto = self._nodes[write].proto
        yield data_input(proto, 0)
        rows = WRITE_OPS[proto.op].rows
        if injection.rows and rows is not None and not isinstance(injection, InGradient):
            yield data_input(proto, rows)
        yield from injection.reads
        if isinstance(injection, Before):
            for reader, _ in injection.readiness.rereads:
                yield from data_inputs(self._nodes[reader].proto)

    def _ordered(self) -> list[Node]:
        """The nodes in an order in which they may run, each after what the formulas of its inputs need."""
        order: dict[str, Node] = {}
        for first in self._nodes:
            waiting = [first]
            while waiting:
                name = waiting[-1]
                node = self._nodes.get(name)
                sources = sources_of(node.proto) if node is not None else ()
                missing = [
                    source
                    for source in [*sources, *self._needs.get(name, ())]
                    if source in self._nodes and source not in order and source != name
                ]
                if len(waiting) > 100 * len(self._nodes) + 1000:
                    raise VerifyError(f"'{name}' and what its decay is computed from wait for each other")
                if node is None or name in order or not missing:
                    waiting.pop()
                    if node is not None:
                        order.setdefault(name, node)
                else:
                    waiting.extend(missing)
        return list(order.values())

    def program(self) -> _Program:
        for argument in self._body.arguments:
            self._observe(argument)
        pending: list[Node] = []
        calling = {frame.node for frame in self._nest.calls}
        early = self._early()
        for node in self._ordered():
            overridden = {
                position: self._overrides[Use(node.name, position)]
                for position in range(len(node.inputs))
                if Use(node.name, position) in self._overrides
            }
            injection = self._nest.here.get(node.name)
            if not (overridden or injection or node.name in calling | early.keys()):
                pending.append(node)
                if node.name in self._watched:
                    self._part(pending)
                    pending = []
                    self._observe(node.name)
                continue
            self._part(pending)
            pending = []
            if node.name in calling:
                self._instructions.append(self._call(node))
                self._observe(node.name)
                continue
            for position, each in overridden.items():
                self._instructions.append(self._override(node, position, each))
            self._instructions.extend(map(self._remember, early.get(node.name, ())))
            if isinstance(injection, Before):
                self._instructions.append(self._decay(node, injection))
            self._part([node], overridden)
            self._observe(node.name)
            if isinstance(injection, After):
                self._instructions.append(self._decay(node, injection))
        self._part(pending)
        return _Program(self._body.arguments, tuple(self._instructions), self._results)

    def _early(self) -> Mapping[str, Sequence[After]]:
        """By the first write of an update, the decays that ask for the weight before it."""
        early: dict[str, list[After]] = {}
        for injection in self._nest.here.values():
            if isinstance(injection, After) and injection.early is not None:
                early.setdefault(injection.early.write, []).append(injection)
        return early

    def _observe(self, node: str) -> None:
        """Passes the watched tensors of a node or an argument to the reference."""
        for watched in self._watched.get(node, ()):
            self._instructions.append(lambda values, watched=watched: self._reference.observe(watched, values))

    def _part(self, nodes: Sequence[Node], overridden: Iterable[int] = ()) -> None:
        """Runs some nodes as a function of their own; inputs at the positions overridden come from elsewhere."""
        if not nodes:
            return
        names = {node.name for node in nodes}
        part = FunctionDef()
        part.signature.name = self._body.name
        part.signature.is_stateful = True
        inputs: dict[str, str] = {}
        for number, node in enumerate(nodes):
            copy = part.node_def.add()
            copy.CopyFrom(node.proto)
            del copy.input[:]
            for position, text in enumerate(node.proto.input):
                if not is_data(text):
                    if source_of(text) in names:
                        copy.input.append(text)
                elif position in overridden:
                    copy.input.append(self._input(part, inputs, _override_name(node, position), self._types[text]))
                elif node_of(text) in names:
                    copy.input.append(text)
                else:
                    copy.input.append(self._input(part, inputs, text, self._types[text]))
            # Every node runs, whether or not its outputs are used.
            part.signature.control_output.append(f"done_{number}")
            part.control_ret[f"done_{number}"] = node.name
        outputs = [
            edge
            for edge in self._types
            if node_of(edge) in names and (self._used_by.get(edge, set()) - names or edge in self._results)
        ]
        for number, edge in enumerate(outputs):
            part.signature.output_arg.add(name=f"out_{number}", type=self._types[edge])  # pyright: ignore[reportArgumentType]
            part.ret[f"out_{number}"] = edge
        run = self._reference._parts.function(part)

        def instruction(values: _Values) -> None:
            results = run(*[values[text] for text in inputs])
            values.update(zip(outputs, results if outputs else (), strict=True))

        self._instructions.append(instruction)

    def _input(self, part: FunctionDef, inputs: dict[str, str], text: str, dtype: int) -> str:
        if text not in inputs:
            inputs[text] = f"in_{len(inputs)}"
            part.signature.input_arg.add(name=inputs[text], type=dtype)  # pyright: ignore[reportArgumentType]
        return inputs[text]

    def _call(self, node: Node) -> _Instruction:
        def instruction(values: _Values) -> None:
            inputs = [values[text] for text in data_inputs(node.proto)]
            for index, result in enumerate(self._reference.call(node, self._nest, inputs)):
                values[output_edge(node.name, "output", index)] = result

        return instruction

    def _remember(self, injection: After) -> _Instruction:
        """Keeps the weight before its update."""
        handle = data_input(self._nodes[injection.site.node].proto, 0)

        def instruction(values: _Values) -> None:
            values[f"{injection.site.node} before"] = _read(values[handle], injection).numpy()

        return instruction

    def _decay(self, write: Node, injection: Injection) -> _Instruction:
        """Decays the weight, or the rows of the write."""
        rows = WRITE_OPS[write.op].rows

        def instruction(values: _Values) -> None:
            handle = values[data_input(write.proto, 0)]
            weight = tf.raw_ops.ReadVariableOp(resource=handle, dtype=injection.variable.dtype)
            which = values[data_input(write.proto, rows)] if injection.rows and rows is not None else None
            decayed = _decayed(weight, injection, values, which, values.get(f"{write.name} before"))
            values[f"{write.name} decayed"] = decayed  # for what reads it now and is done after the write
            tf.raw_ops.AssignVariableOp(resource=handle, value=decayed)

        return instruction

    def _override(self, node: Node, position: int, injection: Injection) -> _Instruction:
        """Computes the tensor that a node of the update gets in place of the weight, the value or the gradient."""
        match injection:
            case Before():
                return self._read_decayed(node, position, injection)
            case InValue():
                return self._sum(node, position, injection, injection.value, injection.weight, None, sign=-1)
            case InGradient():
                entry = injection.entry
                return self._sum(node, position, injection, entry.tensor, injection.weight, entry.indices, sign=1)
        raise AssertionError(f"an injection {injection.where.value} the update leads nothing elsewhere")

    def _sum(
        self,
        node: Node,
        position: int,
        injection: Injection,
        term: EdgeText,
        read: EdgeText | None,
        rows: EdgeText | None,
        *,
        sign: int,
    ) -> _Instruction:
        """Adds the decay to a term, or subtracts it."""
        handle = data_input(self._nodes[injection.site.node].proto, 0)
        summed = f"{injection.site.node} summed"

        def instruction(values: _Values) -> None:
            if summed not in values:  # once for all its uses: the weight may have been written since
                weight = values[read] if read is not None else _read(values[handle], injection)
                which = None if rows is None else values[rows]
                values[summed] = _summed(values[term], weight, injection, values, which, sign=sign)
            values[_override_name(node, position)] = values[summed]

        return instruction

    def _read_decayed(self, node: Node, position: int, injection: Before) -> _Instruction:
        """Computes the decayed weight that the update reads."""
        write = self._nodes[injection.site.node]
        rows = WRITE_OPS[write.op].rows if injection.rows else None
        reader = next(name for name, uses in injection.readiness.rereads if Use(node.name, position) in uses)
        inputs = data_inputs(self._nodes[reader].proto)

        def instruction(values: _Values) -> None:
            decayed = values.get(f"{write.name} decayed")
            if decayed is None:
                which = values[data_input(write.proto, rows)] if rows is not None else None
                decayed = _decayed(_read(values[data_input(write.proto, 0)], injection), injection, values, which)
            gathered = tf.gather(decayed, values[inputs[1]]) if len(inputs) > 1 else decayed
            values[_override_name(node, position)] = gathered

        return instruction


def _override_name(node: Node, position: int) -> str:
    return f"{node.name} input {position}"


def _read(handle: tf.Tensor, injection: Injection) -> tf.Tensor:
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=injection.variable.dtype)


def _lost(
    injection: Injection, values: Mapping[str, Any], rows: Any = slice(None), **tensors: np.ndarray
) -> np.ndarray:
    """What a weight, or rows of it, lose at this step: the rate times the formula, in float64."""
    rate = injection.rate
    value: Callable[[Elsewhere], np.ndarray] = values[_FROM_ELSEWHERE]
    scalars = [float(value(factor.tensor)) for factor in rate.factors]
    if injection.initial is not None:
        initial = value(injection.initial)
        tensors["initial"] = initial[rows] if initial.ndim else initial
    learning_rate = float(values[rate.learning_rate.tensor]) if rate.learning_rate is not None else 1.0
    return rate.number * math.prod(scalars) * learning_rate**rate.power * values_of(injection.formula, **tensors)


def values_of(formula: Formula, **tensors: np.ndarray) -> np.ndarray:
    """What a formula gives, in float64.

    Args:
        formula: the formula.
        **tensors: what it may take, by name, of any dtype.
    """
    return formula(**{name: tf.constant(value.astype(np.float64)) for name, value in tensors.items()}).numpy()


def _decayed(
    weight: tf.Tensor,
    injection: Injection,
    values: Mapping[str, Any],
    rows: tf.Tensor | None,
    before: np.ndarray | None = None,
) -> tf.Tensor:
    """The weight w - r p, or that for some rows; p may be of the weight before the update, too."""
    decayed = weight.numpy().astype(np.float64)
    which = slice(None) if rows is None or not decayed.ndim else np.unique(rows.numpy())
    tensors = {"weight": decayed[which] if decayed.ndim else decayed}
    if before is not None:
        wide = before.astype(np.float64)
        tensors["before"] = wide[which] if wide.ndim else wide
        tensors["update"] = tensors["before"] - tensors["weight"]
        if isinstance(injection, After) and injection.early is not None and injection.early.decayed:
            tensors["weight"] = tensors["before"]
    lost = _lost(injection, values, which, **tensors)
    if decayed.ndim:
        decayed[which] -= lost
    else:
        decayed = decayed - lost
    return tf.constant(decayed.astype(weight.dtype.as_numpy_dtype))


def _summed(
    term: tf.Tensor,
    weight: tf.Tensor,
    injection: Injection,
    values: Mapping[str, Any],
    rows: tf.Tensor | None,
    *,
    sign: int,
) -> tf.Tensor:
    """The sum t + r p(w), or the difference; where t is a sparse gradient, in the first gradient of each row."""
    total = term.numpy().astype(np.float64)
    wide = weight.numpy().astype(np.float64)
    if rows is None:
        total = total + sign * _lost(injection, values, weight=wide, before=wide, update=wide - total)
    else:
        flat = total.reshape(-1, *wide.shape[1:])
        unique, first = np.unique(rows.numpy().ravel(), return_index=True)
        flat[first] += sign * _lost(injection, values, unique, weight=wide[unique])
        total = flat.reshape(total.shape)
    return tf.constant(total.astype(term.dtype.as_numpy_dtype))
