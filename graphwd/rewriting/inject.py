"""Writes weight decay into function bodies.

Here the bodies on the way to an injection are copied, and the result is checked (`check`). `splice`, `decays`, `bring`
and `fusion` change these copies and nothing else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from graphwd.analysis.interpreter import Interpreter
from graphwd.analysis.sites import Site
from graphwd.decay.formulas import l2
from graphwd.errors import RewriteError
from graphwd.graph.body import Body, Layout
from graphwd.graph.edge import EdgeText, is_control
from graphwd.graph.fragment import Fragment
from graphwd.graph.graph import MARK, RECORD, Callee, Graph, is_compiled
from graphwd.graph.ops import CALL_OPS, CallKind
from graphwd.planning.injections import After, Before, Elsewhere, Injection, Nest, Where, nested
from graphwd.rewriting.bring import add_arguments, pass_on, return_arguments, take_back
from graphwd.rewriting.check import check_rewritten
from graphwd.rewriting.decays import DecayWriter
from graphwd.rewriting.fusion import FUSED, outline
from graphwd.rewriting.schedules import take_schedules, write_schedules
from graphwd.rewriting.splice import Added, rename_functions

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef


RECORD_VERSION = 2
"""The version of the record in an injected read; those of graphwd 0.1 have none and read as 1.

A key more does not change it: readers leave alone what they do not know. It counts up where a reader that does not know
of the change would take a decay out wrongly, and a record says the least version that can read it: 2 where a node of
the original waits for an injected one ("delayed").
"""


FRAGMENT = "graphwd_fragment_"
"""What the names of functions begin with that come from a formula or a schedule, and from no function of the step."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A rewritten step.

    Attributes:
        root: the step itself.
        functions: the rewritten library functions, callees before callers, each under a new name.
        unfused: the variables whose update or decay was not fused, although the step was to be.
        captures: the new captures of the root, which are its last arguments, in order.
    """

    root: FunctionDef
    functions: tuple[FunctionDef, ...]
    unfused: tuple[str, ...] = ()
    captures: tuple[Elsewhere, ...] = ()


def inject(
    graph: Graph, injections: Iterable[Injection], new_name: Callable[[str], str], *, fuse: bool = False
) -> Rewritten:
    """Makes a copy of a step with weight decay in it.

    A library function is copied once for each way in which it is rewritten. Call sites without a decay in or below
    their function go on calling the original.

    Args:
        graph: the step; it is not changed.
        injections: where decay goes.
        new_name: makes an unused name for a rewritten copy of the function of the given name.
        fuse: whether the arithmetic of each update is outlined, with the decay, into a function that XLA compiles.

    Returns:
        The rewritten step.

    Raises:
        RewriteError: the step holds injected nodes already, or the result differs from the plan.
    """
    refuse_rewritten(graph)
    nest = nested(injections)
    layouts = {name: graph.body(name).layout for name in set(nest.functions())}
    root_layout = graph.root.layout
    graph.forget_bodies()
    writer = _Writer(graph, layouts, new_name, fuse=fuse)
    captures = nest.outside()
    root = writer.rewrite(graph.root_function, root_layout, nest, captures, 0)
    return Rewritten(root, tuple(writer.functions), tuple(dict.fromkeys(writer.unfused)), captures)


def refuse_rewritten(graph: Graph) -> None:
    """Refuses a step that graphwd has rewritten.

    Args:
        graph: the step.

    Raises:
        RewriteError: it holds injected nodes.
    """
    if graph.is_rewritten:
        raise RewriteError(
            "this step was rewritten by graphwd before, or is decorated with with_weight_decay; a second pass "
            "would decay twice. Take the original; of a SavedModel 'graphwd strip' gives it back"
        )


class _Writer:
    def __init__(
        self, graph: Graph, layouts: Mapping[str, Layout], new_name: Callable[[str], str], *, fuse: bool
    ) -> None:
        self._graph = graph
        self._layouts = layouts
        self._new_name = new_name
        self._fuse = fuse
        self.unfused: list[str] = []
        self._names: dict[tuple[object, ...], str] = {}
        self.functions: list[FunctionDef] = []
        self._libraries: dict[int, dict[str, str]] = {}  # by the identity of a fragment, which is kept for good

    def rewrite(
        self, original: FunctionDef, layout: Layout | None, nest: Nest, outside: Sequence[Elsewhere], depth: int
    ) -> FunctionDef:
        """A copy of a function with the injections of a nest in it.

        Args:
            original: the function.
            layout: where its nodes are; needed unless the nest is empty.
            nest: the injections in and below it.
            outside: the tensors that it gets from outside, each by one more argument.
            depth: how many calls lead to it.
        """
        function = type(original)()
        function.CopyFrom(original)
        brought = add_arguments(function, outside)
        if layout is None:
            return function
        added = Added(function, layout.indices, self._library)
        delayed: dict[str, str] = {}
        if scheduled := nest.scheduled(depth):
            nodes = {each.write: function.node_def[layout.indices[each.write]] for each in scheduled if each.write}
            anchor = function.node_def[layout.indices[next(iter((*nest.here, *nest.by_node())))]]
            rates, delayed = write_schedules(added, nodes, scheduled, brought, anchor)
            brought |= rates
        passed: list[tuple[NodeDef, dict[Elsewhere, EdgeText]]] = []
        retargeted: dict[str, set[str]] = {}
        for name, nests in nest.by_node().items():
            node = function.node_def[layout.indices[name]]
            needed = tuple(dict.fromkeys(tensor for below in nests.values() for tensor in below.outside(depth + 1)))
            passed.append((node, {tensor: brought.get(tensor, tensor.edge) for tensor in needed}))
            # What is brought into one function of a call goes into all of them, for they share their arguments.
            callees = self._graph.callees(node) if needed else nests
            retargeted[name] = {callee.attribute for callee in callees}
            for callee in callees:
                looped = CALL_OPS[node.op].kind is CallKind.LOOP and callee.attribute == "body"
                _set_callee(node, callee, self._copy(callee, nests.get(callee, Nest()), needed, depth + 1, looped))
        decays: dict[str, str] = {}
        if nest.here:
            decays = _splice(function, added, layout, nest.here, brought)
        if nest.here or scheduled:
            check_rewritten(original, function, layout, nest.here, retargeted, delayed)
        for node, edges in passed:
            pass_on(node, edges)
        if decays and self._fuse and not is_compiled(function):
            self._outline(function, nest.here, decays)
        return function

    def _library(self, piece: Fragment) -> Mapping[str, str]:
        """The new names of the functions of a fragment, which become functions of the step."""
        if id(piece) not in self._libraries:
            names: dict[str, str] = {}
            for original in piece.library:  # each after those that it runs
                function = type(original)()
                function.CopyFrom(original)
                function.signature.name = self._new_name(f"{FRAGMENT}{original.signature.name}")
                for node in function.node_def:
                    rename_functions(node, names)
                names[original.signature.name] = function.signature.name
                self.functions.append(function)
            self._libraries[id(piece)] = names
        return self._libraries[id(piece)]

    def _outline(self, function: FunctionDef, injections: Mapping[str, Injection], decays: Mapping[str, str]) -> None:
        """Outlines the updates of a body, those on each device together."""
        devices = {node.name: node.device for node in function.node_def}
        by_device: dict[str, dict[str, str]] = {}
        for write, injection in injections.items():
            writes = by_device.setdefault(devices[write] or injection.variable.device, {})
            writes[write] = injection.variable.name
            if isinstance(injection, After | Before):
                writes[decays[write]] = injection.variable.name
        for device, writes in by_device.items():
            fused, left_out = outline(function, writes, self._new_name(f"{function.signature.name}_fused"), device)
            self.unfused += [writes[write] for write in left_out]
            if fused is not None:
                self.functions.append(fused)
        Body(function)

    def _copy(self, callee: Callee, nest: Nest, outside: Sequence[Elsewhere], depth: int, looped: bool) -> str:
        key = (callee.function, nest.signature(), outside, looped)
        if key not in self._names:
            layout = self._layouts.get(callee.function)
            function = self.rewrite(self._graph.library[callee.function], layout, nest, outside, depth)
            if looped:
                return_arguments(function, len(outside))
            function.signature.name = self._new_name(callee.function)
            self._names[key] = function.signature.name
            self.functions.append(function)
        return self._names[key]


def _set_callee(node: NodeDef, callee: Callee, function: str) -> None:
    value = node.attr[callee.attribute]
    target = value.func if value.func.name else value.list.func[callee.position]
    target.name = function


def _splice(
    function: FunctionDef,
    added: Added,
    layout: Layout,
    injections: Mapping[str, Injection],
    brought: Mapping[Elsewhere, EdgeText],
) -> dict[str, str]:
    """Adds the decays; returns for each write the node that decays."""
    decays: dict[str, str] = {}
    needed = {name for injection in injections.values() for name in injection.touched}
    nodes = {name: function.node_def[layout.indices[name]] for name in needed}
    waiting = [function.node_def[index] for index in layout.waiting]
    last: dict[str, str] = {}
    for name, injection in injections.items():
        moved = [(*use, nodes[use.node].input[use.position]) for use in injection.uses]
        writer = DecayWriter(added, nodes, injection, brought)
        decay = decays[name] = writer.add()
        if isinstance(injection, After):
            last[name] = decay
        rate = injection.rate
        learning_rate = rate.learning_rate
        record: dict[str, Any] = {
            "version": 1,
            "write": name,
            "decay": decay,
            "where": injection.where.value,
            "rate": rate.number,
            "learning_rate": learning_rate and learning_rate.name,
            "rows": injection.rows,
            "moved": moved,
        }
        if rate.power != 1:
            record["power"] = rate.power
        if rate.factors:
            record["factors"] = [factor.name for factor in rate.factors]
        if injection.formula is not l2:
            record["formula"] = str(injection.formula)
        if writer.delayed:
            record |= {"version": 2, "delayed": writer.delayed}
        writer.carrier.attr[RECORD].s = json.dumps(record).encode()
    _redirect(function, waiting, last)
    return decays


def take_out(function: FunctionDef) -> list[dict[str, Any]]:
    """Takes graphwd's own nodes out of a function body, in place, so that it equals the original.

    Args:
        function: the body.

    Returns:
        For every decay taken out its record: ``write``, ``decay``, ``where``, ``rate``, ``learning_rate``, ``rows``.

    Raises:
        RewriteError: a node is marked, but its record is damaged.
    """
    if any(node.attr[MARK].s == FUSED for node in function.node_def if MARK in node.attr):
        raise RewriteError(
            f"'{function.signature.name}' was fused, so its decay cannot be taken out: take the original"
        )
    records = [decay_of(node) for node in function.node_def if RECORD in node.attr]
    nodes = {node.name: node for node in function.node_def}
    original: dict[str, str] = {}
    try:
        for record in records:
            write, decay = nodes[record["write"]], record["decay"]
            for name, position, text in record["moved"]:
                nodes[name].input[position] = text
            if record["where"] == Where.BEFORE.value:
                write.input.remove(f"^{decay}")
            elif record["where"] == Where.AFTER.value:
                original[decay] = write.name
            for name, early in record["delayed"]:
                nodes[name].input.remove(f"^{early}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RewriteError(f"'{function.signature.name}' holds a damaged record of a decay: {error}") from None
    take_back(function)
    take_schedules(function)
    _redirect(function, function.node_def, original)
    kept = [node for node in function.node_def if MARK not in node.attr]
    del function.node_def[:]
    function.node_def.extend(kept)
    return records


def decay_of(node: NodeDef) -> dict[str, Any]:
    """The record of the decay that an injected read belongs to.

    Raises:
        RewriteError: the record is damaged, or of a later version.
    """
    record: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError):
        record = _read_record(json.loads(node.attr[RECORD].s), node.name)
    known = all(isinstance(value, _RECORD_TYPES[key]) for key, value in record.items())
    if not record or not known or not all(isinstance(factor, str) for factor in record["factors"]):
        raise RewriteError(f"'{node.name}' holds a damaged record of a decay")
    return record


def _read_record(record: object, node: str) -> dict[str, Any]:
    """The known keys of a record; empty where it is invalid."""
    if not isinstance(record, dict):
        return {}
    keys = cast("dict[str, Any]", record)
    version = keys.get("version", 1)
    if type(version) is int and version > RECORD_VERSION:
        raise RewriteError(
            f"'{node}' was written by a newer graphwd: its record of a decay has version {version}, and this one reads "
            f"versions up to {RECORD_VERSION}; install the newer one"
        )
    needed = _RECORD_TYPES.keys() - _RECORD_DEFAULTS.keys()
    if type(version) is not int or version < 1 or not needed <= keys.keys():
        return {}
    return {key: keys[key] for key in needed} | {
        key: keys.get(key, default) for key, default in _RECORD_DEFAULTS.items()
    }


_RECORD_TYPES: Mapping[str, tuple[type, ...]] = {
    "write": (str,),
    "decay": (str,),
    "where": (str,),
    "rate": (float, int),
    "learning_rate": (str, type(None)),
    "rows": (bool,),
    "moved": (list,),
    "delayed": (list,),
    "power": (int,),
    "factors": (list,),
    "formula": (str,),
}

_RECORD_DEFAULTS: Mapping[str, Any] = {"delayed": [], "power": 1, "factors": [], "formula": "l2"}
"""What a record leaves out where it is as usual."""


def decay_records(graph: Graph) -> list[dict[str, Any]]:
    """Reads the records of the decays in a step.

    Args:
        graph: a step that graphwd has rewritten.

    Returns:
        For every decay, and every path of calls to it: ``variable``, ``label``, ``at``, ``where``, ``rate``,
        ``learning_rate``, ``power``, ``factors``, ``formula``, ``rows``.

    Raises:
        RewriteError: the record of one is damaged.
    """
    records: list[dict[str, Any]] = []
    for site, variable in Interpreter(graph, told_apart=False, records=True).run().injected.items():
        function = graph.library[site.path[-1].callee.function] if site.path else graph.root_function
        record = next(decay_of(node) for node in function.node_def if node.name == site.node)
        at = str(Site(site.path, record["write"], ""))
        keys = ("where", "rate", "learning_rate", "power", "factors", "formula", "rows")
        known = {"variable": variable.name, "label": variable.shown, "at": at}
        records.append({**known, **{key: record[key] for key in keys}})
    return records


def _redirect(function: FunctionDef, nodes: Iterable[NodeDef], targets: Mapping[str, str]) -> None:
    """Redirects control dependencies from some nodes to others, but not those of injected nodes."""
    waits = {f"^{name}": f"^{target}" for name, target in targets.items()}
    for node in nodes if targets else ():
        inputs = node.input
        if not inputs or not is_control(inputs[-1]):
            continue  # control inputs come after data inputs
        if any(text in waits for text in inputs) and MARK not in node.attr:
            moved = [waits.get(text, text) for text in inputs]
            del inputs[:]
            inputs.extend(moved)
    # Over a copy: a protobuf map that is written while it is iterated skips entries.
    for output, node_name in list(function.control_ret.items()):
        if node_name in targets:
            function.control_ret[output] = targets[node_name]
