"""The errors that graphwd raises on purpose, and the exit status each one means."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class GraphwdError(Exception):
    """Base of every expected failure: the message says where, what was found and what to write instead.

    Attributes:
        exit_status: what the command line exits with when this error ends it.
        ag_pass_through: tells AutoGraph to leave the message alone, and not to put the frames that it went through
            before it.
    """

    exit_status = 1
    ag_pass_through = True


class UsageError(GraphwdError):
    """The command line is malformed."""

    exit_status = 2


class PolicyError(GraphwdError):
    """A policy file or mapping is malformed.

    Attributes:
        mistakes: all that is wrong, in the order of the file: of each the line, 0 where none is known, and the message.
    """

    exit_status = 2

    def __init__(self, message: str, mistakes: Sequence[tuple[int, str]] = ()) -> None:
        """Takes the whole message and, where that is of several mistakes or of a line, the mistakes."""
        super().__init__(message)
        self.mistakes = tuple(mistakes) or ((0, message),)


class StepError(GraphwdError):
    """A training step cannot be found, loaded or traced."""


class GraphError(GraphwdError):
    """A graph holds something that graphwd cannot read: a dangling edge, a missing function, a recursive call."""


class PlanError(GraphwdError):
    """The policy and the step do not fit together: a rule or a variable is left over, or an update is ambiguous."""


class UnclearError(GraphwdError):
    """The graph does not tell what a rule needs to know; a plan makes a problem of it."""


class VerifyError(GraphwdError):
    """A rewritten step does not do what its policy says, or that cannot be verified."""


class RewriteError(GraphwdError):
    """A step cannot be rewritten, or the result is not what was planned; the original is untouched."""
