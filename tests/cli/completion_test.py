"""Completion, in a real bash."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from graphwd.cli.main import COMMANDS, main

COMPLETE = """
eval "$({graphwd} completion bash)"
COMP_WORDS=(graphwd {words}) COMP_CWORD={last}
function=$(complete -p graphwd | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function graphwd "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(*words: str) -> set[str]:
    """What bash offers for the last word."""
    script = COMPLETE.format(graphwd=f"{sys.executable} -m graphwd", words=shlex.join(words), last=len(words))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pl"], {"plan"}),
        (["re"], {"rewrite"}),
        (["plan", "--f"], {"--format"}),
        (["plan", "--format", ""], {"table", "json", "html"}),
        (["rewrite", "--format", ""], {"table", "json"}),
        (["plan", "--device", "G"], {"GPU"}),
        (["help", "pl"], {"plan"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["plan", "--policy", "po"], {"policy.yaml", "policies"}),
        (["rewrite", "--output", "po"], {"policies"}),
        (["strip", "po"], {"policies"}),
        (["diff", "--policy", "policy.yaml", "poli"], {"policy.yaml", "policies"}),
    ],
)
def test_bash_completes(tmp_path, monkeypatch, words, offered):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").touch()
    (tmp_path / "policies").mkdir()
    assert completed(*words) == offered


def test_every_command_and_flag_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert completed("") == set(COMMANDS)
    assert {"--policy", "--output", "--overwrite", "--link", "--format"} <= completed("rewrite", "--")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert {"zsh": "#compdef graphwd\n", "fish": "complete -c graphwd "}[shell] in script
    assert "--overwrite" in script or "-l overwrite" in script


def test_an_unknown_shell(capsys):
    assert main(["completion", "csh"]) == 2
    assert capsys.readouterr().err == "graphwd: name one shell: bash, zsh, fish\n"
