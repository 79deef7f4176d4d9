"""Shows the record of a plan in a terminal: by rule, with what repeats folded, in the columns that there are."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from graphwd.planning.folding import fold
from graphwd.planning.texts import (
    PLACES,
    decay_text,
    device_lines,
    elements,
    first_of_each,
    human,
    parameters_text,
    rewritten_label,
    rewritten_texts,
    role_text,
    schedule_lines,
    shape_text,
    summary,
    variables_text,
    ways_text,
)

_PIPE = 100
"""Columns of a folded plan where there is no terminal."""

_LEAST = 20
"""Columns below which no terminal is told from a wider one: nothing can be read there."""

_ENDLESS = 10**9


class Detail(Enum):
    """How much of a plan is shown."""

    FOLDED = "folded"  # what repeats in one line
    ALL = "all"  # a line for each variable
    VERBOSE = "verbose"  # and below it the nodes of its updates and decays


def detail_of(*, all: bool, verbose: bool) -> Detail:
    """How much is shown, by the words of the command line for it."""
    if verbose:
        return Detail.VERBOSE
    return Detail.ALL if all else Detail.FOLDED


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a section.

    Attributes:
        name: a name, or several, folded.
        count: how many.
        cells: what stands in the columns beside it.
        below: what stands below it.
    """

    name: str
    count: int
    cells: tuple[str, ...]
    below: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """What is shown under one head.

    Attributes:
        head: what the lines have in common.
        aside: how much that is, at the end of the same line.
        lines: the lines.
    """

    head: str
    aside: str
    lines: tuple[Line, ...]


def as_table(record: Mapping[str, Any], detail: Detail = Detail.FOLDED, width: int | None = None) -> str:
    """The plan for a terminal, by rule.

    Args:
        record: what `Plan.record` returns.
        detail: how much of it.
        width: columns to fit into; None for those of the terminal. Where there is none, a folded plan has 100, and the
            others have lines as long as they need.

    Returns:
        A section for each rule and what it does, a line that counts the variables, then schedules, notes and problems.
    """
    variables = record["variables"]
    rates = {_learning_rates(variable) for variable in variables if variable["decays"]}
    dtypes = {variable["dtype"] for variable in variables}

    def head(variable: Mapping[str, Any]) -> str:
        where = f", lr is {', '.join(_learning_rates(variable))}" if len(rates) > 1 and variable["decays"] else ""
        return f"{variable['rule'] or 'no rule'}: {decay_text(variable)}{where}"

    def cells(variable: Mapping[str, Any]) -> tuple[str, ...]:
        return shape_text(variable["shape"]), *_dtype(variable, dtypes), role_text(variable)

    sections = [
        _section(text, members, cells, _facts, detail)
        for text, members in sorted(_grouped(variables, head).items(), key=lambda item: _by_rule(item[1][0]))
    ]
    closing = [("", f"{summary(record)}{_parameters(variables, dtypes)}")]
    closing += [("", text) for text in (*schedule_lines(record), *device_lines(record))]
    closing += [("note: ", text) for text in record["notes"]] + [("problem: ", text) for text in record["problems"]]
    return laid_out(sections, closing, columns_of(detail) if width is None else width)


def overview_as_table(record: Mapping[str, Any], detail: Detail = Detail.FOLDED, width: int | None = None) -> str:
    """The variables of a step for a terminal, before there is a policy: what each is used for, where it is updated.

    Args:
        record: what `Plan.record` returns for any policy.
        detail: how much of it.
        width: columns to fit into, as for `as_table`.
    """
    variables = record["variables"]
    dtypes = {variable["dtype"] for variable in variables}

    def head(variable: Mapping[str, Any]) -> str:
        return role_text(variable) + ("" if variable["updates"] else ", not updated by this step")

    def cells(variable: Mapping[str, Any]) -> tuple[str, ...]:
        seen = variable["seen"] or "-"
        return shape_text(variable["shape"]), *_dtype(variable, dtypes), seen.partition(", ")[0]

    sections = [_section(text, each, cells, cells, detail) for text, each in _grouped(variables, head).items()]
    count = _total(variables, "trainable variable")
    advice = f"{_common(dtypes)}; 'graphwd init STEP_FN' writes a first policy for them"
    return laid_out(sections, [("", count + advice)], columns_of(detail) if width is None else width)


def decays_as_table(
    decays: Sequence[Mapping[str, Any]], detail: Detail = Detail.FOLDED, width: int | None = None
) -> str:
    """The decays of a model that graphwd has rewritten, for a terminal.

    Args:
        decays: what `describe_saved_model` returns.
        detail: how much of it.
        width: columns to fit into, as for `as_table`.
    """
    sections: list[Section] = []
    for head, members in _grouped(decays, lambda decay: ", ".join(rewritten_texts(decay)[1:3])).items():
        ways: dict[str, list[str]] = {}
        for decay in members:
            ways.setdefault(rewritten_label(decay), []).append(decay["at"])
        counts = [f"{len(each)} way{'' if len(each) == 1 else 's'}" for each in ways.values()]
        below = [tuple(f"at {at}" for at in each) for each in ways.values()]
        lines = _lines(list(ways), [(count,) for count in counts], counts, below, detail)
        sections.append(Section(head, variables_text(len(ways)), tuple(lines)))
    return laid_out(sections, [("", ways_text(decays))], columns_of(detail) if width is None else width)


def terminal_width() -> int | None:
    """The columns of the terminal that standard output is, or as ``COLUMNS`` says; None where there is none."""
    columns = shutil.get_terminal_size((0, 0)).columns
    return max(columns, _LEAST) if columns else None


def columns_of(detail: Detail) -> int:
    """The columns that a plan is laid out in: those of the terminal, or what suits a pipe."""
    return terminal_width() or (_PIPE if detail is Detail.FOLDED else _ENDLESS)


def _grouped(
    variables: Iterable[Mapping[str, Any]], head: Callable[[Mapping[str, Any]], str]
) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for variable in variables:
        groups.setdefault(head(variable), []).append(variable)
    return groups


def _by_rule(variable: Mapping[str, Any]) -> tuple[Any, ...]:
    """A key to sort by, for the order of the rules in their file; variables without a rule come last."""
    file, _, line = (variable["rule"] or "").rpartition(":")
    return variable["rule"] is None, file, int(line) if line.isdecimal() else 0, line


def _section(
    head: str,
    members: Sequence[Mapping[str, Any]],
    cells: Callable[[Mapping[str, Any]], tuple[str, ...]],
    alike: Callable[[Mapping[str, Any]], Hashable],
    detail: Detail,
) -> Section:
    same: dict[Hashable, list[Mapping[str, Any]]] = {}  # of replicas and traces, where it makes no difference
    for member in members:
        same.setdefault((member["label"], alike(member)), []).append(member)
    first = [each[0] for each in same.values()]
    lines = _lines(
        [member["label"] for member in first],
        list(map(cells, first)),
        list(map(alike, first)),
        [tuple(dict.fromkeys(line for member in each for line in _below(member))) for each in same.values()],
        detail,
    )
    return Section(head, _total(members), tuple(lines))


def _total(variables: Sequence[Mapping[str, Any]], what: str = "variable") -> str:
    """How many variables there are, and of how many parameters; each counts once."""
    sizes = [elements(variables[number]["shape"]) for number in first_of_each(variables)]
    return f"{variables_text(len(sizes), what)}, {parameters_text(sizes)}"


def section_of(
    head: str,
    names: Sequence[str],
    cells: Sequence[tuple[str, ...]],
    alike: Sequence[Hashable],
    aside: str,
    detail: Detail,
) -> Section:
    """A section of names, folded or each in a line.

    Args:
        head: what they have in common.
        names: the names.
        cells: what stands beside each.
        alike: for each a value; only names with equal values fold.
        aside: how much they are.
        detail: whether they are folded.
    """
    return Section(head, aside, tuple(_lines(names, cells, alike, [()] * len(names), detail)))


def _lines(
    names: Sequence[str],
    cells: Sequence[tuple[str, ...]],
    alike: Sequence[Hashable],
    below: Sequence[tuple[str, ...]],
    detail: Detail,
) -> Iterator[Line]:
    if detail is not Detail.FOLDED:
        for name, row, lines in zip(names, cells, below, strict=True):
            yield Line(name, 1, row, lines if detail is Detail.VERBOSE else ())
        return
    for folded in fold(names, alike):
        yield Line(folded.text, len(folded.members), cells[folded.members[0]])


_FACTS = (
    *("outcome", "rule", "role", "followed_by", "dtype", "shape", "weight_decay", "mode", "order", "scale", "tunable"),
    *("schedule", "peak_learning_rate", "formula", "rows"),
)


def _facts(variable: Mapping[str, Any]) -> Hashable:
    """All that variables have in common which are folded into one line."""
    decays = [(decay["where"], decay["rate"], decay["learning_rate"]) for decay in variable["decays"]]
    counts = [len(variable[what]) for what in ("updates", "native_decays")]
    return json.dumps([[variable[fact] for fact in _FACTS], decays, counts])


def _learning_rates(variable: Mapping[str, Any]) -> tuple[str, ...]:
    names = (decay["learning_rate"] for decay in variable["decays"])
    return tuple(dict.fromkeys(name for name in names if name is not None)) or ("none",)


def _dtype(variable: Mapping[str, Any], dtypes: set[str]) -> tuple[str, ...]:
    """The cell of the dtype; none where all variables have the same, which is said once."""
    return (variable["dtype"],) if len(dtypes) > 1 else ()


def _common(dtypes: set[str]) -> str:
    return f", all {next(iter(dtypes))}" if len(dtypes) == 1 else ""


def _parameters(variables: Sequence[Mapping[str, Any]], dtypes: set[str]) -> str:
    """How many parameters are decayed; each counts once, as in the first trace that has it."""
    if not variables:
        return ""
    counted = [variables[number] for number in first_of_each(variables)]
    decayed = sum(elements(variable["shape"]) or 0 for variable in counted if variable["outcome"] == "decay")
    total = parameters_text(elements(variable["shape"]) for variable in counted)
    return f": {human(decayed)} of {total}{_common(dtypes)}"


def _below(variable: Mapping[str, Any]) -> Iterator[str]:
    """The nodes of a variable's updates, of its decays, and of what else writes it."""
    if variable["path"] and variable["path"] != variable["label"]:
        yield f"path {variable['path']}"
    if variable["seen"]:
        yield f"{variable['role']}: {variable['seen']}"
    for update in variable["updates"]:
        yield f"{update['op']} at {update['at']}: {update['evidence']}"
    for decay in variable["decays"]:
        rate = f"{decay['rate']:g}" + (f" × {decay['learning_rate']}" if decay["learning_rate"] else "")
        gradient = f" {decay['gradient']}" if decay["gradient"] else ""
        yield f"decay of {rate} {PLACES.get(decay['where'], decay['where'])}{gradient}, at {decay['at']}"
    yield from (f"decayed already at {at}" for at in variable["native_decays"])
    yield from (f"written also at {at}" for at in variable["other_writes"])


def laid_out(sections: Sequence[Section], closing: Iterable[tuple[str, str]], width: int) -> str:
    """Lays sections out in columns.

    Args:
        sections: the sections; the columns of all of them are aligned.
        closing: what comes below them, with a label or none before it.
        width: the most columns of a line.

    Returns:
        The text, without a newline at its end.
    """
    rows = [_cells(line) for each in sections for line in each.lines]
    columns = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    beside = sum(2 + column for column in columns if column)
    if max(_names(sections), default=0) > width - 2 - beside:
        sections = [replace(each, lines=tuple(_nested(each.lines))) for each in sections]
    names = max(_names(sections), default=0)
    room = min(names, width - 2 - beside)
    if room < min(_LEAST, names):
        room = 0
    whole = max([2 + room + beside, *(cell_len(f"{each.head}   {each.aside}") for each in sections)])
    text: list[str] = []
    for section in sections:
        text += [*_head(section, min(whole, width)), *_body(section.lines, columns, room, width), ""]
    for label, message in closing:
        text += wrapped(f"{label}{message}", width)
    return "\n".join(line.rstrip() for line in text)


def in_columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines of aligned columns, as wide as they need; a column in which nothing stands has no place.

    Args:
        rows: the rows, each of as many cells.
    """
    shown = [tuple(map(_shown, row)) for row in rows]
    columns = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        yield "  ".join(_padded(cell, size) for cell, size in zip(row, columns, strict=True) if size).rstrip()


def _names(sections: Iterable[Section]) -> Iterator[int]:
    """The width of each name that has cells beside it."""
    return (cell_len(_shown(line.name)) for each in sections for line in each.lines if line.count)


def _nested(lines: Iterable[Line]) -> Iterator[Line]:
    """Lines with names that are too long: what neighbours begin with stands once above them, with a count of 0."""
    for _, same in itertools.groupby(lines, lambda line: line.name.partition("/")[0]):
        block = list(same)
        scopes = zip(*(line.name.split("/")[:-1] for line in block), strict=False)
        shared = "".join(f"{scope[0]}/" for scope in itertools.takewhile(lambda each: len(set(each)) == 1, scopes))
        if len(block) == 1 or not shared:
            yield from block
            continue
        yield Line(shared, 0, tuple("" for _ in block[0].cells))
        yield from (replace(line, name=f"  {line.name.removeprefix(shared)}") for line in block)


def _cells(line: Line) -> tuple[str, ...]:
    return f"×{line.count}" if line.count > 1 else "", *map(_shown, line.cells)


def _head(section: Section, width: int) -> Iterator[str]:
    head, aside = _shown(section.head), section.aside
    if (gap := width - cell_len(head) - cell_len(aside)) >= 2:
        yield f"{head}{' ' * gap}{aside}"
    else:
        yield from wrapped(head, width)
        yield from wrapped(f"  {aside}", width)


def _body(lines: Iterable[Line], columns: Sequence[int], room: int, width: int) -> Iterator[str]:
    """The lines of a section; where there is no room for names beside columns, the cells stand below the name."""
    for line in lines:
        name, cells = _shown(line.name), _cells(line)
        if not line.count:
            yield from (f"  {part}" for part in _cut(name, width - 2))
        elif not room:
            yield from (f"  {part}" for part in _cut(name, width - 2))
            yield from wrapped("      " + "  ".join(filter(None, cells)), width)
        else:
            first, *rest = _cut(name, room)
            beside = "".join(f"  {_padded(cell, size)}" for cell, size in zip(cells, columns, strict=True) if size)
            yield f"  {_padded(first, room)}{beside}"
            yield from (f"  {part}" for part in rest)
        for text in line.below:
            yield from wrapped(f"      {text}", width)


def wrapped(text: str, width: int) -> Iterator[str]:
    """A text in lines of at most so many columns: broken between words, else anywhere; nothing of it is lost."""
    for line in text.split("\n"):
        line = _shown(line)
        if cell_len(line) <= width:
            yield line
            continue
        indent = " " * (len(line) - len(line.lstrip()))
        first, *rest = _filled(line.strip(), width - len(indent) - 2)
        yield f"{indent}{first}"
        yield from (f"{indent}  {part}" for part in rest)


def _filled(text: str, width: int) -> Iterator[str]:
    """A text in lines, broken between words."""
    for line in Text(text).wrap(Console(width=width), width, overflow="fold"):
        yield line.plain.strip()


def _cut(name: str, width: int) -> Iterator[str]:
    """A name in lines, broken behind slashes where it can be; all lines but the first are indented."""
    indent = " " * (len(name) - len(name.lstrip()))
    line = ""
    for part in name.replace("/", "/\0").split("\0"):
        for piece in [part] if cell_len(part) <= width - 4 else chop_cells(part, max(width - 4, 2)):
            if line and cell_len(line) + cell_len(piece) > width:
                yield line
                line = f"{indent}  "
            line += piece
    yield line


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _shown(text: str) -> str:
    """A text without control characters: a name may hold what would command the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
