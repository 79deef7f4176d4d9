"""The three forms of a plan's record."""

from __future__ import annotations

import json

from graphwd.analysis.learning_rate import LearningRate
from graphwd.analysis.readiness import Readiness
from graphwd.analysis.sites import Frame, Site, Write
from graphwd.analysis.updates import Update, VariableWrites
from graphwd.analysis.values import Value
from graphwd.graph.graph import Callee, Variable
from graphwd.planning.injections import Before, Rate
from graphwd.planning.plan import Decision, Outcome, Plan
from graphwd.planning.render import as_json
from graphwd.policy.rules import PRESETS, Rule
from graphwd.policy.selectors import Selectors
from tests.helpers.records import variable

HEAD = ["variable", "shape", "dtype", "decay", "rule", "update"]


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
                "formula_digest": None,
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
                "formula_digest": None,
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
