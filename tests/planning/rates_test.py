"""Rates as plans tell them: those of schedules at their turns, and those that are larger than was meant."""

from __future__ import annotations

import pytest
import tensorflow as tf

from graphwd.analysis.updates import find_updates
from graphwd.planning.planner import make_plan
from graphwd.planning.texts import schedule_lines
from graphwd.policy.rules import Policy, Rule, Semantics
from graphwd.policy.selectors import Selectors
from graphwd.steps.read import read
from tests.helpers.graphs import gradient_of, variable


@pytest.fixture(scope="module")
def analysis():
    weights = [variable("net/kernel", [[1.0]]), variable("net/other", [[1.0]])]

    def step():
        for weight in weights:
            weight.assign_sub(gradient_of(weight))

    return find_updates(read(tf.function(step).get_concrete_function()))


def plan_of(analysis, **policy):
    return make_plan(analysis, Policy.from_dict({"version": 1, **policy}))


TRAP = "'semantics' is not given, and 'decoupled' does not multiply by the learning rate"
ADVICE = "; write 'semantics: adamw' for a number that was made for AdamW, or 'semantics: decoupled' if this is meant"


@pytest.mark.parametrize(
    ("rate", "takes"),
    [
        (0.1, "takes 10 % of the weight at each step, and half of it is gone after 7 steps"),
        (0.05, "takes 5 % of the weight at each step, and half of it is gone after 14 steps"),
        (1e-3, "takes 0.1 % of the weight at each step, and half of it is gone after 693 steps"),
        (0.5, "takes 50 % of the weight at each step, and half of it is gone after 1 step"),
        (
            {"schedule": "cosine", "from": 0.04, "to": 0.4, "steps": 1000},
            "takes up to 40 % of the weight at each step, and half of it is gone after 2 steps",
        ),
        (
            {"schedule": "piecewise", "boundaries": [10], "values": [0.01, 0.001]},
            "takes up to 1 % of the weight at each step, and half of it is gone after 69 steps",
        ),
        (
            lambda step: tf.where(step < 1000, 0.0, 0.25),
            "takes up to 25 % of the weight at each step, and half of it is gone after 3 steps",
        ),
    ],
    ids=str,
)
def test_a_rate_as_of_adamw_without_a_semantics_is_told_once(analysis, rate, takes):
    plan = plan_of(analysis, weight_decay=rate)
    assert len(plan.injections) == 2
    given = f" {rate:g}" if isinstance(rate, float) else ""
    assert plan.notes == (f"policy: weight_decay: weight_decay{given} {takes}: {TRAP}{ADVICE}",)


def test_of_another_formula_it_is_told_what_the_rate_is_multiplied_by(analysis):
    plan = plan_of(analysis, rules=[{"weight_decay": 0.01, "formula": "l1"}])
    assert plan.notes == (f"policy: rules[0]: weight_decay 0.01 takes 0.01 times l1 at each step: {TRAP}{ADVICE}",)


@pytest.mark.parametrize(
    "policy",
    [
        {"weight_decay": 9e-4},
        {"weight_decay": {"schedule": "linear", "from": 9e-4, "to": 0, "steps": 10}},
        {"weight_decay": lambda step: 9e-4},
        {"weight_decay": tf.Variable(0.1)},
        {"weight_decay": 0.1, "defaults": {"semantics": "decoupled"}},
        {"weight_decay": 0.1, "defaults": {"scale": "none"}},
        {"rules": [{"weight_decay": 0.1, "semantics": "decoupled"}]},
        {"rules": [{"weight_decay": 0.1, "mode": "decoupled"}]},
        {"weight_decay": 0.1, "defaults": {"semantics": "tfa"}},
        {"weight_decay": 0.1, "defaults": {"semantics": "l2"}},
        {"weight_decay": 0},
    ],
    ids=str,
)
def test_nothing_is_told_of_what_is_small_or_spelled_out(analysis, policy):
    assert plan_of(analysis, **policy).notes == ()


def test_nothing_is_told_of_a_rule_that_decays_nothing(analysis):
    plan = plan_of(analysis, rules=[{"weight_decay": 1e-4}, {"weight_decay": 0.1}])
    assert all(TRAP not in note for note in plan.notes)


def test_nothing_is_told_of_a_rule_that_was_made_without_a_text(analysis):
    plan = make_plan(analysis, Policy((Rule(Selectors(), 0.1, Semantics()),)))
    assert len(plan.injections) == 2
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (
            {"schedule": "linear", "from": 0.1, "to": 0.4, "steps": 1000, "warmup_steps": 50},
            "0 at the start, 0.1 at the end of warm-up, step 50, 0.4 at the end, from step 1050 on",
        ),
        (
            {"schedule": "cosine", "from": 0.04, "to": 0.4, "steps": 300},
            "0.04 at the start, 0.4 at the end, from step 300 on",
        ),
        (
            {"schedule": "exponential", "from": 0.1, "to": 0.001, "steps": 10, "warmup_steps": 2},
            "0 at the start, 0.1 at the end of warm-up, step 2, 0.001 at the end, from step 12 on",
        ),
        (
            {"schedule": "piecewise", "boundaries": [5, 20], "values": [0.3, 0.2, 0.1], "warmup_steps": 4},
            "0 at the start, 0.3 at the end of warm-up, step 4, 0.1 at the end, from step 25 on",
        ),
    ],
    ids=lambda each: each["schedule"] if isinstance(each, dict) else "",
)
def test_a_schedule_is_shown_at_its_start_after_warm_up_and_at_its_end(analysis, rate, told):
    record = plan_of(analysis, weight_decay=rate, defaults={"semantics": "decoupled"}).record()
    (line,) = schedule_lines(record)
    assert line.endswith(f" by a counter of graphwd's own: {told}")


def test_a_function_whose_end_is_not_known_is_shown_up_to_what_stays(analysis):
    schedule = tf.keras.optimizers.schedules.PolynomialDecay(0.5, 20, end_learning_rate=0.25)
    record = plan_of(analysis, weight_decay=schedule, defaults={"semantics": "decoupled"}).record()
    (line,) = schedule_lines(record)
    assert line.endswith("0.5 at step 0, 0.4875 at step 1, 0.375 at step 10, 0.25 at step 20")
    told = record["variables"][0]["schedule"]
    assert (told["warmup_steps"], told["end"]) == (None, None)
