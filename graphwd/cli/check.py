"""``graphwd check``: whether policies are right, as far as that can be told without a step."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from graphwd.cli.commands import Command, read_policy
from graphwd.errors import PolicyError, UsageError
from graphwd.policy.json_schema import written_schema


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("schema", False, "print the JSON schema of a policy, for editors", flag_values=values)


def _run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    if values.flag_values_dict()["schema"]:
        if positional:
            raise UsageError(f"--schema is of every policy; leave {' '.join(positional)} out")
        print(written_schema(), end="")
        return
    if not positional:
        raise UsageError("at least one policy file is needed, none was given")
    malformed: list[str] = []
    for path in positional:
        try:
            count = len(read_policy(path).rules)
            print(f"{path}: ok, {count} rule{'' if count == 1 else 's'}")
        except PolicyError as error:
            malformed.append(str(error))
    if malformed:
        raise PolicyError("\n".join(malformed))


CHECK = Command(
    "check policy.yaml [more.yaml ...] | check --schema",
    "Reads policies (.yaml, .yml, or a cuda-convnet .cfg) without a step, and says of each that it is right, or all\n"
    "that is wrong with it: a line for each mistake, with its place. Exits with 2 where one is malformed.\n",
    _define,
    _run,
)
