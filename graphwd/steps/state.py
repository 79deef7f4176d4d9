# pyright: basic
"""What a rewritten step carries of its own: rates that can be assigned, a counter of its updates, first weights."""

from __future__ import annotations

import itertools
import threading
import types
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from graphwd.errors import StepError
from graphwd.planning.injections import Own, OwnKind
from graphwd.policy.rules import Policy

STATE = "graphwd_state"
"""Of a rewritten step, and of a model that a policy is attached to."""


_GUARD = threading.RLock()
"""Held while a variable is made; not one for each state, which could then not be copied."""


class State(tf.Module):
    """The variables that graphwd made for a step, to be assigned between steps, and saved.

    It is what ``tf.train.Checkpoint`` takes, and part of a SavedModel if the object that is saved holds it.

    Attributes:
        rates: a scalar of float64 for each ``tunable``, by its name. What is assigned holds from the next step on,
            without a retrace.
        steps: the counter, a scalar of int64; None where no schedule needs one of graphwd's own.
    """

    def __init__(self, policy: Policy) -> None:
        """Makes the variables that the policy alone asks for, in the scope of the strategy at hand.

        Args:
            policy: the policy.
        """
        super().__init__(name="graphwd")
        self.rates: dict[str, tf.Variable] = {}
        self.steps: tf.Variable | None = None
        self.initial: dict[str, tf.Variable] = {}
        # Not a dict of its own: TensorFlow would track it, and save no dict whose keys are numbers.
        given = {rule.schedule.identity: rule.schedule.variable for rule in policy.rules if rule.schedule is not None}
        self._kept = types.SimpleNamespace(names={}, given=given)
        for rule in policy.rules:
            if rule.tunable is not None and rule.tunable not in self.rates:
                with tf.init_scope():
                    self.rates[rule.tunable] = _variable(rule.weight_decay, tf.float64, rule.tunable)

    def variable(self, own: Own, sources: Iterable[tf.Variable]) -> tf.Variable:
        """The variable that a rewritten step captures.

        Args:
            own: what it is for.
            sources: the variables of the step, of one of which it may keep the first weight.

        Returns:
            The variable; the same whenever the same is asked for.
        """
        with _GUARD, tf.init_scope():
            match own.kind:
                case OwnKind.RATE:
                    return self.rates[str(own.key)]
                case OwnKind.STEPS:
                    if self.steps is None:
                        self.steps = _variable(0, tf.int64, "steps")
                    return self.steps
                case OwnKind.GIVEN:
                    variable = self._kept.given[own.key]
                    return getattr(variable, "value", variable) if not hasattr(variable, "handle") else variable
                case OwnKind.INITIAL:
                    return self._first(own, sources)
                case other:
                    raise AssertionError(f"{other} is no kind of variable")

    def _first(self, own: Own, sources: Iterable[tf.Variable]) -> tf.Variable:
        """The variable that keeps the first weight of another."""
        if own.key not in self._kept.names:
            source = next(each for each in sources if id(each.handle) == own.key)
            names = itertools.chain([own.name], (f"{own.name}_{i}" for i in itertools.count(1)))
            name = next(name for name in names if name not in self.initial)
            with tf.device(source.device):
                self.initial[name] = _variable(source.read_value(), source.dtype, "initial")
            self._kept.names[own.key] = name
        return self.initial[self._kept.names[own.key]]


def _variable(value: Any, dtype: tf.DType, name: str) -> tf.Variable:
    return tf.Variable(value, trainable=False, dtype=dtype, name=name)


def state(step_or_model: Any) -> State:
    """What a rewritten step, or a model with a policy attached, carries of its own.

    Args:
        step_or_model: what `rewrite` or `with_weight_decay` returned, or a model that `graphwd.keras.attach` was given.

    Returns:
        Its variables: `State.rates`, `State.steps`. ``tf.train.Checkpoint(decay=graphwd.state(step))`` saves them.

    Raises:
        StepError: it is no such step or model.
    """
    found = getattr(step_or_model, STATE, None)
    if not isinstance(found, State):
        raise StepError(
            f"graphwd.state takes a step that graphwd.rewrite or with_weight_decay returned, or a model that a policy "
            f"is attached to, got a {type(step_or_model).__name__}"
        )
    return found


def give_state(step_or_model: Any, given: State) -> None:
    """Notes what a rewritten step carries."""
    setattr(step_or_model, STATE, given)
