"""The command line: finds the command, runs it, prints its answer, and says how it ended."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Any, TextIO

from absl import flags

from graphwd.cli.check import CHECK
from graphwd.cli.commands import STEP_COMMANDS, Command, choices_of, help_of
from graphwd.cli.completion import completion_command
from graphwd.cli.diff import DIFF
from graphwd.errors import GraphwdError, UsageError
from graphwd.planning.terminal import terminal_width
from graphwd.policy.words import did_you_mean

_PAGE_WIDTH = 100
"""Columns that a page of the documentation has at most in a terminal."""

_EXIT_STATUS = """\
Exit status: 0 done; 1 the step cannot be loaded or rewritten as asked; 2 the command line or the policy is malformed.
"""

_TENSORFLOW_PACKAGES = (
    *("tensorflow", "tensorflow-cpu", "tensorflow-cpu-aws", "tensorflow-macos", "tensorflow-rocm", "intel-tensorflow"),
    *("tf-nightly", "tf-nightly-cpu"),
)
"""The packages that bring TensorFlow; several bring the same files."""


def _command_help(command: Command) -> str:
    values = flags.FlagValues()
    command.define(values)
    return f"usage: graphwd {command.usage}\n\n{command.about}\nFlags:\n{_flags_help(values)}\n{_EXIT_STATUS}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments without the program's name; None for those of the process.

    Returns:
        The exit status: 0 done, 1 the step cannot be loaded or rewritten as asked, 2 malformed command line or policy.
    """
    _open_closed_streams()
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - it is where descriptor 1 was closed
        return _ended("standard output is closed, so there is nobody to tell the result to", 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may hold what the terminal cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportUnknownMemberType] - no matter of what
    told = io.StringIO()
    message, status = "", 0
    try:
        with contextlib.redirect_stdout(told):
            status = _run(list(sys.argv[1:] if argv is None else argv))
    except GraphwdError as error:
        message, status = str(error), error.exit_status
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    if failure := _tell(told.getvalue()):
        message, status = "\n".join(filter(None, [failure, message])), status or 1
    return _ended(message, status)


def _open_closed_streams() -> None:
    """Opens closed standard streams to the null device: TensorFlow would print to whatever file is opened next."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison] - it is where descriptor 2 was closed
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end of the process


def _tell(text: str) -> str:
    """Prints the answer; returns why that failed, but not if only the reader is gone."""
    try:
        if text:  # /dev/full refuses even to write nothing
            sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _drop(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            return f"standard output cannot be written: {error.strerror}"
    return ""


def _ended(message: str, status: int) -> int:
    """Prints why the command failed, if it did; returns the exit status."""
    try:
        if message:
            print(f"graphwd: {message}", file=sys.stderr)
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)
    return status


def _drop(stream: TextIO) -> None:
    """Discards the buffer of a stream: at exit Python would fail again to write it."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "-help", "--helpfull"):
        print(_overview())
        return 0
    if argv[0] in ("--version", "-version"):
        from graphwd import __version__

        print(f"graphwd {__version__}\n{_tensorflow_version()}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; the commands are {', '.join(COMMANDS)} (see graphwd --help)"
        raise UsageError(f"unknown command '{name}'{hint}")
    command = COMMANDS[name]
    if any(argument in ("-h", "--help", "-help") for argument in rest):
        print(_command_help(command))
        return 0
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    command.define(values)
    try:
        positional = values([name, *rest])[1:]
    except flags.Error as error:
        raise UsageError(f"{error} (see graphwd {name} --help)") from None
    return command.run(values, positional) or 0


def _tensorflow_version() -> str:
    """The version of TensorFlow, read from its package: importing it would take seconds."""
    for name in _TENSORFLOW_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
            return f"TensorFlow {version}" if name == "tensorflow" else f"TensorFlow {version} ({name})"
    return "TensorFlow is not installed"


def _overview() -> str:
    lines = [f"  graphwd {command.usage}" for command in COMMANDS.values()]
    return "\n".join(
        [
            "graphwd gives a TensorFlow training step weight decay, variable by variable.",
            "",
            "usage:",
            *lines,
            "",
            "graphwd COMMAND --help says more of a command, graphwd help TOPIC of",
            f"  {', '.join(_topics())}",
            "",
            _EXIT_STATUS,
        ]
    )


def _flags_help(values: flags.FlagValues) -> str:
    lines: list[str] = []
    for name in sorted(values):
        flag: flags.Flag[Any] = values[name]  # pyright: ignore[reportUnknownVariableType] - of any type
        choices = choices_of(flag)
        kind = "" if flag.boolean else " " + ("|".join(choices) if choices else "VALUE")
        default = "" if flag.default in (None, []) or flag.boolean else f" (default: {flag.default})"
        lines.append(f"  --{name}{kind}\n      {help_of(flag)}{default}")
    return "\n".join(lines) + "\n"


def _help(values: flags.FlagValues, positional: Sequence[str]) -> None:
    del values
    topics = _topics()
    if not positional:
        print("\n".join(f"graphwd help {topic:<13}  {_title(topic)}" for topic in topics))
        return
    topic, *more = positional
    if more:
        raise UsageError(f"help takes one topic, of {', '.join(topics)}")
    if topic not in topics:
        hint = f"; 'graphwd {topic} --help' says what the command does" if topic in COMMANDS else ""
        raise UsageError(f"no topic '{topic}'; name one of {', '.join(topics)}{hint or did_you_mean(topic, topics)}")
    text = _text(topic)
    terminal = sys.__stdout__  # sys.stdout is held back until the command is done
    print(_rendered(text) if terminal is not None and terminal.isatty() else text)


def _text(topic: str) -> str:
    return (_docs() / f"{topic}.md").read_text(encoding="utf-8")


def _title(topic: str) -> str:
    return _text(topic).splitlines()[0].removeprefix("# ")


def _rendered(text: str) -> str:
    """Markdown as a terminal shows it, no wider than it and than 100 columns."""
    from rich.console import Console  # here, since no other command waits for them
    from rich.markdown import Markdown

    console = Console(force_terminal=True, width=min(terminal_width() or _PAGE_WIDTH, _PAGE_WIDTH))
    with console.capture() as capture:
        console.print(Markdown(text))
    return capture.get().rstrip()


def _docs() -> Traversable:
    return resources.files("graphwd") / "docs"


def _topics() -> list[str]:
    return sorted(file.name.removesuffix(".md") for file in _docs().iterdir() if file.name.endswith(".md"))


def _define_nothing(values: flags.FlagValues) -> None:
    del values


COMMANDS: Mapping[str, Command] = {
    **STEP_COMMANDS,
    "check": CHECK,
    "diff": DIFF,
    "completion": completion_command(lambda: COMMANDS, lambda: _topics()),
    "help": Command("help [TOPIC]", "Shows a page of the documentation, or lists the pages.\n", _define_nothing, _help),
}
