"""SavedModels written from Python steps."""

from __future__ import annotations

import os

import keras
import pytest
import tensorflow as tf
import tf_keras

from graphwd.checking.verify import verify_pairs
from graphwd.checking.verify_files import step_pairs
from graphwd.errors import PlanError, StepError, VerifyError
from graphwd.models.export import export
from graphwd.models.saved_model import describe_saved_model
from graphwd.policy.rules import Policy
from tests.helpers import steps
from tests.helpers.graphs import gradient_of
from tests.helpers.lockstep import assert_bit_equal, policy_for

SPECS = [tf.TensorSpec([None, steps.FEATURES]), tf.TensorSpec([None, steps.CLASSES])]


@pytest.mark.parametrize(
    ("make", "rates"),
    [
        (lambda: steps.keras_step(keras.optimizers.Adam(0.01), input_signature=SPECS), steps.KERAS_KERNELS),
        (
            # Its slot variables are touched through raw handles only.
            lambda: steps.tf_keras_step(tf_keras.optimizers.legacy.Adam(0.01), input_signature=SPECS),
            steps.TF_KERAS_KERNELS,
        ),
    ],
    ids=["keras", "legacy"],
)
def test_a_saved_step_trains_on_as_the_live_one_would(tmp_path, make, rates):
    policy = Policy.from_dict(policy_for(rates))
    step = make()
    target = tmp_path / "out"
    plan = export(step, "train", policy, target)
    assert sum(decision.outcome.value == "decay" for decision in plan.decisions) == 2
    assert sorted(os.listdir(tmp_path)) == ["out"]

    import graphwd

    live = graphwd.rewrite(step, policy)
    by_name, by_signature = tf.saved_model.load(target), tf.saved_model.load(target)
    for batch in steps.batches(3):
        loss = live(*batch)
        assert_bit_equal(by_name.train(*batch), loss)
        outputs = by_signature.signatures["train"](inputs=batch[0], targets=batch[1])
        assert_bit_equal(outputs["output_0"], loss)


def test_it_trains_from_a_v1_session(tmp_path):
    step = steps.keras_step(keras.optimizers.SGD(0.1), input_signature=SPECS)
    export(step, "train", Policy.from_dict(policy_for(steps.KERAS_KERNELS)), tmp_path / "out")
    loaded = tf.saved_model.load(tmp_path / "out")
    expected = [loaded.train(*batch).numpy() for batch in steps.batches(3)]
    arrays = [(inputs.numpy(), targets.numpy()) for inputs, targets in steps.batches(3)]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "out"))
        signature = meta.signature_def["train"]
        for (inputs, targets), loss in zip(arrays, expected, strict=True):
            feed = {signature.inputs["inputs"].name: inputs, signature.inputs["targets"].name: targets}
            assert_bit_equal(session.run(signature.outputs["output_0"].name, feed), loss)


def test_every_trace_is_saved(tmp_path):
    looping = steps.Looping()
    for size in (2, 3):
        looping.step(*steps.batches(1, size)[0])
    export(looping.step, "step", Policy.from_dict(policy_for({"kernel": 0.1})), tmp_path / "out")
    loaded = tf.saved_model.load(tmp_path / "out")
    assert sorted(loaded.signatures) == ["step", "step_1"]
    for size in (2, 3):
        loaded.step(*steps.batches(1, size)[0])


def test_a_step_that_returns_nothing_says_when_it_is_done(tmp_path):
    kernel = tf.Variable([4.0], name="kernel")

    @tf.function(input_signature=[])
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(kernel)
        kernel.assign_sub(tape.gradient(loss, kernel))

    export(step, "step", Policy.from_dict(policy_for({"kernel": 0.5})), tmp_path / "out")
    loaded = tf.saved_model.load(tmp_path / "out")
    assert loaded.signatures["step"]()["output_0"].numpy()
    assert loaded.variables_of_the_step[0].numpy() == 1.5


LINEAR = {"schedule": "linear", "from": 0.5, "to": 0.0, "steps": 4}
LATER = {**LINEAR, "steps": 5}


@pytest.mark.parametrize(
    ("rule", "other", "factors"),
    [
        ({"weight_decay": LINEAR}, {"weight_decay": LATER}, ["linear(from=0.5, to=0, steps=4)"]),
        ({"weight_decay": 0.25, "tunable": "body"}, {"weight_decay": LINEAR}, ["0.25 (body)"]),
    ],
    ids=["a counter", "a tunable rate"],
)
def test_the_variables_of_its_own_are_told_and_verified(tmp_path, rule, other, factors):
    """What a Python step is exported with has no name in the policy's file, but the file holds it."""
    kernel = tf.Variable([4.0, 2.0], name="kernel")
    step = tf.function(lambda: kernel.assign_sub(0.5 * gradient_of(kernel)), input_signature=[])
    policy = Policy.from_dict({"version": 1, "rules": [rule]})
    export(step, "step", policy, tmp_path / "out")
    assert all(decay["factors"] == factors for decay in describe_saved_model(tmp_path / "out"))
    verification = verify_pairs(step_pairs(step, "step", tmp_path / "out"), policy, runs=3)
    verification.check()
    assert verification.variables[0].decay > 1e5  # in units in the last place: it is seen
    wrong = verify_pairs(step_pairs(step, "step", tmp_path / "out"), Policy.from_dict({"version": 1, "rules": [other]}))
    assert not wrong.ok


@pytest.mark.parametrize(
    ("rewritten_by", "message"),
    [({"tunable": "head"}, "has no rate 'body': another policy made it"), ({}, "which verify does not find")],
    ids=["another", "none"],
)
def test_a_file_without_the_rate_of_the_policy_is_not_verified(tmp_path, rewritten_by, message):
    kernel = tf.Variable([4.0, 2.0], name="kernel")
    step = tf.function(lambda: kernel.assign_sub(0.5 * gradient_of(kernel)), input_signature=[])
    rule = {"weight_decay": 0.25}
    export(step, "step", Policy.from_dict({"version": 1, "rules": [rule | rewritten_by]}), tmp_path / "out")
    with pytest.raises(VerifyError, match=message):
        verify_pairs(
            step_pairs(step, "step", tmp_path / "out"),
            Policy.from_dict({"version": 1, "rules": [rule | {"tunable": "body"}]}),
        )


def test_first_weights_in_a_file_are_not_verified(tmp_path):
    """They have no names by which to tell whose they are."""
    kernel = tf.Variable([4.0, 2.0], name="kernel")
    step = tf.function(lambda: kernel.assign_sub(0.5 * gradient_of(kernel)), input_signature=[])
    policy = Policy.from_dict({"version": 1, "rules": [{"weight_decay": 0.25, "formula": "l2_sp"}]})
    export(step, "step", policy, tmp_path / "out")
    with pytest.raises(VerifyError, match="which verify does not find in the rewritten step; in Python call"):
        verify_pairs(step_pairs(step, "step", tmp_path / "out"), policy)


@pytest.mark.parametrize(
    ("rates", "target", "error", "message"),
    [
        ({"typo": 0.1}, "out", PlanError, "matches no trainable variable"),
        ({"kernel": 0.1}, "there", StepError, "exists already"),
        ({"kernel": 0.1}, "file/out", StepError, "cannot be written"),
    ],
)
def test_what_fails_leaves_nothing_behind(tmp_path, rates, target, error, message):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    looping = steps.Looping()
    looping.step(*steps.batches(1)[0])
    with pytest.raises(error, match=message):
        export(looping.step, "step", Policy.from_dict(policy_for(rates)), tmp_path / target)
    assert sorted(os.listdir(tmp_path)) == ["file", "there"]
    assert os.listdir(tmp_path / "there") == []


def test_a_step_without_known_arguments_is_refused(tmp_path):
    with pytest.raises(StepError, match="no input_signature and was never traced"):
        export(steps.Looping().step, "step", Policy.from_dict(policy_for({"kernel": 0.1})), tmp_path / "out")
