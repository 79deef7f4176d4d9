"""Every training step that tests share, by name: what holds of one must hold of all."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import sonnet as snt
import tensorflow as tf
import tf_keras

from graphwd.steps.read import ConcreteFunction, variables_of
from tests.helpers import steps
from tests.helpers.origins import make_case
from tests.helpers.programs import SHAPE, State, make_program

UNSUPPORTED = {
    tf.compat.v1.train.SyncReplicasOptimizer: "applies gradients from a queue runner of a v1 session, not in a step",
}


def exported(module: Any, base: type, *abstract: type) -> list[Any]:
    """The optimizer classes among the public names of a module, each once, sorted by name."""
    found = {
        value
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isclass(value) and issubclass(value, base)
    }
    return sorted(found - {base, *abstract}, key=lambda kind: kind.__name__)


KERAS = exported(keras.optimizers, keras.optimizers.Optimizer)
TF_KERAS = [
    *exported(tf_keras.optimizers, tf_keras.optimizers.Optimizer),
    tf_keras.mixed_precision.LossScaleOptimizer,
]
LEGACY = exported(tf_keras.optimizers.legacy, tf_keras.optimizers.legacy.Optimizer)
V1 = exported(tf.compat.v1.train, tf.compat.v1.train.Optimizer)
SONNET = exported(snt.optimizers, snt.Optimizer)

# The arguments of those that cannot be made without.
ARGUMENTS: Mapping[type, Callable[[], tuple[Any, ...]]] = {
    keras.optimizers.LossScaleOptimizer: lambda: (keras.optimizers.Adam(0.01),),
    keras.optimizers.MultiOptimizer: lambda: (
        lambda variable: keras.optimizers.Adam() if "hidden" in variable.path else keras.optimizers.SGD(),
    ),
    tf_keras.mixed_precision.LossScaleOptimizer: lambda: (tf_keras.optimizers.Adam(0.01),),
    tf.compat.v1.train.AdagradDAOptimizer: lambda: (
        0.01,
        tf.Variable(1, dtype=tf.int64, trainable=False, name="global_step"),
    ),
    tf.compat.v1.train.MomentumOptimizer: lambda: (0.01, 0.9),
    snt.optimizers.Momentum: lambda: (0.01, 0.9),
}


def make(kind: Any) -> Any:
    """An optimizer of a class, with its defaults as far as it has any."""
    if kind in ARGUMENTS:
        return kind(*ARGUMENTS[kind]())
    try:
        return kind()
    except TypeError:
        return kind(0.01)


class Traced(NamedTuple):
    """A traced step.

    Attributes:
        step: the step.
        arguments: those of one run.
        keep: what must live as long.
    """

    step: ConcreteFunction
    arguments: Sequence[tf.Tensor]
    keep: Any

    @property
    def state(self) -> list[tf.Variable]:
        """Its variables."""
        return variables_of(self.step)


def _program(seed: int) -> Any:
    program = make_program(seed)
    state = State.make(program.count, program.rates, by_hand=False)

    @tf.function(autograph=False)
    def step(batch: tf.Tensor) -> None:
        state.batch = batch
        program.run(state)

    return step


def _origin(seed: int) -> Any:
    case = make_case(seed)

    @tf.function(autograph=False)
    def step(x: tf.Tensor, rate: tf.Tensor) -> list[tf.Tensor]:
        return case.run(x, rate)

    return step


def _method(kind: Callable[[], Any]) -> Any:
    """The step of a model, which a bound ``tf.function`` does not keep."""
    _MODELS.append(kind())
    return _MODELS[-1].step


_MODELS: list[Any] = []


def _options(**options: Any) -> Callable[[], Any]:
    return lambda: steps.keras_step(keras.optimizers.Adam(0.01, **options))


_BATCH = steps.batches(1)[0]

_MAKERS: dict[str, tuple[Callable[[], Any], Sequence[tf.Tensor]]] = {
    **{f"keras {kind.__name__}": (lambda kind=kind: steps.keras_step(make(kind)), _BATCH) for kind in KERAS},
    **{f"tf_keras {kind.__name__}": (lambda kind=kind: steps.tf_keras_step(make(kind)), _BATCH) for kind in TF_KERAS},
    **{f"legacy {kind.__name__}": (lambda kind=kind: steps.tf_keras_step(make(kind)), _BATCH) for kind in LEGACY},
    **{
        f"v1 {kind.__name__}": (lambda kind=kind: steps.tf_keras_step(make(kind)), _BATCH)
        for kind in V1
        if kind not in UNSUPPORTED
    },
    **{f"sonnet {kind.__name__}": (lambda kind=kind: steps.sonnet_step(make(kind)), _BATCH) for kind in SONNET},
    "accumulating": (lambda: _method(steps.Accumulating), _BATCH),
    "looping": (lambda: _method(steps.Looping), _BATCH),
    "keras accumulation": (_options(gradient_accumulation_steps=2), _BATCH),
    "keras averages": (_options(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2), _BATCH),
    "keras clipnorm": (_options(clipnorm=0.01), _BATCH),
    "keras global_clipnorm": (_options(global_clipnorm=0.01), _BATCH),
    "keras schedule": (
        lambda: steps.keras_step(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 100))),
        _BATCH,
    ),
    **{f"program {seed}": (lambda seed=seed: _program(seed), [tf.ones(SHAPE)]) for seed in range(40)},
    **{f"origin {seed}": (lambda seed=seed: _origin(seed), make_case(0).arguments(0)) for seed in range(40)},
}

NAMES = tuple(_MAKERS)
"""The names of all steps."""


@functools.cache
def traced(name: str) -> Traced:
    """The step of a name, traced once."""
    make_step, arguments = _MAKERS[name]
    step = make_step()
    return Traced(step.get_concrete_function(*arguments), arguments, step)
