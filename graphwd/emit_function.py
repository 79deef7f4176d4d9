"""Reads concrete functions and makes new ones: the way in and out for steps that live in this process.

TensorFlow internals used here, and why there is no public way:

* ``context.context().add_function_def``: registers a rewritten function. Under an unchanged name TensorFlow would run
  the old body, silently; hence every rewritten function gets a name of its own.
* ``function_def_to_graph``, ``function_def_to_graph_def``, ``derive_from_graph``: the Python view of a function, which
  saving asks for, and the dtypes of its tensors.
* ``AtomicFunction``: owns such a registration and drops it with the last reference, as traced functions do.
* ``ConcreteFunction(atomic)``, ``_captured_inputs``, ``set_external_captures``, ``set_variables``,
  ``graph.replace_capture``: what ``tf.saved_model.load`` itself uses to make callables from function definitions.
* ``_distributed_container``: the variable whose copy in a replica is captured.
* ``tf_decorator.make_decorator``: what ``tf.function`` itself uses to look like the function it was made of.
* ``Function`` (the class of ``tf.function`` objects) and ``_jit_compile``, ``_autograph``, ``_reduce_retracing``,
  ``_list_all_concrete_functions``: the options and traces of a step, which have no public accessor.
* ``BaseResourceVariable`` and ``_handle``: which variable a captured handle belongs to, without running anything.
* ``handle_data_util.copy_handle_data``: the dtype and shape behind a resource handle, for shape inference.

Checked on TensorFlow 2.16, 2.17, 2.18, 2.19, 2.20 and 2.21 (tools/test_versions).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.python.eager import context
from tensorflow.python.eager.polymorphic_function import (
    atomic_function,
    concrete_function,
    function_type_utils,
    polymorphic_function,
)
from tensorflow.python.framework import function_def_to_graph, ops
from tensorflow.python.ops import handle_data_util, resource_variable_ops
from tensorflow.python.util import tf_decorator

from graphwd.errors import GraphwdError, StepError
from graphwd.graph import Graph, Variable, differentiable
from graphwd.inject import Rewritten

ConcreteFunction = concrete_function.ConcreteFunction
NewName = Callable[[str], str]


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
    specs = list(_specs(step))
    for position, (name, tensor) in enumerate(zip(names, step.inputs, strict=True)):
        if position >= first_capture:
            variable = variables.captured(captures[position - first_capture])
        elif tensor.dtype == tf.resource:
            variable = variables.argument(name, specs[position], tensor)
        else:
            data.append(name)
            continue
        if variable is not None:
            handles[name] = variable
    return Graph(function, step.graph.as_graph_def().library.function, handles, data)


def emit(original: ConcreteFunction, make: Callable[[NewName], Rewritten], *, keep_variables: bool) -> ConcreteFunction:
    """Makes a concrete function that runs a rewritten body where another runs the original.

    Args:
        original: the step that was rewritten; it stays as it is.
        make: makes the rewritten bodies, given what makes new function names.
        keep_variables: whether the result keeps the variables alive; ``original`` itself refers to them weakly.

    Returns:
        A concrete function with the signature, the captures and the variables of ``original``.
    """
    rewritten = make(_new_name)
    root = rewritten.root
    root.signature.name = _new_name(root.signature.name)
    runtime: Any = context.context()
    children = list(original.graph._functions.values())
    for function in rewritten.functions:
        children.append(_register(function, children))
    runtime.add_function_def(root)
    atomic = atomic_function.AtomicFunction(
        root.signature.name, runtime, original.function_type, children, original.inference_fn.call_options
    )
    result: Any = ConcreteFunction(atomic)
    _bind(result, original)
    if keep_variables:
        result.graphwd_variables = tuple(variables_of(original))
    return result


def _bind(result: Any, original: ConcreteFunction) -> None:
    """Gives a new concrete function what an existing one has captured."""
    captured = list(original._captured_inputs)
    result.set_external_captures(captured)
    for tensor, old in zip(result.inputs, original.inputs, strict=True):
        if tensor.dtype in (tf.resource, tf.variant):
            handle_data_util.copy_handle_data(old, tensor)
    inputs = {id(old): new for old, new in zip(original.inputs, result.inputs, strict=True)}
    for external, internal in original.graph.captures:
        result.graph.replace_capture(external, inputs[id(internal)])
    result.graph.structured_input_signature = original.structured_input_signature
    result.graph.structured_outputs = original.structured_outputs
    result.set_variables(list(original.graph.variables))
    result._arg_keywords = original._arg_keywords
    result._num_positional_args = original._num_positional_args


def _register(function: FunctionDef, library: Iterable[Any]) -> Any:
    """Registers a rewritten library function for as long as what is returned lives."""
    children = _called(function, library)
    body = _as_graph(function, children)
    runtime: Any = context.context()
    runtime.add_function_def(function)
    flat_type = function_type_utils.derive_from_graph(body)
    return atomic_function.AtomicFunction(function.signature.name, runtime, flat_type, children, cached_graph=body)


def _called(function: FunctionDef, library: Iterable[Any]) -> list[Any]:
    """Those of some functions that a function refers to; they bring along what they refer to."""
    names = {
        each.name
        for node in function.node_def
        for value in node.attr.values()
        for each in ([value.func] if value.HasField("func") else value.list.func)
    }
    return [each for each in library if _name(each) in names]


def _name(function: Any) -> str:
    name = function.name
    return name.decode() if isinstance(name, bytes) else name


def _as_graph(function: FunctionDef, children: list[Any]) -> Any:
    with tf.Graph().as_default() as graph:
        for child in children:
            graph._add_function(child)
        return function_def_to_graph.function_def_to_graph(function, propagate_device_spec=True)


class Parts:
    """Runs parts of a step's bodies, one by one, eagerly."""

    def __init__(self, step: ConcreteFunction) -> None:
        """Remembers the step, whose functions the parts may call."""
        self._children = list(step.graph._functions.values())

    def dtypes(self, function: FunctionDef) -> dict[str, int]:
        """The dtype, as a number, of every tensor of a body, by its edge."""
        graph = _as_graph(function, self._children)
        _, flat_names = function_def_to_graph.function_def_to_graph_def(function)
        return {
            edge: graph.get_tensor_by_name(name).dtype.as_datatype_enum
            for edge, name in flat_names.items()
            if not edge.startswith("^")
        }

    def function(self, part: FunctionDef) -> Callable[..., Sequence[Any]]:
        """A part, given a name of its own, as a function of flat tensors."""
        part.signature.name = _new_name(part.signature.name)
        return _register(part, self._children).call_flat


def _new_name(base: str) -> str:
    stem = base.partition("__graphwd_")[0]
    return f"{stem}__graphwd_{ops.uid()}"


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


class PerInstance(polymorphic_function.Function):
    """A ``tf.function`` that, as a method, is made anew for each instance.

    TensorFlow binds a method by handing the instance to the Python function. What that function is made of here is
    another ``tf.function``, which must be bound as well: unbound, it would keep the traces of every instance alive and
    hold the instance against its ``input_signature``.
    """

    def __init__(self, python_function: Callable[..., Any], bind: Callable[[Any, Any], Any], **options: Any) -> None:
        """Makes the function.

        Args:
            python_function: what is traced.
            bind: makes the function for an instance and its class.
            **options: of ``tf.function``.
        """
        super().__init__(python_function, getattr(python_function, "__name__", "step"), autograph=False, **options)
        self._bind = bind
        self._bound: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def __get__(self, instance: Any, owner: Any) -> Any:
        """The function of an instance, the same at every access."""
        if instance is None:
            return self
        if instance not in self._bound:
            self._bound[instance] = self._bind(instance, owner)
        return self._bound[instance]


def per_instance(python_function: Callable[..., Any], bind: Callable[[Any, Any], Any], step: Any) -> Any:
    """Makes a ``tf.function`` with the options of ``step``, to be made anew by ``bind`` for each instance."""
    made: Any = PerInstance(python_function, bind, **options(step))
    made.graphwd_original = step
    return tf_decorator.make_decorator(python_function, made, decorator_name="tf.function")


def undecorated(step: Any) -> Any:
    """The step that a decorated one was made of; itself where it is none."""
    return getattr(step, "graphwd_original", step)
