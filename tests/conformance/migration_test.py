"""What ``graphwd help migration`` says to write, against the weight decay that it replaces.

Keras' decays are Keras' own. The others are written here from their source:

- TensorFlow Addons: ``tensorflow_addons/optimizers/weight_decay_optimizers.py``, ``_decay_weights_op`` and
  ``_set_decay_var_list``; ``optimizers/utils.py``, ``is_variable_matched_by_regexes``.
- Model Garden: ``official/modeling/optimization/legacy_adamw.py``, ``_decay_weights_op``, ``_do_use_weight_decay``.
- optax: ``optax/_src/alias.py``, ``adamw``; ``transforms/_adding.py``, ``add_decayed_weights``.
- cuda-convnet: ``include/weights.cuh``, ``Weights::update``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from tests.helpers import steps
from tests.helpers.agreement import assert_agree, train, ulps_of_largest, values
from tests.helpers.pages import blocks_in, policies_in

STEPS = 50
LEARNING_RATE = 2.0**-6
NOT_DECAYED = ["bias", "beta", "gamma"]

# In ulps of the largest element. Both round the same product differently, about one ulp a step at most; 0 to 16 were
# measured after 50 steps.
ULPS = STEPS

LIBRARIES = {"keras": (keras, steps.keras_model), "tf_keras": (tf_keras, steps.tf_keras_model)}
Decays = Callable[[Any], bool]


def batches() -> list[tuple[tf.Tensor, tf.Tensor]]:
    return steps.batches(STEPS, 16)


def name_of(variable: Any) -> str:
    """The name that the libraries search."""
    return variable.name if isinstance(variable, tf.Variable) else variable.value.name


def matches(patterns: Iterable[str], variable: Any) -> bool:
    return any(re.search(pattern, name_of(variable)) for pattern in patterns)


def step_of(model: Any, optimizer: Any, before: Callable[[], object] = lambda: None) -> Any:
    """A usual step, with something done between the gradient and the update."""
    variables = model.trainable_variables
    if isinstance(optimizer, tf_keras.optimizers.legacy.Optimizer):
        optimizer._create_all_weights(variables)
    else:
        optimizer.build(variables)

    def apply(pairs: list[Any]) -> None:
        before()
        optimizer.apply_gradients(pairs)

    return steps.step_of(lambda inputs: model(inputs, training=True), variables, apply)


def check_agree(native: Any, plain: Any, policy: Any, variables: tuple[list[Any], list[Any]]) -> None:
    """Trains with the decay of a library and with that of a policy, from one state."""
    start = values(variables[0])
    assert_agree(start, values(variables[1]), 0, ulps_of_largest)
    train(native, batches())
    train(graphwd.rewrite(plain.get_concrete_function(*batches()[0]), policy), batches())
    assert_agree(values(variables[0]), values(variables[1]), ULPS, ulps_of_largest)
    decayed = values(variables[0])
    for variable, value in zip(variables[1], start, strict=True):
        variable.assign(value)
    train(plain, batches())
    assert ulps_of_largest(decayed[0], values(variables[1])[0]) > 100 * ULPS, "the decay does not show"


@pytest.fixture
def policy_of(tmp_path):
    """Writes a policy that the page shows to a file."""

    def write(section: str, number: int = 0) -> str:
        path = tmp_path / "policy.yaml"
        path.write_text(policies_in("migration", section)[number], encoding="utf-8")
        return str(path)

    return write


def decayed_names(model: Any, policy: str) -> set[str]:
    """The variables that a policy decays."""
    step = step_of(model, keras.optimizers.SGD() if hasattr(model.variables[0], "path") else legacy_adam())
    record = graphwd.plan(step.get_concrete_function(*batches()[0]), policy).record()
    return {variable["name"] for variable in record["variables"] if variable["outcome"] == "decay"}


def legacy_adam() -> Any:
    return tf_keras.optimizers.legacy.Adam(LEARNING_RATE)


# The optimizers of Keras, with exclusions: its own choice of variables is compared by what it does to them.

EXCLUSIONS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "none": ({}, []),
    "the page": ({"var_names": NOT_DECAYED}, [{"regex": "bias|beta|gamma"}]),
    "a layer": ({"var_names": ["hidden"]}, [{"regex": "hidden"}]),
    "a pattern": ({"var_names": ["out/.*:0$"]}, [{"regex": "out/.*$"}]),
    "anchored, which matches nothing": ({"var_names": ["bias$"]}, []),
    "a variable": ({"var_list": 1}, [{"name": "*hidden/bias"}]),
    "a variable and a pattern": ({"var_list": 1, "var_names": ["out/k"]}, [{"regex": "hidden/bias$|out/k"}]),
}


@pytest.mark.parametrize("exclusion", EXCLUSIONS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_keras_exclusions(library, exclusion):
    keras_, model_of = LIBRARIES[library]
    asked, exempt = EXCLUSIONS[exclusion]
    models = model_of(), model_of()
    native = keras_.optimizers.AdamW(LEARNING_RATE, weight_decay=0.1)
    if "var_list" in asked:
        asked = {**asked, "var_list": [models[0].trainable_variables[asked["var_list"]]]}
    if asked:
        native.exclude_from_weight_decay(**asked)
    rules = [*({**each, "weight_decay": 0} for each in exempt), {"weight_decay": 0.1, "semantics": "adamw"}]
    check_agree(
        step_of(models[0], native),
        step_of(models[1], keras_.optimizers.Adam(LEARNING_RATE)),
        {"version": 1, "rules": rules},
        (models[0].trainable_variables, models[1].trainable_variables),
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_keras(library, policy_of):
    keras_, model_of = LIBRARIES[library]
    models = model_of(), model_of()
    native = keras_.optimizers.AdamW(LEARNING_RATE, weight_decay=0.1)
    native.exclude_from_weight_decay(var_names=NOT_DECAYED)
    check_agree(
        step_of(models[0], native),
        step_of(models[1], keras_.optimizers.Adam(LEARNING_RATE)),
        policy_of("Keras 3 and tf_keras"),
        (models[0].trainable_variables, models[1].trainable_variables),
    )


def addons(decay_var_list: Decays | None, exclude: list[str] | None) -> Decays:
    """Which variables TensorFlow Addons decays."""
    if decay_var_list is not None:
        return decay_var_list
    return lambda variable: not matches(exclude or [], variable)


def model_garden(include: list[str] | None, exclude: list[str] | None) -> Decays:
    """Which variables Model Garden decays."""
    return lambda variable: matches(include or [], variable) or not matches(exclude or [], variable)


# What is decayed, and by how much: a rate of its own, or one that the learning rate scales.
BEFORE: dict[str, tuple[str, int, Decays, float]] = {
    "decay_var_list": ("TensorFlow Addons", 0, addons(lambda w: "kernel" in w.name, NOT_DECAYED), 1e-3),
    "tfa exclude": ("TensorFlow Addons", 1, addons(None, NOT_DECAYED), 1e-3),
    "include and exclude": ("Model Garden", 0, model_garden(["out/bias"], NOT_DECAYED), LEARNING_RATE * 0.1),
    "param groups": ("PyTorch", 0, lambda w: "bias" not in w.name, LEARNING_RATE * 0.1),
    "optax mask": ("optax", 0, lambda w: len(w.shape) > 1, LEARNING_RATE * 0.1),
}


@pytest.mark.parametrize("case", BEFORE)
def test_a_decay_between_the_gradient_and_the_update(case, policy_of):
    section, number, decays, rate = BEFORE[case]
    models = steps.tf_keras_model(), steps.tf_keras_model()

    def decay() -> None:
        for w in models[0].trainable_variables:
            if decays(w):
                w.assign_sub(rate * w)

    check_agree(
        step_of(models[0], legacy_adam(), decay),
        step_of(models[1], legacy_adam()),
        policy_of(section, number),
        (models[0].trainable_variables, models[1].trainable_variables),
    )


RULE = {"weight_decay": 1e-3}
LISTS: dict[str, tuple[Decays, list[dict[str, Any]]]] = {
    "addons, nothing given": (addons(None, None), [RULE]),
    "addons, the list comes first": (
        addons(lambda w: "hidden" in w.name, ["hidden"]),
        [{"regex": "hidden", **RULE}, {"weight_decay": 0}],
    ),
    "garden, include alone limits nothing": (model_garden(["kernel"], None), [RULE]),
    "garden, exclude alone": (model_garden(None, ["bias"]), [{"regex": "bias", "weight_decay": 0}, RULE]),
    "garden, include comes first": (
        model_garden(["out/"], ["bias"]),
        [{"regex": "out/", **RULE}, {"regex": "bias", "weight_decay": 0}, RULE],
    ),
    "garden, a text for a list": (model_garden(list("kernel:0$."), ["bias"]), [RULE]),
}


@pytest.mark.parametrize("case", LISTS)
def test_the_lists_choose_the_same_variables(case):
    decays, rules = LISTS[case]
    model = steps.tf_keras_model()
    expected = {w.name.removesuffix(":0") for w in model.trainable_variables if decays(w)}
    assert decayed_names(model, {"version": 1, "rules": rules}) == expected


def test_model_garden_clips_as_the_plain_optimizer_does(policy_of):
    models = steps.tf_keras_model(), steps.tf_keras_model()
    by_hand, plain = legacy_adam(), tf_keras.optimizers.legacy.Adam(LEARNING_RATE, global_clipnorm=0.01)
    decays = model_garden(["out/bias"], NOT_DECAYED)
    variables = models[0].trainable_variables
    by_hand._create_all_weights(variables)

    def apply(pairs: list[Any]) -> None:
        gradients, _ = tf.clip_by_global_norm([gradient for gradient, _ in pairs], 0.01)
        for w in variables:
            if decays(w):
                w.assign_sub(LEARNING_RATE * 0.1 * w)
        by_hand.apply_gradients(zip(gradients, variables, strict=True))

    check_agree(
        steps.step_of(models[0], variables, apply),
        step_of(models[1], plain),
        policy_of("Model Garden"),
        (variables, models[1].trainable_variables),
    )


def test_cuda_convnet(tmp_path):
    """inc <- momW inc - epsW wc w + epsW g; w <- w + inc, with g the step down the gradient."""
    (parameters,) = blocks_in("migration", "cuda-convnet", "ini")
    path = tmp_path / "layer-params.cfg"
    path.write_text(parameters, encoding="utf-8")
    models = steps.keras_model(), steps.keras_model()
    variables = models[0].trainable_variables
    increments = [tf.Variable(np.zeros(w.shape, np.float32), trainable=False) for w in variables]

    def apply(pairs: list[Any]) -> None:
        for (gradient, w), increment in zip(pairs, increments, strict=True):
            wc = 0.004 if "hidden/kernel" in w.path else 0.0
            increment.assign(0.9 * increment - 0.015625 * wc * w - 0.015625 * gradient)
            w.assign_add(increment)

    check_agree(
        steps.step_of(lambda inputs: models[0](inputs, training=True), variables, apply),
        step_of(models[1], keras.optimizers.SGD(0.015625, momentum=0.9)),
        str(path),
        (variables, models[1].trainable_variables),
    )


def test_every_policy_of_the_page_is_tested():
    elsewhere = ["timm", "mmpretrain"]  # published_rates_test
    assert all(policies_in("migration", section) for section in elsewhere)
    assert len(policies_in("migration", None)) == 1 + len(BEFORE) + len(elsewhere)
