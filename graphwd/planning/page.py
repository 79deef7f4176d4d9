"""Shows plans, the variables of a step, and the decays of a model as pages: one file each, which loads nothing.

The templates beside this module hold the form; here is what they are filled with. A page has one script and one style
sheet of its own, and its content security policy names both by their hashes: whatever a name of a variable holds, no
other script runs, and nothing is requested.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from graphwd.errors import RewriteError
from graphwd.planning.texts import (
    decay_text,
    device_lines,
    elements,
    first_of_each,
    human,
    rewritten_texts,
    role_text,
    shape_text,
    summary,
    variables_text,
    ways_text,
)

if TYPE_CHECKING:
    from graphwd.planning.drawing import Drawing
    from graphwd.planning.plan import Decision, Plan
    from graphwd.planning.update_graph import UpdateGraph

_DECAY_COLUMNS = ("variable", "rate", "where", "update")

_FRAME = (
    '<iframe title="graphwd plan" sandbox="allow-scripts" width="100%" height="720" style="border: 0" '
    'srcdoc="{page}"></iframe>'
)

_SAMPLES = 160
"""How many steps of a schedule a curve is drawn through."""

_DEFAULT_STEPS = 10_000
"""How many steps a curve shows where nothing is known of a schedule."""

_MAX_SIZE = 2**63 - 1
"""How many elements a tensor can have; a malformed model may claim any number."""

_OUTCOMES = {
    "decay": "decayed",
    "exempt": "exempt",
    "no update": "no update",
    "unmatched": "unmatched",
    "refused": "refused",
}


@dataclass(frozen=True, slots=True)
class Pictures:
    """What the page of a plan shows besides the record.

    Attributes:
        rules: of each rule of the policy, where it stands and what it selects.
        rule_of: for each variable of the record the number of its rule; None where none decided.
        updates: for each variable of the record its updates that carry decay.
        curves: by the number of a rule, the steps and rates of its schedule.
    """

    rules: Sequence[tuple[str, str]] = ()
    rule_of: Sequence[int | None] = ()
    updates: Sequence[Sequence[UpdateGraph]] = ()
    curves: Mapping[int, Sequence[tuple[float, float]]] = field(
        default_factory=dict[int, Sequence[tuple[float, float]]]
    )


def plan_as_html(plan: Plan, record: Mapping[str, Any]) -> str:
    """The page of a plan, with its curves and with a drawing of each update.

    Args:
        plan: the plan.
        record: what `Plan.record` returns of it, perhaps with the result of a device check.

    Returns:
        HTML text.
    """
    numbers = {id(rule): number for number, rule in enumerate(plan.rules)}
    return as_html(
        record,
        Pictures(
            [(rule.where, str(rule.selectors)) for rule in plan.rules],
            [numbers.get(id(decision.rule)) for decision in plan.decisions],
            _updates(plan),
            {numbers[id(rule)]: curve for rule, curve in _curves(plan.decisions) if id(rule) in numbers},
        ),
    )


def _updates(plan: Plan) -> Sequence[Sequence[UpdateGraph]]:
    """For each decision its updates; none where the plan has problems, and nothing is injected."""
    from graphwd.planning.update_graph import UpdateGraphs

    if plan.problems:
        return ()
    updates: dict[int, Sequence[UpdateGraph]] = {}
    for part in plan.parts or (plan,):
        if part.trial is not None and part.graph is not None and part.injections:
            graphs = UpdateGraphs(part.graph, part.trial(part))
            for decision in part.decisions:
                updates[id(decision)] = tuple(graphs.of(decision))
    return [updates.get(id(decision), ()) for decision in plan.decisions]


def _curves(decisions: Iterable[Decision]) -> Iterator[tuple[object, Sequence[tuple[float, float]]]]:
    """The rates of each schedule that decays something, from the first step to beyond the last that changes them."""
    for rule in {id(each.rule): each.rule for each in decisions if each.injections}.values():
        if rule is not None and rule.schedule is not None and not rule.schedule.identity:
            schedule = rule.schedule.resolved()
            last = math.ceil(1.1 * max(schedule.turns, default=_DEFAULT_STEPS))
            steps = sorted({round(last * i / _SAMPLES) for i in range(_SAMPLES + 1)} | set(schedule.turns))
            try:
                yield rule, list(zip(steps, schedule.rates(steps), strict=False))
            except RewriteError:  # which is a problem of the plan
                continue


def as_html(record: Mapping[str, Any], pictures: Pictures | None = None) -> str:
    """The page of a plan.

    Args:
        record: what `Plan.record` returns.
        pictures: what is shown besides; None for the record alone.

    Returns:
        HTML text.
    """
    if pictures is None:
        places = list(dict.fromkeys(each["rule"] for each in record["variables"] if each["rule"]))
        pictures = Pictures(
            [(place, "") for place in places],
            [places.index(each["rule"]) if each["rule"] else None for each in record["variables"]],
        )
    variables = record["variables"]
    drawings, details = _drawn(pictures.updates, variables)
    once = first_of_each(variables)
    rules = [_rule(number, pictures, variables, once) for number in range(len(pictures.rules))]
    return _page(
        "plan.html",
        record=record,
        summary=summary(record),
        device=list(device_lines(record)),
        totals=_totals(variables, once),
        groups=_groups(variables, once),
        rules=rules,
        rows=[_row(variable, rule) for variable, rule in zip(variables, pictures.rule_of, strict=True)],
        outcomes=_present(variables, "outcome", _OUTCOMES),
        roles=_present(variables, "role"),
        drawings=drawings,
        details=details,
    )


def overview_as_html(record: Mapping[str, Any]) -> str:
    """The page of the variables of a step, before there is a policy: what each is used for, where it is updated.

    Args:
        record: what `Plan.record` returns for any policy.
    """
    variables = record["variables"]
    once = first_of_each(variables)
    roles = _present(variables, "role")
    return _page(
        "overview.html",
        totals=_totals(variables, once),
        groups=[_count(role, [v for v in map(variables.__getitem__, once) if v["role"] == role]) for role in roles],
        rows=[_row(variable, None) for variable in variables],
        roles=roles,
        details=_drawn((), variables)[1],
    )


def decays_as_html(decays: Sequence[Mapping[str, Any]]) -> str:
    """The page of the decays of a model that graphwd has rewritten.

    Args:
        decays: what `describe_saved_model` returns.
    """
    return _page("decays.html", summary=ways_text(decays), columns=_DECAY_COLUMNS, rows=map(rewritten_texts, decays))


def framed(page: str) -> str:
    """A page as a part of another, a notebook, with which it shares neither styles nor scripts."""
    return _FRAME.format(page=html.escape(page))


@dataclass(frozen=True, slots=True)
class Count:
    """Some variables, counted.

    Attributes:
        name: what they have in common.
        variables: how many they are.
        parameters: how many elements they have; of those whose shape is known.
        unknown: how many have an unknown shape.
        share: the part of all known elements, in percent.
    """

    name: str
    variables: int
    parameters: int
    unknown: int
    share: float = 0.0

    @property
    def shown(self) -> str:
        """The number of parameters, for people."""
        return human(self.parameters) if self.parameters or not self.unknown else "?"

    @property
    def exact(self) -> str:
        """The number of parameters, all of its digits, and what is not known of it."""
        more = f", and {self.unknown} variable{'s' * (self.unknown != 1)} of unknown shape" if self.unknown else ""
        return f"{self.parameters:,} parameters{more}"

    @property
    def variables_shown(self) -> str:
        """The number of variables, in words."""
        return variables_text(self.variables)


def _size(variable: Mapping[str, Any]) -> int | None:
    """How many elements a variable has; None where its shape is not known, or is one that no tensor can have."""
    if any(size is not None and size < 0 for size in variable["shape"] or ()):
        return None
    size = elements(variable["shape"])
    return size if size is not None and size <= _MAX_SIZE else None


def _count(name: str, variables: Sequence[Mapping[str, Any]], whole: int = 0) -> Count:
    sizes = [_size(variable) for variable in variables]
    known = [size for size in sizes if size is not None]
    return Count(name, len(sizes), sum(known), len(sizes) - len(known), 100 * sum(known) / whole if whole else 0)


def _totals(variables: Sequence[Mapping[str, Any]], once: Sequence[int]) -> Mapping[str, Count]:
    """All variables, those that are decayed, and the others."""
    counted = [variables[number] for number in once]
    every = _count("all", counted)
    decayed = [each for each in counted if each["outcome"] == "decay"]
    others = [each for each in counted if each["outcome"] != "decay"]
    return {
        "all": every,
        "decayed": _count("decayed", decayed, every.parameters),
        "others": _count("not decayed", others, every.parameters),
    }


def _groups(variables: Sequence[Mapping[str, Any]], once: Sequence[int]) -> Mapping[str, Sequence[Count]]:
    """By which rule variables are decayed, and by which, or for what reason, they are not."""
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {"decayed": {}, "others": {}}
    for each in map(variables.__getitem__, once):
        decayed = each["outcome"] == "decay"
        word = "" if decayed else f"{_OUTCOMES[each['outcome']]}, "
        name = f"{word}{each['rule'] or 'no rule'}"
        groups["decayed" if decayed else "others"].setdefault(name, []).append(each)
    whole = _totals(variables, once)["all"].parameters
    return {kind: [_count(name, held, whole) for name, held in of_kind.items()] for kind, of_kind in groups.items()}


def _present(variables: Iterable[Mapping[str, Any]], key: str, order: Iterable[str] = ()) -> Sequence[str]:
    """The values that some variable has."""
    present = dict.fromkeys(each[key] for each in variables if each[key])
    return [value for value in order if value in present] or list(present)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule as the page shows it."""

    number: int
    where: str
    selectors: str
    says: str
    decays: bool
    count: Count
    curve: _Curve | None


def _rule(number: int, pictures: Pictures, variables: Sequence[Mapping[str, Any]], once: Sequence[int]) -> _Rule:
    where, selectors = pictures.rules[number]
    own = [variables[each] for each in once if pictures.rule_of[each] == number]
    says = list(dict.fromkeys(decay_text(each) for each in own if each["outcome"] == "decay"))
    decays = bool(says)
    if own and not decays:
        says = ["not decayed" if all(each["outcome"] == "exempt" for each in own) else own[0]["outcome"]]
    whole = _totals(variables, once)["all"].parameters
    curve = pictures.curves.get(number)
    counters = [each["schedule"]["counter"] for each in own if each["schedule"]]
    shown = _Curve.of(curve, counters[0] if counters else None) if curve else None
    return _Rule(number, where, selectors, "; ".join(says), decays, _count(where, own, whole), shown)


@dataclass(frozen=True, slots=True)
class _Curve:
    """The curve of a schedule, in the pixels of a drawing of 560 by 150.

    Attributes:
        path: the curve, as SVG has it.
        steps: for each mark of the axis of steps its place and its text.
        rates: for each mark of the axis of rates, likewise.
        says: the curve in words.
        counter: what counts the steps; None where that is not known.
    """

    path: str
    steps: Sequence[tuple[float, str]]
    rates: Sequence[tuple[float, str]]
    says: str
    counter: str | None

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]], counter: str | None) -> _Curve | None:
        """The curve through some points, each a step and a rate; None where a rate is not finite."""
        rates = [rate for _, rate in points]
        if not all(map(math.isfinite, rates)):
            return None
        (_, first), (last, end) = points[0], points[-1]
        low, high = min(0.0, *rates), max(rates) or 1.0

        def across(step: float) -> float:
            return 48 + 498 * step / (last or 1)

        def up(rate: float) -> float:
            return 120 - 104 * (rate - low) / (high - low)

        path = "L".join(f"{across(step):.1f} {up(rate):.1f}" for step, rate in points)
        between = f", at most {max(rates):.4g}" if max(rates) > max(first, end) else ""
        return cls(
            f"M{path}",
            [(across(step), human(int(step))) for step in _marks(last)],
            [(up(rate), f"{rate:.3g}") for rate in (low, (low + high) / 2, high)],
            f"{first:.4g} at step 0, {end:.4g} at step {int(last):,}{between}",
            counter,
        )


def _marks(last: float) -> Sequence[float]:
    """Round numbers from 0 to a last one, some three to six."""
    size = 10 ** math.floor(math.log10(max(last, 1)))
    step = next(step for step in (size / 5, size / 2, size, 2 * size) if last / step <= 6)
    step = max(1, step)
    return [step * i for i in range(int(last / step) + 1)]


def _row(variable: Mapping[str, Any], rule: int | None) -> Mapping[str, Any]:
    """A row of the table of variables."""
    size = _size(variable)
    return {
        "name": variable["label"],
        "shape": shape_text(variable["shape"]),
        "dtype": variable["dtype"],
        "size": -1 if size is None else size,
        "shown": "?" if size is None else human(size),
        "exact": "unknown" if size is None else f"{size:,}",
        "role": variable["role"] or "",
        "used": role_text(variable) or "–",
        "outcome": variable["outcome"],
        "word": _OUTCOMES[variable["outcome"]],
        "decay": decay_text(variable) if variable["outcome"] == "decay" else "–",
        "rule": variable["rule"] or "",
        "number": "" if rule is None else rule,
        "seen": variable.get("seen") or "–",
        "path": variable.get("path") or "–",
    }


def _drawn(
    updates: Sequence[Sequence[UpdateGraph]], variables: Sequence[Mapping[str, Any]]
) -> tuple[Sequence[Drawing], Mapping[str, Any]]:
    """The drawings, each structure once, and what the script fills them and the details of each variable with."""
    texts: dict[str, int] = {}

    def number_of(text: str) -> int:
        return texts.setdefault(text, len(texts))

    structures: dict[Any, int] = {}
    details = [_details(variable) for variable in variables]
    for detail, own in zip(details, updates, strict=False):
        detail["updates"] = [
            {
                "nest": update.nest,
                "drawing": structures.setdefault(update.structure, len(structures)),
                "names": [number_of(name) for name in update.names],
            }
            for update in own
        ]
    drawings: list[Drawing] = []
    if structures:
        from graphwd.planning.drawing import drawing_of

        drawings = [drawing_of(structure) for structure in structures]
    return drawings, {"texts": list(texts), "variables": details}


def _details(variable: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a variable below its row: pairs of a name and lines of text, without what says nothing."""
    schedule = variable["schedule"] and str(variable["schedule"]["name"])
    decays = [f"{_product(schedule, each)}, {each['where']}, at {each['at']}" for each in variable.get("decays", ())]
    gradients = [each["gradient"] for each in variable.get("decays", ()) if each["gradient"]]
    facts: dict[str, Iterable[str | None]] = {
        "Path": [variable.get("path")],
        "Role seen at": [variable.get("seen")],
        "Update": [
            f"{each['op']} at {each['at']}{' (' + each['evidence'] + ')' if 'evidence' in each else ''}"
            for each in variable["updates"]
        ],
        "Decay": decays,
        "Joins the gradient at": gradients,
        "Formula": [variable["formula"] if variable["outcome"] == "decay" else None],
        "Tunable": [variable["tunable"]],
        "Decays itself at": variable.get("native_decays", ()),
        "Other writes": variable.get("other_writes", ()),
        "Read by": [", ".join(variable.get("used_by", ()))],
    }
    return {"facts": [[name, held] for name, lines in facts.items() if (held := [line for line in lines if line])]}


def _product(schedule: str | None, decay: Mapping[str, Any]) -> str:
    """What the rate of a decay is the product of."""
    number = None if schedule and decay["rate"] == 1 else f"{decay['rate']:g}"
    return " × ".join(filter(None, [number, schedule, decay["learning_rate"]]))


def _page(template: str, **values: Any) -> str:
    import jinja2

    style, script = _asset("page.css"), _asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return environment.get_template(template).render(
        style=style, script=script, style_hash=_hash(style), script_hash=_hash(script), **values
    )


def _asset(name: str) -> str:
    return (resources.files("graphwd.planning") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The hash of an inline script or style, as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
