"""Every optimizer class that the libraries export, enumerated from them, in lockstep."""

from __future__ import annotations

import keras
import pytest

import graphwd
from tests.helpers import steps
from tests.helpers.every_step import KERAS, LEGACY, SONNET, TF_KERAS, UNSUPPORTED, V1, make
from tests.helpers.lockstep import Case, check_lockstep, policy_for


def test_the_libraries_were_enumerated():
    assert {kind.__name__ for kind in KERAS} >= {"Adam", "AdamW", "Ftrl", "Lion", "LossScaleOptimizer", "Muon", "SGD"}
    assert {kind.__name__ for kind in TF_KERAS} >= {"Adam", "AdamW", "Ftrl", "Lion", "SGD"}
    assert {kind.__name__ for kind in LEGACY} >= {"Adam", "Ftrl", "Nadam", "RMSprop", "SGD"}
    assert {kind.__name__ for kind in V1} >= {"AdamOptimizer", "FtrlOptimizer", "MomentumOptimizer"}
    assert {kind.__name__ for kind in SONNET} == {"Adam", "Momentum", "RMSProp", "SGD"}


def names(kinds):
    return [kind.__name__ for kind in kinds]


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
