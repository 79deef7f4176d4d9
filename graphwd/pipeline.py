"""Strings the pass together: policy, graph, updates, plan, inject, emit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from graphwd.emit_function import Emitted
from graphwd.garbage import collection_paused
from graphwd.graph import Graph
from graphwd.inject import Rewritten, inject, refuse_rewritten
from graphwd.planner import Plan, make_plan
from graphwd.policy import Policy, PolicyLike, as_policy
from graphwd.read_function import (
    ConcreteFunction,
    is_concrete,
    is_polymorphic,
    read,
    refuse_no_step,
    trace,
    undecorated,
)
from graphwd.updates import find_updates

_LOG = logging.getLogger("graphwd")


def plan(step: Any, policy: PolicyLike, /, *args: Any, **kwargs: Any) -> Plan:
    """Decides what `rewrite` would do with a step, and changes nothing.

    Args:
        step: a ``ConcreteFunction``, a ``tf.function`` or a plain Python train step; of a decorated step, the original
            is planned.
        policy: a `Policy`, a path or a mapping.
        *args: example arguments or ``tf.TensorSpec``s, where ``step`` is not concrete yet.
        **kwargs: likewise.

    Returns:
        The plan; where `rewrite` would refuse, its ``problems`` say why.

    Raises:
        GraphwdError: the policy is malformed, or the step cannot be traced or read.
    """
    traced = concrete(undecorated(step), *args, **kwargs)
    with collection_paused():
        return _plan(read(traced), as_policy(policy))


def rewrite_concrete(step: ConcreteFunction, policy: Policy) -> tuple[ConcreteFunction, Plan]:
    """Gives a concrete function weight decay.

    Args:
        step: the traced training step; it stays as it is.
        policy: the policy.

    Returns:
        A concrete function of the same signature, which keeps the variables of the step alive, and the plan that it was
        made by.

    Raises:
        GraphwdError: the policy does not fit the step, or the step cannot be rewritten.
    """
    emitted, decided = emit_rewritten(step, policy)
    return emitted.concrete(step, keep_variables=True), decided


def emit_rewritten(step: ConcreteFunction, policy: Policy) -> tuple[Emitted, Plan]:
    """Registers the body of a concrete function with weight decay, to be called or made a concrete function.

    Args:
        step: the traced training step; it stays as it is.
        policy: the policy.

    Returns:
        The body, and the plan that it was made by.

    Raises:
        GraphwdError: the policy does not fit the step, or the step cannot be rewritten.
    """
    with collection_paused():
        graph = read(step)
        decided = _plan(graph, policy)
    decided.check()
    for note in decided.notes:
        _LOG.warning("%s", note)

    def make(new_name: Callable[[str], str]) -> Rewritten:
        with collection_paused():
            made = inject(graph, decided.injections, new_name, fuse=decided.fuse)
        if made.unfused:
            _LOG.warning(
                "fuse: xla: not all of what updates and decays %s is fused: optimizer ops, sparse updates and what is "
                "not elementwise stay as they are",
                ", ".join(made.unfused),
            )
        return made

    return Emitted(step, make), decided


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
    refuse_no_step(step)
    return trace(step if is_polymorphic(step) else tf.function(step), args, kwargs)


def _plan(graph: Graph, policy: Policy) -> Plan:
    # Before the search: it would take graphwd's own decay for one that the step has of itself.
    refuse_rewritten(graph)
    return make_plan(find_updates(graph), policy)
