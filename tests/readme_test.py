"""What the README shows runs as it is shown there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path("README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def run(tmp_path):
    """Runs a shell script in an empty directory, where `graphwd` is this one."""
    command = tmp_path / "bin" / "graphwd"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m graphwd "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}

    def script(text):
        return subprocess.run(["sh", "-ec", text], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)

    return script


def test_fit_prints_the_plan_that_is_shown(run, tmp_path):
    program, _ = blocks("python")
    (shown,) = blocks("text")
    (tmp_path / "fit.py").write_text(program)
    done = run(f"{sys.executable} fit.py")
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_the_commands(run, tmp_path):
    _, step = blocks("python")
    (commands,) = (text for text in blocks("sh") if "graphwd init" in text)
    (tmp_path / "train.py").write_text(step)
    done = run(commands)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 trainable variables decayed" in done.stdout
    assert "right in 5 runs" in done.stdout
    assert (tmp_path / "decayed" / "saved_model.pb").exists()


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) >= 12
    assert not [link for link in links if not Path(link).exists()]
