"""Finds where each trainable variable is updated.

An update is a write to a trainable variable whose value comes from a gradient, as the abstract interpretation of the
step sees it, and that adds to the variable: so constraints, overwrites, averages, slot variables, decay that is already
there, and checkpoint restore are writes, not updates.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from graphwd.analysis.direct_terms import DirectTerms, terms_after
from graphwd.analysis.direction import direction
from graphwd.analysis.flows import Flows
from graphwd.analysis.interpreter import BodyValues, Interpreter
from graphwd.analysis.sites import SAVED_MODEL, STRONG, Evidence, Path, Site, Write
from graphwd.analysis.values import MANY, NO_VARIABLE
from graphwd.graph.graph import Graph, Variable
from graphwd.graph.ops import Form

_MAX_ROUNDS = 4
"""How often variables may turn out to be slot variables of variables that are themselves found late."""


@dataclass(frozen=True, slots=True)
class Update:
    """One update of one variable; it may take several writes.

    Attributes:
        variable: the variable.
        writes: its writes, in program order; decay goes after the last.
    """

    variable: Variable
    writes: tuple[Write, ...]

    @property
    def site(self) -> Site:
        """Where the update is complete."""
        return self.writes[-1].site

    @property
    def evidence(self) -> Evidence:
        """What makes it an update."""
        return self.writes[0].evidence or Evidence.NAMED


@dataclass(frozen=True, slots=True)
class VariableWrites:
    """All that the step does to one trainable variable.

    Attributes:
        variable: the variable.
        updates: its updates, in program order.
        native_decays: writes that already decay it.
        others: every other write.
        used_by: op types that read it.
        guesses: what looks like an update by the step's data alone, where the step, or the variable, has updates from
            gradients.
        reasons: for writes that come from a gradient or from data and are no updates, why not.
        is_slot: whether it is certainly a slot variable of another.
    """

    variable: Variable
    updates: tuple[Update, ...]
    native_decays: tuple[Write, ...]
    others: tuple[Write, ...]
    used_by: frozenset[str]
    guesses: tuple[Update, ...] = ()
    reasons: Mapping[Site, str] = field(default_factory=dict[Site, str])
    is_slot: bool = False

    def __repr__(self) -> str:
        """In a few words: what leads to a write has no bound."""
        counts = {"updates": self.updates, "native decays": self.native_decays, "others": self.others}
        return f"<VariableWrites {self.variable.name!r}: {', '.join(f'{len(w)} {name}' for name, w in counts.items())}>"

    @property
    def writes(self) -> tuple[Write, ...]:
        """Every write."""
        updating = (write for update in (*self.updates, *self.guesses) for write in update.writes)
        return (*updating, *self.native_decays, *self.others)


@dataclass(frozen=True, slots=True)
class Analysis:
    """The writes of a step to every trainable variable.

    Attributes:
        variables: one account for each trainable variable, in the order of their numbers.
        unresolved: writes to a variable that is not known.
        opaque: variables that reach a function that writes variables and that graphwd does not follow, with the site.
        python_calls: calls of Python code that get a gradient: what they write is not in the graph.
        graph: the step; None for an account made by hand.
        values: what is known of the tensors of each body that writes a variable, by the calls that lead to it.
        untrained: variables that are not trainable and yet updated from a gradient, with the site.
        integer_writes: for every variable that is one integer and is written: that, and where.
    """

    variables: tuple[VariableWrites, ...]
    unresolved: tuple[Site, ...]
    opaque: tuple[tuple[Variable, Site], ...]
    python_calls: tuple[Site, ...] = ()
    graph: Graph | None = None
    values: Mapping[Path, BodyValues] = field(default_factory=dict[Path, BodyValues])
    untrained: tuple[tuple[Variable, Site], ...] = ()
    integer_writes: tuple[tuple[Variable, tuple[Site, ...]], ...] = ()

    def __repr__(self) -> str:
        """In a few words."""
        return f"<Analysis of {len(self.variables)} variables>"


def find_updates(graph: Graph) -> Analysis:
    """Finds every update of every trainable variable.

    Args:
        graph: the step.

    Returns:
        The account of every trainable variable.

    Raises:
        GraphError: the graph cannot be followed: a dangling edge, a missing or recursive function.
    """
    slots: dict[int, VariableWrites] = {}
    analysis = _analyse(graph, slots)
    for _ in range(_MAX_ROUNDS - 1):
        new_slots = _slots(analysis)
        if not new_slots.keys() - slots.keys():
            break
        slots |= new_slots
        analysis = _analyse(graph.with_slots(slots.keys()), slots)
    return analysis


def _analyse(graph: Graph, slots: Mapping[int, VariableWrites]) -> Analysis:
    run = Interpreter(graph, told_apart=False).run()
    values = run.seen
    if any(len(_update_writes(writes)) > 1 for writes in run.writes_by_variable().values()):
        # Which writes belong to one gradient matters only now, and telling gradients apart costs memory.
        run = Interpreter(graph, told_apart=True).run()
    writes = run.writes_by_variable()
    flows = Flows(graph, values)
    has_gradients = any(write.evidence in STRONG for group in writes.values() for write in group)
    accounts: list[VariableWrites] = []
    for variable in graph.variables:
        if variable.id in slots:
            accounts.append(slots[variable.id])
        # A handle that is only passed on, such as the token that orders collective ops, belongs to no weight.
        elif variable.trainable and (variable.id in writes or variable.id in run.read or variable in run.passed_on()):
            used_by = frozenset(run.used_by.get(variable.id, ()))
            accounts.append(_account(variable, writes.get(variable.id, []), used_by, has_gradients, flows))
    return Analysis(
        tuple(accounts),
        tuple(run.unresolved),
        tuple(run.opaque.values()),
        tuple(run.python_calls),
        graph,
        values,
        tuple(_untrained(run, flows, accounts)),
        tuple((graph.variables[number], tuple(sites)) for number, sites in run.integer_writes.items()),
    )


def _untrained(run: Interpreter, flows: Flows, accounts: Sequence[VariableWrites]) -> Iterator[tuple[Variable, Site]]:
    """The variables that are updated from a gradient, not trainable, and read by no update of a trainable variable."""
    if not run.untrained:
        return
    writes = [write for account in accounts for update in account.updates for write in update.writes]
    slots = {number for write in writes if write.site.path in run.seen for number in flows.reads(write)}
    trained = {account.variable.id for account in accounts}  # slots that are trainable by oversight among them
    for variable, site in run.untrained.values():
        if variable.id not in slots | trained:
            yield variable, site


def _account(
    variable: Variable, writes: list[Write], used_by: frozenset[str], has_gradients: bool, flows: Flows
) -> VariableWrites:
    reasons = {
        write.site: reason for write in writes if write.evidence is not None and (reason := _reason(write, flows))
    }
    updating = _update_writes([write for write in writes if write.site not in reasons])
    decays = tuple(write for write in writes if write.is_native_decay and not _is_nothing(write, flows))
    others = tuple(write for write in writes if write not in updating and write not in decays)
    updates = group_writes(variable, updating)
    # Beside an update, another write that comes from data or a gradient may be an update, too.
    unsure = [write for write in others if write.evidence is not None and not _is_helper(write, updating)]
    unsure = unsure if updates else []
    if unsure:
        others = tuple(write for write in others if write not in unsure)
        return VariableWrites(variable, updates, decays, others, used_by, group_writes(variable, unsure), reasons)
    if has_gradients and updates and updates[0].evidence is Evidence.DATA_PATH:
        return VariableWrites(variable, (), decays, others, used_by, updates, reasons)
    return VariableWrites(variable, updates, decays, others, used_by, (), reasons)


def _is_helper(write: Write, updating: Iterable[Write]) -> bool:
    """Whether a write lies in a function of a SavedModel that has no update of the variable from a gradient.

    Such a helper applies an update that its caller computes, and is saved as a function of its own, too.
    """
    path = write.site.path
    return bool(path) and path[0].node == SAVED_MODEL and all(other.site.path[0] != path[0] for other in updating)


def _reason(write: Write, flows: Flows) -> str:
    """Why a write that comes from a gradient, or from data, is no update; no text where it is one."""
    if write.op.form in (Form.APPLY, Form.OTHER) or _only_adds(write):
        return ""
    flow = flows.at(write.site.path)
    terms = terms_after(flow, write)
    if terms.coefficient == 0:
        copied = write.value.source not in (write.variable.id, NO_VARIABLE, MANY) or terms.of_others
        return "it is a copy, or a function, of what another variable is given" if copied else ""
    if is_whole(terms) or terms.coefficient > 1:
        return ""
    if terms.of_others or _reads_other(write, flows):
        return "it keeps a part of itself and takes a part of another variable, as an average does"
    if write.evidence is Evidence.DATA_PATH:
        return "it keeps a part of itself, as a statistic or a slot variable does, or is decayed already"
    if direction(flow, write) > 0:
        return "it keeps a part of itself and grows with a gradient, as a slot variable or a statistic does"
    return ""


def _reads_other(write: Write, flows: Flows) -> bool:
    """Whether the arithmetic behind a write reads a trainable variable other than the one it writes."""
    flow = flows.at(write.site.path)
    read = flows.reads(write) - {write.variable.id}
    return MANY in read or any(flow.variables[number].trainable for number in read)


def _only_adds(write: Write) -> bool:
    """Whether a write adds something that depends on trainable variables at most by way of a gradient."""
    return write.op.form in (Form.ADD, Form.SUB) and write.value.source == NO_VARIABLE


def is_whole(terms: DirectTerms) -> bool:
    """Whether the written value is the weight, once, plus something."""
    return terms.coefficient == 1


def _is_nothing(write: Write, flows: Flows) -> bool:
    """Whether a native decay is by a rate of 0."""
    terms = terms_after(flows.at(write.site.path), write)
    return is_whole(terms) and bool(terms.weights)


def depends_on_itself(write: Write, flows: Flows) -> bool:
    """Whether the written value depends on the variable's old content, directly or by way of a slot variable."""
    if write.value.source in (write.variable.id, MANY):
        return True
    return bool(flows.reads(write) & {write.variable.id, MANY})


def added_besides(account: VariableWrites, flows: Flows) -> Write | None:
    """A write that adds something to a variable, for no known purpose, and is no update of it."""
    for write in account.others:
        if write.site not in account.reasons and write.op.form is not Form.OTHER:
            terms = terms_after(flows.at(write.site.path), write)
            if is_whole(terms) and write.op.form is not Form.ASSIGN:
                return write
    return None


def is_no_weight(account: VariableWrites, flows: Flows) -> bool:
    """Whether it is certain that none of the writes of a variable is an update.

    A write that comes from a gradient or from data may be one, even if it keeps only a part of the variable: without
    the names of scopes, a decayed update looks like an average of values that depend on other variables.
    """
    if account.updates or account.guesses or account.is_slot:
        return account.is_slot

    def is_none(write: Write) -> bool:
        if write.op.form is Form.OTHER:
            return True
        if write.site.path not in flows:
            return False
        terms = terms_after(flows.at(write.site.path), write)
        return not terms.rest if write.site in account.reasons else not is_whole(terms)

    return all(map(is_none, account.others))


def keeps_a_part(write: Write, flows: Flows) -> bool:
    """Whether a write scales the variable's old content, so that it holds a decay, or is a part of one."""
    if write.op.form in (Form.APPLY, Form.OTHER) or _only_adds(write):
        return False
    coefficient = terms_after(flows.at(write.site.path), write).coefficient
    return coefficient != 0 and not coefficient >= 1  # a NaN is not, either


def _slots(analysis: Analysis) -> dict[int, VariableWrites]:
    """Trainable variables that are slot variables of others, by number, with their accounts as such.

    The updates of other variables read them. A write either keeps a part of their content or does not depend on it.
    """
    graph = analysis.graph
    assert graph is not None
    flows = Flows(graph, analysis.values)
    accounts = {account.variable.id: account for account in analysis.variables}
    readers: dict[int, list[Write]] = {}
    for account in analysis.variables:
        for write in _steps(account, flows):
            if _only_adds(write):
                continue
            for read in flows.reads(write) - {account.variable.id}:
                readers.setdefault(read, []).append(write)
    slots: dict[int, VariableWrites] = {}
    for number, reading in readers.items():
        account = accounts.get(number)
        if account is None or not account.writes or not _may_be_slot(account, flows):
            continue
        variable, used_by = account.variable, account.used_by
        sharing = [write for write in reading if _shares_gradient(account, write, flows)]
        if not sharing:
            continue
        why = f"the update of '{sharing[0].variable.shown}' reads it, as an optimizer reads its slot variables"
        reasons = dict.fromkeys((write.site for write in account.writes), why)
        # Where nothing says what is a gradient, a weight that the gradient of another depends on looks the same.
        told = any(write.evidence in STRONG for write in account.writes)
        certain = told and any(flows.certainly_reads(write, variable) for write in sharing)
        slots[number] = VariableWrites(variable, (), (), account.writes, used_by, (), reasons, is_slot=certain)
    return slots


def _steps(account: VariableWrites, flows: Flows) -> Iterator[Write]:
    """The writes of a variable that add to it: its updates, and writes that may turn out to be updates."""
    for update in (*account.updates, *account.guesses):
        yield from update.writes
    for write in account.others:
        if write.site not in account.reasons and write.op.form is not Form.OTHER:
            terms = terms_after(flows.at(write.site.path), write)
            if is_whole(terms) and write.value.source not in (NO_VARIABLE, account.variable.id):
                yield write


def _may_be_slot(account: VariableWrites, flows: Flows) -> bool:
    """Whether a variable may be a slot variable: every write keeps a part of its content or does not depend on it."""
    updating = [write for update in (*account.updates, *account.guesses) for write in update.writes]
    if any(write.op.form is Form.APPLY for write in updating):
        return False
    if not updating:
        return bool(account.reasons)
    if any(map(functools.partial(_descends, flows), updating)):
        return False
    return all(keeps_a_part(write, flows) or _is_blind(write, flows) for write in updating)


def grows_with_gradient(write: Write, flows: Flows) -> bool:
    """Whether a write adds a gradient to a variable; an update that makes a loss smaller subtracts one."""
    arithmetic = write.evidence is Evidence.GRADIENT_SCOPE and write.op.form is not Form.OTHER
    return arithmetic and direction(flows.at(write.site.path), write) > 0


def _descends(flows: Flows, write: Write) -> bool:
    """Whether a write subtracts a gradient from the variable's content; no slot variable is written so."""
    if write.evidence is not Evidence.GRADIENT_SCOPE or write.op.form is Form.OTHER:
        return False
    flow = flows.at(write.site.path)
    return is_whole(terms_after(flow, write)) and direction(flow, write) < 0


def _shares_gradient(account: VariableWrites, reader: Write, flows: Flows) -> bool:
    """Whether a variable and a write that reads it are computed from a common gradient.

    A weight that takes part in the gradient of another has a gradient of its own. A write without a gradient can have
    one only by way of what it reads.
    """
    if reader.evidence is None:
        return True
    together = [write for write in account.writes if write.site.path == reader.site.path]
    return not together or any(flows.made_of(write) & flows.made_of(reader) for write in together)


def _is_blind(write: Write, flows: Flows) -> bool:
    """Whether a write adds something that does not depend on the variable's content."""
    weights = terms_after(flows.at(write.site.path), write).weights
    return not flows.reads(write, without=weights) & {write.variable.id, MANY}


def _update_writes(writes: Sequence[Write]) -> list[Write]:
    strong = [write for write in writes if write.evidence in STRONG]
    return strong or [write for write in writes if write.evidence is Evidence.DATA_PATH]


def group_writes(variable: Variable, writes: Iterable[Write], *, apart: bool = False) -> tuple[Update, ...]:
    """Groups the writes that together are one update: those with no new gradient between them.

    Args:
        variable: the variable.
        writes: its writes, in program order.
        apart: whether every write that comes from data, where nothing says what is a gradient, is its own update.

    Returns:
        Its updates.
    """
    groups: list[list[Write]] = []
    for write in writes:
        alone = write.op.form is Form.APPLY or (apart and write.evidence not in STRONG)
        previous = None if alone else next((group for group in reversed(groups) if _continues(group[-1], write)), None)
        if previous is None:
            groups.append([write])
        else:
            previous.append(write)
    return tuple(Update(variable, tuple(group)) for group in groups)


def _continues(earlier: Write, later: Write) -> bool:
    return earlier.site.path == later.site.path and _adds_no_gradient(earlier, later)


def may_continue(earlier: Update, later: Update) -> bool:
    """Whether a later update of the same run may be a part of an earlier one, written by another function."""
    return (
        later.writes[0].op.form is not Form.APPLY
        and earlier.site.path != later.site.path
        and not earlier.site.excludes(later.site)
        and _adds_no_gradient(earlier.writes[-1], later.writes[0])
    )


def _adds_no_gradient(earlier: Write, later: Write) -> bool:
    return earlier.gradients | later.gradients == earlier.gradients
