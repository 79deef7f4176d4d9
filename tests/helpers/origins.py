"""Random steps whose gradients come from everywhere, and the same decayed by hand, eagerly.

One Python function is both: traced, it is the step that is rewritten; run eagerly as the reference, it decays. Only in
the reference do `Case.enter` and `Case.done` do anything, by the formulas of the documentation, and they know nothing
of graphs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

SHAPE = (2, 3)
LEARNING_RATE = 0.125
SEMANTICS = ("decoupled", "tfa", "adamw", "l2")


@dataclass
class Weight:
    """A weight, all that goes with it, and how it is trained.

    Attributes:
        w: the weight.
        slots: what the optimizer keeps.
        average: a moving average of it.
        total: gradients that another function accumulated.
        mask: zeros and ones.
        rate: its learning rate, where that is a variable.
        origin: where its gradient comes from.
        treatment: what is done to it before the optimizer gets it.
        optimizer: what makes an update of it.
        averaging: how the average is made.
        decay: its weight decay.
    """

    w: tf.Variable
    slots: list[tf.Variable]
    average: tf.Variable
    total: tf.Variable
    mask: tf.Variable
    rate: tf.Variable
    origin: str
    treatment: str
    optimizer: str
    averaging: str
    learning_rate: str
    decay: float

    @property
    def variables(self) -> list[tf.Variable]:
        """All of it."""
        return [self.w, *self.slots, self.average, self.total, self.mask, self.rate]


@dataclass
class Case:
    """A random step in one of its two roles.

    Attributes:
        weights: what it trains.
        outputs: what it returns besides the loss.
        semantics: what its decay means.
        by_hand: whether this is the reference, which decays.
        leave: whether the policy leaves averages and slots alone that a rule catches.

    """

    weights: list[Weight]
    outputs: str
    semantics: str
    leave: bool
    by_hand: bool = False
    before: dict[int, tf.Tensor] = field(default_factory=dict)

    def arguments(self, run: int) -> list[tf.Tensor]:
        """Those of one run: data, (2, 3), and a learning rate."""
        return [tf.random.stateless_normal(SHAPE, [7, run]), tf.constant(LEARNING_RATE)]

    @property
    def variables(self) -> list[tf.Variable]:
        """All variables."""
        return [each for weight in self.weights for each in weight.variables]

    @property
    def policy(self) -> Mapping[str, Any]:
        """A rule for the name of each weight."""
        rules = [
            {"name": weight.w.name.removesuffix(":0"), "weight_decay": weight.decay, "semantics": self.semantics}
            for weight in self.weights
        ]
        for rule, weight in zip(rules, self.weights, strict=True):
            if self.semantics == "adamw" and weight.learning_rate == "variable":
                rule["learning_rate"] = weight.rate.name.removesuffix(":0")
        top = {"not_updated": "leave"} if self.leave else {}
        return {"version": 1, **top, "rules": [*rules, {"weight_decay": 0}]}

    def accumulate(self, x: tf.Tensor) -> None:
        """What another function than the step does before each run."""
        for i, weight in enumerate(self.weights):
            if weight.origin == "accumulated":
                weight.total.assign_add(self.by_formula(i, x))

    def run(self, x: tf.Tensor, rate: tf.Tensor) -> list[tf.Tensor]:
        """One run."""
        reads = [weight.w.read_value() for weight in self.weights]
        outputs = [tf.norm(each) for each in reads] if self.outputs == "before" else []
        for i, weight in enumerate(self.weights):
            gradient = TREATMENTS[weight.treatment](weight, reads[i], ORIGINS[weight.origin](self, i, x, reads[i]))
            eta = {"constant": LEARNING_RATE, "variable": weight.rate, "argument": rate}[weight.learning_rate]
            self.before[i] = reads[i]
            fresh = OPTIMIZERS[weight.optimizer](weight, reads[i], self.enter(i, gradient), eta)
            self.done(i)
            if weight.averaging == "read":
                weight.average.assign(0.75 * weight.average + 0.25 * weight.w)
            elif weight.averaging == "fresh" and fresh is not None:
                weight.average.assign(0.75 * weight.average + 0.25 * fresh)
        if self.outputs == "after":
            outputs = [tf.reduce_sum(weight.w) for weight in self.weights]
        return outputs

    def enter(self, i: int, gradient: tf.Tensor) -> tf.Tensor:
        """Where the optimizer gets a gradient."""
        if self.by_hand and self.semantics == "l2":
            return gradient + self.weights[i].decay * self.before[i]
        return gradient

    def done(self, i: int) -> None:
        """Where an update is done."""
        weight = self.weights[i]
        if not self.by_hand or self.semantics == "l2":
            return
        if self.semantics == "decoupled":
            weight.w.assign((1 - weight.decay) * weight.w)
        else:
            scale = LEARNING_RATE if self.semantics == "adamw" else 1.0
            weight.w.assign(weight.w - weight.decay * scale * self.before[i])

    def residual(self, i: int, w: Any) -> tf.Tensor:
        """What a loss is half the square of, without the data: the weight and a little of all others."""
        others = [tf.stop_gradient(each.w.read_value()) for j, each in enumerate(self.weights) if j != i]
        return w + 0.125 * tf.add_n(others) if others else w

    def loss(self, i: int, x: tf.Tensor, w: Any) -> tf.Tensor:
        """The loss of a weight, for each row."""
        return tf.reduce_sum(0.5 * tf.square(self.residual(i, w) * x - 0.25), 1)

    def by_formula(self, i: int, x: tf.Tensor) -> tf.Tensor:
        """The gradient of the sum of `loss`."""
        return x * (self.residual(i, self.weights[i].w.read_value()) * x - 0.25)


# --- Where gradients come from ----------------------------------------------------------------------------------------


def _tape(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    del read
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(case.loss(i, x, case.weights[i].w))
    return tape.gradient(loss, case.weights[i].w)


def _shared_read(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(read)
        loss = tf.reduce_sum(case.loss(i, x, read))
    return tape.gradient(loss, read)


def _tf_gradients(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    if tf.executing_eagerly():
        return _shared_read(case, i, x, read)
    return tf.gradients(tf.reduce_sum(case.loss(i, x, read)), read, name="mine")[0]


def _by_hand(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    del read
    return case.by_formula(i, x)


def _by_hand_of_the_read(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    return x * (case.residual(i, read) * x - 0.25)


def _jacobian(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    del read
    with tf.GradientTape(persistent=True) as tape:
        losses = case.loss(i, x, case.weights[i].w)
    return tf.reduce_sum(tape.jacobian(losses, case.weights[i].w, experimental_use_pfor=False), 0)


def _custom(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    del read

    @tf.custom_gradient
    def bent(w: tf.Tensor) -> Any:
        return tf.identity(w), lambda upstream: upstream * tf.cast(tf.abs(w) < 0.8, tf.float32)

    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(case.loss(i, x, bent(case.weights[i].w)))
    return tape.gradient(loss, case.weights[i].w)


def _loop(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    def once(k: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return k + 1, total + 0.5 * _shared_read(case, i, x, tf.identity(read))

    return tf.while_loop(lambda k, _: k < 2, once, (tf.constant(0), tf.zeros(SHAPE)))[1]


def _map(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    residual = case.residual(i, read)
    return tf.map_fn(lambda row: row[0] * (row[1] * row[0] - 0.25), (x, residual), fn_output_signature=tf.float32)


def _vectorized(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    def of_row(row: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(row[1])
            loss = tf.reduce_sum(0.5 * tf.square(row[1] * row[0] - 0.25))
        return tape.gradient(loss, row[1])

    return tf.vectorized_map(of_row, (x, case.residual(i, read)))


def _branch(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    return tf.cond(x[0, 0] > 0, lambda: _shared_read(case, i, x, tf.identity(read)), lambda: tf.zeros(SHAPE))


def _inner(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    return tf.function(lambda x: _tape(case, i, x, x), autograph=False)(x) + 0.0 * read


def _inner_of_the_read(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    return tf.function(lambda x, v: _by_hand_of_the_read(case, i, x, v), autograph=False)(x, read)


def _inner_forward(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    del read
    forward = tf.function(lambda x: tf.reduce_sum(case.loss(i, x, case.weights[i].w)), autograph=False)
    with tf.GradientTape() as tape:
        loss = forward(x)
    return tape.gradient(loss, case.weights[i].w)


def _argument(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    del case, i, read
    return x


def _accumulated(case: Case, i: int, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    del x, read
    total = case.weights[i].total.read_value()
    case.weights[i].total.assign(tf.zeros(SHAPE))
    return total


ORIGINS: Mapping[str, Callable[..., tf.Tensor]] = {
    "tape": _tape,
    "shared read": _shared_read,
    "tf.gradients": _tf_gradients,
    "by hand": _by_hand,
    "by hand of the read": _by_hand_of_the_read,
    "jacobian": _jacobian,
    "custom": _custom,
    "loop": _loop,
    "map": _map,
    "vectorized": _vectorized,
    "branch": _branch,
    "inner": _inner,
    "inner of the read": _inner_of_the_read,
    "inner forward": _inner_forward,
    "argument": _argument,
    "accumulated": _accumulated,
}


# --- What is done to them ---------------------------------------------------------------------------------------------


def _asserted(weight: Weight, read: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
    del weight, read
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(g)), [g])]):
        return tf.identity(g)


def _clipped_by_weight(weight: Weight, read: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
    """Adaptive gradient clipping (Brock et al. 2021)."""
    del read
    most = 0.5 * tf.maximum(tf.norm(weight.w), 1e-3)
    return g * tf.minimum(1.0, most / (tf.norm(g) + 1e-6))


def _clipped_by_read(weight: Weight, read: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
    del weight
    return g * tf.minimum(1.0, 0.5 * tf.norm(read) / (tf.norm(g) + 1e-6))


TREATMENTS: Mapping[str, Callable[[Weight, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "none": lambda weight, read, g: g,
    "check_numerics": lambda weight, read, g: tf.debugging.check_numerics(g, "g"),
    "asserted": _asserted,
    "clip": lambda weight, read, g: tf.clip_by_norm(g, 0.5),
    "clipped by the weight": _clipped_by_weight,
    "clipped by the read": _clipped_by_read,
    "mask": lambda weight, read, g: g * weight.mask,
    "constant mask": lambda weight, read, g: g * tf.constant([[1.0, 0, 1], [0, 1, 1]]),
    "sign": lambda weight, read, g: tf.sign(g),
}


# --- What makes updates of them ---------------------------------------------------------------------------------------


def _sub(weight: Weight, read: tf.Tensor, g: tf.Tensor, eta: Any) -> None:
    del read
    weight.w.assign_sub(eta * g)


def _add(weight: Weight, read: tf.Tensor, g: tf.Tensor, eta: Any) -> None:
    del read
    weight.w.assign_add(-(eta * g))


def _assign(weight: Weight, read: tf.Tensor, g: tf.Tensor, eta: Any) -> tf.Tensor:
    del read
    fresh = weight.w - eta * g
    weight.w.assign(fresh)
    return fresh


def _assign_of_the_read(weight: Weight, read: tf.Tensor, g: tf.Tensor, eta: Any) -> tf.Tensor:
    fresh = read - eta * g
    weight.w.assign(fresh)
    return fresh


def _momentum(weight: Weight, read: tf.Tensor, g: tf.Tensor, eta: Any) -> None:
    del read
    weight.slots[0].assign(0.5 * weight.slots[0] + g)
    weight.w.assign_sub(eta * weight.slots[0])


def _fresh_momentum(weight: Weight, read: tf.Tensor, g: tf.Tensor, eta: Any) -> tf.Tensor:
    del read
    fresh = 0.5 * weight.slots[0] + g
    weight.slots[0].assign(fresh)
    made = weight.w - eta * fresh
    weight.w.assign(made)
    return made


def _adam(weight: Weight, read: tf.Tensor, g: tf.Tensor, eta: Any) -> None:
    del read
    m, v = weight.slots
    m.assign_add(0.25 * (g - m))
    v.assign_add(0.25 * (tf.square(g) - v))
    weight.w.assign_sub(eta * m / (tf.sqrt(v) + 0.125))


def _apply(weight: Weight, read: tf.Tensor, g: tf.Tensor, eta: Any) -> None:
    del read
    tf.raw_ops.ResourceApplyGradientDescent(var=weight.w.handle, alpha=tf.convert_to_tensor(eta), delta=g)


def _apply_momentum(weight: Weight, read: tf.Tensor, g: tf.Tensor, eta: Any) -> None:
    del read
    tf.raw_ops.ResourceApplyMomentum(
        var=weight.w.handle, accum=weight.slots[0].handle, lr=tf.convert_to_tensor(eta), grad=g, momentum=0.5
    )


OPTIMIZERS: Mapping[str, Callable[..., Any]] = {
    "sub": _sub,
    "add": _add,
    "assign": _assign,
    "assign of the read": _assign_of_the_read,
    "momentum": _momentum,
    "fresh momentum": _fresh_momentum,
    "adam": _adam,
    "apply": _apply,
    "apply momentum": _apply_momentum,
}


# --- Cases ------------------------------------------------------------------------------------------------------------


def make_case(seed: int, *, by_hand: bool = False) -> Case:
    """The case of a seed, in one of its roles, with variables of its own."""
    make = random.Random(seed)
    one_name, leave = make.random() < 0.2, make.random() < 0.5
    weights = []
    for i in range(make.randint(1, 3)):
        oversight = make.random() < 0.3

        def variable(name: str, value: Any, trainable: bool = False, i: int = i) -> tf.Variable:
            return tf.Variable(
                tf.cast(tf.broadcast_to(value, SHAPE), tf.float32), name=f"{name}{i}", trainable=trainable
            )

        start = np.linspace(-1, 1, 6, dtype=np.float32).reshape(SHAPE) / (i + 1)
        weights.append(
            Weight(
                w=variable("w", start, True, 0 if one_name else i),
                slots=[variable("m", 0.0, oversight), variable("v", 0.0, oversight)],
                # An average that has the name of its weight, as that of a copied model has.
                average=variable("w" if leave and oversight else "average", start, oversight),
                total=variable("total", 0.0),
                mask=variable("mask", [[1.0, 0, 1], [0, 1, 1]]),
                rate=tf.Variable(
                    LEARNING_RATE, name=make.choice(["eta", "learning_rate", "lr"]) + str(i), trainable=False
                ),
                origin=make.choice(list(ORIGINS)),
                treatment=make.choice(["none", "none", "none", *TREATMENTS]),
                optimizer=make.choice(list(OPTIMIZERS)),
                averaging=make.choice(["none", "read", "fresh"]),
                learning_rate=make.choice(["constant", "variable", "argument"]),
                decay=0.25 if one_name else make.choice([0.25, 0.5]),
            )
        )
    outputs = make.choice(["none", "before", "after"])
    return Case(weights, outputs, make.choice(SEMANTICS), leave, by_hand)
