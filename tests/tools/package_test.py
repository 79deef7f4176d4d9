"""The package as users get it: built as an sdist and a wheel, and installed in a venv of its own."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

LIGHT = ["absl", "markdown_it", "mdurl", "pygments", "rich", "shtab", "wrapt", "yaml"]
"""What graphwd imports before it needs TensorFlow, and what that imports."""


def run(*command, cwd=None):
    """Runs a command that finds no source tree by itself."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=900, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directory of the sdist and the wheel, which is made from the sdist."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(name, source / name)
    shutil.copytree("graphwd", source / "graphwd", ignore=shutil.ignore_patterns("__pycache__", "BUILD"))
    target = tmp_path_factory.mktemp("built")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def venv(built, tmp_path_factory):
    """A venv with the wheel and nothing else."""
    place = tmp_path_factory.mktemp("venv")
    assert run(sys.executable, "-m", "venv", place).returncode == 0
    (wheel,) = built.glob("*.whl")
    done = run(place / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    return place


def lend(venv, directory):
    """Lets a venv import what is in a directory, after its own packages."""
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(f"{directory}\n")


@pytest.fixture
def without_tensorflow(venv, tmp_path):
    for name in LIGHT:
        (tmp_path / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    lend(venv, tmp_path)
    return venv / "bin/graphwd"


@pytest.fixture
def with_tensorflow(venv):
    lend(venv, sysconfig.get_path("purelib"))
    return venv / "bin/python"


def test_the_wheel_holds_all_of_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path for path in Path("graphwd").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held == {str(path) for path in files if path.name != "BUILD"}
    assert {"graphwd/py.typed", "graphwd/docs/policy.md", "graphwd/policy/policy.schema.json"} <= held


def test_the_sdist_holds_what_the_wheel_is_made_of(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "graphwd/py.typed", "graphwd/docs/policy.md"} <= names


def test_metadata(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("graphwd", "0.1.0")
    assert (metadata["Author"], metadata["License-Expression"]) == ("the graphwd authors", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_without_tensorflow_it_reads_policies_and_says_what_is_missing(without_tensorflow, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nweight_decay: 0.1\n")
    step = tmp_path / "train.py"
    step.write_text("import tensorflow\n")
    assert run(without_tensorflow, "check", policy).returncode == 0
    assert run(without_tensorflow, "help", "policy").stdout.startswith("# ")
    for command in (["plan", "--policy", policy, f"{step}:step"], ["init", f"{step}:step"]):
        done = run(without_tensorflow, *command)
        assert done.returncode == 1
        assert "tensorflow" in done.stderr.lower()
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_with_tensorflow_all_of_the_public_surface_runs(with_tensorflow, tmp_path):
    done = run(with_tensorflow, "-c", "import graphwd; print(graphwd.__file__)", cwd=tmp_path)
    assert str(with_tensorflow.parent.parent) in done.stdout  # and not the source tree
    program = shutil.copyfile("tests/typed_program.py", tmp_path / "program.py")
    done = run(with_tensorflow, program)
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr


def test_a_program_that_uses_all_of_the_public_surface_has_types(with_tensorflow, tmp_path):
    program = shutil.copyfile("tests/typed_program.py", tmp_path / "program.py")
    # Of TensorFlow mypy knows nothing; nor would it of graphwd, if the package did not say that it has types.
    options = ["--strict", "--ignore-missing-imports", "--allow-subclassing-any", f"--cache-dir={tmp_path / 'cache'}"]
    done = run(sys.executable, "-m", "mypy", *options, "--python-executable", with_tensorflow, program, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    wrong = program.with_name("wrong.py")
    wrong.write_text("import graphwd\nreveal_type(graphwd.load_policy(1).rules)\n")
    done = run(sys.executable, "-m", "mypy", *options, "--python-executable", with_tensorflow, wrong, cwd=tmp_path)
    assert 'Argument 1 to "load_policy" has incompatible type "int"' in done.stdout
    assert 'Revealed type is "tuple[graphwd.policy.rules.Rule, ...]"' in done.stdout.replace("builtins.", "")
