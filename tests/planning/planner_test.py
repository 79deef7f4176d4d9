"""Decisions: every variable once, and every misfit of policy and step named."""

from __future__ import annotations

import dataclasses

import pytest
import tensorflow as tf

from graphwd.analysis.updates import find_updates
from graphwd.errors import PlanError
from graphwd.graph.graph import Graph, Variable
from graphwd.planning.plan import Outcome
from graphwd.planning.planner import make_plan
from graphwd.policy.rules import Policy, load_policy
from graphwd.steps.read import read
from tests.helpers.graphs import function, gradient_of, variable


def plan_of(step, rules, *args, **policy):
    traced = tf.function(step).get_concrete_function(*args)
    return make_plan(find_updates(read(traced)), Policy.from_dict({"version": 1, "rules": rules, **policy}))


def outcomes(plan):
    return {decision.variable.name: decision.outcome for decision in plan.decisions}


@pytest.fixture
def net():
    kernel, bias, frozen = variable("net/kernel", [[1.0]]), variable("net/bias", [1.0]), variable("net/frozen")
    statistics = variable("net/statistics", trainable=False)

    def step():
        for w in (kernel, bias):
            w.assign_sub(gradient_of(w))
        statistics.assign_add(frozen)

    # The closure does not keep the variables alive once the step is traced.
    step.variables = (kernel, bias, frozen, statistics)
    return step


def scaled(by):
    def mine(weight):
        return by * weight

    return mine


def branching(by):
    def mine(weight):
        return tf.cond(tf.reduce_sum(weight) > 0, lambda: by * weight, lambda: weight)

    return mine


@pytest.mark.parametrize("make", [scaled, branching])
def test_functions_of_one_name_are_told_by_what_they_compute(make):
    weight = variable("w", [1.0])

    def digest_of(formula):
        plan = plan_of(lambda: weight.assign_sub(gradient_of(weight)), [{"weight_decay": 1e-4, "formula": formula}])
        (told,) = plan.record()["variables"]
        assert told["outcome"] == "decay"
        return told["formula_digest"]

    assert len(digest_of(make(2.0))) == 16
    assert digest_of(make(2.0)) == digest_of(make(2.0))
    assert digest_of(make(2.0)) != digest_of(make(3.0))
    assert digest_of("l1") is None


def test_every_trainable_variable_is_there_once(net):
    plan = plan_of(net, [{"name": "*/bias", "weight_decay": 0}, {"weight_decay": 0.1, "semantics": "decoupled"}])
    assert outcomes(plan) == {
        "net/kernel": Outcome.DECAY,
        "net/bias": Outcome.EXEMPT,
        "net/frozen": Outcome.NO_UPDATE,
    }
    assert plan.problems == ()
    assert plan.notes == ("policy: rules[1]: 'net/frozen': not decayed: the step never updates it",)
    (injection,) = plan.injections
    assert (injection.variable.name, injection.rate.number, injection.site.op) == (
        "net/kernel",
        0.1,
        "AssignSubVariableOp",
    )


def test_rules_and_variables_left_over(net):
    plan = plan_of(net, [{"name": "net/kernal", "weight_decay": 0.1}, {"name": "*/bias", "weight_decay": 0.1}])
    assert plan.problems == (
        "policy: no rule matches 'net/kernel', 'net/frozen'; end the rules with '- weight_decay: 0', or write "
        "'unmatched: skip'",
        "policy: rules[0]: the rule 'name: net/kernal' matches no trainable variable; there is 'net/kernel', "
        "'net/frozen', 'net/bias'; correct or remove it, or write 'optional: true'",
    )
    with pytest.raises(PlanError, match="no rule matches"):
        plan.check()


def test_a_list_of_names_left_over_is_told_what_is_near_each(net):
    plan = plan_of(net, [{"name": ["net/kernal", "net/biaz"], "weight_decay": 0.1}, {"weight_decay": 0}])
    (problem,) = plan.problems
    assert problem.startswith(
        "policy: rules[0]: the rule 'name: [net/kernal, net/biaz]' matches no trainable variable; there is "
        "'net/kernel', 'net/frozen', 'net/bias'; "
    )


@pytest.mark.parametrize(
    ("used_by", "hint"),
    [
        ("Matmul", "no variable is used by 'Matmul': did you mean 'MatMul'?"),
        (["mat_mul", "Conv2D"], "no variable is used by 'Conv2D', 'mat_mul': did you mean 'MatMul'?"),
        ("Softmax", "no variable is used by 'Softmax', but by 'MatMul', 'Mul'"),
    ],
)
def test_an_op_type_that_uses_no_variable_is_told_what_is_near(used_by, hint):
    kernel, scale = variable("kernel", [[1.0]]), variable("scale", [1.0])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.ones([1, 1]) @ kernel * scale)
        for w, gradient in zip((kernel, scale), tape.gradient(loss, (kernel, scale)), strict=True):
            w.assign_sub(gradient)

    (problem,) = plan_of(step, [{"used_by": used_by, "weight_decay": 0.1}, {"weight_decay": 0}]).problems
    assert f" matches no trainable variable; {hint}; correct or remove it" in problem


def test_what_is_optional_or_skipped_is_no_problem(net):
    rules = [{"name": "typo", "weight_decay": 0.1, "optional": True}, {"rank": 2, "weight_decay": 0.1}]
    plan = plan_of(net, rules, unmatched="skip")
    assert plan.problems == ()
    assert outcomes(plan)["net/bias"] is Outcome.UNMATCHED
    plan.check()


def test_a_shadowed_rule_is_noted(net):
    plan = plan_of(net, [{"weight_decay": 0}, {"name": "*/kernel", "weight_decay": 0.1}])
    assert plan.notes == ("policy: rules[1]: the rule is shadowed: earlier rules decide all it matches ('net/kernel')",)


def test_a_path_that_nobody_knows_says_so(net):
    plan = plan_of(net, [{"path": "layers/*", "weight_decay": 0.1}, {"weight_decay": 0}])
    assert "(no object path is known for any variable of this step)" in plan.problems[0]


def test_several_updates_need_a_word():
    w = variable()

    def step():
        for _ in range(3):
            w.assign_sub(gradient_of(w))

    plan = plan_of(step, [{"weight_decay": 0.1}])
    assert outcomes(plan) == {"w": Outcome.REFUSED}
    assert plan.problems[0].startswith(
        "policy: rules[0]: 'w': updated 3 times in one step, so where the decay belongs is ambiguous; write "
        "'updates: each', 'last' or 'first' in the rule:\n  AssignSubVariableOp (AssignSubVariableOp)\n"
    )
    for choice, count in (("each", 3), ("last", 1), ("first", 1)):
        chosen = plan_of(step, [{"weight_decay": 0.1, "updates": choice}])
        assert len(chosen.injections) == count
        assert chosen.problems == ()
        expected = {"each": "AssignSubVariableOp", "first": "AssignSubVariableOp", "last": "AssignSubVariableOp_2"}
        assert chosen.injections[0].site.node == expected[choice]


def test_branches_that_exclude_each_other_both_decay():
    w = variable()

    def step(flag):
        if flag:
            w.assign_sub(gradient_of(w))
        else:
            w.assign_sub(2.0 * gradient_of(w))

    flag = tf.TensorSpec([], tf.bool)
    for fields in ({}, {"updates": "last"}, {"updates": "first"}):
        plan = plan_of(step, [{"weight_decay": 0.1, **fields}], flag)
        assert plan.problems == ()
        assert len(plan.injections) == 2


def test_double_decay_needs_a_word():
    w = variable()

    def step():
        w.assign_sub(0.1 * w)
        w.assign_sub(gradient_of(w))

    plan = plan_of(step, [{"weight_decay": 0.1}])
    assert "'w': the step already decays it, at AssignSubVariableOp (AssignSubVariableOp)" in plan.problems[0]
    assert plan_of(step, [{"weight_decay": 0.1, "double_decay": "allow"}]).problems == ()
    assert plan_of(step, [{"weight_decay": 0}]).problems == ()


def test_a_step_that_trains_nothing():
    w, counter = variable(), variable("counter", 0.0, trainable=False)
    plan = plan_of(lambda: counter.assign_add(1.0), [{"name": "x", "weight_decay": 0.1}])
    assert plan.problems == ("this is not a training step: it touches no trainable variable",)
    plan = plan_of(lambda: tf.identity(w), [{"weight_decay": 0}])
    assert plan.problems == ("this is not a training step: no trainable variable is updated from a gradient ('w')",)


def test_rates_without_effect_are_noted():
    w = variable("w", tf.constant([1.0], tf.bfloat16))
    plan = plan_of(lambda: w.assign_sub(gradient_of_half(w)), [{"weight_decay": 1e-4}])
    assert plan.notes == ("policy: rules[0]: 'w': 0.0001 is too small to change any bfloat16 weight",)


def gradient_of_half(w):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(w))
    return tape.gradient(loss, w)


def test_a_dtype_that_cannot_be_decayed_is_refused():
    w = variable("w", tf.constant([1.0 + 2.0j]))
    plan = plan_of(lambda: w.assign_sub(gradient_of_half(w)), [{"weight_decay": 0.1}])
    assert "'w': the dtype complex128 cannot be decayed" in plan.problems[0]


def test_a_variable_that_goes_where_nobody_follows_is_a_problem():
    w = variable()

    def step():
        w.assign_sub(gradient_of(w))
        dataset = tf.data.Dataset.range(2).map(lambda x: (w.assign_add(tf.ones_like(w)), x)[1])
        return dataset.reduce(tf.constant(0, tf.int64), lambda total, x: total + x)

    plan = plan_of(step, [{"weight_decay": 0.1}])
    assert "'w' goes into a function of MapDataset (MapDataset) that writes variables" in plan.problems[0]


@pytest.mark.parametrize("rate", ["nan", "inf", "10"])
def test_a_constant_learning_rate_that_leaves_no_weight_is_refused(rate):
    w = variable("w")
    plan = plan_of(
        lambda: w.assign_sub(tf.constant(float(rate)) * gradient_of(w)), [{"weight_decay": 0.1, "semantics": "adamw"}]
    )
    (problem,) = [problem for problem in plan.problems if "weight_decay times that must be below 1" in problem]
    assert f"its learning rate is {rate}" in problem


def test_the_record_has_the_documented_keys(net):
    record = plan_of(net, [{"weight_decay": 0.1}]).record()
    assert list(record) == ["version", "fuse", "steps", "variables", "problems", "notes", "rewritten"]
    assert record["variables"][0] == {
        "name": "net/kernel",
        "label": "net/kernel",
        "shape": [1, 1],
        "dtype": "float32",
        "path": None,
        "role": "other",
        "seen": None,
        "followed_by": None,
        "outcome": "decay",
        "rule": "policy: rules[0]",
        "weight_decay": 0.1,
        "mode": "decoupled",
        "order": "after",
        "scale": "none",
        "tunable": None,
        "schedule": None,
        "peak_learning_rate": None,
        "formula": "l2",
        "formula_digest": None,
        "rows": "all",
        "updates": [
            {
                "at": "AssignSubVariableOp",
                "op": "AssignSubVariableOp",
                "functions": [],
                "evidence": "computed from a gradient scope",
                "writes": ["AssignSubVariableOp"],
            }
        ],
        "decays": [
            {
                "at": "AssignSubVariableOp",
                "where": "after",
                "rate": 0.1,
                "learning_rate": None,
                "gradient": None,
                "gradient_after": None,
            }
        ],
        "native_decays": [],
        "other_writes": [],
        "used_by": record["variables"][0]["used_by"],
    }


@pytest.mark.parametrize(
    ("op", "semantics", "refused"),
    [
        ("ApplyGradientDescent", "decoupled", False),
        ("ApplyGradientDescent", "l2", False),
        ("AssignSub", "decoupled", False),
        ("AssignSub", "tfa", True),
    ],
)
def test_a_v1_reference_variable_updated_by_arithmetic_is_decayed_after_only(op, semantics, refused):
    operands = {"ApplyGradientDescent": "w alpha:0 gradients/g:0", "AssignSub": "w gradients/g:0"}[op]
    root = function("alpha Const", "gradients/g Square a", f"u {op} {operands}", name="root", arguments=("w", "a"))
    w = Variable(0, "w", (1,), "float32", trainable=True, reference=True)
    rules = [{"weight_decay": 0.1, "semantics": semantics}]
    plan = make_plan(find_updates(Graph(root, [], {"w": w}, ["a"])), Policy.from_dict({"version": 1, "rules": rules}))
    message = (
        "policy: rules[0]: 'w': a v1 reference variable, updated by plain arithmetic (AssignSub), which can be decayed "
        "by 'semantics: decoupled' only"
    )
    assert plan.problems == ((message,) if refused else ())


def step_with(write):
    """A step that trains ``w`` and does something to ``other``, which is trainable too."""
    w, other = variable("w"), variable("other")

    def step(x):
        w.assign_sub(gradient_of(w))
        write(w, other, x)

    step.variables = (w, other)
    return step


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda w, o, x: o.assign(0.9 * o + 0.1 * w),
            "no write is seen to come from a gradient and to add to it",
        ),
        (
            lambda w, o, x: o.assign(o * 0.5),
            "no write is seen to come from a gradient and to add to it",
        ),
        (lambda w, o, x: o.assign_add(x), "written from the step's data, while other variables are updated from grad"),
        (lambda w, o, x: o.assign(0.9 * o + x), "it keeps a part of itself, as a statistic or a slot variable does"),
    ],
    ids=["average", "decay only", "total", "statistic"],
)
def test_a_write_that_nobody_can_be_sure_of_is_refused(write, message):
    x = tf.TensorSpec([2])
    plan = plan_of(step_with(write), [{"weight_decay": 0.1}], x)
    assert f"'other': {message}" in plan.problems[0] or message in plan.problems[0]
    assert outcomes(plan) == {"w": Outcome.DECAY, "other": Outcome.REFUSED}
    assert plan_of(step_with(write), [{"name": "other", "weight_decay": 0}, {"weight_decay": 0.1}], x).problems == ()


def test_an_update_by_hand_beside_others_needs_a_word():
    step = step_with(lambda w, o, x: o.assign_sub(x * (x * o - 1.0)))
    plan = plan_of(step, [{"weight_decay": 0.1, "updates": "each"}], tf.TensorSpec([2]))
    assert plan.problems == ()
    assert [injection.variable.name for injection in plan.injections] == ["w", "other"]


def test_a_trainable_slot_variable_is_refused_and_its_weight_is_not():
    w, momentum = variable("w"), variable("momentum")

    def step():
        momentum.assign(0.9 * momentum + gradient_of(w))
        w.assign_sub(0.1 * momentum)

    plan = plan_of(step, [{"weight_decay": 0.1}])
    assert outcomes(plan) == {"w": Outcome.DECAY, "momentum": Outcome.REFUSED}
    assert "the update of 'w' reads it, as an optimizer reads its slot variables" in plan.problems[0]
    policy = Policy.from_dict({"version": 1, "rules": [{"weight_decay": 0.1}], "not_updated": "leave"})
    plan = make_plan(find_updates(read(tf.function(step).get_concrete_function())), policy)
    assert outcomes(plan) == {"w": Outcome.DECAY, "momentum": Outcome.NO_UPDATE}
    assert plan.problems == ()


@pytest.mark.parametrize(
    "write",
    [lambda w, g: w.scatter_nd_sub([[0], [1]], g), lambda w, g: w[0].assign(w[0] - g[0])],
    ids=["scatter_nd", "slice"],
)
def test_an_update_of_elements_needs_a_word(write):
    w = variable()

    def updating():
        write(w, gradient_of(w))

    plan = plan_of(updating, [{"weight_decay": 0.1}])
    assert "writes elements or a slice, not rows; write 'sparse: all'" in plan.problems[0]
    assert plan_of(updating, [{"weight_decay": 0.1, "sparse": "all"}]).problems == ()


def test_what_the_update_says_of_the_decay_is_noted():
    master, w = variable("master", trainable=False), variable("w")

    def recomputed():
        master.assign_sub(gradient_of(w))
        w.assign(master)

    rule = {"weight_decay": 0.1, "semantics": "decoupled"}
    plan = plan_of(recomputed, [rule])
    assert "a decay lasts for one step and does not compound" in plan.notes[0]
    plan = plan_of(lambda: w.assign_sub(0.1 * (gradient_of(w) + 0.01 * w)), [rule])
    assert "it holds a decay already, and now two" in plan.notes[0]
    plan = plan_of(lambda: w.assign_sub(0.1 * gradient_of(w) * tf.norm(w)), [rule])
    assert "perhaps it holds a decay already" in plan.notes[0]


def test_a_layer_parameter_file(tmp_path):
    variables = [variable("net/conv1/kernel", [[1.0]]), variable("net/conv1/bias", [1.0]), variable("w", [[1.0]])]

    @tf.function
    def step():
        for w in variables:
            w.assign_sub(gradient_of(w))

    def plan(text):
        path = tmp_path / "layer-params.cfg"
        path.write_text(text, encoding="utf-8")
        policy = load_policy(path)
        return make_plan(find_updates(read(step.get_concrete_function())), policy), policy

    made, policy = plan("[conv1]\nepsW=0.1\nwc=0.5\n")
    rates = {decision.variable.name: decision.rule.weight_decay for decision in made.decisions}
    assert rates == {"net/conv1/kernel": 0.5, "net/conv1/bias": 0, "w": 0}
    assert len(policy.notes) == 1
    assert made.notes == policy.notes, "no rule of a layer is reported as shadowed"
    made, policy = plan("[convl]\nwc=0.5\n[nothing]\nwc=0\n")
    assert made.problems == (
        f"{policy.where}:2: the rule 'regex: (^|/)convl(/|$)' matches no trainable variable; there is "
        "'net/conv1/kernel', 'net/conv1/bias', 'w'; give the section the name that the layer has in TensorFlow, write "
        "wc=0, or remove it",
    )


def test_notes_of_the_policy_come_first(net):
    policy = Policy.from_dict({"version": 1, "rules": [{"weight_decay": 0.1, "semantics": "decoupled"}]})
    traced = tf.function(net).get_concrete_function()
    plan = make_plan(find_updates(read(traced)), dataclasses.replace(policy, notes=("first", "second")))
    assert plan.notes[:2] == ("first", "second")
    assert len(plan.notes) == 3
