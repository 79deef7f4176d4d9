# pyright: basic
"""Finds the holders of a Python step's variables: the Keras variables that own them, and the paths that lead to them.

Keras 3 keeps a ``tf.Variable`` in a variable of its own, which knows the path and whether it is trained; the
``tf.Variable`` knows neither. So the objects that the step can reach are followed, from the instance whose method it
is, or from the closure and the globals of its function. Owners not found so are looked for among all objects.

TensorFlow internals used here, and why there is no public way:

* ``tf.__internal__.tracking.Trackable``: what modules, layers, optimizers and checkpoints have in common.
* ``weakrefself_target__``: the instance of a ``tf.function`` that is a method.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from graphwd.graph.object_graph import ObjectGraph

_OTHERS = frozenset(sys.stdlib_module_names) | {"numpy", "tensorflow", "keras", "tf_keras", "graphwd"}
"""Libraries whose objects are followed only where a checkpoint would follow them."""

_BOOKKEEPING = ("_self_", "_trainable_variables", "_trainable_weights", "_non_trainable_", "_obj_reference_counts")
"""Attributes of layers and optimizers that list variables which other objects hold."""

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, type})
"""Types of values that hold no variable."""

_MOST = 100_000
"""How many elements a list or dictionary may have to count as a part of a model."""


class Holders:
    """The holders of variables.

    Attributes:
        frozen: identities of the variables of tf_keras layers that are not trained.
        objects: the objects that were followed.
    """

    def __init__(self, roots: Iterable[tuple[str, Any]]) -> None:
        """Follows the objects that some roots reach.

        Args:
            roots: objects and their names; a root without a name is followed as if its attributes were roots.
        """
        self._owners: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self.frozen: set[int] = set()
        self._keep: list[Any] = []  # identities are unique among living objects
        self._owned: list[Any] = []
        self._edges: list[list[tuple[str, int]]] = [[]]
        waiting: deque[int] = deque()
        for name, root in roots:
            if name:
                self._refer(0, name, root, waiting)
            else:
                self._numbers[id(root)] = 0
                self._follow(0, root, waiting)
        while waiting:
            number = waiting.popleft()
            self._follow(number, self._keep[number - 1], waiting)
        self.objects = ObjectGraph(self._edges)

    def owner(self, variable: Any) -> Any:
        """The Keras variable that owns a ``tf.Variable``; None where none does."""
        return self._owners.get(id(variable))

    def number(self, variable: Any) -> int | None:
        """The number of a variable among the objects; None where no path leads to it."""
        number = self._numbers.get(id(variable))
        return number if number is not None and self.objects.path(number) is not None else None

    def look_for(self, variables: Sequence[Any]) -> None:
        """Looks for the owners of variables among all objects, if no path leads to those."""
        missing = [variable for variable in variables if id(variable) not in self._owners]
        self._owners.update(_owners_anywhere(missing))

    def _refer(self, number: int, name: str, value: Any, waiting: deque[int]) -> None:
        if type(value) in _PLAIN:  # most are
            return
        value = _unwrapped(value)
        if not _is_part(value):
            return
        child = self._numbers.get(id(value))
        if child is None:
            child = self._numbers[id(value)] = len(self._edges)
            self._edges.append([])
            self._keep.append(value)
            waiting.append(child)
        if not name.startswith(_BOOKKEEPING):
            self._edges[number].append((name, child))

    def _follow(self, number: int, value: Any, waiting: deque[int]) -> None:
        if _is_keras_variable(value):
            if (owned := value._value) is not None:
                self._owners[id(owned)] = value
                self._numbers.setdefault(id(owned), number)
                self._owned.append(owned)
            return
        if isinstance(value, tf.Variable):
            return
        if _is_frozen(value):
            self.frozen.update(id(_unwrapped(weight)) for weight in value._trainable_weights)
        for name, child in _children(value):
            self._refer(number, name, child, waiting)


def roots_of(step: Any) -> list[tuple[str, Any]]:
    """The objects that a step refers to.

    Args:
        step: the Python function of a ``tf.function``, or a bound method.

    Returns:
        Objects and their names: the instance, without a name, and the variables of its closure and its module.
    """
    instance, innermost = _instance(step), step
    while (wrapped := getattr(innermost, "__wrapped__", None)) is not None:
        innermost = wrapped
    if instance is None and not isinstance(innermost, (types.FunctionType, functools.partial)):
        instance = innermost  # an object that can be called
    named = [*_of_function(innermost), *(_of_function(step) if innermost is not step else ())]
    return named if instance is None else [("", instance), *named]


def _unwrapped(value: Any) -> Any:
    """The Python function of a ``tf.function``, which has the closure; the inner variable of a wrapped one."""
    if isinstance(value, tf.Variable):
        return getattr(value, "_variable", value)  # tf_keras wraps the weights of mixed precision
    if isinstance(value, (list, dict, tuple, set)) or not callable(value):
        return value  # the next questions are slow
    if isinstance(value, tf.types.experimental.ConcreteFunction):
        return None
    if isinstance(value, tf.types.experimental.PolymorphicFunction):
        return getattr(value, "python_function", None)
    return value


def _is_part(value: Any) -> bool:
    """Whether an object may hold variables, or is one."""
    if value is None or isinstance(value, (str, bytes, int, float, type, tf.Tensor)):
        return False
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return 0 < len(value) <= _MOST  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        return True
    if isinstance(value, (tf.Variable, tf.__internal__.tracking.Trackable)) or _is_keras_metric(value):
        return True
    has_attributes = hasattr(value, "__dict__") or hasattr(type(value), "__slots__")
    return has_attributes and type(value).__module__.partition(".")[0] not in _OTHERS


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((str(i), child) for i, child in enumerate(value))
    elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        yield from _of_function(value)
        if (instance := _instance(value)) is not None:
            yield "self", instance
    elif _is_keras_metric(value):
        yield "variables", value.variables
    else:
        yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    if is_keras_model(value):
        yield "layers", value.layers  # of a Sequential without the input, which is among its `_layers`
    slots = [name for name in dict.fromkeys(_slots(type(value))) if hasattr(value, name)]
    for name, child in (*getattr(value, "__dict__", {}).items(), *((name, getattr(value, name)) for name in slots)):
        public = name.lstrip("_")
        if public != name and public != "layers" and isinstance(getattr(type(value), public, None), property):
            yield public, child  # Keras keeps the attribute `kernel` in `_kernel`
        yield name, child


def _slots(kind: type) -> Iterator[str]:
    """The names in the ``__slots__`` of a class and its bases."""
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _of_function(function: Any) -> Iterator[tuple[str, Any]]:
    """The objects that a function refers to by name: its closure, its globals, its defaults, the wrapped function."""
    if isinstance(function, functools.partial):
        yield "func", function.func
        yield "args", function.args
        yield "keywords", function.keywords
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            continue
    names = tuple(dict.fromkeys(_names(function.__code__)))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] not in _OTHERS:
                yield from (
                    (f"{name}.{attribute}", vars(value)[attribute]) for attribute in names if attribute in vars(value)
                )
        elif value is not None:
            yield name, value
    parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
    yield from zip(reversed(parameters), reversed(function.__defaults__ or ()), strict=False)
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        yield "__wrapped__", wrapped


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _instance(function: Any) -> Any:
    """The instance that a method is bound to, also for a method that is a ``tf.function``."""
    while function is not None:
        if isinstance(function, types.MethodType):
            instance = function.__self__
            target = getattr(instance, "weakrefself_target__", None)
            return target() if callable(target) else instance
        function = getattr(function, "__wrapped__", None)
    return None


def _keras_variable_class() -> Any:
    kind = getattr(sys.modules.get("keras"), "Variable", None)
    return kind if isinstance(kind, type) else None


def _is_keras_variable(value: Any) -> bool:
    kind = _keras_variable_class()
    return kind is not None and isinstance(value, kind) and hasattr(value, "_value")


def _is_keras_metric(value: Any) -> bool:
    kind = getattr(getattr(sys.modules.get("keras"), "metrics", None), "Metric", None)
    return isinstance(kind, type) and isinstance(value, kind)


def is_keras_model(value: Any) -> bool:
    """Whether it is a model, or a class of models, of Keras 3 or tf_keras; neither library is imported for that."""
    kinds = [getattr(sys.modules.get(library), "Model", None) for library in ("keras", "tf_keras")]
    of = value if isinstance(value, type) else type(value)
    return any(isinstance(kind, type) and issubclass(of, kind) for kind in kinds)


def _is_frozen(value: Any) -> bool:
    """Whether it is a layer of tf_keras that is not trained; its variables do not say so."""
    kind = getattr(getattr(sys.modules.get("tf_keras"), "layers", None), "Layer", None)
    return isinstance(kind, type) and isinstance(value, kind) and not value._trainable


_KNOWN: dict[int, tuple[weakref.ref[Any], weakref.ref[Any] | None]] = {}
"""By identity of a ``tf.Variable``: the variable, and the Keras variable that owns it, where there is one."""


def _owners_anywhere(variables: Sequence[Any]) -> dict[int, Any]:
    """The Keras variables that own ``tf.Variable``s, by the identities of the latter, among all objects."""
    kind = _keras_variable_class()
    if kind is None:
        return {}
    if any(id(variable) not in _KNOWN for variable in variables):
        # The only fast search is for referrers: an object refers to its class.
        classes = {kind, *_subclasses(kind)}
        owners = {id(referrer._value): referrer for referrer in gc.get_referrers(*classes) if type(referrer) in classes}
        for variable in variables:
            owner = owners.get(id(variable))
            forget = functools.partial(_forget, id(variable))
            _KNOWN[id(variable)] = (weakref.ref(variable, forget), None if owner is None else weakref.ref(owner))
    references = {id(variable): _KNOWN[id(variable)][1] for variable in variables}
    return {key: owner for key, reference in references.items() if reference and (owner := reference()) is not None}


def _forget(key: int, reference: object) -> None:
    if key in _KNOWN and _KNOWN[key][0] is reference:
        del _KNOWN[key]


def _subclasses(kind: type) -> Iterator[type]:
    for subclass in type.__subclasses__(kind):
        yield subclass
        yield from _subclasses(subclass)
