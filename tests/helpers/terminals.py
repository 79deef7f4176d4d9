"""A program in a pseudo-terminal, and what a person sees there."""

from __future__ import annotations

import os
import pty
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyte


@dataclass(frozen=True)
class Session:
    """What a program did in a terminal.

    Attributes:
        status: its exit status.
        seen: every text that stood in a line of the screen at some time, at its right end no spaces.
        screen: the lines that were left, without the empty ones below them.
        out: what it wrote to standard output, where that was a pipe.
    """

    status: int
    seen: frozenset[str]
    screen: list[str]
    out: str = ""


def run_in_terminal(
    command: Sequence[str], environment: Mapping[str, str], *, columns: int = 80, stdout: bool = True
) -> Session:
    """Runs a program with a terminal as its standard error.

    Args:
        command: the program and its arguments.
        environment: its environment.
        columns: the width of the terminal.
        stdout: whether standard output is the terminal, too; else it is a pipe.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    screen = pyte.Screen(columns, 40)
    stream = pyte.ByteStream(screen)
    seen: set[str] = set()
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs if stdout else subprocess.PIPE,
        stderr=theirs,
        env={**environment, "TERM": "xterm-256color"},
    ) as process:
        os.close(theirs)
        while data := _read(ours):
            stream.feed(data)
            seen |= {line.rstrip() for line in screen.display}
        out = process.stdout.read().decode() if process.stdout else ""
    os.close(ours)
    left = [line.rstrip() for line in screen.display]
    while left and not left[-1]:
        left.pop()
    return Session(process.returncode, frozenset(seen), left, out)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the program has closed its side
        return b""
