"""Random steps of several weights whose gradients read one another: right, or refused; never different in silence.

GRAPHWD_CASES says how many, GRAPHWD_FIRST_SEED where to begin; a failure names its seed, and
``bazel test //tests:entangled_test --test_filter='seed_17'`` runs it alone. Refusals are counted by what they say.
"""

from __future__ import annotations

import collections
import os
import re

import numpy as np
import pytest
import tensorflow as tf

import graphwd
from graphwd.planning.plan import Outcome
from graphwd.steps.read import variables_of
from tests.helpers.entangled import CLASSES, FEATURES, ROWS, SHAPE, State, by_formula, design, policy_of, run

FIRST = int(os.environ.get("GRAPHWD_FIRST_SEED", "0"))
CASES = int(os.environ.get("GRAPHWD_CASES", "150"))
RUNS = 2

# The two run the same float32 operations, but sums in another order. What a decay too many or too few changes is four
# orders of magnitude larger.
TOLERANCE = 2e-5

COUNTED: collections.Counter[str] = collections.Counter()


def class_of(problem: str) -> str:
    """What a refusal says, without names and advice."""
    problem = re.sub(r"^policy: rules\[\d+\]: ('\w+'(, )?)+: ", "", problem)
    return re.sub(r"\([^)]*\)|'[^']*'", "…", problem.partition("\n")[0].partition(";")[0])


@pytest.fixture(scope="module", autouse=True)
def _table():
    """Prints how many were right and how many refused, and why."""
    COUNTED.clear()
    yield
    print()
    for what, count in sorted(COUNTED.items()):
        print(f"{count:5} {what}")


def left_alone(plan, concrete, state):
    """The weights that the plan says it leaves alone; it must say so in a note."""
    captured = variables_of(concrete)
    left = {id(captured[d.variable.id]): d.variable.shown for d in plan.decisions if d.outcome is Outcome.NO_UPDATE}
    for name in left.values():
        said = [note for note in plan.notes if "not decayed" in note]
        assert any(f"'{name}'" in note or " more: " in note for note in said), name  # a note cuts a long list
    return [k for k, weight in enumerate(state.weights) if id(weight) in left]


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES), ids="seed_{}".format)
def test_a_random_step_of_several_weights(seed):
    made = design(seed)
    ours, reference = State.make(made, eager=False), State.make(made, eager=True)

    @tf.function(autograph=False)
    def step(x, y, given):
        ours.given = given
        return run(ours, x, y)

    given = [tf.TensorSpec(SHAPE)] * len(made.weights)
    concrete = step.get_concrete_function(tf.TensorSpec([ROWS, FEATURES]), tf.TensorSpec([ROWS, CLASSES]), given)
    kind = f"{made.semantics}{', words' * made.words}"
    plan = graphwd.plan(concrete, policy_of(made))
    if plan.problems:
        COUNTED[f"refused, {kind}: {' + '.join(sorted(set(map(class_of, plan.problems))))}"] += 1
        with pytest.raises(graphwd.PlanError):
            graphwd.rewrite(concrete, policy_of(made))
        return
    rewritten = graphwd.rewrite(concrete, policy_of(made))
    left = left_alone(plan, concrete, ours)
    reference.rates = [0.0 if k in left else rate for k, rate in enumerate(made.rates)]
    COUNTED[f"right,   {kind}{', but a weight left alone with a note' * bool(left)}"] += 1
    for turn in range(RUNS):
        x = tf.random.stateless_normal([ROWS, FEATURES], [seed, turn])
        y = tf.random.stateless_normal([ROWS, CLASSES], [seed, turn + 100])
        for state in (ours, reference):
            state.given = [by_formula(state, k, state.reads(), x, y) for k in range(len(made.weights))]
            for total, gradient in zip(state.totals, state.given, strict=True):
                total.assign_add(gradient)
        outputs = rewritten(x, y, ours.given)
        expected = run(reference, x, y)
        for what, (mine, theirs) in enumerate(
            zip([*ours.variables, *outputs], [*reference.variables, *expected], strict=True)
        ):
            np.testing.assert_allclose(
                mine, theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"seed {seed}, run {turn}, {what}: {made}"
            )
