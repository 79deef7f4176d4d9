"""The part of a body around one update, before and after its decay is injected: what the page of a plan draws.

The injected nodes are those of a trial rewrite by the plan's own injections, with the marks that the writer gave them.
"""

from __future__ import annotations

import json
import math
import struct
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from graphwd.analysis.sites import SAVED_MODEL, Frame, Path
from graphwd.graph.edge import data_inputs, is_control, is_data, node_of, source_of, sources_of
from graphwd.graph.graph import DTYPE_NAMES, MARK, NAME, RECORD, Graph, Variable
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, CallKind, Form
from graphwd.graph.traits import HANDLE_OPS, READ_OPS
from graphwd.planning.injections import InGradient, Injection

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

    from graphwd.planning.plan import Decision

_MAX_DEPTH = 5
"""How many levels of ops behind a write are drawn."""

_MAX_OPS = 24
"""How many nodes of the original are drawn; what is behind them is cut off, and shown to be."""


class Kind(Enum):
    """What a box of a drawing stands for."""

    WEIGHT = "weight"  # the handle of the variable
    VARIABLE = "variable"  # that of another, such as a slot variable
    ARGUMENT = "argument"
    GRADIENT = "gradient"
    LEARNING_RATE = "learning rate"
    CONSTANT = "constant"
    OP = "op"
    WRITE = "write"
    WAITING = "waiting"  # all that waits until the update, or its decay, is done


@dataclass(frozen=True, slots=True)
class Box:
    """A node of a drawing.

    Attributes:
        kind: what it stands for.
        op: its op type; of what is no op, a word for it.
        injected: whether graphwd adds it.
        cut: whether something that it is computed from is left out.
    """

    kind: Kind
    op: str
    injected: bool = False
    cut: bool = False


class When(Enum):
    """In which of the two bodies an edge is."""

    BOTH = "both"
    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Line:
    """An edge of a drawing.

    Attributes:
        source: the number of the box that it starts from.
        target: the number of the box that it leads to.
        control: whether it is a control dependency.
        when: in which of the bodies it is.
    """

    source: int
    target: int
    control: bool
    when: When


@dataclass(frozen=True, slots=True)
class Structure:
    """What is drawn of an update but for names; the same for many variables of a step.

    Attributes:
        boxes: its nodes.
        lines: its edges, which close no cycle.
    """

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class UpdateGraph:
    """One update of one variable.

    Attributes:
        nest: the calls that lead to it, outermost first: of each the node, the attribute and the function.
        structure: what is drawn.
        names: of each box the name.
    """

    nest: tuple[tuple[str, str, str], ...]
    structure: Structure
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """The bodies of a step that was rewritten for a try.

    Attributes:
        root: the step itself.
        functions: all functions that it may call, by name.
    """

    root: FunctionDef
    functions: Mapping[str, FunctionDef]


class UpdateGraphs:
    """The updates of one step."""

    def __init__(self, graph: Graph, trial: Trial) -> None:
        """Takes both forms of the step; looks for nothing yet.

        Args:
            graph: the step.
            trial: the same, rewritten.
        """
        self._graph = graph
        self._trial = trial
        self._pairs: dict[tuple[str, str], _Pair] = {}  # by the names of the functions

    def of(self, decision: Decision) -> Iterator[UpdateGraph]:
        """The updates of one variable that carry decay."""
        for injection in decision.injections:
            path = injection.site.path
            pair = self._pair(path)
            updates = decision.writes.updates + decision.writes.guesses
            update = next((each for each in updates if any(w.site == injection.site for w in each.writes)), None)
            writes = [injection.site.node]
            writes += [write.site.node for write in update.writes if write.site.path == path] if update else []
            # A SavedModel is viewed as a choice of its functions, by a call that it does not hold.
            calls = path[1:] if path and path[0].node == SAVED_MODEL else path
            nest = tuple((frame.node, frame.callee.attribute, frame.callee.function) for frame in calls)
            yield _Search(self, pair, injection, dict.fromkeys(writes)).found(nest)

    def is_gradient(self, name: str) -> bool:
        """Whether, as far as its name tells, a node belongs to the computation of a gradient."""
        return self._graph.gradient_scopes.hold(name)

    def variable(self, name: str, path: Path) -> Variable | None:
        """The variable whose handle an argument of a body is; None where it is none, or that is not known."""
        if not path:
            return self._graph.handles.get(name)
        frame, call = path[-1], CALL_OPS[path[-1].op]
        outer, body = self._pair(path[:-1]), self._pair(path)
        if name not in body.arguments or call.kind is CallKind.SCAN:
            return None
        inputs = data_inputs(outer.before[frame.node])
        return self.variable(node_of(inputs[call.skip + body.arguments[name]]), path[:-1])

    def _pair(self, path: Path) -> _Pair:
        """The body that some calls lead to; in the rewritten step the same calls may run other functions."""
        if not path:
            before, after = self._graph.root_function, self._trial.root
        else:
            outer, frame = self._pair(path[:-1]), path[-1]
            before = self._graph.library[frame.callee.function]
            after = self._trial.functions[_function(outer.after[frame.node], frame)]
        names = before.signature.name, after.signature.name
        if names not in self._pairs:
            self._pairs[names] = _Pair(before, after)
        return self._pairs[names]


def _function(node: NodeDef, frame: Frame) -> str:
    """The name of the function that a node runs where another form of it runs that of a frame."""
    value = node.attr[frame.callee.attribute]
    return value.func.name or value.list.func[frame.callee.position].name


class _Pair:
    """A body before and after."""

    def __init__(self, before: FunctionDef, after: FunctionDef) -> None:
        self.arguments = {argument.name: i for i, argument in enumerate(before.signature.input_arg)}
        self.brought = {  # the arguments of graphwd's own, with what they are called
            argument.name: after.arg_attr[i].attr[NAME].s.decode()
            for i, argument in enumerate(after.signature.input_arg)
            if argument.name not in self.arguments
        }
        self.before: dict[str, NodeDef] = {node.name: node for node in before.node_def}
        self.after: dict[str, NodeDef] = {node.name: node for node in after.node_def}
        self.waiting = _waiting(before), _waiting(after)
        self._inputs = dict(_folded(after))
        self.decays: dict[str, str] = {}
        for node in after.node_def:
            if RECORD in node.attr:
                record = json.loads(node.attr[RECORD].s)
                self.decays[record["write"]] = record["decay"]

    def node(self, name: str) -> NodeDef | None:
        """A node, be it injected or not; None for an argument."""
        return self.after.get(name)

    def inputs(self, name: str, *, after: bool) -> Sequence[str]:
        """The inputs of a node in one of the two bodies; a schedule and a rounding are one node each, the result."""
        node = (self.after if after else self.before).get(name)
        return () if node is None else self._inputs.get(name, node.input)


def _folded(function: FunctionDef) -> Iterator[tuple[str, list[str]]]:
    """For each node that gives the result of a schedule or a rounding, what that is computed from."""
    inside = {node.name: node for node in function.node_def if _scope(node)}
    results = {source for node in function.node_def if node.name not in inside for source in sources_of(node)}
    for name in inside.keys() & results:
        outside, waiting = dict[str, None](), [name]
        while waiting:
            for text in inside[waiting.pop()].input:
                if source_of(text) in inside:
                    waiting.append(source_of(text))
                else:
                    outside[text] = None
        yield name, [text for text in outside if is_data(text)]


def _scope(node: NodeDef) -> str | None:
    """The schedule or rounding that an injected node is a part of; None for any other."""
    role = node.attr[MARK].s.decode() if MARK in node.attr else ""
    return next((scope for scope in ("schedule", "rounding") if role.startswith(scope)), None)


def _waiting(function: FunctionDef) -> Mapping[str, Sequence[str]]:
    """What waits for each write or decay by control: nodes of the original, and no name for the end of the function."""
    found: dict[str, list[str]] = defaultdict(list)
    for node in function.node_def:
        for text in node.input if MARK not in node.attr else ():
            if is_control(text):
                found[source_of(text)].append(node.name)
    for node in function.control_ret.values():
        found[node].append("")
    return found


class _Search:
    """Looks for the nodes around one update."""

    def __init__(self, graphs: UpdateGraphs, pair: _Pair, injection: Injection, writes: Collection[str]) -> None:
        self._graphs = graphs
        self._pair = pair
        self._injection = injection
        self._writes = writes
        self._decay = pair.decays[injection.site.node]
        self._learning_rate = injection.rate.learning_rate and node_of(injection.rate.learning_rate.tensor)
        self._gradients = {
            node_of(data_inputs(pair.before[name])[WRITE_OPS[pair.before[name].op].value])
            for name in writes
            if WRITE_OPS[pair.before[name].op].form is Form.APPLY
        }
        if isinstance(injection, InGradient):
            self._gradients.add(node_of(injection.entry.tensor))

    def found(self, nest: tuple[tuple[str, str, str], ...]) -> UpdateGraph:
        """The nodes around the update, as a drawing has them."""
        numbers = {name: number for number, name in enumerate(self._depths())}
        boxes = [self._box(name, numbers) for name in numbers]
        names = [self._name(name) for name in numbers]
        before, after = self._edges(numbers, after=False), self._edges(numbers, after=True)
        write = self._injection.site.node
        if waiting := self._pair.waiting[0].get(write):
            last = write if self._pair.waiting[1].get(write) else self._decay
            before[numbers[write], len(boxes), True] = None
            after[numbers[last], len(boxes), True] = None
            boxes.append(Box(Kind.WAITING, "what waits for it"))
            names.append(_told(waiting))
        lines = [
            Line(*edge, When.BOTH if edge in before and edge in after else When.AFTER if edge in after else When.BEFORE)
            for edge in {**before, **after}
        ]
        return UpdateGraph(nest, Structure(tuple(boxes), _without_cycles(lines)), tuple(names))

    def _depths(self) -> Mapping[str, int]:
        """The nodes to be drawn, each with its distance from the writes; injected ones first, as near as they are."""
        injected = self._injected()
        depths = dict.fromkeys([*self._writes, *injected], 0)
        depths |= dict.fromkeys((use.node for use in self._injection.uses), 0)
        waiting, originals = deque(depths), 0
        while waiting:
            name = waiting.popleft()
            if depths[name] >= _MAX_DEPTH and name not in injected:
                continue
            for source in self._sources(name):
                is_leaf = self._is_leaf(source)
                if source not in depths and (is_leaf or originals < _MAX_OPS):
                    originals += not is_leaf
                    depths[source] = depths[name] + 1
                    waiting.append(source)
        return depths

    def _injected(self) -> Mapping[str, None]:
        """The injected nodes of this decay."""
        found: dict[str, None] = {}
        waiting = deque([self._decay])
        while waiting:
            name = waiting.popleft()
            node = self._pair.node(name)
            if name not in found and node is not None and MARK in node.attr:
                found[name] = None
                waiting.extend(map(source_of, self._pair.inputs(name, after=True)))
        return found

    def _sources(self, name: str) -> Iterator[str]:
        """What a node is computed from; of a read of a slot variable also the write that it waits for."""
        if self._is_leaf(name):
            return
        node = self._pair.node(name)
        assert node is not None
        for text in dict.fromkeys([*self._pair.inputs(name, after=False), *self._pair.inputs(name, after=True)]):
            source = source_of(text)
            if not is_control(text) or (node.op in READ_OPS and self._is_write(source)):
                yield source

    def _is_write(self, name: str) -> bool:
        node = self._pair.node(name)
        return node is not None and node.op in WRITE_OPS

    def _is_leaf(self, name: str) -> bool:
        """Whether a drawing shows nothing of what a node is computed from."""
        node = self._pair.node(name)
        if node is None or node.op == "Const" or node.op in HANDLE_OPS:
            return True
        if MARK in node.attr or name in self._writes:
            return False
        return self._is_input(name) or node.op in CALL_OPS

    def _is_input(self, name: str) -> bool:
        return name == self._learning_rate or name in self._gradients or self._graphs.is_gradient(name)

    def _box(self, name: str, numbers: Mapping[str, int]) -> Box:
        node = self._pair.node(name)
        if name in self._pair.brought:
            return Box(Kind.ARGUMENT, "from outside", injected=True)
        if variable := self._variable(name):
            weight = variable.id == self._injection.variable.id
            return Box(Kind.WEIGHT if weight else Kind.VARIABLE, "weight" if weight else "variable")
        injected = node is not None and MARK in node.attr
        if not injected:
            if name == self._learning_rate:
                return Box(Kind.LEARNING_RATE, "learning rate")
            if name in self._gradients or self._graphs.is_gradient(name):
                return Box(Kind.GRADIENT, "gradient")
        if node is None:
            return Box(Kind.ARGUMENT, "argument")
        if node.op == "Const":
            return Box(Kind.CONSTANT, "constant", injected)
        if scope := _scope(node):
            return Box(Kind.OP, scope, injected)
        kind = Kind.WRITE if node.op in WRITE_OPS else Kind.OP
        cut = node.op not in READ_OPS and any(source not in numbers for source in map(node_of, data_inputs(node)))
        return Box(kind, node.op, injected, cut)

    def _name(self, name: str) -> str:
        if variable := self._variable(name):
            return variable.shown
        rate = self._injection.rate
        if name == self._learning_rate and rate.learning_rate is not None:
            return rate.learning_rate.name
        node = self._pair.node(name)
        if name in self._pair.brought:
            return self._pair.brought[name]
        if node is not None and (scope := _scope(node)):
            schedules = ", ".join(str(each.schedule) for each in self._injection.schedules)
            return "1 - rate, in float32" if scope == "rounding" else schedules or name
        value = _scalar(node) if node is not None and node.op == "Const" else None
        return name if value is None else f"{value:.7g}"

    def _variable(self, name: str) -> Variable | None:
        path = self._injection.site.path
        if name in self._pair.arguments or not path:
            return self._graphs.variable(name, path)
        return None

    def _edges(self, numbers: Mapping[str, int], *, after: bool) -> _Edges:
        """The edges between the nodes that are drawn."""
        edges: _Edges = {}
        for name, number in numbers.items():
            for text in self._pair.inputs(name, after=after):
                source = numbers.get(source_of(text))
                if source is not None and (source, number, False) not in edges:
                    edges[source, number, is_control(text)] = None
        return edges


_Edges = dict[tuple[int, int, bool], None]


def _told(waiting: Sequence[str]) -> str:
    """What waits for an update, in a few words."""
    count = sum(map(bool, waiting))
    words = [f"{count} node{'' if count == 1 else 's'}"] if count else []
    return " and ".join([*words, *(["the end"] if "" in waiting else [])])


def _without_cycles(lines: Iterable[Line]) -> tuple[Line, ...]:
    """The edges without those that close a cycle, as the loops of TensorFlow 1 do."""
    kept = list(lines)
    while True:
        sorter: TopologicalSorter[int] = TopologicalSorter()
        for line in kept:
            sorter.add(line.target, line.source)
        try:
            sorter.prepare()
        except CycleError as error:
            first, second = error.args[1][:2]
            kept = [line for line in kept if {line.source, line.target} != {first, second}]
            continue
        return tuple(kept)


_FORMATS: Mapping[str, tuple[str, str]] = {
    "float32": ("f", "float_val"), "float64": ("d", "double_val"), "float16": ("e", ""),
    "int32": ("i", "int_val"), "int64": ("q", "int64_val"),
}  # fmt: skip


def _scalar(node: NodeDef) -> float | None:
    """The number that a constant holds; None where it is none, or more than one."""
    tensor = node.attr["value"].tensor
    form, values = _FORMATS.get(DTYPE_NAMES.get(tensor.dtype, ""), ("", ""))
    if not form or math.prod(dim.size for dim in tensor.tensor_shape.dim) != 1:
        return None
    if tensor.tensor_content:
        return struct.unpack_from(f"<{form}", tensor.tensor_content)[0]
    held = getattr(tensor, values) if values else ()
    return held[0] if held else None
