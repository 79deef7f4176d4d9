"""What is to be injected, where: all that the writer of protos needs, in terms of the nodes of one body."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from graphwd.analysis.gradient_entry import Entry
from graphwd.analysis.learning_rate import LearningRate
from graphwd.analysis.readiness import Readiness
from graphwd.analysis.sites import Frame, Site
from graphwd.graph.edge import Use
from graphwd.graph.graph import Variable

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""For every dtype that can be decayed, the distance from 1 to the next number."""


class Where(Enum):
    """Where a decay enters an update."""

    AFTER = "after"  # w <- (1 - c) * w, once the write is done
    BEFORE = "before"  # w <- (1 - c) * w, once the write is ready to be done
    VALUE = "value"  # v <- v - c * w, where v is what is written
    GRADIENT = "gradient"  # g <- g + c * w


@dataclass(frozen=True, slots=True)
class Injection:
    """One place where decay goes.

    Attributes:
        variable: what is decayed.
        site: the write that the decay belongs to; the last of an update for `Where.AFTER`, else the first.
        rate: the rate, without unit; times the learning rate where there is one.
        where: where it enters.
        rows: whether only the rows are decayed that the write, or the gradient, is of.
        learning_rate: what the rate is multiplied by, where it is a tensor.
        entry: where the gradient enters, for `Where.GRADIENT`.
        readiness: what the decay waits for, for `Where.BEFORE`.
        weight: the tensor that is the weight as the update takes it, where the update writes a sum with that tensor;
            None where the weight is read anew.
        value: what is written, as an edge, and the input by which the write gets it, for `Where.VALUE`.
    """

    variable: Variable
    site: Site
    rate: float
    where: Where = Where.AFTER
    rows: bool = False
    learning_rate: LearningRate | None = None
    entry: Entry | None = None
    readiness: Readiness | None = None
    weight: str | None = None
    value: tuple[str, Use] | None = None

    @property
    def touched(self) -> Iterator[str]:
        """The nodes of its body that it changes or copies."""
        yield self.site.node
        yield from (use.node for use in self.uses)
        if self.readiness is not None:
            yield from (name for name, _ in self.readiness.rereads)

    @property
    def uses(self) -> tuple[Use, ...]:
        """The inputs of the original that are led elsewhere."""
        if self.entry is not None:
            return self.entry.uses
        if self.value is not None:
            return (self.value[1],)
        return tuple(use for _, uses in self.readiness.rereads for use in uses) if self.readiness is not None else ()

    @property
    def decay(self) -> tuple[object, ...]:
        """All but the variable and the calls that lead here: what is done to the body."""
        place = self.entry, self.readiness, self.weight, self.value
        return self.rate, self.where, self.rows, self.learning_rate, *place


@dataclass
class Nest:
    """The injections in and below one body: at its own nodes, and in the functions that its nodes call."""

    here: dict[str, Injection] = field(default_factory=dict)
    calls: dict[Frame, Nest] = field(default_factory=dict)

    def functions(self) -> Iterator[str]:
        """The functions that are called on the way to any injection, each at least once."""
        for frame, below in self.calls.items():
            yield frame.callee.function
            yield from below.functions()

    def signature(self) -> tuple[object, ...]:
        """What tells two rewritings of one body apart: not the variables, but what is done at which node."""
        here = tuple((node, i.variable.dtype, i.variable.shape, i.decay) for node, i in sorted(self.here.items()))
        below = tuple(sorted((frame, nest.signature()) for frame, nest in self.calls.items()))
        return here, below


def nested(injections: Iterable[Injection]) -> Nest:
    """Sorts injections by the bodies that they lie in.

    Args:
        injections: of one step.

    Returns:
        Those of the step itself, and below it those of the functions it calls.
    """
    root = Nest()
    for injection in injections:
        nest = root
        for frame in injection.site.path:
            nest = nest.calls.setdefault(frame, Nest())
        nest.here[injection.site.node] = injection
    return root
