# pyright: basic
"""The formulas of weight decay: what a rate is multiplied by.

A formula is a function of tensors, all of the variable's shape (or of some of its rows) and of the dtype in which the
decay is computed. It returns the gradient of a penalty, in the same shape and dtype. Its parameters are wired by name:

* ``weight``: the weight that is decayed, w.
* ``before``: the weight before the optimizer's update, whatever the order.
* ``update``: what the optimizer's update subtracts from ``before``.
* ``initial``: the weight when the step was rewritten; of a step that is not concrete, and of a model, when it is first
  called.

Any other parameter is an option, a number that a policy gives.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from graphwd.errors import RewriteError
from graphwd.messages import failure

TENSORS = ("weight", "before", "update", "initial")
"""What a formula may take."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula, with the numbers that a policy gives it.

    Attributes:
        name: the word for it.
        function: the function of tensors.
        options: its options, by name.
        by_rows: whether p of some rows depends on these rows alone.
        shrinks: whether p(w) is at most w, so that a rate of 1 would take all of the weight.
        own: whether the function is the user's.
    """

    name: str
    function: Callable[..., tf.Tensor]
    options: tuple[tuple[str, float], ...] = ()
    by_rows: bool = True
    shrinks: bool = True
    own: bool = False
    takes: tuple[str, ...] = field(init=False, compare=False)
    """The tensors that it takes."""

    def __post_init__(self) -> None:
        """Reads the parameters of the function."""
        parameters = inspect.signature(self.function).parameters.values()
        takes = tuple(each.name for each in parameters if each.name in TENSORS)
        object.__setattr__(self, "takes", takes)

    def __call__(self, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns p of some tensors, of which it takes what it knows.

        Raises:
            RewriteError: the function is the user's own and fails, or returns what is no tensor of the same dtype.
        """
        given = {name: tensors[name] for name in self.takes}
        if not self.own:
            return self.function(**given, **dict(self.options))
        dtype = next(iter(given.values())).dtype
        try:
            return tf.convert_to_tensor(self.function(**given), dtype)
        except Exception as error:
            raise RewriteError(f"the formula '{self.name}' {failure(error, f' on tensors of {dtype.name}')}") from error

    def check(self, shape: tuple[int | None, ...] | None, dtype: str) -> None:
        """Tries the user's own function on a weight.

        Args:
            shape: the shape of the weight, or of rows of it; None where it is not known.
            dtype: the dtype in which its decay is computed.

        Raises:
            RewriteError: the function fails, or what it returns is of another shape or dtype.
        """
        with tf.Graph().as_default():
            tensors = {name: tf.compat.v1.placeholder(dtype, shape) for name in self.takes}
            found = self(**tensors).shape
        if shape is not None and (found.rank != len(shape) or not found.is_compatible_with(shape)):
            raise RewriteError(f"the formula '{self.name}' returns the shape {found} for a weight of the shape {shape}")

    def __str__(self) -> str:
        """The formula with its options, as records keep it."""
        options = ", ".join(f"{name}={value:g}" for name, value in self.options)
        return f"{self.name}({options})" if options else self.name

    @property
    def of_update(self) -> bool:
        """Whether it depends on what the update does."""
        return "before" in self.takes or "update" in self.takes

    @property
    def option_names(self) -> frozenset[str]:
        """The options that a policy must give."""
        parameters = inspect.signature(self.function).parameters.values()
        return frozenset(each.name for each in parameters if each.name not in TENSORS)

    def given(self, options: Mapping[str, float]) -> Formula:
        """The same formula with options; itself where there are none."""
        return dataclasses.replace(self, options=tuple(sorted(options.items()))) if options else self


FORMULAS: dict[str, Formula] = {}
"""Every formula, by the word that a policy uses for it."""


def formula(name: str, **traits: bool) -> Callable[[Callable[..., Any]], Formula]:
    """Registers a formula.

    Args:
        name: the word for it.
        **traits: attributes of the `Formula`, where they are not as usual.
    """

    def register(function: Callable[..., Any]) -> Formula:
        FORMULAS[name] = Formula(name, function, **traits)  # type: ignore[arg-type]
        return FORMULAS[name]

    return register


@formula("l2")
def l2(weight: tf.Tensor) -> tf.Tensor:
    """Returns w, the gradient of ‖w‖²/2."""
    return weight


@formula("l1", shrinks=False)
def l1(weight: tf.Tensor) -> tf.Tensor:
    """Returns sign(w), the gradient of Σ|w|: the penalty of the lasso."""
    return tf.sign(weight)


@formula("huber")
def huber(weight: tf.Tensor, *, delta: float) -> tf.Tensor:
    """Returns w within ±δ and ±δ beyond, the gradient of Huber's function (AdamHD, arXiv 2511.14721)."""
    return tf.clip_by_value(weight, -delta, delta)


@formula("l2_sp")
def l2_sp(weight: tf.Tensor, initial: tf.Tensor) -> tf.Tensor:
    """Returns w - w₀, the gradient of ‖w - w₀‖²/2: decay toward the start (L2-SP, arXiv 1802.01483)."""
    return weight - initial


@formula("cautious")
def cautious(before: tf.Tensor, update: tf.Tensor) -> tf.Tensor:
    """Returns w where the update moves w toward 0 or not at all, else 0 (cautious weight decay, arXiv 2510.12402).

    By signs: the product of two small numbers may be 0.
    """
    return tf.where(tf.sign(before) * tf.sign(update) >= 0, before, tf.zeros([], before.dtype))


@formula("norm", by_rows=False)
def norm(weight: tf.Tensor, *, target: float) -> tf.Tensor:
    """Returns (1 - R/‖w‖) · w, and 0 where w is 0: decay toward a norm of R (AdamWN, arXiv 2311.11446)."""
    length = tf.sqrt(2 * tf.raw_ops.L2Loss(t=weight))
    return (1 - tf.math.divide_no_nan(tf.cast(target, weight.dtype), length)) * weight
