"""The forms in which plans and records are shown, by the word of the command line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphwd.planning.page import decays_as_html, overview_as_html, plan_as_html
from graphwd.planning.render import as_json, decays_as_json, overview_as_json
from graphwd.planning.terminal import Detail, as_table, decays_as_table, overview_as_table

if TYPE_CHECKING:
    from graphwd.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Format:
    """A form in which records are shown.

    Attributes:
        plan: shows a plan, given what `Plan.record` returns, perhaps with the result of a device check.
        decays: shows what graphwd has done to a model.
        overview: shows the variables of a step, of a record likewise.
    """

    plan: Callable[[Plan, Mapping[str, Any]], str]
    decays: Callable[[Sequence[Mapping[str, Any]]], str]
    overview: Callable[[Mapping[str, Any]], str]


def table_of(detail: Detail) -> Format:
    """The form for a terminal.

    Args:
        detail: how much it shows.
    """
    return Format(
        lambda _, record: as_table(record, detail),
        lambda decays: decays_as_table(decays, detail),
        lambda record: overview_as_table(record, detail),
    )


FORMATS: Mapping[str, Format] = {
    "table": table_of(Detail.FOLDED),
    "json": Format(lambda _, record: as_json(record), decays_as_json, overview_as_json),
    "html": Format(plan_as_html, decays_as_html, overview_as_html),
}
"""Every form, by the word of the command line for it."""
