"""What is known of one variable or output of a step that is verified, and what was found."""

from __future__ import annotations

from dataclasses import dataclass

from graphwd.checking.verification import Checked, Kind, RateCheck, Verdict
from graphwd.graph.graph import Variable
from graphwd.policy.rules import Mode, Rule

_NOT_FINITE = (
    "the step itself makes it infinite or NaN, so nothing can be told; give arguments and a learning rate with which "
    "it trains"
)


@dataclass
class Account:
    """What is known of one variable or output, and the findings.

    Attributes:
        name: its name.
        label: what tells it from the others of its name; empty for an output, and for what the graph does not show.
        variable: the variable of the step; None for an output.
        rule: the rule that decays it; None where none does.
        certain: whether the run of the whole step tells its value.
        missing: whether its rule decays it, but the plan does not.
        left: whether a rule would decay it, and the plan leaves it, as the policy allows.
        finite: whether a run of the step itself left a finite number in it, or no rule decays it.
        error: the largest error, in units in the last place.
        decay: the largest decay, in units in the last place.
        fits: whether it is as the whole step tells, in all runs.
        seen: whether the whole step told its value in a run.
        reason: why it is wrong; empty where only the error tells.
        learning_rate: what is known of the learning rate that its decay is multiplied by; None where it is not scaled.
    """

    name: str
    label: str = ""
    variable: Variable | None = None
    rule: Rule | None = None
    certain: bool = False
    missing: bool = False
    left: bool = False
    finite: bool = True
    error: float = 0.0
    decay: float = 0.0
    fits: bool = True
    seen: bool = False
    reason: str = ""
    learning_rate: RateCheck | None = None

    @property
    def scaled(self) -> bool:
        """Whether its decay is multiplied by the learning rate."""
        return self.rule is not None and is_decoupled(self.rule) and self.rule.semantics.scale.power > 0

    @property
    def shown(self) -> str:
        """What it is called in messages."""
        return self.label or self.name

    def checked(self, tolerance: float, function: str) -> Checked:
        """The findings, for the report."""
        reason = self.reason or ("" if self.finite else _NOT_FINITE)
        if self.error > tolerance or reason:
            verdict = Verdict.WRONG
        elif self.rule is not None and self.decay <= 2 * tolerance:
            verdict = Verdict.UNSEEN
        else:
            verdict = Verdict.RIGHT
        whole = self.seen and (self.certain or self.fits) and not self.left
        kind = Kind.WHOLE if whole else Kind.PLAN
        decayed = self.rule is not None
        return Checked(
            self.name,
            decayed,
            self.error,
            self.decay,
            verdict,
            kind,
            self.learning_rate,
            reason,
            function,
            self.label,
            self.variable is None or self.variable.trainable,
        )


def is_decoupled(rule: Rule) -> bool:
    """Whether a rule decays the weight; others add to the gradient."""
    return rule.semantics.mode is Mode.DECOUPLED
