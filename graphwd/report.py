"""Shows the record of a plan as a table, as JSON, and as a page."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLUMNS = ("variable", "shape", "dtype", "decay", "rule", "update")

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


def as_table(record: Mapping[str, Any], width: int | None = None) -> str:
    """The plan as a table for a terminal.

    Args:
        record: what `Plan.record` returns.
        width: columns to fit into; None for as many as the longest names need.

    Returns:
        The table, a line that counts the variables, then problems and notes.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for row in _rows(record):
        table.add_row(*map(Text, row))  # as text: rich would read '[then_branch]' as markup
    console = Console(width=width or 10_000, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    messages = [f"problem: {text}" for text in record["problems"]] + [f"note: {text}" for text in record["notes"]]
    return "\n".join([line for line in lines if line] + [_summary(record)] + messages)


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
    rows = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in _rows(record)]
    messages = [f'<p class="problem">{html.escape(text)}</p>' for text in record["problems"]]
    messages += [f"<p>{html.escape(text)}</p>" for text in record["notes"]]
    return _PAGE.format(
        summary=html.escape(_summary(record)),
        messages="\n".join(messages),
        head="".join(f"<th>{column}</th>" for column in _COLUMNS),
        rows="\n".join(rows),
    )


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for variable in record["variables"]:
        shape = (
            "?"
            if variable["shape"] is None
            else "×".join("?" if d is None else str(d) for d in variable["shape"]) or "scalar"
        )
        yield (
            variable["name"],
            shape,
            variable["dtype"],
            _decay(variable),
            variable["rule"] or "-",
            "; ".join(f"{update['op']} at {update['at']}" for update in variable["updates"]) or "-",
        )


def _decay(variable: Mapping[str, Any]) -> str:
    if variable["outcome"] != "decay":
        return str(variable["outcome"])
    if variable["mode"] == "coupled":
        return f"{variable['weight_decay']:g} coupled"
    scale = " × lr" if variable["scale"] == "lr" else ""
    rows = ", rows touched" if variable["rows"] == "touched" else ""
    return f"{variable['weight_decay']:g}{scale} {variable['order']} update{rows}"


def _summary(record: Mapping[str, Any]) -> str:
    count = len(record["variables"])
    decayed = sum(variable["outcome"] == "decay" for variable in record["variables"])
    return f"{decayed} of {count} trainable variable{'' if count == 1 else 's'} decayed"
