"""All mistakes of a policy at once: what reads one value raises, and what reads several collects."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from operator import itemgetter

from graphwd.errors import PolicyError

_MOST = 100
"""How many mistakes are told: more are of a file that is no policy, or that is meant to exhaust memory."""


class Mistakes:
    """Collects the errors of what is read, to raise them as one.

    Examples:
        >>> mistakes = Mistakes()
        >>> with mistakes.kept(line=7):
        ...     raise PolicyError("policy.yaml:7: unknown key 'nmae'")
        >>> mistakes.check()
        Traceback (most recent call last):
        graphwd.errors.PolicyError: policy.yaml:7: unknown key 'nmae'
    """

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}  # by message: what an alias repeats is told once

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._lines)

    @contextlib.contextmanager
    def kept(self, line: int = 0) -> Generator[None]:
        """Keeps a `PolicyError` of its body and goes on after it.

        Args:
            line: the line of what is read, for an error that does not know its own.

        Raises:
            PolicyError: there are more mistakes than anyone would read.
        """
        try:
            yield
        except PolicyError as error:
            self.add(error, line)
        if len(self._lines) >= _MOST:
            raise self._error(f"\nthese are the first {_MOST} mistakes; there may be more")

    def add(self, error: PolicyError, line: int = 0) -> None:
        """Adds an error, and the line of what was read for one that does not know its own."""
        for own_line, message in error.mistakes:
            self._lines.setdefault(message, own_line or line)

    def check(self) -> None:
        """Raises what was collected.

        Raises:
            PolicyError: there were mistakes; the message tells each on a line of its own, in the order of the file.
        """
        if self._lines:
            raise self._error()

    def _error(self, end: str = "") -> PolicyError:
        mistakes = sorted(((line, message) for message, line in self._lines.items()), key=itemgetter(0))
        return PolicyError("\n".join(message for _, message in mistakes) + end, mistakes)
