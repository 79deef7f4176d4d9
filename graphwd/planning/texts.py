"""The phrases of a plan, of its record: what a decay is, what a shape is, how many are decayed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

PLACES = {"gradient": "in the gradient", "value": "before the update"}


def shape_text(shape: Sequence[int | None] | None) -> str:
    """A shape as tables show it."""
    if shape is None:
        return "?"
    return "×".join("?" if size is None else str(size) for size in shape) or "scalar"


def elements(shape: Sequence[int | None] | None) -> int | None:
    """The number of elements of a shape; None where it is not known."""
    if shape is None:
        return None
    sizes = [size for size in shape if size is not None]
    return math.prod(sizes) if len(sizes) == len(shape) else None


def first_of_each(variables: Iterable[Mapping[str, Any]]) -> list[int]:
    """The numbers of the variables, each once, though replicas and traces may have it several times.

    Args:
        variables: the variables of a record; of a replica or a later trace, too.
    """
    first: dict[object, int] = {}
    for number, each in enumerate(variables):
        first.setdefault((each["label"], each.get("path"), str(each["shape"]), each["dtype"]), number)
    return list(first.values())


def human(count: int) -> str:
    """A count in three digits: ``12.3k``, ``110M``."""
    if count < 1000:
        return str(count)
    for unit, name in ((10**3, "k"), (10**6, "M"), (10**9, "G"), (10**12, "T")):
        if count < 1000 * unit and (number := float(f"{count / unit:.3g}")) < 1000:
            return f"{number:g}{name}"
    return "over 1000T"


def variables_text(count: int, what: str = "variable") -> str:
    """A number of variables."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def parameters_text(sizes: Iterable[int | None]) -> str:
    """The elements of several variables, counted together, and how many of the variables have no known number."""
    counts = list(sizes)
    known = [count for count in counts if count is not None]
    unknown = len(counts) - len(known)
    total = f"{human(sum(known))} parameter{'' if sum(known) == 1 else 's'}"
    if not unknown:
        return total
    return f"{total} and {unknown} of unknown shape" if known else "of unknown shape"


def role_text(variable: Mapping[str, Any]) -> str:
    """A role, and what follows; empty where the record does not know it."""
    followed = f", then {variable['followed_by']}" if variable["followed_by"] else ""
    return f"{variable['role']}{followed}" if variable["role"] else ""


def decay_text(variable: Mapping[str, Any]) -> str:
    """The rate of a variable, where it is decayed, and by which formula; else its outcome, where there is a policy."""
    if variable["outcome"] != "decay":
        return str(variable["outcome"] or "no policy")
    schedule = variable["schedule"]
    tunable = f" ({variable['tunable']})" if variable["tunable"] else ""
    number = f"{variable['weight_decay']:g}{tunable}" if tunable or not schedule else ""
    rate = " × ".join(filter(None, [number, schedule and schedule["name"]])) + _scale(variable)
    place = "coupled" if variable["mode"] == "coupled" else f"{variable['order']} update"
    formula = "" if variable["formula"] == "l2" else f", {variable['formula']}"
    rows = ", rows touched" if variable["rows"] == "touched" and variable["mode"] != "coupled" else ""
    return f"{rate} {place}{formula}{rows}"


def _scale(variable: Mapping[str, Any]) -> str:
    """What the weight decay is multiplied by."""
    peak = variable["peak_learning_rate"]
    match "none" if variable["mode"] == "coupled" else variable["scale"]:
        case "lr":
            return " × lr"
        case "relative":
            return f" × lr/{peak:g}"
        case "corrected":
            return f" × lr²/{peak:g}"
        case _:
            return ""


def summary(record: Mapping[str, Any]) -> str:
    """How many variables are decayed."""
    counts = dict.fromkeys(f"{step['decayed']} of {step['variables']}" for step in record["steps"])
    count = max(step["variables"] for step in record["steps"])
    several = f" in {'each' if len(counts) == 1 else 'some'} of {len(record['steps'])} traces or graphs"
    fused = ", their updates fused with the decay as far as XLA can (fuse: xla)" if record["fuse"] == "xla" else ""
    where = several if len(record["steps"]) > 1 else ""
    return f"{' or '.join(counts)} trainable variable{'' if count == 1 else 's'} decayed{where}{fused}"


def schedule_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for each schedule of a rule: its counter, and the rates at its start, after its warm-up and at its end."""
    lines: dict[str, None] = {}
    for variable in record["variables"]:
        schedule = variable["schedule"] if variable["outcome"] == "decay" else None
        if schedule and schedule["rates"]:
            rates = ", ".join(f"{rate:.4g} {_when(schedule, step)}" for step, rate in schedule["rates"])
            lines[f"{variable['rule']}: {schedule['name']} by {schedule['counter']}: {rates}"] = None
    yield from lines


def _when(schedule: Mapping[str, Any], step: int) -> str:
    """A step of a schedule, and what comes to its end there."""
    if schedule["end"] is None:
        return f"at step {step}"
    if step == schedule["end"]:
        return f"at the end, from step {step} on"
    return f"at the end of warm-up, step {step}" if step else "at the start"


def device_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The result of a device check, in a line; nothing where there was no check, or where the problems tell it."""
    device = record.get("device")
    if device and not device["problems"]:
        count = f"{device['nodes']} node{'' if device['nodes'] == 1 else 's'}"
        yield f"{device['type']}: {count} would be injected, each with a kernel, and no copy to or from the host"


def ways_text(decays: Sequence[Mapping[str, Any]]) -> str:
    """How many decays there are in a model that graphwd has rewritten."""
    plural = "" if len(decays) == 1 else "s"
    return f"rewritten by graphwd: {len(decays)} way{plural} to a decay, by function or signature"


def rewritten_label(decay: Mapping[str, Any]) -> str:
    """What tells the variable of a decay in such a model from others; records of before have its name alone."""
    return str(decay.get("label", decay["variable"]))


def rewritten_texts(decay: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Of a decay in such a model: its variable, its rate, its place, and the node of the update."""
    squared = "²" if decay["power"] == 2 else ""
    factors = decay.get("factors", [])  # records of before have none
    number = [] if factors and decay["rate"] == 1 else [f"{decay['rate']:g}"]
    learning_rate = [f"{decay['learning_rate']}{squared}"] if decay["learning_rate"] else []
    rate = " × ".join([*number, *factors, *learning_rate])
    rate += "" if decay["formula"] == "l2" else f", {decay['formula']}"
    where = PLACES.get(decay["where"], f"{decay['where']} the update")
    return rewritten_label(decay), rate, where + (", rows touched" if decay["rows"] else ""), decay["at"]
