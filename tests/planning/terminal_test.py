"""Plans in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from graphwd.analysis.updates import VariableWrites
from graphwd.graph.graph import Variable
from graphwd.planning.plan import Decision, Outcome, Plan
from graphwd.planning.terminal import Detail, as_table, decays_as_table, detail_of, overview_as_table, terminal_width
from tests.helpers import records


def variable(name="net/kernel", **changes):
    own = {"role": "kernel", "seen": "MatMul, net/MatMul", "decays": [decay()], "native_decays": [], "other_writes": []}
    return records.variable(name, **{**own, **changes})


def decay(**changes):
    values = {"at": "sub", "where": "after", "rate": 5e-4, "learning_rate": None, "gradient": None}
    return {**values, **changes}


def exempt(name, rule="policy.yaml:5", **changes):
    return variable(name, rule=rule, **{"outcome": "exempt", "weight_decay": 0.0, "decays": [], **changes})


def record(*variables, problems=(), notes=()):
    step = {"variables": len(variables), "decayed": sum(each["outcome"] == "decay" for each in variables)}
    held = {"problems": list(problems), "notes": list(notes)}
    return {"version": 1, "fuse": "none", "steps": [step], "variables": list(variables), **held, "rewritten": []}


BLOCKS = record(
    variable("embedding", shape=[1000, 4], role="embedding"),
    *(
        each
        for layer in range(12)
        for each in (
            exempt(f"encoder/layer_{layer}/attention/bias", shape=[4], role="bias"),
            variable(f"encoder/layer_{layer}/attention/kernel", shape=[4, 4], rule="policy.yaml:12"),
        )
    ),
    notes=["a rule is shadowed"],
    problems=["policy.yaml:4: nothing matches\n  (it shares its name)"],
)


def test_a_plan_is_folded_by_rule():
    assert as_table(BLOCKS, width=100).splitlines() == [
        "policy.yaml:3: 0.0005 after update       1 variable, 4k parameters",
        "  embedding                                   1000×4  embedding",
        "",
        "policy.yaml:5: exempt                  12 variables, 48 parameters",
        "  encoder/layer_{0…11}/attention/bias    ×12  4       bias",
        "",
        "policy.yaml:12: 0.0005 after update   12 variables, 192 parameters",
        "  encoder/layer_{0…11}/attention/kernel  ×12  4×4     kernel",
        "",
        "13 of 25 trainable variables decayed: 4.19k of 4.24k parameters, all float32",
        "note: a rule is shadowed",
        "problem: policy.yaml:4: nothing matches",
        "  (it shares its name)",
    ]


def test_names_that_are_too_long_share_what_they_begin_with():
    several = record(variable("encoder/layer_0/attention/query"), variable("encoder/layer_0/attention/key"))
    assert as_table(several, width=40).splitlines() == [
        "policy.yaml:3: 0.0005 after update",
        "  2 variables, 12 parameters",
        "  encoder/layer_0/attention/",
        "    query  3×2  kernel",
        "    key    3×2  kernel",
        "",
        "2 of 2 trainable variables decayed: 12",
        "  of 12 parameters, all float32",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "refused", "decays": []},
        {"rule": "policy.yaml:4"},
        {"weight_decay": 6e-4},
        {"role": "bias"},
        {"followed_by": "norm"},
        {"dtype": "float16"},
        {"shape": [2, 3]},
        {"formula": "l1"},
        {"order": "before"},
        {"mode": "coupled"},
        {"scale": "lr"},
        {"rows": "touched"},
        {"tunable": "body"},
        {"schedule": {"name": "cosine(from=1, to=0)", "counter": "t", "rates": [[0, 1.0]], "end": None}},
        {"scale": "relative", "peak_learning_rate": 0.1},
        {"decays": [decay(rate=5e-5)]},
        {"decays": [decay(learning_rate="adam_1/learning_rate")]},
        {"decays": [decay(where="value")]},
        {"updates": []},
        {"native_decays": ["own"]},
    ],
)
def test_what_differs_in_anything_but_a_number_is_not_folded(changes):
    names = [f"layer_{number}/w" for number in range(4)]
    alike = as_table(record(*map(variable, names)), width=200)
    assert "layer_{0…3}/w" in alike
    text = as_table(record(*map(variable, names[:3]), variable(names[3], **changes)), width=200)
    assert "layer_{0…2}/w" in text
    assert sum(line.startswith("  layer_3/w ") for line in text.splitlines()) == 1


def test_every_variable_has_a_line_of_its_own():
    text = as_table(BLOCKS, Detail.ALL)
    for each in BLOCKS["variables"]:
        assert len([line for line in text.splitlines() if line.strip().startswith(f"{each['label']} ")]) == 1
    assert "{" not in text


def test_the_nodes_of_each_variable():
    one = variable(
        path="layers.0.kernel",
        updates=[
            {"op": "A", "at": "If [then_branch] > sub", "evidence": "named by the policy"},
            {"op": "B", "at": "y", "evidence": "computed from the step's data"},
        ],
        decays=[decay(where="gradient", rate=0.1, learning_rate="adam/lr", gradient="clip", at="y")],
        native_decays=["own"],
        other_writes=["average"],
    )
    lines = as_table(record(one), Detail.VERBOSE).splitlines()
    assert [line.strip() for line in lines[2:-2]] == [
        "path layers.0.kernel",
        "kernel: MatMul, net/MatMul",
        "A at If [then_branch] > sub: named by the policy",
        "B at y: computed from the step's data",
        "decay of 0.1 × adam/lr in the gradient clip, at y",
        "decayed already at own",
        "written also at average",
    ]


def test_several_learning_rates_are_told():
    one, two = (variable(name, decays=[decay(learning_rate=f"{name}/learning_rate")]) for name in ("adam", "sgd"))
    text = as_table(record(one, two))
    assert "policy.yaml:3: 0.0005 after update, lr is adam/learning_rate" in text
    assert "policy.yaml:3: 0.0005 after update, lr is sgd/learning_rate" in text
    assert "lr is" not in as_table(record(one, one))


def test_what_has_no_rule_comes_last_and_dtypes_have_a_column_where_they_differ():
    lines = as_table(
        record(
            variable("loose", outcome="unmatched", rule=None, decays=[], dtype="float16"),
            exempt("ten", rule="p.yaml:10"),
            exempt("two", rule="p.yaml:2"),
        )
    ).splitlines()
    assert [line.split(":")[0] for line in lines if line and line[0] != " "][:2] == ["p.yaml", "p.yaml"]
    assert [line.split() for line in lines if line.startswith("  ")] == [
        ["two", "3×2", "float32", "kernel"],
        ["ten", "3×2", "float32", "kernel"],
        ["loose", "3×2", "float16", "kernel"],
    ]
    assert any(line.startswith("no rule: unmatched ") for line in lines)


def test_a_variable_that_two_traces_treat_differently_is_not_counted_twice():
    twice = record(variable("w"), variable("w", outcome="unmatched", rule=None, decays=[]))
    twice["steps"] = [{"variables": 1, "decayed": 1}, {"variables": 1, "decayed": 0}]
    last = as_table(twice, width=200).splitlines()[-1]
    counts = "1 of 1 or 0 of 1 trainable variable decayed in some of 2 traces or graphs"
    assert last == f"{counts}: 6 of 6 parameters, all float32", "as the first trace has it, and as the page says"


def test_a_variable_of_several_replicas_or_traces_counts_once_and_has_one_line():
    replicas = [variable(decays=[decay(at=f"replica_{number}/sub")]) for number in range(2)]
    twice = record(*replicas, exempt("net/bias", shape=[2]), exempt("net/bias", shape=[2]))
    twice["steps"] = [{"variables": 2, "decayed": 1}] * 2
    assert as_table(twice, width=100).splitlines() == [
        "policy.yaml:3: 0.0005 after update   1 variable, 6 parameters",
        "  net/kernel  3×2  kernel",
        "",
        "policy.yaml:5: exempt                1 variable, 2 parameters",
        "  net/bias    2    kernel",
        "",
        "1 of 2 trainable variables decayed in each of 2 traces or graphs: 6 of 8 parameters, all float32",
    ]
    assert as_table(twice, Detail.ALL).splitlines()[1:3] == ["  net/kernel  3×2  kernel", ""]
    verbose = as_table(twice, Detail.VERBOSE)
    assert verbose.count("  net/kernel ") == 1
    assert [line.strip() for line in verbose.splitlines() if "decay of" in line] == [
        "decay of 0.0005 after, at replica_0/sub",
        "decay of 0.0005 after, at replica_1/sub",
    ]
    assert "2 trainable variables, 8 parameters" in overview_as_table(twice, width=100)


def test_variables_that_share_a_name_count_each():
    twins = record(variable("w", path="a.w"), variable("w", path="b.w", shape=[4]))
    assert as_table(twins).splitlines()[0].endswith("2 variables, 10 parameters")


NAMES = ["a[then_branch]", "a[bold]b[/bold]", "[red", "a\\", r"a\[bold]b", "a:cat:b", "[link=x]a", "x" * 300, "層/重み"]


@pytest.mark.parametrize("name", NAMES)
def test_names_survive_literally(name):
    text = as_table(record(variable(name, rule=name)), Detail.ALL)
    assert text.splitlines()[0].startswith(f"{name}: 0.0005 after update ")
    assert text.splitlines()[1].startswith(f"  {name}  3×2  kernel")


@pytest.mark.parametrize("width", [20, 33, 40, 64, 80, 100])
@pytest.mark.parametrize("detail", list(Detail))
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(width, detail):
    names = [*NAMES, "a/very_long_scope_of_a_name/" * 5 + "kernel"]
    whole = record(*(variable(name, rule=name, path=name) for name in names), notes=["w" * 150], problems=["p " * 90])
    for told in (as_table(whole, detail, width), overview_as_table(whole, detail, width)):
        assert max(sum(2 if ord(char) > 0x2FFF else 1 for char in line) for line in told.splitlines()) <= width
        together = re.sub(r"\s|3×2|kernel$", "", told, flags=re.MULTILINE)
        assert told.count("x") >= 300  # of the longest name, which has cells of other columns among its lines
        for name in {*names[:-1]} - {"x" * 300}:
            assert name in together
    assert "w" * 150 in re.sub(r"\s", "", as_table(whole, detail, width))


def test_control_characters_do_not_reach_the_terminal():
    text = as_table(record(variable("a\x1b[2Jb\nc\x07")))
    assert r"  a\x1b[2Jb\nc\x07 " in text
    assert "\x1b" not in text


def test_an_empty_plan():
    assert as_table(record()) == "0 of 0 trainable variables decayed"


def test_variables_without_a_policy_by_role():
    whole = record(
        *(exempt(f"d_{number}/kernel", seen=f"MatMul, net/d_{number}/MatMul") for number in range(3)),
        exempt("d_3/kernel", followed_by="norm"),
        exempt("scale", role="other", seen=None, shape=None, updates=[]),
    )
    assert overview_as_table(whole, width=100).splitlines() == [
        "kernel                              3 variables, 18 parameters",
        "  d_{0…2}/kernel  ×3  3×2  MatMul",
        "",
        "kernel, then norm                     1 variable, 6 parameters",
        "  d_3/kernel          3×2  MatMul",
        "",
        "other, not updated by this step   1 variable, of unknown shape",
        "  scale               ?    -",
        "",
        "5 trainable variables, 24 parameters and 1 of unknown shape, all float32; 'graphwd init STEP_FN'",
        "  writes a first policy for them",
    ]


def test_a_rewritten_model():
    one = {"where": "before", "rate": 0.1, "learning_rate": "lr", "power": 1, "formula": "l2", "rows": False}
    decays = [
        *({**one, "variable": f"d_{number}/kernel", "at": f"train > sub_{number}"} for number in range(3)),
        {**one, "variable": "d_0/kernel", "at": "serve > sub"},
    ]
    assert decays_as_table(decays, width=100).splitlines() == [
        "0.1 × lr, before the update   3 variables",
        "  d_0/kernel          2 ways",
        "  d_{1,2}/kernel  ×2  1 way",
        "",
        "rewritten by graphwd: 4 ways to a decay, by function or signature",
    ]
    verbose = decays_as_table(decays, Detail.VERBOSE).splitlines()
    assert verbose[1:4] == ["  d_0/kernel  2 ways", "      at train > sub_0", "      at serve > sub"]


def test_a_plan_prints_as_its_table():
    bias = Variable(1, "bias", None, "float32", True)
    whole = Plan((Decision(bias, Outcome.UNMATCHED, None, VariableWrites(bias, (), (), (), frozenset())),), ("p",))
    assert str(whole) == whole.to_text()
    assert str(whole).splitlines()[0] == "no rule: unmatched   1 variable, of unknown shape"
    assert whole.to_text(verbose=True, width=30).splitlines()[0] == "no rule: unmatched"
    assert len(repr(whole)) < 200
    assert detail_of(all=True, verbose=False) is Detail.ALL
    assert detail_of(all=True, verbose=True) is Detail.VERBOSE


@pytest.mark.parametrize(("columns", "width"), [("70", 70), ("3", 20), ("nonsense", None), ("0", None)])
def test_the_environment_says_the_width(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width() == width


SHOW = """
import json, sys
from graphwd.planning.terminal import Detail, as_table
print(as_table(json.load(sys.stdin), Detail(sys.argv[1])))
"""


@pytest.mark.parametrize(("columns", "widest"), [(62, 62), (None, 100)])
def test_a_terminal_has_its_width_and_a_pipe_another(tmp_path, columns, widest):
    name = "/".join(["scope"] * 30)
    (tmp_path / "record.json").write_text(json.dumps(record(variable(name))))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    command = [sys.executable, "-c", SHOW]
    with (tmp_path / "record.json").open() as given:
        if columns is None:
            out = subprocess.run([*command, "folded"], stdin=given, capture_output=True, env=environment, check=True)
            assert max(map(len, out.stdout.decode().splitlines())) in range(widest - 20, widest + 1)
            given.seek(0)
            out = subprocess.run([*command, "all"], stdin=given, capture_output=True, env=environment, check=True)
            assert out.stdout.decode().splitlines()[1] == f"  {name}  3×2  kernel"
            return
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, columns))
        subprocess.run([*command, "all"], stdin=given, stdout=theirs, env=environment, check=True)
        os.close(theirs)
        lines = os.read(ours, 10_000).decode().splitlines()
        assert max(map(len, lines)) in range(widest - 20, widest + 1)
