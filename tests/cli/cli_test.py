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
    assert rows[0] == ["variable", "shape", "dtype", "role", "seen", "in", "path", "update"]
    assert rows[2][:5] == ["layer/kernel", "1×2", "float32", "kernel", "MatMul,"]
    assert rows[3][:4] == ["layer/bias", "2", "float32", "bias"]
    assert done.stdout.splitlines()[-1].startswith("2 trainable variables; 'graphwd init STEP_FN' writes")


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
        "bad.yaml:4: weight_decay must be a number, got 'much'; write 5e-4 without quotes",
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
    pages = sorted(Path(__file__).parents[2].glob("graphwd/docs/*.md"))
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
        ("graphwd rewrit >/dev/full", 2, "graphwd: unknown command 'rewrit'; the commands are "),
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
    assert shell("graphwd help plan", PYTHONPATH=path).returncode == 0


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
