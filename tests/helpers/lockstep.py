"""The lockstep check: an original and a rewritten step, run again and again from the same state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

import graphwd
from graphwd.steps.read import variables_of


@dataclass
class Case:
    """A training step and what weight decay must do to it.

    Attributes:
        step: the ``tf.function``.
        batches: the arguments of each run.
        rates: for every variable that must be decayed, by name, the rate of each of its updates in one run.
        state: every variable to compare; those of the trace where empty.
    """

    step: Any
    batches: Sequence[tuple[Any, ...]]
    rates: Mapping[str, float]
    state: Sequence[tf.Variable] = field(default_factory=tuple)


def policy_for(rates: Mapping[str, float], **fields: Any) -> dict[str, Any]:
    """A policy that gives each named variable its rate, and every other none."""
    rules = [{"name": name, "weight_decay": rate, **fields} for name, rate in rates.items()]
    return {"version": 1, "rules": [*rules, {"weight_decay": 0}]}


def check_lockstep(
    case: Case,
    expected: Callable[[np.ndarray], np.ndarray] | None = None,
    **fields: Any,
) -> None:
    """Checks outputs, decayed and undecayed variables after every run, both steps started from the same state.

    Outputs and undecayed variables must be equal to the bit; a decayed one must lie within one unit in the last place
    of what ``expected`` makes, in float64, of its value after the original ran; by default ``1 - rate`` times that.
    """
    concrete = case.step.get_concrete_function(*case.batches[0])
    state = list(case.state or variables_of(concrete))
    rewritten = graphwd.rewrite(concrete, policy_for(case.rates, **fields))
    assert len(case.batches) >= 3
    for batch in case.batches:
        before = [variable.numpy() for variable in state]
        outputs = concrete(*batch)
        plain = [variable.numpy() for variable in state]
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        tf.nest.map_structure(assert_bit_equal, outputs, rewritten(*batch))
        for variable, undecayed in zip(state, plain, strict=True):
            name = variable.name.removesuffix(":0")
            if name not in case.rates:
                assert_bit_equal(undecayed, variable.numpy(), name)
                continue
            wide = undecayed.astype(np.float64)
            target = expected(wide) if expected else wide * (1 - case.rates[name])
            assert_within_ulps(variable.numpy(), target, 1, name)


def assert_bit_equal(first: Any, second: Any, what: str = "output") -> None:
    """Checks that two tensors are the same to the bit."""
    first, second = np.asarray(first), np.asarray(second)
    assert first.dtype == second.dtype, what
    assert first.shape == second.shape, what
    assert first.tobytes() == second.tobytes(), f"{what}: {first} is not {second}"


def assert_within_ulps(actual: np.ndarray, target: np.ndarray, ulps: float, what: str = "") -> None:
    """Checks that a tensor lies within so many units in the last place, of its own dtype, of float64 targets."""
    unit = np.spacing(np.abs(target).astype(actual.dtype)).astype(np.float64)
    error = np.abs(actual.astype(np.float64) - target) / unit
    assert error.max(initial=0) <= ulps, f"{what}: {error.max()} ulp"


def check_lists(case: Case, trainable: Sequence[tf.Variable]) -> None:
    """Checks that the plan lists every trainable variable of a model, each once."""
    plan = graphwd.plan(case.step, policy_for(case.rates), *case.batches[0])
    names = [_name(variable) for variable in trainable]
    assert sorted(decision.variable.name for decision in plan.decisions) == sorted(names)


def check_adamw(
    case: Case,
    learning_rate: float | Sequence[float],
    *,
    outputs: bool = True,
    ulps: float = 4,
    **fields: Any,
) -> None:
    """As `check_lockstep`, for ``semantics: adamw`` and an optimizer that adds its update to the weight.

    Each decayed variable must differ from the undecayed one by ``learning_rate * rate`` times what it was before the
    step, to so many units in the last place of its largest element.

    Args:
        case: the step, which must run once for each learning rate.
        learning_rate: that of every run, or of each.
        outputs: whether the outputs must be equal: not where the step computes them of the updated weights.
        ulps: the tolerance.
        **fields: further fields of the rules.
    """
    learning_rates = [learning_rate] * len(case.batches) if isinstance(learning_rate, float) else learning_rate
    concrete = case.step.get_concrete_function(*case.batches[0])
    state = list(case.state or variables_of(concrete))
    rewritten = graphwd.rewrite(concrete, policy_for(case.rates, semantics="adamw", **fields))
    for batch, scale in zip(case.batches, learning_rates, strict=True):
        before = [variable.numpy() for variable in state]
        expected = concrete(*batch)
        plain = [variable.numpy() for variable in state]
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        actual = rewritten(*batch)
        if outputs:
            tf.nest.map_structure(assert_bit_equal, expected, actual)
        for variable, start, undecayed in zip(state, before, plain, strict=True):
            name = _name(variable)
            if name not in case.rates or not variable.trainable:
                assert_bit_equal(undecayed, variable.numpy(), name)
                continue
            decay = scale * case.rates[name] * start.astype(np.float64)
            error = np.abs(variable.numpy() - (undecayed.astype(np.float64) - decay)).max()
            unit = np.spacing(np.abs(undecayed).max())
            assert error <= ulps * unit, f"{name}: {error / unit} ulp"
            assert not start.any() or np.abs(decay).max() > 100 * ulps * unit, f"{name}: the decay does not show"


def check_l2(case: Case) -> None:
    """Checks ``semantics: l2`` by `graphwd.verify`, every decay seen."""
    concrete = case.step.get_concrete_function(*case.batches[0])
    policy = policy_for(case.rates, semantics="l2")
    verification = graphwd.verify(concrete, graphwd.rewrite(concrete, policy), policy, *case.batches[0])
    verification.check()
    decayed = [each.name for each in verification.variables if each.decayed and each.verdict.value == "right"]
    assert set(decayed) == set(case.rates)


def _name(variable: tf.Variable) -> str:
    return variable.name.removesuffix(":0")
