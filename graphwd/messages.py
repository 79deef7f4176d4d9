"""What messages have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

READS_OUTSIDE = (
    "may not read a tf.Variable, nor an eager tensor; a rate that the training sets is 'tunable: NAME', or the "
    "variable itself as 'weight_decay', and a constant is a number of Python or NumPy"
)
"""What is said of a function of the user's own that takes what is none of its arguments."""


def listed(names: Iterable[str], most: int = 6, remarks: Mapping[str, str] = MappingProxyType({})) -> str:
    """Names for a message, in quotes: the first ones, with remarks on some, and how many more there are."""
    names = list(names)
    shown = ", ".join(f"'{name}' ({remarks[name]})" if name in remarks else f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def failure(error: Exception, on: str = "") -> str:
    """What is said of a function of the user's own that cannot be traced.

    Args:
        error: what it raised.
        on: the tensors that it was given.
    """
    if "Attempting to capture an EagerTensor" in str(error):
        return READS_OUTSIDE
    advice = "; write it with functions of TensorFlow, such as tf.cast" if "SymbolicTensor" in str(error) else ""
    return f"fails{on}: {type(error).__name__}: {error}{advice}"
