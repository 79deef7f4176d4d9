"""A plan's record as a table and as JSON."""

from __future__ import annotations

import json
import re

import pytest

from graphwd.analysis.learning_rate import LearningRate
from graphwd.analysis.readiness import Readiness
from graphwd.analysis.sites import Frame, Site, Write
from graphwd.analysis.updates import Update, VariableWrites
from graphwd.analysis.values import Value
from graphwd.graph.graph import Callee, Variable
from graphwd.planning.injections import Before, Rate
from graphwd.planning.planner import Decision, Outcome, Plan
from graphwd.planning.render import as_json, as_table
from graphwd.policy.rules import PRESETS, Rule
from graphwd.policy.selectors import Selectors

HEAD = ["variable", "shape", "dtype", "decay", "rule", "update"]


def variable(name="net/kernel", **changes):
    return {
        "name": name,
        "label": name,
        "shape": [3, 2],
        "dtype": "float32",
        "role": None,
        "followed_by": None,
        "outcome": "decay",
        "rule": "policy.yaml:3",
        "weight_decay": 5e-4,
        "mode": "decoupled",
        "order": "after",
        "scale": "none",
        "tunable": None,
        "schedule": None,
        "peak_learning_rate": None,
        "formula": "l2",
        "rows": "all",
        "updates": [{"op": "AssignSubVariableOp", "at": "If [then_branch] > sub"}],
        **changes,
    }


def test_a_variable_goes_by_what_tells_it_apart():
    row = table_rows(as_table(record(variable(label="net/kernel (path head.kernel)"))))[2]
    assert row[0] == "net/kernel (path head.kernel)"


def record(*variables, problems=(), notes=(), fuse="none"):
    step = {"variables": len(variables), "decayed": sum(each["outcome"] == "decay" for each in variables)}
    return {
        "version": 1,
        "fuse": fuse,
        "steps": [step],
        "variables": list(variables),
        "problems": list(problems),
        "notes": list(notes),
        "rewritten": [],
    }


def table_rows(text):
    return [re.split(r"\s{3,}", line.strip()) for line in text.splitlines()]


FULL = record(
    variable(),
    variable("net/bias", shape=[], outcome="exempt", weight_decay=0.0, updates=[]),
    variable("net/gamma", shape=None, outcome="unmatched", rule=None, updates=[]),
    problems=["policy.yaml:4: <first>", "second"],
    notes=["a & b"],
)
FULL_ROWS = [
    HEAD,
    [
        "net/kernel",
        "3×2",
        "float32",
        "0.0005 after update",
        "policy.yaml:3",
        "AssignSubVariableOp at If [then_branch] > sub",
    ],
    ["net/bias", "scalar", "float32", "exempt", "policy.yaml:3", "-"],
    ["net/gamma", "?", "float32", "unmatched", "-", "-"],
]


def test_table():
    head, rule, *rest = table_rows(as_table(FULL))
    assert set(rule[0]) == {"─"}
    assert [head, *rest[:3]] == FULL_ROWS
    assert rest[3:] == [
        ["1 of 3 trainable variables decayed"],
        ["problem: policy.yaml:4: <first>"],
        ["problem: second"],
        ["note: a & b"],
    ]


@pytest.mark.parametrize(
    ("changes", "decay"),
    [
        ({}, "0.0005 after update"),
        ({"order": "before"}, "0.0005 before update"),
        ({"scale": "lr", "order": "before"}, "0.0005 × lr before update"),
        ({"mode": "coupled"}, "0.0005 coupled"),
        ({"mode": "coupled", "formula": "huber(delta=0.5)"}, "0.0005 coupled, huber(delta=0.5)"),
        ({"formula": "cautious", "rows": "touched"}, "0.0005 after update, cautious, rows touched"),
        ({"scale": "relative", "peak_learning_rate": 1e-3}, "0.0005 × lr/0.001 after update"),
        ({"scale": "corrected", "peak_learning_rate": 1e-3}, "0.0005 × lr²/0.001 after update"),
        ({"rows": "touched"}, "0.0005 after update, rows touched"),
        ({"weight_decay": 1e-7}, "1e-07 after update"),
        ({"outcome": "no update"}, "no update"),
        ({"outcome": "refused"}, "refused"),
    ],
)
def test_decay(changes, decay):
    assert table_rows(as_table(record(variable(**changes))))[2][3] == decay


@pytest.mark.parametrize(
    ("shape", "text"),
    [(None, "?"), ([], "scalar"), ([5], "5"), ([2, None, 3], "2×?×3"), ([0, 3], "0×3")],
)
def test_shape(shape, text):
    assert table_rows(as_table(record(variable(shape=shape))))[2][1] == text


@pytest.mark.parametrize(
    ("outcomes", "summary"),
    [
        ([], "0 of 0 trainable variables decayed"),
        (["decay"], "1 of 1 trainable variable decayed"),
        (["exempt"], "0 of 1 trainable variable decayed"),
        (["decay", "refused", "decay"], "2 of 3 trainable variables decayed"),
    ],
)
def test_summary(outcomes, summary):
    text = as_table(record(*(variable(outcome=outcome) for outcome in outcomes)))
    assert text.splitlines()[-1] == summary


def test_several_updates():
    updates = [{"op": "A", "at": "x"}, {"op": "B", "at": "y"}]
    assert table_rows(as_table(record(variable(updates=updates))))[2][5] == "A at x; B at y"


@pytest.mark.parametrize(
    "name",
    [
        "a[then_branch]",
        "a[bold]b[/bold]",
        "a[/x]",
        "[red",
        "a\\",
        r"a\[bold]b",
        r"a\\[bold]b",
        "a:cat:b",
        "[link=x]a",
        "[@click=x]",
        "x" * 300,
    ],
)
def test_names_survive_literally(name):
    update = {"op": "AssignVariableOp", "at": name}
    row = table_rows(as_table(record(variable(name, rule=name, updates=[update]))))[2]
    assert row == [name, "3×2", "float32", "0.0005 after update", name, f"AssignVariableOp at {name}"]


def test_a_narrow_table_fits_and_loses_nothing():
    name = "abcdefghijklmnopqrstuvwxyz" * 2
    lines = as_table(record(variable(name)), width=70).splitlines()
    assert max(map(len, lines)) <= 70
    assert "".join(line[1:].split("  ")[0].strip() for line in lines[2:-1]) == name


def test_a_fused_plan_says_so():
    fused = ", their updates fused with the decay as far as XLA can (fuse: xla)"
    assert fused not in as_table(record(variable("w")))
    assert as_table(record(variable("w"), fuse="xla")).splitlines()[-1] == f"1 of 1 trainable variable decayed{fused}"


def test_json():
    text = as_json(FULL)
    assert json.loads(text) == FULL
    assert list(json.loads(text)) == ["version", "fuse", "steps", "variables", "problems", "notes", "rewritten"]
    assert text.startswith('{\n  "version": 1,\n')


def plan():
    kernel, bias = (
        Variable(0, "kernel", (3, None), "float32", True, "layers/kernel"),
        Variable(1, "bias", None, "float32", True),
    )
    frame = Frame("cond", "If", Callee("then_branch", 0, "then_7"))
    write = Write(kernel, Site((frame,), "sub", "AssignSubVariableOp"), Value(taint=2), 2)
    native = Write(kernel, Site((), "decay", "AssignSubVariableOp"), Value(), 0)
    clip = Write(kernel, Site((), "clip", "AssignVariableOp"), Value(), 0)
    writes = VariableWrites(kernel, (Update(kernel, (write,)),), (native,), (clip,), frozenset({"MatMul", "Conv2D"}))
    rule = Rule(Selectors(), 0.1, PRESETS["adamw"], where="policy.yaml:3")
    rate = LearningRate("adam/learning_rate", "read:value:0", "float32")
    injection = Before(kernel, write.site, Rate(0.1, rate), readiness=Readiness(()))
    decided = Decision(kernel, Outcome.DECAY, rule, writes, (injection,))
    unmatched = Decision(bias, Outcome.UNMATCHED, None, VariableWrites(bias, (), (), (), frozenset()))
    return Plan((decided, unmatched), ("p",), ("n",))


def test_record_of_a_plan_round_trips_with_exactly_these_keys():
    assert json.loads(as_json(plan().record())) == {
        "version": 1,
        "fuse": "none",
        "steps": [{"variables": 2, "decayed": 1}],
        "variables": [
            {
                "name": "kernel",
                "label": "kernel",
                "shape": [3, None],
                "dtype": "float32",
                "path": "layers/kernel",
                "role": "other",
                "seen": None,
                "followed_by": None,
                "outcome": "decay",
                "rule": "policy.yaml:3",
                "weight_decay": 0.1,
                "mode": "decoupled",
                "order": "before",
                "scale": "lr",
                "tunable": None,
                "schedule": None,
                "peak_learning_rate": None,
                "formula": "l2",
                "rows": "all",
                "updates": [
                    {
                        "at": "cond [then_branch] > sub",
                        "op": "AssignSubVariableOp",
                        "functions": ["then_7"],
                        "evidence": "computed from a gradient scope",
                        "writes": ["cond [then_branch] > sub"],
                    }
                ],
                "decays": [
                    {
                        "at": "cond [then_branch] > sub",
                        "where": "before",
                        "rate": 0.1,
                        "learning_rate": "adam/learning_rate",
                        "gradient": None,
                        "gradient_after": None,
                    }
                ],
                "native_decays": ["decay"],
                "other_writes": ["clip"],
                "used_by": ["Conv2D", "MatMul"],
            },
            {
                "name": "bias",
                "label": "bias",
                "shape": None,
                "dtype": "float32",
                "path": None,
                "role": "other",
                "seen": None,
                "followed_by": None,
                "outcome": "unmatched",
                "rule": None,
                "weight_decay": None,
                "mode": None,
                "order": None,
                "scale": None,
                "tunable": None,
                "schedule": None,
                "peak_learning_rate": None,
                "formula": None,
                "rows": "all",
                "updates": [],
                "decays": [],
                "native_decays": [],
                "other_writes": [],
                "used_by": [],
            },
        ],
        "problems": ["p"],
        "notes": ["n"],
        "rewritten": [],
    }


def test_a_plan_prints_as_its_table():
    assert str(plan()) == as_table(plan().record())
