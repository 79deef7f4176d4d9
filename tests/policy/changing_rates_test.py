"""What a policy may say of formulas, schedules, tunables and scales; each mistake is answered where it was made."""

from __future__ import annotations

import pytest
import tensorflow as tf

from graphwd.errors import PolicyError
from graphwd.policy.rules import Policy, Scale, load_policy


def rule(**fields):
    return Policy.from_dict({"version": 1, "rules": [{"weight_decay": 0.1, **fields}]}).rules[0]


def from_yaml(tmp_path, text):
    path = tmp_path / "policy.yaml"
    path.write_text(f"version: 1\nrules:\n  - {text}\n", encoding="utf-8")
    return load_policy(path).rules[0]


def test_formulas(tmp_path):
    assert rule().formula.name == "l2"
    assert str(rule(formula="l1").formula.resolved()) == "l1"
    huber = from_yaml(tmp_path, "{weight_decay: 0.1, formula: {name: huber, delta: 0.5}}").formula
    assert (huber.name, huber.options) == ("huber", (("delta", 0.5),))
    assert rule(formula="l1", weight_decay=3).weight_decay == 3  # which is no share of the weight


def test_schedules(tmp_path):
    text = "{weight_decay: {schedule: cosine, from: 0.04, to: 0.4, steps: 100, warmup_steps: 5}, step: '*iter*'}"
    given = from_yaml(tmp_path, text)
    assert str(given.schedule.resolved()) == "cosine(from=0.04, to=0.4, steps=100, warmup_steps=5)"
    assert (given.weight_decay, given.step) == (1.0, "*iter*")
    piecewise = {"schedule": "piecewise", "boundaries": [2, 5], "values": [0.5, 0.25, 0]}
    assert rule(weight_decay=piecewise).schedule.options == (("boundaries", (2.0, 5.0)), ("values", (0.5, 0.25, 0.0)))
    assert rule(weight_decay={"schedule": "linear", "from": 0, "to": 2, "steps": 5}, scale="lr").schedule is not None


def test_scales_and_tunables():
    given = rule(scale="corrected", peak_learning_rate=1e-3, tunable="body")
    assert (given.semantics.scale, given.peak_learning_rate, given.tunable) == (Scale.CORRECTED, 1e-3, "body")
    assert not rule(weight_decay=0, tunable="body").exempts
    assert rule(weight_decay=0).exempts


def test_what_only_python_can_give():
    variable = tf.Variable(0.5)
    assert rule(weight_decay=variable).schedule.variable is variable
    assert rule(weight_decay=lambda step: 0.1).schedule.function is not None
    assert rule(formula=lambda weight, initial: weight - initial).formula.resolved().takes == ("weight", "initial")


COSINE = "{schedule: cosine, from: 0.04, to: 0.4, steps: 10000}"
PIECEWISE = "{schedule: piecewise, boundaries: [1000, 2000], values: [0.1, 0.05, 0.01]}"
FORMULAS = "cautious, huber, l1, l2, l2_sp, norm"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("formula: hubr", f"formula must be one of {FORMULAS}, got 'hubr'; did you mean 'huber'?"),
        ("formula: 3", f"formula must be one of {FORMULAS}, got 3; a function of your own goes into"),
        ("formula: {name: [huber]}", f"formula must be one of {FORMULAS}, got a list; a function of your own goes"),
        (
            "formula: {name: huber, dleta: 1}",
            "the formula huber has no option 'dleta'; write {name: huber, delta: 0.1}; did you mean 'delta'?",
        ),
        (
            "weight_decay: {schedule: cosin}",
            "schedule must be one of cosine, exponential, linear, piecewise, got 'cosin'; did you mean 'cosine'?",
        ),
        ("formula: os.system", f"formula must be one of {FORMULAS}, got 'os.system'; a function of your own goes into"),
        ("formula: !!python/name:os.system ''", "the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed"),
        ("formula: huber", "the formula huber needs 'delta'; write {name: huber, delta: 0.1}"),
        ("formula: {delta: 1}", "formula needs a 'name'; write {name: huber, delta: 0.1}"),
        ("formula: {name: huber, delta: 0}", "delta must be a finite number > 0, got 0"),
        ("formula: {name: huber, delta: x}", "delta must be a number, got 'x'"),
        ("formula: {name: norm, target: -1}", "target must be a finite number > 0, got -1"),
        ("formula: {name: l1, delta: 1}", "the formula l1 has no option 'delta'; write l1"),
        ("formula: cautious, mode: coupled", "the formula cautious depends on what the optimizer's update subtracts"),
        ("scale: relative", "'scale: relative' needs the largest learning rate of training; write"),
        ("peak_learning_rate: 0.1", "'peak_learning_rate' says nothing without 'scale: relative'"),
        ("scale: relative, peak_learning_rate: 0", "peak_learning_rate must be above 0"),
        ("tunable: 3", "tunable must be text, got 3"),
        ("tunable: a b", "tunable must be a name of letters, digits and _, got 'a b'"),
        ("step: '*'", "'step' says nothing where weight_decay is no schedule; leave it out"),
        ("weight_decay: {from: 1}", "weight_decay needs a 'schedule', one of cosine, exponential, linear, piecewise"),
        ("weight_decay: {schedule: cosine, to: 1}", f"the schedule cosine needs 'from'; write {COSINE}"),
        (f"weight_decay: {COSINE[:-1]}, stesp: 1}}", "the schedule cosine has no option 'stesp'; write"),
        ("weight_decay: {schedule: linear, from: 0, to: 1, steps: 0}", "steps must be a whole number >= 1, got 0"),
        ("weight_decay: {schedule: linear, from: 0, to: 1, steps: 1.5}", "steps must be a whole number >= 1, got 1.5"),
        ("weight_decay: {schedule: linear, from: -1, to: 1, steps: 2}", "from must be a finite number >= 0, got -1"),
        ("weight_decay: {schedule: linear, from: .inf, to: 1, steps: 2}", "from must be a finite number >= 0, got inf"),
        ("weight_decay: {schedule: linear, from: x, to: 1, steps: 2}", "from must be a number, got 'x'"),
        ("weight_decay: {schedule: exponential, from: 0, to: 1, steps: 2}", "from must be a finite number > 0, got 0"),
        ("formula: {name: huber, delta: 1" + "0" * 400 + "}", "delta must be a finite number > 0, got inf"),
        ("formula: {name: huber, delta: [1]}", "delta must be a number, got a list"),
        (
            "weight_decay: {schedule: linear, from: 1" + "0" * 400 + ", to: 1, steps: 2}",
            "from must be a finite number >",
        ),
        ("weight_decay: {schedule: linear, from: [1], to: 1, steps: 2}", "from must be a number, got a list"),
        (
            "weight_decay: {schedule: linear, from: 1, to: 1, steps: 0x" + "f" * 5000 + "}",
            "steps must be a whole number",
        ),
        (f"weight_decay: {COSINE[:-1]}, warmup_steps: -1}}", "warmup_steps must be a whole number >= 0, got -1"),
        ("weight_decay: {schedule: linear, from: 0, to: 1, steps: 2}", "weight_decay must be below 1"),
        ("weight_decay: {schedule: piecewise, boundaries: 3, values: [1]}", "boundaries must be a list of numbers"),
        (
            "weight_decay: {schedule: piecewise, boundaries: [3, 2], values: [0, 0, 0]}",
            f"boundaries must be numbers that rise; write {PIECEWISE}",
        ),
        (
            "weight_decay: {schedule: piecewise, boundaries: [3], values: [0.1]}",
            f"1 boundaries need 2 values, got 1; write {PIECEWISE}",
        ),
    ],
)
def test_a_mistake_in_a_file_is_answered_with_its_line(tmp_path, text, message):
    first = "" if text.startswith("weight_decay") else "weight_decay: 0.1, "
    with pytest.raises(PolicyError) as error:
        from_yaml(tmp_path, f"{{{first}{text}}}")
    where, _, rest = str(error.value).removeprefix(str(tmp_path)).partition(": ")
    assert (where, rest[: len(message)]) == ("/policy.yaml:3", message)


def test_rules_that_share_a_tunable_share_its_number():
    rules = [{"name": "a", "weight_decay": 0.1, "tunable": "t"}, {"weight_decay": 0.2, "tunable": "t"}]
    with pytest.raises(PolicyError, match=r"^policy: rules\[1\]: the rule shares 'tunable: t' with policy: rules\[0\]"):
        Policy.from_dict({"version": 1, "rules": rules})


class Unhashable:
    """A function of the step that is equal to others and has no hash."""

    __hash__ = None

    def __eq__(self, other):
        return True

    def __call__(self, weight):
        return weight


def test_what_python_may_not_give():
    for fields, message in (
        ({"formula": lambda x: x}, r"the formula '<lambda>' takes 'x'; a formula takes tensors by these names: weight"),
        ({"formula": lambda: 0}, "the formula '<lambda>' takes nothing"),
        ({"weight_decay": tf.Variable([0.1])}, "weight_decay must be a variable of one floating-point number"),
        ({"weight_decay": Unhashable()}, "weight_decay must be .* got a Unhashable that has no hash"),
        ({"formula": Unhashable()}, "formula must be .* got a Unhashable that has no hash"),
        ({"weight_decay": object()}, "weight_decay must be a number"),
    ):
        with pytest.raises(PolicyError, match=message):
            rule(**fields)
