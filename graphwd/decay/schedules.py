# pyright: basic
"""The schedules of weight decay: a rate as a function of the number of updates before this one.

A schedule is a function of a scalar t, the number of updates since warm-up, in float64. Its other parameters are
options that a policy gives by the same names; ``from`` is no name in Python, so it is ``first`` here, and ``to`` is
``last``.

They are written out here rather than taken from Keras: its schedules compute in float32, take their own number of the
same formulas only for a start above 0, and run on whatever backend Keras has.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from graphwd.errors import RewriteError
from graphwd.messages import READS_OUTSIDE, failure

Option = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule, with the numbers that a policy gives it.

    Attributes:
        name: the word for it.
        function: the function of t.
        options: its options, by name.
        warmup_steps: for how many updates the rate first rises linearly from 0 to its value at t = 0.
        own: whether the function is the user's; it gets the number of updates as an int64.
        scope: what the names of its nodes begin with, by which drawings know them.
    """

    name: str
    function: Callable[..., tf.Tensor]
    options: tuple[tuple[str, Option], ...] = ()
    warmup_steps: int = 0
    own: bool = False
    scope: str = "schedule"

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate.

        Args:
            step: the number of updates before this one, a scalar of float64.

        Returns:
            A scalar of float64.

        Raises:
            RewriteError: the function is the user's own and fails, or returns no number.
        """
        if self.own:
            return self._of_user(step)
        options = dict(self.options)
        if not self.warmup_steps:
            return self.function(step, **options)
        after = self.function(tf.maximum(step - self.warmup_steps, 0), **options)
        # It is its own first value that the warm-up leads to, wherever in the schedule that stands.
        return after * tf.minimum(step / self.warmup_steps, 1)

    def _of_user(self, step: tf.Tensor) -> tf.Tensor:
        try:
            rate = self.function(tf.cast(step, tf.int64))
            # A cast would first make a float32 of a number of Python.
            rate = tf.constant(rate, tf.float64) if isinstance(rate, float) else tf.convert_to_tensor(rate)
            rate.shape.assert_is_compatible_with(())
        except Exception as error:
            raise RewriteError(f"the schedule '{self.name}' {failure(error)}") from error
        if not (rate.dtype.is_floating or rate.dtype.is_integer):
            raise RewriteError(f"the schedule '{self.name}' must return a number, got a {rate.dtype.name}")
        return tf.reshape(tf.cast(rate, tf.float64), ())

    def at(self, step: int) -> float:
        """The rate after some updates."""
        return float(self(tf.constant(step, tf.float64)))

    def rates(self, steps: Iterable[int]) -> list[float]:
        """The rates after some updates, computed as in a graph; also while another graph is made.

        Args:
            steps: the numbers of updates.

        Returns:
            The rate after each; none where TensorFlow runs no code eagerly.

        Raises:
            RewriteError: as for a call.
        """
        # In a thread of its own no function is being traced.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return list(pool.submit(_rates, self, tuple(steps)).result())

    @property
    def turns(self) -> tuple[int, ...]:
        """The numbers of updates at which it is known to change its course, and those right after."""
        known = dict(self.options) | {"warmup_steps": self.warmup_steps}
        if self.own:  # those of Keras say so by these names
            known = {name: getattr(self.function, name, None) for name in ("boundaries", "decay_steps", "warmup_steps")}
        warmup = _counts(known.get("warmup_steps"))
        ends = [end for name in ("boundaries", "steps", "decay_steps") for end in _counts(known.get(name))]
        turns = {*warmup, *ends, *(begin + end for begin in warmup for end in ends)}
        return tuple(sorted(turns | {turn + 1 for turn in turns}))

    @property
    def end(self) -> int | None:
        """The number of updates from which on the rate stays; None where that is not known."""
        known = {} if self.own else dict(self.options)
        ends = [*_counts(known.get("steps")), *(last + 1 for last in _counts(known.get("boundaries")))]
        return self.warmup_steps + max(ends) if ends else None

    def __str__(self) -> str:
        """The schedule as a plan shows it."""
        words = {"first": "from", "last": "to"}
        options = [f"{words.get(name, name)}={_text(value)}" for name, value in self.options]
        options += [f"warmup_steps={self.warmup_steps}"] if self.warmup_steps else []
        return f"{self.name}({', '.join(options)})" if options else self.name

    @property
    def option_names(self) -> tuple[str, ...]:
        """The options that a policy must give, besides ``warmup_steps``, in order."""
        return tuple(inspect.signature(self.function).parameters)[1:]

    def given(self, options: Mapping[str, Option], warmup_steps: int) -> Schedule:
        """The same schedule with options."""
        return dataclasses.replace(self, options=tuple(options.items()), warmup_steps=warmup_steps)


SCHEDULES: dict[str, Schedule] = {}
"""Every schedule, by the word that a policy uses for it."""


def schedule(name: str) -> Callable[[Callable[..., Any]], Schedule]:
    """Registers a schedule.

    Args:
        name: the word for it.
    """

    def register(function: Callable[..., Any]) -> Schedule:
        SCHEDULES[name] = Schedule(name, function)
        return SCHEDULES[name]

    return register


@schedule("linear")
def linear(t: tf.Tensor, first: float, last: float, steps: float) -> tf.Tensor:
    """Returns first + (last - first) · q, with q = min(t/steps, 1)."""
    return first + (last - first) * tf.minimum(t / steps, 1)


@schedule("cosine")
def cosine(t: tf.Tensor, first: float, last: float, steps: float) -> tf.Tensor:
    """Returns last + (first - last) · (1 + cos πq)/2, with q = min(t/steps, 1) (DINO, arXiv 2104.14294)."""
    return last + (first - last) * (1 + tf.cos(math.pi * tf.minimum(t / steps, 1))) / 2


@schedule("exponential")
def exponential(t: tf.Tensor, first: float, last: float, steps: float) -> tf.Tensor:
    """Returns first · (last/first)^q, with q = min(t/steps, 1)."""
    return first * tf.pow(tf.constant(last / first, tf.float64), tf.minimum(t / steps, 1))


@schedule("piecewise")
def piecewise(t: tf.Tensor, boundaries: tuple[float, ...], values: tuple[float, ...]) -> tf.Tensor:
    """Returns the first value up to the first boundary and with it, the next up to the next, and so on.

    So does ``tf.keras.optimizers.schedules.PiecewiseConstantDecay``.
    """
    rate = tf.constant(values[-1], tf.float64)
    for boundary, value in reversed(list(zip(boundaries, values, strict=False))):
        rate = tf.where(t <= boundary, tf.constant(value, tf.float64), rate)
    return rate


@functools.cache  # as fragments are: a schedule is a function of the step alone
def _rates(schedule: Schedule, steps: tuple[int, ...]) -> tuple[float, ...]:
    if not tf.executing_eagerly():
        return ()
    # Not of the schedule itself, of which there is no weak reference.
    traced = tf.function(lambda step: schedule(step), autograph=False)
    compute = traced.get_concrete_function(tf.TensorSpec([], tf.float64))
    if compute.captured_inputs:
        raise RewriteError(f"the schedule '{schedule.name}' {READS_OUTSIDE}")
    return tuple(float(compute(tf.constant(step, tf.float64))) for step in steps)


def _counts(value: Any) -> list[int]:
    """The numbers of updates that an option holds: the whole numbers that a counter can reach."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [int(each) for each in values if isinstance(each, (int, float)) and 0 <= each < 2**53]


def _text(value: Option) -> str:
    return f"[{', '.join(f'{each:g}' for each in value)}]" if isinstance(value, tuple) else f"{value:g}"
