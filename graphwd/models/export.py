# pyright: basic
"""Writes a rewritten Python step as a SavedModel that trains wherever TensorFlow runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tensorflow as tf

from graphwd.errors import StepError
from graphwd.models.files import new_directory, refuse_existing
from graphwd.models.target import Output, rewrite
from graphwd.planning.plan import Plan
from graphwd.policy.rules import Policy
from graphwd.progress import progress
from graphwd.rewriting.part import Prepared
from graphwd.steps.decorator import decorator
from graphwd.steps.holders import is_keras_model
from graphwd.steps.keras_step import training_step
from graphwd.steps.pipeline import Trace, emit, prepare
from graphwd.steps.read import ConcreteFunction, is_concrete, rooted, trace, traces, variables_of
from graphwd.steps.state import State, give_state

_VARIABLES = "variables_of_the_step"


def concrete_functions(step: Any, name: str) -> list[ConcreteFunction]:
    """The traces that a step can be rewritten by.

    Args:
        step: a ``tf.function``, a ``ConcreteFunction`` or a Keras model.
        name: its name, for the error.

    Returns:
        The step itself where it is concrete, the trace of its ``input_signature``, or every trace that it holds.

    Raises:
        StepError: it has neither, so its arguments are not known; or it does not trace.
    """
    if is_concrete(step):
        return [step]
    if is_keras_model(step):
        return [training_step(step)]
    if step.input_signature is not None:
        return [trace(step, (), {})]
    if held := traces(step):
        return held
    raise StepError(
        f"{name}: the tf.function has no input_signature and was never traced, so its arguments are not known; give "
        "it an input_signature, or call its get_concrete_function where the file is imported"
    )


class PythonStep:
    """A Python step, as a target to plan and to write.

    Attributes:
        name: its name.
    """

    def __init__(self, step: Any, name: str) -> None:
        """Takes a step, and traces nothing yet.

        Args:
            step: a ``tf.function``, a ``ConcreteFunction`` or, to be planned only, a Keras model.
            name: the name under which the function is saved.
        """
        self.name = name
        self._step = step
        self._prepared: Sequence[Prepared[Trace]] = ()
        self._holder: Any = None
        self._signatures: dict[str, ConcreteFunction] = {}

    def bounds(self) -> AbstractContextManager[None]:
        """The context in which it is read and written; no limit is needed."""
        return contextlib.nullcontext()

    def prepare(self, policy: Policy) -> Sequence[Prepared[Trace]]:
        """Reads and plans its traces."""
        with progress("tracing"):
            concretes = concrete_functions(self._step, self.name)
        self._prepared = [prepare(concrete, policy) for concrete in concretes]
        return self._prepared

    def problems(self) -> Iterator[str]:
        """Why its traces cannot be saved, as far as that is known before."""
        if hasattr(tf.Module, self.name) or self.name == _VARIABLES:
            yield f"a SavedModel cannot hold a function named '{self.name}'; give the step another name"
        if any(_captures_other_resources(trace.part.step) for trace in self._prepared):
            yield (
                "the step uses a resource that is no variable, as a lookup table or the iterator of a dataset is, and "
                "that it was not given; a SavedModel of the step cannot hold it: give the step what comes out of it"
            )

    def faults(self) -> Iterator[str]:
        """Why its files cannot be written anew: it has none."""
        return iter(())

    def refuse_output(self, output: Output) -> None:
        """Refuses a place that cannot be written, and a model, whose step is not known before it trains."""
        if is_keras_model(self._step):
            raise StepError(
                f"{self.name} is a Keras model: graphwd.keras.attach(model, policy) gives its fit weight decay; to "
                "write a SavedModel, name a tf.function that trains it"
            )
        refuse_existing(output.path, None, overwrite=output.overwrite)

    def replace(self, prepared: Sequence[Prepared[Trace]], policy: Policy) -> None:
        """Makes a module of the rewritten step, with a signature for each trace."""
        concretes = [each.part.step for each in prepared]
        state = State(policy)
        results = [emit(each, state).concrete(each.part.step, keep_variables=True) for each in prepared]
        self._holder = tf.Module()
        whole = results[0] if is_concrete(self._step) else _retraced(self._step, policy, state, concretes)
        setattr(self._holder, self.name, whole)
        if state.variables:
            self._holder.graphwd = state
        self._holder.variables_of_the_step = _unique(v for concrete in concretes for v in variables_of(concrete))
        self._signatures = {
            self.name if i == 0 else f"{self.name}_{i}": _signature(rewritten)
            for i, rewritten in enumerate(results)
            if all(tensor.dtype != tf.resource for tensor in _arguments(rewritten))
        }

    def save(self, output: Output) -> None:
        """Writes the module."""
        with new_directory(output.path, overwrite=output.overwrite) as folder:
            try:
                tf.saved_model.save(self._holder, str(folder), signatures=self._signatures)
            except (tf.errors.OpError, AssertionError, ValueError, TypeError) as error:
                raise StepError(f"{output.path}: the rewritten step cannot be saved: {error}") from error


def _captures_other_resources(step: ConcreteFunction) -> bool:
    captures: Any = step.captured_inputs
    handles = {id(variable.handle) for variable in variables_of(step)}
    return any(tensor.dtype == tf.resource and id(tensor) not in handles for tensor in captures)


def export(step: Any, name: str, policy: Policy, target: str | os.PathLike[str], *, overwrite: bool = False) -> Plan:
    """Rewrites a step and writes it as a SavedModel.

    The SavedModel holds the function under its own name, every variable that it uses, and for each trace a signature:
    ``name`` for the first, ``name_1`` for the second. A signature takes the step's tensors by the names of its
    arguments and returns ``output_0``, ``output_1``, ...; for a step that returns none, ``output_0`` is true when the
    step is done.

    Args:
        step: a ``tf.function`` or a ``ConcreteFunction``.
        name: the name under which the function is saved.
        policy: the policy.
        target: the directory to write. It appears complete or not at all.
        overwrite: whether a target that exists is replaced, in one step.

    Returns:
        The plan, of all traces.

    Raises:
        GraphwdError: the policy does not fit the step, or the step cannot be rewritten.
        StepError: the target exists or cannot be written, or the step cannot be saved.
    """
    return rewrite(PythonStep(step, name), policy, Output(Path(target), overwrite))


def load_exported(folder: str | os.PathLike[str], name: str) -> tuple[Any, list[tf.Variable]]:
    """Loads what `export` wrote.

    Args:
        folder: the SavedModel directory.
        name: the name of the step.

    Returns:
        The step, which has its state as far as the file tells it, and its variables in the order of the captures of
        the first trace that was exported.

    Raises:
        StepError: the directory holds no SavedModel, or none of a step of that name.
    """
    loaded = load_model(folder)
    if not hasattr(loaded, name) or not hasattr(loaded, _VARIABLES):
        raise StepError(f"{folder}: holds no rewritten step '{name}'; name what 'graphwd rewrite' wrote for this step")
    loaded_step = getattr(loaded, name)
    variables = list(getattr(loaded, _VARIABLES))
    loaded_step.graphwd_module = loaded  # a restored function does not keep its variables
    if (state := State.of_saved(getattr(loaded, "graphwd", None))) is not None:
        give_state(loaded_step, state)
    return loaded_step, variables


def load_function(folder: str | os.PathLike[str], name: str) -> tuple[ConcreteFunction, list[tf.Variable]]:
    """Loads a SavedModel for one of its functions.

    Args:
        folder: the SavedModel directory.
        name: the object path of a function, or the key of a signature.

    Returns:
        The function, and the variables that it captures, in order.

    Raises:
        StepError: the directory holds no SavedModel, or none with such a function.
    """
    loaded = load_model(folder)
    function: Any = loaded
    for part in name.split("."):
        function = getattr(function, part, None)
    if not is_concrete(function) and getattr(function, "concrete_functions", None):
        function = function.concrete_functions[0]
    if not is_concrete(function):
        function = loaded.signatures.get(name) if hasattr(loaded, "signatures") else None
    if not is_concrete(function):
        raise StepError(f"{folder}: holds no function or signature '{name}'")
    function.graphwd_module = loaded  # a restored function does not keep its variables
    return rooted(function, loaded), variables_of(function)


def load_model(folder: str | os.PathLike[str]) -> Any:
    """Loads a SavedModel.

    Raises:
        StepError: the directory holds none.
    """
    try:
        return tf.saved_model.load(os.fspath(folder))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise StepError(f"{folder}: cannot be loaded: {str(error).splitlines()[0]}") from None


def _retraced(step: Any, policy: Policy, state: State, concretes: Sequence[ConcreteFunction]) -> Any:
    rewritten = decorator(policy, state)(step)
    for concrete in concretes:
        # The specs of a trace carry the arguments' names, which tf.function would compare with its input_signature.
        args, kwargs = tf.nest.map_structure(_unnamed, concrete.structured_input_signature)
        trace(rewritten, args, kwargs)
    return rewritten


def _unnamed(spec: Any) -> Any:
    return tf.TensorSpec(spec.shape, spec.dtype) if type(spec) is tf.TensorSpec else spec


def _arguments(step: Any) -> list[tf.Tensor]:
    return step.inputs[: len(step.inputs) - len(step.captured_inputs)]


def _signature(step: ConcreteFunction) -> ConcreteFunction:
    """A function of flat named tensors to named tensors, as a signature must be."""
    arguments = _arguments(step)
    names = [argument.name for argument in step.function_def.signature.input_arg][: len(arguments)]

    @tf.function(autograph=False)
    def signature(**tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        remaining = iter([tensors[name] for name in names])
        leaves = [
            next(remaining) if isinstance(leaf, tf.TypeSpec) else leaf
            for leaf in tf.nest.flatten(step.structured_input_signature, expand_composites=True)
        ]
        args, kwargs = tf.nest.pack_sequence_as(step.structured_input_signature, leaves, expand_composites=True)
        outputs = [
            leaf for leaf in tf.nest.flatten(step(*args, **kwargs), expand_composites=True) if tf.is_tensor(leaf)
        ]
        return {f"output_{i}": tensor for i, tensor in enumerate(outputs or [tf.constant(True)])}

    specs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in zip(names, arguments, strict=True)
    }
    return signature.get_concrete_function(**specs)


def _unique(variables: Any) -> list[tf.Variable]:
    return list({id(variable): variable for variable in variables}.values())
