# pyright: basic
"""Reads steps of this process: the graph of a traced function, and its variables.

TensorFlow internals used here, and why there is no public way:

* ``ConcreteFunction`` and ``Function`` (the classes of traced and of untraced ``tf.function`` objects),
  ``_jit_compile``, ``_reduce_retracing``, ``_list_all_concrete_functions``: the options and traces of a step, which
  have no public accessor.
* ``BaseResourceVariable`` and ``_handle``: which variable a captured handle belongs to, without running anything.
* ``_distributed_container``: the distributed variable that a captured copy belongs to.

Checked on TensorFlow 2.16, 2.17, 2.18, 2.19, 2.20 and 2.21 (tools/test_versions).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import concrete_function, polymorphic_function
from tensorflow.python.ops import resource_variable_ops

from graphwd.errors import GraphwdError, StepError
from graphwd.graph.graph import Graph, Variable, differentiable, labels
from graphwd.steps.holders import Holders, is_keras_model, roots_of

ConcreteFunction = concrete_function.ConcreteFunction


def is_concrete(step: object) -> bool:
    """Whether a step is traced already."""
    return isinstance(step, ConcreteFunction)


def refuse_no_step(step: Any) -> None:
    """Refuses an object that is not a training step.

    Args:
        step: the object.

    Raises:
        StepError: it cannot be called, or is a model.
    """
    fits = is_keras_model(getattr(step, "__self__", None)) and step.__name__ in ("fit", "train_on_batch")
    if fits or is_keras_model(step) or is_keras_model(getattr(step, "python_function", None)):
        raise StepError(
            "a training step must be a function, got a Keras model; graphwd.keras.attach(model, policy) gives its fit "
            "weight decay, graphwd.keras.plan(model, policy) says what that will do, and graphwd.keras.suggest(model) "
            "writes a first policy; for a loop of your own give the function that updates the weights"
        )
    if isinstance(step, type):
        raise StepError(
            f"a training step must be a function, got the class {step.__name__}; "
            "give a function or an instance's method"
        )
    if not callable(step):
        raise StepError(f"a training step must be a function, got a {type(step).__name__}")


def is_polymorphic(step: object) -> bool:
    """Whether a step is a ``tf.function``."""
    return isinstance(step, polymorphic_function.Function)


def options(step: Any) -> dict[str, Any]:
    """The arguments of ``tf.function`` that make a new one behave as an existing one."""
    return {
        "input_signature": step.input_signature,
        "jit_compile": step._jit_compile,
        "reduce_retracing": step._reduce_retracing,
    }


def traces(step: Any) -> list[ConcreteFunction]:
    """The concrete functions that a ``tf.function`` holds already."""
    return [remember(step, traced) for traced in step._list_all_concrete_functions()]


def trace(step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ConcreteFunction:
    """Traces a ``tf.function``.

    Args:
        step: the ``tf.function``.
        args: example arguments or specs.
        kwargs: likewise.

    Returns:
        The concrete function.

    Raises:
        StepError: the step does not trace with these arguments.
    """
    try:
        return remember(step, step.get_concrete_function(*args, **kwargs))
    except GraphwdError:
        raise
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, TypeError) and not args and not kwargs:
            hint = "; give its arguments, or specs of them"
        elif "'NoneType' object has no attribute" in str(error):
            hint = "; a tf.function holds the object whose method it is weakly: keep that object alive"
        raise StepError(f"the step does not trace: {type(error).__name__}: {error}{hint}") from error


ROOT = "graphwd_root"
"""The attribute of a ``tf.function`` that refers, weakly, to the object from which the paths of its variables begin."""

_OF = "graphwd_traced_from"
"""The attribute of a trace that refers, weakly, to the function that it was traced from."""


def remember(step: Any, traced: ConcreteFunction) -> ConcreteFunction:
    """Stores in a trace a weak reference to its function, from which the holders of its variables are found."""
    function = step.python_function
    refer = weakref.WeakMethod if isinstance(function, types.MethodType) else weakref.ref
    reference: Any = getattr(step, ROOT, None)
    with contextlib.suppress(TypeError):  # some callables have no weak references
        setattr(traced, _OF, (reference is not None, reference or refer(function)))
    return traced


def rooted(traced: ConcreteFunction, root: Any) -> ConcreteFunction:
    """Sets the object from which the paths of a trace's variables begin; the trace refers to it weakly."""
    setattr(traced, _OF, (True, weakref.ref(root)))
    return traced


def _roots(step: ConcreteFunction) -> list[tuple[str, Any]]:
    """The objects that a trace's function refers to, by name."""
    is_rooted, reference = getattr(step, _OF, (False, None))
    root = None if reference is None else reference()
    if root is None:
        return []
    return [("", root)] if is_rooted else roots_of(root)


def read(step: ConcreteFunction) -> Graph:
    """Views a concrete function as a graph.

    Args:
        step: the traced training step.

    Returns:
        Its view: body, function library, and which argument is which variable or data.

    Raises:
        StepError: a variable of the step has been deleted.
    """
    function = step.function_def
    names = [argument.name for argument in function.signature.input_arg]
    captures: Any = step.captured_inputs
    first_capture = len(names) - len(captures)
    variables = _Variables(step)
    handles: dict[str, Variable] = {}
    data: list[str] = []
    ranks: dict[str, int] = {}
    specs = list(_specs(step))
    for position, (name, tensor) in enumerate(zip(names, step.inputs, strict=True)):
        if tensor.dtype != tf.resource:
            data.append(name)
            if tensor.shape.rank is not None:
                ranks[name] = tensor.shape.rank
            continue
        if position >= first_capture:
            variable = variables.captured(captures[position - first_capture])
        else:
            variable = variables.argument(name, specs[position], tensor)
        if variable is not None:
            handles[name] = variable
    return Graph(function, step.graph.as_graph_def().library.function, handles, data, ranks)


def _specs(step: ConcreteFunction) -> Iterator[object]:
    """The specs of a step's tensor arguments, one for each tensor."""
    for spec in tf.nest.flatten(step.structured_input_signature):
        if isinstance(spec, tf.TypeSpec):
            yield from [spec] * len(tf.nest.flatten(spec, expand_composites=True))


def variables_of(step: ConcreteFunction) -> list[tf.Variable]:
    """The variables whose handles a concrete function has captured.

    ``step.variables`` alone is not enough: it lacks variables that the step uses only through their raw handles, as
    legacy optimizers do with their slot variables.

    Args:
        step: the traced step.

    Returns:
        The variables, in the order in which they were captured.

    Raises:
        StepError: one of them has been deleted.
    """
    by_handle: dict[int, Any] = {}
    try:
        watched = step.graph.variables
    except AssertionError:
        raise StepError(
            "a variable of the step has been deleted: a ConcreteFunction does not keep its variables; keep the model, "
            "the optimizer or the tf.function alive"
        ) from None
    for variable in watched:
        for replica in getattr(variable, "_values", None) or (variable,):
            by_handle[id(replica.handle)] = replica
    captures: Any = step.captured_inputs
    handles = {id(tensor): tensor for tensor in captures if tensor.dtype == tf.resource}
    by_handle |= _owners({key: handle for key, handle in handles.items() if key not in by_handle})
    return [by_handle[key] for key in handles if key in by_handle]


_OWNERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""The variables that were found by their handles, by the handle's identity, which is checked before use."""


def _owners(handles: Mapping[int, Any]) -> dict[int, Any]:
    """The variables of handles, by identity.

    A handle does not know its variable. All objects are searched for it, once for each handle, which takes a good part
    of a second in a large process.
    """
    known = {key: _OWNERS.get(key) for key in handles}
    owners = {key: owner for key, owner in known.items() if owner is not None and _handle(owner) is handles[key]}
    missing = handles.keys() - owners.keys()
    if missing:
        is_variable: dict[type, bool] = {}
        for candidate in gc.get_objects():
            kind = type(candidate)
            if kind not in is_variable:
                is_variable[kind] = issubclass(kind, resource_variable_ops.BaseResourceVariable)
            if is_variable[kind] and id(_handle(candidate)) in missing:
                owners[id(_handle(candidate))] = candidate
        _OWNERS.update({key: owners[key] for key in missing if key in owners})
    return owners


def _handle(variable: Any) -> Any:
    return variable.__dict__.get("_handle")


class _Variables:
    """Numbers the variables of a step, by handle, since names need not be unique."""

    def __init__(self, step: ConcreteFunction) -> None:
        self._by_handle = {id(variable.handle): variable for variable in variables_of(step)}
        self._numbered: dict[int, Variable] = {}
        self._seen = _named(map(_primary, self._by_handle.values()), _roots(step))

    def captured(self, tensor: Any) -> Variable | None:
        """The variable of a captured handle."""
        variable = self._by_handle.get(id(tensor))
        if variable is None:
            return None
        return self._number(tensor, variable, self._seen[id(_primary(variable))], variable.handle.device)

    def argument(self, name: str, spec: Any, tensor: Any) -> Variable | None:
        """The variable of a handle that is an argument of the step."""
        if not hasattr(spec, "trainable"):
            return None
        return self._number(tensor, spec, _Seen(name, bool(spec.trainable)), "")

    def _number(self, tensor: Any, like: Any, seen: _Seen, device: str) -> Variable:
        key = id(tensor)
        if key not in self._numbered:
            self._numbered[key] = _variable(len(self._numbered), like, seen, key, device)
        return self._numbered[key]


@dataclass(slots=True)
class _Seen:
    """A variable as its library shows it."""

    name: str
    trainable: bool
    path: str | None = None
    reached_by: Callable[[str], bool] | None = None
    other_name: str | None = None
    label: str = ""


def _named(variables: Iterable[Any], roots: Iterable[tuple[str, Any]]) -> dict[int, _Seen]:
    """Variables as their libraries show them, by identity."""
    by_id = {id(variable): variable for variable in variables}
    holders = Holders(roots)
    holders.look_for(list(by_id.values()))
    seen = {key: _seen(variable, holders) for key, variable in by_id.items()}
    told = [shown for shown in seen.values() if shown.trainable]
    for shown, label in zip(told, labels([(shown.name, shown.path) for shown in told]), strict=True):
        shown.label = label
    return seen


def held_by(root: Any, variables: Sequence[Any]) -> list[Variable]:
    """Variables as a trace of one of a root's methods would show them.

    Args:
        root: an object, from which their paths begin.
        variables: variables of TensorFlow or Keras.
    """
    unwrapped = [getattr(variable, "_value", variable) for variable in variables]
    seen = _named(unwrapped, [("", root)])
    return [
        _variable(
            number, variable, seen[id(variable)], id((getattr(variable, "_values", None) or (variable,))[0].handle)
        )
        for number, variable in enumerate(unwrapped)
    ]


def _variable(number: int, like: Any, seen: _Seen, key: int, device: str = "") -> Variable:
    """A variable; ``like`` has its shape and dtype."""
    dimensions = None if like.shape.rank is None else tuple(like.shape.as_list())
    dtype = tf.as_dtype(like.dtype).base_dtype.name
    return Variable(
        number,
        seen.name,
        dimensions,
        dtype,
        seen.trainable and differentiable(dtype),
        seen.path,
        device=device,
        label=seen.label,
        key=key,
        reached_by=seen.reached_by,
        other_name=seen.other_name,
    )


def _seen(variable: Any, holders: Holders) -> _Seen:
    name = variable.name.removesuffix(":0")
    owner, number = holders.owner(variable), holders.number(variable)
    seen = _Seen(name, bool(variable.trainable) and id(variable) not in holders.frozen)
    if owner is not None:
        seen.name, seen.trainable = owner.path, bool(owner.trainable)
        seen.other_name = name if name != owner.path else None
    if number is not None:
        seen.path = holders.objects.path(number)
        seen.reached_by = functools.partial(holders.objects.reached_by, number)
    return seen


def _primary(variable: Any) -> Any:
    """The variable that a user sees: for a replica's copy, the distributed variable that it belongs to."""
    for holder in (variable, variable.handle):
        container = getattr(holder, "_distributed_container", None)
        if callable(container) and (distributed := container()) is not None:
            return distributed
    return variable


def undecorated(step: Any) -> Any:
    """The original of a decorated step; any other step itself."""
    return getattr(step, "graphwd_original", step)
