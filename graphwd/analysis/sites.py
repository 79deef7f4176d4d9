"""Where in a step something happens, and what is known of a write to a trainable variable."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from graphwd.analysis.values import DATA, MANY, Content, Value
from graphwd.graph.graph import Callee, Variable
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, CallKind, Form, WriteOp

SAVED_MODEL = "SavedModel"
"""The node by which the view of a SavedModel calls one of its functions."""


class Evidence(Enum):
    """What makes a write an update, strongest first."""

    APPLY_OP = "gradient input of an Apply op"
    GRADIENT_SCOPE = "computed from a gradient scope"
    DATA_PATH = "computed from the step's data"
    NAMED = "named by the policy"


STRONG = (Evidence.APPLY_OP, Evidence.GRADIENT_SCOPE)


class Frame(NamedTuple):
    """One call on the way from the step to a node: the calling node, the function it calls, and how."""

    node: str
    op: str
    callee: Callee


Path = tuple[Frame, ...]
"""The calls that lead to a body, outermost first."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node in one of the contexts in which its body runs.

    Attributes:
        path: the calls that lead to the body, outermost first.
        node: the name of the node in it.
        op: its op type.
    """

    path: Path
    node: str
    op: str

    def __str__(self) -> str:
        """A site as people read it: the calls that lead to it, then the node."""
        # A SavedModel is viewed as a choice of its functions; each goes by its name.
        path = self.path[1:] if self.path and self.path[0].node == SAVED_MODEL else self.path
        return " > ".join([*(f"{frame.node} [{frame.callee.attribute}]" for frame in path), self.node])

    def excludes(self, other: Site) -> bool:
        """Whether the two lie in different branches of one conditional, so that a run meets only one of them."""
        for mine, theirs in zip(self.path, other.path, strict=False):
            if mine != theirs:
                return (
                    mine.node == theirs.node
                    and CALL_OPS[mine.op].kind is CallKind.BRANCH
                    and mine.callee[:2] != theirs.callee[:2]
                )
        return False


@dataclass(frozen=True, slots=True)
class Write:
    """A write to a trainable variable.

    Attributes:
        variable: the variable.
        site: where.
        value: what is known of the tensor written (of the gradient, for an Apply op).
        gradients: taint of the tensor the first time the write is met. In a loop, slot variables carry the gradients
            of one iteration into the next, and ``value`` has them all.
        number: its place among the writes of the step, in program order.
    """

    variable: Variable
    site: Site
    value: Value
    gradients: int
    number: int = 0

    @property
    def op(self) -> WriteOp:
        """The row of its op."""
        return WRITE_OPS[self.site.op]

    @property
    def is_native_decay(self) -> bool:
        """Whether it multiplies the variable by something that does not depend on it: decay that is already there."""
        if self.value.from_gradient or self.value.source != self.variable.id or self.op.form is Form.APPLY:
            return False
        if self.op.form is Form.ASSIGN:
            return self.value.content is Content.LINEAR
        return self.op.form in (Form.ADD, Form.SUB) and self.value.content in (Content.EXACT, Content.LINEAR)

    @property
    def evidence(self) -> Evidence | None:
        """What makes it an update; None where nothing does."""
        if self.op.form is Form.APPLY:
            return Evidence.APPLY_OP
        if self.value.from_gradient:
            return Evidence.GRADIENT_SCOPE
        if self.is_native_decay or not self.value.taint & DATA:
            return None
        # Data assigned as it is (restored, set by the caller) is no update; a step from the current value is.
        moves = self.op.form in (Form.ADD, Form.SUB) or self.value.source in (self.variable.id, MANY)
        return Evidence.DATA_PATH if moves else None
