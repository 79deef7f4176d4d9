"""A first policy for a step, by what its variables are used for."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphwd.planning.folding import fold
from graphwd.planning.plan import Plan
from graphwd.planning.terminal import in_columns
from graphwd.planning.texts import shape_text
from graphwd.policy.roles import Role
from graphwd.policy.rules import Policy

OVERVIEW = Policy.from_dict({"version": 1, "rules": [{"weight_decay": 0}], "not_updated": "leave"})
"""A policy that decays nothing: its plan is an account of the step."""

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class _Group:
    """Roles that one rule is for, the rate that is suggested, and why."""

    roles: tuple[Role, ...]
    decayed: bool
    why: str


_GROUPS = (
    _Group(
        (Role.BIAS, Role.NORM),
        False,
        "Biases, scales and offsets are few and do not make a function rough; nearly every recipe leaves them alone.",
    ),
    _Group(
        (Role.EMBEDDING,),
        False,
        "BERT decays its embeddings; GPT-2 and most vision transformers leave theirs, positions and tokens alone.",
    ),
    _Group(
        (Role.DEPTHWISE,),
        False,
        "A depthwise filter has few weights a channel; MobileNet was trained with little or no decay on them.",
    ),
    _Group(
        (Role.OTHER,),
        False,
        "Not seen to be any of these: slopes of a PReLU, layer scales, parameters of a distribution. Look at them.",
    ),
    _Group((Role.KERNEL,), True, "What layers multiply by."),
)

_SEMANTICS = {
    "adamw": (0.01, "w <- w - learning rate * weight decay * w, then the update, as AdamW does"),
    "decoupled": (1e-5, "w <- w - weight decay * w after the update, whatever the learning rate is"),
}
"""What is tried, in this order: the rate to begin with, and what it means."""


def suggestion(name: str, plan_with: Callable[[Policy], Plan]) -> str:
    """Writes a first policy for a step.

    Args:
        name: what the step is called in the first line.
        plan_with: plans the step with a policy.

    Returns:
        The policy as YAML text, every variable named in a comment; it ends with a newline. What a plan by it would
        refuse stands at its top.

    Raises:
        GraphwdError: the step cannot be read.
    """
    account = plan_with(OVERVIEW)
    record = account.record()
    not_updated = any(decision.writes.writes and not decision.writes.updates for decision in account.decisions)
    text, problems = "", ()
    for semantics in _SEMANTICS:
        text = "\n".join(_lines(name, record["variables"], semantics, leave=not_updated))
        problems = plan_with(Policy.from_text(text)).problems
        if not problems:
            return text + "\n"
    told = [f"# A plan refuses: {line}" for problem in problems for line in problem.splitlines()]
    return "\n".join([*told, text]) + "\n"


def _lines(name: str, variables: Sequence[Mapping[str, Any]], semantics: str, *, leave: bool) -> Iterator[str]:
    rate, meaning = _SEMANTICS[semantics]
    yield f"# A first policy for {name}, by what the step uses each variable for. The first rule that matches decides."
    yield "version: 1"
    yield "defaults:"
    yield f"  semantics: {semantics}  # {meaning}"
    if leave:
        yield "not_updated: leave  # what is written, but not from a gradient, is an average or the like"
    yield "rules:"
    for group in _GROUPS:
        members = [variable for variable in variables if Role(variable["role"]) in group.roles]
        if members:
            yield from _rule(group, members, rate)


def _rule(group: _Group, members: Sequence[Mapping[str, Any]], rate: float) -> Iterator[str]:
    present = [role.value for role in group.roles if any(member["role"] == role.value for member in members)]
    yield ""
    for line in textwrap.wrap(f"{_counted(members)}. {group.why}", _WIDTH - 4):
        yield f"  # {line}"
    yield f"  - role: {present[0]}" if len(present) == 1 else f"  - role: [{', '.join(present)}]"
    yield f"    weight_decay: {rate:g}" if group.decayed else "    weight_decay: 0"
    yield from _comments(members)


def _comments(members: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The variables of a rule, in columns, with what repeats folded as in a plan."""
    rows: list[tuple[str, str, str, str]] = []
    for each in fold([member["label"] for member in members], list(map(_alike, members))):
        member, count = members[each.members[0]], len(each.members)
        seen = member["seen"] or "no use seen"
        if count > 1:
            seen = seen.partition(", ")[0]  # the node is another for each
        normalized = "; normalized next, so that its scale does not matter" if member["followed_by"] else ""
        updated = "" if member["updates"] else "; not updated by this step"
        shape = shape_text(member["shape"])
        rows.append((each.text, f"×{count}" if count > 1 else "", shape, f"{seen}{normalized}{updated}"))
    yield from (f"    # {line}" for line in in_columns(rows))


def _alike(member: Mapping[str, Any]) -> Hashable:
    """All that variables have in common which are folded into one line."""
    op = (member["seen"] or "").partition(", ")[0]
    shape = shape_text(member["shape"])
    return shape, member["dtype"], member["role"], op, member["followed_by"], bool(member["updates"])


def _counted(members: Sequence[Mapping[str, Any]]) -> str:
    sizes = [member["shape"] for member in members]
    known = all(size is not None and None not in size for size in sizes)
    weights = f", {sum(math.prod(size) for size in sizes):,} weights" if known else ""
    return f"{len(members)} variable{'' if len(members) == 1 else 's'}{weights}"
