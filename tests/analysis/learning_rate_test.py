"""What is found to be an update's learning rate, and what is said where that is not certain."""

from __future__ import annotations

import re

import keras
import pytest
import tensorflow as tf
import tf_keras

from graphwd.analysis.learning_rate import find_learning_rate
from graphwd.errors import UnclearError
from tests.helpers.graphs import gradient_of, update_of, variable


def found(update, *args, asked=None, exact=True):
    """The learning rate of an update, ``update(w, gradient)``."""
    w = variable()
    flow, _, writes = update_of(lambda *args: update(w, gradient_of(w), *args), *args)
    return find_learning_rate(flow, writes, asked, exact=exact)


def refusal(update, *args, asked=None):
    with pytest.raises(UnclearError) as error:
        found(update, *args, asked=asked)
    return str(error.value)


def slot():
    return variable("m", trainable=False)


def scalar(name, value=0.1):
    return variable(name, value, trainable=False)


M, ETA, RATE, T = slot(), scalar("eta"), scalar("opt/learning_rate"), scalar("t", 1.0)


@pytest.mark.parametrize(
    "update",
    [
        lambda w, g: w.assign_sub(0.1 * g),
        lambda w, g: w.assign_sub(g * 0.1),
        lambda w, g: w.assign(w - 0.1 * g),
        lambda w, g: w.assign_add(-0.1 * g),
        lambda w, g: w.assign_add(-(0.1 * g)),
        lambda w, g: w.assign_add(g * -0.1),
        lambda w, g: [M.assign(0.9 * M + g), w.assign_sub(0.1 * M)],
        lambda w, g: [M.assign(0.9 * M - 0.1 * g), w.assign_add(M)],
    ],
)
def test_a_number(update):
    rate = found(update)
    assert (rate.name, rate.dtype) == ("0.1", "float32")
    assert rate.number == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [ETA, RATE], ids=["any name", "its name"])
@pytest.mark.parametrize(
    "update",
    [
        lambda w, g, rate: w.assign_sub(rate * g),
        lambda w, g, rate: w.assign_sub(rate * (g / 4.0)),
        lambda w, g, rate: w.assign_add((-rate) * g),
        lambda w, g, rate: w.assign(w - rate * g),
        lambda w, g, rate: [M.assign(0.9 * M + g), w.assign_sub(rate * M)],
        lambda w, g, rate: [M.assign(0.9 * M + g), w.assign_sub(rate * (g + 0.9 * M))],
        lambda w, g, rate: [M.assign(0.9 * M - rate * g), w.assign_add(M)],
        lambda w, g, rate: w.assign_sub(rate * g / tf.norm(g)),
    ],
)
def test_a_variable(update, rate):
    result = found(lambda w, g: update(w, g, rate))
    assert (result.name, result.dtype, result.number) == (rate.name.removesuffix(":0"), "float32", None)


def test_an_argument():
    assert found(lambda w, g, rate: w.assign_sub(rate * g), tf.TensorSpec([])).name == "args_0"


def test_an_argument_of_unknown_shape_may_be_many():
    spec = tf.TensorSpec(None)
    assert "nothing here looks like one" in refusal(lambda w, g, rate: w.assign_sub(rate * g), spec)
    assert "not known to be one number" in refusal(lambda w, g, rate: w.assign_sub(rate * g), spec, asked="args_0")


def test_what_is_not_known_to_be_one_number_is_checked_as_the_step_runs():
    # The rank of a variable is known, but graphwd does not know what each op makes of it.
    assert found(lambda w, g: w.assign_sub(tf.cos(ETA, name="eta_now") * g), asked="eta_now").certain is False
    assert found(lambda w, g: w.assign_sub(ETA * g), asked="eta").certain is True


@pytest.mark.parametrize(
    ("divided", "name"),
    [
        (lambda g: g / ETA, "eta"),
        (lambda g: g * tf.math.reciprocal(ETA), "eta"),
        (lambda g: g / tf.multiply(2.0, ETA, name="twice"), "twice"),
    ],
)
def test_what_an_update_is_divided_by_is_no_learning_rate(divided, name):
    update = lambda w, g: w.assign_sub(divided(g))  # noqa: E731
    assert "by which the update is divided" in refusal(update, asked=name)


@pytest.mark.parametrize(
    "update",
    [
        lambda w, g: w.assign_sub(tf.multiply(ETA, g, name="all")),
        lambda w, g: w.assign_sub(0.5 * tf.identity(tf.multiply(g, ETA, name="all"))),
        lambda w, g: w.assign(w - tf.multiply(ETA, g, name="all")),
        lambda w, g: w.assign_add(-tf.multiply(ETA, g, name="all")),
    ],
)
def test_what_holds_the_gradient_is_no_learning_rate(update):
    """A gradient that the step is given is known by nothing, where the weight is one number."""
    w = variable(value=1.0)
    flow, _, writes = update_of(lambda gradient: update(w, gradient), tf.TensorSpec([]))
    assert find_learning_rate(flow, writes, "eta").name == "eta"
    for name in ("all", "args_0"):
        with pytest.raises(UnclearError, match=r"is all that the update is made of.*there is .*'eta'") as error:
            find_learning_rate(flow, writes, name)
        assert f"'{name}'" not in str(error.value).partition("there is")[2]


def test_the_operand_of_an_apply_op():
    def update(w, g):
        tf.raw_ops.ResourceApplyGradientDescent(var=w.handle, alpha=ETA.read_value(), delta=g)

    assert found(update).name == "eta"


def test_a_factor_is_named_and_a_divisor_is_not():
    message = refusal(lambda w, g: w.assign_sub(ETA * g / T))
    assert message == "its learning rate is not found; write 'learning_rate: NAME' with 'eta'"


@pytest.mark.parametrize(
    ("update", "names"),
    [
        (lambda w, g: w.assign_sub(0.5 * (ETA * g)), "'eta', 'mul_2/x'"),
        (lambda w, g: w.assign_sub(ETA * g * T), "'t', 'eta'"),
        (lambda w, g: w.assign_sub((ETA / T) * g), "'eta', 'truediv'"),
    ],
)
def test_several_factors_are_all_named(update, names):
    message = refusal(update)
    assert message.startswith("its learning rate is not found; write 'learning_rate: NAME' with one of ")
    assert set(re.findall("'[^']*'", message.partition("one of")[2])) == set(names.split(", "))
    assert re.findall(r"'mul_2/x' \((.*?)\)", message) == (["0.5"] if "mul_2/x" in names else [])


def test_what_scales_each_element_by_itself_is_no_learning_rate():
    mask = variable("mask", (1.0, 0.0), trainable=False)
    assert "is not found" in refusal(lambda w, g: w.assign_sub(mask * g))


def test_an_update_along_the_gradient_is_no_descent():
    assert "is not found" in refusal(lambda w, g: w.assign_add(0.1 * g))


@pytest.mark.parametrize(
    "change",
    [
        lambda rate: rate * tf.minimum(1.0, T / 5.0),
        lambda rate: 0.5 * rate,
        lambda rate: rate / T,
        lambda rate: tf.where(T < 5.0, 0.01, rate),
        lambda rate: tf.minimum(rate, 1.0 / T),
        lambda rate: rate * (1.0 - T / 10.0),
    ],
)
def test_a_learning_rate_that_is_changed_on_the_way_is_not_taken_for_the_one_used(change):
    def update(w, g):
        w.assign_sub(tf.identity(change(RATE), name="used") * g)

    message = refusal(update)
    changed = re.fullmatch(
        "its learning rate 'opt/learning_rate' is changed before it meets the gradient; write 'learning_rate: (.*)' "
        "for what it then is, or 'learning_rate: opt/learning_rate'",
        message,
    )
    assert changed is not None
    assert found(update, asked=changed[1]).name == changed[1]
    assert found(update, asked="opt/learning_rate").name == "opt/learning_rate"
    assert found(update, exact=False).name == "opt/learning_rate"


@pytest.mark.parametrize(
    ("update", "op"),
    [
        (lambda w, g: w.assign_sub(RATE * g / T), "truediv"),
        (lambda w, g: w.assign_sub(0.5 * (RATE * g)), "mul_2"),
        (lambda w, g: w.assign(w - tf.minimum(1.0, T / 5.0) * (RATE * g)), "mul_2"),
        (lambda w, g: w.assign_sub(RATE * (RATE * g)), "mul_2"),
        (lambda w, g: w.assign_sub(0.9 * M.assign(RATE * g) * RATE), "mul_3"),
        (lambda w, g: [M.assign(0.9 * M + RATE * g), w.assign_sub(RATE * M)], "mul_3"),
    ],
)
def test_what_multiplies_the_update_further_changes_it_too(update, op):
    assert refusal(update) == (
        f"its learning rate 'opt/learning_rate' is not all that its gradient is multiplied by: '{op}' changes it "
        "further; make that a part of the learning rate, or write 'learning_rate: opt/learning_rate'"
    )


def test_bias_correction_and_trust_ratios_do_not_change_it():
    def adam(w, g):
        power = tf.pow(0.9, T)
        M.assign_add((g - M) * 0.1)
        w.assign_sub(M * (RATE * tf.sqrt(1.0 - power) / (1.0 - power)))

    def adam_of_v1(w, g):
        power = tf.pow(0.9, T)
        w.assign_sub(g * (RATE * (tf.sqrt(1.0 - power) / (1.0 - power))))

    def lars(w, g):
        w.assign_sub(RATE * tf.norm(w) * g)

    for update in (adam, adam_of_v1, lars):
        assert found(update).name == "opt/learning_rate"


SCHEDULES = {
    "ExponentialDecay": (0.1, 2, 0.5),
    "CosineDecay": (0.1, 3),
    "CosineDecayRestarts": (0.1, 3),
    "PolynomialDecay": (0.1, 3),
    "InverseTimeDecay": (0.1, 3, 0.5),
    "PiecewiseConstantDecay": ([1, 2], [0.1, 0.05, 0.02]),
}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_schedules(library, name, optimizer):
    schedule = getattr(library.optimizers.schedules, name)(*SCHEDULES[name])
    made = getattr(library.optimizers, optimizer)(schedule)
    w = variable()
    made.build([w])
    flow, _, writes = update_of(lambda: made.apply_gradients([(gradient_of(w), w)]))
    rate = find_learning_rate(flow, writes)
    scope = {"CosineDecayRestarts": "SGDRDecay", "PiecewiseConstantDecay": "PiecewiseConstant"}.get(name, name)
    assert rate.number is None
    assert rate.name == "current_learning_rate" if library is tf_keras else f"/{scope}/" in f"/{rate.name}"


def test_a_schedule_inside_another_is_not_taken_for_the_outer():
    class Halved(keras.optimizers.schedules.LearningRateSchedule):
        inner = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)

        def __call__(self, step):
            return 0.5 * self.inner(step)

        def get_config(self):
            return {}

    w = variable()
    for name in ("SGD", "Adam"):
        made = getattr(keras.optimizers, name)(Halved(), name="made")
        made.build([w])
        flow, _, writes = update_of(lambda made=made: made.apply_gradients([(gradient_of(w), w)]))
        with pytest.raises(
            UnclearError, match=r"ExponentialDecay/Mul' is changed .* 'learning_rate: made/mul' for what"
        ):
            find_learning_rate(flow, writes)


class Transformer(keras.optimizers.schedules.LearningRateSchedule):
    """The schedule of TensorFlow's transformer tutorial, in a name scope that nobody knows."""

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        return tf.math.rsqrt(128.0) * tf.minimum(tf.math.rsqrt(step), step * 4000.0**-1.5)

    def get_config(self):
        return {}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop", "Adamax"])
@pytest.mark.parametrize(
    "schedule", [keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5, name="mine"), Transformer()], ids=type
)
def test_a_schedule_of_any_name_is_found_behind_the_step_size(schedule, optimizer):
    made, w = getattr(keras.optimizers, optimizer)(schedule, name="made"), variable()
    made.build([w])
    flow, _, writes = update_of(lambda: made.apply_gradients([(gradient_of(w), w)]))
    rate = find_learning_rate(flow, writes)
    assert rate.name == ("made/mul_1" if isinstance(schedule, Transformer) else "made/mine/Mul")


def test_a_name_that_is_nowhere_is_answered_with_those_that_are():
    assert refusal(lambda w, g: w.assign_sub(ETA * g), asked="lr") == (
        "'learning_rate: lr' names nothing that is read where the update is made; there is 'eta'"
    )
