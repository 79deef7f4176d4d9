"""Shows the record of a plan as a page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graphwd.planning.render import (
    COLUMNS,
    DECAY_COLUMNS,
    OVERVIEW_COLUMNS,
    count_text,
    decay_row,
    device_text,
    overview_rows,
    rows_of,
    schedules_text,
    summary_text,
    told,
)

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


def as_html(record: Mapping[str, Any]) -> str:
    """The plan as a page of its own, without scripts or outside resources.

    Args:
        record: what `Plan.record` returns.

    Returns:
        HTML text.
    """
    messages = [f'<p class="problem">{html.escape(text)}</p>' for text in record["problems"]]
    messages += [
        f"<p>{html.escape(text)}</p>" for text in (*record["notes"], *schedules_text(record), *device_text(record))
    ]
    return _page(summary_text(record), messages, *told(COLUMNS, rows_of(record)))


def _page(summary: str, messages: Iterable[str], columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    return _PAGE.format(
        summary=html.escape(summary),
        messages="\n".join(messages),
        head="".join(f"<th>{column}</th>" for column in columns),
        rows="\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows),
    )


def overview_as_html(record: Mapping[str, Any]) -> str:
    """The same as a page of its own."""
    return _page(f"{len(record['variables'])} trainable variables", [], OVERVIEW_COLUMNS, overview_rows(record))


def decays_as_html(decays: Sequence[Mapping[str, Any]]) -> str:
    """The same as a page of its own."""
    return _page(count_text(decays), [], DECAY_COLUMNS, map(decay_row, decays))
