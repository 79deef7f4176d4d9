"""``graphwd diff``: what two plans, or two models, do otherwise to their variables."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING

from absl import flags

from graphwd.cli.commands import Command, import_tensorflow, only_the_answer, read_policy, value_of
from graphwd.cli.sources import Files, PythonSource, source_of
from graphwd.errors import RewriteError, StepError, UsageError
from graphwd.planning.difference import (
    VERIFY,
    Account,
    account_of,
    compare,
    difference_as_json,
    difference_as_table,
    rewritten_account,
)
from graphwd.planning.render import without_policy
from graphwd.planning.terminal import detail_of
from graphwd.policy.rules import Policy

if TYPE_CHECKING:
    from graphwd.models.target import Target


@dataclass(frozen=True, slots=True)
class _Side:
    """A or B: what it is called, what it is, and the policy that it is planned with."""

    name: str
    text: str
    policy: Policy | None


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "policy",
        [],
        "the policy file of both steps; given twice, the first is for A, the second for B",
        flag_values=values,
    )
    flags.DEFINE_string("module", None, "the file or module that holds a plain STEP_FN", flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "json"], "how to show the difference", flag_values=values)
    flags.DEFINE_bool("all", False, "a line for every variable, nothing folded", flag_values=values)


def _run(values: flags.FlagValues, positional: Sequence[str]) -> int:
    policies: Sequence[str] = value_of(values, "policy")
    sides = _sides(positional, policies)
    if value_of(values, "all") and value_of(values, "format") == "json":
        raise UsageError("--format json leaves nothing out; leave --all out")
    read = {path: read_policy(path) for path in policies}
    module: str | None = value_of(values, "module")
    named = [
        _Side(name, text, None if path is None else read[path])
        for name, (text, path) in zip(_names(sides), sides, strict=True)
    ]
    difference = compare(*_accounts(named, module))
    if value_of(values, "format") == "json":
        print(difference_as_json(difference))
    else:
        print(difference_as_table(difference, detail_of(all=bool(value_of(values, "all")), verbose=False)))
    return int(bool(difference))


def _sides(positional: Sequence[str], policies: Sequence[str]) -> list[tuple[str, str | None]]:
    """For A and for B what it is and the policy that it is planned with."""
    if len(positional) not in (1, 2) or len(policies) > 2:
        raise UsageError("diff compares two: name A and B, or one STEP_FN and two --policy")
    steps = [text for text in positional if not _is_plan(text)]
    if len(positional) == 1:
        if len(policies) != 2 or not steps:
            raise UsageError(f"{positional[0]} is to be compared with what? Name B, or give a step two --policy")
        return [(positional[0], policies[0]), (positional[0], policies[1])]
    if len(policies) > len(steps):
        what = "neither A nor B is" if not steps else "only one of A and B is"
        raise UsageError(f"{what} a step; a plan in a file has its policy: leave a --policy out")
    chosen = iter(policies if len(policies) == 2 else [*policies] * len(steps))
    return [(text, None if _is_plan(text) else next(chosen, None)) for text in positional]


def _is_plan(text: str) -> bool:
    return text.endswith(".json") and not os.path.isdir(text)


def _names(sides: Sequence[tuple[str, str | None]]) -> list[str]:
    """What the two are called: by their policies where they are the same step, A and B where those are, too."""
    (one, first), (other, second) = sides
    if one != other:
        return [one, other]
    return ["A", "B"] if first is not None and first == second else [first or one, second or other]


def _accounts(sides: Sequence[_Side], module: str | None) -> list[Account]:
    """Both accounts, neither of which depends on what was loaded for the other.

    Keras numbers the names of layers and optimizers through a process, and Python imports a module of one name once.
    So a step that both sides share is loaded once, and of two different ones the first in a process of its own.
    """
    first, second = sides
    sources = [None if _is_plan(side.text) else source_of(side.text, module) for side in sides]
    if first.text == second.text and (source := sources[0]) is not None:
        import_tensorflow()
        with only_the_answer():
            target = source.open()
        return [_account_of_step(side, source, target) for side in sides]
    if all(isinstance(source, PythonSource) for source in sources):
        return [_in_new_process(first, module), _account(second, module)]
    return [_account(side, module) for side in sides]


def _in_new_process(side: _Side, module: str | None) -> Account:
    context = multiprocessing.get_context("spawn")  # a fork would have all that this process has imported
    # TensorFlow is imported first: a policy with a formula brings it along, and its start-up messages.
    with ProcessPoolExecutor(1, context, initializer=import_tensorflow) as processes:
        try:
            return processes.submit(_account, side, module).result()
        except BrokenProcessPool:
            raise StepError(f"{side.text}: the process that loaded it has ended without a message of its own") from None


def _account(side: _Side, module: str | None) -> Account:
    if _is_plan(side.text):
        return account_of(side.name, _read(side.text))
    source = source_of(side.text, module)
    import_tensorflow()
    with only_the_answer():
        target = source.open()
    return _account_of_step(side, source, target)


def _account_of_step(side: _Side, source: Files | PythonSource, target: Target) -> Account:
    from graphwd.models.target import describe, plan
    from graphwd.planning.suggest import OVERVIEW

    with only_the_answer():
        if side.policy is None and isinstance(source, Files) and (decays := describe(source.open())):
            return rewritten_account(side.name, decays)
        try:
            record = plan(target, side.policy or OVERVIEW).record()
        except RewriteError:
            if isinstance(source, Files) and describe(source.open()):
                raise StepError(
                    f"{side.text} has been rewritten by graphwd, so no policy can be planned for it; without --policy "
                    f"it is compared with another such model, and {VERIFY}"
                ) from None
            raise
        return account_of(side.name, without_policy(record) if side.policy is None else record)


def _read(path: str) -> object:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise StepError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise StepError(f"{path}: is no JSON ({error}); write a plan with 'graphwd plan --format json'") from None


DIFF = Command(
    "diff [--policy A.yaml [--policy B.yaml]] [--format table|json] [--all] A [B]",
    "Says what B does otherwise than A to its variables: which only one of them has, and which differ in outcome,\n"
    "rate, formula, place, learning rate, schedule, shape, dtype or role. A and B are each\n"
    "  plan.json                 what 'graphwd plan --format json' printed\n"
    "  STEP_FN                   a step as for plan, with --policy; without, its variables and their roles\n"
    "  DIR                       without --policy, a SavedModel that graphwd has rewritten: its decays\n"
    "With one STEP_FN and two --policy it says what the second policy changes.\n\n"
    "Exits with 0 where there is no difference, with 1 and no message where there is one, with 1 and a message where\n"
    "A or B cannot be read. That a rule stands in another line or file is told, and is no difference.\n",
    _define,
    _run,
)
