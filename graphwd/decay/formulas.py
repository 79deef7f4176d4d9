"""The formulas of weight decay: what a rate is multiplied by.

A formula is a function of tensors: of the weight, of any shape, in the dtype in which the decay is computed. It returns
the gradient of a penalty, in the same shape and dtype. Its other arguments are wired by their names.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

Formula = Callable[..., tf.Tensor]

FORMULAS: dict[str, Formula] = {}
"""Every formula, by the word that a policy uses for it."""


def formula(name: str) -> Callable[[Formula], Formula]:
    """Registers a formula.

    Args:
        name: the word for it.
    """

    def register(function: Formula) -> Formula:
        FORMULAS[name] = function
        return function

    return register


@formula("l2")
def l2(weight: tf.Tensor) -> tf.Tensor:
    """Returns w, the gradient of ‖w‖²/2."""
    return weight
