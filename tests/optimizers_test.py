"""Every optimizer class that the libraries export, enumerated from them, in lockstep."""

from __future__ import annotations

import inspect

import keras
import pytest
import sonnet as snt
import tensorflow as tf
import tf_keras

import graphwd
from tests import steps
from tests.lockstep import Case, check_lockstep, policy_for

UNSUPPORTED = {
    tf.compat.v1.train.SyncReplicasOptimizer: "applies gradients from a queue runner of a v1 session, not in a step",
}


def exported(module, base, *abstract):
    """The optimizer classes among the public names of a module, each once, sorted by name."""
    found = {
        value
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isclass(value) and issubclass(value, base)
    }
    return sorted(found - {base, *abstract}, key=lambda kind: kind.__name__)


KERAS = exported(keras.optimizers, keras.optimizers.Optimizer)
TF_KERAS = [
    *exported(tf_keras.optimizers, tf_keras.optimizers.Optimizer),
    tf_keras.mixed_precision.LossScaleOptimizer,
]
LEGACY = exported(tf_keras.optimizers.legacy, tf_keras.optimizers.legacy.Optimizer)
V1 = exported(tf.compat.v1.train, tf.compat.v1.train.Optimizer)
SONNET = exported(snt.optimizers, snt.Optimizer)


def test_the_libraries_were_enumerated():
    assert {kind.__name__ for kind in KERAS} >= {"Adam", "AdamW", "Ftrl", "Lion", "LossScaleOptimizer", "Muon", "SGD"}
    assert {kind.__name__ for kind in TF_KERAS} >= {"Adam", "AdamW", "Ftrl", "Lion", "SGD"}
    assert {kind.__name__ for kind in LEGACY} >= {"Adam", "Ftrl", "Nadam", "RMSprop", "SGD"}
    assert {kind.__name__ for kind in V1} >= {"AdamOptimizer", "FtrlOptimizer", "MomentumOptimizer"}
    assert {kind.__name__ for kind in SONNET} == {"Adam", "Momentum", "RMSProp", "SGD"}


def names(kinds):
    return [kind.__name__ for kind in kinds]


# The arguments of those that cannot be made without.
ARGUMENTS = {
    keras.optimizers.LossScaleOptimizer: lambda: (keras.optimizers.Adam(0.01),),
    keras.optimizers.MultiOptimizer: lambda: (
        lambda variable: keras.optimizers.Adam() if "hidden" in variable.path else keras.optimizers.SGD(),
    ),
    tf_keras.mixed_precision.LossScaleOptimizer: lambda: (tf_keras.optimizers.Adam(0.01),),
    tf.compat.v1.train.AdagradDAOptimizer: lambda: (
        0.01,
        tf.Variable(1, dtype=tf.int64, trainable=False, name="global_step"),
    ),
    tf.compat.v1.train.MomentumOptimizer: lambda: (0.01, 0.9),
    snt.optimizers.Momentum: lambda: (0.01, 0.9),
}


def make(kind):
    """An optimizer of a class, with its defaults as far as it has any."""
    if kind in ARGUMENTS:
        return kind(*ARGUMENTS[kind]())
    try:
        return kind()
    except TypeError:
        return kind(0.01)


def decays_natively(kind):
    return getattr(make(kind), "weight_decay", None) is not None


def check_native(step, batches, rates):
    """A step that decays itself is refused, and decayed in lockstep where that is allowed."""
    concrete = step.get_concrete_function(*batches[0])
    with pytest.raises(graphwd.PlanError, match="the step already decays"):
        graphwd.rewrite(concrete, policy_for(rates))
    check_lockstep(Case(step, batches, rates), double_decay="allow")


@pytest.mark.parametrize("kind", KERAS, ids=names(KERAS))
def test_keras(kind):
    check = check_native if decays_natively(kind) else lambda *case: check_lockstep(Case(*case))
    check(steps.keras_step(make(kind)), steps.batches(), steps.KERAS_KERNELS)


@pytest.mark.parametrize("kind", TF_KERAS, ids=names(TF_KERAS))
def test_tf_keras(kind):
    check = check_native if decays_natively(kind) else lambda *case: check_lockstep(Case(*case))
    check(steps.tf_keras_step(make(kind)), steps.batches(), steps.TF_KERAS_KERNELS)


@pytest.mark.parametrize("kind", LEGACY, ids=names(LEGACY))
def test_tf_keras_legacy(kind):
    check_lockstep(Case(steps.tf_keras_step(make(kind)), steps.batches(), steps.TF_KERAS_KERNELS))


@pytest.mark.parametrize("kind", [kind for kind in V1 if kind not in UNSUPPORTED], ids=lambda kind: kind.__name__)
def test_v1(kind):
    check_lockstep(Case(steps.tf_keras_step(make(kind)), steps.batches(), steps.TF_KERAS_KERNELS))


@pytest.mark.parametrize("kind", SONNET, ids=names(SONNET))
def test_sonnet(kind):
    check_lockstep(Case(steps.sonnet_step(make(kind)), steps.batches(), steps.SONNET_KERNELS))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        lambda: keras.optimizers.Lion(0.01, weight_decay=0.1),
        lambda: keras.optimizers.Muon(0.01, weight_decay=0.1),
        lambda: keras.optimizers.SGD(0.1, weight_decay=0.1),
    ],
    ids=["AdamW", "Lion", "Muon", "SGD"],
)
def test_decay_of_the_optimizer_itself_is_a_double_decay(optimizer):
    check_native(steps.keras_step(optimizer()), steps.batches(), steps.KERAS_KERNELS)
