"""Transformations of a traced step that keep its meaning, for whoever must decide the same of both.

Everything is renamed and permuted, a random part is outlined into a function, a call is inlined, the body is wrapped in
a loop of one turn or in a branch that is always taken. Every node carries a tag that survives all of it, so that places
in the step and in the transformed one can be compared.

TensorFlow internals used here, and why there is no public way:

* ``op_def_registry``: the dtype of a node's output, which a FunctionDef does not say.
* ``context.context().add_function_def``: registers a transformed function.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.eager import context
from tensorflow.python.framework import op_def_registry

from graphwd.graph.graph import Graph, Variable
from graphwd.steps.read import ConcreteFunction, read

TAG = "_tests_origin"
"""The attribute by which a node is known, whatever it is called."""

_V1_LOOPS = frozenset({"Merge", "RefMerge", "NextIteration", "RefNextIteration", "Switch", "RefSwitch"})
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_WRONG = (
    "learning_rate", "CosineDecay/", "ExponentialDecay/", "beta1_power",
    "beta2_power", "adam/", "sgd/", "ReadVariableOp", "decay", "momentum", "ema",
)  # fmt: skip
"""What names that mislead hold.

Those of the scopes of gradients are not among them: TensorFlow alone makes nodes there. A node of an optimizer that is
given such a name may be taken for a gradient, as graphwd/docs/plan.md says.
"""

_serial = itertools.count()

_UNOPTIMIZED = tf.compat.v1.ConfigProto()
"""Grappler sees a body as a whole and reorders its sums: another form of a step would be rounded otherwise."""
_UNOPTIMIZED.graph_options.rewrite_options.disable_meta_optimizer = True
_UNOPTIMIZED.graph_options.optimizer_options.opt_level = tf.compat.v1.OptimizerOptions.L0
_CONFIG = _UNOPTIMIZED.SerializeToString()


@dataclass
class Step:
    """A step as functions, to be transformed.

    Attributes:
        root: the body.
        library: the functions that it calls, by name.
        handles: the arguments that are variables' handles.
        data: the arguments that carry data.
    """

    root: FunctionDef
    library: dict[str, FunctionDef]
    handles: dict[str, Variable]
    data: set[str]

    @classmethod
    def of(cls, step: ConcreteFunction) -> Step:
        """A copy of a traced step, every node tagged."""
        graph = read(step)
        found = cls(
            _copy(graph.root_function),
            {name: _copy(function) for name, function in graph.library.items()},
            dict(graph.handles),
            set(graph.data),
        )
        for function in found.functions:
            for node in function.node_def:
                node.attr[TAG].s = f"{function.signature.name}/{node.name}".encode()
        return found

    def copy(self) -> Step:
        """A copy, to be changed."""
        library = {name: _copy(function) for name, function in self.library.items()}
        return Step(_copy(self.root), library, dict(self.handles), set(self.data))

    @property
    def functions(self) -> list[FunctionDef]:
        """All bodies, the step's own first."""
        return [self.root, *self.library.values()]

    @property
    def graph(self) -> Graph:
        """The view that plans are made of."""
        return Graph(_copy(self.root), map(_copy, self.library.values()), self.handles, self.data)


def _copy(function: FunctionDef) -> FunctionDef:
    made = FunctionDef()
    made.CopyFrom(function)
    return made


# --- Names and order --------------------------------------------------------------------------------------------------


@dataclass
class _Names:
    make: random.Random
    misleading: bool
    used: set[str] = field(default_factory=set)

    def __call__(self, kind: str) -> str:
        while True:
            name = f"{kind}{self.make.randrange(10**6)}_{self.make.choice('abcdefgh')}{self.make.choice('xyz')}"
            if self.misleading and kind == "n" and self.make.random() < 0.3:
                wrong = self.make.choice(_WRONG)
                name = wrong + name if wrong.endswith("/") else f"{name}/{wrong}"
            if name not in self.used:
                self.used.add(name)
                return name


def rename(step: Step, make: random.Random, *, misleading: bool = False) -> Step:
    """Renames every node, argument, result, function and variable."""
    made, names = step.copy(), _Names(make, misleading)
    functions = {name: names("f") for name in made.library}
    arguments = {}
    for function in made.functions:
        renamed = _rename_nodes(function, names)
        if function is made.root:
            arguments = renamed
        for node in function.node_def:
            for value in node.attr.values():
                _rename_functions(value, functions)
        for value in function.attr.values():
            _rename_functions(value, functions)
    for name, function in made.library.items():
        function.signature.name = functions[name]
    made.root.signature.name = names("f")
    made.library = {function.signature.name: function for function in made.library.values()}
    renamed = {
        each: dataclasses.replace(each, name=names("v"), path=None) for each in dict.fromkeys(step.handles.values())
    }
    made.handles = {arguments[name]: renamed[each] for name, each in step.handles.items()}
    made.data = {arguments[name] for name in step.data}
    return made


def _rename_nodes(function: FunctionDef, names: _Names) -> dict[str, str]:
    new = {each.name: names("a") for each in function.signature.input_arg}
    new |= {node.name: names("n") for node in function.node_def}
    for argument in function.signature.input_arg:
        argument.name = new[argument.name]
    for node in function.node_def:
        node.name = new[node.name]
        node.input[:] = [_renamed_edge(text, new) for text in node.input]
        if "_class" in node.attr:
            node.attr["_class"].list.s[:] = [_renamed_class(text, new) for text in node.attr["_class"].list.s]
    results = {}
    for result in function.signature.output_arg:
        name = names("r")
        results[name] = _renamed_edge(function.ret[result.name], new)
        result.name = name
    function.ret.clear()
    function.ret.update(results)
    for output, node in list(function.control_ret.items()):
        function.control_ret[output] = new[node]
    return new


def _renamed_edge(text: str, new: Mapping[str, str]) -> str:
    control = "^" if text.startswith("^") else ""
    node, colon, rest = text.removeprefix("^").partition(":")
    return f"{control}{new[node]}{colon}{rest}"


def _renamed_class(text: bytes, new: Mapping[str, str]) -> bytes:
    name = text.decode().removeprefix("loc:@")
    return f"loc:@{new.get(name, name)}".encode()


def _rename_functions(value: Any, new: Mapping[str, str]) -> None:
    for function in (*((value.func,) if value.HasField("func") else ()), *value.list.func):
        function.name = new.get(function.name, function.name)
    if value.s and (name := value.s.decode("utf-8", "replace")) in new:
        value.s = new[name].encode()


def mislead(step: Step, make: random.Random) -> Step:
    """Renames everything, a third of the nodes to what means something at other places."""
    return rename(step, make, misleading=True)


def permute(step: Step, make: random.Random) -> Step:
    """Puts the nodes of every body in any order, be it one in which they can run or not."""
    made = step.copy()
    anyhow = make.random() < 0.5
    for function in made.functions:
        nodes = [*function.node_def]
        order = make.sample(nodes, len(nodes)) if anyhow or _has_v1_loop(function) else _random_order(function, make)
        _set_nodes(function, [_node(each) for each in order])
    return made


def _node(node: NodeDef) -> NodeDef:
    made = NodeDef()
    made.CopyFrom(node)
    return made


def _set_nodes(function: FunctionDef, nodes: Iterable[NodeDef]) -> None:
    nodes = list(nodes)
    del function.node_def[:]
    function.node_def.extend(nodes)


def _has_v1_loop(function: FunctionDef) -> bool:
    return any(node.op in _V1_LOOPS for node in function.node_def)


def _source(text: str) -> str:
    return text.removeprefix("^").partition(":")[0]


def _random_order(function: FunctionDef, make: random.Random) -> list[NodeDef]:
    """The nodes, each after what it waits for, else at random."""
    nodes = {node.name: node for node in function.node_def}
    missing = {name: {_source(text) for text in node.input} & nodes.keys() for name, node in nodes.items()}
    users: dict[str, list[str]] = {}
    for name, needs in missing.items():
        for need in sorted(needs):  # of one seed, one order, whatever the hashes of the names are
            users.setdefault(need, []).append(name)
    ready = [name for name, needs in missing.items() if not needs]
    order = []
    while ready:
        name = ready.pop(make.randrange(len(ready)))
        order.append(nodes[name])
        for user in users.get(name, ()):
            missing[user].discard(name)
            if not missing[user]:
                ready.append(user)
    assert len(order) == len(nodes), "nodes wait for each other"
    return order


# --- Structure --------------------------------------------------------------------------------------------------------


def _dtypes(step: Step, function: FunctionDef) -> Callable[[str], int]:
    """Tells the dtype, as a number, of an edge of a body."""
    arguments = {each.name: each.type for each in function.signature.input_arg}
    nodes = {node.name: node for node in function.node_def}

    def of(text: str) -> int:
        name, _, rest = text.partition(":")
        if name in arguments:
            return arguments[name]
        node, (output, _, index) = nodes[name], rest.partition(":")
        if node.op in step.library:
            return next(each.type for each in step.library[node.op].signature.output_arg if each.name == output)
        definition: Any = op_def_registry.get(node.op)
        argument = next(each for each in definition.output_arg if each.name == output)
        if argument.type_list_attr:
            return node.attr[argument.type_list_attr].list.type[int(index)]
        return node.attr[argument.type_attr].type if argument.type_attr else argument.type

    return of


def _new_function(arguments: Sequence[tuple[str, int]], results: Sequence[tuple[str, int]]) -> FunctionDef:
    """A function without nodes, of arguments (name, dtype) and results (edge, dtype)."""
    made = FunctionDef()
    made.signature.name = f"made_{next(_serial)}"
    made.signature.is_stateful = True
    for name, dtype in arguments:
        made.signature.input_arg.add(name=name, type=dtype)  # pyright: ignore[reportArgumentType]
    for i, (edge, dtype) in enumerate(results):
        made.signature.output_arg.add(name=f"r{i}", type=dtype)  # pyright: ignore[reportArgumentType]
        made.ret[f"r{i}"] = edge
    return made


def _finish(function: FunctionDef) -> None:
    """Lets a call of a function wait for all of its nodes."""
    function.signature.ClearField("control_output")
    function.control_ret.clear()
    for i, node in enumerate(function.node_def):
        function.signature.control_output.append(f"done_{i}")
        function.control_ret[f"done_{i}"] = node.name


def _caller(op: str, name: str, inputs: Sequence[str], functions: Mapping[str, str]) -> NodeDef:
    node = NodeDef(name=name, op=op, input=inputs)
    for attribute, function in functions.items():
        node.attr[attribute].func.name = function
    node.attr[TAG].s = name.encode()
    return node


def _set_types(node: NodeDef, **types: Sequence[int]) -> None:
    for attribute, numbers in types.items():
        node.attr[attribute].list.SetInParent()
        node.attr[attribute].list.type.extend(numbers)  # pyright: ignore[reportArgumentType]


def outline(step: Step, make: random.Random) -> Step | None:
    """Moves a random part of a random body into a function of its own; None where no body has a part to move."""
    made = step.copy()
    bodies = [each for each in made.functions if len(each.node_def) > 1 and not _has_v1_loop(each)]
    if not bodies:
        return None
    function = make.choice(bodies) if make.random() < 0.5 else max(bodies, key=lambda each: len(each.node_def))
    order = _random_order(function, make)
    # Between any two places of an order in which the nodes can run, there is nothing that a path leaves and enters.
    first, last = sorted(make.sample(range(len(order) + 1), 2))
    moved = order[first:last]
    inside, name = {node.name for node in moved}, f"outlined_{next(_serial)}"
    dtype = _dtypes(made, function)
    texts = [text for node in moved for text in node.input if _source(text) not in inside]
    given = {text: f"arg_{i}" for i, text in enumerate(dict.fromkeys(t for t in texts if not t.startswith("^")))}
    outside = [*order[:first], *order[last:]]
    wanted = [text for node in outside for text in node.input if not text.startswith("^")]
    results = [text for text in dict.fromkeys([*wanted, *function.ret.values()]) if _source(text) in inside]
    body = _new_function([(arg, dtype(text)) for text, arg in given.items()], [(each, dtype(each)) for each in results])
    for node in moved:
        copy = _node(node)
        copy.ClearField("input")
        copy.input.extend(given.get(t, t) for t in node.input if t in given or _source(t) in inside)
        if "_class" in copy.attr:
            del copy.attr["_class"]
        body.node_def.append(copy)
    _finish(body)
    controls = dict.fromkeys(text for text in texts if text.startswith("^"))
    call = _caller("StatefulPartitionedCall", name, [*given, *controls], {"f": body.signature.name})
    _set_types(call, Tin=[dtype(each) for each in given], Tout=[dtype(each) for each in results])
    new = {text: f"{name}:output:{i}" for i, text in enumerate(results)}
    kept = [_node(node) for node in outside]
    for node in kept:
        inputs = [f"^{name}" if t.startswith("^") and _source(t) in inside else new.get(t, t) for t in node.input]
        node.ClearField("input")
        node.input.extend(
            dict.fromkeys(inputs)
            if f"^{name}" in inputs and len(set(inputs)) == len(node.input)
            else _unique_controls(inputs)
        )
        if "_class" in node.attr:
            del node.attr["_class"]
    _set_nodes(function, [*kept[:first], call, *kept[first:]])
    _redirect(function, new, inside, [name])
    made.library[body.signature.name] = body
    return made


def _unique_controls(inputs: Sequence[str]) -> list[str]:
    data = [text for text in inputs if not text.startswith("^")]
    return data + list(dict.fromkeys(text for text in inputs if text.startswith("^")))


def _redirect(function: FunctionDef, new: Mapping[str, str], gone: Iterable[str], ends: Sequence[str]) -> None:
    """Leads a body's results and its end to what took the place of nodes that are gone."""
    for result, text in list(function.ret.items()):
        function.ret[result] = new.get(text, text)
    gone = set(gone)
    for output, node in list(function.control_ret.items()):
        if node in gone:
            function.control_ret[output] = ends[0] if ends else node
    missing = [end for end in ends if end not in function.control_ret.values()]
    for i, end in enumerate(missing):
        output = f"end_{next(_serial)}_{i}"
        function.signature.control_output.append(output)
        function.control_ret[output] = end


def inline(step: Step, make: random.Random) -> Step | None:
    """Puts the body of a called function in place of a call; None where nothing is called."""
    made = step.copy()
    calls = [(body, node) for body in made.functions for node in body.node_def if _can_inline(made, node)]
    if not calls:
        return None
    function, call = make.choice(calls)
    name, prefix = call.name, f"inlined_{next(_serial)}"
    body = made.library[call.attr["f"].func.name]
    controls = [text for text in call.input if text.startswith("^")]
    given = dict(zip((a.name for a in body.signature.input_arg), call.input, strict=False))

    def moved(text: str) -> str:
        bare = text.removeprefix("^")
        if _source(text) in given:
            source = given[_source(text)]
            return f"^{_source(source)}" if text.startswith("^") else source
        return f"^{prefix}/{bare}" if text.startswith("^") else f"{prefix}/{bare}"

    nodes = []
    for node in body.node_def:
        copy = _node(node)
        copy.name = f"{prefix}/{node.name}"
        inputs = _unique_controls([*map(moved, node.input), *controls])
        copy.ClearField("input")
        copy.input.extend(inputs)
        if "_class" in copy.attr:
            del copy.attr["_class"]
        nodes.append(copy)
    new = {f"{name}:output:{i}": moved(body.ret[each.name]) for i, each in enumerate(body.signature.output_arg)}
    ends = [node.name for node in nodes]
    others = [_node(node) for node in function.node_def if node.name != name]
    for node in others:
        waits = any(text == f"^{name}" for text in node.input)
        inputs = [new.get(text, text) for text in node.input if text != f"^{name}"]
        inputs += [f"^{end}" for end in ends] + controls if waits else []
        node.ClearField("input")
        node.input.extend(_unique_controls(inputs))
        if "_class" in node.attr:
            del node.attr["_class"]
    waited = name in function.control_ret.values()
    for output in [each for each, node in function.control_ret.items() if node == name]:
        del function.control_ret[output]
        function.signature.control_output.remove(output)
    _set_nodes(function, [*nodes, *others])
    _redirect(function, new, (), ends if waited else ())
    return made


def _can_inline(step: Step, node: NodeDef) -> bool:
    body = step.library.get(node.attr["f"].func.name) if node.op in _CALLS else None
    return body is not None and "_XlaMustCompile" not in body.attr and "_XlaMustCompile" not in node.attr


def loop_once(step: Step, make: random.Random) -> Step | None:
    """Wraps the body in a loop of one turn; None where a result cannot be carried by a loop."""
    del make
    arguments, results = _signature(step)
    if any(dtype in (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum) for _, dtype in results):
        return None
    made = step.copy()
    body = _copy(made.root)
    given = [name for name, _ in arguments]
    types = [tf.bool.as_datatype_enum, *(d for _, d in arguments), *(d for _, d in results)]
    # The body takes, besides its arguments, whether it ran and what it made before.
    former = list(body.signature.input_arg)
    body.signature.ClearField("input_arg")
    body.signature.input_arg.add(name="ran", type=tf.bool.as_datatype_enum)
    body.signature.input_arg.extend(former)
    for i, (_, dtype) in enumerate(results):
        body.signature.input_arg.add(name=f"before_{i}", type=dtype)  # pyright: ignore[reportArgumentType]
    body.node_def.append(_constant("now_ran", True, tf.bool.as_datatype_enum))
    outputs = [("now_ran:output:0", types[0]), *arguments, *((body.ret[name], d) for name, d in results)]
    turned = _new_function([(each.name, each.type) for each in body.signature.input_arg], outputs)
    turned.node_def.extend(body.node_def)
    _finish_as(turned, body)
    condition = _new_function([(f"c{i}", dtype) for i, dtype in enumerate(types)], [("not:y:0", types[0])])
    condition.node_def.append(_caller("LogicalNot", "not", ["c0"], {}))
    starts = [
        _constant("start", False, types[0]),
        *(_constant(f"start_{i}", None, d) for i, (_, d) in enumerate(results)),
    ]
    inputs = ["start:output:0", *given, *(f"start_{i}:output:0" for i in range(len(results)))]
    loop = _caller("While", "loop", inputs, {"cond": condition.signature.name, "body": turned.signature.name})
    _set_types(loop, T=types)
    loop.attr["output_shapes"].list.SetInParent()
    for _ in types:
        loop.attr["output_shapes"].list.shape.add().unknown_rank = True
    loop.attr["parallel_iterations"].i = 10
    skip = 1 + len(arguments)
    _replace_root(made, [*starts, loop], [f"loop:output:{skip + i}" for i in range(len(results))], "loop")
    made.library |= {turned.signature.name: turned, condition.signature.name: condition}
    return made


def branch_taken(step: Step, make: random.Random) -> Step | None:
    """Wraps the body in a branch that is always taken; None where the other one cannot make a result."""
    arguments, results = _signature(step)
    if any(dtype in (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum) for _, dtype in results):
        return None
    made = step.copy()
    body = _copy(made.root)
    taken = _new_function(arguments, [(body.ret[name], dtype) for name, dtype in results])
    taken.node_def.extend(body.node_def)
    _finish_as(taken, body)
    other = _new_function(arguments, [(f"zero_{i}:output:0", dtype) for i, (_, dtype) in enumerate(results)])
    other.node_def.extend(_constant(f"zero_{i}", None, dtype) for i, (_, dtype) in enumerate(results))
    then = make.random() < 0.5
    branches = (taken, other) if then else (other, taken)
    predicate = _constant("predicate", then, tf.bool.as_datatype_enum)
    functions = dict(zip(("then_branch", "else_branch"), (each.signature.name for each in branches), strict=True))
    branch = _caller("If", "branch", ["predicate:output:0", *(name for name, _ in arguments)], functions)
    _set_types(branch, Tin=[d for _, d in arguments], Tout=[d for _, d in results])
    branch.attr["Tcond"].type = tf.bool.as_datatype_enum
    branch.attr["output_shapes"].list.SetInParent()
    for _ in results:
        branch.attr["output_shapes"].list.shape.add().unknown_rank = True
    _replace_root(made, [predicate, branch], [f"branch:output:{i}" for i in range(len(results))], "branch")
    made.library |= {each.signature.name: each for each in branches}
    return made


def _signature(step: Step) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    signature = step.root.signature
    return [(each.name, each.type) for each in signature.input_arg], [
        (each.name, each.type) for each in signature.output_arg
    ]


def _finish_as(function: FunctionDef, like: FunctionDef) -> None:
    function.signature.control_output.extend(like.signature.control_output)
    function.control_ret.update(like.control_ret)


def _constant(name: str, value: bool | None, dtype: int) -> NodeDef:
    node = NodeDef(name=name, op="Const")
    kind = tf.as_dtype(dtype)
    content = value if value is not None else ("" if kind == tf.string else 0)
    node.attr["dtype"].type = dtype  # pyright: ignore[reportAttributeAccessIssue]
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(content, kind))
    node.attr[TAG].s = name.encode()
    return node


def _replace_root(step: Step, nodes: Sequence[NodeDef], results: Sequence[str], last: str) -> None:
    root = step.root
    _set_nodes(root, nodes)
    for result, text in zip(root.signature.output_arg, results, strict=True):
        root.ret[result.name] = text
    root.signature.ClearField("control_output")
    root.control_ret.clear()
    root.signature.control_output.append("end")
    root.control_ret["end"] = last


TRANSFORMATIONS: Mapping[str, Callable[[Step, random.Random], Step | None]] = {
    "rename": rename,
    "mislead": mislead,
    "permute": permute,
    "outline": outline,
    "inline": inline,
    "loop": loop_once,
    "branch": branch_taken,
}
"""By name, what makes of a step one of the same meaning; None where it cannot."""


# --- Running ----------------------------------------------------------------------------------------------------------


def run(root: FunctionDef, library: Iterable[FunctionDef], arguments: Sequence[Any]) -> list[tf.Tensor]:
    """Runs functions under names of their own, so that TensorFlow cannot take one for another.

    Args:
        root: the body.
        library: the functions that it calls.
        arguments: its arguments, flat, captures included.
    """
    functions = [_copy(root), *map(_copy, library)]
    new = {each.signature.name: f"run_{next(_serial)}_{each.signature.name}" for each in functions}
    for function in functions:
        function.signature.name = new[function.signature.name]
        for node in function.node_def:
            for value in node.attr.values():
                _rename_functions(value, new)
    runtime: Any = context.context()
    for function in functions:
        runtime.add_function_def(function)
    try:
        types = [each.type for each in functions[0].signature.output_arg]
        made = tf.raw_ops.StatefulPartitionedCall(
            args=list(arguments),
            Tout=[tf.as_dtype(each) for each in types],
            f=_Named(functions[0].signature.name),
            config_proto=_CONFIG,
        )
    finally:
        for function in functions:
            runtime.remove_function(function.signature.name)
    return made if isinstance(made, (list, tuple)) else [made] if types else []


@dataclass(frozen=True)
class _Named:
    name: str
