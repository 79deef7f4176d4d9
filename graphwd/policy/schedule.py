"""What a rule says of a rate that changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphwd.errors import PolicyError
from graphwd.policy.kinds import as_float
from graphwd.policy.selectors import is_hashable, is_variable
from graphwd.policy.words import check_options, describe, known_word
from graphwd.policy.yaml_source import Given, Located

if TYPE_CHECKING:
    from graphwd.decay.schedules import Option, Schedule

_EXAMPLES = {
    "piecewise": "{schedule: piecewise, boundaries: [1000, 2000], values: [0.1, 0.05, 0.01]}",
}
_WORDS = {"first": "from", "last": "to"}
"""The words of a policy for options that cannot be called so in Python."""


@dataclass(frozen=True, slots=True)
class ScheduleChoice:
    """A rate that changes, as a rule chooses it.

    Attributes:
        name: the word for the schedule, or the name of the user's own function or variable.
        options: the numbers given with it.
        warmup_steps: the length of its warm-up.
        function: the user's own function of the number of updates; None for one of graphwd's.
        variable: the user's own variable that is the rate; else None.
        identity: which variable that is; 0 for none.
    """

    name: str
    options: tuple[tuple[str, Option], ...] = ()
    warmup_steps: int = 0
    function: Callable[..., Any] | None = None
    variable: Any = field(default=None, compare=False)
    identity: int = 0

    def resolved(self) -> Schedule:
        """The schedule itself; imports TensorFlow."""
        from graphwd.decay.schedules import SCHEDULES, Schedule

        if self.function is not None:
            return Schedule(self.name, self.function, own=True)
        return SCHEDULES[self.name].given(dict(self.options), self.warmup_steps)

    @property
    def largest(self) -> float:
        """The largest rate that its numbers say; 0 where they say nothing."""
        rates = [value for name, value in self.options if name in ("first", "last", "values")]
        return max((max(rate) if isinstance(rate, tuple) else rate for rate in rates), default=0.0)


def read_schedule(key: str, item: Located) -> ScheduleChoice:
    """Reads a value of ``weight_decay`` that is no number: a mapping, or from Python a function or a variable.

    Args:
        key: the key.
        item: its value.

    Returns:
        The choice.

    Raises:
        PolicyError: there is no such schedule, or an option is missing, unknown, or out of range.
    """
    if isinstance(item.value, Given):
        return _own(key, item, item.value.value)
    from graphwd.decay.schedules import SCHEDULES  # only policies with a schedule import TensorFlow

    assert isinstance(item.value, Mapping)
    given = dict(item.value)
    word = given.pop("schedule", None)
    if word is None:
        known = ", ".join(sorted(SCHEDULES))
        raise PolicyError(f"{item.where}: {key} needs a 'schedule', one of {known}; write {_example('cosine')}")
    name = known_word("schedule", word, SCHEDULES)
    names = {_WORDS.get(option, option): option for option in SCHEDULES[name].option_names}
    check_options(f"schedule {name}", item, given, names, ("warmup_steps",), _example(name))
    warmup = _count("warmup_steps", given["warmup_steps"], 0) if "warmup_steps" in given else 0
    options = tuple((names[word], _option(name, word, given[word])) for word in names)
    if name == "piecewise":
        _check_pieces(item, dict(options))
    return ScheduleChoice(name, options, warmup)


def _option(schedule: str, word: str, item: Located) -> Option:
    if word == "steps":
        return float(_count(word, item, 1))
    if word in ("boundaries", "values"):
        if not isinstance(item.value, tuple):
            raise item.error(f"{word} must be a list of numbers; write {_example('piecewise')}")
        return tuple(_number(word, each, positive=False) for each in item.value)
    return _number(word, item, positive=schedule == "exponential")


def _number(word: str, item: Located, *, positive: bool) -> float:
    if isinstance(item.value, bool) or not isinstance(item.value, (int, float)):
        raise item.no_number(f"{word} must be a number", f", got {describe(item.value)}")
    value = as_float(item.value)
    if not 0 <= value < math.inf or (positive and not value):
        raise PolicyError(f"{item.where}: {word} must be a finite number {'>' if positive else '>='} 0, got {value:g}")
    return value


def _count(word: str, item: Located, least: int) -> int:
    value = item.value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**53:
        raise item.no_number(f"{word} must be a whole number >= {least}", f", got {describe(value)}")
    return value


def _check_pieces(item: Located, options: Mapping[str, Option]) -> None:
    boundaries, values = options["boundaries"], options["values"]
    assert isinstance(boundaries, tuple)
    assert isinstance(values, tuple)
    if not boundaries or list(boundaries) != sorted(set(boundaries)):
        raise PolicyError(f"{item.where}: boundaries must be numbers that rise; write {_example('piecewise')}")
    if len(values) != len(boundaries) + 1:
        raise PolicyError(
            f"{item.where}: {len(boundaries)} boundaries need {len(boundaries) + 1} values, got {len(values)}; write "
            f"{_example('piecewise')}"
        )


def _example(schedule: str) -> str:
    return _EXAMPLES.get(schedule, f"{{schedule: {schedule}, from: 0.04, to: 0.4, steps: 10000}}")


def _own(key: str, item: Located, given: Any) -> ScheduleChoice:
    name = str(getattr(given, "__name__", type(given).__name__))
    if not is_variable(given):
        if not (callable(given) and is_hashable(given)):
            raise PolicyError(
                f"{item.where}: {key} must be a number, a schedule, a function of the step or a variable, got a {name}"
                f"{' that has no hash' if callable(given) else ''}"
            )
        return ScheduleChoice(name, function=given)
    dtype = str(getattr(given.dtype, "name", given.dtype))
    if tuple(given.shape) or not dtype.startswith(("float", "bfloat")):
        raise PolicyError(f"{item.where}: {key} must be a variable of one floating-point number, got {dtype}")
    return ScheduleChoice(str(given.name).removesuffix(":0"), variable=given, identity=id(given))


def schedule_shape() -> dict[str, Any]:
    """The JSON schema of what `read_schedule` reads in a file; imports TensorFlow."""
    from graphwd.decay.schedules import SCHEDULES

    return {"anyOf": [_shape(name, SCHEDULES[name].option_names) for name in sorted(SCHEDULES)]}


def _shape(schedule: str, options: tuple[str, ...]) -> dict[str, Any]:
    words = [_WORDS.get(option, option) for option in options]
    return {
        "type": "object",
        "properties": {
            "schedule": {"const": schedule},
            **{word: _option_shape(schedule, word) for word in words},
            "warmup_steps": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
        },
        "required": ["schedule", *words],
        "additionalProperties": False,
    }


def _option_shape(schedule: str, word: str) -> dict[str, Any]:
    """The JSON schema of what `_option` reads."""
    if word == "steps":
        return {"type": "integer", "minimum": 1, "maximum": 2**53 - 1}
    if word in ("boundaries", "values"):
        return {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 1}
    return {"type": "number", "exclusiveMinimum" if schedule == "exponential" else "minimum": 0}
