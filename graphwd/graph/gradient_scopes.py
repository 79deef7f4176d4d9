"""The name scopes in which TensorFlow computes gradients: hints, and no more.

A tape's nodes lie in ``gradient_tape/``, those of ``tf.gradients`` in ``gradients/``. A user may give a scope the same
name. Where the names are missing, a decision that relies on them must be refused, or must not change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from graphwd.graph.ops import WRITE_OPS

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef

_SCOPE = re.compile(r"(?:^|/)(?:gradient_tape|gradients)(?:_\d+)?(?=/)")


def in_gradient_scope(name: str) -> bool:
    """Whether a node of that name may have been made while a gradient was computed."""
    # Most such names begin with the scope, and most others need no search.
    return name.startswith("gradient_tape/") or ("gradient" in name and _SCOPE.search(name) is not None)


class GradientScopes:
    """The gradient scopes of a step that can be TensorFlow's own: those in which no variable is written."""

    def __init__(self, functions: Iterable[FunctionDef]) -> None:
        """Looks for writes in such scopes.

        Args:
            functions: the step and its library.
        """
        self._others = {
            node.name[: match.end()]
            for function in functions
            for node in function.node_def
            if node.op in WRITE_OPS and "gradient" in node.name
            for match in _SCOPE.finditer(node.name)
        }

    def hold(self, name: str) -> bool:
        """Whether, as far as its name tells, a node was made while a gradient was computed."""
        if not self._others or not in_gradient_scope(name):
            return in_gradient_scope(name)
        return any(name[: match.end()] not in self._others for match in _SCOPE.finditer(name))
