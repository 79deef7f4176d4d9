"""What is to be injected, where: all that the writer of protos needs, in terms of the nodes of one body."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from enum import Enum
from typing import Any, ClassVar

from graphwd.analysis.gradient_entry import Entry
from graphwd.analysis.learning_rate import LearningRate
from graphwd.analysis.readiness import Readiness
from graphwd.analysis.sites import Frame, Path, Site
from graphwd.decay.formulas import Formula, l2
from graphwd.decay.schedules import Schedule
from graphwd.graph.edge import NO_EDGE, EdgeText, Use
from graphwd.graph.graph import Callee, Variable

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""For every dtype that can be decayed, the distance from 1 to the next number."""


class Where(Enum):
    """Where a decay enters an update: how plans and records call the types of injections."""

    AFTER = "after"
    BEFORE = "before"
    VALUE = "value"
    GRADIENT = "gradient"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A tensor that lies outside of the body that needs it, and is brought there by one more argument on the way.

    Attributes:
        name: what messages call it.
        dtype: its dtype; ``resource`` for the handle of a variable.
        path: the calls that lead to its body, the first of those that lead to the body that needs it; None for what the
            step gets from outside, as one more capture.
        edge: the tensor, as an edge of its body; no text for a capture.
    """

    name: str
    dtype: str
    path: Path | None = None
    edge: EdgeText = NO_EDGE

    @property
    def depth(self) -> int:
        """How many calls lead to its body; -1 for a capture."""
        return -1 if self.path is None else len(self.path)


class OwnKind(Enum):
    """What a variable of graphwd's own is for."""

    RATE = "rate"  # to be assigned by the user
    STEPS = "steps"  # counts updates
    GIVEN = "given"  # the user's own, which is the rate
    INITIAL = "initial"  # keeps the first weight of a variable
    SEEN = "seen"  # adds up what the decays of a variable take, for summaries


@dataclass(frozen=True, slots=True)
class Own(Elsewhere):
    """The handle of a variable of graphwd's own, which the step captures.

    Attributes:
        kind: what it is for.
        key: which of its kind: the word of a policy for a rate, the identity of the weight's handle for what is kept of
            a weight.
    """

    kind: OwnKind = OwnKind.RATE
    key: Any = None


def own_rate(tunable: str) -> Own:
    """The handle of the variable that holds a rate which is assigned while it trains.

    Args:
        tunable: its name in the policy.
    """
    return Own(f"rate '{tunable}'", "resource", kind=OwnKind.RATE, key=tunable)


@dataclass(frozen=True, slots=True)
class Scheduled(Elsewhere):
    """The rate of a schedule, computed once in the body where its counter is counted up, for all that lies below.

    Attributes:
        schedule: the schedule.
        write: the node that counts up, which waits until the counter is read; no text for a counter of graphwd's own.
        counter_dtype: the dtype of the counter.
        reference: whether the counter is a v1 reference variable.
        own: the counter of graphwd's own; None where the step has one.
        variable: the counter of the step, by its number; -1 for one of graphwd's own.
        counter: the name of the counter in messages.
    """

    schedule: Schedule | None = None
    write: str = ""
    counter_dtype: str = "int64"
    reference: bool = False
    own: Own | None = None
    variable: int = -1
    counter: str = "a counter of graphwd's own"


@dataclass(frozen=True, slots=True)
class Factor:
    """A scalar that a rate is a multiple of, and that is not the learning rate.

    Attributes:
        name: what is shown of it: a schedule, or a number that can be assigned and its name.
        dtype: its dtype.
        tensor: where it is. The handle of a variable is read where the decay is done.
    """

    name: str
    dtype: str
    tensor: Elsewhere


@dataclass(frozen=True, slots=True)
class Rate:
    """What the formula is multiplied by at each step: the product of a number and scalar tensors.

    Attributes:
        number: the number, without unit.
        learning_rate: a scalar tensor of the update's body.
        factors: scalars from elsewhere.
        power: how often the learning rate is a factor.
    """

    number: float
    learning_rate: LearningRate | None = None
    factors: tuple[Factor, ...] = ()
    power: int = 1

    @property
    def is_constant(self) -> bool:
        """Whether it is the same number at each step."""
        return self.learning_rate is None and not self.factors

    def __rmul__(self, factor: float) -> Rate:
        """A multiple of it."""
        return replace(self, number=factor * self.number)


@dataclass(frozen=True, slots=True)
class Injection:
    """One place where decay goes; what kind of place, the types below say.

    Attributes:
        variable: what is decayed.
        site: the write that the decay belongs to; the last of an update for `After`, else the first.
        rate: the rate.
        rows: whether only the rows are decayed that the write, or the gradient, is of.
        formula: what the rate is multiplied by.
        initial: the first weight, where the formula asks for it.
        rounding: whether 1 - rate is rounded down or up at a step; None where no factor is made of it as the step runs.
        shared: whether others may write the variable at the same time, so that a decay has to subtract.
        seen: what the decay tells of itself, where it is watched.
    """

    variable: Variable
    site: Site
    rate: Rate
    _: KW_ONLY
    rows: bool = False
    formula: Formula = l2
    initial: Own | None = None
    rounding: Scheduled | None = None
    shared: bool = False
    seen: Own | None = None

    where: ClassVar[Where]

    @property
    def uses(self) -> tuple[Use, ...]:
        """The inputs of the original that are led elsewhere."""
        return ()

    @property
    def touched(self) -> Iterator[str]:
        """The nodes of its body that it changes or copies."""
        yield self.site.node
        yield from (use.node for use in self.uses)

    @property
    def reads(self) -> Iterator[EdgeText]:
        """The edges of its body that the decay is computed from, besides the variable and the rows."""
        if self.rate.learning_rate is not None:
            yield self.rate.learning_rate.tensor

    @property
    def elsewhere(self) -> tuple[Elsewhere, ...]:
        """What has to be brought into its body."""
        others = (tensor for tensor in (self.initial, self.rounding, self.seen) if tensor is not None)
        return *(factor.tensor for factor in self.rate.factors), *others

    @property
    def schedules(self) -> Iterator[Scheduled]:
        """The schedules that are factors of the rate."""
        return (factor.tensor for factor in self.rate.factors if isinstance(factor.tensor, Scheduled))

    @property
    def own(self) -> Iterator[Own]:
        """The variables of graphwd's own that it needs, be it for a schedule."""
        for tensor in self.elsewhere:
            own = tensor.own if isinstance(tensor, Scheduled) else tensor
            if isinstance(own, Own):
                yield own

    @property
    def done(self) -> tuple[object, ...]:
        """What tells two injections at one node of a body apart: all that is written into the body.

        Of the variable that is the dtype, the shape, the device and the kind, but not which it is.
        """
        shared = (field.name for field in fields(self) if field.name not in ("variable", "site"))
        variable = self.variable
        kind = variable.dtype, variable.shape, variable.device, variable.reference
        return type(self), *kind, *(getattr(self, name) for name in shared)


@dataclass(frozen=True, slots=True)
class EarlyRead:
    """A read of the weight before its update, for a formula of what the update subtracts.

    Attributes:
        write: the first write of the update, which waits for the read.
        waits: what the read waits for, as that write does.
        decayed: whether this is the weight that is decayed, as it is where the order is before.
    """

    write: str
    waits: tuple[str, ...]
    decayed: bool


@dataclass(frozen=True, slots=True)
class After(Injection):
    """w <- w - r·p(w), once the write is done.

    Attributes:
        early: the read ahead of the update; None where the formula does not ask for one.
    """

    where = Where.AFTER
    _: KW_ONLY
    early: EarlyRead | None = None

    @property
    def touched(self) -> Iterator[str]:
        """The nodes of its body that it changes or copies."""
        yield from super(After, self).touched
        if self.early is not None:
            yield self.early.write


@dataclass(frozen=True, slots=True)
class Before(Injection):
    """w <- w - r·p(w), once the write is ready to be done.

    Attributes:
        readiness: what the decay waits for.
    """

    where = Where.BEFORE
    readiness: Readiness

    @property
    def uses(self) -> tuple[Use, ...]:
        """The inputs that get the weight decayed."""
        return tuple(use for _, uses in self.readiness.rereads for use in uses)

    @property
    def touched(self) -> Iterator[str]:
        """The nodes of its body that it changes or copies."""
        # Not super() alone: a dataclass with slots is another class than the one that the method was defined in.
        yield from super(Before, self).touched
        yield from (name for name, _ in self.readiness.rereads)
        yield from self.readiness.followers


@dataclass(frozen=True, slots=True)
class InValue(Injection):
    """v <- v - r·p(w), where v is what is written, and has the weight in it.

    Attributes:
        value: what is written, as an edge.
        use: the input by which the write gets it.
        weight: the tensor that is the weight as the update takes it.
    """

    where = Where.VALUE
    value: EdgeText
    use: Use
    weight: EdgeText

    @property
    def uses(self) -> tuple[Use, ...]:
        """The input that gets the value decayed."""
        return (self.use,)

    @property
    def reads(self) -> Iterator[EdgeText]:
        """The edges of its body that the decay is computed from."""
        yield from super(InValue, self).reads
        yield from (self.weight, self.value)


@dataclass(frozen=True, slots=True)
class InGradient(Injection):
    """g <- g + r·p(w).

    Attributes:
        entry: where the gradient enters the optimizer's arithmetic.
        weight: the tensor that is the weight as the update takes it; None where the weight is read anew.
    """

    where = Where.GRADIENT
    entry: Entry
    weight: EdgeText | None = None

    @property
    def uses(self) -> tuple[Use, ...]:
        """The inputs that get the gradient decayed."""
        return self.entry.uses

    @property
    def reads(self) -> Iterator[EdgeText]:
        """The edges of its body that the decay is computed from, the rows included."""
        yield from super(InGradient, self).reads
        yield from (edge for edge in (self.weight, self.entry.tensor, self.entry.indices) if edge is not None)


def watched(injection: Injection) -> Injection:
    """An injection whose decay tells what it takes.

    Args:
        injection: any.
    """
    variable = injection.variable
    seen = Own(f"what is seen of '{variable.shown}'", "resource", kind=OwnKind.SEEN, key=variable.key)
    return replace(injection, seen=seen)


@dataclass
class Nest:
    """The injections in and below one body: at its own nodes, and in the functions that its nodes call."""

    here: dict[str, Injection] = field(default_factory=dict[str, Injection])
    calls: dict[Frame, Nest] = field(default_factory=dict["Frame", "Nest"])

    def functions(self) -> Iterator[str]:
        """The functions that are called on the way to any injection, each at least once."""
        for frame, below in self.calls.items():
            yield frame.callee.function
            yield from below.functions()

    def by_node(self) -> Mapping[str, Mapping[Callee, Nest]]:
        """The nests below, by the node that calls and the function that it calls."""
        nests: dict[str, dict[Callee, Nest]] = {}
        for frame, below in self.calls.items():
            nests.setdefault(frame.node, {})[frame.callee] = below
        return nests

    def outside(self, depth: int = 0) -> tuple[Elsewhere, ...]:
        """What has to be brought into this body from outside of it.

        Args:
            depth: how many calls lead to this body.
        """
        return tuple(tensor for tensor in self._elsewhere(depth) if tensor.depth < depth)

    def scheduled(self, depth: int = 0) -> tuple[Scheduled, ...]:
        """The rates of schedules that are computed in this body.

        Args:
            depth: how many calls lead to this body.
        """
        needed = self._elsewhere(depth)
        return tuple(tensor for tensor in needed if isinstance(tensor, Scheduled) and tensor.depth == depth)

    def _elsewhere(self, depth: int) -> Iterable[Elsewhere]:
        """All that is not from the body at hand, and is needed in it or below it; each once."""
        here = (tensor for injection in self.here.values() for tensor in injection.elsewhere)
        below = (tensor for nest in self.calls.values() for tensor in nest.outside(depth + 1))
        needed = dict.fromkeys((*here, *below))
        for tensor in list(needed):
            if isinstance(tensor, Scheduled) and tensor.depth == depth and tensor.own is not None:
                needed[tensor.own] = None
        return needed

    def signature(self) -> tuple[object, ...]:
        """What tells two rewritings of one body apart: not the variables, but what is done at which node."""
        here = tuple((node, injection.done) for node, injection in sorted(self.here.items()))
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
