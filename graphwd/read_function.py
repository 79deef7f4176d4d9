"""Reads steps that live in this process: what a traced function does, and which variables it does it to.

TensorFlow internals used here, and why there is no public way:

* ``ConcreteFunction`` and ``Function`` (the classes of traced and of untraced ``tf.function`` objects),
  ``_jit_compile``, ``_reduce_retracing``, ``_list_all_concrete_functions``: the options and traces of a step, which
  have no public accessor.
* ``BaseResourceVariable`` and ``_handle``: which variable a captured handle belongs to, without running anything.
* ``_distributed_container``: the variable whose copy in a replica is captured.

Checked on TensorFlow 2.16, 2.17, 2.18, 2.19, 2.20 and 2.21 (tools/test_versions).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import concrete_function, polymorphic_function
from tensorflow.python.ops import resource_variable_ops

from graphwd.errors import GraphwdError, StepError
from graphwd.graph import Graph, Variable, differentiable

ConcreteFunction = concrete_function.ConcreteFunction


def is_concrete(step: object) -> bool:
    """Whether a step is traced already."""
    return isinstance(step, ConcreteFunction)


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
    return list(step._list_all_concrete_functions())


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
        return step.get_concrete_function(*args, **kwargs)
    except GraphwdError:
        raise
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, TypeError) and not args and not kwargs:
            hint = "; give its arguments, or specs of them"
        elif "'NoneType' object has no attribute" in str(error):
            hint = "; a tf.function holds the object whose method it is weakly: keep that object alive"
        raise StepError(f"the step does not trace: {type(error).__name__}: {error}{hint}") from error


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
    """For every tensor argument of a step, the spec that it belongs to."""
    for spec in tf.nest.flatten(step.structured_input_signature):
        if isinstance(spec, tf.TypeSpec):
            yield from [spec] * len(tf.nest.flatten(spec, expand_composites=True))


def variables_of(step: ConcreteFunction) -> list[tf.Variable]:
    """The variables whose handles a concrete function has captured.

    ``step.variables`` alone is not enough: a variable that the step only touches through its raw handle, as legacy
    optimizers do with their slot variables, is not among them.

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
        for each in getattr(variable, "_values", None) or (variable,):
            by_handle[id(each.handle)] = each
    captures: Any = step.captured_inputs
    handles = [id(tensor) for tensor in captures if tensor.dtype == tf.resource]
    missing = set(handles) - by_handle.keys()
    if missing:
        # The handle does not know its variable, but the variable is alive, or the step could not run.
        for candidate in gc.get_objects():
            if issubclass(type(candidate), resource_variable_ops.BaseResourceVariable):
                handle = id(candidate.__dict__.get("_handle"))
                if handle in missing:
                    by_handle[handle] = candidate
    return [by_handle[handle] for handle in dict.fromkeys(handles) if handle in by_handle]


class _Variables:
    """Numbers the variables of a step: by handle, for names need not be unique."""

    def __init__(self, step: ConcreteFunction) -> None:
        self._by_handle = {id(variable.handle): variable for variable in variables_of(step)}
        self._numbered: dict[int, Variable] = {}

    def captured(self, tensor: Any) -> Variable | None:
        """The variable that a captured tensor is the handle of."""
        found = self._by_handle.get(id(tensor))
        if found is None:
            return None
        name = _primary(found).name.removesuffix(":0")
        return self._number(id(tensor), name, found, found.handle.device)

    def argument(self, name: str, spec: Any, tensor: Any) -> Variable | None:
        """The variable that an argument of the step is the handle of."""
        if not hasattr(spec, "trainable"):
            return None
        return self._number(id(tensor), name, spec, "")

    def _number(self, key: int, name: str, like: Any, device: str) -> Variable:
        """The variable of a handle; ``like`` has its shape and dtype, and says whether it is trained."""
        if key not in self._numbered:
            dimensions = None if like.shape.rank is None else tuple(like.shape.as_list())
            dtype = tf.as_dtype(like.dtype).base_dtype.name
            trainable = bool(like.trainable) and differentiable(dtype)
            self._numbered[key] = Variable(len(self._numbered), name, dimensions, dtype, trainable, device=device)
        return self._numbered[key]


def _primary(variable: Any) -> Any:
    """The variable that a user sees: for a replica's copy, the distributed variable that it belongs to."""
    for holder in (variable, variable.handle):
        container = getattr(holder, "_distributed_container", None)
        if callable(container) and (found := container()) is not None:
            return found
    return variable


def undecorated(step: Any) -> Any:
    """The step that a decorated one was made of; itself where it is none."""
    return getattr(step, "graphwd_original", step)
