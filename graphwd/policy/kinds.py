"""The kinds of values that a policy holds: each says how one is read, and what JSON schema describes it."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from graphwd.policy.globs import composed
from graphwd.policy.mistakes import Mistakes
from graphwd.policy.selectors import RANK_COMPARISONS, Listed, Rank, is_variable
from graphwd.policy.words import describe, did_you_mean
from graphwd.policy.yaml_source import Given, Located

Shape = Mapping[str, Any]
"""A JSON schema."""

Reader = Callable[[str, Located], Any]
"""What reads the value of a key; it raises `PolicyError` where the value is wrong."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value.

    Attributes:
        read: reads one.
        shape: gives the JSON schema of what is read; None where a file cannot hold it. A function, as some ask
            TensorFlow.
    """

    read: Reader
    shape: Callable[[], Shape | None]


def one_of(*allowed: str, aliases: Mapping[str, str] | None = None) -> Kind:
    """The kind of some words.

    Args:
        *allowed: the words.
        aliases: what else people call some of them: no value, but what a message may take for one.
    """

    def read(key: str, item: Located) -> str:
        if item.value not in allowed:
            hint = did_you_mean(item.value, allowed, aliases)
            got = describe(item.value)
            raise item.error(f"{key} must be one of {', '.join(allowed)}; got {got}{hint}")
        return str(item.value)

    return Kind(read, lambda: {"enum": list(allowed)})


def list_of(kind: Kind, collect: Callable[[Iterable[Any]], Any], what: str, example: str) -> Kind:
    """The kind of one value or a list of them.

    Args:
        kind: the kind of a value.
        collect: what makes one value of those read.
        what: what a value is, for the error on an empty list.
        example: one, likewise.
    """

    def read(key: str, item: Located) -> Any:
        entries = item.value if isinstance(item.value, tuple) else (item,)
        if not entries:
            raise item.error(f"{key} must name at least one {what}, such as {example}")
        values: list[Any] = []
        mistakes = Mistakes()
        for entry in entries:
            with mistakes.kept():
                values.append(kind.read(key, entry))
        mistakes.check()
        return collect(values)

    return Kind(read, lambda: {"anyOf": [kind.shape(), {"type": "array", "items": kind.shape(), "minItems": 1}]})


def either(first: Kind, second: Kind, is_second: Callable[[object], bool]) -> Kind:
    """The kind of what is of one of two kinds; a function of the value says of which."""

    def read(key: str, item: Located) -> Any:
        return (second if is_second(item.value) else first).read(key, item)

    return Kind(read, lambda: {"anyOf": [first.shape(), second.shape()]})


def _text(key: str, item: Located) -> str:
    if not isinstance(item.value, str) or not item.value:
        raise item.error(f"{key} must be text, got {describe(item.value)}; put it in quotes")
    return item.value


def _regex(key: str, item: Located) -> str:
    pattern = composed(_text(key, item))
    try:
        with warnings.catch_warnings():
            # Python warns of patterns whose meaning will change.
            warnings.simplefilter("error", FutureWarning)
            re.compile(pattern)
    except (re.error, OverflowError, FutureWarning) as error:
        raise item.error(f"{key} {pattern!r} is not a regular expression: {error}") from None
    except RecursionError:
        raise item.error(f"{key} is nested too deeply to be compiled") from None
    return pattern


def _name(key: str, item: Located) -> str:
    text = _text(key, item)
    if not text.isidentifier():
        raise item.error(f"{key} must be a name of letters, digits and _, got {text!r}; write body_decay")
    return text


def _flag(key: str, item: Located) -> bool:
    if not isinstance(item.value, bool):
        raise item.error(f"{key} must be true or false, got {describe(item.value)}")
    return item.value


def _rate(key: str, item: Located) -> float:
    value = item.value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise item.no_number(f"{key} must be a number", f", got {describe(value)}; write {_as_number(value)}")
    rate = as_float(value)
    if not math.isfinite(rate) or rate < 0:
        raise item.error(f"{key} must be a finite number >= 0, got {rate}; write 0 for no decay")
    return rate


def _as_number(value: object) -> str:
    """What to write in the place of a value that is no number."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        number = math.nan
    return f"{value} without quotes" if math.isfinite(number) else "a number, such as 5e-4"


def as_float(number: float) -> float:
    """A number, which a policy may spell with any number of digits."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _positive(key: str, item: Located) -> float:
    value = _rate(key, item)
    if not value:
        raise item.error(f"{key} must be above 0")
    return value


_COMPARED = re.compile(rf"\s*({'|'.join(RANK_COMPARISONS)}|)\s*([0-9]{{1,3}})\s*")


def _rank(key: str, item: Located) -> Rank:
    plain = isinstance(item.value, (int, str)) and not isinstance(item.value, bool)
    match = _COMPARED.fullmatch(item.value if isinstance(item.value, str) else describe(item.value)) if plain else None
    if match is None:
        raise item.no_number(
            f"{key} must be a number of dimensions, or one after {' '.join(RANK_COMPARISONS)}",
            f'; got {describe(item.value)}; write ">=2"',
        )
    return Rank(match[1] or "==", int(match[2]))


def _variables(key: str, item: Located) -> Listed:
    if not isinstance(item.value, Given):
        raise item.error(
            f"{key} lists the variables themselves, which only a policy made in Python can; in a file "
            "select by name, regex or path"
        )
    value = item.value.value
    if not isinstance(value, (list, tuple)):
        raise item.error(f"{key} must be a list of variables, got a {type(value).__name__}; write [v]")
    listed = cast("Sequence[object]", value)
    if not listed:
        raise item.error(f"{key} must list at least one variable")
    for i, variable in enumerate(listed):
        if not is_variable(variable):
            at = replace(item, where=f"{item.where}[{i}]")
            raise at.error(f"{key} must list variables of TensorFlow or Keras, got a {type(variable).__name__}")
    return Listed(listed)


def _version(key: str, item: Located) -> int:
    if isinstance(item.value, bool) or item.value != 1:
        raise item.no_number(f"{key} must be 1", f", got {describe(item.value)}")
    return 1


TEXT = Kind(_text, lambda: {"type": "string", "minLength": 1})
REGEX = Kind(_regex, TEXT.shape)
NAME = Kind(_name, lambda: {"type": "string", "pattern": r"^[^\s\d]\S*$"})
FLAG = Kind(_flag, lambda: {"type": "boolean"})
RATE = Kind(_rate, lambda: {"type": "number", "minimum": 0})
POSITIVE = Kind(_positive, lambda: {"type": "number", "exclusiveMinimum": 0})
RANK = Kind(
    _rank,
    lambda: {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": 999},
            {"type": "string", "pattern": f"^{_COMPARED.pattern}$"},
        ]
    },
)
VARIABLES = Kind(_variables, lambda: None)
VERSION = Kind(_version, lambda: {"const": 1})
