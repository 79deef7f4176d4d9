"""What a plan decides for a variable, as plain values."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphwd.analysis.updates import Update
from graphwd.decay.arithmetic import wide
from graphwd.decay.formulas import Formula
from graphwd.errors import RewriteError
from graphwd.graph.edge import node_of
from graphwd.graph.fragment import digest, fragment
from graphwd.planning.injections import InGradient, Injection
from graphwd.planning.placement import chosen_updates
from graphwd.planning.rates import schedule_record

if TYPE_CHECKING:
    from graphwd.planning.plan import Decision


def decision_record(decision: Decision, *, purposes: bool) -> dict[str, Any]:
    """A decision as plain values, with the keys that ``graphwd help plan`` documents.

    Args:
        decision: the decision.
        purposes: whether it says what the variable is used for, which takes a further walk through the step.
    """
    variable, rule = decision.variable, decision.rule
    purpose = decision.purpose if purposes else None
    return {
        "name": variable.name,
        "label": variable.shown,
        "shape": None if variable.shape is None else list(variable.shape),
        "dtype": variable.dtype,
        "path": variable.path,
        "role": purpose and purpose.role.value,
        "seen": purpose and (purpose.seen or None),
        "followed_by": purpose and purpose.followed_by,
        "outcome": decision.outcome.value,
        "rule": rule and rule.where,
        "weight_decay": rule and rule.weight_decay,
        "mode": rule and rule.semantics.mode.value,
        "order": rule and rule.semantics.order.value,
        "scale": rule and rule.semantics.scale.value,
        "tunable": rule and rule.tunable,
        "schedule": _schedule_record(decision),
        "peak_learning_rate": rule and rule.peak_learning_rate,
        "formula": rule and str(rule.formula.resolved()),
        "formula_digest": _formula_digest(decision),
        "rows": "touched" if any(injection.rows for injection in decision.injections) else "all",
        "updates": [
            {
                "at": str(update.site),
                "op": update.site.op,
                "functions": [frame.callee.function for frame in update.site.path],
                "evidence": update.evidence.value,
                "writes": [str(write.site) for write in update.writes],
            }
            for update in _shown_updates(decision)
        ],
        "decays": [_decay_record(injection) for injection in decision.injections],
        "native_decays": [str(write.site) for write in decision.writes.native_decays],
        "other_writes": [str(write.site) for write in decision.writes.others],
        "used_by": sorted(decision.writes.used_by),
    }


def _formula_digest(decision: Decision) -> str | None:
    """What tells a function of the user's own from others of its name; None for formulas of graphwd's."""
    if decision.rule is None or not decision.injections or decision.rule.formula.function is None:
        return None
    return _digest(decision.rule.formula.resolved(), wide(decision.variable.dtype))


@functools.cache
def _digest(formula: Formula, dtype: str) -> str | None:
    try:
        return digest(fragment(_applied, dict.fromkeys(formula.takes, dtype), formula=formula))
    except RewriteError:  # which is a problem of the plan
        return None


def _applied(formula: Formula, **tensors: Any) -> Any:
    return formula(**tensors)


def _schedule_record(decision: Decision) -> dict[str, Any] | None:
    """The schedule of a rate; None for a constant, or where no rule decides."""
    choice = decision.rule and decision.rule.schedule
    if not choice:
        return None
    if choice.identity:
        return {"name": choice.name, "counter": None, "rates": [], "warmup_steps": None, "end": None}
    counters = {rate.counter for injection in decision.injections for rate in injection.schedules}
    return schedule_record(choice.resolved(), counters)


def _shown_updates(decision: Decision) -> Sequence[Update]:
    updates = (*decision.writes.updates, *decision.writes.guesses)
    return (decision.rule and chosen_updates(decision.rule, decision.writes)) or updates


def _decay_record(injection: Injection) -> dict[str, Any]:
    entry = injection.entry if isinstance(injection, InGradient) else None
    learning_rate = injection.rate.learning_rate
    return {
        "at": str(injection.site),
        "where": injection.where.value,
        "rate": injection.rate.number,
        "learning_rate": learning_rate and learning_rate.name,
        "gradient": entry and node_of(entry.tensor),
        "gradient_after": entry and entry.after,
    }
