"""BERT and ViT of keras_hub, by their own task classes, in lockstep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.steps.read import variables_of
from tests.helpers.agreement import ulps_of_largest
from tests.helpers.lockstep import (
    Case,
    assert_bit_equal,
    assert_within_ulps,
    check_adamw,
    check_lists,
    check_lockstep,
    policy_for,
)

keras_hub = pytest.importorskip("keras_hub", reason="keras_hub is not installed: run tools/setup")

LEARNING_RATE = 2.0**-7
CLASSES = 3
TOKENS = 50


def compiled(task: Any, optimizer: Any = None) -> Any:
    task.compile(
        optimizer=optimizer or keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
    )
    task.optimizer.build(task.trainable_variables)
    return task


def bert(**options: Any) -> Any:
    """A classifier of texts; its dropout is as it comes, and draws from variables that the lockstep restores."""
    keras.utils.set_random_seed(3)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=TOKENS, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=7
    )
    return compiled(keras_hub.models.BertTextClassifier(backbone, num_classes=CLASSES, preprocessor=None), **options)


def vit(**options: Any) -> Any:
    keras.utils.set_random_seed(3)
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(8, 8, 3), patch_size=(4, 4), num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    return compiled(keras_hub.models.ViTImageClassifier(backbone, num_classes=CLASSES, preprocessor=None), **options)


def texts() -> list[Any]:
    random = np.random.default_rng(7)
    return [
        {
            "token_ids": tf.constant(random.integers(0, TOKENS, (4, 7)), tf.int32),
            "segment_ids": tf.constant(random.integers(0, 2, (4, 7)), tf.int32),
            "padding_mask": tf.ones((4, 7), tf.int32),
        }
        for _ in range(3)
    ]


def images() -> list[Any]:
    random = np.random.default_rng(7)
    return [tf.constant(random.normal(size=(4, 8, 8, 3)), tf.float32) for _ in range(3)]


TASKS: dict[str, tuple[Callable[..., Any], Callable[[], list[Any]]]] = {"BERT": (bert, texts), "ViT": (vit, images)}


def case_of(name: str, suffix: str = "kernel", **options: Any) -> tuple[Any, Case]:
    """A task's own train step, and every kernel decayed, each at a rate of its own."""
    make, inputs = TASKS[name]
    task = make(**options)

    @tf.function
    def step(features, labels):
        return task.train_step((features, labels))

    labels = tf.constant([0, 1, 2, 0])
    decayed = [variable.path for variable in task.trainable_variables if variable.path.endswith(suffix)]
    rates = {path: 0.01 * (number + 1) for number, path in enumerate(decayed)}
    return task, Case(step, [(each, labels) for each in inputs()], rates)


@pytest.mark.parametrize("name", TASKS)
def test_every_kernel(name):
    task, case = case_of(name)
    assert len(case.rates) == 14, "6 of each layer, and those of the head and of what is before the layers"
    check_lists(case, [variable.value for variable in task.trainable_variables])
    check_lockstep(case)


@pytest.mark.parametrize("name", TASKS)
def test_adamw(name):
    _, case = case_of(name)
    check_adamw(case, LEARNING_RATE)


@pytest.mark.parametrize("name", TASKS)
def test_l2(name):
    """As with the decay added to the gradients by hand, but for how these are rounded."""
    # With its small epsilon Adam would blow the last place of a gradient near 0 up to a step of full length.
    task, case = case_of(name, optimizer=keras.optimizers.Adam(LEARNING_RATE, epsilon=1.0))
    case.rates = {path: 100 * rate for path, rate in case.rates.items()}
    variables = task.trainable_variables

    @tf.function
    def by_hand(features, labels):
        with tf.GradientTape() as tape:
            loss = task.compute_loss(x=features, y=labels, y_pred=task(features, training=True))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        task.optimizer.apply_gradients(
            [
                (
                    gradient + case.rates[variable.path] * variable.value if variable.path in case.rates else gradient,
                    variable,
                )
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        )

    rewritten = graphwd.rewrite(
        case.step.get_concrete_function(*case.batches[0]), policy_for(case.rates, semantics="l2")
    )
    state = [*task.trainable_variables, *task.non_trainable_variables, *task.optimizer.variables]
    for batch in case.batches:
        before = [variable.numpy() for variable in state]
        by_hand(*batch)
        expected = [variable.numpy() for variable in state]
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        rewritten(*batch)
        for variable, value in zip(state, expected, strict=True):
            if getattr(variable, "path", None) in case.rates:
                # Others may have a gradient of nothing but rounding: a bias of keys.
                assert ulps_of_largest(value, variable.numpy()) <= 4, variable.path


def test_the_embeddings_of_bert_are_tied_to_no_rows_by_adam():
    """Adam moves every row of a table, touched or not, so all of it is decayed, whatever `sparse` says."""
    _, case = case_of("BERT", "token_embedding/embeddings")
    check_lockstep(case, sparse="touched")


def test_the_rows_of_a_batch_of_bert_under_sgd():
    _, case = case_of("BERT", "token_embedding/embeddings", optimizer=keras.optimizers.SGD(LEARNING_RATE))
    ((name, rate),) = case.rates.items()
    concrete = case.step.get_concrete_function(*case.batches[0])
    rewritten = graphwd.rewrite(concrete, policy_for(case.rates, sparse="touched"))
    state = variables_of(concrete)
    for features, labels in case.batches:
        before = [variable.numpy() for variable in state]
        concrete(features, labels)
        plain = [variable.numpy() for variable in state]
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        rewritten(features, labels)
        rows = np.unique(features["token_ids"].numpy())
        others = np.setdiff1d(np.arange(TOKENS), rows)
        assert others.size
        for variable, undecayed in zip(state, plain, strict=True):
            if variable.name != f"{name}:0" and variable.name != name:
                assert_bit_equal(undecayed, variable.numpy(), variable.name)
                continue
            assert_bit_equal(undecayed[others], variable.numpy()[others])
            assert_within_ulps(variable.numpy()[rows], undecayed[rows].astype(np.float64) * (1 - rate), 1)


@pytest.mark.parametrize("name", TASKS)
def test_under_fit(name):
    """The class of a task, with a decorated train step."""
    make, inputs = TASKS[name]
    plain, decayed = make(), make()
    paths = [variable.path for variable in decayed.trainable_variables if variable.path.endswith("kernel")]
    rates = dict.fromkeys(paths, 0.25)
    kind = type(decayed)
    train_step = graphwd.with_weight_decay(policy_for(rates))(kind.train_step)
    decayed.__class__ = type(kind.__name__, (kind,), {"train_step": train_step})
    features, labels = inputs()[0], tf.constant([0, 1, 2, 0])
    for task in (plain, decayed):
        keras.utils.set_random_seed(3)
        task.fit(features, labels, batch_size=4, epochs=1, shuffle=False, verbose=0)
    for first, second in zip(plain.trainable_variables, decayed.trainable_variables, strict=True):
        if first.path in rates:
            assert_within_ulps(second.numpy(), first.numpy().astype(np.float64) * 0.75, 1, first.path)
        else:
            assert_bit_equal(first.numpy(), second.numpy(), first.path)
