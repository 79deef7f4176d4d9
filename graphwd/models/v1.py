"""Rewrites the main graph of a TensorFlow 1 MetaGraphDef: a SavedModel's, or a ``.meta`` file's.

The graph is viewed as one function body whose arguments are its variables. It differs from a body in two ways: a
tensor is written ``node`` or ``node:1``, not ``node:output:0``; and what is fetched is named elsewhere, in the
signatures and in the collection ``train_op``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.framework.variable_pb2 import VariableDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

from graphwd.analysis.updates import find_updates
from graphwd.errors import StepError
from graphwd.graph.edge import graph_edge, is_control, node_of, output_of, parse_edge, sources_of, with_node
from graphwd.graph.function_library import NewNames, original_name, rename, set_library
from graphwd.graph.graph import DTYPE_NAMES, MARK, RECORD, Graph, Variable, differentiable
from graphwd.graph.traits import HANDLE_OPS, Trait, ops_with
from graphwd.planning.injections import After
from graphwd.planning.planner import Decision, Outcome, Plan, make_plan
from graphwd.policy.rules import Policy
from graphwd.rewriting.inject import decay_of, decay_records, inject, refuse_rewritten, take_out
from graphwd.rewriting.whole_plan import Pending

TRAIN_OP = "train_op"
"""The collection that names the nodes that make a training step."""

_ENTERS, _EXITS = ops_with(Trait.ENTER), ops_with(Trait.EXIT)
_TRAINABLE = ("trainable_variables", "trainable_resource_variables")


def view_main_graph(meta_graph: MetaGraphDef) -> Graph:
    """Views the main graph as a step.

    Args:
        meta_graph: the MetaGraphDef.

    Returns:
        The step; its arguments are the variables of the graph.

    Raises:
        StepError: a collection is malformed.
    """
    trainable = set(_trainable(meta_graph))
    root = FunctionDef()
    root.signature.name = "the graph"
    handles: dict[str, Variable] = {}
    for node in meta_graph.graph_def.node:
        if node.op in HANDLE_OPS:
            root.signature.input_arg.add(name=node.name)
            handles[node.name] = _variable(node, len(handles), node.name in trainable)
        else:
            root.node_def.add().CopyFrom(node)
    return Graph(root, meta_graph.graph_def.library.function, handles, ())


def trains(meta_graph: MetaGraphDef) -> bool:
    """Whether the main graph updates a trainable variable from a gradient."""
    analysis = find_updates(view_main_graph(meta_graph))
    return any(writes.updates for writes in analysis.variables)


def pending_main_graph(meta_graph: MetaGraphDef, policy: Policy) -> Pending:
    """Plans weight decay for the main graph.

    Args:
        meta_graph: the MetaGraphDef.
        policy: the policy.

    Returns:
        The rewrite, which is done in place; where it would be refused, the plan has problems.

    Raises:
        GraphwdError: the graph is malformed, or rewritten already.
    """
    graph = view_main_graph(meta_graph)
    refuse_rewritten(graph)
    plan = _without_loops(make_plan(find_updates(graph), policy), _in_loops(graph))

    def write() -> None:
        plan.check()
        _write(meta_graph, graph, plan)

    return Pending(plan, write)


def _without_loops(plan: Plan, looping: Collection[str]) -> Plan:
    """A plan that refuses what is updated in a frame of a TensorFlow 1 while loop."""
    problems: list[str] = []
    decisions: list[Decision] = []
    for decision in plan.decisions:
        sites = [each.site for each in decision.injections if not each.site.path and each.site.node in looping]
        if sites:
            decision = replace(decision, outcome=Outcome.REFUSED, injections=())
            problems.append(
                f"'{decision.variable.name}' is updated in a while_loop of TensorFlow 1 ({sites[0].node}), "
                "which is not supported; write 'weight_decay: 0' for it"
            )
        decisions.append(decision)
    return replace(plan, decisions=tuple(decisions), problems=(*plan.problems, *problems))


def _write(meta_graph: MetaGraphDef, graph: Graph, plan: Plan) -> None:
    """Gives the main graph weight decay, in place."""
    references = {
        injection.site.node
        for injection in plan.injections
        if injection.variable.reference and not injection.site.path and isinstance(injection, After)
    }
    rewritten = inject(graph, plan.injections, NewNames(graph.library))
    moved = _lead_on(rewritten.root, references)
    _put_back(meta_graph, rewritten.root)
    set_library(meta_graph, [*meta_graph.graph_def.library.function, *rewritten.functions])
    _fetch_instead(meta_graph, moved)


def strip_main_graph(meta_graph: MetaGraphDef) -> int:
    """Takes graphwd's own decay out of the main graph, in place.

    Args:
        meta_graph: the MetaGraphDef.

    Returns:
        How many decays were taken out.

    Raises:
        RewriteError: the record of one is damaged.
    """
    root = view_main_graph(meta_graph).root_function
    records = [decay_of(node) for node in root.node_def if RECORD in node.attr]
    back = {record["decay"]: record["write"] for record in records if record["where"] == "after"}
    _take_from(root, back)
    count = len(take_out(root))
    functions = list(meta_graph.graph_def.library.function)
    count += sum(len(take_out(function)) for function in functions)
    _put_back(meta_graph, root)
    copies = {f.signature.name for f in functions if original_name(f.signature.name) != f.signature.name}
    set_library(meta_graph, [function for function in functions if function.signature.name not in copies])
    rename(meta_graph, {name: original_name(name) for name in copies})
    _fetch_instead(meta_graph, back)
    return count


def describe_main_graph(meta_graph: MetaGraphDef) -> list[dict[str, Any]]:
    """Says what graphwd has done to the main graph: as `describe_saved_model` does."""
    return decay_records(view_main_graph(meta_graph))


def _trainable(meta_graph: MetaGraphDef) -> Iterator[str]:
    """The handle nodes of the trainable variables."""
    for name in _TRAINABLE:
        for content in meta_graph.collection_def[name].bytes_list.value if name in meta_graph.collection_def else ():
            variable = VariableDef()
            try:
                variable.ParseFromString(content)
            except DecodeError:
                raise StepError(f"the collection '{name}' is damaged: an entry is no variable") from None
            yield parse_edge(variable.variable_name).node


def _variable(node: NodeDef, index: int, trainable: bool) -> Variable:
    shape = node.attr["shape"].shape
    dimensions = None if shape.unknown_rank else tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
    dtype = DTYPE_NAMES.get(node.attr["dtype"].type, f"dtype {node.attr['dtype'].type}")
    trained, reference = trainable and differentiable(dtype), node.op != "VarHandleOp"
    return Variable(index, node.name, dimensions, dtype, trained, reference=reference, device=node.device)


def _in_loops(graph: Graph) -> set[str]:
    """The nodes that run in a frame of a TensorFlow 1 while loop."""
    found: set[str] = set()
    for node in graph.root.nodes:
        goes_on = node.op not in _EXITS and not found.isdisjoint(sources_of(node.proto))
        if node.op in _ENTERS or goes_on:
            found.add(node.name)
    return found


def _lead_on(root: FunctionDef, references: Iterable[str]) -> dict[str, str]:
    """Lets what takes the reference that a write returns take the one that its decay returns.

    Returns:
        The node of the decay, by that of the write, for every decay after a write.
    """
    records = [decay_of(node) for node in root.node_def if RECORD in node.attr]
    moved = {record["write"]: record["decay"] for record in records if record["where"] == "after"}
    _take_from(root, {write: moved[write] for write in references})
    return moved


def _take_from(root: FunctionDef, sources: Mapping[str, str]) -> None:
    """Lets the original nodes take the first output of other nodes than they do."""
    for node in root.node_def:
        if MARK not in node.attr:
            for position, text in enumerate(node.input):
                if not is_control(text) and node_of(text) in sources:
                    node.input[position] = sources[node_of(text)]


def _put_back(meta_graph: MetaGraphDef, root: FunctionDef) -> None:
    """Lets the main graph have the nodes of a body, its variables where they were and new nodes at the end."""
    nodes = {node.name: node for node in root.node_def}
    kept = [
        nodes.pop(node.name, node) for node in meta_graph.graph_def.node if node.op in HANDLE_OPS or node.name in nodes
    ]
    graph_def = type(meta_graph.graph_def)()
    graph_def.node.extend([*kept, *nodes.values()])
    for node in graph_def.node:
        for position, text in enumerate(node.input):
            node.input[position] = _graph_edge(text)
    del meta_graph.graph_def.node[:]
    meta_graph.graph_def.node.extend(graph_def.node)


def _graph_edge(text: str) -> str:
    """An edge as a graph writes it. Of the ops that are injected only ``Unique`` has a second output."""
    output = output_of(text)
    if output is None:
        return text
    return graph_edge(node_of(text), 1 if output == "idx" else 0)


def _fetch_instead(meta_graph: MetaGraphDef, targets: Mapping[str, str]) -> None:
    """Lets whoever runs a write by its name run another node."""
    if TRAIN_OP in meta_graph.collection_def:
        names = meta_graph.collection_def[TRAIN_OP].node_list.value
        for position, name in enumerate(names):
            names[position] = _led_on(name, targets)
    for signature in meta_graph.signature_def.values():
        for info in signature.outputs.values():
            info.name = _led_on(info.name, targets)


def _led_on(name: str, targets: Mapping[str, str]) -> str:
    """What is fetched, a tensor or a node, of the node that another one stands for."""
    node = node_of(name)
    return with_node(name, targets[node]) if node in targets else name
