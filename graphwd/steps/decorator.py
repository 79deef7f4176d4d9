"""Rewrites steps of every form: a train step in, one that also decays weights out."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

from graphwd.errors import StepError
from graphwd.policy.rules import Policy, PolicyLike, as_policy
from graphwd.steps.emit import per_instance
from graphwd.steps.pipeline import as_function, emit_rewritten, rewrite_concrete
from graphwd.steps.python_state import tell_frozen_state
from graphwd.steps.read import is_concrete, remember
from graphwd.steps.state import CountedBy, State, give_state
from graphwd.steps.watch import Watch

_Step = TypeVar("_Step", bound=Callable[..., Any])
"""The type of a step: what is decorated or rewritten keeps its signature, as type checkers see it."""


def with_weight_decay(policy: PolicyLike, *, summaries: bool = False) -> Callable[[_Step], _Step]:
    """Gives a train step weight decay, as a decorator.

    The result is a ``tf.function``: it retraces, dispatches, binds to instances and takes arguments as the step itself
    does; ``jit_compile``, ``input_signature`` and ``reduce_retracing`` of a ``tf.function`` are kept.

    Args:
        policy: a `Policy`, the path of a policy file, or a mapping. It is read at once.
        summaries: whether the step measures what decay does, for `write_summaries`. It then takes several more passes
            over the weights, and the memory of one more copy of those that it decays.

    Returns:
        A decorator for a function or method: a ``tf.function`` or plain Python. It raises `GraphwdError` when a call
        traces the step and the policy does not fit it.

    Raises:
        PolicyError: the policy is malformed.

    Examples:
        >>> import tensorflow as tf
        >>> kernel = tf.Variable([1.0], name="kernel")
        >>> @with_weight_decay({"version": 1, "rules": [{"weight_decay": 0.5}]})
        ... @tf.function
        ... def step(x):
        ...     with tf.GradientTape() as tape:
        ...         loss = tf.reduce_sum(kernel * x)
        ...     kernel.assign_sub(tape.gradient(loss, kernel))
        ...     return loss
        >>> _ = step(tf.constant([0.0]))
        >>> kernel.numpy().tolist()
        [0.5]
    """
    return decorator(as_policy(policy), summaries=summaries)


def decorator(
    policy: Policy, state: State | None = None, *, summaries: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """What `with_weight_decay` returns, for a policy that was read.

    Args:
        policy: the policy.
        state: the variables that the decorated step captures of graphwd's own; None for new ones.
        summaries: whether the step measures what decay does.
    """

    def decorate(step: Callable[..., Any]) -> Any:
        if is_concrete(step):
            raise StepError("with_weight_decay takes a function; use graphwd.rewrite for a ConcreteFunction")
        if isinstance(step, (classmethod, staticmethod)):
            above = type(step).__name__  # pyright: ignore[reportUnknownArgumentType] - no matter of what
            raise StepError(f"with_weight_decay goes below @{above}, not above it")
        tell_frozen_state(step)
        return _decayed(as_function(step), policy, state or State(policy), summaries)

    return decorate


def _decayed(original: Any, policy: Policy, state: State, summaries: bool) -> Any:
    """A ``tf.function`` that traces another, rewrites the trace, and calls that."""
    state.watched = state.watched or summaries
    rewritten = _Rewritten(policy, state, summaries=summaries)

    # Not its __dict__: TensorFlow would unwrap entries in there, and call a method without its instance.
    @functools.wraps(original.python_function, updated=())
    def decayed_step(*args: Any, **kwargs: Any) -> Any:
        return rewritten.call(_trace(original, args, kwargs), args, kwargs)

    def bind(instance: Any, owner: Any) -> Any:
        return _decayed(original.__get__(instance, owner), policy, State(policy), summaries)

    step = per_instance(decayed_step, bind, original)
    give_state(step, state)
    return step


def _trace(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The concrete function for a call."""
    try:
        return remember(original, original.get_concrete_function(*args, **kwargs))
    except RuntimeError as error:
        if "`merge_call` called while defining" not in str(error):
            raise
        # TensorFlow takes a tf.function that strategy.run gets apart, and traces one around all replicas instead.
        raise StepError(
            "the step is a replica of a tf.distribute strategy and updates variables of all replicas; decorate the "
            "function that calls strategy.run instead of the one that strategy.run calls; for model.fit, "
            "graphwd.keras.attach does so"
        ) from error


def rewrite(step: _Step, policy: PolicyLike, *, summaries: bool = False) -> _Step:
    """Gives a training step weight decay.

    Args:
        step: a ``ConcreteFunction``, a ``tf.function`` or a plain Python train step; it stays as it is.
        policy: a `Policy`, a path or a mapping.
        summaries: as for `with_weight_decay`; not for a ``ConcreteFunction``.

    Returns:
        For a ``ConcreteFunction``, one with the same structured signature and outputs. For anything else a
        ``tf.function`` that traces, dispatches and accepts what the original did.

    Raises:
        GraphwdError: the policy is malformed or does not fit the step, or the step cannot be rewritten. For a step
            that is not concrete, what its trace shows is raised when it is first traced.
    """
    if not is_concrete(step):
        return with_weight_decay(policy, summaries=summaries)(step)
    if summaries:
        raise StepError("a ConcreteFunction has no summaries; rewrite the tf.function that it is a trace of")
    rewritten: Any = rewrite_concrete(cast("Any", step), as_policy(policy))[0]
    return rewritten


class _Rewritten:
    """The rewritten form of each trace, made once: TensorFlow may trace a call twice."""

    def __init__(self, policy: Policy, state: State, *, summaries: bool) -> None:
        self._policy = policy
        self._summaries = summaries
        self._state = state
        self._lock = threading.Lock()
        self._counted_by = CountedBy()
        self._by_trace: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def call(self, trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._lock:
            if trace not in self._by_trace:
                emitted, plan = emit_rewritten(trace, self._policy, self._state, summaries=self._summaries)
                self._counted_by.note(plan)
                watch = Watch(plan, self._state) if self._summaries else None
                self._by_trace[trace] = emitted, watch
            emitted, watch = self._by_trace[trace]
        with contextlib.nullcontext() if watch is None else watch.around(trace):
            return emitted.call(trace, args, kwargs)
