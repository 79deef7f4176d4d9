"""What a rule says of its formula."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphwd.policy.kinds import as_float
from graphwd.policy.selectors import is_hashable
from graphwd.policy.words import check_options, describe, known_word
from graphwd.policy.yaml_source import Given, Located

if TYPE_CHECKING:
    from graphwd.decay.formulas import Formula


@dataclass(frozen=True, slots=True)
class FormulaChoice:
    """A formula as a rule chooses it.

    Attributes:
        name: the word for it, or the name of the user's own function.
        options: the numbers given with it.
        function: the user's own function; None for one of graphwd's.
    """

    name: str = "l2"
    options: tuple[tuple[str, float], ...] = ()
    function: Callable[..., Any] | None = None

    def resolved(self) -> Formula:
        """The formula itself; imports TensorFlow."""
        return _resolved(self)


L2 = FormulaChoice()
"""The formula of a rule that says none."""


@functools.cache
def _resolved(choice: FormulaChoice) -> Formula:
    # Here and not above: a policy is read without TensorFlow.
    from graphwd.decay.formulas import FORMULAS, Formula

    if choice.function is not None:
        return Formula(choice.name, choice.function, shrinks=False, own=True)
    return FORMULAS[choice.name].given(dict(choice.options))


def read_formula(key: str, item: Located) -> FormulaChoice:
    """Reads the value of ``formula``: a word, a mapping with options, or from Python a function.

    Args:
        key: the key.
        item: its value.

    Returns:
        The choice.

    Raises:
        PolicyError: there is no such formula, an option is missing, unknown or out of range, or the function takes what
            graphwd does not know.
    """
    if isinstance(item.value, Given):
        return _own(key, item, item.value.value)
    if not isinstance(item.value, Mapping):
        return _named(key, item, item, {})
    options = dict(item.value)
    name = options.pop("name", None)
    if name is None:
        raise item.error(f"{key} needs a 'name'; write {{name: huber, delta: 0.1}}")
    return _named(key, item, name, options)


def _named(key: str, item: Located, name: Located, options: Mapping[str, Located]) -> FormulaChoice:
    from graphwd.decay.formulas import FORMULAS  # only policies that name a formula import TensorFlow

    formula = FORMULAS[known_word(key, name, FORMULAS)]
    asked = sorted(formula.option_names)
    example = f"{{name: {formula.name}{''.join(f', {option}: 0.1' for option in asked)}}}" if asked else formula.name
    check_options(f"formula {formula.name}", item, dict(options), asked, (), example)
    return FormulaChoice(formula.name, tuple((option, _positive(option, options[option])) for option in asked))


def _positive(option: str, item: Located) -> float:
    if isinstance(item.value, bool) or not isinstance(item.value, (int, float)):
        raise item.no_number(f"{option} must be a number", f", got {describe(item.value)}")
    value = as_float(item.value)
    if not 0 < value < math.inf:
        raise item.error(f"{option} must be a finite number > 0, got {value:g}")
    return value


def _own(key: str, item: Located, function: Any) -> FormulaChoice:
    from graphwd.decay.formulas import TENSORS

    if not (callable(function) and is_hashable(function)):
        hint = " that has no hash" if callable(function) else ""
        kind = type(function).__name__
        raise item.error(f"{key} must be a word, a mapping or a function, got a {kind}{hint}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise item.error(f"{key} must be a function whose parameters can be read") from None
    name = getattr(function, "__name__", type(function).__name__)
    needed = [each for each in parameters if each.default is each.empty or each.name in TENSORS]
    unknown = [each.name for each in needed if each.name not in TENSORS or each.kind is each.POSITIONAL_ONLY]
    if unknown or not needed:
        what = f"takes '{unknown[0]}'" if unknown else "takes nothing"
        raise item.error(f"the formula '{name}' {what}; a formula takes tensors by these names: {', '.join(TENSORS)}")
    return FormulaChoice(name, (), function)


def formula_shape() -> dict[str, Any]:
    """The JSON schema of what `read_formula` reads in a file; imports TensorFlow."""
    from graphwd.decay.formulas import FORMULAS

    words = sorted(name for name, formula in FORMULAS.items() if not formula.option_names)
    mappings = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                **{option: {"type": "number", "exclusiveMinimum": 0} for option in sorted(formula.option_names)},
            },
            "required": ["name", *sorted(formula.option_names)],
            "additionalProperties": False,
        }
        for name, formula in sorted(FORMULAS.items())
    ]
    return {"anyOf": [{"enum": words}, *mappings]}
