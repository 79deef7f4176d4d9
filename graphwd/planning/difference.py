"""Compares two plans: which variables only one of them has, and what the two do otherwise to the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from graphwd.errors import StepError
from graphwd.planning.terminal import Detail, Section, columns_of, laid_out, section_of
from graphwd.planning.texts import (
    decay_text,
    elements,
    parameters_text,
    rewritten_label,
    rewritten_texts,
    role_text,
    shape_text,
    variables_text,
)

VERIFY = "'graphwd verify' compares a rewritten model with a policy"
"""What is said to those who would compare a rewritten model with what it was to become."""

_JSON_KINDS = {
    list: "a list",
    str: "a text",
    bool: "a truth value",
    type(None): "null",
    int: "a number",
    float: "a number",
}
"""What a file holds, by what Python reads it as."""

_ALWAYS = ("shape", "dtype", "role", "followed_by", "outcome")
_IN_GRADIENT = "gradient"  # as of `Where.GRADIENT`, which is not imported: that would take NumPy
_FUSES = frozenset({"none", "xla", None})
_OUTCOMES = frozenset({"decay", "exempt", "no update", "unmatched", "refused", None})
_OF_A_DECAY = (
    *("weight_decay", "formula", "formula_digest", "mode", "order", "scale", "rows", "tunable", "peak_learning_rate"),
    *("schedule", "place", "rate", "learning_rate", "updates", "gradient"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a plan says of one variable.

    Attributes:
        label: what tells the variable from others.
        decay: its decay, in words.
        facts: all that is compared, as plain values.
        words: what of that `decay` does not tell, in words.
        cells: what is shown beside its name.
        rule: the rule that decided; None where none did.
        size: its number of elements; None where that is not known.
    """

    label: str
    decay: str
    facts: Mapping[str, Any]
    words: Mapping[str, str]
    cells: tuple[str, ...]
    rule: str | None
    size: int | None


@dataclass(frozen=True, slots=True)
class Account:
    """One side of a comparison.

    Attributes:
        name: what the user calls it.
        entries: its variables.
        problems: why its rewrite would be refused.
        fuse: whether XLA compiles its updates with their decay, as the policy says it; None where that is not known.
        rewritten: whether it is of a model that graphwd has rewritten, rather than of a plan.
    """

    name: str
    entries: Sequence[Entry]
    problems: Sequence[str] = ()
    fuse: str | None = None
    rewritten: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """What two accounts do not have in common.

    Attributes:
        names: what the user calls the two.
        alone: the variables that only the first has, and those that only the second has.
        changed: the others that differ.
        alike: those that do not.
        problems: the problems that only the first has, and those that only the second has.
        fuse: of both, whether XLA compiles the updates with their decay; None for one that does not know it.
    """

    names: tuple[str, str]
    alone: tuple[Sequence[Entry], Sequence[Entry]]
    changed: Sequence[tuple[Entry, Entry]]
    alike: Sequence[tuple[Entry, Entry]]
    problems: tuple[Sequence[str], Sequence[str]]
    fuse: tuple[str | None, str | None] = (None, None)

    @property
    def fused_otherwise(self) -> bool:
        """Whether XLA compiles the updates of one with their decay, and those of the other not."""
        return None not in self.fuse and self.fuse[0] != self.fuse[1]

    def __bool__(self) -> bool:
        """Whether there is any; that a rule has moved to another line, or to another file, is none."""
        return any((*self.alone, self.changed, *self.problems, self.fused_otherwise))


def account_of(name: str, told: Any) -> Account:
    """Reads the record of a plan.

    Args:
        name: what the user calls it.
        told: what `Plan.record` returns, or what a file of it held.

    Raises:
        StepError: it is no such record.
    """
    advice = "write one with 'graphwd plan --format json'"
    if not isinstance(told, Mapping):
        raise StepError(f"{name}: is no plan, but {_JSON_KINDS[type(told)]}; {advice}")
    record = cast("Mapping[str, Any]", told)
    try:
        if record["version"] != 1:
            raise StepError(f"{name}: is a plan of version {record['version']}, which this graphwd cannot read")
        if record["rewritten"]:
            return rewritten_account(
                name, [{**each, "rows": each["rows"] == "touched"} for each in record["rewritten"]]
            )
        if (fuse := record.get("fuse")) not in _FUSES:
            raise ValueError(f"fuse {fuse!r}")
        entries, problems = map(_entry, record["variables"]), map(str, record["problems"])
        return Account(name, list(entries), list(problems), fuse)
    except KeyError as error:
        raise StepError(f"{name}: is no plan, for it has no {error}; {advice}") from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise StepError(f"{name}: is no plan, for its values are none of a plan ({error}); {advice}") from None


def rewritten_account(name: str, decays: Iterable[Mapping[str, Any]]) -> Account:
    """The same of a model that graphwd has rewritten.

    Args:
        name: what the user calls it.
        decays: what `describe_saved_model` returns.
    """
    ways: dict[str, list[Mapping[str, Any]]] = {}
    for decay in decays:
        ways.setdefault(rewritten_label(decay), []).append(decay)
    keys = ("rate", "learning_rate", "power", "factors", "formula", "where", "rows")
    entries: list[Entry] = []
    for label, each in ways.items():
        told = dict.fromkeys(", ".join(rewritten_texts(decay)[1:3]) for decay in each)
        decided = [{"factors": (), **decay} for decay in each]  # records of before have none
        values = {key: list({json.dumps(decay[key]): decay[key] for decay in decided}.values()) for key in keys}
        facts = {key: value[0] if len(value) == 1 else value for key, value in values.items()}
        entries.append(Entry(label, "; ".join(told), facts, {}, (), None, None))
    return Account(name, entries, rewritten=True)


def _entry(variable: Mapping[str, Any]) -> Entry:
    if variable["outcome"] not in _OUTCOMES:
        raise ValueError(f"outcome {variable['outcome']!r}")
    if not all(isinstance(size, int) for size in variable["shape"] or () if size is not None):
        raise ValueError(f"shape {variable['shape']!r}")
    if not isinstance(variable["rule"], str | None):
        raise ValueError(f"rule {variable['rule']!r}")
    decays: list[Mapping[str, Any]] = variable["decays"] if variable["outcome"] == "decay" else []
    places = [update["at"] for update in variable["updates"]]
    facts: dict[str, Any] = {key: variable[key] for key in _ALWAYS}
    found: dict[str, list[Any]] = {
        "place": [decay["where"] for decay in decays],
        "rate": [decay["rate"] for decay in decays],
        "learning_rate": [decay["learning_rate"] for decay in decays],
        # By number: another trace or version of the step may call its nodes otherwise.
        "updates": [number for number, at in enumerate(places) if any(decay["at"] == at for decay in decays)],
        "gradient": [
            (decay["gradient"], decay["gradient_after"]) for decay in decays if decay["where"] == _IN_GRADIENT
        ],
    }
    decayed = variable["outcome"] == "decay"
    facts |= {key: found.get(key, variable.get(key)) if decayed else None for key in _OF_A_DECAY}
    words = {
        "shape": shape_text(variable["shape"]),
        "dtype": str(variable["dtype"]),
        "role": role_text(variable),
    }
    if decayed:
        if variable.get("formula_digest"):
            words["code of the formula"] = str(variable["formula_digest"])
        if variable["schedule"]:
            words["counter"] = str(variable["schedule"]["counter"])
        rates = [f"{decay['rate']:g}" for decay in decays]
        words |= {
            "place": ", ".join(map(str, found["place"])),
            "rate": ", ".join(dict.fromkeys(rates)),
            "learning rate": ", ".join(dict.fromkeys(map(str, found["learning_rate"]))),
            "updates": ", ".join(str(number + 1) for number in found["updates"]),
            "gradient": ", ".join(dict.fromkeys(str(entry) for entry, _ in found["gradient"])),
        }
    cells = (words["shape"], words["role"])
    size = elements(variable["shape"])
    return Entry(str(variable["label"]), decay_text(variable), facts, words, cells, variable["rule"], size)


def compare(first: Account, second: Account) -> Difference:
    """Compares two accounts, variable by variable.

    Args:
        first: the one before.
        second: the one after.

    Raises:
        StepError: one is of a model that graphwd has rewritten, the other of a plan.
    """
    if first.entries and second.entries and first.rewritten != second.rewritten:
        done, planned = (first, second) if first.rewritten else (second, first)
        raise StepError(
            f"{done.name} has been rewritten by graphwd, and {planned.name} is a plan; compare two of one kind; "
            f"{VERIFY}"
        )
    one, other = (_by_label(account.entries) for account in (first, second))
    both = [(one[key], other[key]) for key in one if key in other]
    return Difference(
        (first.name, second.name),
        ([one[key] for key in one if key not in other], [other[key] for key in other if key not in one]),
        [pair for pair in both if _differences(*pair)],
        [pair for pair in both if not _differences(*pair)],
        (
            [problem for problem in first.problems if problem not in second.problems],
            [problem for problem in second.problems if problem not in first.problems],
        ),
        (first.fuse, second.fuse),
    )


def _by_label(entries: Iterable[Entry]) -> dict[tuple[str, int], Entry]:
    """Entries by their label, and by a number where a label has several, as for traces that differ."""
    found: dict[tuple[str, int], Entry] = {}
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.label] = counts.get(entry.label, -1) + 1
        found[entry.label, counts[entry.label]] = entry
    return found


def _differences(one: Entry, other: Entry) -> dict[str, tuple[Any, Any]]:
    """The facts that differ; a role, or the code of a formula, does not where one side does not know it."""
    unknown = {"role", "followed_by"} if None in (one.facts.get("role"), other.facts.get("role")) else set[str]()
    if None in (one.facts.get("formula_digest"), other.facts.get("formula_digest")):
        unknown.add("formula_digest")
    keys = dict.fromkeys((*one.facts, *other.facts))
    pairs = {key: (one.facts.get(key), other.facts.get(key)) for key in keys if key not in unknown}
    return {key: pair for key, pair in pairs.items() if json.dumps(pair[0]) != json.dumps(pair[1])}


def _change(one: Entry, other: Entry) -> str:
    """What differs, in words."""
    told = [f"{one.decay} → {other.decay}"] if one.decay != other.decay else []
    implied = {"place", "rate", "code of the formula"} if told else set[str]()
    for key, word in one.words.items():
        if key not in implied and other.words.get(key, word) != word and "" not in (word, other.words[key]):
            told.append(f"{key} {word} → {other.words[key]}")
    others = [key for key in _differences(one, other) if key not in one.words]
    rules = f" ({one.rule} → {other.rule})" if one.rule and other.rule and one.rule != other.rule else ""
    return ("; ".join(told) or f"{', '.join(others)} of {one.decay}") + rules


def difference_as_table(difference: Difference, detail: Detail = Detail.FOLDED, width: int | None = None) -> str:
    """A difference for a terminal, grouped and folded as a plan is.

    Args:
        difference: the difference.
        detail: how much of it.
        width: columns to fit into; None for those of the terminal.
    """
    sections: list[Section] = []
    for name, entries in zip(difference.names, difference.alone, strict=True):
        sections += _sections([(f"only in {name}: {entry.decay}", entry, entry) for entry in entries], detail)
    sections += _sections([(_change(*pair), *pair) for pair in difference.changed], detail)
    closing = [("", f"{_moved(*rules)}") for rules in _rules(difference).items()]
    for name, problems in zip(difference.names, difference.problems, strict=True):
        closing += [(f"only in {name}: problem: ", problem) for problem in problems]
    if difference.fused_otherwise:
        closing.append(("", f"fuse: {' → '.join(map(str, difference.fuse))}"))
    closing.append(("", _summary(difference)))
    return laid_out(sections, closing, columns_of(detail) if width is None else width)


def _sections(told: Sequence[tuple[str, Entry, Entry]], detail: Detail) -> Iterator[Section]:
    grouped: dict[str, list[tuple[Entry, Entry]]] = {}
    for head, *pair in told:
        grouped.setdefault(head, []).append((pair[0], pair[1]))
    for head, pairs in grouped.items():
        alike = [json.dumps([one.facts, one.rule, other.facts, other.rule]) for one, other in pairs]
        entries = [other for _, other in pairs]
        aside = variables_text(len(entries))
        if any(entry.cells for entry in entries):
            aside += f", {parameters_text(entry.size for entry in entries)}"
        names, cells = [entry.label for entry in entries], [entry.cells for entry in entries]
        yield section_of(head, names, cells, alike, aside, detail)


def _rules(difference: Difference) -> dict[tuple[str, str], int]:
    """The rules that decide otherwise than before to the same effect, and how many variables each pair is for."""
    counts: dict[tuple[str, str], int] = {}
    for one, other in difference.alike:
        if one.rule != other.rule:
            pair = (one.rule or "no rule", other.rule or "no rule")
            counts[pair] = counts.get(pair, 0) + 1
    return counts


def _moved(rules: tuple[str, str], count: int) -> str:
    return f"to the same effect: {rules[0]} → {rules[1]}, {variables_text(count)}"


def _summary(difference: Difference) -> str:
    alike = f"{variables_text(len(difference.alike))} alike"
    if not difference:
        return f"no difference: {alike}"
    alone = [
        f"{len(entries)} only in {name}"
        for name, entries in zip(difference.names, difference.alone, strict=True)
        if entries
    ]
    changed = [f"{variables_text(len(difference.changed))} changed"] if difference.changed else []
    return ", ".join([*changed, *alone, alike])


def difference_as_json(difference: Difference) -> str:
    """A difference as JSON, with the keys that ``graphwd help plan`` documents."""
    sides = ("first", "second")
    value = {
        "version": 1,
        **dict(zip(sides, difference.names, strict=True)),
        "differ": bool(difference),
        "only_in": {
            side: [{"label": entry.label, **entry.facts} for entry in entries]
            for side, entries in zip(sides, difference.alone, strict=True)
        },
        "changed": [
            {"label": one.label, "rule": [one.rule, other.rule], "differences": _differences(one, other)}
            for one, other in difference.changed
        ],
        "alike": len(difference.alike),
        "rules": [{"rule": list(rules), "variables": count} for rules, count in _rules(difference).items()],
        "problems": dict(zip(sides, map(list, difference.problems), strict=True)),
        "fuse": dict(zip(sides, difference.fuse, strict=True)),
    }
    return json.dumps(value, indent=2)
