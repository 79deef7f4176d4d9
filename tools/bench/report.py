"""What was measured, as a table, as JSON and as a plot."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from contenders import FLOOR, OWN, SPARSE_NOTE, UNDECAYED
from measuring import quartiles
from rich.console import Console
from rich.table import Table


@dataclass
class Row:
    """One contender of a case.

    Attributes:
        contender: its name.
        why_not: why it was not run; None where it was.
        ms: milliseconds a step, quartiles.
        ratio: to the undecayed step of the same round, quartiles.
        of_floor: to the floor of the same round, quartiles.
        extra_ms: what it takes more than the undecayed step of the same round, quartiles.
        calls: how many calls a block holds.
        remark: what else there is to say.
    """

    contender: str
    why_not: str | None = None
    ms: list[float] | None = None
    ratio: list[float] | None = None
    of_floor: list[float] | None = None
    extra_ms: list[float] | None = None
    calls: int = 0
    remark: str = ""

    def measured(self, times: np.ndarray, undecayed: np.ndarray, floor: np.ndarray | None) -> Row:
        """Fills in the numbers from the times of the rounds, in seconds."""
        self.ms = quartiles(times * 1e3)
        self.ratio = quartiles(times / undecayed)
        self.extra_ms = quartiles((times - undecayed) * 1e3)
        if floor is not None:
            self.of_floor = quartiles(times / floor)
        return self


@dataclass
class CaseReport:
    """One case: a workload, an optimizer, and whether XLA compiles the step."""

    workload: str
    optimizer: str
    jit_compile: bool
    rows: list[Row]
    rounds: int = 0
    checks: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As the table says it."""
        return f"{self.workload}, {self.optimizer}, {'xla' if self.jit_compile else 'plain'}"

    def row(self, contender: str) -> Row | None:
        """A contender that was measured."""
        return next((row for row in self.rows if row.contender == contender and row.ms), None)

    def derived(self) -> dict[str, float]:
        """Decayed steps to the floor, and what they take more than the undecayed one to what Keras's decay does.

        The latter only where three quarters of the rounds saw Keras's decay take more than none.
        """
        found = {}
        floor = self.row(FLOOR)
        for name in ("graphwd decoupled", "graphwd adamw"):
            row, own = self.row(name), self.row(OWN)
            if row is None:
                continue
            if floor is not None and row.of_floor is not None:
                found[f"{name} / floor"] = row.of_floor[1]
            if own is not None and row.extra_ms and own.extra_ms and own.extra_ms[0] > 0:
                found[f"{name} / {OWN}, extra"] = row.extra_ms[1] / own.extra_ms[1]
        return found


def write_text(reports: list[CaseReport], facts: dict[str, Any], console: Console) -> None:
    """Prints one table, a section a case."""
    table = Table(title="What decay costs per step", title_justify="left")
    for heading in ("contender", "ms a step", "times the undecayed", "times the floor", "more ms", "remark"):
        table.add_column(heading, justify="left" if heading in ("contender", "remark") else "right", overflow="fold")
    for report in reports:
        timed = f"{report.rounds} rounds" if report.rounds else "not timed"
        table.add_row(f"[bold]{report.name}[/bold]", "", "", "", "", "; ".join([timed, *report.remarks]))
        for row in report.rows:
            table.add_row(
                f"  {row.contender}",
                _number(row.ms, 3),
                _spread(row.ratio),
                _spread(row.of_floor),
                _number(row.extra_ms, 3),
                f"not run: {row.why_not}" if row.why_not else row.remark,
            )
        for name, ratio in report.derived().items():
            table.add_row(f"  [italic]{name}[/italic]", "", f"{ratio:.3f}", "", "", "")
        table.add_section()
    console.print(table)
    console.print(
        "Medians; in brackets the quartiles of the ratio of two blocks of one round. Facts: "
        + ", ".join(f"{name} {value}" for name, value in facts.items()),
        highlight=False,
    )
    if any(report.workload.startswith("recommender") for report in reports):
        console.print(SPARSE_NOTE, highlight=False)


def write_json(reports: list[CaseReport], facts: dict[str, Any], path: Path) -> None:
    """Writes everything that the table says, and the checks."""
    cases = [{"name": report.name, **asdict(report), "derived": report.derived()} for report in reports]
    path.write_text(json.dumps({"facts": facts, "cases": cases}, indent=2) + "\n", encoding="utf-8")


def plot(reports: list[CaseReport], path: Path) -> None:
    """Draws the ratios to the undecayed step, a panel a case, with their quartiles."""
    pyplot = pyplot_or_exit()
    drawn = [report for report in reports if report.rounds]
    columns = min(2, max(1, len(drawn)))
    lines = max(1, -(-len(drawn) // columns))
    figure, panels = pyplot.subplots(lines, columns, figsize=(8 * columns, 3.2 * lines), squeeze=False)
    for panel in panels.flat[len(drawn) :]:
        panel.set_axis_off()
    for panel, report in zip(panels.flat, drawn, strict=False):
        rows = [row for row in report.rows if row.ratio][::-1]
        ratios = np.array([row.ratio for row in rows])
        errors = np.abs(ratios[:, [0, 2]] - ratios[:, [1]]).T
        colors = ["tab:orange" if row.contender.startswith("graphwd") else "tab:blue" for row in rows]
        panel.barh([row.contender for row in rows], ratios[:, 1], xerr=errors, color=colors)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(report.name, fontsize=9)
        panel.set_xlabel(f"times the {UNDECAYED} step", fontsize=8)
        panel.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def pyplot_or_exit() -> Any:
    """Matplotlib, or a message that says how to get it."""
    try:
        import matplotlib  # pyright: ignore[reportMissingImports] - of the extra `bench`
    except ImportError:
        print("--plot needs matplotlib, of the extra `bench`: .venv/bin/pip install -e '.[bench]'", file=sys.stderr)
        raise SystemExit(2) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports] - the same

    return pyplot


def _number(values: list[float] | None, digits: int) -> str:
    return "" if values is None else f"{values[1]:.{digits}f}"


def _spread(values: list[float] | None) -> str:
    if values is None:
        return ""
    low, middle, high = values
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
