"""Decides, without changing anything, which variable is decayed by which rule, how much, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphwd.analysis.counters import Counter, find_counters
from graphwd.analysis.flows import Flows
from graphwd.analysis.roles import Purposes
from graphwd.analysis.updates import Analysis, VariableWrites, is_no_weight
from graphwd.graph.graph import Variable
from graphwd.planning.notes import decision_notes, rule_notes, step_notes
from graphwd.planning.placement import RefusedError, chosen_updates, place_decay
from graphwd.planning.plan import Decision, Outcome, Plan
from graphwd.planning.problems import counter_problems, grouped, policy_problems, rate_problems, step_problems
from graphwd.policy.rules import Policy
from graphwd.policy.selectors import Subject


def make_plan(analysis: Analysis, policy: Policy) -> Plan:
    """Decides for every trainable variable of a step.

    Args:
        analysis: the updates found.
        policy: the policy.

    Returns:
        The plan; conflicts between step and policy are listed in its ``problems``, not raised.
    """
    flows = Flows(analysis.graph, analysis.values) if analysis.graph is not None else None
    purposes = Purposes(analysis.graph)
    asked = purposes if policy.by_use else Purposes(None)
    subjects = [subject(writes, asked) for writes in analysis.variables]
    counting = any(rule.rate_varies or rule.schedule is not None for rule in policy.rules)
    counters = find_counters(analysis, flows) if counting and flows is not None else ()
    decided = [
        _decide(writes, policy, seen, flows, counters)
        for writes, seen in zip(analysis.variables, subjects, strict=True)
    ]
    decisions = tuple(replace(decision, purposes=purposes) for decision, _ in decided)
    problems = [
        *step_problems(analysis, decisions),
        *counter_problems(decisions),
        *rate_problems(decisions),
        *grouped((decision, reason) for decision, reason in decided if reason),
        *(policy_problems(decisions, subjects, policy) if decisions else ()),
    ]
    notes = [
        *policy.notes,
        *rule_notes(decisions, subjects, policy),
        *decision_notes(decisions, flows),
        *step_notes(analysis),
    ]
    return Plan(decisions, tuple(problems), tuple(notes), analysis.graph, policy.fuse, rules=policy.rules)


def subject(writes: VariableWrites, purposes: Purposes) -> Subject:
    """A variable as a policy's selectors see it.

    Args:
        writes: what the step does to it.
        purposes: what the variables are used for; of no graph where no rule asks (`Policy.by_use`).
    """
    variable = writes.variable
    purpose = purposes.of(variable)
    return Subject(
        variable.name,
        variable.rank,
        variable.dtype,
        variable.path,
        writes.used_by,
        variable.key,
        variable.reached_by,
        purpose.role,
        purpose.followed_by,
    )


def _decide(
    writes: VariableWrites, policy: Policy, seen: Subject, flows: Flows | None, counters: Sequence[Counter]
) -> tuple[Decision, str]:
    """The decision for one variable and, where it is refused, the reason; otherwise an empty text."""
    variable, rule = writes.variable, policy.decide(seen)
    if rule is None:
        return Decision(variable, Outcome.UNMATCHED, None, writes), ""
    if rule.exempts:
        return Decision(variable, Outcome.EXEMPT, rule, writes), ""
    if not writes.writes:
        return Decision(variable, Outcome.NO_UPDATE, rule, writes), ""
    assert flows is not None
    if policy.leave_not_updated and not chosen_updates(rule, writes) and is_no_weight(writes, flows):
        return Decision(variable, Outcome.NO_UPDATE, rule, writes), ""
    try:
        injections = place_decay(
            rule,
            writes,
            flows,
            leaves=policy.leave_not_updated,
            several_writers=policy.several_writers,
            counters=counters,
        )
    except RefusedError as reason:
        return Decision(variable, Outcome.REFUSED, rule, writes), f"{reason}{_namesake_advice(variable)}"
    return Decision(variable, Outcome.DECAY, rule, writes, injections), ""


def _namesake_advice(variable: Variable) -> str:
    """How a rule can select a variable and not others of its name; empty where no other has that name."""
    if not variable.label:
        return ""
    ways = ["'path: PATH'"] if variable.path is not None else []
    ways += ["'variables: [...]' in a policy made in Python"] if variable.key is not None else []
    alone = f"; a rule can select it alone by {' or '.join(ways)}" if ways else ""
    return f"\n  (it shares its name with others, for which a rule by 'name' decides, too{alone})"
