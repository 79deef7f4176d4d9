"""The findings of a verification: for every variable and output its reference, and whether it is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from graphwd.errors import VerifyError
from graphwd.planning.folding import fold
from graphwd.planning.terminal import Detail, Line, Section, columns_of, detail_of, laid_out
from graphwd.planning.texts import variables_text


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
        counts: whether it has a line of its own where what repeats is folded: slot variables and others that are not
            trained do not, as long as they are right.
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
    counts: bool = True

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

    def to_text(self, *, all: bool = False, width: int | None = None) -> str:
        """The findings for a terminal, as ``graphwd verify`` prints them: by verdict and by reference.

        Args:
            all: whether every variable has a line; else what repeats is folded as in a plan, and variables that are
                right and not trained, such as slot variables, are counted.
            width: columns to fit into; None for those of the terminal. Where there is none, folded findings have 100,
                and others have lines as long as they need.
        """
        detail = detail_of(all=all, verbose=False)
        sections = [
            *_sections(self.variables, detail, variables_text),
            *_sections(self.outputs, detail, lambda count: f"{count} output{'' if count == 1 else 's'}"),
        ]
        closing = [("", self._summary), *(("race: ", race) for race in self.races)]
        return laid_out(sections, closing, columns_of(detail) if width is None else width)

    def __str__(self) -> str:
        """The findings for a terminal, folded; `to_text` is more."""
        return self.to_text()

    @property
    def _summary(self) -> str:
        verdict = f"{'right' if self.ok else 'WRONG'} in {self.runs} runs"
        unseen = [checked for checked in self.variables if checked.verdict is Verdict.UNSEEN]
        if unseen:
            verdict += f", but for {variables_text(len(unseen))} whose decay is too small to see"
        return f"{verdict}; largest error {self.largest_error:.4g} ulp"


_NOT_TRAINED = "what is not trained, as slot variables"
"""The line of all variables of a section that have none of their own."""


def _sections(every: Sequence[Checked], detail: Detail, counted: Callable[[int], str]) -> Iterator[Section]:
    groups: dict[str, list[Checked]] = {}
    for checked in every:
        groups.setdefault(_head(checked), []).append(checked)
    for head, members in groups.items():
        if detail is not Detail.FOLDED:
            yield Section(head, counted(len(members)), tuple(_line(checked.shown, [checked]) for checked in members))
            continue
        listed = [checked for checked in members if checked.counts or checked.verdict is Verdict.WRONG]
        rest = [checked for checked in members if not (checked.counts or checked.verdict is Verdict.WRONG)]
        folds = fold([checked.shown for checked in listed], [()] * len(listed))
        lines = [_line(each.text, [listed[place] for place in each.members]) for each in folds]
        lines += [_line(_NOT_TRAINED, rest)] if rest else []
        yield Section(head, counted(len(members)), tuple(lines))


def _head(checked: Checked) -> str:
    """What is said of several at once."""
    where = f" in {checked.function}" if checked.function else ""
    decayed = ", decayed" if checked.decayed else ""
    rate = f", learning rate {checked.learning_rate.value}" if checked.learning_rate else ""
    return f"{checked.verdict.value}{where}{decayed}, held against {checked.kind.value}{rate}"


def _line(name: str, members: Sequence[Checked]) -> Line:
    """A line for several, with the smallest and the largest of their decays, and the largest of their errors."""
    smallest, largest = (f"{pick(checked.decay for checked in members):.4g}" for pick in (min, max))
    decay = smallest if smallest == largest else f"{smallest} to {largest}"
    error = f"{max(checked.error for checked in members):.4g}"
    cells = (f"decay {decay} ulp" if members[0].decayed else "", f"error {error} ulp")
    return Line(name, len(members), cells)


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
