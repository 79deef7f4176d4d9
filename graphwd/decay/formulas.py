"""The formulas of weight decay: what a rate is multiplied by.

A formula is a function of tensors: of the weight, of any shape, in the dtype in which the decay is computed. It returns
the gradient of a penalty, in the same shape and dtype. Its other arguments are wired by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

Formula = Callable[..., tf.Tensor]


def l2(weight: tf.Tensor) -> tf.Tensor:
    """The gradient of ‖w‖²/2: w itself."""
    return weight


FORMULAS: Mapping[str, Formula] = {"l2": l2}
"""Every formula, by the word that a policy uses for it."""
