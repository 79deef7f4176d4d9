"""Each way to write weight decay by hand, against the plain step with the policy of ``graphwd help by-hand``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from tests.helpers import steps
from tests.helpers.agreement import assert_agree, train, ulps_of_largest, values
from tests.helpers.pages import policies_in

STEPS = 50
LEARNING_RATE = 2.0**-6

# In ulps of the largest element. A coupled decay makes the same sum, g + c * w, by hand and by policy: 0 was measured.
# A decoupled one is rounded otherwise by hand, w - c * w against (1 - c) * w, which is about one ulp a step: at most 19
# were measured after 50 steps.
COUPLED_ULPS = 2
DECOUPLED_ULPS = STEPS

Step = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Library(NamedTuple):
    """A Keras, an optimizer of it, and the SGD optimizer to go with it."""

    keras: Any
    optimizer: Callable[[], Any]
    sgd: Callable[[float], Any]


LIBRARIES = {
    "Keras SGD": Library(keras, lambda: keras.optimizers.SGD(LEARNING_RATE), keras.optimizers.SGD),
    "Keras momentum": Library(keras, lambda: keras.optimizers.SGD(LEARNING_RATE, momentum=0.9), keras.optimizers.SGD),
    "Keras Adam": Library(keras, lambda: keras.optimizers.Adam(LEARNING_RATE), keras.optimizers.SGD),
    "ResourceApplyAdam": Library(
        tf_keras,
        lambda: tf_keras.optimizers.legacy.Adam(LEARNING_RATE),
        tf_keras.optimizers.legacy.SGD,
    ),
    "ResourceApplyMomentum": Library(
        tf_keras,
        lambda: tf.compat.v1.train.MomentumOptimizer(LEARNING_RATE, 0.9),
        tf.compat.v1.train.GradientDescentOptimizer,
    ),
}


class Training:
    """A model of two kernels and two biases, of a library, and its optimizer."""

    def __init__(self, library: Library, regularized: bool = False) -> None:
        layers = library.keras.layers
        hidden, out = [library.keras.regularizers.L2(rate) for rate in (5e-3, 2e-2)] if regularized else [None, None]
        library.keras.utils.set_random_seed(3)
        self.model = library.keras.Sequential(
            [
                layers.Input((steps.FEATURES,)),
                layers.Dense(4, activation="tanh", name="hidden", kernel_regularizer=hidden),
                layers.Dense(steps.CLASSES, name="out", kernel_regularizer=out),
            ],
            name="net",
        )
        self.variables = self.model.trainable_variables
        self.kernels = [w for w in self.variables if "kernel" in w.name]
        self.optimizer = self._prepared(library.optimizer(), self.variables)
        self.decay_optimizer = self._prepared(library.sgd(0.1), self.kernels)

    def _prepared(self, optimizer: Any, variables: list[Any]) -> Any:
        if isinstance(optimizer, keras.optimizers.Optimizer):
            optimizer.build(variables)
        else:  # makes its slot variables on the first call
            optimizer.apply_gradients([(tf.zeros_like(w), w) for w in variables])
        return optimizer

    def loss(self, inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        return steps.loss_of(self.model(inputs, training=True), targets)

    def decay_loss(self) -> tf.Tensor:
        return 1e-2 * tf.add_n([tf.nn.l2_loss(w) for w in self.kernels])

    def apply(self, gradients: Any) -> None:
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))


def plain(self: Training) -> Step:
    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.loss(inputs, targets)
        self.apply(tape.gradient(loss, self.variables))
        return loss

    return step


def l2_terms(self: Training) -> Step:
    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.loss(inputs, targets)
            loss += self.decay_loss()
        self.apply(tape.gradient(loss, self.variables))
        return loss

    return step


def regularizer(self: Training) -> Step:
    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.loss(inputs, targets)
            loss += tf.add_n(self.model.losses)
        self.apply(tape.gradient(loss, self.variables))
        return loss

    return step


def assign_loop(self: Training) -> Step:
    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.loss(inputs, targets)
        self.apply(tape.gradient(loss, self.variables))
        for w in self.kernels:
            w.assign_sub(1e-3 * w)
        return loss

    return step


def assign_loop_with_learning_rate(self: Training) -> Step:
    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.loss(inputs, targets)
        learning_rate = getattr(self.optimizer, "learning_rate", LEARNING_RATE)  # v1 optimizers do not tell
        self.apply(tape.gradient(loss, self.variables))
        for w in self.kernels:
            w.assign(w * (1 - 0.1 * learning_rate))
        return loss

    return step


def second_optimizer(self: Training) -> Step:
    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(persistent=True) as tape:
            loss = self.loss(inputs, targets)
            decay_loss = self.decay_loss()
        decay_gradients = tape.gradient(decay_loss, self.kernels)
        self.apply(tape.gradient(loss, self.variables))
        self.decay_optimizer.apply_gradients(zip(decay_gradients, self.kernels, strict=True))
        return loss

    return step


def second_optimizer_first(self: Training) -> Step:
    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(persistent=True) as tape:
            loss = self.loss(inputs, targets)
            decay_loss = self.decay_loss()
        gradients = tape.gradient(loss, self.variables)
        decay_gradients = tape.gradient(decay_loss, self.kernels)
        self.decay_optimizer.apply_gradients(zip(decay_gradients, self.kernels, strict=True))
        self.apply(gradients)
        return loss

    return step


def second_optimizer_at_the_updated_weight(self: Training) -> Step:
    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.loss(inputs, targets)
        self.apply(tape.gradient(loss, self.variables))
        with tf.GradientTape() as tape:
            decay_loss = self.decay_loss()
        decay_gradients = tape.gradient(decay_loss, self.kernels)
        self.decay_optimizer.apply_gradients(zip(decay_gradients, self.kernels, strict=True))
        return loss

    return step


class Way(NamedTuple):
    """A way to write it by hand, and where the page shows the policy for it."""

    step: Callable[[Training], Step]
    section: str
    number: int = 0
    ulps: int = DECOUPLED_ULPS


WAYS = {
    "L2 terms": Way(l2_terms, "L2 terms collected into the loss", ulps=COUPLED_ULPS),
    "regularizer": Way(regularizer, "A per-variable regularizer", ulps=COUPLED_ULPS),
    "assign loop": Way(assign_loop, "An assign loop after the step"),
    "assign loop, lr": Way(assign_loop_with_learning_rate, "An assign loop after the step", 1),
    "second optimizer": Way(second_optimizer, "A second SGD optimizer on the decay loss"),
    "second optimizer first": Way(second_optimizer_first, "A second SGD optimizer on the decay loss"),
    "second optimizer after": Way(
        second_optimizer_at_the_updated_weight, "A second SGD optimizer on the decay loss", 1
    ),
}


@pytest.fixture
def policy_of(tmp_path):
    """Writes the policy that the page shows for a way to a file."""

    def write(way: Way) -> str:
        path = tmp_path / "policy.yaml"
        path.write_text(policies_in("by-hand", way.section)[way.number], encoding="utf-8")
        return str(path)

    return write


def check(library: Library, way: Way, policy: str) -> None:
    by_hand, moved, undecayed = Training(library, way.step is regularizer), Training(library), Training(library)
    start = values(by_hand.variables)
    for training in (moved, undecayed):
        assert_agree(start, values(training.variables), 0, ulps_of_largest)
    batches = steps.batches(STEPS)
    train(way.step(by_hand), batches)
    train(graphwd.rewrite(plain(moved).get_concrete_function(*batches[0]), policy), batches)
    train(plain(undecayed), batches)
    assert_agree(values(by_hand.variables), values(moved.variables), way.ulps, ulps_of_largest)
    for decayed, kernel in zip(values(moved.kernels), values(undecayed.kernels), strict=True):
        assert ulps_of_largest(decayed, kernel) > 1000 * way.ulps, "the decay does not show"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_by_hand_and_by_policy_agree(library, way, policy_of):
    check(LIBRARIES[library], WAYS[way], policy_of(WAYS[way]))


def test_every_policy_of_the_page_is_tested():
    shown = {
        (way.section, number) for way in WAYS.values() for number in range(len(policies_in("by-hand", way.section)))
    }
    assert shown == {(way.section, way.number) for way in WAYS.values()}
    assert len(shown) == len(policies_in("by-hand", None))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("assign loop", "already decays it"),
        ("assign loop, lr", "already decays it"),
        ("second optimizer", "updated 2 times"),
        ("second optimizer after", "updated 2 times"),
    ],
)
def test_a_decay_that_is_left_in_is_refused(way, message, policy_of):
    step = WAYS[way].step(Training(LIBRARIES["Keras Adam"]))
    with pytest.raises(graphwd.PlanError, match=message):
        graphwd.rewrite(step.get_concrete_function(*steps.batches(1)[0]), policy_of(WAYS[way]))


@pytest.mark.parametrize("way", ["L2 terms", "regularizer"])
def test_an_l2_term_that_is_left_in_is_not_found(way, policy_of):
    step = WAYS[way].step(Training(LIBRARIES["Keras Adam"], regularized=True))
    assert not graphwd.plan(step.get_concrete_function(*steps.batches(1)[0]), policy_of(WAYS[way])).problems


def test_an_assign_loop_with_a_schedule(policy_of):
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, STEPS)
    check(
        Library(keras, lambda: keras.optimizers.Adam(schedule), keras.optimizers.SGD),
        WAYS["assign loop, lr"],
        policy_of(WAYS["assign loop, lr"]),
    )


def clipped(self: Training, rate: float) -> Step:
    """A step that clips gradients and then adds an L2 gradient to those of kernels."""

    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.loss(inputs, targets)
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, self.variables), 0.01)
        if rate:
            pairs = zip(gradients, self.variables, strict=True)
            gradients = [gradient + rate * w if "kernel" in w.name else gradient for gradient, w in pairs]
        self.apply(gradients)
        return loss

    return step


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_coupled_decay_is_added_after_clipping(library, policy_of):
    by_hand, moved = Training(LIBRARIES[library]), Training(LIBRARIES[library])
    batches = steps.batches(STEPS)
    train(clipped(by_hand, 1e-2), batches)
    train(graphwd.rewrite(clipped(moved, 0).get_concrete_function(*batches[0]), policy_of(WAYS["L2 terms"])), batches)
    assert_agree(values(by_hand.variables), values(moved.variables), COUPLED_ULPS, ulps_of_largest)
