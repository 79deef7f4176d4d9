"""Random steps with gradients of every origin, decayed by policy and by hand: right, or refused.

GRAPHWD_CASES says how many cases, GRAPHWD_FIRST_SEED where to begin; a failure names its seed, and
``bazel test //tests:origins_test --test_filter='seed_17'`` runs it alone. What is refused is printed, in classes.
"""

from __future__ import annotations

import collections
import os

import numpy as np
import pytest
import tensorflow as tf

import graphwd
from tests.helpers.origins import Case, make_case
from tests.helpers.refusals import class_of, print_table

FIRST = int(os.environ.get("GRAPHWD_FIRST_SEED", "0"))
CASES = int(os.environ.get("GRAPHWD_CASES", "150"))
RUNS = 2

# Both run the same float32 operations in another order; a decay that is missing changes 1 % and more.
TOLERANCE = 1e-5

REFUSED: collections.Counter[tuple[str, str]] = collections.Counter()
MET: collections.Counter[tuple[str, str]] = collections.Counter()


@pytest.fixture(scope="module", autouse=True)
def table():
    """Prints what was refused, by semantics and message."""
    yield
    print_table(REFUSED, MET)


def describe(case: Case) -> str:
    weights = ", ".join(
        f"{each.origin}/{each.treatment}/{each.optimizer}/{each.learning_rate}/average {each.averaging}"
        for each in case.weights
    )
    return f"{case.semantics}, outputs {case.outputs}, leave {case.leave}: {weights}"


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES), ids="seed_{}".format)
def test_a_random_step(seed):
    ours, reference = make_case(seed), make_case(seed, by_hand=True)
    step = tf.function(ours.run, autograph=False).get_concrete_function(*ours.arguments(0))
    MET[ours.semantics, ""] += 1
    try:
        rewritten = graphwd.rewrite(step, ours.policy)
    except graphwd.GraphwdError as refused:
        for problem in str(refused).split("\npolicy"):
            REFUSED[ours.semantics, class_of(problem)] += 1
        return
    for run in range(RUNS):
        arguments = ours.arguments(seed * RUNS + run)
        ours.accumulate(arguments[0])
        reference.accumulate(arguments[0])
        outputs = rewritten(*arguments)
        tf.config.run_functions_eagerly(True)
        try:
            expected = reference.run(*arguments)
        finally:
            tf.config.run_functions_eagerly(False)
        named = [*((v.name, v, w) for v, w in zip(ours.variables, reference.variables, strict=True))]
        named += [("output", mine, theirs) for mine, theirs in zip(outputs, expected, strict=True)]
        for name, mine, theirs in named:
            np.testing.assert_allclose(
                mine, theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"seed {seed}, {name}: {describe(ours)}"
            )
