"""Progress bars, in a pseudo-terminal and outside of one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers.terminals import run_in_terminal

SLOW = """
import sys, time
from graphwd.progress import progress

with progress("planning", after=0.2):
    time.sleep(0.5)
    print("told to stderr", file=sys.stderr)
    print("told to stdout")
    with progress("quick"):
        time.sleep(0.3)
    with progress("copying", 10, after=0.1) as advance:
        for _ in range(10):
            time.sleep(0.1)
            advance(1)
    print("no newline", end="")
print()
print("done")
"""

FAST = """
import time
from graphwd.progress import progress

with progress("planning"), progress("copying", 1) as advance:
    time.sleep(0.3)
    advance(1)
"""

FAILS = """
import time
from graphwd.progress import progress

try:
    with progress("planning", after=0.0):
        time.sleep(0.5)
        raise ValueError("bad")
except ValueError:
    print("caught")
with progress("again", after=0.0):
    time.sleep(0.5)
"""

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def run(code, **options):
    return run_in_terminal([sys.executable, "-c", code], ENVIRONMENT, **options)


def test_bars_are_seen_and_nothing_is_left():
    session = run(SLOW)
    assert session.status == 0
    assert any(line.startswith("planning ━") for line in session.seen)
    copying = [line for line in session.seen if line.startswith("copying ") and "━" in line]
    assert {line.split()[2] for line in copying} & {f"{percent}%" for percent in range(10, 100, 10)}
    assert not any("quick" in line for line in session.seen)
    assert session.screen == ["told to stderr", "told to stdout", "no newline", "", "done"]


def test_standard_output_stays_clean():
    session = run(SLOW, stdout=False)
    assert any(line.startswith("planning ━") for line in session.seen)
    assert session.screen == ["told to stderr"]
    assert session.out == "told to stdout\nno newline\ndone\n"


def test_what_takes_less_than_a_second_shows_nothing():
    session = run(FAST)
    assert session.seen <= {""}
    assert session.status == 0


def test_after_an_error_the_next_bar_works():
    session = run(FAILS)
    assert {line.split()[0] for line in session.seen if "━" in line} == {"planning", "again"}
    assert session.screen == ["caught"]


@pytest.mark.parametrize("force", [None, "1"])
def test_a_pipe_gets_nothing(force):
    environment = ENVIRONMENT | ({"FORCE_COLOR": force} if force else {})
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == "told to stderr\n"
    assert done.stdout == "told to stdout\nno newline\ndone\n"


def test_no_standard_error_at_all():
    code = f"import sys; sys.stderr = None\n{FAST}"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
