"""A read-only view of a traced step: its function bodies, their call sites, and its variables.

This module alone knows which functions a node calls.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from graphwd.errors import GraphError
from graphwd.graph.body import Body, Node
from graphwd.graph.gradient_scopes import GradientScopes
from graphwd.graph.ops import CALL_OPS, CallKind

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

MARK = "_graphwd"
"""The attribute that every injected node carries; its value is the node's role."""

RECORD = "_graphwd_decay"
"""The attribute of each injected read that says, as JSON, which decay it belongs to and how to take that out again."""

NAME = "_graphwd_name"
"""The attribute of each argument of graphwd's own that says what it is, in words."""

DTYPE_NUMBERS: Mapping[str, int] = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "string": 7, "complex64": 8, "int64": 9,
    "bool": 10, "bfloat16": 14, "uint16": 17, "complex128": 18, "float16": 19, "resource": 20, "variant": 21,
    "uint32": 22, "uint64": 23,
}  # fmt: skip
"""Of tensorflow/core/framework/types.proto; written out so that a rewrite needs no import of TensorFlow."""

DTYPE_NAMES: Mapping[int, str] = {number: name for name, number in DTYPE_NUMBERS.items()}


def differentiable(dtype: str) -> bool:
    """Whether a variable of a dtype can have a gradient; counters, too, are ``trainable`` by default."""
    return not dtype.startswith(("int", "uint", "bool", "string"))


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the step.

    Attributes:
        id: its number among the step's variables: names are not identities, two variables may share one.
        name: the name that a user sees, without ``:0``.
        shape: its dimensions, None for one that is unknown; None where not even the rank is known.
        dtype: the name of its dtype, such as ``float32``.
        trainable: whether it is trained, which takes a dtype that is `differentiable`.
        path: its path in the object graph, where one is known.
        reference: whether it is a v1 reference variable, whose handle is the variable itself.
        device: the device that holds it, where one is known.
        label: text that distinguishes it from other variables of its name; empty where there are none.
        key: the identity of its handle, while the step is alive; None where it is in a file.
        reached_by: whether a glob is a path to it in the object graph; None where no path is known.
        other_name: TensorFlow's name for it, where its library shows another name.
    """

    id: int
    name: str
    shape: tuple[int | None, ...] | None
    dtype: str
    trainable: bool
    path: str | None = None
    reference: bool = False
    device: str = ""
    label: str = ""
    key: int | None = field(default=None, repr=False, compare=False)
    reached_by: Callable[[str], bool] | None = field(default=None, repr=False, compare=False)
    other_name: str | None = None

    @property
    def shown(self) -> str:
        """Its name in tables and messages, which no other trainable variable of the step has."""
        return f"{self.name} ({self.label})" if self.label else self.name

    @property
    def rank(self) -> int | None:
        """Its number of dimensions."""
        return None if self.shape is None else len(self.shape)

    @property
    def on_server(self) -> bool:
        """Whether it lies on a parameter server, where several workers write without waiting for each other."""
        return on_server(self.device)


def on_server(device: str) -> bool:
    """Whether a device is of a parameter server."""
    return "job:ps" in device.split("/")


def labels(named: Sequence[tuple[str, str | None]]) -> list[str]:
    """Makes labels that distinguish variables of one name.

    Args:
        named: the name of each variable, and its path where one is known.

    Returns:
        For each variable that shares its name with others, its path, or a number where the path is missing or shared,
        too; for any other variable an empty text.
    """
    names, both = Counter(name for name, _ in named), Counter(named)
    seen: Counter[str] = Counter()
    result: list[str] = []
    for name, path in named:
        seen[name] += 1
        if names[name] == 1:
            result.append("")
        elif path is not None and both[name, path] == 1:
            result.append(f"path {path}")
        else:
            result.append(f"{seen[name]} of {names[name]}")
    return result


def all_shown(variables: Sequence[Variable]) -> dict[int, str]:
    """What to call every variable of a step, by its number: `Variable.shown`, and slot variables told apart, too.

    Args:
        variables: all variables of the step.
    """
    texts = labels([(variable.name, variable.path) for variable in variables])
    return {
        variable.id: variable.shown
        if variable.trainable or variable.label
        else dataclasses.replace(variable, label=text).shown
        for variable, text in zip(variables, texts, strict=True)
    }


class Callee(NamedTuple):
    """One function that a node calls.

    Attributes:
        attribute: the attribute of the node that names it.
        position: its position in that attribute, where it is a list.
        function: its name in the library.
    """

    attribute: str
    position: int
    function: str


class Graph:
    """A traced step.

    Attributes:
        root: the body of the step itself.
        library: every function that the step may call, by name.
        handles: for every argument of the root that is a variable's handle, the variable.
        data: the arguments of the root that carry the step's data, and its captured tensors.
        ranks: the number of dimensions of each of these arguments, where known.
        variables: every variable of the step, by number.
    """

    def __init__(
        self,
        root: FunctionDef,
        library: Iterable[FunctionDef],
        handles: Mapping[str, Variable],
        data: Iterable[str],
        ranks: Mapping[str, int] = MappingProxyType({}),
        like: Graph | None = None,
    ) -> None:
        """Makes the view; bodies are parsed when they are first asked for.

        Args:
            root: the step itself, as a function.
            library: the functions that it may call.
            handles: the arguments of ``root`` that are variables' handles.
            data: the arguments of ``root`` that carry data.
            ranks: the number of dimensions of each of these arguments, where known.
            like: a view of a step that calls some of the same functions; the bodies it has parsed are reused.
        """
        self.root_function = root
        self.library: Mapping[str, FunctionDef] = {function.signature.name: function for function in library}
        self._bodies: dict[str, Body] = {} if like is None else like.bodies_of(self.library)
        self.handles = dict(handles)
        self.data = frozenset(data)
        self.ranks = dict(ranks)
        self.variables: tuple[Variable, ...] = tuple(
            sorted(set(self.handles.values()), key=lambda variable: variable.id)
        )
        assert all(place == variable.id for place, variable in enumerate(self.variables)), "numbers must not have gaps"

    def with_slots(self, slots: Collection[int]) -> Graph:
        """A view of the same step in which some trainable variables count as slot variables.

        Args:
            slots: their numbers.
        """
        view = copy.copy(self)
        view.variables = tuple(
            dataclasses.replace(variable, trainable=variable.trainable and variable.id not in slots)
            for variable in self.variables
        )
        view.handles = {name: view.variables[variable.id] for name, variable in self.handles.items()}
        return view

    @property
    def is_main(self) -> bool:
        """Whether it is the main graph of a session, which runs what it is asked for, and not all of it."""
        return not self.root_function.signature.output_arg and not self.root_function.control_ret

    @functools.cached_property
    def is_rewritten(self) -> bool:
        """Whether it, or any function of the library, holds nodes that graphwd injected."""
        functions = (self.root_function, *self.library.values())
        return any(MARK in node.attr for function in functions for node in function.node_def)

    @functools.cached_property
    def gradient_scopes(self) -> GradientScopes:
        """The name scopes in which gradients are computed, as far as names can tell."""
        return GradientScopes((self.root_function, *self.library.values()))

    @functools.cached_property
    def root(self) -> Body:
        """The body of the step itself."""
        return Body(self.root_function)

    def body(self, function: str) -> Body:
        """The parsed body of a library function.

        Args:
            function: its name.

        Returns:
            The body.

        Raises:
            GraphError: the library holds no such function.
        """
        if function not in self.library:
            raise GraphError(f"the graph calls the function '{function}', which its library does not hold")
        if function not in self._bodies:
            self._bodies[function] = Body(self.library[function])
        return self._bodies[function]

    def bodies_of(self, library: Mapping[str, FunctionDef]) -> dict[str, Body]:
        """The bodies parsed so far of functions that another library shares; a function of the same name is not enough.

        Args:
            library: its functions, by name.
        """
        return {name: body for name, body in self._bodies.items() if library.get(name) is self.library[name]}

    def last_size(self, argument: str) -> int:
        """The size of the last dimension of an argument of the root, -1 where it is not known."""
        position = self.root.arguments.index(argument)
        shapes = self.root_function.arg_attr[position].attr["_output_shapes"].list.shape
        return shapes[0].dim[-1].size if shapes and shapes[0].dim else -1

    def forget_bodies(self) -> None:
        """Drops the parsed bodies, which take more memory than the functions; they are parsed again when needed."""
        self._bodies.clear()
        vars(self).pop("root", None)

    def callees(self, node: Node | NodeDef) -> tuple[Callee, ...]:
        """The functions that a node calls, as far as graphwd follows calls.

        Args:
            node: a node of any body, parsed or not.

        Returns:
            Its functions, in the order of its attributes; empty where the node calls none.
        """
        call = CALL_OPS.get(node.op)
        if call is None:
            return ()
        proto = node.proto if isinstance(node, Node) else node
        callees = tuple(callee for attribute in call.attributes for callee in _callees(proto, attribute))
        if len(callees) < len(call.attributes):
            raise GraphError(f"the node '{node.name}' ({node.op}) does not name the functions that it calls")
        return callees

    def functions_of(self, node: Node) -> Iterator[str]:
        """Names of all functions that any attribute of a node refers to, followed by graphwd or not."""
        for value in node.proto.attr.values():
            if value.func.name:
                yield value.func.name
            for function in value.list.func:
                yield function.name


def state_count(node: Node) -> int:
    """Counts the loop-carried values that a dataset op with a function feeds back.

    Args:
        node: a node whose op is of `CallKind.SCAN`.
    """
    return len(node.proto.attr["Tstate"].list.type)


def is_compiled(function: FunctionDef) -> bool:
    """Whether XLA compiles a function, with all that it calls."""
    return "_XlaMustCompile" in function.attr and function.attr["_XlaMustCompile"].b


def call_kind(node: Node) -> CallKind:
    """How a node runs the functions that it calls."""
    return CALL_OPS[node.op].kind


def _callees(node: NodeDef, attribute: str) -> Iterator[Callee]:
    if attribute not in node.attr:
        return
    value = node.attr[attribute]
    if value.func.name:
        yield Callee(attribute, 0, value.func.name)
    for position, function in enumerate(value.list.func):
        yield Callee(attribute, position, function.name)
