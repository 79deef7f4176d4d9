"""The command line in real processes: output, errors, exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from graphwd.cli.main import COMMANDS, main
from tests.helpers import records
from tests.helpers.terminals import run_in_terminal

STEP = """
import tensorflow as tf

kernel = tf.Variable([[1.0, 2.0]], name="layer/kernel")
bias = tf.Variable([0.0, 0.0], name="layer/bias")

@tf.function(input_signature=[tf.TensorSpec([None, 1])])
def step_fn(batch):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(batch @ kernel + bias)
    for variable, gradient in zip((kernel, bias), tape.gradient(loss, (kernel, bias))):
        variable.assign_sub(gradient)
    return loss

@tf.function(input_signature=[tf.TensorSpec([1, 2])])
def restore(value):
    kernel.assign(value)

def factory():
    return step_fn

def needs_arguments(batch):
    return batch

class Trainer:
    number = 3
    def __init__(self):
        self.step = step_fn
    @property
    def late(self):
        raise ValueError("not now")

trainer = Trainer()
"""

POLICY = """\
version: 1
rules:
  - name: "*/bias"
    weight_decay: 0
  - weight_decay: 0.5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "step_fn.py").write_text(STEP)
    (tmp_path / "policy.yaml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def graphwd(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-m", "graphwd", *arguments], capture_output=True, text=True, check=False, env=environment
    )


def test_the_main_job(folder):
    done = graphwd("rewrite", "--policy", "policy.yaml", "step_fn")
    assert done.stderr == ""
    assert done.returncode == 0
    assert "1 of 2 trainable variables decayed" in done.stdout
    assert done.stdout.endswith("wrote step_fn_decayed\n")
    loaded = tf.saved_model.load(folder / "step_fn_decayed")
    loaded.step_fn(tf.zeros([1, 1]))
    assert sorted(float(tf.norm(v)) for v in loaded.variables_of_the_step) == pytest.approx([1.25**0.5, 2.0**0.5])


@pytest.mark.usefixtures("folder")
def test_a_rewrite_tells_programs_what_it_wrote():
    command = ["rewrite", "--policy", "policy.yaml", "--format", "json", "--output", "out", "step_fn.py:step_fn"]
    done = graphwd(*command)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["written"] == {"source": "step_fn.py:step_fn", "output": "out", "decays": 1}
    assert told["steps"] == [{"variables": 2, "decayed": 1}]
    assert [(each["name"], each["outcome"]) for each in told["variables"]] == [
        ("layer/kernel", "decay"),
        ("layer/bias", "exempt"),
    ]
    assert Path("out/saved_model.pb").exists()
    again = graphwd(*command)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("graphwd: out: exists already")


TWO_TRACES = """
import tensorflow as tf

kernel = tf.Variable([[1.0, 2.0]], name="layer/kernel")

@tf.function
def step(batch):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(batch @ kernel)
    kernel.assign_sub(tape.gradient(loss, kernel))
    return loss

for rows in (1, 2):
    step.get_concrete_function(tf.TensorSpec([rows, 1]))
"""


def test_the_decays_of_every_trace_are_counted(folder):
    (folder / "two.py").write_text(TWO_TRACES)
    (folder / "policy.yaml").write_text("version: 1\nweight_decay: 0.5\n")
    done = graphwd("rewrite", "--policy", "policy.yaml", "--format", "json", "two.py:step")
    told = json.loads(done.stdout)
    assert told["steps"] == [{"variables": 1, "decayed": 1}] * 2
    assert told["written"] == {"source": "two.py:step", "output": "step_decayed", "decays": 2}


@pytest.mark.parametrize("text", ["step_fn", "step_fn.py:factory", "step_fn:trainer.step", "step_fn.py:step_fn"])
def test_a_plan_as_json(folder, text):
    done = graphwd("plan", "--policy=policy.yaml", "--format", "json", text)
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert [(v["name"], v["outcome"], v["rule"]) for v in record["variables"]] == [
        ("layer/kernel", "decay", "policy.yaml:5"),
        ("layer/bias", "exempt", "policy.yaml:3"),
    ]
    assert sorted(os.listdir(folder)) in (["policy.yaml", "step_fn.py"], ["__pycache__", "policy.yaml", "step_fn.py"])


@pytest.mark.usefixtures("folder")
def test_a_plan_as_a_page():
    done = graphwd("plan", "--policy=policy.yaml", "--format=html", "--device=GPU", "step_fn.py:step_fn")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("<!doctype html>")
    assert done.stdout.endswith("</html>\n")
    assert done.stdout.count("<template") == 1
    assert "GPU: 4 nodes would be injected" in done.stdout


def test_a_page_of_problems_goes_with_the_message_and_the_status(folder):
    (folder / "policy.yaml").write_text("version: 1\nrules:\n  - name: head\n    weight_decay: 0.5\n")
    done = graphwd("plan", "--policy=policy.yaml", "--format=html", "step_fn.py:step_fn")
    assert done.returncode == 1
    assert done.stderr.startswith("graphwd: policy.yaml: no rule matches ")
    assert done.stdout.count('<li class="problem">') == 2


def test_a_first_policy_works_at_once(folder):
    first = graphwd("init", "step_fn.py:step_fn")
    assert (first.returncode, first.stderr) == (0, "")
    assert "  - role: bias\n    weight_decay: 0\n    # layer/bias  2  AddV2 to a product\n" in first.stdout
    assert "  - role: kernel\n" in first.stdout
    (folder / "first.yaml").write_text(first.stdout, encoding="utf-8")
    done = graphwd("plan", "--policy", "first.yaml", "--format", "json", "step_fn.py:step_fn")
    assert (done.returncode, done.stderr) == (0, "")
    outcomes = {each["name"]: (each["role"], each["outcome"]) for each in json.loads(done.stdout)["variables"]}
    assert outcomes == {"layer/kernel": ("kernel", "decay"), "layer/bias": ("bias", "exempt")}


@pytest.mark.usefixtures("folder")
def test_a_plan_without_a_policy_shows_what_variables_are_used_for():
    done = graphwd("plan", "step_fn.py:step_fn")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["kernel", "1", "variable,", "2", "parameters"]
    assert rows[1] == ["layer/kernel", "1×2", "MatMul"]
    assert rows[3] == ["bias", "1", "variable,", "2", "parameters"]
    assert rows[4][:2] == ["layer/bias", "2"]
    assert " ".join(rows[-2]).startswith("2 trainable variables, 4 parameters, all float32; 'graphwd init STEP_FN'")
    verbose = graphwd("plan", "--verbose", "step_fn.py:step_fn").stdout
    assert "      kernel: MatMul, matmul" in verbose
    assert "      AssignSubVariableOp at AssignSubVariableOp: " in verbose
    told = graphwd("plan", "--format", "json", "step_fn.py:step_fn").stdout
    Path("step.json").write_text(told)
    kernel = json.loads(told)["variables"][0]
    assert (kernel["name"], kernel["role"], kernel["updates"][0]["op"]) == (
        "layer/kernel",
        "kernel",
        "AssignSubVariableOp",
    )
    # There is no rule, so nothing is said of one.
    assert {key for key, value in kernel.items() if value is None} >= {"outcome", "rule", "weight_decay", "formula"}
    # The step itself is the same, and one with a policy is not.
    done = graphwd("diff", "step.json", "step_fn.py:step_fn")
    assert (done.returncode, done.stdout, done.stderr) == (0, "no difference: 2 variables alike\n", "")
    done = graphwd("diff", "--policy", "policy.yaml", "step.json", "step_fn.py:step_fn")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("no policy → 0.5 after update ")


BLOCKS = """
import tensorflow as tf

kernels = [tf.Variable(tf.ones([2, 2]), name=f"block_{i}/kernel") for i in range(11)]

@tf.function(input_signature=[tf.TensorSpec([None, 2])])
def step_fn(batch):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum([batch @ kernel for kernel in kernels])
    for variable, gradient in zip(kernels, tape.gradient(loss, kernels)):
        variable.assign_sub(gradient)
    return loss
"""


def test_in_a_terminal_what_is_slow_shows_a_bar_and_leaves_nothing(folder):
    (folder / "policy.yaml").write_text("version: 1\nrules:\n\n\n  - weight_decay: 0.5\n    semantics: decoupled\n")
    (folder / "slow.py").write_text(f"import time\nprint('hello')\ntime.sleep(2)\n{BLOCKS}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "graphwd", "plan", "--policy", "policy.yaml", "slow.py:step_fn"]
    session = run_in_terminal(command, environment, columns=50)
    assert session.status == 0, session.screen
    assert any(line.startswith("importing ━") for line in session.seen)
    assert session.screen == [
        "hello",
        "policy.yaml:5: 0.5 after update",
        "  11 variables, 44 parameters",
        "  block_{0…10}/kernel  ×11  2×2  kernel",
        "",
        "11 of 11 trainable variables decayed: 44 of 44",
        "  parameters, all float32",
    ]


def test_blocks_are_folded_and_unfolded(folder):
    (folder / "step_fn.py").write_text(BLOCKS)
    (folder / "policy.yaml").write_text("version: 1\nweight_decay: 0.5\ndefaults: {semantics: decoupled}\n")
    done = graphwd("plan", "--policy", "policy.yaml", "step_fn")
    assert done.stdout.splitlines() == [
        "policy.yaml:2: 0.5 after update   11 variables, 44 parameters",
        "  block_{0…10}/kernel  ×11  2×2  kernel",
        "",
        "11 of 11 trainable variables decayed: 44 of 44 parameters, all float32",
    ]
    every = graphwd("plan", "--policy", "policy.yaml", "--all", "step_fn").stdout.splitlines()
    assert every[1:12] == [f"  block_{number}/kernel".ljust(17) + "  2×2  kernel" for number in range(11)]
    nodes = graphwd("rewrite", "--policy", "policy.yaml", "--verbose", "--output", "out", "step_fn").stdout
    for number in range(11):
        node = f"AssignSubVariableOp_{number}" if number else "AssignSubVariableOp"
        assert f"\n      AssignSubVariableOp at {node}: computed from a gradient scope\n" in nodes


MODEL = """
import keras

model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)], name="net")
model.compile(keras.optimizers.Adam(), "mse")
"""


def test_a_keras_model_is_planned_and_not_rewritten(folder):
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    first = graphwd("init", "model.py:model")
    assert first.returncode == 0
    (folder / "first.yaml").write_text(first.stdout, encoding="utf-8")
    done = graphwd("plan", "--policy", "first.yaml", "--format", "json", "model.py:model")
    record = json.loads(done.stdout)
    assert [(each["role"], each["outcome"]) for each in record["variables"]] == [
        ("kernel", "decay"),
        ("bias", "exempt"),
    ]
    refused = graphwd("rewrite", "--policy", "first.yaml", "model.py:model")
    assert refused.returncode == 1
    assert refused.stderr == (
        "graphwd: model is a Keras model: graphwd.keras.attach(model, policy) gives its fit weight decay; to write a "
        "SavedModel, name a tf.function that trains it\n"
    )


@pytest.mark.usefixtures("folder")
def test_verify():
    assert graphwd("rewrite", "--policy", "policy.yaml", "--output", "out", "step_fn").returncode == 0
    command = ["verify", "--policy", "policy.yaml", "--rewritten", "out", "step_fn"]
    done = graphwd(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "layer/kernel" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("right in 5 runs; largest error ")
    done = graphwd(*command, "--format", "json", "--runs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert list(found) == ["version", "ok", "runs", "largest_error", "variables", "outputs", "races"]
    assert (found["version"], found["ok"], found["runs"], found["races"]) == (1, True, 2, [])
    assert [(each["name"], each["decayed"], each["verdict"]) for each in found["variables"]] == [
        ("layer/kernel", True, "right"),
        ("layer/bias", False, "right"),
    ]
    assert [each["name"] for each in found["outputs"]] == ["output 0"]
    # Another policy than the one it was rewritten by.
    Path("policy.yaml").write_text(POLICY.replace("0.5", "0.25"), encoding="utf-8")
    done = graphwd(*command, "--runs", "2")
    assert done.returncode == 1
    assert done.stderr.startswith("graphwd: 'layer/kernel' is ")
    assert "WRONG in 2 runs" in done.stdout
    done = graphwd(*command, "--runs", "2", "--format=json")
    assert done.returncode == 1
    assert done.stderr.startswith("graphwd: 'layer/kernel' is ")
    found = json.loads(done.stdout)
    assert not found["ok"]
    assert found["largest_error"] == found["variables"][0]["error"] > 1000
    assert [each["verdict"] for each in found["variables"]] == ["wrong", "right"]
    done = graphwd("verify", "--policy", "policy.yaml", "--rewritten", "nowhere", "step_fn")
    assert done.returncode == 1
    assert done.stderr.startswith("graphwd: nowhere: cannot be loaded: ")
    assert done.stderr.count("\n") == 1


FRESH = """
import tensorflow as tf

def make():
    kernels = [tf.Variable([[1.0, 2.0]], name="kernel")]

    @tf.function(input_signature=[tf.TensorSpec([None, 1])])
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(batch @ kernels[0])
        kernels[0].assign_sub(tape.gradient(loss, kernels[0]))
        return loss

    return step
"""


def test_verify_a_step_that_a_function_makes(folder):
    (folder / "fresh.py").write_text(FRESH)
    common = ["--policy", "policy.yaml", "fresh.py:make"]
    (folder / "policy.yaml").write_text("version: 1\nweight_decay: 0.5\n")
    assert graphwd("rewrite", "--output", "out", *common).returncode == 0
    done = graphwd("verify", "--rewritten", "out", "--runs", "2", *common)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("right in 2 runs")


def test_check(folder, capsys):
    (folder / "net.cfg").write_text("[conv1]\nepsW=0.1\nwc=0.004\n")
    (folder / "short.yml").write_text("version: 1\nweight_decay: 0.05\n")
    (folder / "bad.yaml").write_text("version: 1\nrules:\n  - nmae: x\n    weight_decay: much\nfuse: yes please\n")
    assert main(["check", "policy.yaml", "net.cfg", "short.yml"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "policy.yaml: ok, 2 rules\nnet.cfg: ok, 4 rules\nshort.yml: ok, 1 rule\n"
    assert printed.err == ""
    assert main(["check", "bad.yaml", "short.yml", "missing.yaml"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "short.yml: ok, 1 rule\n"
    assert printed.err.splitlines() == [
        "graphwd: bad.yaml:3: unknown key 'nmae' in a rule; did you mean 'name'?",
        "bad.yaml:4: weight_decay must be a number, got 'much'; write a number, such as 5e-4",
        "bad.yaml:5: fuse must be one of none, xla; got 'yes please'",
        "missing.yaml: cannot be read: No such file or directory",
    ]


def test_check_prints_the_schema(capsys):
    assert main(["check", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert main(["check", "--schema", "policy.yaml"]) == 2
    assert "leave policy.yaml out" in capsys.readouterr().err
    assert main(["check"]) == 2
    assert "at least one policy file is needed" in capsys.readouterr().err


def test_check_waits_for_tensorflow_only_where_the_policy_names_a_formula(folder):
    code = "import sys; from graphwd.cli.main import main; print(main(sys.argv[1:]), 'tensorflow' in sys.modules)"
    (folder / "formula.yaml").write_text("version: 1\nrules:\n  - {weight_decay: 0.1, formula: l1}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    for arguments, imported in ((["policy.yaml"], False), (["--schema"], False), (["formula.yaml"], True)):
        command = [sys.executable, "-c", code, "check", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.stdout.endswith(f"0 {imported}\n")
        assert done.stderr == ""


@pytest.mark.usefixtures("folder")
def test_a_difference_of_plans_in_files_takes_no_tensorflow(folder):
    for name, policy in (("old", POLICY), ("new", POLICY.replace("0.5", "0.25"))):
        (folder / f"{name}.yaml").write_text(policy)
        (folder / f"{name}.json").write_text(
            graphwd("plan", "--policy", f"{name}.yaml", "--format", "json", "step_fn").stdout
        )
    code = "import sys; from graphwd.cli.main import main; print(main(sys.argv[1:]), 'tensorflow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, "diff", "old.json", "new.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "0.5 after update → 0.25 after update (old.yaml:5 → new.yaml:5)   1 variable, 2 parameters",
        "  layer/kernel  1×2  kernel",
        "",
        "to the same effect: old.yaml:3 → new.yaml:3, 1 variable",
        "1 variable changed, 1 variable alike",
        "1 False",
    ]
    assert graphwd("diff", "old.json", "old.json").returncode == 0
    # The same of the step, by its policies.
    done = graphwd("diff", "--policy", "old.yaml", "--policy", "new.yaml", "step_fn")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[0].startswith("0.5 after update → 0.25 after update (old.yaml:5 → new.yaml:5)  ")
    # A plan in a file, and the step by another policy.
    done = graphwd("diff", "--format", "json", "--policy", "new.yaml", "old.json", "step_fn")
    assert (done.returncode, done.stderr) == (1, "")
    value = json.loads(done.stdout)
    assert (value["first"], value["second"], value["alike"]) == ("old.json", "step_fn", 1)
    assert [(each["label"], each["differences"]["weight_decay"]) for each in value["changed"]] == [
        ("layer/kernel", [0.5, 0.25])
    ]


KERAS_MODEL = """
import keras
from width import WIDTH

model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(WIDTH), keras.layers.Dense(2)])
model.compile("adam", "mse")
"""


def test_a_difference_is_not_in_the_names_that_keras_numbers_through_a_process(tmp_path, monkeypatch):
    for name, width in (("may", 3), ("june", 3), ("july", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(KERAS_MODEL)
        (tmp_path / name / "width.py").write_text(f"WIDTH = {width}\n")
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "new.yaml").write_text(POLICY.replace("0.5", "0.25"))
    (tmp_path / "killed.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.chdir(tmp_path)
    may, june, july = ("may/train.py:model", "june/train.py:model", "july/train.py:model")
    # One step by two policies, which name the sides; by one policy twice, which cannot.
    done = graphwd("diff", "--policy", "policy.yaml", "--policy", "new.yaml", may)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "0.5 after update → 0.25 after update (policy.yaml:5 → new.yaml:5)   2 variables, 18 parameters",
        "  sequential/dense/kernel    4×3  kernel",
        "  sequential/dense_1/kernel  3×2  kernel",
        "",
        "to the same effect: policy.yaml:3 → new.yaml:3, 2 variables",
        "2 variables changed, 2 variables alike",
    ]
    done = graphwd("diff", "--format", "json", "--policy", "policy.yaml", "--policy", "policy.yaml", may)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(done.stdout)[key] for key in ("first", "second", "alike")] == ["A", "B", 4]
    assert graphwd("diff", may, may).returncode == 0
    # Steps of two files, which import modules of one name.
    done = graphwd("diff", "--policy", "policy.yaml", may, june)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no difference: 4 variables alike\n", "")
    done = graphwd("diff", "--policy", "policy.yaml", may, july)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == "3 variables changed, 1 variable alike"
    done = graphwd("diff", "--policy", "policy.yaml", "killed.py:step", may)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "graphwd: killed.py:step: the process that loaded it has ended without a message of its own\n"


@pytest.mark.usefixtures("folder")
def test_a_difference_of_rewritten_models():
    for name, rate in (("a", "0.5"), ("b", "0.25")):
        Path("policy.yaml").write_text(POLICY.replace("0.5", rate))
        assert graphwd("rewrite", "--policy", "policy.yaml", "--output", name, "step_fn").returncode == 0
    done = graphwd("diff", "a", "b")
    assert (done.returncode, done.stderr) == (1, "")
    assert "0.5, after the update → 0.25, after the update" in done.stdout
    assert graphwd("diff", "a", "a").returncode == 0
    mixed = graphwd("diff", "a", "step_fn")
    assert (mixed.returncode, mixed.stdout) == (1, "")
    verify = "'graphwd verify' compares a rewritten model with a policy"
    assert mixed.stderr == (
        f"graphwd: a has been rewritten by graphwd, and step_fn is a plan; compare two of one kind; {verify}\n"
    )
    planned = graphwd("diff", "--policy", "policy.yaml", "a", "step_fn")
    assert (planned.returncode, planned.stdout) == (1, "")
    assert planned.stderr == (
        "graphwd: a has been rewritten by graphwd, so no policy can be planned for it; without --policy it is compared "
        f"with another such model, and {verify}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "diff compares two: name A and B"),
        (["a", "b", "c"], 2, "diff compares two: name A and B"),
        (["step_fn"], 2, "step_fn is to be compared with what?"),
        (["old.json"], 2, "old.json is to be compared with what?"),
        (["--policy", "policy.yaml", "old.json", "new.json"], 2, "neither A nor B is a step"),
        (["--policy", "policy.yaml", "--policy", "policy.yaml", "old.json", "x"], 2, "only one of A and B is a step"),
        (["--format", "json", "--all", "old.json", "new.json"], 2, "--format json leaves nothing out; leave --all out"),
        (["--policy", "nowhere.yaml", "a", "b"], 2, "nowhere.yaml: cannot be read"),
        (["old.json", "new.json"], 1, "old.json: cannot be read: No such file"),
        (
            ["list.json", "list.json"],
            1,
            "list.json: is no plan, but a list; write one with 'graphwd plan --format json'",
        ),
        (["other.json", "list.json"], 1, "other.json: is no plan, for it has no 'rewritten'; write one with"),
        (["huge.json", "list.json"], 1, "huge.json: is no plan, for its values are none of a plan (int too large"),
        (["cut.json", "cut.json"], 1, "cut.json: is no JSON (Expecting"),
        (["deep.json", "deep.json"], 1, "deep.json: is no JSON (maximum recursion"),
        (["binary.json", "binary.json"], 1, "binary.json: is no JSON ('utf-8' codec"),
    ],
)
def test_what_cannot_be_compared(folder, capsys, arguments, status, message):
    (folder / "list.json").write_text("[]")
    (folder / "other.json").write_text('{"version": 1}')
    huge = {
        "version": 1,
        "rewritten": [],
        "problems": [],
        "variables": [records.variable(weight_decay=10**400, decays=[])],
    }
    (folder / "huge.json").write_text(json.dumps(huge))
    (folder / "cut.json").write_text('{"version": ')
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "binary.json").write_bytes(b"\xff\xfe")
    assert main(["diff", *arguments]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"graphwd: {message}")
    assert printed.err.count("\n") == 1


def broken(text: str) -> str:
    return f"version: 1\nrules:\n{text}"


@pytest.mark.parametrize(
    ("policy", "step", "status", "message"),
    [
        (broken("  - weigth_decay: 1"), "step_fn", 2, "policy.yaml:3: unknown key 'weigth_decay' in a rule; did you"),
        (broken("  - weight_decay: much"), "step_fn", 2, "policy.yaml:3: weight_decay must be a number, got 'much'"),
        (broken("  - weight_decay: 0\n    weight_decay: 1"), "step_fn", 2, "policy.yaml:4: duplicate key"),
        (broken("  - regex: '('\n    weight_decay: 0"), "step_fn", 2, "policy.yaml:3: regex '(' is not a regular"),
        (broken("  - [\n"), "step_fn", 2, "policy.yaml:4: not YAML"),
        (None, "step_fn", 2, "policy.yaml: cannot be read: No such file"),
        (POLICY, "nofile.py:step_fn", 1, "nofile.py: no such file"),
        (POLICY, "no_module:step_fn", 1, "no_module: no such module"),
        (POLICY, "step_fn.py:stepfn", 1, "step_fn.py: no attribute 'stepfn'; did you mean 'step_fn'?"),
        (POLICY, "step_fn.py:bogus", 1, "step_fn.py: no attribute 'bogus'; its tf.functions are 'restore', 'step_fn'"),
        (POLICY, "step_fn.py", 1, "step_fn.py: names a file but no attribute; write step_fn.py:step_fn"),
        (POLICY, "step_fn.py:restore", 1, "not a training step: no trainable variable is updated from a gradient"),
        (POLICY, "step_fn.py:needs_arguments", 1, "calling it without arguments to get one failed: TypeError"),
        (POLICY, "step_fn.py:trainer.late", 1, "step_fn.py: reading 'trainer.late' failed: ValueError: not now"),
        (POLICY, "step_fn.py:trainer.number", 1, "step_fn.py:trainer.number is a int; name a tf.function"),
        (
            broken("  - name: conv*\n    weight_decay: 0.1\n  - weight_decay: 0"),
            "step_fn",
            1,
            "policy.yaml:3: the rule",
        ),
        (broken("  - name: '*bias'\n    weight_decay: 0"), "step_fn", 1, "no rule matches 'layer/kernel'"),
    ],
)
def test_wrong_in_clear_out(folder, policy, step, status, message, capsys):
    (folder / "policy.yaml").unlink()
    if policy is not None:
        (folder / "policy.yaml").write_text(policy)
    files = sorted(os.listdir(folder))
    assert main(["rewrite", "--policy", "policy.yaml", "--output", "out", step]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("graphwd: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert sorted(set(os.listdir(folder)) - {"__pycache__"}) == files


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_thing", "broken.py does not import: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("x = 1 +", "broken.py does not import: SyntaxError"),
        ("raise SystemExit(0)", "broken.py does not import: SystemExit: 0"),
    ],
)
def test_a_step_that_does_not_import(folder, source, message):
    (folder / "broken.py").write_text(source)
    done = graphwd("rewrite", "--policy", "policy.yaml", "broken.py:step")
    assert done.returncode == 1
    assert done.stderr.startswith(f"graphwd: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rewrit"], "unknown command 'rewrit'"),
        (["rewrite", "step_fn"], "--policy is missing"),
        (["plan", "--policy", "policy.yaml"], "exactly one STEP_FN is needed, none was given"),
        (["plan", "--policy", "policy.yaml", "a", "b"], "exactly one STEP_FN is needed, got a b"),
        (["plan", "--polici", "policy.yaml", "a"], "Unknown command line flag 'polici'"),
        (["plan", "--policy", "policy.yaml", "--format", "xml", "a"], "value should be one of <table|json|html>"),
        (["plan", "--policy", "policy.yaml", "--module", "a.py", "b.py:step"], "leave --module a.py out"),
        (["plan", "--policy", "policy.yaml", "step_fn.py:"], "write path/to/file.py:ATTR"),
        (["plan", "--all", "--verbose", "--format", "json", "a"], "leaves nothing out; leave --all --verbose out"),
        (["help", "plann"], "no topic 'plann'; name one of architecture, "),
        (["help", "plann"], "did you mean 'plan'?"),
        (["help", "strip"], "; 'graphwd strip --help' says what the command does"),
        (["help", "plan", "policy"], "help takes one topic, of architecture, "),
    ],
)
@pytest.mark.usefixtures("folder")
def test_malformed_command_lines(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_help_names_every_flag_and_command(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in COMMANDS:
        assert f"graphwd {name}" in overview
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: graphwd {name}")
    main(["diff", "--help"])
    told = capsys.readouterr().out
    assert "  --format table|json\n      how to show the difference (default: table)\n" in told
    assert "for A, the second for B\n" in told
    main(["rewrite", "--help"])
    assert {"--policy", "--output", "--module"} <= set(capsys.readouterr().out.split())


def test_every_page_of_the_documentation_is_shown(capsys):
    pages = sorted(Path(__file__).parents[2].glob("graphwd/docs/*.md"))
    assert pages
    assert main(["help"]) == 0
    listed = [line.split(maxsplit=3)[2:] for line in capsys.readouterr().out.splitlines()]
    assert listed == [[page.stem, page.read_text(encoding="utf-8").splitlines()[0][2:]] for page in pages]
    for page in pages:
        assert main(["help", page.stem]) == 0
        assert capsys.readouterr().out.strip() == page.read_text(encoding="utf-8").strip()


def test_a_page_of_the_documentation_in_a_terminal():
    command = [sys.executable, "-m", "graphwd", "help", "verify"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = run_in_terminal(command, environment, columns=72)
    assert shown.status == 0
    # What is left on the screen is the end of the page: a heading without its sign, and no line of Markdown.
    assert "What is not checked" in map(str.strip, shown.screen)
    assert not any("```" in line or line.startswith("#") for line in shown.screen)
    piped = run_in_terminal(command, environment, stdout=False).out
    assert piped.startswith("# Verification\n")


def test_what_the_step_prints_does_not_mix_with_the_answer(folder):
    (folder / "loud.py").write_text(f"print('hello')\n{STEP}")
    done = graphwd("plan", "--policy=policy.yaml", "--format=json", "loud.py:step_fn")
    assert json.loads(done.stdout)["problems"] == []
    assert done.stderr == "hello\n"


def test_a_step_that_exits_while_it_is_traced(folder):
    (folder / "leaves.py").write_text(
        "import tensorflow as tf\n@tf.function(input_signature=[])\ndef step(): exit(3)\n"
    )
    done = graphwd("plan", "--policy=policy.yaml", "leaves.py:step")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("graphwd: the step does not trace: SystemExit")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    python_path = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        ["bash", "-c", line.replace("graphwd ", f"{sys.executable} -m graphwd ")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": python_path, **environment},
    )


FULL = "graphwd: standard output cannot be written: No space left on device\n"
CLOSED = "graphwd: standard output is closed, so there is nobody to tell the result to\n"


@pytest.mark.parametrize(
    ("line", "status", "errors"),
    [
        ("graphwd --help >/dev/full", 1, FULL),
        ("graphwd help policy >/dev/full", 1, FULL),
        ("graphwd help policy >&-", 1, CLOSED),
        ("graphwd help policy | true", 0, ""),
        ("graphwd rewrit >/dev/full", 2, "graphwd: unknown command 'rewrit'; did you mean 'rewrite'?"),
        ("graphwd rewrit 2>/dev/full", 2, ""),
        ("graphwd rewrit 2>&-", 2, ""),
        ("graphwd help policy >/dev/full 2>&1", 1, ""),
        ("graphwd help policy <&- >&- 2>&-", 1, ""),
        ("graphwd help policy <&- >/dev/null 2>&-", 0, ""),
        ("graphwd plan --policy policy.yaml step_fn >/dev/full", 1, FULL),
        ("graphwd rewrite --policy policy.yaml --output out step_fn >&-", 1, CLOSED),
        ("graphwd rewrite --policy policy.yaml --output out step_fn 2>&-", 0, ""),
        ("ln -s /dev/zero zero.yaml; graphwd plan --policy zero.yaml step_fn", 2, "graphwd: zero.yaml: is a pipe or"),
        ("mkfifo pipe.yaml; graphwd plan --policy pipe.yaml step_fn", 2, "graphwd: pipe.yaml: is a pipe or a device"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_streams_that_cannot_be_used(line, status, errors):
    done = shell(f"set -o pipefail; {line}")
    assert done.returncode == status
    assert done.stderr.startswith(errors)
    assert done.stderr.count("\n") == (1 if errors else 0)
    assert Path("out").exists() == (status == 0 and "rewrite" in line)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "graphwd: TensorFlow is not installed here; install tensorflow beside graphwd\n"),
        (
            "raise ImportError('libcudart.so.12:\\n no such file')",
            "graphwd: TensorFlow does not import: libcudart.so.12: no such file\n",
        ),
        ("import no_such_part", "graphwd: TensorFlow does not import: No module named 'no_such_part'\n"),
    ],
)
def test_without_tensorflow(folder, source, message):
    (folder / "other").mkdir()
    if source is None:  # a finder that knows no tensorflow, for a process that is not told of by PYTHONPATH alone
        (folder / "other" / "sitecustomize.py").write_text("import sys\nsys.modules['tensorflow'] = None\n")
    else:
        (folder / "other" / "tensorflow.py").write_text(source)
    path = os.pathsep.join([str(folder / "other"), *(path for path in sys.path if path)])
    for arguments in ("plan step_fn", "rewrite step_fn", "verify --rewritten x step_fn"):
        done = shell(f"graphwd {arguments} --policy policy.yaml", PYTHONPATH=path)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    (folder / "formula.yaml").write_text("version: 1\nrules:\n  - {weight_decay: 0.1, formula: l1}\n")
    for arguments in ("check formula.yaml", "plan --policy formula.yaml step_fn"):
        done = shell(f"graphwd {arguments}", PYTHONPATH=path)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    assert shell("graphwd help plan", PYTHONPATH=path).returncode == 0
    assert shell("graphwd ", PYTHONPATH=path).stdout.startswith("graphwd gives a TensorFlow training step weight decay")


def test_the_versions_are_told_at_once():
    code = "import sys; from graphwd.cli.main import main; main(['--version']); print('tensorflow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    own, tensorflow, imported = done.stdout.splitlines()
    assert own.startswith("graphwd ")
    assert tensorflow.split()[:2] == ["TensorFlow", tf.__version__.replace("-dev", ".dev")]  # as pip writes it
    assert imported == "False"


def test_the_version_without_tensorflow_and_of_another_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "TensorFlow is not installed"
    folder = tmp_path / "tf_nightly-2.20.0.dev1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tf-nightly\nVersion: 2.20.0.dev1\n")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "TensorFlow 2.20.0.dev1 (tf-nightly)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rewrite", "--policy", "policy.yaml", "--link", "step_fn"], "a Python step is saved anew: leave --link out"),
        (["plan", "--policy", "policy.yaml", "--module", "step_fn.py", "."], "leave --module step_fn.py out"),
        (["verify", "--policy", "policy.yaml", "--rewritten", ".", "net.meta"], "a .meta file cannot be verified"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_flag_that_would_have_no_effect_is_refused(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


REFUSED = """
import tensorflow as tf

w = tf.Variable([1.0, 2.0], name="w")
table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1], [1.0]), 0.0)

def train(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(w * x)
    w.assign_sub(tape.gradient(loss, w))
    return loss

@tf.function
def two(x, training):
    return train(x) if training else tf.reduce_sum(x)

two(tf.ones([2]), True)
two(tf.ones([2]), False)

@tf.function
def sometimes(x, again):
    if again:
        train(x)
    return train(x)

sometimes(tf.ones([2]), False)
sometimes(tf.ones([2]), True)

@tf.function(input_signature=[tf.TensorSpec([2], tf.int32)])
def looks_up(x):
    return train(table.lookup(x))

name = tf.function(train, input_signature=[tf.TensorSpec([2])])

@tf.function
def unknown(x):
    return train(x)
"""


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("two", "this is not a training step"),
        ("sometimes", "rule.yaml:3: 'w': "),
        ("looks_up", "the step uses a resource that is no variable"),
        ("name", "a SavedModel cannot hold a function named 'name'"),
        ("unknown", "has no input_signature and was never traced"),
    ],
)
def test_what_rewrite_refuses_plan_refuses_in_the_same_words(folder, capsys, step, message):
    (folder / "refused.py").write_text(REFUSED)
    (folder / "rule.yaml").write_text("version: 1\nrules:\n  - weight_decay: 0.5\n")
    said = []
    for command in (["plan"], ["rewrite", "--output", "out"]):
        assert main([*command, "--policy", "rule.yaml", f"refused.py:{step}"]) == 1
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert message in said[0]
    assert not (folder / "out").exists()
