"""Plans, rewrites, strips and describes any step that is saved: Python steps, and models in files.

Each of these is one sequence here, the same for every kind of step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from graphwd.errors import StepError
from graphwd.planning.plan import Plan
from graphwd.policy.rules import Policy
from graphwd.progress import progress
from graphwd.rewriting.part import Prepared, merged, whole_plan


@dataclass(frozen=True, slots=True)
class Output:
    """The place to write to.

    Attributes:
        path: the directory. It appears complete or not at all.
        overwrite: whether it is replaced, in one step, where it exists.
        link: whether weights and assets are hard links to those of the source, where they cannot be shared otherwise.
    """

    path: Path
    overwrite: bool = False
    link: bool = False


class Target(Protocol):
    """A step that can be written as a SavedModel or a MetaGraph."""

    name: str
    """Its name in errors."""

    def bounds(self) -> AbstractContextManager[None]:
        """The context in which it is read and written."""
        ...

    def prepare(self, policy: Policy) -> Sequence[Prepared[Any]]:
        """Reads and plans its parts.

        Raises:
            GraphwdError: it is malformed, rewritten already, or the policy is none for it.
        """
        ...

    def problems(self) -> Iterator[str]:
        """Why it could not be written, for its plan."""
        ...

    def faults(self) -> Iterator[str]:
        """Why its files cannot be written anew."""
        ...

    def refuse_output(self, output: Output) -> None:
        """Refuses a place that cannot be written.

        Raises:
            StepError: it exists, or the step itself is or lies there.
        """
        ...

    def replace(self, prepared: Sequence[Prepared[Any]], policy: Policy, /) -> None:
        """Gives it weight decay: only its copy in memory is changed."""
        ...

    def save(self, output: Output) -> None:
        """Writes it in its present state."""
        ...


class Model(Target, Protocol):
    """A target in files, which graphwd may have written before."""

    def take_out(self) -> int:
        """Takes graphwd's own decay out again; returns how many decays those were."""
        ...

    def decays(self) -> list[dict[str, Any]]:
        """Reads the records of graphwd's decays in it."""
        ...


def plan(target: Target, policy: Policy) -> Plan:
    """Decides what `rewrite` would do, and writes nothing.

    Args:
        target: the step.
        policy: the policy.

    Returns:
        The plan, of all parts; where `rewrite` would refuse, its ``problems`` say why.

    Raises:
        GraphwdError: the step is malformed, rewritten already, or the policy is none for it.
    """
    with target.bounds(), progress("planning"):
        prepared = target.prepare(policy)
        return whole_plan(prepared, [*target.problems(), *target.faults()])


def rewrite(target: Target, policy: Policy, output: Output) -> Plan:
    """Writes a step with weight decay.

    Args:
        target: the step; what it was read from is never modified.
        policy: the policy.
        output: where it is written.

    Returns:
        The plan, of all parts.

    Raises:
        GraphwdError: the policy does not fit the step, the step is malformed, or the output cannot be written.
    """
    with target.bounds():
        target.refuse_output(output)
        with progress("planning"):
            prepared = target.prepare(policy)
            decided = merged([part.plan for part in prepared], target.problems())
        decided.check()
        _refuse_faults(target)
        with progress("rewriting"):
            target.replace(prepared, policy)
        with progress("writing"):
            target.save(output)
    return decided


def strip_model(model: Model, output: Output) -> int:
    """Writes a model without graphwd's own decay.

    Args:
        model: the model; what it was read from is never modified.
        output: where it is written.

    Returns:
        How many decays were taken out.

    Raises:
        GraphwdError: there is none, the model is malformed, or the output cannot be written.
    """
    with model.bounds():
        model.refuse_output(output)
        count = model.take_out()
        if not count:
            raise StepError(f"{model.name}: holds no decay of graphwd")
        _refuse_faults(model)
        with progress("writing"):
            model.save(output)
    return count


def describe(model: Model) -> list[dict[str, Any]]:
    """Says what graphwd has done to a model.

    Args:
        model: the model.

    Returns:
        For every decay in it, and every path of calls to it: ``variable``, ``label``, ``at``, ``where``,
        ``rate``, ``learning_rate``, ``power``, ``formula``, ``rows``. Empty where graphwd has not rewritten it.

    Raises:
        GraphwdError: the model is malformed.
    """
    with model.bounds():
        return model.decays()


def _refuse_faults(target: Target) -> None:
    for fault in target.faults():
        raise StepError(fault)
