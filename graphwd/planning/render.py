"""Shows the record of a plan as a table, as JSON, and as a page."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_DECAY_COLUMNS = ("variable", "rate", "where", "update")
_PLACES = {"gradient": "in the gradient", "value": "before the update"}
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


def as_table(record: Mapping[str, Any], width: int | None = None) -> str:
    """The plan as a table for a terminal.

    Args:
        record: what `Plan.record` returns.
        width: columns to fit into; None for as many as the longest names need.

    Returns:
        The table, a line that counts the variables, then problems and notes.
    """
    lines = _table(*_told(_COLUMNS, _rows(record)), width)
    messages = [f"problem: {text}" for text in record["problems"]] + [f"note: {text}" for text in record["notes"]]
    return "\n".join([lines, _summary(record), *messages, *_schedules(record), *_device(record)])


def _told(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Columns and rows, without the column of roles where they are not known."""
    held = list(rows)
    role = columns.index("role")
    if any(row[role] for row in held):
        return columns, held
    return (*columns[:role], *columns[role + 1 :]), [(*row[:role], *row[role + 1 :]) for row in held]


def overview_as_table(record: Mapping[str, Any]) -> str:
    """The variables of a step for a terminal, before there is a policy: what each is used for, where it is updated.

    Args:
        record: what `Plan.record` returns for any policy.
    """
    count = len(record["variables"])
    advice = "'graphwd init STEP_FN' writes a first policy for them"
    plural = "" if count == 1 else "s"
    return f"{_table(_OVERVIEW, _overview_rows(record))}\n{count} trainable variable{plural}; {advice}"


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


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as text: rich would read '[then_branch]' as markup
    console = Console(width=width or 10_000, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


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
    messages += [f"<p>{html.escape(text)}</p>" for text in (*record["notes"], *_schedules(record), *_device(record))]
    return _page(_summary(record), messages, *_told(_COLUMNS, _rows(record)))


def _page(summary: str, messages: Iterable[str], columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    return _PAGE.format(
        summary=html.escape(summary),
        messages="\n".join(messages),
        head="".join(f"<th>{column}</th>" for column in columns),
        rows="\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows),
    )


def decays_as_table(decays: Sequence[Mapping[str, Any]]) -> str:
    """The decays of a model that graphwd has rewritten, as a table for a terminal.

    Args:
        decays: what `describe_saved_model` returns.
    """
    return f"{_table(_DECAY_COLUMNS, map(_decay_row, decays))}\n{_count(decays)}"


def decays_as_json(decays: Sequence[Mapping[str, Any]]) -> str:
    """The same as JSON, with the keys of a plan."""
    rewritten = [{**decay, "rows": "touched" if decay["rows"] else "all"} for decay in decays]
    nothing: dict[str, Any] = {"fuse": None, "steps": [], "variables": [], "problems": [], "notes": []}
    return json.dumps({"version": 1, **nothing, "rewritten": rewritten}, indent=2)


def decays_as_html(decays: Sequence[Mapping[str, Any]]) -> str:
    """The same as a page of its own."""
    return _page(_count(decays), [], _DECAY_COLUMNS, map(_decay_row, decays))


def _count(decays: Sequence[Mapping[str, Any]]) -> str:
    plural = "" if len(decays) == 1 else "s"
    return f"rewritten by graphwd: {len(decays)} way{plural} to a decay, by function or signature"


def _decay_row(decay: Mapping[str, Any]) -> tuple[str, ...]:
    squared = "²" if decay["power"] == 2 else ""
    rate = f"{decay['rate']:g}" + (f" × {decay['learning_rate']}{squared}" if decay["learning_rate"] else "")
    rate += "" if decay["formula"] == "l2" else f", {decay['formula']}"
    where = _PLACES.get(decay["where"], f"{decay['where']} the update")
    return decay["variable"], rate, where + (", rows touched" if decay["rows"] else ""), decay["at"]


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for variable in record["variables"]:
        followed = f", then {variable['followed_by']}" if variable["followed_by"] else ""
        yield (
            variable["label"],
            shape_text(variable["shape"]),
            variable["dtype"],
            f"{variable['role']}{followed}" if variable["role"] else "",
            _decay(variable),
            variable["rule"] or "-",
            "; ".join(f"{update['op']} at {update['at']}" for update in variable["updates"]) or "-",
        )


def shape_text(shape: Sequence[int | None] | None) -> str:
    """A shape as tables show it."""
    if shape is None:
        return "?"
    return "×".join("?" if size is None else str(size) for size in shape) or "scalar"


def _device(record: Mapping[str, Any]) -> Iterator[str]:
    """The result of a device check, in a line; nothing where there was no check, or where the problems tell it."""
    device = record.get("device")
    if device and not device["problems"]:
        count = f"{device['nodes']} node{'' if device['nodes'] == 1 else 's'}"
        yield f"{device['type']}: {count} would be injected, each with a kernel, and no copy to or from the host"


def _decay(variable: Mapping[str, Any]) -> str:
    if variable["outcome"] != "decay":
        return str(variable["outcome"])
    schedule = variable["schedule"]
    tunable = f" ({variable['tunable']})" if variable["tunable"] else ""
    number = f"{variable['weight_decay']:g}{tunable}" if tunable or not schedule else ""
    rate = " × ".join(filter(None, [number, schedule and schedule["name"]])) + _scale(variable)
    place = "coupled" if variable["mode"] == "coupled" else f"{variable['order']} update"
    formula = "" if variable["formula"] == "l2" else f", {variable['formula']}"
    rows = ", rows touched" if variable["rows"] == "touched" and variable["mode"] != "coupled" else ""
    return f"{rate} {place}{formula}{rows}"


def _schedules(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for each schedule of a rule: its counter, and the rates at some steps."""
    lines: dict[str, None] = {}
    for variable in record["variables"]:
        schedule = variable["schedule"] if variable["outcome"] == "decay" else None
        if schedule and schedule["rates"]:
            rates = ", ".join(f"{rate:.4g} at {step}" for step, rate in schedule["rates"])
            lines[f"{variable['rule']}: {schedule['name']} by {schedule['counter']}: {rates}"] = None
    yield from lines


def _scale(variable: Mapping[str, Any]) -> str:
    """What the weight decay is multiplied by."""
    peak = variable["peak_learning_rate"]
    match "none" if variable["mode"] == "coupled" else variable["scale"]:
        case "lr":
            return " × lr"
        case "relative":
            return f" × lr/{peak:g}"
        case "corrected":
            return f" × lr²/{peak:g}"
        case _:
            return ""


def _summary(record: Mapping[str, Any]) -> str:
    counts = dict.fromkeys(f"{step['decayed']} of {step['variables']}" for step in record["steps"])
    count = max(step["variables"] for step in record["steps"])
    several = f" in {'each' if len(counts) == 1 else 'some'} of {len(record['steps'])} traces or graphs"
    fused = ", their updates fused with the decay as far as XLA can (fuse: xla)" if record["fuse"] == "xla" else ""
    where = several if len(record["steps"]) > 1 else ""
    return f"{' or '.join(counts)} trainable variable{'' if count == 1 else 's'} decayed{where}{fused}"


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
