"""The account of a rewrite: for each variable which rule decays it, how much, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from graphwd.analysis.roles import Purpose, Purposes
from graphwd.analysis.updates import VariableWrites
from graphwd.errors import PlanError
from graphwd.graph.graph import Graph, Variable
from graphwd.planning.injections import Injection, watched
from graphwd.planning.records import decision_record
from graphwd.planning.terminal import as_table, detail_of
from graphwd.policy.rules import Rule

if TYPE_CHECKING:
    from graphwd.planning.update_graph import Trial


class Outcome(Enum):
    """What the plan does with a variable."""

    DECAY = "decay"
    EXEMPT = "exempt"  # its rule says 0
    NO_UPDATE = "no update"  # its rule asks for decay, but the step never updates it
    UNMATCHED = "unmatched"  # no rule decides it, and the policy skips those
    REFUSED = "refused"  # see the plan's problems


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for one trainable variable.

    Attributes:
        variable: the variable.
        outcome: what happens to it.
        rule: the rule that decided; None where none matched.
        writes: what the step does to it.
        injections: where its decay goes; empty unless the outcome is `Outcome.DECAY`.
        purposes: what the variables of the step are used for.
    """

    variable: Variable
    outcome: Outcome
    rule: Rule | None
    writes: VariableWrites
    injections: tuple[Injection, ...] = ()
    purposes: Purposes = field(default=Purposes(None), repr=False, compare=False)

    @property
    def purpose(self) -> Purpose:
        """What the variable is used for."""
        return self.purposes.of(self.variable)

    def __repr__(self) -> str:
        """In a few words: what the step does to a variable has no bound."""
        rule = f", {self.rule.where}" if self.rule else ""
        return f"<Decision {self.variable.name!r}: {self.outcome.value}{rule}>"


@dataclass(frozen=True, slots=True)
class Plan:
    """The complete account of a rewrite, made before anything is changed.

    Attributes:
        decisions: one for each trainable variable of the step, each once.
        problems: why the rewrite would be refused; empty where it would not.
        notes: things that are allowed, but nearly always a mistake or a surprise.
        graph: the step that it is for; None where it is for several.
        fuse: whether XLA compiles the optimizer's arithmetic of the decayed variables together with their decay.
        parts: where it is for several traces or graphs, the plan of each; else empty.
        rules: the rules of the policy, in order.
        trial: makes the bodies that a rewrite by the plan gives; None where no writer is known.
    """

    decisions: tuple[Decision, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    graph: Graph | None = field(default=None, repr=False, compare=False)
    fuse: bool = False
    parts: tuple[Plan, ...] = field(default=(), repr=False, compare=False)
    rules: tuple[Rule, ...] = field(default=(), repr=False, compare=False)
    trial: Callable[[Plan], Trial] | None = field(default=None, repr=False, compare=False)

    @property
    def injections(self) -> tuple[Injection, ...]:
        """Every place where decay goes."""
        return tuple(injection for decision in self.decisions for injection in decision.injections)

    def watched(self) -> Plan:
        """The same plan, in which every decay tells what it takes."""
        decisions = (
            replace(decision, injections=tuple(map(watched, decision.injections))) for decision in self.decisions
        )
        return replace(self, decisions=tuple(decisions))

    def check(self) -> None:
        """Refuses a plan with problems.

        Raises:
            PlanError: the plan has problems; the message lists all of them.
        """
        if self.problems:
            raise PlanError("\n".join(self.problems))

    def record(self, *, purposes: bool = True) -> dict[str, Any]:
        """The plan as plain values, with the keys that ``graphwd help plan`` documents.

        Args:
            purposes: whether it says what variables are used for, which takes a further walk through the step.
        """
        return {
            "version": 1,
            "fuse": "xla" if self.fuse else "none",
            "steps": [part._counts() for part in self.parts or (self,)],
            "variables": [decision_record(decision, purposes=purposes) for decision in self.decisions],
            "problems": list(self.problems),
            "notes": list(self.notes),
            "rewritten": [],
        }

    def _counts(self) -> dict[str, int]:
        """How many variables the step has, and how many of them are decayed; those of replicas count once."""
        decayed: dict[object, bool] = {}
        for decision in self.decisions:
            variable = decision.variable
            same = variable.shown, variable.path, variable.shape, variable.dtype
            decayed[same] = decayed.get(same, False) or bool(decision.injections)
        return {"variables": len(decayed), "decayed": sum(decayed.values())}

    def to_html(self, record: Mapping[str, Any] | None = None) -> str:
        """The plan as a page of its own, which loads nothing; it takes a trial rewrite, for what that injects.

        Args:
            record: what `record` returns, where something is added to it; None for that itself.
        """
        # Only those who ask for a page wait for the libraries that make it.
        from graphwd.planning.page import plan_as_html

        return plan_as_html(self, self.record() if record is None else record)

    def _repr_html_(self) -> str:
        """The page in a frame, as a notebook shows it."""
        from graphwd.planning.page import framed

        return framed(self.to_html())

    def __repr__(self) -> str:
        """In a few words; `str` is the whole."""
        counts = {"decisions": self.decisions, "problems": self.problems, "notes": self.notes}
        return f"<Plan: {', '.join(f'{len(what)} {name}' for name, what in counts.items())}; print it for the table>"

    def to_text(self, *, all: bool = False, verbose: bool = False, width: int | None = None) -> str:
        """The plan for a terminal, by rule, as ``graphwd plan`` prints it.

        Args:
            all: whether every variable has a line; else those that differ in the numbers of their names are folded.
            verbose: whether every variable has its updates and decays below its line.
            width: columns to fit into; None for those of the terminal. Where there is none, a folded plan has 100, and
                the others have lines as long as they need.
        """
        return as_table(self.record(), detail_of(all=all, verbose=verbose), width)

    def __str__(self) -> str:
        """The plan for a terminal, folded; `to_text` is more."""
        return self.to_text()
