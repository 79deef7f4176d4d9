# pyright: basic
"""Verifies a step: compares its rewritten form with the original, run as a whole from the same states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from graphwd.checking.measure import ulps
from graphwd.checking.side_by_side import Call, Settings, SideBySide
from graphwd.checking.verification import Checked, Kind, RateCheck, Verdict, Verification
from graphwd.errors import StepError, VerifyError
from graphwd.policy.rules import PolicyLike, as_policy
from graphwd.progress import progress
from graphwd.steps.pipeline import concrete
from graphwd.steps.read import ConcreteFunction, is_concrete, is_polymorphic, traces, undecorated

__all__ = ["Checked", "Kind", "Pair", "RateCheck", "Verdict", "Verification", "ulps", "verify", "verify_pairs"]


class Pair(NamedTuple):
    """One trace of a step and its rewritten form.

    Attributes:
        original: the trace.
        rewritten: its rewritten form: a callable.
        variables: the variables of ``rewritten``, in the order of the captures of ``original``; None where they are the
            same; more may follow.
        function: its name in the report; empty where it is the only one.
        partial: whether the policy is for a whole model, so that a rule may match no variable of this trace.
    """

    original: ConcreteFunction
    rewritten: Any
    variables: Sequence[tf.Variable] | None = None
    function: str = ""
    partial: bool = False


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

    Both steps run from the same state on the same inputs, several times, each as a whole: w is a weight before such a
    run, U(w) after that of the original. A weight that a rule decays must be ``(1 - c) U(w)`` for ``order: after`` and,
    where the update adds to the weight, ``U(w) - c w`` for ``order: before``; every other variable, and every output,
    must be as the original leaves it. That takes nothing from the plan but the learning rate, for ``scale: lr``: it is
    doubled in the original, and must double the update. Where a rule has a schedule, both steps are also run after as
    many updates as the schedule takes to turn (its boundaries, its steps, its warm-up), and after 10, 100, ... 10^6.

    Where the whole step does not say what must come out, the original is run in pieces, with the plan's decays done in
    NumPy in float64 between them, and the rewritten step must agree with that. That is so for a coupled decay, for a
    variable that a run writes several times, for ``order: before`` of an update that does not add to the weight, and
    for what reads a decayed weight after its decay. `Checked.kind` says for each variable which of the two it was. The
    variables are left as they were.

    Args:
        original: the step, a ``ConcreteFunction``, a ``tf.function`` or a plain Python function. Without arguments,
            every trace that a ``tf.function`` without ``input_signature`` holds is verified.
        rewritten: what `rewrite`, the decorator or a SavedModel made of it: a callable that returns what it returns.
        policy: the policy that it was rewritten by.
        *args: the arguments, or ``tf.TensorSpec``s; those left out, or specs, are generated: normal floats, integers 0
            and 1, the texts "0" and "1", unknown dimensions 4.
        runs: how many steps are run.
        tolerance: the largest error that is right, in units in the last place: of a decayed weight, of the larger of
            its values before and after, element by element; of all else, of its largest element. Compiled steps may
            need more: they round in other places.
        seed: of the inputs.
        variables: the variables of ``rewritten``, in the order of the captures of ``original``, where they are others;
            more may follow.
        **kwargs: arguments by name.

    Returns:
        The findings; ``check()`` raises where something is wrong.

    Raises:
        PlanError: the policy does not fit the original.
        VerifyError: the step cannot be verified: it is random, it fails on these arguments, or a decay lies in the
            function of a dataset.
    """
    for what, given in (("original", original), ("rewritten", rewritten)):
        if not callable(given):
            raise StepError(
                f"the {what} step must be a function, got a {type(given).__name__}; load a SavedModel first, keep what "
                "is loaded, and give its function"
            )
    steps = _steps(undecorated(original), args, kwargs)
    names = ["", *(f"trace {number}" for number in range(1, 1 + len(steps)))]
    pairs = [
        Pair(step, rewritten, variables, names[0 if len(steps) == 1 else number])
        for number, step in enumerate(steps, start=1)
    ]
    return verify_pairs(pairs, policy, args, kwargs, runs=runs, tolerance=tolerance, seed=seed)


def verify_pairs(
    pairs: Iterable[Pair],
    policy: PolicyLike,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    runs: int = 5,
    tolerance: float = 4.0,
    seed: int = 0,
) -> Verification:
    """Verifies several traces or functions, one after the other.

    Args:
        pairs: the traces, each with its rewritten form.
        policy: the policy.
        args: arguments for all of them.
        kwargs: likewise, by name.
        runs: how many steps are run of each.
        tolerance: the largest error that is right.
        seed: of the inputs.

    Returns:
        The findings for all of them.

    Raises:
        GraphwdError: as for `verify`.
    """
    verifications: list[Verification] = []
    whole = as_policy(policy)
    for_some = dataclasses.replace(whole, rules=tuple(dataclasses.replace(rule, optional=True) for rule in whole.rules))
    options = tf.config.optimizer.get_experimental_options()
    # Grappler would fuse and fold a whole step and its pieces differently, and round in other places.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    pairs = list(pairs)
    try:
        with progress("verifying", len(pairs) * runs) as advance:
            for pair in pairs:
                given = lambda random, step=pair.original: _arguments(step, args, kwargs or {}, random)  # noqa: E731
                settings = Settings(runs, tolerance, seed)
                rules = for_some if pair.partial else whole
                beside = SideBySide(pair.original, pair.rewritten, rules, given, pair.variables, settings)
                verifications.append(beside.run(pair.function, advance))
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False} | options)
    return Verification(
        tuple(checked for one in verifications for checked in one.variables),
        tuple(race for one in verifications for race in one.races),
        runs,
        tuple(checked for one in verifications for checked in one.outputs),
    )


def _steps(original: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[ConcreteFunction]:
    """The traces to verify: without arguments, all that a step holds."""
    untold = not args and not kwargs and is_polymorphic(original) and original.input_signature is None
    if untold and not is_concrete(original) and (held := traces(original)):
        return held
    return [concrete(original, *args, **kwargs)]


def _arguments(step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], random: np.random.Generator) -> Call:
    """Arguments for a run: those given, and random ones for the others."""
    signature_args, signature_kwargs = step.structured_input_signature
    given = (*args, *signature_args[len(args) :])
    named = {**signature_kwargs, **kwargs}
    call_args, call_kwargs = tf.nest.map_structure(
        lambda leaf: _generated(leaf, random) if isinstance(leaf, tf.TypeSpec) else leaf, (given, named)
    )
    flat = [
        leaf.handle if isinstance(leaf, tf.Variable) else tf.convert_to_tensor(leaf)
        for leaf in tf.nest.flatten((call_args, call_kwargs), expand_composites=True)
        if tf.is_tensor(leaf) or isinstance(leaf, np.ndarray)
    ]
    return Call(tuple(call_args), call_kwargs, flat)


def _generated(spec: Any, random: np.random.Generator) -> tf.Tensor:
    if type(spec) is tf.TensorSpec and spec.shape.rank is not None:
        shape = [4 if size is None else size for size in spec.shape]
        if spec.dtype.is_floating or spec.dtype.is_complex:
            return tf.cast(random.normal(size=shape), spec.dtype)
        if spec.dtype.is_integer or spec.dtype.is_bool:
            return tf.cast(random.integers(0, 2, size=shape), spec.dtype)
        if spec.dtype == tf.string:
            return tf.strings.as_string(random.integers(0, 2, size=shape))
    raise VerifyError(f"no argument can be made for {spec}; give the arguments to graphwd.verify")
