"""The forms in which plans and records are shown, by the word of the command line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphwd.planning.page import as_html, decays_as_html, overview_as_html
from graphwd.planning.render import (
    as_json,
    as_table,
    decays_as_json,
    decays_as_table,
    overview_as_json,
    overview_as_table,
)


@dataclass(frozen=True, slots=True)
class Format:
    """A form in which records are shown.

    Attributes:
        plan: shows what `Plan.record` returns.
        decays: shows what graphwd has done to a model.
        overview: shows the variables of a step, of a record likewise.
    """

    plan: Callable[[Mapping[str, Any]], str]
    decays: Callable[[Sequence[Mapping[str, Any]]], str]
    overview: Callable[[Mapping[str, Any]], str]


FORMATS: Mapping[str, Format] = {
    "table": Format(as_table, decays_as_table, overview_as_table),
    "json": Format(as_json, decays_as_json, overview_as_json),
    "html": Format(as_html, decays_as_html, overview_as_html),
}
"""Every form, by the word of the command line for it."""
