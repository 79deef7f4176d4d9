# pyright: basic
"""What the variables of graphwd's own hold while a step is verified, and the rates of schedules by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from graphwd.errors import VerifyError
from graphwd.planning.injections import Own, OwnKind, Scheduled
from graphwd.steps.state import STATE, State


class OwnValues:
    """The values of the variables that a rewritten step has of graphwd's own.

    Attributes:
        steps: the number of updates so far, where graphwd counts them.
    """

    def __init__(self, rewritten: Any, variables: Sequence[tf.Variable], places: Mapping[int, int]) -> None:
        """Takes what is asked later.

        Args:
            rewritten: the rewritten step.
            variables: the variables of the original.
            places: the place of each among these, by its number.
        """
        found = getattr(rewritten, STATE, None)
        self._state = found if isinstance(found, State) else None
        self._variables = variables
        self._places = places
        self.steps = 0

    @property
    def state(self) -> State:
        """The variables.

        Raises:
            VerifyError: the rewritten step has none.
        """
        if self._state is None:
            raise VerifyError(
                "the policy asks for variables of graphwd's own, which verify does not find in the rewritten step; in "
                "Python call graphwd.verify with what graphwd.rewrite or with_weight_decay returned"
            )
        return self._state

    @property
    def counter(self) -> tf.Variable | None:
        """The counter of graphwd's own; None where there is none."""
        return None if self._state is None else self._state.steps

    @property
    def counted(self) -> int | None:
        """How many updates that counter has counted in this run; None where the state has none.

        Raises:
            VerifyError: the rewritten step has no state.
        """
        counter = self.state.steps
        return None if counter is None else int(counter.numpy()) - self.steps

    def begin(self, steps: int) -> None:
        """Sets the counter of graphwd's own, if there is one, before a run."""
        self.steps = steps
        if self.counter is not None:
            self.counter.assign(steps)

    def value(self, own: Own) -> np.ndarray:
        """What a variable holds; not the counter, which only a schedule reads."""
        assert own.kind is not OwnKind.STEPS
        state = self.state
        try:
            return state.variable(own, self._variables).numpy()
        except KeyError:
            raise VerifyError(f"the rewritten step has no {own.name}: another policy made it") from None

    def rate(self, scheduled: Scheduled) -> float:
        """The rate of a schedule now, in float64."""
        assert scheduled.schedule is not None
        if scheduled.own is not None:
            return scheduled.schedule.at(self.steps)
        return scheduled.schedule.at(int(self._variables[self._places[scheduled.variable]].numpy()))
