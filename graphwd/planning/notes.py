"""What a plan allows, but is nearly always a mistake or a surprise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphwd.analysis.flows import Flows
from graphwd.analysis.sites import SAVED_MODEL
from graphwd.analysis.updates import Analysis, added_besides, depends_on_itself, grows_with_gradient, keeps_a_part
from graphwd.analysis.values import MANY
from graphwd.decay.formulas import l2
from graphwd.graph.ops import CALL_OPS, CallKind, Form
from graphwd.messages import listed
from graphwd.planning.injections import EPSILON, After, InGradient
from graphwd.planning.placement import chosen_updates
from graphwd.planning.plan import Decision, Outcome
from graphwd.planning.problems import grouped, shadowed
from graphwd.planning.rates import unscaled_notes
from graphwd.policy.rules import Policy, Sparse, Updates
from graphwd.policy.selectors import Subject


def rule_notes(decisions: Sequence[Decision], subjects: Sequence[Subject], policy: Policy) -> Iterator[str]:
    """Notes on rules that decide nothing, that list variables of no use, and whose rates look like those of others.

    Args:
        decisions: of the variables.
        subjects: what selectors see of the same variables.
        policy: the policy.
    """
    deciding = {id(decision.rule) for decision in decisions}
    for rule in policy.rules:
        matches = [
            decision.variable.shown
            for decision, seen in zip(decisions, subjects, strict=True)
            if rule.selectors.match(seen)
        ]
        if matches and rule.selectors.any_given and id(rule) not in deciding:
            yield shadowed(rule, matches)
        variables = rule.selectors.variables
        if matches and variables is not None and (missing := variables.without({seen.key for seen in subjects})):
            yield f"{rule.where}: of the variables listed, {listed(missing)} is no trainable variable of this step"
    decaying = {id(decision.rule) for decision in decisions if decision.outcome is Outcome.DECAY}
    for rule in policy.rules:
        if id(rule) in decaying:
            yield from unscaled_notes(rule)


def decision_notes(decisions: Sequence[Decision], flows: Flows | None) -> Iterator[str]:
    """Notes on what happens to variables, one for all that share a rule and a note.

    Args:
        decisions: of the variables.
        flows: the flow of data in the bodies of the step; None where nothing is decayed.
    """
    yield from grouped(
        (decision, note)
        for decision in decisions
        if decision.outcome is Outcome.DECAY and flows is not None
        for note in (*_content_notes(decision, flows), *_place_notes(decision), *_gate_notes(decision, flows))
    )
    yield from grouped(
        (decision, "not decayed: the step never updates it")
        if not decision.writes.writes
        else (decision, "not decayed: the step writes it, but not from a gradient ('not_updated: leave')")
        for decision in decisions
        if decision.outcome is Outcome.NO_UPDATE
    )
    yield from grouped(
        (decision, f"its rule says 0, but the step itself decays it, at {decision.writes.native_decays[0].site}")
        for decision in decisions
        if decision.outcome is Outcome.EXEMPT and decision.writes.native_decays
    )
    yield from grouped(
        (decision, f"{injection.rate.number:g} is too small to change any {decision.variable.dtype} weight")
        for decision in decisions
        for injection in decision.injections[:1]
        if not isinstance(injection, InGradient)
        and injection.formula is l2
        and not injection.rate.factors
        and injection.rate.number < EPSILON[decision.variable.dtype] / 4
    )


def _content_notes(decision: Decision, flows: Flows) -> Iterator[str]:
    """Notes on surprising properties of an update that is decayed."""
    assert decision.rule is not None
    after = any(isinstance(injection, After) for injection in decision.injections)
    for update in chosen_updates(decision.rule, decision.writes):
        written = update.writes[-1]
        if after and written.op.form is Form.ASSIGN and not depends_on_itself(written, flows):
            yield "its update does not depend on the weight, so a decay lasts for one step and does not compound"
        if decision.rule.update is None and (added := added_besides(decision.writes, flows)):
            yield f"{added.site} adds to it besides, but not from a gradient, so no decay goes with that"
        if any(grows_with_gradient(write, flows) for write in update.writes):
            yield "it grows with its gradient, as a sum or a statistic of gradients does; if it is none, all is well"
        if any(keeps_a_part(write, flows) for write in update.writes):
            yield "its update multiplies the weight by something of its own: it holds a decay already, and now two"
        elif written.op.form in (Form.ADD, Form.SUB) and written.value.source in (decision.variable.id, MANY):
            yield "its update depends on the weight itself: perhaps it holds a decay already"
        if decision.rule.sparse is Sparse.TOUCHED and "sparse" in decision.rule.spelled and written.op.rows is None:
            yield "'sparse: touched', but its update writes all rows, so all are decayed at every step"
    for injection in decision.injections:
        if isinstance(injection, InGradient) and injection.entry.after is not None:
            op = injection.entry.after.partition(" (")[2].rstrip(")")
            yield f"the decay joins the gradient after what is done to that before the optimizer, last by a {op}"


def _place_notes(decision: Decision) -> Iterator[str]:
    """Notes on a surprising place of a decay, where there are several updates."""
    assert decision.rule is not None
    if decision.rule.updates not in (Updates.LAST, Updates.FIRST):
        return
    which = decision.rule.updates.value
    for injection in decision.injections:
        for frame in injection.site.path:
            kind = CALL_OPS[frame.op].kind
            if kind is CallKind.BRANCH and frame.node != SAVED_MODEL:
                yield (
                    f"'updates: {which}' takes the one in a branch, at {injection.site}: a run that does not take that "
                    "branch has no decay"
                )
            elif kind in (CallKind.LOOP, CallKind.SCAN):
                yield f"'updates: {which}' takes one in a loop, at {injection.site}, which decays in every turn"


def _gate_notes(decision: Decision, flows: Flows) -> Iterator[str]:
    """Notes on factors that switch an update off but not its decay."""
    assert decision.rule is not None
    for update in chosen_updates(decision.rule, decision.writes):
        for write in update.writes:
            if write.op.form is not Form.APPLY and (gate := flows.at(write.site.path).gate(write)):
                yield (
                    f"its update is multiplied by '{gate}', which is 0 or 1, and happens at every run all the same, "
                    "and so does the decay"
                )


def step_notes(analysis: Analysis) -> Iterator[str]:
    """Notes on what a step trains besides its trainable variables."""
    for site in analysis.python_calls:
        yield f"{site} ({site.op}) gets a gradient; what Python code writes is not in the graph, and not decayed"
    for variable, site in analysis.untrained:
        yield f"'{variable.shown}' is not trainable, but {site} ({site.op}) updates it from a gradient; not decayed"
