"""Decides, without changing anything, which variable is decayed by which rule, how much, and where."""

from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from graphwd.analysis.counters import Counter, find_counters
from graphwd.analysis.flows import Flows
from graphwd.analysis.roles import Purpose, Purposes
from graphwd.analysis.sites import SAVED_MODEL, Path
from graphwd.analysis.updates import (
    Analysis,
    Update,
    VariableWrites,
    added_besides,
    depends_on_itself,
    grows_with_gradient,
    is_no_weight,
    keeps_a_part,
)
from graphwd.analysis.values import MANY
from graphwd.decay.arithmetic import wide
from graphwd.decay.formulas import Formula, l2
from graphwd.errors import PlanError, RewriteError
from graphwd.graph.edge import node_of
from graphwd.graph.fragment import digest, fragment
from graphwd.graph.graph import Graph, Variable
from graphwd.graph.ops import CALL_OPS, CallKind, Form
from graphwd.messages import listed
from graphwd.planning.copied import what_was_meant
from graphwd.planning.injections import EPSILON, After, InGradient, Injection, watched
from graphwd.planning.placement import RefusedError, chosen_updates, place_decay
from graphwd.planning.rates import schedule_record, unscaled_notes, wrong_rate
from graphwd.planning.terminal import as_table, detail_of
from graphwd.policy.globs import glob_matches
from graphwd.policy.roles import Role
from graphwd.policy.rules import Policy, Rule, Sparse, Updates
from graphwd.policy.selectors import Selectors, Subject
from graphwd.policy.words import near

if TYPE_CHECKING:
    from graphwd.planning.update_graph import Trial


class Outcome(Enum):
    """What the plan does with a variable."""

    DECAY = "decay"
    EXEMPT = "exempt"  # its rule says 0
    NO_UPDATE = "no update"  # its rule asks for decay, but the step never updates it
    UNMATCHED = "unmatched"  # no rule decides it, and the policy skips those
    REFUSED = "refused"  # see the plan's problems


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for one trainable variable.

    Attributes:
        variable: the variable.
        outcome: what happens to it.
        rule: the rule that decided; None where none matched.
        writes: what the step does to it.
        injections: where its decay goes; empty unless the outcome is `Outcome.DECAY`.
        purposes: what the variables of the step are used for.
    """

    variable: Variable
    outcome: Outcome
    rule: Rule | None
    writes: VariableWrites
    injections: tuple[Injection, ...] = ()
    purposes: Purposes = field(default=Purposes(None), repr=False, compare=False)

    @property
    def purpose(self) -> Purpose:
        """What the variable is used for."""
        return self.purposes.of(self.variable)

    def __repr__(self) -> str:
        """In a few words: what the step does to a variable has no bound."""
        rule = f", {self.rule.where}" if self.rule else ""
        return f"<Decision {self.variable.name!r}: {self.outcome.value}{rule}>"


@dataclass(frozen=True, slots=True)
class Plan:
    """The complete account of a rewrite, made before anything is changed.

    Attributes:
        decisions: one for each trainable variable of the step, each once.
        problems: why the rewrite would be refused; empty where it would not.
        notes: things that are allowed, but nearly always a mistake or a surprise.
        graph: the step that it is for; None where it is for several.
        fuse: whether XLA compiles the optimizer's arithmetic of the decayed variables together with their decay.
        parts: where it is for several traces or graphs, the plan of each; else empty.
        rules: the rules of the policy, in order.
        trial: makes the bodies that a rewrite by the plan gives; None where no writer is known.
    """

    decisions: tuple[Decision, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    graph: Graph | None = field(default=None, repr=False, compare=False)
    fuse: bool = False
    parts: tuple[Plan, ...] = field(default=(), repr=False, compare=False)
    rules: tuple[Rule, ...] = field(default=(), repr=False, compare=False)
    trial: Callable[[Plan], Trial] | None = field(default=None, repr=False, compare=False)

    @property
    def injections(self) -> tuple[Injection, ...]:
        """Every place where decay goes."""
        return tuple(injection for decision in self.decisions for injection in decision.injections)

    def watched(self) -> Plan:
        """The same plan, in which every decay tells what it takes."""
        decisions = (
            replace(decision, injections=tuple(map(watched, decision.injections))) for decision in self.decisions
        )
        return replace(self, decisions=tuple(decisions))

    def check(self) -> None:
        """Refuses a plan with problems.

        Raises:
            PlanError: the plan has problems; the message lists all of them.
        """
        if self.problems:
            raise PlanError("\n".join(self.problems))

    def record(self, *, purposes: bool = True) -> dict[str, Any]:
        """The plan as plain values, with the keys that ``graphwd help plan`` documents.

        Args:
            purposes: whether it says what variables are used for, which takes a further walk through the step.
        """
        return {
            "version": 1,
            "fuse": "xla" if self.fuse else "none",
            "steps": [part._counts() for part in self.parts or (self,)],
            "variables": [_record(decision, purposes=purposes) for decision in self.decisions],
            "problems": list(self.problems),
            "notes": list(self.notes),
            "rewritten": [],
        }

    def _counts(self) -> dict[str, int]:
        """How many variables the step has, and how many of them are decayed; those of replicas count once."""
        decayed: dict[object, bool] = {}
        for decision in self.decisions:
            variable = decision.variable
            same = variable.shown, variable.path, variable.shape, variable.dtype
            decayed[same] = decayed.get(same, False) or bool(decision.injections)
        return {"variables": len(decayed), "decayed": sum(decayed.values())}

    def to_html(self, record: Mapping[str, Any] | None = None) -> str:
        """The plan as a page of its own, which loads nothing; it takes a trial rewrite, for what that injects.

        Args:
            record: what `record` returns, where something is added to it; None for that itself.
        """
        # Only those who ask for a page wait for the libraries that make it.
        from graphwd.planning.page import plan_as_html

        return plan_as_html(self, self.record() if record is None else record)

    def _repr_html_(self) -> str:
        """The page in a frame, as a notebook shows it."""
        from graphwd.planning.page import framed

        return framed(self.to_html())

    def __repr__(self) -> str:
        """In a few words; `str` is the whole."""
        counts = {"decisions": self.decisions, "problems": self.problems, "notes": self.notes}
        return f"<Plan: {', '.join(f'{len(what)} {name}' for name, what in counts.items())}; print it for the table>"

    def to_text(self, *, all: bool = False, verbose: bool = False, width: int | None = None) -> str:
        """The plan for a terminal, by rule, as ``graphwd plan`` prints it.

        Args:
            all: whether every variable has a line; else those that differ in the numbers of their names are folded.
            verbose: whether every variable has its updates and decays below its line.
            width: columns to fit into; None for those of the terminal. Where there is none, a folded plan has 100, and
                the others have lines as long as they need.
        """
        return as_table(self.record(), detail_of(all=all, verbose=verbose), width)

    def __str__(self) -> str:
        """The plan for a terminal, folded; `to_text` is more."""
        return self.to_text()


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
        *_step_problems(analysis, decisions),
        *_counter_problems(decisions),
        *_rate_problems(decisions),
        *_grouped((decision, reason) for decision, reason in decided if reason),
        *(_policy_problems(decisions, subjects, policy) if decisions else ()),
    ]
    notes = [*policy.notes, *_notes(decisions, subjects, policy, flows), *_step_notes(analysis)]
    return Plan(decisions, tuple(problems), tuple(notes), analysis.graph, policy.fuse, rules=policy.rules)


def _step_notes(analysis: Analysis) -> Iterator[str]:
    for site in analysis.python_calls:
        yield f"{site} ({site.op}) gets a gradient; what Python code writes is not in the graph, and not decayed"
    for variable, site in analysis.untrained:
        yield f"'{variable.shown}' is not trainable, but {site} ({site.op}) updates it from a gradient; not decayed"


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


def _record(decision: Decision, *, purposes: bool) -> dict[str, Any]:
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


def _step_problems(analysis: Analysis, decisions: Sequence[Decision]) -> Iterator[str]:
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


def _counter_problems(decisions: Sequence[Decision]) -> Iterator[str]:
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


def _rate_problems(decisions: Sequence[Decision]) -> Iterator[str]:
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


def _policy_problems(decisions: Sequence[Decision], subjects: Sequence[Subject], policy: Policy) -> Iterator[str]:
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


def _notes(
    decisions: Sequence[Decision], subjects: Sequence[Subject], policy: Policy, flows: Flows | None
) -> Iterator[str]:
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
    yield from _grouped(
        (decision, note)
        for decision in decisions
        if decision.outcome is Outcome.DECAY and flows is not None
        for note in (*_content_notes(decision, flows), *_place_notes(decision), *_gate_notes(decision, flows))
    )
    yield from _grouped(
        (decision, "not decayed: the step never updates it")
        if not decision.writes.writes
        else (decision, "not decayed: the step writes it, but not from a gradient ('not_updated: leave')")
        for decision in decisions
        if decision.outcome is Outcome.NO_UPDATE
    )
    yield from _grouped(
        (decision, f"its rule says 0, but the step itself decays it, at {decision.writes.native_decays[0].site}")
        for decision in decisions
        if decision.outcome is Outcome.EXEMPT and decision.writes.native_decays
    )
    yield from _grouped(
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


def _grouped(reasons: Iterable[tuple[Decision, str]]) -> Iterator[str]:
    """One line for all variables that share a rule and a reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for decision, reason in reasons:
        where = decision.rule.where if decision.rule else ""
        names.setdefault((where, reason), []).append(decision.variable.shown)
    for (where, reason), together in names.items():
        yield f"{where}: {listed(together)}: {reason}"
