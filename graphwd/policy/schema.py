"""The schema of a policy: the table of its keys, and the function that reads a mapping by it.

A row of the table is all that is known of a key: the kind of its value, which both reads and describes it, and what it
means in one sentence. `graphwd.policy.json_schema` makes the JSON schema of the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphwd.policy.formula import formula_shape, read_formula
from graphwd.policy.kinds import (
    FLAG,
    NAME,
    POSITIVE,
    RANK,
    RATE,
    REGEX,
    TEXT,
    VARIABLES,
    VERSION,
    Kind,
    either,
    list_of,
    one_of,
)
from graphwd.policy.mistakes import Mistakes
from graphwd.policy.roles import FOLLOWED_BY, Role
from graphwd.policy.schedule import read_schedule
from graphwd.policy.selectors import Selectors
from graphwd.policy.words import describe, did_you_mean, near
from graphwd.policy.yaml_source import Given, Located

DTYPES = ("bfloat16", "complex128", "complex64", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
_DTYPE_ALIASES = {"fp16": "float16", "half": "float16", "fp32": "float32", "single": "float32", "fp64": "float64"}


@dataclass(frozen=True, slots=True)
class Field:
    """A row of the table.

    Attributes:
        kind: the kind of its value.
        about: what it means, in one sentence.
    """

    kind: Kind
    about: str


Table = Mapping[str, Field]


def fields(item: Located, table: Table, what: str, mistakes: Mistakes) -> dict[str, Any]:
    """Reads a mapping by its table.

    Args:
        item: the mapping.
        table: for every key allowed, its field.
        what: what the mapping is, for errors.
        mistakes: collects the keys that the table does not have, and the values that are wrong.

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
            if key not in table:
                raise value.error_here(f"unknown key {describe(key)} in {what}; {_right_key(key, table)}")
            values[key] = table[key].kind.read(key, value)
    return values


def all_fields(item: Located, table: Table, what: str) -> dict[str, Any]:
    """Reads a mapping of which every key must be right, as `fields`.

    Raises:
        PolicyError: it is not a mapping, or some keys or values are wrong; the error has all of its mistakes.
    """
    mistakes = Mistakes()
    values = fields(item, table, what, mistakes)
    mistakes.check()
    return values


def _right_key(key: str, table: Table) -> str:
    """What is said of a key that a table does not have."""
    if table is POLICY_FIELDS and key in DEFAULT_FIELDS:
        return "a field of all rules stands under 'defaults'"
    known = _ELSEWHERE.get(key.lower().replace("-", "_"))
    if table is POLICY_FIELDS and known not in table and known in DEFAULT_FIELDS:
        return f"did you mean '{known}'? A field of all rules stands under 'defaults'"
    meant = known if known in table else near(key, table)
    return f"did you mean '{meant}'?" if meant else f"the keys here are {', '.join(sorted(table))}"


_ELSEWHERE = {
    **dict.fromkeys(
        ("layer", "layers", "param", "params", "parameter", "parameters", "variable", "var", "vars"), "name"
    ),
    **dict.fromkeys(("weights", "glob", "match", "pattern", "names", "include"), "name"),
    **dict.fromkeys(("re", "regexp"), "regex"),
    **dict.fromkeys(("ndim", "ndims", "dim", "dims"), "rank"),
    **dict.fromkeys(("op", "ops", "op_type"), "used_by"),
    **dict.fromkeys(("decay", "lambda", "lambda_", "l2", "rate", "strength", "wc", "wd"), "weight_decay"),
    **dict.fromkeys(("weight_decay_rate", "decay_rate", "kernel_regularizer"), "weight_decay"),
    **dict.fromkeys(("lr", "eta"), "learning_rate"),
    **dict.fromkeys(("peak_lr", "max_lr"), "peak_learning_rate"),
    **dict.fromkeys(("penalty", "regularizer"), "formula"),
    **dict.fromkeys(("preset", "style", "kind"), "semantics"),
    **dict.fromkeys(("exclude", "excluded", "exclude_from_weight_decay", "ignore", "skip"), "exempt"),
    **dict.fromkeys(("no_decay", "no_weight_decay"), "exempt"),
    **dict.fromkeys(("groups", "param_groups", "parameter_groups"), "rules"),
}
"""What other libraries, and people, call keys of a policy: no keys here, but what a message may take for one."""


def _role(key: str, item: Located) -> Role:
    return Role(_ROLE_WORDS.read(key, item))


def _defaults(key: str, item: Located) -> dict[str, Any]:
    return all_fields(item, DEFAULT_FIELDS, f"'{key}'")


def _rules(key: str, item: Located) -> tuple[Located, ...]:
    """The rules, unread: what one says depends on the defaults."""
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


_ROLE_WORDS = one_of(*(role.value for role in Role))
_ROLE = Kind(_role, _ROLE_WORDS.shape)
_DTYPE = one_of(*DTYPES, aliases=_DTYPE_ALIASES)
_SCHEDULE = Kind(read_schedule, lambda: {"$ref": "#/$defs/schedule"})
_DECAY = either(RATE, _SCHEDULE, lambda value: isinstance(value, (Mapping, Given)))
_FORMULA = Kind(read_formula, formula_shape)
_DEFAULTS = Kind(_defaults, lambda: {"$ref": "#/$defs/defaults"})
_RULES = Kind(_rules, lambda: {"type": "array", "items": {"$ref": "#/$defs/rule"}})
_EXEMPTION = Kind(_exemption, lambda: {"anyOf": [_ROLE.shape(), {"$ref": "#/$defs/exemption"}]})

SELECTOR_FIELDS: Table = {
    "name": Field(
        list_of(TEXT, tuple, "glob", "'*/bias'"),
        "A glob over the whole name of a variable, without ':0', or several of which one must match.",
    ),
    "regex": Field(
        list_of(REGEX, tuple, "regular expression", "'bias$'"),
        "A regular expression of Python, searched for anywhere in the name, or several of which one must be found.",
    ),
    "path": Field(TEXT, "A glob over a whole path to the variable in the object graph, such as model.layers.0.kernel."),
    "rank": Field(RANK, "The number of dimensions, or a comparison with one, such as '>=2'."),
    "dtype": Field(list_of(_DTYPE, frozenset, "dtype", "float32"), "The dtype, or several of which it must have one."),
    "used_by": Field(
        list_of(TEXT, frozenset, "op type", "MatMul"), "Op types, of which one must read the variable, such as MatMul."
    ),
    "role": Field(
        list_of(_ROLE, frozenset, "role", "kernel"),
        "What the forward pass uses the variable for, or several of these of which one must be right.",
    ),
    "followed_by": Field(one_of(*FOLLOWED_BY), "What the result of the variable must go straight into."),
    "variables": Field(VARIABLES, "The variables themselves, in a policy made in Python."),
}

DEFAULT_FIELDS: Table = {
    "weight_decay": Field(
        _DECAY, "The rate, a number without unit or a schedule of the updates; 0 leaves the variable alone."
    ),
    "formula": Field(_FORMULA, "What the rate is multiplied by, as a function of the weight."),
    "tunable": Field(NAME, "The name of a variable that holds the rate, to be assigned while it trains."),
    "step": Field(TEXT, "A glob for the variable that counts the updates, for a schedule."),
    "semantics": Field(
        one_of("decoupled", "adamw", "tfa", "l2", "cuda-convnet"),
        "What the rate means: a preset of 'mode', 'order' and 'scale'.",
    ),
    "mode": Field(
        one_of("decoupled", "coupled"), "Whether the decay is of the weight itself, or is added to the gradient."
    ),
    "order": Field(
        one_of("after", "before"), "Whether a decoupled decay comes after the optimizer's update or before."
    ),
    "scale": Field(
        one_of("none", "lr", "relative", "corrected"), "What a decoupled decay is multiplied by of the learning rate."
    ),
    "peak_learning_rate": Field(
        POSITIVE, "The largest learning rate of the training, for 'scale: relative' and 'scale: corrected'."
    ),
    "sparse": Field(
        one_of("touched", "all"), "Which rows decay at a sparse update: those that it touches, each once, or all."
    ),
    "learning_rate": Field(
        TEXT, "A glob for the variable, argument or node that holds the learning rate, where it cannot be found."
    ),
    "update": Field(TEXT, "A glob for the writes that are the variable's update, where that cannot be told."),
    "gradient": Field(
        TEXT, "A glob for the node that makes the gradient as the optimizer gets it, where that cannot be told."
    ),
    "updates": Field(
        one_of("each", "last", "first"), "Which of several updates of the variable in one step carries the decay."
    ),
    "double_decay": Field(one_of("allow"), "That a variable which the step decays already may be decayed again."),
    "optional": Field(FLAG, "Whether the rule may match no variable."),
}

RULE_FIELDS: Table = {**SELECTOR_FIELDS, **DEFAULT_FIELDS}

POLICY_FIELDS: Table = {
    "version": Field(VERSION, "The version of this format."),
    "defaults": Field(_DEFAULTS, "The fields of a rule that does not spell them out itself."),
    "exempt": Field(
        list_of(_EXEMPTION, tuple, "role", "bias"),
        "What is never decayed, before any rule: roles, or mappings of selectors; each may match nothing.",
    ),
    "rules": Field(_RULES, "The rules, of which the first that matches a variable decides it."),
    "weight_decay": Field(_DECAY, "The rate of every variable that neither 'exempt' nor a rule has decided."),
    "unmatched": Field(
        one_of("error", "skip"), "Whether a trainable variable that no rule matches is an error or left alone."
    ),
    "not_updated": Field(
        one_of("error", "leave"),
        "Whether a variable that a rule would decay, but that no gradient updates, is an error or left alone.",
    ),
    "fuse": Field(
        one_of("none", "xla"),
        "Whether XLA compiles the optimizer's arithmetic of the decayed variables with the decay.",
    ),
    "writers": Field(
        one_of("one", "several"),
        "Whether several threads or sessions update the variables at once; a decay then only subtracts.",
    ),
}
