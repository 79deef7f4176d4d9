"""Makes a plan of all that a rewrite would do: of several steps, and with what only the writer can refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphwd.errors import GraphError, RewriteError
from graphwd.graph.function_library import NewNames
from graphwd.planning.planner import Decision, Plan
from graphwd.rewriting.inject import inject


@dataclass(frozen=True, slots=True)
class Pending:
    """A rewrite that is planned, and not done yet.

    Attributes:
        plan: what it would do.
        write: does it, in place.
    """

    plan: Plan
    write: Callable[[], None]


def merged(plans: Sequence[Plan], problems: Iterable[str] = ()) -> Plan:
    """Makes one plan of those of several traces, graphs or functions.

    Args:
        plans: at least one.
        problems: why the whole would be refused, beside what the plans say.

    Returns:
        The decisions of the first, then of each other those that differ from all before; every problem and note once.
    """
    decisions: list[Decision] = []
    seen: list[dict[str, Any]] = []
    for plan in plans:
        records = plan.record()["variables"]
        decisions += [decision for decision, record in zip(plan.decisions, records, strict=True) if record not in seen]
        seen += records
    return Plan(
        tuple(decisions),
        tuple(dict.fromkeys([*itertools.chain.from_iterable(plan.problems for plan in plans), *problems])),
        tuple(dict.fromkeys(itertools.chain.from_iterable(plan.notes for plan in plans))),
        plans[0].graph if len(plans) == 1 else None,
        plans[0].fuse,
        tuple(plans) if len(plans) > 1 else plans[0].parts,
    )


def tried(plan: Plan) -> Plan:
    """Adds to a plan what only writing it can tell: that the result is refused, or is not all fused.

    Args:
        plan: of one step.

    Returns:
        The plan; where it would be refused anyway, unchanged.
    """
    if plan.problems or plan.graph is None:
        return plan
    try:
        made = inject(plan.graph, plan.injections, NewNames(plan.graph.library), fuse=plan.fuse)
    except (RewriteError, GraphError) as error:
        return replace(plan, problems=(str(error),))
    return replace(plan, notes=(*plan.notes, *unfused_notes(made.unfused)))


def unfused_notes(names: Sequence[str]) -> list[str]:
    """What is to be said of variables whose update or decay was to be fused, and was not.

    Args:
        names: the variables.
    """
    if not names:
        return []
    return [
        f"fuse: xla: not all of what updates and decays {', '.join(names)} is fused: optimizer ops, sparse updates and "
        "what is not elementwise stay as they are"
    ]
