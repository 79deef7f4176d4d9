"""Decides where the decay of one variable goes, and refuses where that cannot be known or done."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from graphwd.analysis.counters import Counter, home
from graphwd.analysis.direct_terms import terms_after
from graphwd.analysis.flow import Flow
from graphwd.analysis.flows import Flows
from graphwd.analysis.gradient_entry import Entry, find_entry, named_entry
from graphwd.analysis.learning_rate import find_learning_rate
from graphwd.analysis.readiness import Readiness, ahead_of_arithmetic, find_readiness, refuse_forward_reads, when_ready
from graphwd.analysis.sites import STRONG, Evidence, Site, Write
from graphwd.analysis.updates import Update, VariableWrites, group_writes, is_whole, may_continue
from graphwd.decay.arithmetic import wide
from graphwd.decay.formulas import l2
from graphwd.decay.rounding import ROUNDING
from graphwd.decay.schedules import Schedule
from graphwd.errors import RewriteError, UnclearError
from graphwd.graph.edge import EdgeText, Use, data_input, node_of
from graphwd.graph.graph import DTYPE_NUMBERS, Variable, on_server
from graphwd.graph.ops import Form
from graphwd.messages import listed
from graphwd.planning.injections import (
    EPSILON,
    After,
    Before,
    EarlyRead,
    Factor,
    InGradient,
    Injection,
    InValue,
    Own,
    OwnKind,
    Rate,
    Scheduled,
    own_rate,
)
from graphwd.policy.globs import glob_matches
from graphwd.policy.rules import Mode, Order, Rule, Semantics, Sparse, Updates
from graphwd.policy.schedule import ScheduleChoice


class RefusedError(Exception):
    """Why a variable cannot be decayed as asked; reported once for all variables of a rule with the same reason."""


def place_decay(
    rule: Rule,
    writes: VariableWrites,
    flows: Flows,
    *,
    leaves: bool = False,
    several_writers: bool = False,
    counters: Sequence[Counter] = (),
) -> tuple[Injection, ...]:
    """Decides where the decay of a variable goes.

    Args:
        rule: the rule that decides it; its rate is not 0.
        writes: all that the step does to the variable, which it writes.
        flows: the flow of data in the bodies of the updates.
        counters: the variables in which the step counts; needed for a schedule.
        leaves: whether the policy leaves alone variables whose writes are certainly no updates.
        several_writers: whether the policy says that several threads or sessions write the variable at once.

    Returns:
        One injection for each update that carries the decay.

    Raises:
        RefusedError: the place is not known or not supported; the message says what to write instead.
    """
    try:
        updates = _certain_updates(rule, writes, leaves=leaves)
        _check_supported(rule, writes, updates)
        every = [write.site for update in updates for write in update.writes]
        injections = [_injection(rule, update, writes, flows, every) for update in _choose(rule, updates)]
        injections = [_with_others(injection, flows, several_writers=several_writers) for injection in injections]
        _refuse_shared(rule, injections)
        _refuse_rows(rule, injections)
        _check_own(rule, injections)
        sites = [injection.site for injection in injections]
        counting = [counter for counter in counters if counter.counts(sites, flows)]
        injections = [_with_schedule(_with_initial(injection), rule, counting) for injection in injections]
        return tuple(_with_rounding(injection, counting) for injection in injections)
    except UnclearError as reason:
        raise RefusedError(str(reason)) from None
    except RecursionError:  # some hundred operations deep, which no optimizer is known to be
        raise RefusedError(
            "its update computes so much, each from the last, that graphwd cannot follow where the gradient and the "
            "learning rate enter it; write 'semantics: decoupled', which needs neither"
        ) from None


def chosen_updates(rule: Rule, writes: VariableWrites) -> Sequence[Update]:
    """The updates of a variable, as far as they are known: those found, or those that the rule names.

    Args:
        rule: the rule that decides the variable.
        writes: all that the step does to it.

    Returns:
        Its updates; none where no write is certain to be one.
    """
    if rule.update is None:
        return writes.updates or (writes.guesses if rule.updates is not Updates.ONE else ())
    named = [write for write in _in_order(writes) if _is_named(write, rule.update)]
    return group_writes(writes.variable, named, apart=rule.updates is not Updates.ONE)


def _in_order(writes: VariableWrites) -> Sequence[Write]:
    """Every write of a variable, in program order."""
    return sorted(writes.writes, key=lambda write: write.number)


def _is_named(write: Write, pattern: str) -> bool:
    return glob_matches(str(write.site), pattern) or glob_matches(write.site.node, pattern)


def _certain_updates(rule: Rule, writes: VariableWrites, *, leaves: bool) -> Sequence[Update]:
    """The updates of a variable that is written; refuses where it is not certain that the writes are updates."""
    updates = chosen_updates(rule, writes)
    unsure = writes.updates and writes.guesses and rule.update is None
    if updates and not unsure:
        if rule.update is None:
            _refuse_uncounted(rule, updates)
        return updates
    places = "".join(
        f"\n  {write.site} ({write.site.op}){': ' if write.site in writes.reasons else ''}"
        f"{writes.reasons.get(write.site, '')}"
        for write in _in_order(writes)
    )
    if rule.update is not None:
        raise RefusedError(f"'update: {rule.update}' names none of its writes, which are:{places}")
    if unsure:
        raise RefusedError(
            "updated from a gradient, and written from the step's data besides, which may be an update or not; write "
            f"'update: GLOB' with what is its update:{places}"
        )
    if writes.guesses:
        raise RefusedError(
            "written from the step's data, while other variables are updated from gradients; if it is a statistic, "
            "write 'weight_decay: 0' for it, or make it not trainable; if it is an update, write 'update: GLOB' with "
            f"one of these, or 'updates: each':{places}"
        )
    leave = "'not_updated: leave'"
    others = f" ({leave} is for what is certainly none)" if leaves else f", or {leave} for the whole policy"
    raise RefusedError(
        "the step writes it, but no write is seen to come from a gradient and to add to it; if one is its update, "
        "write 'update: GLOB' with it; if none is, as for an average, a slot variable or a target network, write "
        f"'weight_decay: 0' for it{others}:{places}"
    )


def _refuse_uncounted(rule: Rule, updates: Sequence[Update]) -> None:
    """Refuses writes that may be one update or several.

    Those are writes that come from the step's data, where nothing says what is a gradient, and writes from one gradient
    that lie in different functions.
    """
    uncounted = [update for update in updates if len(update.writes) > 1 and update.evidence is Evidence.DATA_PATH]
    if rule.updates is not Updates.ONE:
        uncounted += [u for i, u in enumerate(updates) if any(may_continue(v, u) for v in updates[:i])]
    if uncounted:
        places = "".join(f"\n  {write.site} ({write.site.op})" for update in updates for write in update.writes)
        raise RefusedError(
            "the step writes it several times, and it cannot be told whether that is one update or several; write "
            "'update: GLOB' with the writes that make one, or that and 'updates: each' with the last write of "
            f"each:{places}"
        )


def _check_supported(rule: Rule, writes: VariableWrites, updates: Sequence[Update]) -> None:
    dtype = writes.variable.dtype
    partial = any(write.op.partial for update in updates for write in update.writes)
    if partial and rule.semantics.mode is Mode.COUPLED:
        raise RefusedError(
            f"its update ({updates[0].site.op}) writes elements or a slice, whose gradient a coupled decay cannot be "
            "added to; write a decoupled 'semantics' and 'sparse: all'"
        )
    if partial and rule.sparse is Sparse.TOUCHED:
        raise RefusedError(
            f"its update ({updates[0].site.op}) writes elements or a slice, not rows; write 'sparse: all' to decay the "
            "whole variable"
        )
    plain = rule.semantics == Semantics()
    whole = all(len(update.writes) == 1 and update.writes[0].op.form is Form.APPLY for update in updates)
    if writes.variable.reference and not plain and not whole:
        raise RefusedError(
            f"a v1 reference variable, updated by plain arithmetic ({updates[0].site.op}), which can be decayed by "
            "'semantics: decoupled' only"
        )
    if dtype not in EPSILON:
        raise RefusedError(
            f"the dtype {dtype} cannot be decayed ({', '.join(EPSILON)} can); write 'weight_decay: 0' for it"
        )
    updating = {write.site for update in updates for write in update.writes}
    native = [write for write in writes.native_decays if write.site not in updating]
    if native and not rule.allow_double_decay:
        places = ", ".join(f"{write.site} ({write.site.op})" for write in native)
        raise RefusedError(
            f"the step already decays it, at {places}; take that out (Keras's Adam in place of AdamW; no weight_decay= "
            "of other optimizers), write 'weight_decay: 0' for it, or, where both are meant or that is a mask, as in "
            "pruning, and no decay, write 'double_decay: allow'"
        )


def _choose(rule: Rule, updates: Sequence[Update]) -> Sequence[Update]:
    """The updates that carry the decay: all of them, if a run performs at most one."""
    match rule.updates:
        case Updates.EACH:
            return updates
        case Updates.LAST:
            return [u for i, u in enumerate(updates) if all(u.site.excludes(v.site) for v in updates[i + 1 :])]
        case Updates.FIRST:
            return [u for i, u in enumerate(updates) if all(u.site.excludes(v.site) for v in updates[:i])]
        case Updates.ONE:
            if all(u.site.excludes(v.site) for i, u in enumerate(updates) for v in updates[:i]):
                return updates
            places = "".join(f"\n  {update.site} ({update.site.op})" for update in updates)
            raise RefusedError(
                f"updated {len(updates)} times in one step, so where the decay belongs is ambiguous; write "
                f"'updates: each', 'last' or 'first' in the rule:{places}"
            )


def _injection(rule: Rule, update: Update, writes: VariableWrites, flows: Flows, every: Sequence[Site]) -> Injection:
    """The injection of a rule at one update; ``every`` lists the writes of all updates of the variable."""
    meaning = rule.semantics
    names = [write.site.node for write in update.writes]
    others = [site.node for site in every if site.path == update.site.path and site.node not in names]
    flow = flows.at(update.site.path).of_update(names[0], others)
    if meaning.mode is Mode.COUPLED:
        return _coupled(rule, update, writes, flow, names)
    rate = _rate(rule, flow, names)
    formula = rule.formula.resolved()
    if formula.of_update and not (meaning.order is Order.BEFORE and update.writes[0].op.form is Form.ASSIGN):
        return _after_remembering(rule, update, flows, rate)
    if meaning.order is Order.AFTER:
        rows = _rows_only(update.writes[-1], rule)
        return After(update.variable, update.site, rate, rows=rows, formula=formula)
    return _before(rule, update, writes, flows, rate)


def _rate(rule: Rule, flow: Flow, names: Sequence[str]) -> Rate:
    """The rate of a decoupled decay, multiplied out where it is a constant."""
    scale, unscaled = rule.semantics.scale, _unscaled(rule)
    if not scale.power:
        return unscaled
    unscaled = 1 / (rule.peak_learning_rate or 1.0) * unscaled
    learning_rate = find_learning_rate(flow, names, rule.learning_rate)
    # Keras reads it anew for each variable. From one read, what follows from it is computed once for all of them.
    learning_rate = replace(learning_rate, tensor=flow.first_read(learning_rate.tensor))
    if learning_rate.number is None:
        return replace(unscaled, learning_rate=learning_rate, power=scale.power)
    scaled = unscaled.number * learning_rate.number**scale.power
    constant = unscaled.is_constant and rule.schedule is None
    if not scaled < 1 and constant and rule.formula.resolved().shrinks:  # a NaN is not, either
        raise RefusedError(
            f"its learning rate is {learning_rate.name}, and weight_decay times that must be below 1, got {scaled:g}"
        )
    return replace(unscaled, number=scaled)


def _unscaled(rule: Rule) -> Rate:
    """The rate before the learning rate is counted in."""
    if rule.tunable is None:
        return Rate(rule.weight_decay)
    shown = f"{rule.weight_decay:g} ({rule.tunable})"
    return Rate(1.0, factors=(Factor(shown, "float64", own_rate(rule.tunable)),))


def _with_initial(injection: Injection) -> Injection:
    """With the first weight, where the formula asks for it."""
    if "initial" not in injection.formula.takes:
        return injection
    variable = injection.variable
    own = Own(f"the first weight of '{variable.shown}'", "resource", kind=OwnKind.INITIAL, key=variable.key)
    return replace(injection, initial=own)


def _with_schedule(injection: Injection, rule: Rule, counters: Sequence[Counter]) -> Injection:
    """With the rate of the rule's schedule as one more factor."""
    if rule.schedule is None:
        return injection
    factor = _given(rule.schedule) if rule.schedule.identity else _scheduled(injection, rule, rule.schedule, counters)
    rate = injection.rate
    return replace(injection, rate=replace(rate, factors=(factor, *rate.factors)))


def _given(schedule: ScheduleChoice) -> Factor:
    """The user's own variable as a factor."""
    dtype = schedule.variable.dtype
    own = Own(schedule.name, "resource", kind=OwnKind.GIVEN, key=schedule.identity)
    return Factor(schedule.name, str(getattr(dtype, "name", dtype)), own)


def _scheduled(injection: Injection, rule: Rule, choice: ScheduleChoice, counters: Sequence[Counter]) -> Factor:
    """The rate of a schedule, by what counts the updates of a variable: the one counter that does, else one made."""
    schedule, site, counting = choice.resolved(), injection.site, counters
    if rule.step is not None:
        counting = [counter for counter in counters if glob_matches(counter.variable.name, rule.step)]
        if len(counting) != 1:
            names = listed(counter.variable.shown for counter in counters) or "none"
            raise RefusedError(
                f"'step: {rule.step}' names {'several' if counting else 'none'} of the variables that count up by one "
                f"whenever its update is done ({names}); name one of these, or leave 'step' out for a counter of "
                "graphwd's own"
            )
    text = str(schedule)
    if len(counting) == 1:
        return Factor(text, "float64", _by_counter(schedule, counting[0], site))
    own = Own("the counter of updates", "resource", kind=OwnKind.STEPS)
    return Factor(text, "float64", Scheduled(text, "float64", home(site.path), schedule=schedule, own=own))


def _by_counter(schedule: Schedule, counter: Counter, site: Site) -> Scheduled:
    """What a schedule gives at an update, by a counter of the step that counts it."""
    variable, counted = counter.variable, counter.site_for(site)
    assert counted is not None
    return Scheduled(
        str(schedule),
        "float64",
        counted.path,
        schedule=schedule,
        write=counted.node,
        counter_dtype=variable.dtype,
        reference=variable.reference,
        variable=variable.id,
        counter=f"'{variable.shown}'",
    )


def _with_others(injection: Injection, flows: Flows, *, several_writers: bool) -> Injection:
    """With the word that others write the variable at the same time.

    Not in what XLA compiles: TensorFlow locks the variables of that as long as it runs.
    """
    site = injection.site
    served = injection.variable.on_server or on_server(flows.at(site.path).nodes[site.node].proto.device)
    shared = served or (several_writers and not flows.is_compiled(site.path))
    return replace(injection, shared=True) if shared else injection


def _with_rounding(injection: Injection, counters: Sequence[Counter]) -> Injection:
    """With what rounds the factor 1 - rate, where that is known as the step runs only, and something counts steps."""
    variable, constant = injection.variable, injection.rate.is_constant
    in_place = isinstance(injection, After | Before)
    multiplies = in_place and injection.formula is l2 and not injection.shared
    if constant or not counters or not multiplies or wide(variable.dtype) != "float32":
        return injection
    return replace(injection, rounding=_by_counter(ROUNDING, counters[0], injection.site))


def _check_own(rule: Rule, injections: Sequence[Injection]) -> None:
    """Refuses a formula of the user's own that does not fit the weight."""
    formula = rule.formula.resolved()
    for injection in injections if formula.own else ():
        shape, dtype = injection.variable.shape, injection.variable.dtype
        try:
            formula.check((None, *shape[1:]) if shape and injection.rows else shape, wide(dtype))
        except RewriteError as reason:
            raise RefusedError(str(reason)) from reason


def _refuse_shared(rule: Rule, injections: Sequence[Injection]) -> None:
    """Refuses a formula of what an update subtracts where others write the variable as well."""
    for injection in injections:
        if injection.shared and isinstance(injection, After) and injection.early is not None:
            where = "on a parameter server" if injection.variable.on_server else "one of several writers"
            raise RefusedError(
                f"it is {where}, where the formula {rule.formula.resolved().name} cannot tell what the update "
                "subtracts; write another formula"
            )


def _refuse_rows(rule: Rule, injections: Sequence[Injection]) -> None:
    """Refuses the rows of a sparse update where the formula is of the whole weight."""
    formula = rule.formula.resolved()
    if not formula.by_rows and any(injection.rows for injection in injections):
        raise RefusedError(
            f"its update is sparse, and the formula {formula.name} is of the whole weight, not of the rows that a step "
            "touches; write 'sparse: all', or another formula"
        )


def _after_remembering(rule: Rule, update: Update, flows: Flows, rate: Rate) -> After:
    """A decay by a formula that asks what the update subtracts: the weight is read before it, and again after it.

    Where the update adds to the weight this serves both orders: U applied to w - r·p is U(w) - r·p.
    """
    first, last, variable = update.writes[0], update.writes[-1], update.variable
    formula, before = rule.formula.resolved(), rule.semantics.order is Order.BEFORE
    if before and not (first.op.form in (Form.APPLY, Form.ADD, Form.SUB) and not first.op.proximal):
        raise RefusedError(
            f"its update ({first.site}) does not add to the weight, and the formula {formula.name} is of what an "
            "update adds; write 'order: after'"
        )
    if variable.reference:
        raise RefusedError(
            f"it is a v1 reference variable, of which the formula {formula.name} cannot tell what the update subtracts"
            "; write another formula"
        )
    if (first.op.rows is None) != (last.op.rows is None):
        raise RefusedError(f"its update writes rows and the whole weight; write another formula than {formula.name}")
    name = first.site.node
    early = EarlyRead(name, when_ready(flows.at(first.site.path), name).waits, before)
    return After(variable, update.site, rate, rows=_rows_only(last, rule), formula=formula, early=early)


def _before(rule: Rule, update: Update, writes: VariableWrites, flows: Flows, rate: Rate) -> Before | InValue:
    """A decay ahead of an update: U(w) - c * w where the update adds to the weight, else U(w - c * w).

    In the first form no read has to wait for the decay. So no other node sees the decay, and it does not matter which
    read belongs to the update.
    """
    first, variable = update.writes[0], update.variable
    flow = flows.at(first.site.path)
    names = [write.site.node for write in update.writes]
    rows, formula = _rows_only(first, rule), rule.formula.resolved()
    if first.op.form in (Form.APPLY, Form.ADD, Form.SUB):
        _refuse_reads_between(flow, update)
        readiness = _ahead(flow, names[0], variable, rate)
        return Before(variable, first.site, rate, rows=rows, formula=formula, readiness=readiness)
    terms = terms_after(flow, first)
    if is_whole(terms) and not first.op.partial and (first.op.rows is None or rows):
        _refuse_reads_between(flow, update)
        weight = _weight_of_sum(flow, update, terms.weights, _other_writes(writes, update))
        use = Use(names[0], first.op.value)
        value = data_input(flow.nodes[names[0]].proto, use.position)
        return InValue(variable, first.site, rate, rows=rows, formula=formula, value=value, use=use, weight=weight)
    if formula.of_update:
        raise RefusedError(
            f"its update ({first.site}) overwrites the weight, and not with a sum of it and something, and the formula "
            f"{formula.name} is of what an update adds; write 'order: after'"
        )
    return _before_by_reading(rule, update, writes, flow, rate)


def _before_by_reading(rule: Rule, update: Update, writes: VariableWrites, flow: Flow, rate: Rate) -> Before:
    """A decay ahead of an update that overwrites the weight: the update reads the decayed weight."""
    first, names = update.writes[0], [write.site.node for write in update.writes]
    advice = "write 'order: after'"
    if first.evidence not in STRONG:
        raise RefusedError(
            f"its update ({first.site}) overwrites the weight, and not with a sum of it and something, so it cannot be "
            f"told which reads of it belong to the gradient; {advice}"
        )
    refuse_forward_reads(flow, update.variable, names)
    readiness = find_readiness(flow, update.variable, names, _other_writes(writes, update))
    if first.op.form is Form.ASSIGN and not readiness.rereads:
        raise RefusedError(
            f"its update ({first.site}) overwrites the weight without reading it, so a decay before it has no effect; "
            f"{advice}"
        )
    rows, formula = _rows_only(first, rule), rule.formula.resolved()
    return Before(update.variable, first.site, rate, rows=rows, formula=formula, readiness=readiness)


def _ahead(flow: Flow, write: str, variable: Variable, rate: Rate) -> Readiness:
    """When a decay ahead of a write is done: before the arithmetic of the update, where that may wait for it.

    It may not where a worker would wait for a parameter server, nor where a read is no copy: of a v1 reference.
    """
    if variable.reference or variable.on_server:
        return when_ready(flow, write)
    reads = [factor.tensor.edge for factor in rate.factors]
    if rate.learning_rate is not None:
        reads.append(rate.learning_rate.tensor)
    return ahead_of_arithmetic(flow, write, variable, reads)


def _refuse_reads_between(flow: Flow, update: Update) -> None:
    """Refuses an update of several writes if the weight is read between them: the reader would see the decay."""
    first, last, reach = update.writes[0].site.node, update.writes[-1].site.node, flow.reach
    for name, node in flow.nodes.items() if first != last else ():
        if flow.read_by(node) == update.variable and reach.precedes(first, name) and reach.precedes(name, last):
            raise RefusedError(
                f"its update takes several writes, and '{name}' reads the weight between '{first}' and '{last}', so it "
                "would see a decay before the update; write 'order: after'"
            )


def _weight_of_sum(flow: Flow, update: Update, weights: Sequence[EdgeText], others: Sequence[str]) -> EdgeText:
    """The tensor of the weight in a sum that is written, of the weight's own dtype."""
    first = update.writes[0].site.node
    for name in others if len(weights) > 1 else ():
        if any(flow.reach.precedes(node_of(read), name) for read in weights) and flow.reach.precedes(name, first):
            raise RefusedError(
                f"its update starts from what the weight was before and after '{name}' wrote it; write 'order: after'"
            )
    if flow.dtype(weights[0]) != DTYPE_NUMBERS.get(update.variable.dtype):
        raise RefusedError("its update reads the weight outside the function that makes it; write 'order: after'")
    return weights[0]


def _other_writes(writes: VariableWrites, update: Update) -> list[str]:
    """The nodes of an update's body that write the variable apart from the update, directly or in a called function."""
    path = update.site.path
    every = [*writes.others, *writes.native_decays]
    every += [write for other in (*writes.updates, *writes.guesses) if other is not update for write in other.writes]
    nodes = [
        [frame.node for frame in write.site.path] + [write.site.node]
        for write in every
        if write.site.path[: len(path)] == path
    ]
    return [names[len(path)] for names in nodes]


def _entry(update: Update, flow: Flow, names: Sequence[str], asked: str | None) -> Entry:
    """The entry of the gradient; the learning rate is not needed where the gradient is only summed before."""
    try:
        learning_rate = find_learning_rate(flow, names, asked, exact=False)
    except UnclearError as reason:
        if asked is None:
            with contextlib.suppress(UnclearError):
                return find_entry(flow, update.variable, names, None)
        raise reason
    return find_entry(flow, update.variable, names, learning_rate)


def _coupled(rule: Rule, update: Update, writes: VariableWrites, flow: Flow, names: Sequence[str]) -> InGradient:
    first = update.writes[0]
    if rule.gradient is not None:
        entry = named_entry(flow, update.variable, names, rule.gradient)
    elif len(names) == 1 and first.op.form is Form.APPLY:
        entry = find_entry(flow, update.variable, names, None)
    elif first.evidence not in STRONG:
        raise RefusedError(
            "it cannot be told where its gradient ends and the optimizer begins, since no name says so; write "
            f"'gradient: GLOB' with the node that makes the gradient, as the optimizer gets it, in the body of "
            f"{update.site}"
        )
    else:
        try:
            refuse_forward_reads(flow, update.variable, names)
            entry = _entry(update, flow, names, rule.learning_rate)
        except UnclearError as reason:
            raise RefusedError(
                f"{reason}; or write 'gradient: GLOB' with the node that makes the gradient, as the optimizer gets it"
            ) from None
    if entry.indices is not None and rule.sparse is Sparse.ALL:
        raise RefusedError(
            "its gradient is sparse and holds the rows it touches only, so a coupled decay cannot reach the others; "
            "write 'sparse: touched', or a decoupled 'semantics'"
        )
    if entry.indices is not None and (update.variable.shape is None or None in update.variable.shape):
        raise RefusedError("its gradient is sparse and its shape is not known, so a coupled decay cannot be added")
    sparse = entry.indices is not None
    weight = None if sparse else _weight_before(flow, update, entry, _other_writes(writes, update))
    rate, formula = _unscaled(rule), rule.formula.resolved()
    return InGradient(update.variable, first.site, rate, rows=sparse, formula=formula, entry=entry, weight=weight)


def _weight_before(flow: Flow, update: Update, entry: Entry, others: Sequence[str]) -> EdgeText | None:
    """The weight that the update takes, where it was read before another write of the step; else None."""
    first = update.writes[0]
    if first.op.form is not Form.ASSIGN or not others:
        return None
    terms, reach = terms_after(flow, first), flow.reach
    older = [
        name
        for name in others
        if any(reach.precedes(node_of(read), name) for read in terms.weights) and reach.precedes(name, first.site.node)
    ]
    if not older:
        return None
    weight = _weight_of_sum(flow, update, terms.weights, others) if is_whole(terms) else None
    if weight is None or any(reach.precedes(use.node, node_of(weight)) for use in entry.uses):
        raise RefusedError(
            f"its update starts from what the weight was before '{older[0]}' wrote it, and it cannot be told what the "
            "weight is that the gradient is of; write a decoupled 'semantics'"
        )
    return weight


def _rows_only(write: Write, rule: Rule) -> bool:
    return write.op.rows is not None and rule.sparse is Sparse.TOUCHED
