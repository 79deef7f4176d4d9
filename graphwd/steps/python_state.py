"""Finds the numbers outside of a plain Python step that it changes, and that a trace would freeze."""

from __future__ import annotations

import dis
import inspect
import logging
import types
from typing import Any

_LOG = logging.getLogger("graphwd")


def tell_frozen_state(step: Any) -> None:
    """Warns of numbers of Python that a step assigns, if it is plain Python and does so."""
    if frozen := state_in_python(step):
        _LOG.warning(
            "the step assigns numbers of Python (%s): a trace keeps the values that they have when it is made, and "
            "later calls do not count them on; keep them in tf.Variables",
            ", ".join(frozen),
        )


def state_in_python(step: Any) -> list[str]:
    """Finds the outer numbers that a Python function rebinds, which a trace freezes at their first value.

    Args:
        step: a plain Python function or method.

    Returns:
        The names that it declares ``global`` or ``nonlocal`` and assigns, and that hold a number now, in order.
    """
    function = inspect.unwrap(getattr(step, "__func__", step))
    if not inspect.isfunction(function):
        return []
    code = function.__code__
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    around: dict[str, Any] = {"STORE_GLOBAL": function.__globals__, "STORE_DEREF": cells}
    names: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if name in around.get(instruction.opname, ()) and _is_number(around[instruction.opname][name]):
            names[name] = None
    return list(names)


def _is_number(value: Any) -> bool:
    if isinstance(value, types.CellType):
        try:
            value = value.cell_contents
        except ValueError:  # it is not assigned yet
            return False
    return isinstance(value, (int, float))
