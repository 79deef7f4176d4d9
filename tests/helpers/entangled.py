"""Random steps of several weights in one loss, so that the gradient of each reads the others, as it was or updated.

A step runs in two ways. Traced, its gradients come by tape, loop, map, argument and so on. As the reference it runs
eagerly, its gradients are a formula, and it decays by hand. Only what comes between gradient and update, and the
arithmetic of the optimizers, is one code for both. ``tests/helpers/origins.py`` varies more of what one weight may be.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

ROWS, FEATURES, CLASSES = 4, 3, 2
SHAPE = [FEATURES, CLASSES]
LEARNING_RATE = 0.05
SEMANTICS = ("decoupled", "tfa", "adamw", "l2")


@dataclass(frozen=True)
class Weight:
    """What a seed decides for one weight.

    Attributes:
        origin: where its gradient comes from.
        between: what is done to that before the optimizer, in turn.
        optimizer: the optimizer's arithmetic.
        average: how an average of it is kept, if any.
        scale: its factor in the forward pass.
    """

    origin: str
    between: tuple[str, ...]
    optimizer: str
    average: str
    scale: float


@dataclass(frozen=True)
class Design:
    """What a seed decides for a step.

    Attributes:
        weights: its weights.
        rates: the weight decay of each.
        semantics: of the policy.
        shared: whether each weight is read once, for forward pass, update and outputs.
        interleaved: whether a gradient is taken after the updates of the weights before it.
        trainable_slots: whether slots, averages and accumulated gradients are trainable, by oversight.
        equal_names: whether all variables have one name.
        leave: whether the policy has ``not_updated: leave``.
        words: whether the policy says which the update, the gradient and the learning rate are.
    """

    weights: tuple[Weight, ...]
    rates: tuple[float, ...]
    semantics: str
    shared: bool
    interleaved: bool
    trainable_slots: bool
    equal_names: bool
    leave: bool
    words: bool


def design(seed: int) -> Design:
    """The design of a seed."""
    make = random.Random(seed)
    weights = tuple(
        Weight(
            make.choice(tuple(ORIGINS)),
            tuple(make.sample(tuple(BETWEEN), make.choice([0, 0, 1, 2]))),
            make.choice(tuple(OPTIMIZERS)),
            make.choice(["none", "none", *AVERAGES]),
            make.choice([0.5, 1.0, 1.5]),
        )
        for _ in range(make.randint(1, 3))
    )
    equal_names = make.random() < 0.3
    rates = [make.choice([0.1, 0.25]) for _ in weights]
    return Design(
        weights,
        tuple(rates[:1] * len(weights) if equal_names else rates),
        SEMANTICS[seed % 4],
        make.random() < 0.5,
        make.random() < 0.3,
        make.random() < 0.5,
        equal_names,
        make.random() < 0.8,
        make.random() < 0.5,
    )


def policy_of(made: Design) -> dict[str, Any]:
    """The policy: a rule for each weight, or one for everything where no name tells the weights apart."""
    top: dict[str, Any] = {"version": 1, "not_updated": "leave" if made.leave else "error"}
    fields: dict[str, Any] = {"semantics": made.semantics}
    if made.words:
        fields |= {"update": "update_*"}
        fields |= {"learning_rate": "rate"} if made.semantics in ("adamw", "l2") else {}
        fields |= {"gradient": "ready_*"} if made.semantics == "l2" else {}
    if made.equal_names:
        return top | {"rules": [{"weight_decay": made.rates[0], **fields}]}
    rules = [{"name": f"w{k}", "weight_decay": rate, **fields} for k, rate in enumerate(made.rates)]
    return top | {"rules": [*rules, {"weight_decay": 0}]}


@dataclass
class State:
    """The variables of a step, and how it is run.

    Attributes:
        made: the design.
        eager: whether this is the reference.
        weights: the weights.
        slots: two for each weight.
        averages: one for each weight.
        totals: gradients accumulated elsewhere, one for each weight.
        given: the gradient that is an argument of this run's step, one for each weight.
        rates: the weight decay of each weight, by hand.
        rate: the learning rate of this run.
    """

    made: Design
    eager: bool
    weights: list[tf.Variable] = field(default_factory=list)
    slots: list[list[tf.Variable]] = field(default_factory=list)
    averages: list[tf.Variable] = field(default_factory=list)
    totals: list[tf.Variable] = field(default_factory=list)
    given: Sequence[Any] = ()
    rates: Sequence[float] = ()
    rate: Any = None

    @classmethod
    def make(cls, made: Design, *, eager: bool) -> State:
        """A fresh state, the same whenever it is made."""
        state = cls(made, eager)
        start = np.linspace(-1, 1, FEATURES * CLASSES, dtype=np.float32).reshape(SHAPE)

        def variable(value: Any, name: str, trainable: bool) -> tf.Variable:
            return tf.Variable(value, name="variable" if made.equal_names else name, trainable=trainable)

        for k in range(len(made.weights)):
            state.weights.append(variable(start / (k + 1) + 0.3, f"w{k}", True))
            state.slots.append([variable(start * start, f"s{k}_{i}", made.trainable_slots) for i in range(2)])
            state.averages.append(variable(start * 0.1, f"a{k}", made.trainable_slots))
            state.totals.append(variable(start * 0, f"t{k}", made.trainable_slots))
        return state

    @property
    def variables(self) -> list[tf.Variable]:
        """All of it."""
        return [*self.weights, *(slot for pair in self.slots for slot in pair), *self.averages, *self.totals]

    def reads(self) -> list[tf.Tensor]:
        """Every weight, read now."""
        return [weight.read_value() for weight in self.weights]

    def mix(self, values: Sequence[Any]) -> Any:
        """The matrix of the forward pass."""
        return tf.add_n([weight.scale * value for weight, value in zip(self.made.weights, values, strict=True)])


def by_formula(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    """The gradient of `loss` by weight ``k``, by hand."""
    residual = tf.matmul(x, state.mix(values)) - y
    return (2.0 * state.made.weights[k].scale / ROWS) * tf.matmul(x, residual, transpose_a=True)


def loss(state: State, values: Sequence[Any], x: Any, y: Any) -> Any:
    """The sum of squares, by the number of rows of a whole batch."""
    return tf.reduce_sum(tf.square(tf.matmul(x, state.mix(values)) - y)) / ROWS


# --- Where gradients come from ----------------------------------------------------------------------------------------

Origin = Callable[[State, int, Sequence[Any], Any, Any], Any]


def _with(values: Sequence[Any], k: int, value: Any) -> list[Any]:
    return [value if i == k else each for i, each in enumerate(values)]


def _watched(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values[k])
        value = loss(state, values, x, y)
    return tape.gradient(value, values[k])


def _tape(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    if state.made.shared:
        return _watched(state, k, values, x, y)
    with tf.GradientTape() as tape:
        value = loss(state, state.reads(), x, y)
    return tape.gradient(value, state.weights[k])


def _tf_gradients(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    return tf.gradients(loss(state, values, x, y), [values[k]], name="mine")[0]


def _jacobian(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    with tf.GradientTape() as tape:
        tape.watch(values[k])
        residual = tf.matmul(x, state.mix(values)) - y
    rows = tape.jacobian(residual, values[k], experimental_use_pfor=False)
    return tf.einsum("bc,bcij->ij", residual, rows) * (2.0 / ROWS)


def _custom(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    @tf.custom_gradient
    def of(value: Any) -> Any:
        there = _with(values, k, value)
        return loss(state, there, x, y), lambda up: up * by_formula(state, k, there, x, y)

    with tf.GradientTape() as tape:
        tape.watch(values[k])
        value = of(values[k])
    return tape.gradient(value, values[k])


def _loop(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    def once(i: Any, total: Any) -> Any:
        return i + 1, total + _watched(state, k, values, x[i : i + 1], y[i : i + 1])

    return tf.while_loop(lambda i, _: i < ROWS, once, [0, tf.zeros(SHAPE)])[1]


def _map(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    def one(row: Any) -> Any:
        return _watched(state, k, values, row[0][None], row[1][None])

    return tf.reduce_sum(tf.map_fn(one, (x, y), fn_output_signature=tf.float32), 0)


def _vectorized(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    def one(row: Any) -> Any:
        return by_formula(state, k, values, row[0][None], row[1][None])

    return tf.reduce_sum(tf.vectorized_map(one, (x, y)), 0)


def _branch(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    return tf.cond(
        tf.reduce_sum(x) > -1e9,
        lambda: _watched(state, k, values, x, y),
        lambda: tf.zeros(SHAPE),
    )


def _function(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    return tf.function(lambda values, x, y: by_formula(state, k, values, x, y), autograph=False)(list(values), x, y)


def _function_that_reads(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    del values
    return tf.function(lambda x, y: _watched(state, k, state.reads(), x, y), autograph=False)(x, y)


def _argument(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    del values, x, y
    return state.given[k]


def _elsewhere(state: State, k: int, values: Sequence[Any], x: Any, y: Any) -> Any:
    del values, x, y
    total = state.totals[k].read_value()
    with tf.control_dependencies([total]):
        state.totals[k].assign(tf.zeros(SHAPE))
    return total


ORIGINS: dict[str, Origin] = {
    "tape": _tape,
    "tf.gradients": _tf_gradients,
    "hand": by_formula,
    "jacobian": _jacobian,
    "custom gradient": _custom,
    "loop": _loop,
    "map_fn": _map,
    "vectorized_map": _vectorized,
    "branch": _branch,
    "function": _function,
    "function that reads": _function_that_reads,
    "argument": _argument,
    "elsewhere": _elsewhere,
}

# Of these the reference takes what it is given, too.
GIVEN = ("argument", "elsewhere")


# --- What comes between -----------------------------------------------------------------------------------------------

MASK = np.array([[1, 0], [1, 1], [0, 1]], np.float32)


def _clip(gradient: Any, _: Any) -> Any:
    return tf.clip_by_norm(gradient, 0.5)


def _by_weight(gradient: Any, weight: Any) -> Any:
    limit = 0.3 * tf.maximum(tf.norm(weight), 1e-3)
    return gradient * tf.minimum(1.0, limit / tf.maximum(tf.norm(gradient), 1e-6))


def _checked(gradient: Any, _: Any) -> Any:
    return tf.debugging.check_numerics(gradient, "gradient")


def _asserted(gradient: Any, weight: Any) -> Any:
    fine = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(gradient + weight)), ["gradient"])
    with tf.control_dependencies([] if fine is None else [fine]):
        return tf.identity(gradient)


def _masked(gradient: Any, _: Any) -> Any:
    return gradient * MASK


def _halved(gradient: Any, _: Any) -> Any:
    return gradient * 0.5


def _centered(gradient: Any, _: Any) -> Any:
    return gradient - tf.reduce_mean(gradient, 0, keepdims=True)


def _regularized(gradient: Any, weight: Any) -> Any:
    return gradient + 0.01 * weight


BETWEEN: dict[str, Callable[[Any, Any], Any]] = {
    "clip": _clip,
    "clip by weight": _by_weight,
    "check": _checked,
    "assert": _asserted,
    "mask": _masked,
    "half": _halved,
    "center": _centered,
    "own L2": _regularized,
}


# --- Optimizers: each writes, and gives what it wrote where it has that as a tensor ----------------------------------

Apply = Callable[[State, int, Any, Any], Any]


def _sub(state: State, k: int, gradient: Any, _: Any) -> Any:
    state.weights[k].assign_sub(state.rate * gradient, name=f"update_{k}")


def _add(state: State, k: int, gradient: Any, _: Any) -> Any:
    state.weights[k].assign_add(-state.rate * gradient, name=f"update_{k}")


def _assign(state: State, k: int, gradient: Any, weight: Any) -> Any:
    fresh = weight - state.rate * gradient
    state.weights[k].assign(fresh, name=f"update_{k}")
    return fresh


def _momentum(state: State, k: int, gradient: Any, weight: Any) -> Any:
    slot = state.slots[k][0]
    slot.assign(0.9 * slot + gradient)
    return _sub(state, k, slot.read_value(), weight)


def _momentum_fresh(state: State, k: int, gradient: Any, weight: Any) -> Any:
    fresh = 0.9 * state.slots[k][0] + gradient
    state.slots[k][0].assign(fresh)
    return _assign(state, k, fresh, weight)


def _adagrad(state: State, k: int, gradient: Any, weight: Any) -> Any:
    slot = state.slots[k][0]
    slot.assign_add(tf.square(gradient))
    return _sub(state, k, gradient * tf.math.rsqrt(slot + 1e-2), weight)


def _adam(state: State, k: int, gradient: Any, weight: Any) -> Any:
    first, second = state.slots[k]
    first.assign_add(0.1 * (gradient - first))
    second.assign_add(0.01 * (tf.square(gradient) - second))
    return _sub(state, k, first / (tf.sqrt(second) + 1e-2), weight)


def _adam_fresh(state: State, k: int, gradient: Any, weight: Any) -> Any:
    first = 0.9 * state.slots[k][0] + 0.1 * gradient
    second = 0.99 * state.slots[k][1] + 0.01 * tf.square(gradient)
    state.slots[k][0].assign(first)
    state.slots[k][1].assign(second)
    return _assign(state, k, first / (tf.sqrt(second) + 1e-2), weight)


def _apply_sgd(state: State, k: int, gradient: Any, _: Any) -> Any:
    tf.raw_ops.ResourceApplyGradientDescent(
        var=state.weights[k].handle, alpha=state.rate, delta=gradient, name=f"update_{k}"
    )


def _apply_momentum(state: State, k: int, gradient: Any, _: Any) -> Any:
    tf.raw_ops.ResourceApplyMomentum(
        var=state.weights[k].handle,
        accum=state.slots[k][0].handle,
        lr=state.rate,
        grad=gradient,
        momentum=0.9,
        name=f"update_{k}",
    )


OPTIMIZERS: dict[str, Apply] = {
    "sub": _sub,
    "add": _add,
    "assign": _assign,
    "momentum": _momentum,
    "momentum, fresh": _momentum_fresh,
    "Adagrad": _adagrad,
    "Adam": _adam,
    "Adam, fresh": _adam_fresh,
    "ApplyGradientDescent": _apply_sgd,
    "ApplyMomentum": _apply_momentum,
}


# --- Averages ---------------------------------------------------------------------------------------------------------


def _average_of_read(state: State, k: int, _: Any) -> None:
    average = state.averages[k]
    average.assign(0.9 * average + 0.1 * state.weights[k])


def _average_by_sub(state: State, k: int, _: Any) -> None:
    average = state.averages[k]
    average.assign_sub(0.1 * (average - state.weights[k].read_value()))


def _average_of_fresh(state: State, k: int, fresh: Any) -> None:
    average = state.averages[k]
    average.assign(0.9 * average + 0.1 * (state.weights[k].read_value() if fresh is None else fresh))


AVERAGES: dict[str, Callable[[State, int, Any], None]] = {
    "of a read": _average_of_read,
    "by assign_sub": _average_by_sub,
    "of the fresh tensor": _average_of_fresh,
}


# --- The step ---------------------------------------------------------------------------------------------------------


def run(state: State, x: Any, y: Any) -> list[Any]:
    """Runs the step once, traced or eagerly.

    Returns:
        The loss, the norms of the weights before, and what is read of them after.
    """
    state.rate = tf.constant(LEARNING_RATE, name="rate")
    starts = state.reads()
    numbers = range(len(state.made.weights))
    gradients = [] if state.made.interleaved else [_gradient(state, k, starts, x, y) for k in numbers]
    for k in numbers:
        gradient = _gradient(state, k, starts, x, y) if state.made.interleaved else gradients[k]
        _update(state, k, gradient, starts[k])
    norms = [tf.norm(start) for start in starts]
    return [loss(state, starts, x, y), *norms, *(tf.reduce_sum(read) for read in state.reads())]


def _gradient(state: State, k: int, starts: Sequence[Any], x: Any, y: Any) -> Any:
    weight = state.made.weights[k]
    origin = by_formula if state.eager and weight.origin not in GIVEN else ORIGINS[weight.origin]
    # A function that reads for itself does so whatever is shared.
    fresh = not state.made.shared or weight.origin == "function that reads"
    gradient = origin(state, k, state.reads() if fresh else starts, x, y)
    for name in weight.between:
        gradient = BETWEEN[name](gradient, starts[k] if state.made.shared else state.weights[k].read_value())
    gradient = tf.identity(gradient, name=f"ready_{k}")
    if state.eager and state.made.semantics == "l2":
        gradient = gradient + np.float32(state.rates[k]) * starts[k]
    return gradient


def _update(state: State, k: int, gradient: Any, start: Any) -> None:
    made, weight = state.made.weights[k], state.weights[k]
    read = start if state.made.shared else weight.read_value()
    fresh = OPTIMIZERS[made.optimizer](state, k, gradient, read)
    if state.eager:
        _decay(state.made.semantics, weight, state.rates[k], start)
    if made.average != "none":
        AVERAGES[made.average](state, k, fresh)


def _decay(semantics: str, weight: tf.Variable, rate: float, start: Any) -> None:
    """What the decay does to a weight that was just updated."""
    if semantics == "decoupled":
        weight.assign(weight * np.float32(1 - rate))
    elif semantics in ("tfa", "adamw"):
        weight.assign_sub(np.float32(rate * (LEARNING_RATE if semantics == "adamw" else 1)) * start)
