"""The schema of a policy: a table of the values that each key may have, and the function that reads a mapping by it."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from graphwd.errors import PolicyError
from graphwd.policy.formula import read_formula
from graphwd.policy.globs import composed
from graphwd.policy.roles import FOLLOWED_BY, Role
from graphwd.policy.schedule import ScheduleChoice, read_schedule
from graphwd.policy.selectors import RANK_COMPARISONS, Listed, Rank, is_variable
from graphwd.policy.yaml_source import Given, Located

_RANK = re.compile(r"\s*(>=|<=|==|!=|>|<|)\s*(\d{1,3})\s*")
DTYPES = ("bfloat16", "complex128", "complex64", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")

Reader = Callable[[str, Located], Any]


def fields(item: Located, schema: Mapping[str, Reader], what: str) -> dict[str, Any]:
    """Reads a mapping by its schema.

    Args:
        item: the mapping.
        schema: for every key allowed, what reads its value.
        what: what the mapping is, for errors.

    Returns:
        The value of every key given.

    Raises:
        PolicyError: not a mapping, a key that the schema does not know, or a value that its reader refuses.
    """
    if not isinstance(item.value, Mapping):
        raise PolicyError(f"{item.where}: {what} must be a mapping of keys to values, got {_describe(item.value)}")
    for key, value in item.value.items():
        if key not in schema:
            close = difflib.get_close_matches(key, schema, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"the keys here are {', '.join(sorted(schema))}"
            raise PolicyError(f"{value.where}: unknown key '{key}' in {what}; {hint}")
    return {key: schema[key](key, value) for key, value in item.value.items()}


def _text(key: str, item: Located) -> str:
    if not isinstance(item.value, str) or not item.value:
        raise PolicyError(f"{item.where}: {key} must be text, got {_describe(item.value)}; put it in quotes")
    return item.value


def _regex(key: str, item: Located) -> str:
    pattern = composed(_text(key, item))
    try:
        with warnings.catch_warnings():
            # Python warns of patterns whose meaning will change.
            warnings.simplefilter("error", FutureWarning)
            re.compile(pattern)
    except (re.error, OverflowError, FutureWarning) as error:
        raise PolicyError(f"{item.where}: {key} {pattern!r} is not a regular expression: {error}") from None
    except RecursionError:
        raise PolicyError(f"{item.where}: {key} is nested too deeply to be compiled") from None
    return pattern


def _rate_or_schedule(key: str, item: Located) -> float | ScheduleChoice:
    changes = isinstance(item.value, (Mapping, Given))
    return read_schedule(key, item) if changes else _rate(key, item)


def _rate(key: str, item: Located) -> float:
    value = item.value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PolicyError(f"{item.where}: {key} must be a number, got {_describe(value)}; write 5e-4 without quotes")
    try:
        rate = float(value)
    except OverflowError:
        rate = math.inf
    if not math.isfinite(rate) or rate < 0:
        raise PolicyError(f"{item.where}: {key} must be a finite number >= 0, got {rate}; write 0 for no decay")
    return rate


def _positive(key: str, item: Located) -> float:
    value = _rate(key, item)
    if not value:
        raise PolicyError(f"{item.where}: {key} must be above 0")
    return value


def _name(key: str, item: Located) -> str:
    text = _text(key, item)
    if not text.isidentifier():
        raise PolicyError(
            f"{item.where}: {key} must be a name of letters, digits and _, got {text!r}; write body_decay"
        )
    return text


def _flag(key: str, item: Located) -> bool:
    if not isinstance(item.value, bool):
        raise PolicyError(f"{item.where}: {key} must be true or false, got {_describe(item.value)}")
    return item.value


def _one_of(*allowed: str) -> Reader:
    def read(key: str, item: Located) -> str:
        if item.value not in allowed:
            raise PolicyError(f"{item.where}: {key} must be one of {', '.join(allowed)}; got {_describe(item.value)}")
        return str(item.value)

    return read


def _rank(key: str, item: Located) -> Rank:
    plain = isinstance(item.value, (int, str)) and not isinstance(item.value, bool)
    match = _RANK.fullmatch(item.value if isinstance(item.value, str) else _describe(item.value)) if plain else None
    if match is None:
        raise PolicyError(
            f"{item.where}: {key} must be a number of dimensions, or one after {' '.join(RANK_COMPARISONS)}; "
            f'got {_describe(item.value)}; write ">=2"'
        )
    return Rank(match[1] or "==", int(match[2]))


def _list_of(read: Reader, collect: Callable[[Iterable[Any]], Any], what: str, example: str) -> Reader:
    """What reads a value of one kind, or a list of such values."""

    def read_all(key: str, item: Located) -> Any:
        entries = item.value if isinstance(item.value, tuple) else (item,)
        if not entries:
            raise PolicyError(f"{item.where}: {key} must name at least one {what}, such as {example}")
        return collect(read(key, entry) for entry in entries)

    return read_all


def _role(key: str, item: Located) -> Role:
    return Role(_one_of(*(role.value for role in Role))(key, item))


def _variables(key: str, item: Located) -> Listed:
    if not isinstance(item.value, Given):
        raise PolicyError(
            f"{item.where}: {key} lists the variables themselves, which only a policy made in Python can; in a file "
            "select by name, regex or path"
        )
    value = item.value.value
    if not isinstance(value, (list, tuple)):
        raise PolicyError(f"{item.where}: {key} must be a list of variables, got a {type(value).__name__}; write [v]")
    listed = cast("Sequence[object]", value)
    if not listed:
        raise PolicyError(f"{item.where}: {key} must list at least one variable")
    for i, variable in enumerate(listed):
        if not is_variable(variable):
            raise PolicyError(
                f"{item.where}[{i}]: {key} must list variables of TensorFlow or Keras, got a {type(variable).__name__}"
            )
    return Listed(listed)


def _version(key: str, item: Located) -> int:
    if isinstance(item.value, bool) or item.value != 1:
        raise PolicyError(f"{item.where}: {key} must be 1, got {_describe(item.value)}")
    return 1


def _rules(key: str, item: Located) -> tuple[Located, ...]:
    if not isinstance(item.value, tuple):
        raise PolicyError(f"{item.where}: {key} must be a list, got {_describe(item.value)}; begin each rule with '- '")
    return item.value


def _defaults(key: str, item: Located) -> dict[str, Any]:
    return fields(item, DEFAULT_FIELDS, f"'{key}'")


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    if isinstance(value, Given):
        return f"a {type(value.value).__name__}"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits.
        return "an enormous number"
    return text if len(text) <= 60 else text[:57] + "..."


SELECTOR_FIELDS: Mapping[str, Reader] = {
    "name": _list_of(_text, tuple, "glob", "'*/bias'"),
    "regex": _list_of(_regex, tuple, "regular expression", "'bias$'"),
    "path": _text,
    "rank": _rank,
    "dtype": _list_of(_one_of(*DTYPES), frozenset, "dtype", "float32"),
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
    "rules": _rules,
    "unmatched": _one_of("error", "skip"),
    "fuse": _one_of("none", "xla"),
    "not_updated": _one_of("error", "leave"),
}
