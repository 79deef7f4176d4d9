"""The command line in real processes: output, errors, exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from graphwd.cli import COMMANDS, main

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
def test_verify():
    assert graphwd("rewrite", "--policy", "policy.yaml", "--output", "out", "step_fn").returncode == 0
    command = ["verify", "--policy", "policy.yaml", "--rewritten", "out", "step_fn"]
    done = graphwd(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "layer/kernel" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("right in 5 runs; largest error ")
    # Another policy than the one it was rewritten by.
    Path("policy.yaml").write_text(POLICY.replace("0.5", "0.25"), encoding="utf-8")
    done = graphwd(*command, "--runs", "2")
    assert done.returncode == 1
    assert done.stderr.startswith("graphwd: 'layer/kernel' is ")
    assert "WRONG in 2 runs" in done.stdout
    done = graphwd("verify", "--policy", "policy.yaml", "--rewritten", "nowhere", "step_fn")
    assert done.returncode == 1
    assert done.stderr.startswith("graphwd: nowhere: cannot be loaded: ")
    assert done.stderr.count("\n") == 1


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
        (["plan", "step_fn"], "--policy is missing"),
        (["plan", "--policy", "policy.yaml"], "exactly one STEP_FN is needed, none was given"),
        (["plan", "--policy", "policy.yaml", "a", "b"], "exactly one STEP_FN is needed, got a b"),
        (["plan", "--polici", "policy.yaml", "a"], "Unknown command line flag 'polici'"),
        (["plan", "--policy", "policy.yaml", "--format", "xml", "a"], "value should be one of <table|json|html>"),
        (["plan", "--policy", "policy.yaml", "--module", "a.py", "b.py:step"], "leave --module a.py out"),
        (["plan", "--policy", "policy.yaml", "step_fn.py:"], "write path/to/file.py:ATTR"),
        (["help", "nothing"], "name one topic: "),
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
    main(["rewrite", "--help"])
    assert {"--policy", "--output", "--module"} <= set(capsys.readouterr().out.split())


def test_every_page_of_the_documentation_is_shown(capsys):
    pages = sorted(Path(__file__).parents[1].glob("graphwd/docs/*.md"))
    assert pages
    for page in pages:
        assert main(["help", page.stem]) == 0
        assert capsys.readouterr().out.strip() == page.read_text(encoding="utf-8").strip()


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
