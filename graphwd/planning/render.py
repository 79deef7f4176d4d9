"""Shows the record of a plan as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

DECAY_COLUMNS = ("variable", "rate", "where", "update")
_PLACES = {"gradient": "in the gradient", "value": "before the update"}
_COLUMNS = ("variable", "shape", "dtype", "role", "decay", "rule", "update")
_OVERVIEW = ("variable", "shape", "dtype", "role", "seen in", "path", "update")


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
    return "\n".join([lines, summary_text(record), *messages, *_schedules(record), *device_text(record)])


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


def decays_as_table(decays: Sequence[Mapping[str, Any]]) -> str:
    """The decays of a model that graphwd has rewritten, as a table for a terminal.

    Args:
        decays: what `describe_saved_model` returns.
    """
    return f"{_table(DECAY_COLUMNS, map(decay_row, decays))}\n{count_text(decays)}"


def decays_as_json(decays: Sequence[Mapping[str, Any]]) -> str:
    """The same as JSON, with the keys of a plan."""
    rewritten = [{**decay, "rows": "touched" if decay["rows"] else "all"} for decay in decays]
    nothing: dict[str, Any] = {"fuse": None, "steps": [], "variables": [], "problems": [], "notes": []}
    return json.dumps({"version": 1, **nothing, "rewritten": rewritten}, indent=2)


def count_text(decays: Sequence[Mapping[str, Any]]) -> str:
    """The line that counts the decays of a rewritten model."""
    plural = "" if len(decays) == 1 else "s"
    return f"rewritten by graphwd: {len(decays)} way{plural} to a decay, by function or signature"


def decay_row(decay: Mapping[str, Any]) -> tuple[str, ...]:
    """The row of one decay of a rewritten model."""
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
            decay_text(variable),
            variable["rule"] or "-",
            "; ".join(f"{update['op']} at {update['at']}" for update in variable["updates"]) or "-",
        )


def shape_text(shape: Sequence[int | None] | None) -> str:
    """A shape as tables show it."""
    if shape is None:
        return "?"
    return "×".join("?" if size is None else str(size) for size in shape) or "scalar"


def device_text(record: Mapping[str, Any]) -> Iterator[str]:
    """The result of a device check, in a line; nothing where there was no check, or where the problems tell it."""
    device = record.get("device")
    if device and not device["problems"]:
        count = f"{device['nodes']} node{'' if device['nodes'] == 1 else 's'}"
        yield f"{device['type']}: {count} would be injected, each with a kernel, and no copy to or from the host"


def decay_text(variable: Mapping[str, Any]) -> str:
    """What is done to a variable: its rate and what that means, or its outcome."""
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


def summary_text(record: Mapping[str, Any]) -> str:
    """The line that counts the variables of a plan."""
    counts = dict.fromkeys(f"{step['decayed']} of {step['variables']}" for step in record["steps"])
    count = max(step["variables"] for step in record["steps"])
    several = f" in {'each' if len(counts) == 1 else 'some'} of {len(record['steps'])} traces or graphs"
    fused = ", their updates fused with the decay as far as XLA can (fuse: xla)" if record["fuse"] == "xla" else ""
    where = several if len(record["steps"]) > 1 else ""
    return f"{' or '.join(counts)} trainable variable{'' if count == 1 else 's'} decayed{where}{fused}"
