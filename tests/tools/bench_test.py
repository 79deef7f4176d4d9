"""The benchmark of what decay costs: that it measures all that it says, and checks it before; never a time."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench"
DENSE = [
    "undecayed",
    "floor",
    "graphwd decoupled",
    "graphwd decoupled, fuse: xla",
    "graphwd adamw",
    "graphwd adamw, fuse: xla",
    "the optimizer's own",
    "L2 in the loss",
    "assign loop",
    "second optimizer",
    "TensorFlow Addons",
]
BY_ROWS = ["graphwd decoupled, all rows", "assign loop, rows touched"]
SEVERAL = [*DENSE[:-1], "all in one product", DENSE[-1]]
"""Where several variables decay."""


def run(*arguments, program=(str(BENCH), "--quick", "--rounds", "3")):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, *program, *arguments], env=env, capture_output=True, text=True, check=False)


def measured(tmp_path, only):
    """The text and the cases of a run that went well."""
    ran = run("--only", only, "--json", str(tmp_path / "out.json"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, json.loads((tmp_path / "out.json").read_text())["cases"]


def rows_of(case):
    return {row["contender"]: row for row in case["rows"]}


def not_run(case):
    return {row["contender"]: row["why_not"] for row in case["rows"] if row["why_not"]}


def checked(case):
    return [(each["one"], each["other"]) for each in case["checks"]]


def assert_sound(case):
    """Each row has its numbers or the reason why not, ratios are those of the times, and the checks hold."""
    for row in case["rows"]:
        assert (row["ms"] is None) == (row["why_not"] is not None), row
        assert (row["calls"] >= 1) == (row["ms"] is not None), row
        for key in ("ms", "ratio", "of_floor"):
            if row[key] is not None:
                assert row[key][0] > 0
                assert sorted(row[key]) == row[key]
    rows = rows_of(case)
    assert rows["undecayed"]["ratio"] == [1, 1, 1]
    assert rows["undecayed"]["extra_ms"] == [0, 0, 0]
    assert rows["floor"]["of_floor"] == [1, 1, 1]
    assert case["rounds"] == 3
    assert all(each["holds"] and each["ulps"] <= each["limit"] for each in case["checks"])


def test_dense(tmp_path):
    text, cases = measured(tmp_path, "5 x 1k floats, keras.Adam")
    assert [case["name"] for case in cases] == [
        "5 x 1k floats, keras.Adam, plain",
        "5 x 1k floats, keras.Adam, xla",
    ]
    for case in cases:
        assert_sound(case)
        assert list(rows_of(case)) == SEVERAL
        assert not_run(case) == {"TensorFlow Addons": "it extends the tf_keras legacy optimizers: see there"}
        assert checked(case) == [
            ("graphwd decoupled", "assign loop"),
            ("graphwd decoupled, fuse: xla", "assign loop"),
            ("all in one product", "assign loop"),
            ("graphwd adamw", "the optimizer's own"),
            ("graphwd adamw, fuse: xla", "the optimizer's own"),
            ("floor", "assign loop"),
        ]
        assert case["name"] in text
        assert {"graphwd decoupled / floor", "graphwd adamw / floor"} <= case["derived"].keys()
    for name in SEVERAL:
        assert text.count(f"│   {name}  ") == 2, name
    assert text.count("not run:") == 2


def test_rows(tmp_path):
    """What decays only the rows that are touched is among the contenders."""
    _, (case,) = measured(tmp_path, "recommender 500 rows, 32 touched, keras.SGD, plain")
    assert_sound(case)
    assert sorted(rows_of(case)) == sorted(DENSE + BY_ROWS)
    assert not_run(case).keys() == {"TensorFlow Addons"}
    assert ("graphwd decoupled", "assign loop, rows touched") in checked(case)
    assert ("graphwd decoupled, all rows", "assign loop") in checked(case)


def test_what_cannot_run_says_why(tmp_path):
    _, (case,) = measured(tmp_path, "5 x 1k floats, legacy.Adam, plain")
    assert_sound(case)
    assert not_run(case) == {
        "the optimizer's own": "tf_keras legacy optimizers have no weight decay of their own",
        "TensorFlow Addons": "no folder for it was given: --tfa FOLDER",
    }


def test_one_contender_is_held_against_the_undecayed_step_and_the_floor(tmp_path):
    _, (case,) = measured(tmp_path, "5 x 1k floats, legacy.SGD, plain, graphwd adamw, fuse")
    assert_sound(case)
    assert list(rows_of(case)) == ["undecayed", "floor", "graphwd adamw, fuse: xla"]
    assert rows_of(case)["graphwd adamw, fuse: xla"]["remark"].startswith("fuse: xla: not all of what updates")


def test_list_names_every_row():
    ran = run("--list")
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    assert len(set(lines)) == len(lines)
    for workload, optimizer, mode in itertools.product(
        ["1 x 20k floats", "5 x 1k floats", "20 x 100 floats", "MobileNetV2", "BERT"],
        ["keras.Adam", "keras.SGD", "legacy.Adam", "legacy.SGD"],
        ["plain", "xla"],
    ):
        expected = SEVERAL if workload in ("5 x 1k floats", "20 x 100 floats") else DENSE
        assert sum(line.startswith(f"{workload}, {optimizer}, {mode}, ") for line in lines) == len(expected)
    assert sum(line.startswith("recommender ") for line in lines) == (3 * 3 + 2) * 2 * len(DENSE + BY_ROWS)


def test_nothing_matches():
    ran = run("--only", "no such thing")
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1] == "no row's name holds 'no such thing': see --list --quick"


def test_plot(tmp_path):
    ran = run("--only", "5 x 1k floats, legacy.SGD, xla, floor", "--plot", str(tmp_path / "out.png"))
    if importlib.util.find_spec("matplotlib") is None:
        assert ran.returncode == 2
        advice = "--plot needs matplotlib, of the extra `bench`: .venv/bin/pip install -e '.[bench]'"
        assert ran.stderr.splitlines()[-1] == advice
    else:
        assert ran.returncode == 0
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def contenders(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("contenders")
    for name in ("contenders", "workloads", "checks"):
        sys.modules.pop(name, None)


@pytest.fixture
def rewriter(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("rewriter")
    sys.modules.pop("rewriter", None)


def test_which_optimizers_write_only_the_rows_that_are_touched(contenders):
    """What the table's note says: the ops that write the table or its slot variables."""
    workloads = sys.modules["workloads"]
    (workload, *_) = (each for each in workloads.workloads(quick=True) if each.touched)
    writes_all_rows = {}
    for optimizer in [*contenders.SPARSE, "keras.Adam", "legacy.Adam"]:
        step = contenders.Step(contenders.Case(workload, optimizer, False))
        function = step.function()
        graph = function.get_concrete_function(*step.built.arguments).graph
        shape = (workload.size, workloads.WIDTH)
        tables = [variable.handle for variable in graph.variables if tuple(variable.shape) == shape]
        handles = [inner for outer, inner in graph.captures if any(outer is table for table in tables)]
        assert handles
        writes = {op.type for handle in handles for op in handle.consumers()}
        writes_all_rows[optimizer] = bool(writes & {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"})
    assert writes_all_rows == {
        "keras.SGD": False,
        "legacy.SGD": False,
        "legacy.Adagrad": False,
        "keras.Adam": True,
        "legacy.Adam": True,
    }


@pytest.mark.parametrize("optimizer", ["keras.SGD", "legacy.SGD"])
def test_all_contenders_decay_all_rows_of_a_models_embeddings(optimizer, contenders):
    """These optimizers write the rows that a step touches, and so graphwd by itself would decay no others."""
    pytest.importorskip("keras_hub", reason="keras_hub is not installed: run tools/setup")
    (workload,) = (each for each in sys.modules["workloads"].workloads(quick=True) if each.kind == "bert")
    case = contenders.Case(workload, optimizer, False)
    steps = {name: contenders.make(case, name)[0] for name in ("graphwd decoupled", "assign loop", "floor")}
    checks = importlib.import_module("checks").check(case, steps)
    assert [(each.one, each.other) for each in checks] == [
        ("graphwd decoupled", "assign loop"),
        ("floor", "assign loop"),
    ]
    assert all(each.holds for each in checks), checks


def test_files_beside_the_python_step():
    """Every form is measured in each round, its ratios are to what was measured in that, and the same is rewritten."""
    ran = run("--files", "600", "20", "--rounds", "1", "--json", program=[str(BENCH / "rewriter.py")])
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)
    assert [row["form"] for row in rows] == ["passes", "python", "meta", "v1", "v2"]
    passes, python = rows[:2]
    for row in rows:
        assert (row["nodes"], row["variables"]) == (601, 20)
        assert row["of_passes"] == row["us_a_node"] / passes["us_a_node"] > 0
        assert row["of_python"] == row["us_a_node"] / python["us_a_node"] > 0


def test_planning_by_roles_beside_planning_by_names():
    ran = run("--size", "600", "20", "--rounds", "2", "--json", program=[str(BENCH / "planning.py")])
    assert ran.returncode == 0, ran.stderr
    row = json.loads(ran.stdout)
    assert (row["nodes"], row["variables"]) == (600, 20)
    assert 0 < row["least"] <= row["ratio"] <= row["most"]


def test_the_memory_of_a_step_beside_the_undecayed_one():
    only = "1 x 20k floats, keras.Adam"
    ran = run("--quick", "--steps", "3", "--only", only, "--json", program=[str(BENCH / "memory.py")])
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)
    assert [row["contender"] for row in rows] == [
        "undecayed", "graphwd decoupled", "graphwd adamw", "graphwd adamw, fuse: xla", "the optimizer's own",
    ]  # fmt: skip
    for row in rows:
        assert row["case"] == only
        # Not of 0 and more: Linux counts in batches, so that what is resident can be above what it was at its peak.
        assert row["from"] <= row["peak"] <= row["to"]
        assert row["more"] == row["peak"] - rows[0]["peak"]
        assert row["in variables"] == row["more"] / 80_000


def test_the_effective_rate_of_many_steps():
    """Of 1e-3 all weights lose as much as asked for, whoever decays; what is measured is the weights."""
    ran = run("--steps", "3000", "--rates", "1e-3", "--json", program=[str(BENCH / "effective_rate.py")])
    assert ran.returncode == 0, ran.stderr
    ours, native = json.loads(ran.stdout)
    assert (ours["decay"], native["decay"]) == ("graphwd adamw", "Keras's own")
    for row in (ours, native):
        assert (row["rate"], row["steps"]) == (1e-3, 3000)
        assert 0 < abs(row["mean"]) <= abs(row["worst"]) < 1e-5


@pytest.mark.parametrize("form", ["meta", "v1", "v2"])
def test_files_hold_the_graph_of_the_python_step(form, rewriter):
    step, handles = rewriter.build(120, 10)
    graph_def = rewriter.FORMS[form](step, handles).graph_def
    nodes = graph_def.library.function[0].node_def if form == "v2" else graph_def.node
    others = [node for node in nodes if node.op not in ("VarHandleOp", "Placeholder")]
    assert [(node.name, node.op, node.attr) for node in others] == [(n.name, n.op, n.attr) for n in step.node_def]
    assert [[text.split(":")[0] for text in n.input] for n in others] == [
        [text.split(":")[0] for text in n.input] for n in step.node_def
    ]
