"""Why a plan would be refused: the conflicts between a step and a policy."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Sequence

from graphwd.analysis.sites import Path
from graphwd.analysis.updates import Analysis
from graphwd.graph.graph import Variable
from graphwd.messages import listed
from graphwd.planning.copied import what_was_meant
from graphwd.planning.injections import Injection
from graphwd.planning.plan import Decision, Outcome
from graphwd.planning.rates import wrong_rate
from graphwd.policy.globs import glob_matches
from graphwd.policy.roles import Role
from graphwd.policy.rules import Policy, Rule
from graphwd.policy.selectors import Selectors, Subject
from graphwd.policy.words import near


def step_problems(analysis: Analysis, decisions: Sequence[Decision]) -> Iterator[str]:
    """Why a function is no training step, or one of which not everything is known."""
    if not analysis.variables:
        yield "this is not a training step: it touches no trainable variable"
    elif not any(decision.writes.updates or decision.writes.guesses or decision.injections for decision in decisions):
        yield (
            "this is not a training step: no trainable variable is updated from a gradient "
            f"({listed(writes.variable.shown for writes in analysis.variables)})"
        )
    for site in analysis.unresolved:
        yield f"it is not known which variable {site} ({site.op}) writes"
    for variable, site in analysis.opaque:
        yield (
            f"'{variable.shown}' goes into a function of {site} ({site.op}) that writes variables; "
            "graphwd does not follow that op"
        )


def counter_problems(decisions: Sequence[Decision]) -> Iterator[str]:
    """Why one counter of graphwd's own would not do: it would count the updates of others, too."""
    counted: dict[Path, dict[int, Injection]] = {}  # by the body that counts, and by variable
    for decision in decisions:
        for injection in decision.injections:
            for rate in injection.schedules:
                if rate.own is not None and rate.path is not None:
                    counted.setdefault(rate.path, {})[injection.variable.id] = injection
    for one, other in itertools.combinations(counted.values(), 2):
        first, second = next(iter(one.values())), next(iter(other.values()))
        # In branches of which a run takes one, the same variables may be updated.
        if not (first.site.excludes(second.site) and one.keys() == other.keys()):
            second = next((injection for number, injection in other.items() if number not in one), second)
            if first.variable == second.variable:
                yield (
                    f"'{first.variable.shown}' is updated at {first.site} and at {second.site}, of which a run may "
                    "meet one, the other or both, and graphwd has no counter for that; write 'updates: last' or "
                    "'first', or give as 'weight_decay' a tf.Variable that the training sets"
                )
                return
            yield apart(f"'{first.variable.shown}' and '{second.variable.shown}'", f"{first.site} and {second.site}")
            return


def rate_problems(decisions: Sequence[Decision]) -> Iterator[str]:
    """What the schedules of the user's own give that is no rate; the numbers of others were read with the policy."""
    for rule in {id(decision.rule): decision.rule for decision in decisions if decision.injections}.values():
        choice = rule and rule.schedule
        reason = wrong_rate(rule, choice.resolved()) if rule and choice and choice.function else ""
        if rule and reason:
            yield f"{rule.where}: {reason}"


def apart(names: str, places: str) -> str:
    """What is said of variables that are updated at different times, while one counter would count for them."""
    return (
        f"{names} are updated apart from each other, at {places}, and no variable of the step is seen to count the "
        "updates of each, while graphwd would count them together; count each in an integer variable of its own, where "
        "it is updated, and name that with 'step: NAME', or give each step of the training a policy of its own"
    )


def policy_problems(decisions: Sequence[Decision], subjects: Sequence[Subject], policy: Policy) -> Iterator[str]:
    """The variables that no rule matches, and the rules that match no variable."""
    unmatched = [d.variable.shown for d in decisions if d.outcome is Outcome.UNMATCHED]
    if unmatched and not policy.skip_unmatched:
        yield no_rule(unmatched, policy)
    for rule in policy.rules:
        if rule.selectors.any_given and not rule.optional and not any(map(rule.selectors.match, subjects)):
            yield left_over(rule, policy, [decision.variable for decision in decisions], subjects)


def no_rule(names: Iterable[str], policy: Policy) -> str:
    """The message for variables that no rule matches."""
    return (
        f"{policy.where}: no rule matches {listed(names)}; end the rules with '- weight_decay: 0', or write "
        "'unmatched: skip'"
    )


def left_over(rule: Rule, policy: Policy, variables: Sequence[Variable], subjects: Sequence[Subject] = ()) -> str:
    """The message for a rule that matches none of the trainable variables.

    Args:
        rule: the rule.
        policy: its policy.
        variables: the trainable variables.
        subjects: what selectors see of them; empty where it is not known what they are used for.
    """
    advice = "correct or remove it, or write 'optional: true'"
    if policy.where.endswith(".cfg"):  # which has sections, not rules
        advice = "give the section the name that the layer has in TensorFlow, write wc=0, or remove it"
    hint = _near_use(rule.selectors, subjects) or _near(rule, variables)
    return f"{rule.where}: the rule '{rule.selectors}' matches no trainable variable{hint}; {advice}"


def shadowed(rule: Rule, names: Iterable[str]) -> str:
    """The message for a rule whose matches are all decided by earlier rules."""
    return f"{rule.where}: the rule is shadowed: earlier rules decide all it matches ({listed(names)})"


def _near_use(selectors: Selectors, subjects: Sequence[Subject]) -> str:
    """What is said of roles and op types that no variable has; empty where none was asked for, or one has it."""
    if selectors.role and subjects and not any(subject.role in selectors.role for subject in subjects):
        present = [role.value for role in Role if any(subject.role is role for subject in subjects)]
        return f"; the roles here are {', '.join(present)}"
    return _near_ops(selectors.used_by or frozenset(), frozenset[str]().union(*(each.used_by for each in subjects)))


def _near_ops(asked: frozenset[str], ops: frozenset[str]) -> str:
    if not asked or not ops or asked & ops:
        return ""
    meant = sorted({meant for op in asked if (meant := near(op, ops)) is not None})
    used = f"; no variable is used by {listed(sorted(asked))}"
    return f"{used}: did you mean {listed(meant)}?" if meant else f"{used}, but by {listed(sorted(ops))}"


def _near(rule: Rule, variables: Sequence[Variable]) -> str:
    selectors = rule.selectors
    if selectors.path is not None and not any(variable.path for variable in variables):
        return " (no object path is known for any variable of this step)"
    if selectors.variables is not None and all(variable.key is None for variable in variables):
        return " (a model in a file has none of the variables of this process: select by path or name)"
    if matches := [variable for variable in variables if _by_other_name(selectors.name or (), variable)]:
        names = listed(dict.fromkeys(str(variable.other_name) for variable in matches))
        return f": {names} is what TensorFlow calls {listed(variable.name for variable in matches)}, as Keras shows it"
    if meant := what_was_meant(selectors, variables):
        return f": {meant}"
    asked = selectors.name or selectors.regex or (selectors.path or "",)
    shown = [(variable.path or "") if selectors.path is not None else variable.shown for variable in variables]
    close = [name for one in asked for name in difflib.get_close_matches(one, shown, n=3, cutoff=0.5)]
    return f"; there is {listed(dict.fromkeys(close or shown))}" if shown else ""


def _by_other_name(globs: Iterable[str], variable: Variable) -> bool:
    """Whether a glob matches TensorFlow's name for a variable that its library shows by another name."""
    name = variable.other_name
    return name is not None and any(glob_matches(name, glob) for glob in globs)


def grouped(reasons: Iterable[tuple[Decision, str]]) -> Iterator[str]:
    """One line for all variables that share a rule and a reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for decision, reason in reasons:
        where = decision.rule.where if decision.rule else ""
        names.setdefault((where, reason), []).append(decision.variable.shown)
    for (where, reason), together in names.items():
        yield f"{where}: {listed(together)}: {reason}"
