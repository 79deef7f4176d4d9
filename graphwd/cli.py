"""The command line: ``graphwd rewrite``, ``graphwd plan``, ``graphwd verify``, ``graphwd help``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable

from absl import flags

from graphwd.commands import STEP_COMMANDS, Command
from graphwd.errors import GraphwdError, UsageError

_EXIT_STATUS = """\
Exit status: 0 done; 1 the step cannot be loaded or rewritten as asked; 2 the command line or the policy is malformed.
"""


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may hold what the terminal cannot show
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except GraphwdError as error:
        print(f"graphwd: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("graphwd: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "-help", "--helpfull"):
        print(_overview())
        return
    if argv[0] in ("--version", "-version"):
        from graphwd import __version__

        print(f"graphwd {__version__}")
        return
    name, *rest = argv
    if name not in COMMANDS:
        raise UsageError(f"unknown command '{name}'; the commands are {', '.join(COMMANDS)} (see graphwd --help)")
    command = COMMANDS[name]
    if any(argument in ("-h", "--help", "-help") for argument in rest):
        print(_command_help(command))
        return
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    command.define(values)
    try:
        positional = values([name, *rest])[1:]
    except flags.Error as error:
        raise UsageError(f"{error} (see graphwd {name} --help)") from None
    command.run(values, positional)


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
    lines = []
    for name in sorted(values):
        flag = values[name]
        choices = getattr(flag.parser, "enum_values", None)
        kind = "" if flag.boolean else " " + ("|".join(choices) if choices else "VALUE")
        default = "" if flag.default is None or flag.boolean else f" (default: {flag.default})"
        lines.append(f"  --{name}{kind}\n      {flag.help}{default}")
    return "\n".join(lines) + "\n"


def _help(values: flags.FlagValues, positional: Sequence[str]) -> None:
    del values
    if len(positional) != 1 or positional[0] not in _topics():
        raise UsageError(f"name one topic: {', '.join(_topics())}")
    print((_docs() / f"{positional[0]}.md").read_text(encoding="utf-8"))


def _docs() -> Traversable:
    return resources.files("graphwd") / "docs"


def _topics() -> list[str]:
    return sorted(file.name.removesuffix(".md") for file in _docs().iterdir() if file.name.endswith(".md"))


def _define_nothing(values: flags.FlagValues) -> None:
    del values


COMMANDS: Mapping[str, Command] = {
    **STEP_COMMANDS,
    "help": Command("help TOPIC", "Shows a page of the documentation.\n", _define_nothing, _help),
}
