"""The findings of a verification: for every variable and output its reference, and whether it is right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from graphwd.errors import VerifyError


class Verdict(Enum):
    """The verdict on a variable or an output."""

    RIGHT = "right"
    WRONG = "wrong"
    UNSEEN = "too small to see"  # it is right, but would be without decay as well


class Kind(Enum):
    """The reference that a variable or an output was compared with."""

    WHOLE = "the whole step"  # the original, run as a whole: nothing is taken from the plan but a learning rate
    PLAN = "the plan's places only"  # the original, run in pieces with a decay wherever the plan has one


class RateCheck(Enum):
    """What is known of the learning rate that a decay is multiplied by."""

    PROBED = "probed"  # doubled, it doubles the update
    PLAN = "taken from the plan"
    REFUTED = "no factor of the update"


@dataclass(frozen=True, slots=True)
class Checked:
    """The findings for one variable or output.

    Attributes:
        name: the variable, or ``output 0``, ``output 1``, ...
        decayed: whether the policy decays it.
        error: the largest difference between the rewritten step and the reference, in units in the last place.
        decay: the largest difference that the decay made, in the same units.
        verdict: the verdict.
        kind: the reference.
        learning_rate: what is known of the learning rate that scales the decay; None where none does.
        reason: what else is wrong with it, for a message.
        function: the trace or the function that it belongs to, where several were verified.
        label: what tells it from the others of its name; empty where the name does.
    """

    name: str
    decayed: bool
    error: float
    decay: float
    verdict: Verdict
    kind: Kind = Kind.PLAN
    learning_rate: RateCheck | None = None
    reason: str = ""
    function: str = ""
    label: str = ""

    @property
    def shown(self) -> str:
        """What it is called in tables and messages, which no other variable of its function is."""
        return self.label or self.name

    def record(self) -> dict[str, Any]:
        """The findings as plain values."""
        return {
            "name": self.name,
            "label": self.shown,
            "function": self.function or None,
            "decayed": self.decayed,
            "error": _finite(self.error),
            "decay": _finite(self.decay),
            "verdict": self.verdict.value,
            "held_against": self.kind.value,
            "learning_rate": self.learning_rate and self.learning_rate.value,
            "reason": self.reason or None,
        }


def _finite(number: float) -> float | None:
    """A number as JSON can hold it: None where it is infinite."""
    return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class Verification:
    """The findings of a verification.

    Attributes:
        variables: every variable of the step, slot variables included; for several traces, those of each.
        races: injected nodes that may run in the wrong order on another run.
        runs: how many steps were run, of each trace.
        outputs: every tensor that the step returns, but those that differ from run to run of the original.
    """

    variables: tuple[Checked, ...]
    races: tuple[str, ...]
    runs: int
    outputs: tuple[Checked, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.races and all(
            checked.verdict is not Verdict.WRONG for checked in (*self.variables, *self.outputs)
        )

    @property
    def largest_error(self) -> float:
        """The largest error of any variable or output, in units in the last place."""
        return max((checked.error for checked in (*self.variables, *self.outputs)), default=0.0)

    def check(self) -> None:
        """Refuses a wrong step.

        Raises:
            VerifyError: a variable or an output is not what it must be, or injected nodes race.
        """
        wrong = [checked for checked in (*self.variables, *self.outputs) if checked.verdict is Verdict.WRONG]
        if wrong or self.races:
            raise VerifyError("\n".join([*(_problem(checked) for checked in wrong), *self.races]))

    def record(self) -> dict[str, Any]:
        """The findings as plain values, with the keys that ``graphwd help command-line`` documents."""
        return {
            "version": 1,
            "ok": self.ok,
            "runs": self.runs,
            "largest_error": _finite(self.largest_error),
            "variables": [checked.record() for checked in self.variables],
            "outputs": [checked.record() for checked in self.outputs],
            "races": list(self.races),
        }

    def __str__(self) -> str:
        """The findings as a table."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        every = (*self.variables, *self.outputs)
        named = any(checked.function for checked in every)
        rates = any(checked.learning_rate for checked in every)
        columns = [*(["in"] if named else []), "variable", "decay (ulp)", "error (ulp)", "verdict", "held against"]
        for column in (*columns, *(["learning rate"] if rates else [])):
            table.add_column(column, overflow="fold")
        for checked in every:
            decay = f"{checked.decay:.4g}" if checked.decayed else "-"
            row = [checked.shown, decay, f"{checked.error:.4g}", checked.verdict.value, checked.kind.value]
            rate = checked.learning_rate.value if checked.learning_rate else "-"
            table.add_row(*([checked.function] if named else []), *row, *([rate] if rates else []))
        console = Console(width=10_000, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(table)
        lines = [line.rstrip() for line in capture.get().splitlines() if line.strip()]
        return "\n".join([*lines, self._summary, *(f"race: {race}" for race in self.races)])

    @property
    def _summary(self) -> str:
        verdict = "right" if self.ok else "WRONG"
        return f"{verdict} in {self.runs} runs; largest error {self.largest_error:.4g} ulp"


def _problem(checked: Checked) -> str:
    where = f" of {checked.function}" if checked.function else ""
    if checked.reason:
        return f"'{checked.shown}'{where}: {checked.reason}"
    if not checked.decayed:
        what = "from what it must be; no rule decays it"
        return f"'{checked.shown}'{where} is {checked.error:.4g} units in the last place {what}"
    return (
        f"'{checked.shown}'{where} is {checked.error:.4g} units in the last place from what the policy says, "
        f"where its decay is {checked.decay:.4g}"
    )
