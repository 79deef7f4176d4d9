# pyright: basic
"""What a rewritten step carries of its own: rates that can be assigned, a counter of its updates, first weights."""

from __future__ import annotations

import concurrent.futures
import functools
import threading
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from graphwd.errors import PlanError, StepError
from graphwd.messages import listed
from graphwd.planning.injections import InGradient, Injection, Own, OwnKind
from graphwd.planning.plan import Plan
from graphwd.planning.problems import apart
from graphwd.policy.rules import Policy

dtensor: Any = tf.experimental.dtensor  # whose classes its stubs do not describe

STATE = "graphwd_state"
"""Of a rewritten step, and of a model that a policy is attached to."""


_GUARD = threading.RLock()
"""Held while a variable is made; not one for each state, which could then not be copied."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is measured of a weight in each run of a step that is watched.

    Attributes:
        name: the weight's name in tables and messages.
        coupled: whether the decay is in the gradient.
        taken: the sums over the decays of the run: 1, the rate, the norm of what decay takes, and, where it is coupled,
            the norm of the gradient with decay.
        moved: the norm of the weight after the run, the norm of its change, and the number of the run.
    """

    name: str
    coupled: bool
    taken: tf.Variable
    moved: tf.Variable


class State(tf.Module):
    """The variables that graphwd made for a step, to be assigned between steps, and saved.

    It is what ``tf.train.Checkpoint`` takes, and part of a SavedModel if the object that is saved holds it.

    Attributes:
        rates: a scalar of float64 for each ``tunable``, by its name. What is assigned holds from the next step on,
            without a retrace.
        steps: the counter, a scalar of int64; None where no schedule needs one of graphwd's own.
        watched: whether the step measures what its decays do.
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
        self._kept = types.SimpleNamespace(names={}, given=given, counted={}, seen={}, runs=None)
        self.watched = False
        for rule in policy.rules:
            if rule.tunable is not None and rule.tunable not in self.rates:
                with tf.init_scope():
                    self.rates[rule.tunable] = _variable(rule.weight_decay, tf.float64, rule.tunable)

    @classmethod
    def of_saved(cls, saved: Any) -> State | None:
        """What a SavedModel holds of a state, to be read and assigned; None where it does not say all.

        Args:
            saved: the object that was a `State` when it was saved; None where there is none.
        """
        if saved is None or getattr(saved, "initial", None):
            return None  # the order of first weights does not tell whose they are
        state = cls(Policy(()))
        state.rates = dict(getattr(saved, "rates", {}))
        state.steps = getattr(saved, "steps", None)
        return state

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
                        self.steps = _apart(lambda: _variable(0, tf.int64, "steps", _mesh(sources)))
                    return self.steps
                case OwnKind.GIVEN:
                    given = self._kept.given[own.key]
                    return given if isinstance(given, tf.Variable) else given.value  # of Keras
                case OwnKind.INITIAL:
                    return self._first(own, sources)
                case OwnKind.SEEN:
                    return self._kept.seen[own.key].taken
                case other:
                    raise AssertionError(f"{other} is no kind of variable")

    def watched_runs(self, sources: Iterable[tf.Variable] = ()) -> tf.Variable:
        """Counts the runs in which anything is measured; a scalar of float64.

        Args:
            sources: the variables of the step, for the first time that this is asked for.
        """
        with _GUARD, tf.init_scope():
            if self._kept.runs is None:
                self._kept.runs = _apart(lambda: _variable(0.0, tf.float64, "runs", _mesh(sources)))
        return self._kept.runs

    @property
    def seen(self) -> Iterable[Seen]:
        """What is measured of the weights, where the step is watched."""
        return tuple(self._kept.seen.values())

    def see(self, injection: Injection, sources: Iterable[tf.Variable]) -> Seen:
        """What is measured of the weight of a decay.

        Args:
            injection: the decay.
            sources: the variables of the step.
        """
        weight, seen = injection.variable, self._kept.seen
        with _GUARD, tf.init_scope():
            if weight.key not in seen:
                source = next(each for each in sources if id(each.handle) == weight.key)

                def zeros(size: int) -> tf.Variable:
                    with tf.device(source.device):
                        return _variable(tf.zeros(size, tf.float64), tf.float64, "seen", _mesh([source]))

                made = [_apart(functools.partial(zeros, size)) for size in (4, 3)]
                seen[weight.key] = Seen(weight.shown, isinstance(injection, InGradient), *made)
        return seen[weight.key]

    def count_for(self, plan: Plan) -> None:
        """Notes which updates the counter counts, if a plan needs one.

        Args:
            plan: the plan of a trace.

        Raises:
            PlanError: it counts those of other variables already, in another trace.
        """
        counted = {
            injection.variable.key: injection.variable
            for injection in plan.injections
            if any(own.kind is OwnKind.STEPS for own in injection.own)
        }
        if not counted:
            return
        with _GUARD:
            before = self._kept.counted = self._kept.counted or counted
        if before.keys() != counted.keys():
            names = [listed(sorted(variable.shown for variable in each.values())) for each in (before, counted)]
            if names[0] == names[1]:
                raise PlanError(
                    f"the variables {names[0]} of one model and those of the same names of another are updated apart "
                    "from each other, while graphwd would count their updates together; make one WeightDecay, or one "
                    "decorated function, for each model"
                )
            raise PlanError(apart(" and ".join(names), "different traces of the step"))

    def _first(self, own: Own, sources: Iterable[tf.Variable]) -> tf.Variable:
        """The variable that keeps the first weight of another."""
        if own.key not in self._kept.names:
            source = next(each for each in sources if id(each.handle) == own.key)
            # By number: the names that Keras gives to layers without one differ from model to model.
            name = str(len(self.initial))

            def copy() -> tf.Variable:
                with tf.device(source.device):
                    return _variable(source.read_value(), source.dtype, "initial", _mesh([source]))

            self.initial[name] = _apart(copy)
            self._kept.names[own.key] = name
        return self.initial[self._kept.names[own.key]]


def _apart(make: Callable[[], tf.Variable]) -> tf.Variable:
    """Makes a variable in a thread of its own.

    There no function is being traced, which would refuse new variables but for its first trace.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(make).result()


def _mesh(variables: Iterable[tf.Variable]) -> Any:
    """The mesh that variables of DTensor are laid out on; None where there are none of these."""
    return next((variable.layout.mesh for variable in variables if isinstance(variable, dtensor.DVariable)), None)


def _variable(value: Any, dtype: tf.DType, name: str, mesh: Any = None) -> tf.Variable:
    """Makes a variable; on a mesh, one of DTensor, for every device of it would write to any other."""
    if mesh is None:
        return tf.Variable(value, trainable=False, dtype=dtype, name=name)
    if not dtensor.is_dtensor(value):
        value = tf.constant(value, dtype)
        value = dtensor.copy_to_mesh(value, dtensor.Layout.replicated(mesh, value.shape.rank))
    return dtensor.DVariable(value, trainable=False, name=name)


class CountedBy:
    """What the schedules of a decorated step go by, which must be the same in all of its traces."""

    def __init__(self) -> None:
        self._counters: dict[tuple[object, object], tuple[object, str]] = {}

    def note(self, plan: Plan) -> None:
        """Notes the counters of one more trace.

        Args:
            plan: its plan.

        Raises:
            PlanError: in another trace the schedule of a variable goes by another counter, which would not know of the
                updates that this one counts.
        """
        assert plan.graph is not None
        for injection in plan.injections:
            for rate in injection.schedules:
                counter = plan.graph.variables[rate.variable].key if rate.own is None else None
                weight = injection.variable.key, rate.schedule
                before = self._counters.setdefault(weight, (counter, rate.counter))
                if before[0] != counter:
                    raise PlanError(
                        f"the schedule of '{injection.variable.shown}' goes by {before[1]} in one trace of the step, "
                        f"and by {rate.counter} in another, and neither counts all of its updates; count them in one "
                        "integer variable in both, and name that with 'step: NAME'"
                    )


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
