"""Runs the whole pass: policy, graph, updates, plan, inject, emit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from graphwd.analysis.updates import Analysis, find_updates
from graphwd.errors import StepError
from graphwd.garbage import collection_paused
from graphwd.graph.graph import Graph
from graphwd.planning.plan import Plan
from graphwd.planning.suggest import suggestion
from graphwd.policy.rules import Policy, PolicyLike, as_policy
from graphwd.rewriting.inject import Rewritten
from graphwd.rewriting.part import Prepared, plan_part, unfused_notes, whole_plan
from graphwd.steps.emit import Emitted
from graphwd.steps.read import (
    ConcreteFunction,
    is_concrete,
    is_polymorphic,
    read,
    refuse_no_step,
    trace,
    traces,
    undecorated,
    variables_of,
)
from graphwd.steps.state import State, give_state

_LOG = logging.getLogger("graphwd")


def plan(step: Any, policy: PolicyLike, /, *args: Any, **kwargs: Any) -> Plan:
    """Decides what `rewrite` would do with a step, and changes nothing.

    Args:
        step: a ``ConcreteFunction``, a ``tf.function`` or a plain Python train step; of a decorated step, the original
            is planned.
        policy: a `Policy`, a path or a mapping.
        *args: example arguments or ``tf.TensorSpec``s, where ``step`` is not concrete yet. Without any, every trace is
            planned that a ``tf.function`` holds, and the one of a call without arguments where there can be one.
        **kwargs: likewise.

    Returns:
        The plan, of all traces; where `rewrite` would refuse, its ``problems`` say why.

    Raises:
        GraphwdError: the policy is malformed, or the step cannot be traced or read.
    """
    loaded = as_policy(policy)
    return _plan_traces(_traces(undecorated(step), args, kwargs), loaded)


def suggest(step: Any, /, *args: Any, **kwargs: Any) -> str:
    """Writes a first policy for a step, by what the step uses its variables for; ``graphwd init`` prints it.

    Args:
        step: as for `plan`.
        *args: as for `plan`.
        **kwargs: likewise.

    Returns:
        The policy as YAML text, with every variable named in a comment: its shape, and the op that shows its role.
        Where no policy of this kind would do, a comment at its top says what `plan` refuses.

    Raises:
        GraphwdError: the step cannot be traced or read.

    Examples:
        >>> import tensorflow as tf
        >>> w = tf.Variable([[1.0, 2.0]], name="w")
        >>> @tf.function(input_signature=[tf.TensorSpec([3, 1])])
        ... def step(x):
        ...     with tf.GradientTape() as tape:
        ...         loss = tf.reduce_sum(x @ w)
        ...     w.assign_sub(0.5 * tape.gradient(loss, w))
        >>> text = suggest(step)
        >>> [line.strip() for line in text.splitlines() if "role" in line]
        ['- role: kernel']
    """
    original = undecorated(step)
    concretes = _traces(original, args, kwargs)
    return suggestion(getattr(original, "__name__", "the step"), lambda policy: _plan_traces(concretes, policy))


def _plan_traces(concretes: Iterable[ConcreteFunction], policy: Policy) -> Plan:
    with collection_paused():
        return whole_plan(prepare(traced, policy) for traced in concretes)


def _traces(step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[ConcreteFunction]:
    """The trace that a call with these arguments runs; without arguments, also all traces of earlier calls."""
    if args or kwargs or not is_polymorphic(step):
        return [concrete(step, *args, **kwargs)]
    held = traces(step)
    try:
        first = concrete(step)
    except StepError:
        if not held:
            raise
        return held  # it needs arguments, and these traces have them
    return [*held, *(traced for traced in [first] if not any(traced is one for one in held))]


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced step, as a part to plan and to write.

    Attributes:
        step: the trace; it stays as it is.
        graph: its view.
    """

    step: ConcreteFunction
    graph: Graph

    def find_updates(self) -> Analysis:
        """Finds every update of every trainable variable."""
        return find_updates(self.graph)

    def limited(self, plan: Plan) -> Plan:
        """The plan, unchanged: a trace has no limits."""
        return plan


def prepare(step: ConcreteFunction, policy: Policy) -> Prepared[Trace]:
    """Reads a concrete function and plans its weight decay.

    Args:
        step: the traced training step.
        policy: the policy.

    Returns:
        The step and its plan, which may have problems.

    Raises:
        GraphwdError: the step cannot be read, or is rewritten already.
    """
    with collection_paused():
        return plan_part(Trace(step, read(step)), policy)


def emit(prepared: Prepared[Trace], state: State) -> Emitted:
    """Registers a body with weight decay, to be called or made a concrete function; it logs the plan's notes.

    Args:
        prepared: the trace and its plan.
        state: the variables that it captures of graphwd's own.

    Raises:
        GraphwdError: the step cannot be rewritten.
    """
    prepared.plan.check()
    step = prepared.part.step
    sources = variables_of(step)
    state.count_for(prepared.plan)
    for injection in prepared.plan.injections:
        if injection.seen is not None:
            state.see(injection, sources)
    for note in prepared.plan.notes:
        _LOG.warning("%s", note)

    def make(new_name: Callable[[str], str]) -> Rewritten:
        with collection_paused():
            rewritten = prepared.inject(new_name)
        for note in unfused_notes(rewritten.unfused):
            _LOG.warning("%s", note)
        return rewritten

    return Emitted(step, make, lambda own: state.variable(own, sources))


def rewrite_concrete(
    step: ConcreteFunction, policy: Policy, state: State | None = None
) -> tuple[ConcreteFunction, Plan]:
    """Gives a concrete function weight decay.

    Args:
        step: the traced training step; it stays as it is.
        policy: the policy.
        state: the variables that it captures of graphwd's own; None for new ones.

    Returns:
        A concrete function of the same signature, which keeps the variables of the step alive, and the plan that it was
        made by.

    Raises:
        GraphwdError: the policy does not fit the step, or the step cannot be rewritten.
    """
    given = state or State(policy)
    emitted, decided = emit_rewritten(step, policy, given)
    rewritten = emitted.concrete(step, keep_variables=True)
    give_state(rewritten, given)
    return rewritten, decided


def emit_rewritten(
    step: ConcreteFunction, policy: Policy, state: State, *, summaries: bool = False
) -> tuple[Emitted, Plan]:
    """Registers the body of a concrete function with weight decay, to be called or made a concrete function.

    Args:
        step: the traced training step; it stays as it is.
        policy: the policy.
        state: the variables that it captures of graphwd's own.
        summaries: whether its decays tell what they take.

    Returns:
        The body, and the plan that it was made by.

    Raises:
        GraphwdError: the policy does not fit the step, or the step cannot be rewritten.
    """
    prepared = prepare(step, policy)
    if summaries:
        prepared = replace(prepared, plan=prepared.plan.watched())
    return emit(prepared, state), prepared.plan


def concrete(step: Any, *args: Any, **kwargs: Any) -> ConcreteFunction:
    """Traces a step, if it is not concrete yet.

    Args:
        step: a ``ConcreteFunction``, a ``tf.function`` or a Python callable.
        *args: example arguments or specs.
        **kwargs: likewise.

    Returns:
        The concrete function.

    Raises:
        StepError: ``step`` is none of these, or does not trace with these arguments.
    """
    if is_concrete(step):
        return step
    return trace(as_function(step), args, kwargs)


def as_function(step: Any) -> Any:
    """Makes a step that is not traced a ``tf.function``, if it is none yet.

    Args:
        step: a ``tf.function`` or a Python callable.

    Returns:
        The ``tf.function``.

    Raises:
        StepError: ``step`` is neither, or is called, but is no step: a class, a Keras model.
    """
    refuse_no_step(step)
    return step if is_polymorphic(step) else tf.function(step)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - TensorFlow's
