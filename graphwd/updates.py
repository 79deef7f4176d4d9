"""Finds where each trainable variable is updated.

An update is a write to a trainable variable whose value comes from a gradient, as the abstract interpretation of the
step sees it: so constraints, overwrites by an average, decay that is already there, and checkpoint restore are writes,
not updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphwd.graph import Graph, Variable
from graphwd.interpreter import BodyValues, Interpreter
from graphwd.sites import STRONG, Evidence, Path, Site, Write
from graphwd.update_ops import Form


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
        evidence = self.writes[0].evidence
        assert evidence is not None
        return evidence


@dataclass(frozen=True, slots=True)
class VariableWrites:
    """All that the step does to one trainable variable.

    Attributes:
        variable: the variable.
        updates: its updates, in program order.
        native_decays: writes that already decay it.
        others: every other write.
        used_by: op types that read it outside gradient scopes.
        guesses: what looks like an update by the step's data alone, in a step that has gradients.
    """

    variable: Variable
    updates: tuple[Update, ...]
    native_decays: tuple[Write, ...]
    others: tuple[Write, ...]
    used_by: frozenset[str]
    guesses: tuple[Update, ...] = ()


@dataclass(frozen=True, slots=True)
class Analysis:
    """What every trainable variable of a step goes through.

    Attributes:
        variables: one account for each trainable variable, in the order of their numbers.
        unresolved: writes of which it is not known what variable they write.
        opaque: for variables that reach a function graphwd does not follow and that writes variables: the site.
        python_calls: calls of Python code that get a gradient: what they write is not in the graph.
        graph: the step; None for an account made by hand.
        values: what is known of the tensors of each body that writes a variable, by the calls that lead to it.
    """

    variables: tuple[VariableWrites, ...]
    unresolved: tuple[Site, ...]
    opaque: tuple[tuple[Variable, Site], ...]
    python_calls: tuple[Site, ...] = ()
    graph: Graph | None = None
    values: Mapping[Path, BodyValues] = field(default_factory=dict)


def find_updates(graph: Graph) -> Analysis:
    """Finds every update of every trainable variable.

    Args:
        graph: the step.

    Returns:
        The account of every trainable variable.

    Raises:
        GraphError: the graph cannot be followed: a dangling edge, a missing or recursive function.
    """
    run = Interpreter(graph, told_apart=False).run()
    values = run.seen
    if any(len(_update_writes(writes)) > 1 for writes in run.writes_by_variable().values()):
        # Which writes belong to one gradient matters only now, and telling gradients apart costs memory.
        run = Interpreter(graph, told_apart=True).run()
    writes = run.writes_by_variable()
    has_gradients = any(write.evidence in STRONG for each in writes.values() for write in each)
    accounts = tuple(
        _account(variable, writes.get(variable.id, []), frozenset(run.used_by.get(variable.id, ())), has_gradients)
        for variable in graph.variables
        # A handle that is only passed on, as the token that orders collective ops is, belongs to no weight.
        if variable.trainable and (variable.id in writes or variable.id in run.read or variable in run.passed_on())
    )
    return Analysis(accounts, tuple(run.unresolved), tuple(run.opaque.values()), tuple(run.python_calls), graph, values)


def _account(variable: Variable, writes: list[Write], used_by: frozenset[str], has_gradients: bool) -> VariableWrites:
    updating = _update_writes(writes)
    decays = tuple(write for write in writes if write.is_native_decay)
    others = tuple(write for write in writes if write not in updating and write not in decays)
    updates = _group(variable, updating)
    if has_gradients and updates and updates[0].evidence is Evidence.DATA_PATH:
        return VariableWrites(variable, (), decays, others, used_by, guesses=updates)
    return VariableWrites(variable, updates, decays, others, used_by)


def _update_writes(writes: list[Write]) -> list[Write]:
    strong = [write for write in writes if write.evidence in STRONG]
    return strong or [write for write in writes if write.evidence is Evidence.DATA_PATH]


def _group(variable: Variable, writes: Sequence[Write]) -> tuple[Update, ...]:
    """Joins the writes that together make one update: those that no new gradient came between."""
    groups: list[list[Write]] = []
    for write in writes:
        previous = next((group for group in reversed(groups) if _continues(group[-1], write)), None)
        if previous is None:
            groups.append([write])
        else:
            previous.append(write)
    return tuple(Update(variable, tuple(group)) for group in groups)


def _continues(earlier: Write, later: Write) -> bool:
    return (
        later.op.form is not Form.APPLY
        and earlier.site.path == later.site.path
        and earlier.gradients | later.gradients == earlier.gradients
    )
