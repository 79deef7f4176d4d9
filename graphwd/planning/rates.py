"""The rates of rules as numbers: what is shown of a schedule, what of it is no rate, and what is larger than meant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from graphwd.decay.schedules import Schedule
from graphwd.errors import RewriteError
from graphwd.policy.formula import L2
from graphwd.policy.rules import Mode, Rule, Scale

_TRIED = (0, 1, 10, 100, 1000, 10**4, 10**5, 10**6)
"""Steps at which a schedule is asked whose course is not known."""

_LARGE = 1e-3
"""From which rate on a decay that no learning rate makes smaller is told, where the policy does not say so itself."""

_MEANING = frozenset({"semantics", "mode", "order", "scale"})


def schedule_record(schedule: Schedule, counters: Iterable[str]) -> dict[str, Any]:
    """What the record of a plan says of a schedule.

    Args:
        schedule: the schedule.
        counters: what counts its steps.
    """
    return {
        "name": str(schedule),
        "counter": ", ".join(sorted(counters)) or None,
        "rates": _shown(schedule),
        "warmup_steps": None if schedule.own else schedule.warmup_steps,
        "end": schedule.end,
    }


def _shown(schedule: Schedule) -> list[list[float]]:
    """The rates at the start, at the end of warm-up and at the end; where these are not known, up to what stays."""
    known = schedule.end is not None
    steps = sorted({0, schedule.warmup_steps, schedule.end or 0} if known else {*_TRIED, *schedule.turns})
    try:
        rates = [list(each) for each in zip(steps, schedule.rates(steps), strict=False)]
    except RewriteError:  # which is a problem of the plan
        return []
    while not known and len(rates) > 1 and rates[-1][1] == rates[-2][1]:
        rates.pop()
    return rates


def wrong_rate(rule: Rule, schedule: Schedule) -> str:
    """What a schedule gives that is no rate.

    Args:
        rule: the rule that it is of.
        schedule: the schedule.

    Returns:
        The message; empty where all that is tried is a rate.
    """
    steps = sorted({*_TRIED, *schedule.turns})
    try:
        rates = schedule.rates(steps)
    except RewriteError as error:
        return str(error)
    for step, rate in zip(steps, rates, strict=False):
        given = f"the schedule '{schedule.name}' gives {rate:g} at step {step}"
        if not 0 <= rate < math.inf:
            return f"{given}; a rate must be a finite number >= 0"
        if rate >= 1 and rule.stays_below_one:
            return f"{given}; a rate must be below 1 where it multiplies the weight by 1 - rate"
    return ""


def unscaled_notes(rule: Rule) -> Iterator[str]:
    """A note on a rate that looks as if it were to be multiplied by the learning rate, and is not; at most one.

    Nothing is said where the policy spells out what the rate means, nor of a rule that was made without a policy's
    text, for that does not tell what it spells out.

    Args:
        rule: a rule that decays something.
    """
    meaning = rule.semantics
    scaled = meaning.mode is Mode.COUPLED or meaning.scale is not Scale.NONE
    if scaled or "weight_decay" not in rule.spelled or rule.spelled & _MEANING:
        return
    rate = _largest(rule)
    if not _LARGE <= rate < math.inf or (rate >= 1 and rule.stays_below_one):  # which is a problem of the plan
        return
    given, most = ("", "up to ") if rule.schedule else (f" {rate:g}", "")
    takes = f"takes {most}{rate:g} times {rule.formula.name} at each step"
    if rule.formula == L2:
        steps = math.ceil(math.log(0.5) / math.log1p(-rate))
        half = f"half of it is gone after {steps} step{'' if steps == 1 else 's'}"
        takes = f"takes {most}{100 * rate:g} % of the weight at each step, and {half}"
    yield (
        f"{rule.where}: weight_decay{given} {takes}: 'semantics' is not given, and 'decoupled' does not multiply by "
        "the learning rate; write 'semantics: adamw' for a number that was made for AdamW, or "
        "'semantics: decoupled' if this is meant"
    )


def _largest(rule: Rule) -> float:
    """The largest rate of a rule; 0 where that is not known."""
    choice = rule.schedule
    if choice is None:
        return rule.weight_decay
    if choice.identity:
        return 0.0
    if choice.function is None:
        return rule.weight_decay * choice.largest
    schedule = choice.resolved()
    try:
        return rule.weight_decay * max(schedule.rates(sorted({*_TRIED, *schedule.turns})), default=0.0)
    except RewriteError:  # which is a problem of the plan
        return 0.0
