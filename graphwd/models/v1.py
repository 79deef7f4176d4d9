"""Rewrites the main graph of a TensorFlow 1 MetaGraphDef: a SavedModel's, or a ``.meta`` file's.

The graph is viewed as one function body whose arguments are its variables. It differs from a body in two ways: a
tensor is written ``node`` or ``node:1``, not ``node:output:0``; and the fetches are named elsewhere, in the signatures
and in the collection ``train_op``.
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

from graphwd.analysis.updates import Analysis, find_updates
from graphwd.errors import StepError
from graphwd.graph.edge import EdgeText, graph_edge, is_data, node_of, output_of, parse_edge, with_node
from graphwd.graph.function_library import original_name, rename, set_library
from graphwd.graph.graph import DTYPE_NAMES, MARK, RECORD, Graph, Variable, differentiable
from graphwd.graph.traits import HANDLE_OPS, Trait, ops_with
from graphwd.planning.injections import After
from graphwd.planning.plan import Decision, Outcome, Plan
from graphwd.rewriting.inject import Rewritten, decay_of, decay_records, take_out
from graphwd.rewriting.part import without_own_variables

TRAIN_OP = "train_op"
"""The collection that names the nodes that perform a training step."""

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
    variables: dict[str, NodeDef] = {}
    inner: list[NodeDef] = []
    for node in meta_graph.graph_def.node:
        if node.op in HANDLE_OPS:
            root.signature.input_arg.add(name=node.name)
            variables[node.name] = node
        else:
            inner.append(node)
    root.node_def.extend(inner)
    handles = {
        name: _variable(node, number, name in trainable) for number, (name, node) in enumerate(variables.items())
    }
    return Graph(root, meta_graph.graph_def.library.function, handles, ())


class MainGraph:
    """The main graph of a MetaGraphDef, as a part to plan and to write.

    Attributes:
        meta_graph: the MetaGraphDef.
        graph: its view.
    """

    def __init__(self, meta_graph: MetaGraphDef) -> None:
        """Views the main graph.

        Args:
            meta_graph: the MetaGraphDef.

        Raises:
            StepError: a collection is malformed.
        """
        self.meta_graph = meta_graph
        self.graph = view_main_graph(meta_graph)
        self._analysis: Analysis | None = None

    def trains(self) -> bool:
        """Whether it updates a trainable variable from a gradient."""
        self._analysis = find_updates(self.graph)
        return any(writes.updates for writes in self._analysis.variables)

    def find_updates(self) -> Analysis:
        """Finds every update of every trainable variable."""
        analysis, self._analysis = self._analysis, None
        return analysis or find_updates(self.graph)

    def limited(self, plan: Plan) -> Plan:
        """The plan, which refuses what is updated in a frame of a TensorFlow 1 while loop."""
        return _without_loops(without_own_variables(plan), _in_loops(self.graph))

    def replace(self, rewritten: Rewritten, plan: Plan) -> None:
        """Gives the main graph weight decay, in place.

        Args:
            rewritten: the rewritten view.
            plan: its plan.
        """
        meta_graph, root = self.meta_graph, rewritten.root
        count = len(self.graph.root_function.node_def)
        references = {
            injection.site.node
            for injection in plan.injections
            if injection.variable.reference and not injection.site.path and isinstance(injection, After)
        }
        moved = {write: decay for decay, write in _decayed_writes(root.node_def[count:]).items()}
        # Users of the reference that a write returns get the one that its decay returns.
        _take_from(root.node_def[:count], {write: moved[write] for write in references})
        _put_back(meta_graph, root)
        if rewritten.functions:
            set_library(meta_graph, [*meta_graph.graph_def.library.function, *rewritten.functions])
        _fetch_instead(meta_graph, moved)


def _without_loops(plan: Plan, looping: Collection[str]) -> Plan:
    """A plan that refuses variables that are updated in a frame of a TensorFlow 1 while loop."""
    problems: list[str] = []
    decisions: list[Decision] = []
    for decision in plan.decisions if looping else ():
        sites = [
            injection.site
            for injection in decision.injections
            if not injection.site.path and injection.site.node in looping
        ]
        if sites:
            decision = replace(decision, outcome=Outcome.REFUSED, injections=())
            problems.append(
                f"'{decision.variable.name}' is updated in a while_loop of TensorFlow 1 ({sites[0].node}), "
                "which is not supported; write 'weight_decay: 0' for it"
            )
        decisions.append(decision)
    return replace(plan, decisions=tuple(decisions), problems=(*plan.problems, *problems)) if problems else plan


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
    back = _decayed_writes(root.node_def)
    _take_from(root.node_def, back)
    count = len(take_out(root))
    functions = list(meta_graph.graph_def.library.function)
    count += sum(len(take_out(function)) for function in functions)
    nodes = meta_graph.graph_def.node
    kept = [node for node in nodes if node.op in HANDLE_OPS or MARK not in node.attr]
    del nodes[:]
    nodes.extend(kept)
    _put_back(meta_graph, root)
    copies = {f.signature.name for f in functions if original_name(f.signature.name) != f.signature.name}
    set_library(meta_graph, [function for function in functions if function.signature.name not in copies])
    rename(meta_graph, {name: original_name(name) for name in copies})
    _fetch_instead(meta_graph, back)
    return count


def describe_main_graph(meta_graph: MetaGraphDef) -> list[dict[str, Any]]:
    """Reads the records of graphwd's decays in the main graph, as `describe_saved_model` does."""
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
            yield parse_edge(EdgeText(variable.variable_name)).node


def _variable(node: NodeDef, index: int, trainable: bool) -> Variable:
    shape = node.attr["shape"].shape
    dimensions = None if shape.unknown_rank else tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
    dtype = DTYPE_NAMES.get(node.attr["dtype"].type, f"dtype {node.attr['dtype'].type}")
    trained, reference = trainable and differentiable(dtype), node.op != "VarHandleOp"
    return Variable(index, node.name, dimensions, dtype, trained, reference=reference, device=node.device)


def _in_loops(graph: Graph) -> set[str]:
    """The nodes that run in a frame of a TensorFlow 1 while loop."""
    looped = {node.name for node in graph.root.nodes if node.op in _ENTERS}
    for node in graph.root.nodes if looped else ():
        sources = (*(edge.node for edge in node.inputs), *node.controls)
        if node.op not in _EXITS and not looped.isdisjoint(sources):
            looped.add(node.name)
    return looped


def _decayed_writes(nodes: Iterable[NodeDef]) -> dict[str, str]:
    """For every recorded decay after a write, the node of the write, by the node of the decay."""
    records = [decay_of(node) for node in nodes if RECORD in node.attr]
    return {record["decay"]: record["write"] for record in records if record["where"] == "after"}


def _take_from(nodes: Iterable[NodeDef], sources: Mapping[str, str]) -> None:
    """Redirects data inputs of the original nodes to the first output of other nodes."""
    for node in nodes if sources else ():
        for position, text in enumerate(node.input):
            if is_data(text) and node_of(text) in sources and MARK not in node.attr:
                node.input[position] = sources[node_of(text)]


def _put_back(meta_graph: MetaGraphDef, root: FunctionDef) -> None:
    """Gives the main graph the nodes of a body; variables keep their places, and new nodes come last."""
    nodes = meta_graph.graph_def.node
    others = [node for node in nodes if node.op not in HANDLE_OPS]
    for old, new in zip(others, root.node_def, strict=False):
        if old != new:
            _copy(new, old)
    for new in root.node_def[len(others) :]:
        _copy(new, nodes.add())


def _copy(node: NodeDef, target: NodeDef) -> None:
    """Copies a node of a body into a graph."""
    target.CopyFrom(node)
    for position, text in enumerate(node.input):
        if is_data(text) and (edge := _graph_edge(text)) != text:
            target.input[position] = edge


def _graph_edge(text: EdgeText) -> EdgeText:
    """An edge in the notation of graphs. Of the injected ops only ``Unique`` has a second output."""
    output = output_of(text)
    if output is None:
        return text
    return graph_edge(node_of(text), 1 if output == "idx" else 0)


def _fetch_instead(meta_graph: MetaGraphDef, targets: Mapping[str, str]) -> None:
    """Redirects fetches of a write to another node."""
    if TRAIN_OP in meta_graph.collection_def:
        names = meta_graph.collection_def[TRAIN_OP].node_list.value
        for position, name in enumerate(names):
            names[position] = _redirected(name, targets)
    for signature in meta_graph.signature_def.values():
        for info in signature.outputs.values():
            info.name = _redirected(info.name, targets)


def _redirected(name: str, targets: Mapping[str, str]) -> str:
    """A fetch, of a tensor or a node, redirected to the node that replaces another one."""
    node = node_of(EdgeText(name))
    return with_node(name, targets[node]) if node in targets else name
