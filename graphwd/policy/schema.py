"""The schema of a policy: a table of the values that each key may have, and the function that reads a mapping by it."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from graphwd.policy.formula import read_formula
from graphwd.policy.globs import composed
from graphwd.policy.mistakes import Mistakes
from graphwd.policy.roles import FOLLOWED_BY, Role
from graphwd.policy.schedule import ScheduleChoice, read_schedule
from graphwd.policy.selectors import RANK_COMPARISONS, Listed, Rank, Selectors, is_variable
from graphwd.policy.words import describe, did_you_mean, near
from graphwd.policy.yaml_source import Given, Located

_RANK = re.compile(r"\s*(>=|<=|==|!=|>|<|)\s*(\d{1,3})\s*")
DTYPES = ("bfloat16", "complex128", "complex64", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
_DTYPE_ALIASES = {"fp16": "float16", "half": "float16", "fp32": "float32", "single": "float32", "fp64": "float64"}

Reader = Callable[[str, Located], Any]


def fields(item: Located, schema: Mapping[str, Reader], what: str, mistakes: Mistakes) -> dict[str, Any]:
    """Reads a mapping by its schema.

    Args:
        item: the mapping.
        schema: for every key allowed, what reads its value.
        what: what the mapping is, for errors.
        mistakes: collects the keys that the schema does not know, and what the readers refuse.

    Returns:
        The value of every key that is given and right.

    Raises:
        PolicyError: not a mapping.
    """
    if not isinstance(item.value, Mapping):
        raise item.error(f"{what} must be a mapping of keys to values, got {describe(item.value)}")
    values: dict[str, Any] = {}
    for key, value in item.value.items():
        with mistakes.kept(value.line):
            if key not in schema:
                raise value.error(f"unknown key {describe(key)} in {what}; {_right_key(key, schema)}")
            values[key] = schema[key](key, value)
    return values


def _right_key(key: str, schema: Mapping[str, Reader]) -> str:
    """What is said of a key that a schema does not know."""
    if schema is POLICY_FIELDS and key in DEFAULT_FIELDS:
        return "a field of all rules stands under 'defaults'"
    meant = near(key, schema)
    return f"did you mean '{meant}'?" if meant else f"the keys here are {', '.join(sorted(schema))}"


def all_fields(item: Located, schema: Mapping[str, Reader], what: str) -> dict[str, Any]:
    """Reads a mapping of which every key must be right, as `fields`.

    Raises:
        PolicyError: it is not a mapping, or some keys or values are wrong; the error has all of its mistakes.
    """
    mistakes = Mistakes()
    values = fields(item, schema, what, mistakes)
    mistakes.check()
    return values


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


def _rate_or_schedule(key: str, item: Located) -> float | ScheduleChoice:
    changes = isinstance(item.value, (Mapping, Given))
    return read_schedule(key, item) if changes else _rate(key, item)


def _rate(key: str, item: Located) -> float:
    value = item.value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise item.error(f"{key} must be a number, got {describe(value)}; write 5e-4 without quotes")
    try:
        rate = float(value)
    except OverflowError:
        rate = math.inf
    if not math.isfinite(rate) or rate < 0:
        raise item.error(f"{key} must be a finite number >= 0, got {rate}; write 0 for no decay")
    return rate


def _positive(key: str, item: Located) -> float:
    value = _rate(key, item)
    if not value:
        raise item.error(f"{key} must be above 0")
    return value


def _name(key: str, item: Located) -> str:
    text = _text(key, item)
    if not text.isidentifier():
        raise item.error(f"{key} must be a name of letters, digits and _, got {text!r}; write body_decay")
    return text


def _flag(key: str, item: Located) -> bool:
    if not isinstance(item.value, bool):
        raise item.error(f"{key} must be true or false, got {describe(item.value)}")
    return item.value


def _one_of(*allowed: str, aliases: Mapping[str, str] | None = None) -> Reader:
    def read(key: str, item: Located) -> str:
        if item.value not in allowed:
            hint = did_you_mean(item.value, allowed, aliases)
            got = describe(item.value)
            raise item.error(f"{key} must be one of {', '.join(allowed)}; got {got}{hint}")
        return str(item.value)

    return read


def _rank(key: str, item: Located) -> Rank:
    plain = isinstance(item.value, (int, str)) and not isinstance(item.value, bool)
    match = _RANK.fullmatch(item.value if isinstance(item.value, str) else describe(item.value)) if plain else None
    if match is None:
        raise item.error(
            f"{key} must be a number of dimensions, or one after {' '.join(RANK_COMPARISONS)}; "
            f'got {describe(item.value)}; write ">=2"'
        )
    return Rank(match[1] or "==", int(match[2]))


def _list_of(read: Reader, collect: Callable[[Iterable[Any]], Any], what: str, example: str) -> Reader:
    """What reads a value of one kind, or a list of such values."""

    def read_all(key: str, item: Located) -> Any:
        entries = item.value if isinstance(item.value, tuple) else (item,)
        if not entries:
            raise item.error(f"{key} must name at least one {what}, such as {example}")
        values: list[Any] = []
        mistakes = Mistakes()
        for entry in entries:
            with mistakes.kept():
                values.append(read(key, entry))
        mistakes.check()
        return collect(values)

    return read_all


def _role(key: str, item: Located) -> Role:
    return Role(_one_of(*(role.value for role in Role))(key, item))


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
        raise item.error(f"{key} must be 1, got {describe(item.value)}")
    return 1


def _rules(key: str, item: Located) -> tuple[Located, ...]:
    if not isinstance(item.value, tuple):
        raise item.error(f"{key} must be a list, got {describe(item.value)}; begin each rule with '- '")
    return item.value


def _exemption(key: str, item: Located) -> tuple[str, Selectors]:
    """An entry of ``exempt``, a role or selectors: its place, and what it selects."""
    if not isinstance(item.value, Mapping):
        return item.where, Selectors(role=frozenset({_exempt_role(key, item)}))
    selectors = all_fields(item, SELECTOR_FIELDS, "an exemption")
    if not selectors:
        raise item.error("an exemption without selectors would be of every variable; write 'weight_decay: 0' for that")
    return item.where, Selectors(**selectors)


def _exempt_role(key: str, item: Located) -> Role:
    roles = {role.value: role for role in Role}
    if item.value not in roles:
        other = '; write {name: "*/x"} for variables by name' if isinstance(item.value, str) else ""
        hint = did_you_mean(item.value, roles) or other
        raise item.error(f"{key} takes roles, {', '.join(roles)}, or selectors; got {describe(item.value)}{hint}")
    return roles[str(item.value)]


def _defaults(key: str, item: Located) -> dict[str, Any]:
    return all_fields(item, DEFAULT_FIELDS, f"'{key}'")


SELECTOR_FIELDS: Mapping[str, Reader] = {
    "name": _list_of(_text, tuple, "glob", "'*/bias'"),
    "regex": _list_of(_regex, tuple, "regular expression", "'bias$'"),
    "path": _text,
    "rank": _rank,
    "dtype": _list_of(_one_of(*DTYPES, aliases=_DTYPE_ALIASES), frozenset, "dtype", "float32"),
    "used_by": _list_of(_text, frozenset, "op type", "MatMul"),
    "role": _list_of(_role, frozenset, "role", "kernel"),
    "followed_by": _one_of(*FOLLOWED_BY),
    "variables": _variables,
}

DEFAULT_FIELDS: Mapping[str, Reader] = {
    "weight_decay": _rate_or_schedule,
    "mode": _one_of("decoupled", "coupled"),
    "order": _one_of("after", "before"),
    "scale": _one_of("none", "lr", "relative", "corrected"),
    "peak_learning_rate": _positive,
    "formula": read_formula,
    "tunable": _name,
    "step": _text,
    "semantics": _one_of("decoupled", "adamw", "tfa", "l2", "cuda-convnet"),
    "sparse": _one_of("touched", "all"),
    "learning_rate": _text,
    "update": _text,
    "gradient": _text,
    "updates": _one_of("each", "last", "first"),
    "double_decay": _one_of("allow"),
    "optional": _flag,
}

RULE_FIELDS: Mapping[str, Reader] = {**SELECTOR_FIELDS, **DEFAULT_FIELDS}

POLICY_FIELDS: Mapping[str, Reader] = {
    "version": _version,
    "defaults": _defaults,
    "exempt": _list_of(_exemption, tuple, "role", "bias"),
    "rules": _rules,
    "weight_decay": _rate_or_schedule,
    "unmatched": _one_of("error", "skip"),
    "fuse": _one_of("none", "xla"),
    "not_updated": _one_of("error", "leave"),
}
