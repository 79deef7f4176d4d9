"""The public names of the package, and when they are imported."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys

import pytest

import graphwd


def run(program, directory):
    """What a fresh interpreter prints as JSON."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"import json, sys\n{program}"]
    return json.loads(subprocess.run(command, cwd=directory, env=env, check=True, capture_output=True).stdout)


def test_names():
    assert graphwd.__all__ == sorted(graphwd.__all__)
    assert {
        "GraphwdError",
        "GraphError",
        "Plan",
        "PlanError",
        "Policy",
        "PolicyError",
        "RewriteError",
        "StepError",
        "UsageError",
        "VerifyError",
        "load_policy",
        "plan",
        "rewrite",
        "verify",
        "with_weight_decay",
    } <= set(graphwd.__all__)


@pytest.mark.parametrize("name", graphwd.__all__)
def test_every_name_resolves_and_is_listed(name):
    value = getattr(graphwd, name)
    assert value is getattr(graphwd, name)
    assert name in dir(graphwd)
    assert inspect.ismodule(value) or value.__name__ == name
    assert inspect.ismodule(value) or value.__module__.startswith("graphwd.")


def test_a_star_import_does_not_rebind_keras(tmp_path):
    program = "keras = 1\nfrom graphwd import *\nprint(json.dumps([keras, callable(rewrite)]))"
    assert run(program, tmp_path) == [1, True]
    assert graphwd.keras.attach.__module__ == "graphwd.keras"
    assert "keras" in dir(graphwd)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match=r"^module 'graphwd' has no attribute 'nope'$"):
        _ = graphwd.nope


def test_importing_and_reading_a_policy_leaves_tensorflow_out(tmp_path):
    (tmp_path / "policy.yaml").write_text("version: 1\nrules:\n  - weight_decay: 5e-4\n", encoding="utf-8")
    program = """
import graphwd
assert dir(graphwd)
lazy = sorted(name for name in sys.modules if name.startswith("graphwd."))
rate = graphwd.load_policy("policy.yaml").rules[0].weight_decay
try:
    graphwd.Policy.from_dict({"version": 2})
except graphwd.PolicyError:
    print(json.dumps([lazy, rate, [m for m in ("tensorflow", "keras", "numpy", "rich") if m in sys.modules]]))
"""
    assert run(program, tmp_path) == [[], 5e-4, []]


def test_plan_stays_a_function_after_everything_is_imported():
    for module in pkgutil.walk_packages(graphwd.__path__, "graphwd."):
        if module.name != "graphwd.__main__":
            importlib.import_module(module.name)
    assert inspect.isfunction(graphwd.plan)
    assert inspect.isfunction(graphwd.rewrite)
    assert inspect.isfunction(graphwd.with_weight_decay)
    assert inspect.isclass(graphwd.Plan)


@pytest.mark.parametrize("module", ["graphwd.steps.decorator", "graphwd.keras", "graphwd.policy.rules"])
def test_the_examples_in_docstrings_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0
