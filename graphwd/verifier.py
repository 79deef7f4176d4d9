"""Runs a step and its rewritten form side by side and checks every variable against the policy's formula."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

from graphwd.errors import StepError, VerifyError
from graphwd.ordering import races
from graphwd.pipeline import concrete, plan
from graphwd.policy import PolicyLike
from graphwd.read_function import read, undecorated, variables_of
from graphwd.reference import Reference

Array = np.ndarray

_ROUNDING = 1024
"""Units in the last place: what a sum of a few numbers may lose when it cancels; random numbers differ by millions."""


class Verdict(Enum):
    """What a verification says of a variable."""

    RIGHT = "right"
    WRONG = "wrong"
    UNSEEN = "too small to see"  # it is right, but would be without decay as well


@dataclass(frozen=True, slots=True)
class Checked:
    """What a verification found for one variable.

    Attributes:
        name: the variable.
        decayed: whether the plan decays it.
        error: the largest difference between the rewritten step and the formula, in units in the last place.
        decay: the largest difference that the decay made, in the same units.
        verdict: what that says.
    """

    name: str
    decayed: bool
    error: float
    decay: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        variables: every variable of the step, slot variables included.
        races: injected nodes that may run in the wrong order on another run.
        runs: how many steps were run.
    """

    variables: tuple[Checked, ...]
    races: tuple[str, ...]
    runs: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.races and all(each.verdict is not Verdict.WRONG for each in self.variables)

    @property
    def largest_error(self) -> float:
        """The largest error of any variable, in units in the last place."""
        return max((each.error for each in self.variables), default=0.0)

    def check(self) -> None:
        """Refuses what is wrong.

        Raises:
            VerifyError: a variable is not what the formula says, or injected nodes race.
        """
        wrong = [each for each in self.variables if each.verdict is Verdict.WRONG]
        lines = [
            f"'{each.name}' is {each.error:.4g} units in the last place from what the policy says, "
            f"where its decay is {each.decay:.4g}"
            for each in wrong
        ]
        if lines or self.races:
            raise VerifyError("\n".join([*lines, *self.races]))

    def __str__(self) -> str:
        """The findings as a table."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("variable", "decay (ulp)", "error (ulp)", "verdict"):
            table.add_column(column, overflow="fold")
        for each in self.variables:
            decay = f"{each.decay:.4g}" if each.decayed else "-"
            table.add_row(each.name, decay, f"{each.error:.4g}", each.verdict.value)
        console = Console(width=10_000, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(table)
        lines = [line.rstrip() for line in capture.get().splitlines() if line.strip()]
        summary = f"{'right' if self.ok else 'WRONG'} in {self.runs} runs; largest error {self.largest_error:.4g} ulp"
        return "\n".join([*lines, summary, *(f"race: {race}" for race in self.races)])


def verify(
    original: Any,
    rewritten: Any,
    policy: PolicyLike,
    /,
    *args: Any,
    runs: int = 5,
    tolerance: float = 4.0,
    seed: int = 0,
    variables: Sequence[tf.Variable] | None = None,
    **kwargs: Any,
) -> Verification:
    """Checks that a rewritten step does what its policy says.

    Both steps run from the same state on the same inputs, several times. The original, run in pieces with the decay
    done in NumPy in float64 between them, is what the rewritten step must agree with, in every variable. The variables
    are left as they were.

    Args:
        original: the step, a ``ConcreteFunction``, a ``tf.function`` or a plain Python function.
        rewritten: what `rewrite`, the decorator or a SavedModel made of it: a callable.
        policy: the policy that it was rewritten by.
        *args: the arguments, or ``tf.TensorSpec``s; those left out, or specs, are generated: normal floats, integers 0
            and 1, unknown dimensions 4.
        runs: how many steps are run.
        tolerance: the largest error that is right, in units in the last place: of a decayed weight, of the larger of
            its values before and after, element by element; of any other variable, of its largest element. Compiled
            steps may need more: they round in other places.
        seed: of the inputs.
        variables: the variables of ``rewritten``, in the order of the captures of ``original``, where they are others;
            more may follow.
        **kwargs: arguments by name.

    Returns:
        What was found; its ``check()`` raises where something is wrong.

    Raises:
        PlanError: the policy does not fit the original.
        VerifyError: the step cannot be verified: it is random, or a decay lies in the function of a dataset.
    """
    for what, given in (("original", original), ("rewritten", rewritten)):
        if not callable(given):
            raise StepError(
                f"the {what} step must be a function, got a {type(given).__name__}; load a SavedModel first, keep what "
                "is loaded, and give its function"
            )
    step = concrete(undecorated(original), *args, **kwargs)
    decided = plan(step, policy)
    decided.check()
    mine = variables_of(step)
    theirs = mine if variables is None else list(variables)
    theirs = theirs[: len(mine)]
    if len(mine) != len(theirs):
        raise VerifyError(f"the original has {len(mine)} variables, the rewritten step {len(theirs)}")
    names = [variable.name.removesuffix(":0") for variable in mine]
    decayed = {injection.variable.name for injection in decided.injections}
    random = np.random.default_rng(seed)
    reference = Reference(step, decided.injections)
    start, start_of_theirs = _values(mine), _values(theirs)
    errors, decays = np.zeros(len(mine)), np.zeros(len(mine))
    found: tuple[str, ...] = ()
    options = tf.config.optimizer.get_experimental_options()
    # Grappler would fuse and fold a whole step and its pieces differently, and round in other places.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        state = start
        for number in range(runs):
            call = _arguments(step, args, kwargs, random)
            undecayed = _after(mine, state, lambda call=call: step(*call.args, **call.kwargs))
            if number == 0:
                _refuse_random(step, undecayed, _after(mine, state, lambda call=call: step(*call.args, **call.kwargs)))
                found = tuple(races(read(concrete(rewritten, *call.args, **call.kwargs))))
            expected = _after(mine, state, lambda call=call: reference.run(call.flat))
            actual = _after(theirs, state, lambda call=call: rewritten(*call.args, **call.kwargs))
            for i, (before, plain, right, now) in enumerate(zip(state, undecayed, expected, actual, strict=True)):
                whole = names[i] not in decayed
                error = ulps(right, now, before, whole=whole)
                if whole:
                    # What no decay reaches is as the original leaves it, also where that is compiled.
                    error = min(error, ulps(plain, now, before, whole=True))
                errors[i] = max(errors[i], error)
                decays[i] = max(decays[i], ulps(right, plain, before, whole=whole))
            state = expected
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False} | options)
        _assign(mine, start)
        _assign(theirs, start_of_theirs)
    checked = tuple(
        _checked(name, name in decayed, float(error), float(decay), tolerance)
        for name, error, decay in zip(names, errors, decays, strict=True)
    )
    return Verification(checked, found, runs)


def ulps(expected: Array, actual: Array, before: Array, *, whole: bool = False) -> float:
    """The largest difference of two arrays, in units in the last place of the largest of three, element by element.

    Args:
        expected: of any dtype.
        actual: of the same shape and dtype.
        before: likewise; what both started from: after a cancellation its last place is what counts.
        whole: whether the unit is that of the largest element for all of them: a slot variable is a sum of terms that
            cancel, and how large they were is not seen.

    Returns:
        The number of units; infinite where one of the first two is not finite and the other differs, and where
        integers differ.
    """
    if expected.tobytes() == actual.tobytes():
        return 0.0
    if expected.dtype.kind in "biuSO":
        return float((expected != actual).any()) * float("inf")
    wide = [each.astype(np.float64) for each in (expected, actual, before)]
    finite = np.isfinite(wide[0]) & np.isfinite(wide[1])
    differ = ~finite & ~((wide[0] == wide[1]) | (np.isnan(wide[0]) & np.isnan(wide[1])))
    if differ.any():
        return float("inf")
    scale = np.maximum.reduce([np.abs(np.where(np.isfinite(each), each, 0)) for each in wide])
    if whole:
        scale = np.full_like(scale, scale.max(initial=0.0))
    unit = np.spacing(scale.astype(expected.dtype)).astype(np.float64)
    difference = np.subtract(wide[0], wide[1], where=finite, out=np.zeros_like(wide[0]))
    return float((np.abs(difference) / unit).max(initial=0.0))


def _checked(name: str, decayed: bool, error: float, decay: float, tolerance: float) -> Checked:
    if error > tolerance:
        verdict = Verdict.WRONG
    elif decayed and decay <= 2 * tolerance:
        verdict = Verdict.UNSEEN
    else:
        verdict = Verdict.RIGHT
    return Checked(name, decayed, error, decay, verdict)


def _values(variables: Iterable[tf.Variable]) -> list[Array]:
    return [variable.numpy() for variable in variables]


def _assign(variables: Iterable[tf.Variable], values: Iterable[Array]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _after(variables: Sequence[tf.Variable], state: Sequence[Array], run: Callable[[], object]) -> list[Array]:
    """The variables after a run from some state."""
    _assign(variables, state)
    run()
    return _values(variables)


def _refuse_random(step: Any, first: Sequence[Array], second: Sequence[Array]) -> None:
    # The first run of a traced function may round otherwise than later ones.
    if all(ulps(one, two, one, whole=True) <= _ROUNDING for one, two in zip(first, second, strict=True)):
        return
    ops = {op.type for op in step.graph.get_operations() if "Random" in op.type or op.type == "TruncatedNormal"}
    hint = f": it draws random numbers ({', '.join(sorted(ops))})" if ops else ""
    raise VerifyError(f"the step gives different results from the same state{hint}; verify it without that")


class _Call(NamedTuple):
    """The arguments of one run, as the step takes them and as its tensors."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    flat: list[tf.Tensor]


def _arguments(step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], random: np.random.Generator) -> _Call:
    """Arguments for a run: those given, and random ones for those that are not."""
    signature_args, signature_kwargs = step.structured_input_signature
    given = (*args, *signature_args[len(args) :])
    named = {**signature_kwargs, **kwargs}
    call_args, call_kwargs = tf.nest.map_structure(
        lambda leaf: _generated(leaf, random) if isinstance(leaf, tf.TypeSpec) else leaf, (given, named)
    )
    flat = [
        tf.convert_to_tensor(leaf)
        for leaf in tf.nest.flatten((call_args, call_kwargs), expand_composites=True)
        if tf.is_tensor(leaf) or isinstance(leaf, np.ndarray)
    ]
    return _Call(tuple(call_args), call_kwargs, flat)


def _generated(spec: Any, random: np.random.Generator) -> tf.Tensor:
    if type(spec) is not tf.TensorSpec or spec.shape.rank is None:
        raise VerifyError(f"no argument can be made for {spec}; give the arguments")
    shape = [4 if size is None else size for size in spec.shape]
    if spec.dtype.is_floating:
        return tf.cast(random.normal(size=shape), spec.dtype)
    if spec.dtype.is_integer or spec.dtype.is_bool:
        return tf.cast(random.integers(0, 2, size=shape), spec.dtype)
    raise VerifyError(f"no argument can be made for {spec}; give the arguments")
