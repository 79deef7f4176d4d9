"""``graphwd completion``: scripts by which shells complete the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from graphwd.cli.commands import Command, choices_of, help_of
from graphwd.errors import UsageError

SHELLS = ("bash", "zsh", "fish")

_FOLDERS = frozenset({"output", "rewritten"})
"""Flags that name a directory; all others that take a text name a file."""


def completion_command(commands: Callable[[], Mapping[str, Command]], topics: Callable[[], Sequence[str]]) -> Command:
    """Makes the command.

    Args:
        commands: gives every command.
        topics: gives the pages of the documentation.
    """

    def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
        del values
        if len(positional) != 1 or positional[0] not in SHELLS:
            raise UsageError(f"name one shell: {', '.join(SHELLS)}")
        import shtab

        print(shtab.complete(_parser(commands(), topics()), positional[0]))

    return Command(
        "completion bash|zsh|fish",
        "Prints a script by which the shell completes commands, flags, their values and files:\n"
        '  bash    eval "$(graphwd completion bash)"   in ~/.bashrc\n'
        "  zsh     graphwd completion zsh > _graphwd   in a folder of $fpath\n"
        "  fish    graphwd completion fish > ~/.config/fish/completions/graphwd.fish\n",
        lambda _: None,
        run,
    )


def _parser(commands: Mapping[str, Command], topics: Sequence[str]) -> argparse.ArgumentParser:
    """The command line as argparse would describe it, which shtab reads."""
    parser = argparse.ArgumentParser("graphwd")
    parser.add_argument("--version", action="store_true", help="print the versions of graphwd and TensorFlow")
    parsers = parser.add_subparsers()
    words = {"help": topics, "completion": SHELLS}
    for name, command in commands.items():
        about = command.about.partition("\n")[0].partition(". ")[0].rstrip(".")
        one = parsers.add_parser(name, help=about.partition(":")[0])
        values = flags.FlagValues()
        command.define(values)
        for each in sorted(values):
            flag: flags.Flag[Any] = values[each]  # pyright: ignore[reportUnknownVariableType] - of any type
            _add_flag(one, flag)
        argument = one.add_argument("argument", nargs="*", choices=words.get(name))
        if name not in words:
            _complete_by(argument, "DIRECTORY" if name == "strip" else "FILE")
    return parser


def _add_flag(parser: argparse.ArgumentParser, flag: flags.Flag[Any]) -> None:
    if flag.boolean:
        parser.add_argument(f"--{flag.name}", action="store_true", help=flag.help)
        return
    choices = choices_of(flag) or None
    argument = parser.add_argument(f"--{flag.name}", choices=choices, help=help_of(flag))
    if choices is None and flag.name not in ("runs", "tolerance"):
        _complete_by(argument, "DIRECTORY" if flag.name in _FOLDERS else "FILE")


def _complete_by(argument: argparse.Action, what: str) -> None:
    import shtab

    argument.complete = getattr(shtab, what)  # pyright: ignore[reportAttributeAccessIssue] - where shtab looks for it
