"""Random training steps: the rewritten step against the same program run eagerly and decayed by hand.

GRAPHWD_CASES says how many, GRAPHWD_FIRST_SEED where to begin; a failure names its seed, and
``bazel test //tests:property_test --test_filter='seed_17'`` runs it alone.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow as tf

import graphwd
from tests.helpers.lockstep import policy_for
from tests.helpers.programs import SHAPE, State, make_program

FIRST = int(os.environ.get("GRAPHWD_FIRST_SEED", "0"))
CASES = int(os.environ.get("GRAPHWD_CASES", "60"))

# The two run the same float32 operations, but Grappler may reorder sums of the traced one. What a decay too many or too
# few changes is five orders of magnitude larger.
TOLERANCE = 1e-5


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES), ids="seed_{}".format)
def test_a_random_step(seed):
    program = make_program(seed)
    ours = State.make(program.count, program.rates, by_hand=False)
    reference = State.make(program.count, program.rates, by_hand=True)

    @tf.function(autograph=False)
    def step(batch):
        ours.batch = batch
        program.run(ours)

    rates = {f"w{i}": rate for i, rate in enumerate(program.rates) if rate}
    policy = policy_for(rates, updates="each", optional=True)
    rewritten = graphwd.rewrite(step, policy)
    for run in range(3):
        batch = tf.random.stateless_normal(SHAPE, [seed, run])
        rewritten(batch)
        reference.batch = batch
        tf.config.run_functions_eagerly(True)
        try:
            program.run(reference)
        finally:
            tf.config.run_functions_eagerly(False)
        for mine, theirs in zip(ours.variables, reference.variables, strict=True):
            np.testing.assert_allclose(
                mine, theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"seed {seed}, run {run}, {mine.name}"
            )


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES), ids="seed_{}".format)
def test_a_random_step_and_meaning_is_verified(seed):
    """What is not refused must pass its own verification: every write in its place, and no race."""
    program = make_program(seed)
    state = State.make(program.count, program.rates, by_hand=False)

    @tf.function(autograph=False)
    def step(batch):
        state.batch = batch
        program.run(state)

    batch = tf.random.stateless_normal(SHAPE, [seed, 0])
    traced = step.get_concrete_function(batch)
    rates = {f"w{i}": rate for i, rate in enumerate(program.rates) if rate}
    semantics = ("decoupled", "tfa", "adamw", "l2")[seed % 4]
    policy = policy_for(rates, updates="each", optional=True, semantics=semantics)
    try:
        rewritten = graphwd.rewrite(traced, policy)
    except graphwd.PlanError as refused:
        # Two writes, each times a constant of its own, make one update: neither constant is its learning rate.
        if semantics in ("decoupled", "tfa") or "its learning rate is not found" not in str(refused):
            raise
        return
    # A run makes many updates, each with a rounding of its own.
    graphwd.verify(traced, rewritten, policy, batch, runs=2, tolerance=256).check()
