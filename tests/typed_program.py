"""A program of a user's who checks types, with all of the public surface; it runs, too."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, assert_type

import tensorflow as tf

import graphwd
from graphwd import Plan, Policy, Rule, Verification
from graphwd.steps.state import State


class Model(tf.Module):
    """A model to be exported."""

    def __init__(self, weight: tf.Variable, step: Callable[[float], None]) -> None:
        super().__init__()
        self.weight = weight
        self.step = tf.function(step, input_signature=[tf.TensorSpec([], tf.float32)])


MAPPING: Mapping[str, object] = {"version": 1, "rules": [{"weight_decay": 0.5, "tunable": "all"}]}


def main(directory: Path) -> float:
    """Trains a weight in every way that there is; returns what is left of it."""
    file = directory / "policy.yaml"
    file.write_text("version: 1\nweight_decay: 0.5\n")
    policy = graphwd.load_policy(file)
    assert_type(policy, Policy)
    assert_type(Policy.from_dict(MAPPING), Policy)
    assert_type(policy.rules, tuple[Rule, ...])
    assert_type(policy.rules[0].weight_decay, float)

    weight = tf.Variable(tf.constant(8.0), name="kernel")

    @graphwd.with_weight_decay(MAPPING, summaries=True)
    def train_step(scale: float, *, by: int = 1) -> str:
        with tf.GradientTape() as tape:
            loss = 0.0 * weight
        weight.assign_sub(scale * by * tf.convert_to_tensor(tape.gradient(loss, weight)))
        return "trained"

    assert_type(train_step(0.1, by=2), str)

    def plain(scale: float) -> None:
        with tf.GradientTape() as tape:
            loss = 0.0 * weight
        weight.assign_sub(scale * tf.convert_to_tensor(tape.gradient(loss, weight)))

    rewritten = graphwd.rewrite(plain, policy)
    assert_type(rewritten(0.1), None)

    plan = graphwd.plan(plain, str(file), 0.1)
    assert_type(plan, Plan)
    assert_type(plan.record(), dict[str, Any])
    assert_type(plan.problems, tuple[str, ...])
    assert_type(plan.to_text(all=True, verbose=True, width=80), str)
    assert_type(graphwd.suggest(plain, 0.1), str)

    state = graphwd.state(train_step)
    assert_type(state, State)
    state.rates["all"].assign(0.25)
    assert_type(graphwd.write_summaries(train_step, step=0), bool)

    verification = graphwd.verify(plain, rewritten, policy, 0.1)
    assert_type(verification, Verification)
    assert_type(verification.ok, bool)

    tf.saved_model.save(Model(weight, plain), str(directory / "model"))
    decayed = graphwd.rewrite_saved_model(directory / "model", directory / "decayed", policy, ["step"])
    assert_type(decayed, Plan)
    assert_type(graphwd.strip(directory / "decayed", directory / "stripped"), int)

    callback = graphwd.keras.WeightDecay(file, log_dir=directory / "logs", every=10)
    assert_type(callback.state, State)
    try:
        graphwd.keras.attach(weight, policy, summaries=False)
    except graphwd.GraphwdError as error:
        assert_type(error, graphwd.GraphwdError)
    errors: list[type[graphwd.GraphwdError]] = [
        graphwd.GraphError, graphwd.PlanError, graphwd.PolicyError, graphwd.RewriteError, graphwd.StepError,
        graphwd.UsageError, graphwd.VerifyError,
    ]  # fmt: skip
    assert errors
    return float(weight.numpy())


if __name__ == "__main__":
    print(main(Path(tempfile.mkdtemp())))
