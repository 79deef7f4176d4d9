"""The one way to plan and rewrite a step, wherever its graphs live: each of its graphs is a `Part`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from graphwd.analysis.updates import Analysis
from graphwd.errors import GraphError, RewriteError
from graphwd.graph.function_library import NewNames
from graphwd.graph.graph import Graph
from graphwd.messages import listed
from graphwd.planning.injections import OwnKind
from graphwd.planning.plan import Decision, Plan
from graphwd.planning.planner import make_plan
from graphwd.planning.update_graph import Trial
from graphwd.policy.rules import Policy
from graphwd.rewriting.inject import Rewritten, inject, refuse_rewritten


class Part(Protocol):
    """One graph of a step: a trace of a Python step, a main graph, or the functions of a SavedModel that train."""

    @property
    def graph(self) -> Graph:
        """The view of it."""
        ...

    def find_updates(self) -> Analysis:
        """Finds every update of every trainable variable; to be called once, since the result takes memory."""
        ...

    def limited(self, plan: Plan) -> Plan:
        """Adds to a plan the problems of decays that cannot be written into a part of this kind."""
        ...


_Part = TypeVar("_Part", bound=Part)


@dataclass(frozen=True, slots=True)
class Prepared(Generic[_Part]):
    """A part that was read and planned.

    Attributes:
        part: the part; it stays as it is.
        plan: its plan.
    """

    part: _Part
    plan: Plan

    def inject(self, new_name: Callable[[str], str] | None = None) -> Rewritten:
        """Makes a copy of its graph with weight decay in it.

        Args:
            new_name: makes a name for a rewritten copy of a function; None for names that are new to the library.

        Raises:
            GraphwdError: the plan has problems, or the graph cannot be rewritten.
        """
        self.plan.check()
        graph = self.part.graph
        return inject(graph, self.plan.injections, new_name or NewNames(graph.library), fuse=self.plan.fuse)


def plan_part(part: _Part, policy: Policy) -> Prepared[_Part]:
    """Plans weight decay for a part.

    Args:
        part: the part.
        policy: the policy.

    Returns:
        The part and its plan, which may have problems.

    Raises:
        GraphwdError: the graph is malformed, or rewritten already.
    """
    # Before the search, which would take graphwd's own decay for the step's.
    refuse_rewritten(part.graph)
    return Prepared(part, part.limited(replace(make_plan(part.find_updates(), policy), trial=_trial)))


def _trial(plan: Plan) -> Trial:
    """The bodies that a rewrite by a plan gives, but for what `fuse` outlines."""
    assert plan.graph is not None
    library = plan.graph.library
    rewritten = inject(plan.graph, plan.injections, NewNames(library))
    return Trial(rewritten.root, {**library, **{each.signature.name: each for each in rewritten.functions}})


def without_own_variables(plan: Plan) -> Plan:
    """A plan for a model that is edited as a file, which refuses what needs a variable that the model does not have."""
    needed = {own.name for injection in plan.injections for own in injection.own if own.kind is not OwnKind.GIVEN}
    if not needed:
        return plan
    problem = (
        f"the policy needs variables that the model does not have ({listed(sorted(needed))}), and a model that is "
        "edited as a file gets none; rewrite the step in Python, by 'graphwd rewrite STEP_FN' or graphwd.rewrite"
    )
    return replace(plan, problems=(*plan.problems, problem))


def whole_plan(prepared: Iterable[Prepared[Any]], problems: Iterable[str] = ()) -> Plan:
    """Merges the plans of several parts, after a trial rewrite of each.

    Args:
        prepared: at least one.
        problems: further reasons to refuse the whole.
    """
    return merged([_tried(part) for part in prepared], problems)


def merged(plans: Sequence[Plan], problems: Iterable[str] = ()) -> Plan:
    """Merges the plans of several parts.

    Args:
        plans: at least one.
        problems: further reasons to refuse the whole.

    Returns:
        The decisions of the first plan, then those of each later plan that differ from all before; every problem and
        note once.
    """
    return Plan(
        tuple(plans[0].decisions if len(plans) == 1 else _different(plans)),
        tuple(dict.fromkeys([*itertools.chain.from_iterable(plan.problems for plan in plans), *problems])),
        tuple(dict.fromkeys(itertools.chain.from_iterable(plan.notes for plan in plans))),
        plans[0].graph if len(plans) == 1 else None,
        plans[0].fuse,
        tuple(plans) if len(plans) > 1 else plans[0].parts,
        plans[0].rules,
        plans[0].trial,
    )


def _different(plans: Sequence[Plan]) -> list[Decision]:
    """The decisions of the first plan, then those of each later plan whose records differ from all before."""
    decisions: list[Decision] = []
    seen: set[str] = set()
    for plan in plans:
        records = [
            repr(record) for record in plan.record(purposes=False)["variables"]
        ]  # which cannot be hashed themselves
        decisions += [decision for decision, record in zip(plan.decisions, records, strict=True) if record not in seen]
        seen.update(records)
    return decisions


def _tried(prepared: Prepared[Any]) -> Plan:
    """The plan, with the problems and notes of a trial rewrite: a refused result, or an incomplete fusion."""
    plan = prepared.plan
    if plan.problems:
        return plan
    try:
        rewritten = prepared.inject()
    except (RewriteError, GraphError) as error:
        return replace(plan, problems=(str(error),))
    return replace(plan, notes=(*plan.notes, *unfused_notes(rewritten.unfused)))


def unfused_notes(names: Sequence[str]) -> list[str]:
    """The notes on variables whose update or decay was to be fused, and was not.

    Args:
        names: the variables.
    """
    if not names:
        return []
    return [
        f"fuse: xla: not all of what updates and decays {', '.join(names)} is fused: optimizer ops, sparse updates and "
        "what is not elementwise stay as they are"
    ]
