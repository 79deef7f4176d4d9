"""The decorator: a train step in, a ``tf.function`` that also decays weights out."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from graphwd.emit_function import is_concrete, is_polymorphic, options
from graphwd.errors import StepError
from graphwd.rewrite import PolicyLike, as_policy, rewrite_concrete


def with_weight_decay(policy: PolicyLike) -> Callable[[Callable[..., Any]], Any]:
    """Gives a train step weight decay, as a decorator.

    The result is a ``tf.function``: it retraces, dispatches, binds to instances and takes arguments as the step itself
    does; ``jit_compile``, ``input_signature`` and ``reduce_retracing`` of a ``tf.function`` are kept.

    Args:
        policy: a `Policy`, the path of a policy file, or a mapping. It is read at once.

    Returns:
        A decorator for a function or method: a ``tf.function`` or plain Python. It raises `GraphwdError` when a call
        traces the step and the policy does not fit it.

    Raises:
        PolicyError: the policy is malformed.

    Example:
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
    loaded = as_policy(policy)

    def decorate(step: Callable[..., Any]) -> Any:
        if is_concrete(step):
            raise StepError("with_weight_decay takes a function; use graphwd.rewrite for a ConcreteFunction")
        if not callable(step):
            raise StepError(f"a training step must be a function, got a {type(step).__name__}")
        original: Any = step if is_polymorphic(step) else tf.function(step)
        rewritten = _Rewritten(loaded)

        @functools.wraps(original.python_function)
        def decayed_step(*args: Any, **kwargs: Any) -> Any:
            return rewritten.of(original.get_concrete_function(*args, **kwargs))(*args, **kwargs)

        # The original was converted by AutoGraph when it was traced; only graphwd's own call is left to trace here.
        return tf.function(decayed_step, autograph=False, **options(original))

    return decorate


class _Rewritten:
    """The rewritten form of each trace, made once: TensorFlow may trace a call twice."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._by_trace: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def of(self, trace: Any) -> Any:
        with self._lock:
            if trace not in self._by_trace:
                self._by_trace[trace] = rewrite_concrete(trace, self._policy)[0]
            return self._by_trace[trace]
