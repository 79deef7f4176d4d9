"""Shows the record of a plan as a table, as JSON, and as a page."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphwd.planning.terminal import Detail, as_table, decays_as_table, overview_as_table
from graphwd.planning.texts import (
    decay_text,
    device_lines,
    rewritten_texts,
    role_text,
    schedule_lines,
    shape_text,
    summary,
    ways_text,
)

_DECAY_COLUMNS = ("variable", "rate", "where", "update")
_COLUMNS = ("variable", "shape", "dtype", "role", "decay", "rule", "update")
_OVERVIEW = ("variable", "shape", "dtype", "role", "seen in", "path", "update")

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>graphwd plan</title>
<style>
  body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222 }}
  table {{ border-collapse: collapse }}
  th, td {{ padding: .3rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }}
  .problem {{ color: #a00; white-space: pre-wrap }}
</style>
<h1>graphwd plan</h1>
<p>{summary}</p>
{messages}
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</html>
"""


def _told(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Columns and rows, without the column of roles where they are not known."""
    held = list(rows)
    role = columns.index("role")
    if any(row[role] for row in held):
        return columns, held
    return (*columns[:role], *columns[role + 1 :]), [(*row[:role], *row[role + 1 :]) for row in held]


def overview_as_json(record: Mapping[str, Any]) -> str:
    """The same as JSON, with the keys of a plan."""
    return json.dumps({**record, "problems": [], "notes": []}, indent=2)


def overview_as_html(record: Mapping[str, Any]) -> str:
    """The same as a page of its own."""
    return _page(f"{len(record['variables'])} trainable variables", [], _OVERVIEW, _overview_rows(record))


def _overview_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for variable, row in zip(record["variables"], _rows(record), strict=True):
        label, shape, dtype, role, _, _, update = row
        yield label, shape, dtype, role, variable["seen"] or "-", variable["path"] or "-", update


def as_json(record: Mapping[str, Any]) -> str:
    """The plan as JSON.

    Args:
        record: what `Plan.record` returns.

    Returns:
        JSON text, keys in a fixed order.
    """
    return json.dumps(record, indent=2)


def as_html(record: Mapping[str, Any]) -> str:
    """The plan as a page of its own, without scripts or outside resources.

    Args:
        record: what `Plan.record` returns.

    Returns:
        HTML text.
    """
    messages = [f'<p class="problem">{html.escape(text)}</p>' for text in record["problems"]]
    messages += [
        f"<p>{html.escape(text)}</p>" for text in (*record["notes"], *schedule_lines(record), *device_lines(record))
    ]
    return _page(summary(record), messages, *_told(_COLUMNS, _rows(record)))


def _page(summary: str, messages: Iterable[str], columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    return _PAGE.format(
        summary=html.escape(summary),
        messages="\n".join(messages),
        head="".join(f"<th>{column}</th>" for column in columns),
        rows="\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows),
    )


def decays_as_json(decays: Sequence[Mapping[str, Any]]) -> str:
    """The same as JSON, with the keys of a plan."""
    rewritten = [{**decay, "rows": "touched" if decay["rows"] else "all"} for decay in decays]
    nothing: dict[str, Any] = {"fuse": None, "steps": [], "variables": [], "problems": [], "notes": []}
    return json.dumps({"version": 1, **nothing, "rewritten": rewritten}, indent=2)


def decays_as_html(decays: Sequence[Mapping[str, Any]]) -> str:
    """The same as a page of its own."""
    return _page(ways_text(decays), [], _DECAY_COLUMNS, map(rewritten_texts, decays))


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for variable in record["variables"]:
        yield (
            variable["label"],
            shape_text(variable["shape"]),
            variable["dtype"],
            role_text(variable),
            decay_text(variable),
            variable["rule"] or "-",
            "; ".join(f"{update['op']} at {update['at']}" for update in variable["updates"]) or "-",
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


def table_of(detail: Detail) -> Format:
    """The form for a terminal.

    Args:
        detail: how much it shows.
    """
    return Format(
        lambda record: as_table(record, detail),
        lambda decays: decays_as_table(decays, detail),
        lambda record: overview_as_table(record, detail),
    )


FORMATS: Mapping[str, Format] = {
    "table": table_of(Detail.FOLDED),
    "json": Format(as_json, decays_as_json, overview_as_json),
    "html": Format(as_html, decays_as_html, overview_as_html),
}
"""Every form, by the word of the command line for it."""
