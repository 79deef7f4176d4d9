"""Decides where the decay of one variable goes, and refuses where that cannot be known or done."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from graphwd.errors import UnclearError
from graphwd.flow import Flow
from graphwd.gradient_entry import find_entry
from graphwd.injection import EPSILON, Entry, Injection, LearningRate, Where
from graphwd.learning_rate import find_learning_rate
from graphwd.policy import Mode, Order, Rule, Scale, Semantics, Sparse, Updates
from graphwd.readiness import find_readiness, refuse_forward_reads
from graphwd.sites import Path, Write
from graphwd.update_ops import Form
from graphwd.updates import Analysis, Update, VariableWrites


class RefusedError(Exception):
    """Why a variable cannot be decayed as asked; said once for all variables of a rule that have the same reason."""


class Flows:
    """The flow of data in the bodies of the step's updates, each read when it is first asked for."""

    def __init__(self, analysis: Analysis) -> None:
        """Remembers the account.

        Args:
            analysis: the account of the step.
        """
        self._analysis = analysis
        self._flows: dict[Path, Flow] = {}

    def at(self, path: Path) -> Flow:
        """The flow in the body that some calls lead to."""
        if path not in self._flows:
            graph = self._analysis.graph
            assert graph is not None
            body = graph.body(path[-1].callee.function) if path else graph.root
            self._flows[path] = Flow(graph, body, self._analysis.values[path])
        return self._flows[path]

    def rereads(self, update: Update) -> bool:
        """Whether the arithmetic of an update reads the weight, be it by way of a slot variable."""
        names = [write.site.node for write in update.writes]
        try:
            return bool(find_readiness(self.at(update.site.path), update.variable, names).rereads)
        except UnclearError:
            return True


def place_decay(rule: Rule, writes: VariableWrites, flows: Flows) -> tuple[Injection, ...]:
    """Decides where the decay of a variable goes.

    Args:
        rule: the rule that decides it; its rate is not 0.
        writes: all that the step does to the variable, which it writes.
        flows: the flow of data in the bodies of the updates.

    Returns:
        One injection for each update that carries the decay.

    Raises:
        RefusedError: that cannot be known, or is not supported; the message says what to write instead.
    """
    try:
        updates = _certain_updates(rule, writes)
        _check_supported(rule, writes, updates)
        return tuple(_injection(rule, update, writes, flows) for update in _choose(rule, updates))
    except UnclearError as reason:
        raise RefusedError(str(reason)) from None


def _certain_updates(rule: Rule, writes: VariableWrites) -> Sequence[Update]:
    """The updates of a variable that is written; refuses where it is not certain that the writes are updates."""
    if writes.updates:
        return writes.updates
    if not writes.guesses:
        places = ", ".join(f"{write.site} ({write.site.op})" for write in (*writes.others, *writes.native_decays))
        raise RefusedError(
            f"the step writes it, but no write is seen to come from a gradient: {places}; if that is right, write "
            "'weight_decay: 0' for it"
        )
    if rule.updates is not Updates.ONE:
        return writes.guesses
    places = ", ".join(f"{update.site} ({update.site.op})" for update in writes.guesses)
    raise RefusedError(
        f"written from the step's data, while other variables are updated from gradients: {places}; if it is a "
        "statistic, write 'weight_decay: 0' for it (or make it not trainable); if it is an update, 'updates: each'"
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
    if writes.native_decays and not rule.allow_double_decay:
        places = ", ".join(f"{write.site} ({write.site.op})" for write in writes.native_decays)
        raise RefusedError(
            f"the step already decays it, at {places}; switch that off, write 'weight_decay: 0' for it, or write "
            "'double_decay: allow' to decay it twice"
        )


def _choose(rule: Rule, updates: Sequence[Update]) -> Sequence[Update]:
    """The updates that carry the decay: all where at most one of them can happen in a run."""
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


def _injection(rule: Rule, update: Update, writes: VariableWrites, flows: Flows) -> Injection:
    """What a rule injects at an update."""
    meaning = rule.semantics
    names = [write.site.node for write in update.writes]
    if meaning.mode is Mode.COUPLED:
        return _coupled(rule, update, flows.at(update.site.path), names)
    rate, learning_rate = rule.weight_decay, None
    if meaning.scale is Scale.LR:
        learning_rate = find_learning_rate(flows.at(update.site.path), names, rule.learning_rate)
        if learning_rate.number is not None:
            rate, learning_rate = _constant_rate(rate, learning_rate), None
    if meaning.order is Order.AFTER:
        return Injection(
            update.variable, update.site, rate, Where.AFTER, _rows_only(update.writes[-1], rule), learning_rate
        )
    first = update.writes[0]
    refuse_forward_reads(flows.at(first.site.path), update.variable, names)
    readiness = find_readiness(flows.at(first.site.path), update.variable, names, _other_writes(writes, update))
    if first.op.form is Form.ASSIGN and not readiness.rereads:
        raise RefusedError(
            f"its update ({first.site}) overwrites the weight without reading it, so a decay before it has no "
            "effect; write 'order: after'"
        )
    return Injection(
        update.variable, first.site, rate, Where.BEFORE, _rows_only(first, rule), learning_rate, readiness=readiness
    )


def _other_writes(writes: VariableWrites, update: Update) -> list[str]:
    """The nodes of an update's body in which the variable is written otherwise, be it in a function that they call."""
    path = update.site.path
    every = [*writes.others, *writes.native_decays]
    every += [write for each in (*writes.updates, *writes.guesses) if each is not update for write in each.writes]
    nodes = [
        [frame.node for frame in write.site.path] + [write.site.node]
        for write in every
        if write.site.path[: len(path)] == path
    ]
    return [names[len(path)] for names in nodes]


def _constant_rate(rate: float, learning_rate: LearningRate) -> float:
    """The rate times a learning rate that is a number."""
    assert learning_rate.number is not None
    scaled = rate * learning_rate.number
    if not scaled < 1:  # a NaN is not, either
        raise RefusedError(
            f"its learning rate is {learning_rate.name}, and weight_decay times that must be below 1, got {scaled:g}"
        )
    return scaled


def _entry(update: Update, flow: Flow, names: Sequence[str], asked: str | None) -> Entry:
    """Where the gradient enters; that can be told without the learning rate where the gradient is but summed before."""
    try:
        learning_rate = find_learning_rate(flow, names, asked, exact=False)
    except UnclearError as reason:
        if asked is None:
            with contextlib.suppress(UnclearError):
                return find_entry(flow, update.variable, names, None)
        raise reason
    return find_entry(flow, update.variable, names, learning_rate)


def _coupled(rule: Rule, update: Update, flow: Flow, names: Sequence[str]) -> Injection:
    first = update.writes[0]
    if len(names) == 1 and first.op.form is Form.APPLY:
        entry = find_entry(flow, update.variable, names, None)
    else:
        refuse_forward_reads(flow, update.variable, names)
        entry = _entry(update, flow, names, rule.learning_rate)
    if entry.indices is not None and rule.sparse is Sparse.ALL:
        raise RefusedError(
            "its gradient is sparse and holds the rows it touches only, so a coupled decay cannot reach the others; "
            "write 'sparse: touched', or a decoupled 'semantics'"
        )
    if entry.indices is not None and (update.variable.shape is None or None in update.variable.shape):
        raise RefusedError("its gradient is sparse and its shape is not known, so a coupled decay cannot be added")
    return Injection(
        update.variable, first.site, rule.weight_decay, Where.GRADIENT, entry.indices is not None, entry=entry
    )


def _rows_only(write: Write, rule: Rule) -> bool:
    return write.op.rows is not None and rule.sparse is Sparse.TOUCHED
