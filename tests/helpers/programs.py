"""Random training steps: programs of updates, branches, loops, calls and other writes, made from a seed.

A program runs in two ways: traced, as the step that is rewritten, and eagerly, as the reference, which decays a
variable by hand after each of its updates. Both run the same code; only in the reference does ``decay`` do anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

SHAPE = [2, 3]
Statement = Callable[["State"], None]


@dataclass
class State:
    """What a program works on.

    Attributes:
        weights: the trainable variables.
        slots: a slot variable for each.
        averages: a moving average of each.
        counter: counts updates.
        rates: the rate of each weight, by number.
        by_hand: whether this is the reference, which decays.
        batch: the data of this run, (2, 3), float32.
    """

    weights: list[tf.Variable]
    slots: list[tf.Variable]
    averages: list[tf.Variable]
    counter: tf.Variable
    rates: list[float]
    by_hand: bool
    batch: tf.Tensor = field(default_factory=lambda: tf.zeros(SHAPE))

    @classmethod
    def make(cls, count: int, rates: list[float], *, by_hand: bool) -> State:
        """A fresh state, the same whenever it is made."""

        def variables(prefix: str, trainable: bool) -> list[tf.Variable]:
            start = np.linspace(-1, 1, 6, dtype=np.float32).reshape(SHAPE)
            return [
                tf.Variable(start / (i + 1) if trainable else start * 0, name=f"{prefix}{i}", trainable=trainable)
                for i in range(count)
            ]

        counter = tf.Variable(0, name="counter", trainable=False)
        return cls(variables("w", True), variables("slot", False), variables("average", False), counter, rates, by_hand)

    @property
    def variables(self) -> list[tf.Variable]:
        """All of it."""
        return [*self.weights, *self.slots, *self.averages, self.counter]

    def gradient(self, i: int) -> tf.Tensor:
        """A gradient of weight ``i`` that depends on every weight and on the batch."""
        with tf.GradientTape() as tape:
            outputs = tf.tanh(tf.add_n([w.read_value() for w in self.weights]) + self.batch)
            loss = tf.reduce_sum(tf.square(outputs) + 0.5 * tf.square(self.weights[i] - 0.3))
        return tape.gradient(loss, self.weights[i])

    def decay(self, i: int) -> None:
        """Where the reference decays weight ``i``."""
        if self.by_hand:
            self.weights[i].assign(self.weights[i] * np.float32(1 - self.rates[i]))


# --- Updates ----------------------------------------------------------------------------------------------------------


def _sub(state: State, i: int, gradient: tf.Tensor) -> None:
    state.weights[i].assign_sub(0.05 * gradient)


def _assign(state: State, i: int, gradient: tf.Tensor) -> None:
    state.weights[i].assign(state.weights[i] - 0.05 * tf.clip_by_norm(gradient, 1.0))


def _momentum(state: State, i: int, gradient: tf.Tensor) -> None:
    state.slots[i].assign(0.9 * state.slots[i] + gradient)
    state.weights[i].assign_add(-0.05 * state.slots[i])


def _two_writes(state: State, i: int, gradient: tf.Tensor) -> None:
    state.weights[i].assign_sub(0.02 * gradient)
    state.weights[i].assign_sub(0.03 * tf.identity(gradient))


def _apply_sgd(state: State, i: int, gradient: tf.Tensor) -> None:
    tf.raw_ops.ResourceApplyGradientDescent(var=state.weights[i].handle, alpha=0.05, delta=gradient)


def _apply_momentum(state: State, i: int, gradient: tf.Tensor) -> None:
    tf.raw_ops.ResourceApplyMomentum(
        var=state.weights[i].handle, accum=state.slots[i].handle, lr=0.05, grad=gradient, momentum=0.9
    )


def _scatter(state: State, i: int, gradient: tf.Tensor) -> None:
    # Both rows, so that decaying the rows touched is decaying the weight.
    state.weights[i].scatter_sub(tf.IndexedSlices(0.05 * gradient, tf.constant([0, 1])))


UPDATES = (_sub, _assign, _momentum, _two_writes, _apply_sgd, _apply_momentum, _scatter)


def _update(make: random.Random, start: int, stop: int) -> Statement:
    i, kind = make.randrange(start, stop), make.choice(UPDATES)

    def run(state: State) -> None:
        kind(state, i, state.gradient(i))
        state.decay(i)

    return run


def _helper(make: random.Random, count: int) -> Statement:
    """One function that updates several weights, given each."""
    chosen = [make.randrange(count) for _ in range(make.randint(1, 3))]
    raw = make.random() < 0.5

    def run(state: State) -> None:
        @tf.function
        def helper(target: tf.Variable | tf.Tensor, gradient: tf.Tensor) -> None:
            if raw:
                tf.raw_ops.AssignSubVariableOp(resource=target, value=0.05 * gradient)
            else:
                target.assign_sub(0.05 * gradient)

        for i in chosen:
            gradient = state.gradient(i)
            helper(state.weights[i].handle if raw else state.weights[i], gradient)
            state.decay(i)

    return run


# --- Writes that are no updates ---------------------------------------------------------------------------------------


def _clip(make: random.Random, count: int) -> Statement:
    i = make.randrange(count)

    def run(state: State) -> None:
        state.weights[i].assign(tf.clip_by_value(state.weights[i], -0.9, 0.9))

    return run


def _average(make: random.Random, count: int) -> Statement:
    i = make.randrange(count)

    def run(state: State) -> None:
        state.averages[i].assign(0.7 * state.averages[i] + 0.3 * state.weights[i])

    return run


def _overwrite(make: random.Random, count: int) -> Statement:
    i = make.randrange(count)

    def run(state: State) -> None:
        state.weights[i].assign(0.5 + state.averages[i])

    return run


def _count(make: random.Random, count: int) -> Statement:
    del make, count

    def run(state: State) -> None:
        state.counter.assign_add(1)

    return run


# --- Structure --------------------------------------------------------------------------------------------------------


def _branch(make: random.Random, count: int, depth: int) -> Statement:
    then, other = _block(make, count, depth), _block(make, count, depth)
    by_data = make.random() < 0.5

    def run(state: State) -> None:
        condition = tf.reduce_sum(state.batch) > 0 if by_data else state.counter % 2 == 0
        tf.cond(condition, lambda: then(state) or 0, lambda: other(state) or 0)

    return run


def _loop(make: random.Random, count: int, depth: int) -> Statement:
    body, times = _block(make, count, depth), make.randint(1, 3)

    def run(state: State) -> None:
        def once(k: tf.Tensor) -> list[tf.Tensor]:
            body(state)
            return [k + 1]

        tf.while_loop(lambda k: k < times, once, [tf.constant(0)])

    return run


def _call(make: random.Random, count: int, depth: int) -> Statement:
    body = _block(make, count, depth)

    def run(state: State) -> None:
        tf.function(lambda: body(state), autograph=False)()

    return run


def _any_update(make: random.Random, count: int) -> Statement:
    return _update(make, 0, count)


SIMPLE = (_any_update, _any_update, _any_update, _helper, _clip, _average, _overwrite, _count)
NESTED = (_branch, _loop, _call)


def _block(make: random.Random, count: int, depth: int) -> Statement:
    statements = [
        make.choice(NESTED)(make, count, depth - 1)
        if depth and make.random() < 0.4
        else make.choice(SIMPLE)(make, count)
        for _ in range(make.randint(1, 3))
    ]

    def run(state: State) -> None:
        for statement in statements:
            statement(state)

    return run


@dataclass
class Program:
    """A random training step.

    Attributes:
        run: runs it once.
        count: how many weights it has.
        rates: the rate of each.
    """

    run: Statement
    count: int
    rates: list[float]


def make_program(seed: int) -> Program:
    """The program of a seed; it updates every weight in every run."""
    make = random.Random(seed)
    count = make.randint(1, 4)
    # Each weight once for certain: a rule for one that only other writes touch would be refused.
    certain, rest = [_update(make, i, i + 1) for i in range(count)], _block(make, count, depth=3)

    def run(state: State) -> None:
        for update in certain:
            update(state)
        rest(state)

    return Program(run, count, [make.choice([0.0, 0.1, 0.25, 0.25]) for _ in range(count)])
