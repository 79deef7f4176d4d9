"""Strings the pass together: policy, graph, updates, plan, inject, emit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from graphwd.emit_function import ConcreteFunction, emit, is_concrete, is_polymorphic, read
from graphwd.errors import PolicyError, StepError
from graphwd.inject import inject
from graphwd.plan import Plan, make_plan
from graphwd.policy import Policy, load_policy
from graphwd.updates import find_updates

PolicyLike = Policy | str | os.PathLike[str] | Mapping[str, object]


def as_policy(policy: PolicyLike) -> Policy:
    """Reads a policy from whatever form it is given in.

    Args:
        policy: a `Policy`, the path of a policy file, or a mapping.

    Returns:
        The policy.

    Raises:
        PolicyError: it is malformed, or of another type.
    """
    match policy:
        case Policy():
            return policy
        case Mapping():
            return Policy.from_dict(policy)
        case str() | os.PathLike():
            return load_policy(policy)
        case _:
            raise PolicyError(f"a policy must be a Policy, a path or a mapping, got a {type(policy).__name__}")


def plan(step: Any, policy: PolicyLike, /, *args: Any, **kwargs: Any) -> Plan:
    """Decides what `rewrite` would do with a step, and changes nothing.

    Args:
        step: a ``ConcreteFunction``, a ``tf.function`` or a plain Python train step.
        policy: a `Policy`, a path or a mapping.
        *args: example arguments or ``tf.TensorSpec``s, where ``step`` is not concrete yet.
        **kwargs: likewise.

    Returns:
        The plan; where `rewrite` would refuse, its ``problems`` say why.

    Raises:
        GraphwdError: the policy is malformed, or the step cannot be traced or read.
    """
    return make_plan(find_updates(read(concrete(step, *args, **kwargs))), as_policy(policy))


def rewrite_concrete(step: ConcreteFunction, policy: Policy) -> tuple[ConcreteFunction, Plan]:
    """Gives a concrete function weight decay.

    Args:
        step: the traced training step; it stays as it is.
        policy: the policy.

    Returns:
        A concrete function of the same signature, and the plan that it was made by.

    Raises:
        GraphwdError: the policy does not fit the step, or the step cannot be rewritten.
    """
    graph = read(step)
    decided = make_plan(find_updates(graph), policy)
    decided.check()
    return emit(step, lambda new_name: inject(graph, decided.injections, new_name)), decided


def rewrite(step: Any, policy: PolicyLike) -> Any:
    """Gives a training step weight decay.

    Args:
        step: a ``ConcreteFunction``, a ``tf.function`` or a plain Python train step; it stays as it is.
        policy: a `Policy`, a path or a mapping.

    Returns:
        For a ``ConcreteFunction``, one with the same structured signature and outputs. For anything else a
        ``tf.function`` that traces, dispatches and accepts what the original did.

    Raises:
        GraphwdError: the policy is malformed or does not fit the step, or the step cannot be rewritten. For a step
            that is not concrete, what its trace shows is raised when it is first traced.
    """
    if is_concrete(step):
        return rewrite_concrete(step, as_policy(policy))[0]
    from graphwd.decorator import with_weight_decay

    return with_weight_decay(policy)(step)


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
    if not callable(step):
        raise StepError(f"a training step must be a function, got a {type(step).__name__}")
    from graphwd.emit_function import trace

    return trace(step if is_polymorphic(step) else _polymorphic(step), args, kwargs)


def _polymorphic(step: Callable[..., Any]) -> Any:
    import tensorflow as tf

    return tf.function(step)
