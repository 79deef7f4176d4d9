"""The optimizers, written in float64 NumPy from the papers, and weight decay around them. No TensorFlow here.

Where a library writes a paper's formula differently (where epsilon stands, what is bias-corrected), the variant is the
one that Keras documents. ``w`` and ``g`` are arrays of one shape; every ``step`` returns the new weight and keeps its
slots. All hyperparameters are sums of few powers of two, which every dtype holds exactly but where a comment says so.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

Array = np.ndarray


class Optimizer(abc.ABC):
    """An optimizer of one weight.

    Attributes:
        lr: the learning rate of the step at hand.
        rows: the rows of the slots that a step works on; all of them unless set.
    """

    def __init__(self, shape: tuple[int, ...], lr: float) -> None:
        self.lr = lr
        self.t = 0
        self.rows: Any = slice(None)
        self._shape = shape
        self._slots: dict[str, Array] = {}

    def get(self, slot: str, initial: float = 0.0) -> Array:
        return self._slots.setdefault(slot, np.full(self._shape, initial))[self.rows]

    def put(self, slot: str, value: Array) -> Array:
        self.get(slot)
        self._slots[slot][self.rows] = value
        return value

    def step(self, w: Array, g: Array) -> Array:
        self.t += 1
        return self.update(w, g)

    @abc.abstractmethod
    def update(self, w: Array, g: Array) -> Array:
        """The new weight; the slots are put."""


class SGD(Optimizer):
    """w <- w - lr g."""

    def update(self, w: Array, g: Array) -> Array:
        return w - self.lr * g


class HeavyBall(Optimizer):
    """Polyak 1964, as cuda-convnet and Keras write it: m <- mu m - lr g; w <- w + m."""

    mu = 0.875

    def update(self, w: Array, g: Array) -> Array:
        m = self.put("m", self.mu * self.get("m") - self.lr * g)
        return w + m


class Nesterov(HeavyBall):
    """Sutskever et al. 2013, in the look-ahead weight: w <- w + mu m - lr g with the new m."""

    def update(self, w: Array, g: Array) -> Array:
        m = self.put("m", self.mu * self.get("m") - self.lr * g)
        return w + self.mu * m - self.lr * g


class Adam(Optimizer):
    """Kingma and Ba 2015, section 2's order of computation: epsilon is not bias-corrected."""

    beta1, beta2, epsilon = 0.875, 1 - 2.0**-8, 2.0**-12

    def moments(self, g: Array) -> tuple[Array, Array]:
        m = self.put("m", self.beta1 * self.get("m") + (1 - self.beta1) * g)
        return m, self.put("v", self.beta2 * self.get("v") + (1 - self.beta2) * g**2)

    @property
    def alpha(self) -> float:
        return self.lr * np.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)

    def update(self, w: Array, g: Array) -> Array:
        m, v = self.moments(g)
        return w - self.alpha * m / (np.sqrt(v) + self.epsilon)


class AMSGrad(Adam):
    """Reddi, Kale and Kumar 2018: the largest second moment so far."""

    def update(self, w: Array, g: Array) -> Array:
        m, v = self.moments(g)
        v = self.put("vhat", np.maximum(self.get("vhat"), v))
        return w - self.alpha * m / (np.sqrt(v) + self.epsilon)


class Adamax(Adam):
    """Kingma and Ba 2015, section 7.1."""

    def update(self, w: Array, g: Array) -> Array:
        m = self.put("m", self.beta1 * self.get("m") + (1 - self.beta1) * g)
        u = self.put("u", np.maximum(self.beta2 * self.get("u"), np.abs(g)))
        return w - self.lr / (1 - self.beta1**self.t) * m / (u + self.epsilon)


class Nadam(Adam):
    """Dozat 2016, with the momentum schedule mu_t = beta1 (1 - 0.96^(c t) / 2); his c is 0.004, Keras 3 takes 1."""

    base, c = float(np.float32(0.96)), 1.0  # both libraries make a float32 tensor of 0.96 first
    product_base = 0.96  # but Keras 3 not for the product of all mu

    def __init__(self, shape: tuple[int, ...], lr: float) -> None:
        super().__init__(shape, lr)
        self.product = 1.0

    def mu(self, t: int, base: float) -> float:
        return self.beta1 * (1 - 0.5 * base ** (self.c * t))

    def update(self, w: Array, g: Array) -> Array:
        mu, ahead = self.mu(self.t, self.base), self.mu(self.t + 1, self.base)
        self.product *= self.mu(self.t, self.product_base)
        m, v = self.moments(g)
        m = ahead * m / (1 - self.product * ahead) + (1 - mu) * g / (1 - self.product)
        return w - self.lr * m / (np.sqrt(v / (1 - self.beta2**self.t)) + self.epsilon)


class LegacyNadam(Nadam):
    """With the constant of the paper."""

    c = 0.004
    product_base = Nadam.base


class Adagrad(Optimizer):
    """Duchi, Hazan and Singer 2011, diagonal; accumulators begin at 1/8."""

    epsilon = 2.0**-12

    def update(self, w: Array, g: Array) -> Array:
        a = self.put("a", self.get("a", 0.125) + g**2)
        return w - self.lr * g / np.sqrt(a + self.epsilon)


class LegacyAdagrad(Adagrad):
    """The same with epsilon outside the root, as ResourceApplyAdagradV2 computes it."""

    def update(self, w: Array, g: Array) -> Array:
        a = self.put("a", self.get("a", 0.125) + g**2)
        return w - self.lr * g / (np.sqrt(a) + self.epsilon)


class RMSprop(Optimizer):
    """Tieleman and Hinton 2012."""

    rho, epsilon = 0.875, 2.0**-12

    def update(self, w: Array, g: Array) -> Array:
        v = self.put("v", self.rho * self.get("v") + (1 - self.rho) * g**2)
        return w - self.lr * g / np.sqrt(v + self.epsilon)


class LegacyRMSprop(RMSprop):
    """The same with epsilon outside the root, as tf_keras legacy computes it without momentum."""

    def update(self, w: Array, g: Array) -> Array:
        v = self.put("v", self.rho * self.get("v") + (1 - self.rho) * g**2)
        return w - self.lr * g / (np.sqrt(v) + self.epsilon)


class Adadelta(Optimizer):
    """Zeiler 2012."""

    rho, epsilon = 0.9375, 2.0**-12

    def update(self, w: Array, g: Array) -> Array:
        a = self.put("a", self.rho * self.get("a") + (1 - self.rho) * g**2)
        d = np.sqrt(self.get("d") + self.epsilon) / np.sqrt(a + self.epsilon) * g
        self.put("d", self.rho * self.get("d") + (1 - self.rho) * d**2)
        return w - self.lr * d


class Ftrl(Optimizer):
    """McMahan et al. 2013, algorithm 1, with l2 = l1 = 0 unless set; accumulators begin at 1/8."""

    l1 = 0.0

    def update(self, w: Array, g: Array) -> Array:
        a = self.get("a", 0.125)
        grown = a + g**2
        z = self.put("z", self.get("z") + g - (np.sqrt(grown) - np.sqrt(a)) / self.lr * w)
        self.put("a", grown)
        return (np.clip(z, -self.l1, self.l1) - z) * self.lr / np.sqrt(grown)


FIELDS: Mapping[str, Mapping[str, str]] = {
    "coupled": {"mode": "coupled"},
    "after": {},
    "after-lr": {"scale": "lr"},
    "before": {"order": "before"},
    "before-lr": {"order": "before", "scale": "lr"},
}
"""The meanings of weight decay, and what a policy writes for each."""


class Sparse(Enum):
    """How an optimizer treats the rows that a sparse gradient is not of."""

    ROWS = "rows"  # it leaves them and their slots alone
    WRITES_ROWS = "writes rows"  # it leaves them alone, but not their slots
    DENSE = "dense"  # as if their gradient were 0


@dataclass
class Training:
    """An optimizer with weight decay.

    Attributes:
        optimizer: the optimizer.
        meaning: what the decay means, a key of `FIELDS`; None for no decay.
        rate: the rate.
        sparse: how the optimizer treats rows without gradient.
        everywhere: whether a decoupled decay is of the whole weight, where the update writes rows.
    """

    optimizer: Optimizer
    meaning: str | None
    rate: float
    sparse: Sparse = Sparse.DENSE
    everywhere: bool = False

    def step(self, w: Array, g: Array, rows: Array | None = None) -> Array:
        """The weight after one step; where ``rows`` are given, all different, ``g`` is their gradient."""
        if self.meaning == "coupled":
            g = g + self.rate * (w if rows is None else w[rows])
        if self.meaning in ("before", "before-lr"):
            w = self._decayed(w, rows)
        w = self._updated(w, g, rows)
        return self._decayed(w, rows) if self.meaning in ("after", "after-lr") else w

    def _decayed(self, w: Array, rows: Array | None) -> Array:
        c = self.rate * (self.optimizer.lr if self.meaning in ("after-lr", "before-lr") else 1.0)
        decayed = w.copy()
        which = slice(None) if rows is None or self.everywhere or self.sparse is Sparse.DENSE else rows
        decayed[which] *= 1 - c
        return decayed

    def _updated(self, w: Array, g: Array, rows: Array | None) -> Array:
        if rows is None:
            return self.optimizer.step(w, g)
        updated = w.copy()
        if self.sparse is Sparse.ROWS:
            self.optimizer.rows = rows
            updated[rows] = self.optimizer.step(w[rows], g)
            return updated
        dense = np.zeros_like(w)
        dense[rows] = g
        after = self.optimizer.step(w, dense)
        which = slice(None) if self.sparse is Sparse.DENSE else rows
        updated[which] = after[which]
        return updated


Penalty = Callable[..., Array]
"""A formula as its paper writes it: of ``weight``, ``before``, ``update`` and ``initial``, by keyword."""

PENALTIES: Mapping[str, Penalty] = {
    "l2": lambda weight, **_: weight,
    "l1": lambda weight, **_: np.sign(weight),
    "huber": lambda weight, **_: np.where(np.abs(weight) < 0.5, weight, 0.5 * np.sign(weight)),
    "l2_sp": lambda weight, initial, **_: weight - initial,
    "cautious": lambda before, update, **_: before * (before * update >= 0),
    "norm": lambda weight, **_: weight - 2.5 * weight / np.sqrt(np.sum(weight**2)),
}
"""The lasso, AdamHD (arXiv 2511.14721), L2-SP (1802.01483), cautious decay (2510.12402), AdamWN (2311.11446)."""


@dataclass
class AnyDecay(Training):
    """An optimizer that adds to the weight, with a decay of any form and a rate that changes.

    Attributes:
        penalty: the formula.
        rate_at: the rate before the learning rate is counted in, by the number of updates before this one.
        initial: the first weight.
    """

    penalty: Penalty = PENALTIES["l2"]
    rate_at: Callable[[int], float] | None = None
    initial: Array | None = None

    def step(self, w: Array, g: Array, rows: Array | None = None) -> Array:
        """The weight after one step; where ``rows`` are given, all different, ``g`` is their gradient."""
        rate = self.rate if self.rate_at is None else self.rate_at(self.optimizer.t)
        rate *= self.optimizer.lr if self.meaning in ("after-lr", "before-lr") else 1.0
        initial = w if self.initial is None else self.initial
        if self.meaning == "coupled":
            which = slice(None) if rows is None else rows
            return self._updated(w, g + rate * self.penalty(weight=w[which], initial=initial[which]), rows)
        updated = self._updated(w, g, rows)
        which = slice(None) if rows is None or self.everywhere or self.sparse is Sparse.DENSE else rows
        before, after = w[which], updated[which]
        weight = after if self.meaning in ("after", "after-lr") else before
        decayed = updated.copy()
        decayed[which] -= rate * self.penalty(
            weight=weight, before=before, update=before - after, initial=initial[which]
        )
        return decayed
