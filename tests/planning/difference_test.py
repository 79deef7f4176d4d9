"""What is told of two plans that differ."""

from __future__ import annotations

import copy
import json

import pytest

from graphwd.errors import StepError
from graphwd.planning.difference import (
    account_of,
    compare,
    difference_as_json,
    difference_as_table,
    rewritten_account,
)
from graphwd.planning.terminal import Detail
from tests.helpers import records


def variable(name, **changes):
    own = {
        "role": "kernel",
        "rule": "p.yaml:3",
        "weight_decay": 0.1,
        "order": "before",
        "scale": "lr",
        "decays": [{"at": "sub", "where": "before", "rate": 0.1, "learning_rate": "adam/lr"}],
    }
    return records.variable(name, **{**own, **changes})


def exempt(name, **changes):
    return variable(name, **{"outcome": "exempt", "weight_decay": 0.0, "decays": [], "rule": "p.yaml:5", **changes})


def record(*variables, problems=()):
    return {"version": 1, "variables": list(variables), "problems": list(problems), "rewritten": []}


def difference(one, other):
    return compare(account_of("old", one), account_of("new", other))


def told(one, other, detail=Detail.FOLDED):
    return difference_as_table(difference(one, other), detail, 100).splitlines()


BLOCKS = [variable(f"layer_{number}/kernel") for number in range(4)]


def test_equal_plans():
    same = difference(record(*BLOCKS), copy.deepcopy(record(*BLOCKS)))
    assert not same
    assert difference_as_table(same) == "no difference: 4 variables alike"


def test_what_changes_is_grouped_and_folded():
    before = record(*BLOCKS, exempt("bias"), exempt("gone", shape=[7]))
    changed = [exempt(f"layer_{number}/kernel", rule="q.yaml:9") for number in range(3)]
    after = record(*changed, BLOCKS[3], exempt("bias", rule="q.yaml:2"), variable("come"))
    assert told(before, after) == [
        "only in old: exempt                                       1 variable, 7 parameters",
        "  gone                    7    kernel",
        "",
        "only in new: 0.1 × lr before update                       1 variable, 6 parameters",
        "  come                    3×2  kernel",
        "",
        "0.1 × lr before update → exempt (p.yaml:3 → q.yaml:9)   3 variables, 18 parameters",
        "  layer_{0…2}/kernel  ×3  3×2  kernel",
        "",
        "to the same effect: p.yaml:5 → q.yaml:2, 1 variable",
        "3 variables changed, 1 only in old, 1 only in new, 2 variables alike",
    ]
    every = told(before, after, Detail.ALL)
    assert [line.split()[0] for line in every if line.startswith("  layer")] == [
        f"layer_{number}/kernel" for number in range(3)
    ]


@pytest.mark.parametrize(
    ("changes", "keys", "head"),
    [
        ({"weight_decay": 0.2}, ["weight_decay"], "0.1 × lr before update → 0.2 × lr before update"),
        ({"formula": "l1"}, ["formula"], "0.1 × lr before update → 0.1 × lr before update, l1"),
        ({"order": "after"}, ["order"], "0.1 × lr before update → 0.1 × lr after update"),
        ({"scale": "none"}, ["scale"], "0.1 × lr before update → 0.1 before update"),
        ({"mode": "coupled"}, ["mode"], "0.1 × lr before update → 0.1 coupled"),
        ({"rows": "touched"}, ["rows"], "0.1 × lr before update → 0.1 × lr before update, rows touched"),
        ({"tunable": "t"}, ["tunable"], "0.1 × lr before update → 0.1 (t) × lr before update"),
        ({"peak_learning_rate": 0.5}, ["peak_learning_rate"], "peak_learning_rate of 0.1 × lr before update"),
        ({"shape": [3, 4]}, ["shape"], "shape 3×2 → 3×4"),
        ({"dtype": "float16"}, ["dtype"], "dtype float32 → float16"),
        ({"role": "bias"}, ["role"], "role kernel → bias"),
        ({"followed_by": "norm"}, ["followed_by"], "role kernel → kernel, then norm"),
        (
            {"decays": [{"at": "sub", "where": "before", "rate": 0.1, "learning_rate": "sgd/lr"}]},
            ["learning_rate"],
            "learning rate adam/lr → sgd/lr",
        ),
        (
            {"decays": [{"at": "sub", "where": "value", "rate": 0.01, "learning_rate": "adam/lr"}]},
            ["place", "rate"],
            "place before → value; rate 0.1 → 0.01",
        ),
    ],
)
def test_every_fact_is_compared(changes, keys, head):
    one, other = record(variable("w")), record(variable("w", **changes))
    found = difference(one, other)
    assert found
    assert [list(each["differences"]) for each in json.loads(difference_as_json(found))["changed"]] == [keys]
    assert told(one, other)[0].startswith(f"{head}  ")


def test_schedules_are_compared():
    def scheduled(**changes):
        values = {"name": "cosine(steps=9)", "counter": "t", "rates": [[0, 0.1]]}
        return record(variable("w", schedule={**values, **changes}))

    assert told(record(variable("w")), scheduled())[0].startswith(
        "0.1 × lr before update → cosine(steps=9) × lr before update  "
    )
    assert told(scheduled(), scheduled(counter="u"))[0].startswith("counter t → u  ")
    assert told(scheduled(), scheduled(rates=[[0, 0.2]]))[0].startswith(
        "schedule of cosine(steps=9) × lr before update "
    )


def test_which_update_carries_the_decay_and_where_a_gradient_is_entered():
    updates = [{"at": "sub"}, {"at": "sub_1"}]
    first, last = (
        record(variable("w", updates=updates, decays=[{**variable("w")["decays"][0], "at": at}]))
        for at in ("sub", "sub_1")
    )
    assert told(first, last)[0].startswith("updates 1 → 2  ")
    coupled = {"at": "sub", "where": "gradient", "rate": 0.1, "learning_rate": None, "gradient_after": None}
    one, other = (record(variable("w", decays=[{**coupled, "gradient": node}])) for node in ("clip", "grad"))
    assert difference(one, other)
    assert not difference(one, copy.deepcopy(one))


def test_what_has_no_effect_is_no_difference():
    assert not difference(record(exempt("w")), record(exempt("w", mode="coupled", rule="q:1")))
    assert not difference(record(variable("w")), record(variable("w", role=None)))  # rewrite does not know roles


def test_a_name_that_two_traces_have_is_compared_trace_by_trace():
    one = record(variable("w"), exempt("w"))
    assert not difference(one, record(variable("w"), exempt("w")))
    assert len(difference(one, record(variable("w"))).alone[0]) == 1


def test_new_problems_are_a_difference():
    found = difference(record(problems=["a", "b"]), record(problems=["b", "c"]))
    assert found
    assert difference_as_table(found).splitlines()[:2] == ["only in old: problem: a", "only in new: problem: c"]


def test_fuse_is_compared():
    one, other = ({**record(variable("w")), "fuse": fuse} for fuse in ("none", "xla"))
    assert difference(one, other)
    assert told(one, other)[-2:] == ["fuse: none → xla", "1 variable alike"]
    found = json.loads(difference_as_json(difference(one, other)))
    assert (found["differ"], found["fuse"]) == (True, {"first": "none", "second": "xla"})
    assert not difference(one, copy.deepcopy(one))
    assert not difference(one, {**one, "fuse": None}), "of steps without a policy it is not known"


def test_two_functions_of_one_name_differ():
    def with_code(digest):
        return record(*(variable(f"layer_{number}/w", formula="mine", formula_digest=digest) for number in range(3)))

    assert told(with_code("aa"), with_code("bb"))[:2] == [
        "code of the formula aa → bb   3 variables, 18 parameters",
        "  layer_{0…2}/w  ×3  3×2  kernel",
    ]
    assert not difference(with_code("aa"), with_code("aa"))
    assert not difference(with_code("aa"), with_code(None)), "a plan of before does not know it"


def test_json():
    found = difference(record(BLOCKS[0], exempt("b"), exempt("gone")), record(exempt(BLOCKS[0]["label"]), exempt("b")))
    value = json.loads(difference_as_json(found))
    assert list(value) == [
        *("version", "first", "second", "differ", "only_in", "changed", "alike", "rules", "problems", "fuse")
    ]
    assert (value["version"], value["first"], value["second"], value["differ"]) == (1, "old", "new", True)
    assert value["only_in"]["first"][0]["label"] == "gone"
    assert value["only_in"]["second"] == []
    assert value["changed"] == [
        {
            "label": "layer_0/kernel",
            "rule": ["p.yaml:3", "p.yaml:5"],
            "differences": {
                "outcome": ["decay", "exempt"],
                "weight_decay": [0.1, None],
                "formula": ["l2", None],
                "mode": ["decoupled", None],
                "order": ["before", None],
                "scale": ["lr", None],
                "rows": ["all", None],
                "place": [["before"], None],
                "rate": [[0.1], None],
                "learning_rate": [["adam/lr"], None],
                "updates": [[0], None],
                "gradient": [[], None],
            },
        }
    ]
    assert value["alike"] == 1


def rewritten(rate, name="w", at="train > sub"):
    one = {"where": "before", "learning_rate": "lr", "power": 1, "formula": "l2", "rows": False}
    return {**one, "variable": name, "rate": rate, "at": at}


def test_rewritten_models():
    before = rewritten_account("old", [rewritten(0.1), rewritten(0.1, at="serve > sub"), rewritten(0.1, "v")])
    after = rewritten_account("new", [rewritten(0.2), rewritten(0.2, at="serve > sub"), rewritten(0.1, "v", "moved")])
    assert difference_as_table(compare(before, after), width=100).splitlines() == [
        "0.1 × lr, before the update → 0.2 × lr, before the update   1 variable",
        "  w",
        "",
        "1 variable changed, 1 variable alike",
    ]
    as_file = {"version": 1, "variables": [], "problems": [], "rewritten": [{**rewritten(0.1), "rows": "all"}]}
    assert compare(account_of("file", as_file), after).changed
    with pytest.raises(StepError, match="old has been rewritten by graphwd, and plan is a plan"):
        compare(account_of("plan", record(*BLOCKS)), before)


def test_rewritten_models_with_rates_that_change():
    before = {**rewritten(1.0), "factors": ["cosine(from=0.4, to=0.04, steps=6)"]}
    after = {**rewritten(1.0), "factors": ["cosine(from=0.8, to=0.04, steps=6)", "0.5 (body)"]}
    old, new = (rewritten_account(name, [decay]) for name, decay in (("old", before), ("new", after)))
    first, *_ = difference_as_table(compare(old, new), width=200).splitlines()
    assert first.startswith(
        "cosine(from=0.4, to=0.04, steps=6) × lr, before the update → "
        "cosine(from=0.8, to=0.04, steps=6) × 0.5 (body) × lr, before the update  "
    )
    # Of a model that an earlier graphwd rewrote nothing is known of factors.
    assert not compare(
        rewritten_account("a", [rewritten(0.1)]), rewritten_account("b", [{**rewritten(0.1), "factors": []}])
    )


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        3,
        "text",
        {},
        {"version": 2},
        {"version": 1, "variables": 3, "problems": [], "rewritten": []},
        record({}),
        record(variable("w", shape="3")),
        record(variable("w", weight_decay="much")),
        record(variable("w", decays=3)),
        record(variable("w", decays=[{}])),
        record(variable("w", schedule="cosine")),
        record(variable("w", outcome=[])),
        {**record(), "rewritten": [{}]},
        {**record(), "fuse": "much"},
        record(variable("w", weight_decay=10**400)),
        {**record(), "rewritten": [{**rewritten(10**400), "rows": "all"}]},
    ],
)
def test_what_is_no_plan(wrong):
    with pytest.raises(StepError, match=r"^file: is (no plan|a plan of version 2)"):
        account_of("file", wrong)
