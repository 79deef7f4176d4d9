# pyright: basic
"""What decay does to each weight while it trains: measured in the step, written for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from graphwd.decay.arithmetic import wide
from graphwd.errors import StepError
from graphwd.planning.plan import Plan
from graphwd.steps.read import ConcreteFunction, variables_of
from graphwd.steps.state import Seen, State, state


@dataclass(frozen=True, slots=True)
class Measures:
    """What one run of a step did to a weight, as scalars without unit unless it says otherwise.

    Attributes:
        rate: what the formula was multiplied by, the mean where the run has several updates.
        weight_norm: the Euclidean norm of the weight after the run, in the unit of the weight.
        decay_norm: the norm of what decay took from the weight, in its unit; where it is coupled, of what it added to
            the gradient, in the unit of that. The sum over the updates of the run; of half precision ahead of rounding.
        share: where it is decoupled, ``decay_norm`` over the norm of the whole change of the weight; where it is
            coupled, over that of the gradient with decay. None where that is 0, and for a coupled decay of rows.
    """

    rate: float
    weight_norm: float
    decay_norm: float
    share: float | None


def write_summaries(step_or_model: Any, *, step: int | tf.Tensor) -> bool:
    """Writes what decay did in the last run, for TensorBoard, to the default writer of ``tf.summary``.

    For every weight that the run has decayed there are four scalars: ``decay_rate/NAME``, ``weight_norm/NAME``,
    ``decay_norm/NAME`` and ``decay_share/NAME``, as `Measures` says.

    Args:
        step_or_model: a step that `rewrite` or `with_weight_decay` returned, or a model that `graphwd.keras.attach` was
            given; each with ``summaries=True``.
        step: the number of the step, the horizontal axis of TensorBoard.

    Returns:
        Whether anything was written: not if there is no default writer, if ``tf.summary.record_if`` says no, or if the
        run has decayed nothing.

    Raises:
        StepError: it is no such step or model, or it was made without ``summaries=True``.

    Examples:
        >>> import tempfile
        >>> import tensorflow as tf
        >>> from graphwd import with_weight_decay
        >>> w = tf.Variable([3.0, 4.0], name="w")
        >>> @with_weight_decay({"version": 1, "rules": [{"weight_decay": 0.5}]}, summaries=True)
        ... def train_step():
        ...     with tf.GradientTape() as tape:
        ...         loss = tf.reduce_sum(w)
        ...     w.assign_sub(0.0 * tape.gradient(loss, w))
        >>> with tf.summary.create_file_writer(tempfile.mkdtemp()).as_default():
        ...     train_step()
        ...     write_summaries(train_step, step=0)
        True
    """
    measured = measures(step_or_model)
    written = [
        tf.summary.scalar(f"{tag}/{name}", value, step)
        for name, measure in measured.items()
        for tag, value in _scalars(measure)
    ]
    return any(bool(one) for one in written)


def measures(step_or_model: Any) -> Mapping[str, Measures]:
    """What decay did in the last run, by the name of the weight.

    Args:
        step_or_model: as for `write_summaries`.

    Raises:
        StepError: likewise.
    """
    held = state(step_or_model)
    if not held.watched:
        raise StepError(
            "its decay is not watched: give 'summaries=True' to graphwd.rewrite, with_weight_decay or "
            "graphwd.keras.attach"
        )
    last = float(held.watched_runs().numpy())
    # Of replicas, which are alike, the last counts.
    measured = {seen.name: _measures(seen) for seen in held.seen if float(seen.moved.numpy()[2]) == last}
    return {name: measure for name, measure in measured.items() if measure is not None}


class Watch:
    """Measures how far a run of one trace moves the weights that it decays."""

    def __init__(self, plan: Plan, given: State) -> None:
        """Takes the plan of the trace, and the state that keeps the measures."""
        self._injections = {injection.variable.key: injection for injection in plan.injections}
        self._state = given

    @contextlib.contextmanager
    def around(self, step: ConcreteFunction) -> Iterator[None]:
        """Reads the weights ahead of a run and behind it.

        Args:
            step: the trace.
        """
        sources = variables_of(step)
        run = self._state.watched_runs(sources).assign_add(1.0)
        weights: dict[int | None, tf.Variable] = {id(variable.handle): variable for variable in sources}
        watched: list[tuple[Seen, tf.Variable, tf.Tensor]] = []
        for key, injection in self._injections.items():
            seen = self._state.see(injection, sources)
            seen.taken.assign(tf.zeros_like(seen.taken))
            with tf.device(weights[key].device):
                watched.append((seen, weights[key], _content(weights[key])))
        yield
        for seen, weight, before in watched:
            with tf.device(weight.device):
                after = _content(weight)
                norms = tf.cast(tf.stack([tf.norm(after), tf.norm(after - before)]), tf.float64)
                seen.moved.assign(tf.concat([norms, [run]], 0))


def _content(weight: tf.Variable) -> tf.Tensor:
    """The content of a weight, in the dtype that decay is computed in."""
    content = tf.raw_ops.ReadVariableOp(resource=weight.handle, dtype=weight.dtype)
    return tf.cast(content, wide(weight.dtype.name))


def _scalars(measure: Measures) -> Iterator[tuple[str, float]]:
    yield "decay_rate", measure.rate
    yield "weight_norm", measure.weight_norm
    yield "decay_norm", measure.decay_norm
    if measure.share is not None:
        yield "decay_share", measure.share


def _measures(seen: Seen) -> Measures | None:
    """What is measured of a weight; None where the run has not decayed it."""
    updates, rates, decay_norm, gradient_norm = map(float, seen.taken.numpy())
    if not updates:
        return None
    weight_norm, change, _ = map(float, seen.moved.numpy())
    whole = gradient_norm if seen.coupled else change
    return Measures(rates / updates, weight_norm, decay_norm, decay_norm / whole if whole else None)
