# pyright: basic
"""Makes functions that run a rewritten body in place of the original one.

TensorFlow internals used here, and why there is no public way:

* ``context.context().add_function_def``: registers a rewritten function. Under an unchanged name TensorFlow would run
  the old body, silently; hence every rewritten function gets a name of its own.
* ``AtomicFunction``: owns such a registration and drops it with the last reference, as traced functions do.
* ``function_def_to_graph``, ``function_def_to_graph_def``, ``derive_from_graph``: the Python view of a function, which
  saving asks for, and the dtypes of its tensors.
* ``ConcreteFunction(atomic)``, ``_captured_inputs``, ``set_external_captures``, ``set_variables``,
  ``graph.replace_capture``, ``collective_manager_ids_used``: what ``tf.saved_model.load`` itself uses to make callables
  from function definitions.
* ``call_flat``, ``canonicalize_function_inputs``, ``unpack_inputs``, ``pack_output``, ``variable_accessed``,
  ``mark_as_unsaveable``, ``could_possibly_record``, ``_override_gradient_function``, ``_get_gradient_function``: the
  parts of a call of a ``ConcreteFunction``; the whole would first make a graph that few calls need.
* ``_cached_graph`` of an ``AtomicFunction``: the graph that such a call asks which resources are only read.
* ``to_func_graph``, ``_generated_graph`` of an ``AtomicFunction``: its Python view, which TensorFlow would make without
  the shapes that the original view has.
* ``_gradient_function`` of an ``Operation``: the gradient of a call, which no function definition holds.
* ``tf_decorator.make_decorator``, ``Function``: what ``tf.function`` itself uses to look like the function it wraps.
* ``handle_data_util.copy_handle_data``: the dtype and shape behind a resource handle, for shape inference.

Checked on TensorFlow 2.16, 2.17, 2.18, 2.19, 2.20 and 2.21 (tools/test_versions).
"""

from __future__ import annotations

import collections
import functools
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.python.eager import context, record
from tensorflow.python.eager.polymorphic_function import atomic_function, function_type_utils, polymorphic_function
from tensorflow.python.framework import function_def_to_graph, ops
from tensorflow.python.ops import handle_data_util, resource_variable_ops
from tensorflow.python.util import tf_decorator

from graphwd.garbage import collection_paused
from graphwd.graph.edge import EdgeText, is_data
from graphwd.planning.injections import Elsewhere
from graphwd.rewriting.inject import Rewritten
from graphwd.steps.read import ConcreteFunction, options, variables_of

NewName = Callable[[str], str]

_SHAPES = "_output_shapes"
_LOOPS = ("While", "StatelessWhile")
_UNKNOWN: Any = tf.TensorShape(None)  # pyright: ignore[reportArgumentType] - the stubs know no unknown rank
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


class Emitted:
    """A rewritten body, registered with TensorFlow as long as this object or a function made from it lives.

    It holds no reference to the original step, so that it can be kept with that step as a weak key.
    """

    def __init__(
        self,
        original: ConcreteFunction,
        make: Callable[[NewName], Rewritten],
        captured: Callable[[Any], tf.Variable | tf.Tensor] | None = None,
    ) -> None:
        """Registers a rewritten body.

        Args:
            original: the step that is rewritten; it stays as it is.
            make: makes the rewritten bodies, given what makes new function names.
            captured: gives what the rewritten step captures of graphwd's own, which is kept alive; needed if it does.
        """
        rewritten = make(_new_name)
        self._own = [captured(each) for each in rewritten.captures] if captured is not None else []
        root = rewritten.root
        root.signature.name = _new_name(root.signature.name)
        runtime: Any = context.context()
        children = list(original.graph._functions.values())
        graphs = {_name(child): getattr(child, "_cached_graph", None) for child in children}
        for function in rewritten.functions:
            children.append(_register(function, children, graphs.get(_stem(function.signature.name))))
        runtime.add_function_def(root)
        self._make_atomic = functools.partial(
            atomic_function.AtomicFunction,
            root.signature.name, runtime, _with_captures(original.function_type, rewritten.captures), children,
            original.inference_fn.call_options,
        )  # fmt: skip
        self._atomic: Any = self._make_atomic()
        self._concrete: ConcreteFunction | None = None
        self._lock = threading.Lock()

    def concrete(self, original: ConcreteFunction, *, keep_variables: bool = False) -> ConcreteFunction:
        """Makes the body a concrete function, once.

        Args:
            original: the step that was rewritten.
            keep_variables: whether the result keeps the variables alive; ``original`` itself refers to them weakly.

        Returns:
            A concrete function with the signature, the captures and the variables of ``original``.
        """
        with self._lock:
            if self._concrete is None:
                with collection_paused():
                    self._atomic._generated_graph = _view(self._atomic, original.graph)
                    concrete = ConcreteFunction(self._atomic)
                    _bind(concrete, original, self._own)
                self._concrete = concrete
        function: Any = self._concrete
        if keep_variables:
            function.graphwd_variables = tuple(variables_of(original))
        return function

    def call(self, original: ConcreteFunction, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Calls the body where ``original`` would be called, with the same effect as a call of `concrete`.

        Making `concrete` takes as long as the whole rewrite, since it has a Python view of every node. A function that
        is being traced, such as the one around a decorated step, needs it only for a gradient through the call, and
        makes it then.

        Args:
            original: the step that was rewritten.
            args: its arguments.
            kwargs: likewise.

        Returns:
            What the step returns.
        """
        graph: Any = ops.get_default_graph()
        if not graph.building_function or record.could_possibly_record():
            return self.concrete(original)(*args, **kwargs)

        def gradient(op: Any, *gradients: Any) -> Any:
            return self.concrete(original)._get_gradient_function()(op, *gradients)

        traced: Any = original.graph
        captures: Any = original.captured_inputs
        if not traced.saveable:
            graph.mark_as_unsaveable(traced.saving_errors)
        for variable in traced.variables:
            resource_variable_ops.variable_accessed(variable)
        signature: Any = original.function_type
        inputs = signature.unpack_inputs(function_type_utils.canonicalize_function_inputs(args, kwargs, signature))
        with graph._override_gradient_function({"PartitionedCall": gradient, "StatefulPartitionedCall": gradient}):
            outputs = self._call_flat([*inputs, *captures, *map(_capture, self._own)], traced)
        return signature.pack_output(outputs)

    def _call_flat(self, inputs: Sequence[Any], traced: Any) -> Sequence[Any]:
        """Adds a call to the graph that is being traced."""
        # TensorFlow asks this graph only which resources the body merely reads. A rewrite does not change that, since
        # it writes the same variables. Nothing else may see this graph, such as a gradient in another thread; hence
        # this call has a function of its own, with the same name.
        atomic: Any = self._make_atomic(cached_graph=traced)
        try:
            return atomic.call_flat(*inputs)
        finally:
            atomic._cached_graph = None


def _with_captures(signature: Any, captures: Iterable[Elsewhere]) -> Any:
    """A function type with more captures."""
    more = {f"graphwd_{i}": tf.TensorSpec(_UNKNOWN, capture.dtype) for i, capture in enumerate(captures)}
    if not more:
        return signature
    every = collections.OrderedDict([*signature.captures.items(), *more.items()])
    return type(signature)(signature.parameters.values(), every, return_annotation=signature.output)


def _capture(value: tf.Variable | tf.Tensor) -> Any:
    """The tensor that a function captures; for a variable, its handle."""
    return value.handle if isinstance(value, tf.Variable) else value


def _bind(result: Any, original: ConcreteFunction, own: Sequence[tf.Variable | tf.Tensor]) -> None:
    """Gives a new concrete function the captures of an existing one, and graphwd's own captures."""
    captured = [*original._captured_inputs, *map(_capture, own)]
    result.set_external_captures(captured)
    for value, tensor in zip(own, result.inputs[len(original.inputs) :], strict=True):
        if isinstance(value, tf.Variable):
            handle_data_util.copy_handle_data(value.handle, tensor)
        result.graph.replace_capture(_capture(value), tensor)
    for tensor, old in zip(result.inputs, original.inputs, strict=False):
        if tensor.dtype in (tf.resource, tf.variant):
            handle_data_util.copy_handle_data(old, tensor)
    inputs = {id(old): new for old, new in zip(original.inputs, result.inputs, strict=False)}
    for external, internal in original.graph.captures:
        result.graph.replace_capture(external, inputs[id(internal)])
    # TensorFlow wraps this in a tuple once more, and cannot read that when a gradient needs it.
    result.graph.collective_manager_ids_used = original.inference_fn.call_options.collective_manager_ids_used
    result.graph.structured_input_signature = original.structured_input_signature
    result.graph.structured_outputs = original.structured_outputs
    result.set_variables([*original.graph.variables, *(value for value in own if isinstance(value, tf.Variable))])
    result._arg_keywords = original._arg_keywords
    result._num_positional_args = original._num_positional_args


def _view(atomic: Any, traced: Any) -> Any:
    """The Python view of a rewritten body, with the shapes and the gradients of the original view."""
    parts: Any = types.SimpleNamespace(
        definition=_with_shapes(atomic.definition, traced),
        function_type=atomic.function_type,
        children=atomic.children,
        call_options=atomic.call_options,
    )
    view: Any = atomic_function.to_func_graph(parts)
    _finish(view, traced, atomic.children)
    return view


def _with_shapes(function: FunctionDef, traced: Any) -> FunctionDef:
    """A body whose nodes record the shapes that they have in the traced graph.

    From the body alone TensorFlow does not know the shapes of variables, the results of calls, or calls of
    ``set_shape``. An op that gets its input's rank but not its dimensions may be refused.
    """
    shaped = FunctionDef()
    shaped.CopyFrom(function)
    known = {operation.name: operation for operation in traced.get_operations()}
    for node in shaped.node_def:
        operation = known.get(node.name)
        if operation is not None and operation.type == node.op and _SHAPES not in node.attr:
            more = len(node.attr["T"].list.type) - len(operation.outputs) if operation.type in _LOOPS else 0
            shapes = [*(output.shape for output in operation.outputs), *[_UNKNOWN] * more]
            if any(shape.rank is not None for shape in shapes):
                node.attr[_SHAPES].list.shape.extend(shape.as_proto() for shape in shapes)
    return shaped


def _finish(view: Any, traced: Any, children: Iterable[Any]) -> None:
    """Gives a view what a function definition lacks: the handle data of its inputs, and the gradients of its calls."""
    for old, new in zip(traced.inputs, view.inputs, strict=False):  # brought arguments come last
        if new.dtype in (tf.resource, tf.variant):
            handle_data_util.copy_handle_data(old, new)
    known = {operation.name: operation for operation in traced.get_operations()}
    by_name = {_name(child): child for child in children}
    for operation in view.get_operations():
        if operation.type in _CALLS:
            _give_gradient(operation, known.get(operation.name), by_name)


def _give_gradient(call: Any, original: Any, children: Mapping[str, Any]) -> None:
    """Gives a call in a view its gradient: that of the original call, or that of the rewritten function."""
    callee = call.get_attr("f").name
    if original is not None and original.type in _CALLS and original.get_attr("f").name == callee:
        call._gradient_function = original._gradient_function
    elif callee in children:
        call._gradient_function = functools.partial(_gradient_of, children[callee])


def _gradient_of(function: Any, call: Any, *gradients: Any) -> Any:
    """The gradient of a call of a rewritten function."""
    return ConcreteFunction(function)._get_gradient_function()(call, *gradients)


def _register(function: FunctionDef, library: Iterable[Any], traced: Any = None) -> Any:
    """Registers a rewritten library function for as long as the result lives.

    Args:
        function: the function.
        library: the functions that it may call.
        traced: the graph of the original, where there is one.

    Returns:
        The owner of the registration.
    """
    children = _called(function, library)
    if traced is None:
        body = _as_graph(function, children)
    else:
        body = _as_graph(_with_shapes(function, traced), children)
        _finish(body, traced, children)
    runtime: Any = context.context()
    runtime.add_function_def(function)
    flat_type = function_type_utils.derive_from_graph(body)
    return atomic_function.AtomicFunction(function.signature.name, runtime, flat_type, children, cached_graph=body)


def _called(function: FunctionDef, library: Iterable[Any]) -> list[Any]:
    """The functions among some that a function refers to directly."""
    names = {
        callee.name
        for node in function.node_def
        for value in node.attr.values()
        for callee in ([value.func] if value.HasField("func") else value.list.func)
    }
    return [child for child in library if _name(child) in names]


def _name(function: Any) -> str:
    name = function.name
    return name.decode() if isinstance(name, bytes) else name


def _as_graph(function: FunctionDef, children: list[Any]) -> Any:
    with tf.Graph().as_default() as graph:
        for child in children:
            graph._add_function(child)
        view: Any = function_def_to_graph.function_def_to_graph(function, propagate_device_spec=True)
    for child in children:
        view._add_function_recursive(child)  # a gradient makes the graphs of branches anew, out of this one
    return view


class Parts:
    """Runs parts of a step's bodies, one by one, eagerly."""

    def __init__(self, step: ConcreteFunction) -> None:
        """Remembers the step, whose functions the parts may call."""
        self._children = list(step.graph._functions.values())

    def dtypes(self, function: FunctionDef) -> dict[EdgeText, int]:
        """The dtype, as a number, of every tensor of a body, by its edge."""
        graph = _as_graph(function, self._children)
        _, flat_names = function_def_to_graph.function_def_to_graph_def(function)
        return {
            edge: graph.get_tensor_by_name(name).dtype.as_datatype_enum
            for edge, name in flat_names.items()
            if is_data(edge)
        }

    def function(self, part: FunctionDef) -> Callable[..., Sequence[Any]]:
        """A part, given a name of its own, as a function of flat tensors."""
        part.signature.name = _new_name(part.signature.name)
        return _register(part, self._children).call_flat


def _new_name(base: str) -> str:
    return f"{_stem(base)}__graphwd_{ops.uid()}"


def _stem(name: str) -> str:
    """The name of the original of a rewritten function."""
    return name.partition("__graphwd_")[0]


class PerInstance(polymorphic_function.Function):
    """A ``tf.function`` that, as a method, is made anew for each instance.

    TensorFlow binds a method by passing the instance to the Python function. Here that function calls another
    ``tf.function``, which must be bound as well: unbound, it would keep the traces of every instance alive and match
    the instance against its ``input_signature``.
    """

    def __init__(self, python_function: Callable[..., Any], bind: Callable[[Any, Any], Any], **options: Any) -> None:
        """Makes the function.

        Args:
            python_function: the function to trace.
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
    """Makes a ``tf.function`` with the options of ``step``; ``bind`` makes another for each instance."""
    function: Any = PerInstance(python_function, bind, **options(step))
    function.graphwd_original = step
    return tf_decorator.make_decorator(python_function, function, decorator_name="tf.function")
