"""Weight decay under ``model.fit``, for models of Keras 3 and of tf_keras.

Keras compiles what it trains with in ``make_train_function``, which runs ``train_step`` through the model's
distribution strategy. An attached model has that function made by a view of itself whose strategy decays what it runs:
one place for every strategy, compiled or not, for one step an execution or many, and only for training.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import keras
import tensorflow as tf
import wrapt

from graphwd.decorator import with_weight_decay
from graphwd.errors import StepError
from graphwd.policy import Policy, PolicyLike, as_policy


def attach(model: Any, policy: PolicyLike) -> None:
    """Gives a model weight decay: ``fit`` and ``train_on_batch`` train with it, whatever the model is compiled with.

    The decay is not saved with the model: attach it again to a model that was loaded.

    Args:
        model: a model of Keras 3 on TensorFlow, or of tf_keras; compiled, or to be compiled.
        policy: a `Policy`, the path of a policy file, or a mapping. Whether it fits the model is known when the model
            first trains, which raises a `GraphwdError` where it does not.

    Raises:
        PolicyError: the policy is malformed.
        StepError: it is no such model, it runs eagerly, or it has weight decay attached already.
    """
    loaded = as_policy(policy)
    _refuse_untraced(model)
    if _is_attached(model):
        by = ", by a callback in a fit that did not end" if "fit" in vars(model) else ""
        raise StepError(f"the model has weight decay attached already{by}: graphwd.keras.detach(model) takes it off")
    if "make_train_function" in vars(model):
        raise StepError(
            "the model has a make_train_function of its own, which would be lost; give it to the model's class"
        )
    model.make_train_function = functools.partial(_make_train_function, model, loaded)
    model.train_function = None


def detach(model: Any) -> None:
    """Takes off a model what `attach` gave it.

    Args:
        model: a model.

    Raises:
        StepError: nothing is attached to it.
    """
    if not _is_attached(model):
        raise StepError("the model has no weight decay attached, or a fit inside of another has detached it")
    del model.make_train_function
    if "fit" in vars(model):
        del model.fit
    model.train_function = None


class WeightDecay(keras.callbacks.Callback):
    """A callback that gives a model weight decay while it is fitted, in Keras 3 and in tf_keras.

    A ``fit`` that ends by an exception leaves the decay attached until the next ``fit``, or `detach`.

    Args:
        policy: a `Policy`, the path of a policy file, or a mapping. It is read at once.

    Raises:
        PolicyError: the policy is malformed.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> model.set_weights([np.ones([2, 1])])
        >>> decay = WeightDecay({"version": 1, "rules": [{"weight_decay": 0.5}]})
        >>> _ = model.fit(np.zeros([1, 2]), np.zeros([1, 1]), callbacks=[decay], verbose=0)
        >>> model.get_weights()[0].tolist()
        [[0.5], [0.5]]
    """

    _supports_tf_logs = True  # tf_keras: it reads no logs, so that no step has to wait for them

    def __init__(self, policy: PolicyLike) -> None:
        super().__init__()
        self._policy = as_policy(policy)

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Attaches the decay and replaces the train function, which Keras has made before it calls this."""
        model: Any = self.model
        attach(model, self._policy)
        model.fit = functools.partial(_fit_anew, model)
        model.make_train_function()

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Detaches it."""
        detach(self.model)

    def _implements_train_batch_hooks(self) -> bool:
        """None of the hooks that run at every batch: tf_keras asks each callback."""
        return False

    _implements_test_batch_hooks = _implements_train_batch_hooks
    _implements_predict_batch_hooks = _implements_train_batch_hooks


def _is_attached(model: Any) -> bool:
    maker = vars(model).get("make_train_function")
    return isinstance(maker, functools.partial) and maker.func is _make_train_function


def _refuse_untraced(model: Any) -> None:
    """Refuses what does not train by a TensorFlow graph."""
    tf_keras = sys.modules.get("tf_keras")
    if isinstance(model, keras.Model):
        backend = keras.backend.backend()
        if backend != "tensorflow":
            raise StepError(f"Keras runs on {backend}: there is no TensorFlow graph to rewrite")
    elif tf_keras is None or not isinstance(model, tf_keras.Model):
        raise StepError(f"weight decay is attached to a Keras model, got a {type(model).__name__}")
    if model.run_eagerly:
        raise StepError("the model runs eagerly: there is no graph to rewrite; compile it without run_eagerly=True")


def _make_train_function(model: Any, policy: Policy, force: bool = False) -> Any:
    """What replaces ``model.make_train_function``."""
    _refuse_untraced(model)
    return type(model).make_train_function(_DecayingModel(model, policy), force=force)


def _fit_anew(model: Any, *args: Any, **kwargs: Any) -> Any:
    """What replaces ``model.fit`` while a callback's decay is attached: that of a fit that failed ends here."""
    detach(model)
    return model.fit(*args, **kwargs)


class _DecayingModel(wrapt.ObjectProxy):
    """A model, with a strategy that decays what it runs, and a ``train_step`` that nothing else may run."""

    def __init__(self, model: Any, policy: Policy) -> None:
        super().__init__(model)
        self._self_policy = policy
        self._self_runs: list[None] = []

    @property
    def distribute_strategy(self) -> Any:
        """The strategy that runs ``train_step``."""
        return _DecayingStrategy(self.__wrapped__.distribute_strategy, self._self_policy, self._self_runs)

    @property
    def train_step(self) -> Any:
        """The model's, which is refused outside of the strategy's ``run``: it would train without decay."""
        step = self.__wrapped__.train_step

        @functools.wraps(step)
        def train_step(*args: Any, **kwargs: Any) -> Any:
            if not self._self_runs:
                raise StepError(
                    f"the make_train_function of {type(self.__wrapped__).__name__} calls self.train_step without "
                    "self.distribute_strategy.run, where weight decay would enter; call it through that, or decorate "
                    "train_step with graphwd.with_weight_decay instead"
                )
            return step(*args, **kwargs)

        return train_step

    def _make_function(self, step_function: Any) -> Any:
        """What ``make_train_function`` of Keras 3 does the work with."""
        return type(self.__wrapped__)._make_function(self, step_function)


class _DecayingStrategy(wrapt.ObjectProxy):
    """A distribution strategy that decays what it runs.

    Outside of ``run``, not inside: there, replicas that merge their gradients could not be traced for themselves.
    """

    def __init__(self, strategy: Any, policy: Policy, runs: list[None]) -> None:
        super().__init__(strategy)
        self._self_policy = policy
        self._self_runs = runs  # one element for each `run` that is being traced

    def run(self, fn: Any, args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        """Runs a function in each replica, as ``tf.distribute.Strategy.run`` does, with decay."""
        strategy, runs = self.__wrapped__, self._self_runs
        autograph = tf.__internal__.autograph.control_status_ctx()  # tf_keras has AutoGraph convert what a model calls

        @with_weight_decay(self._self_policy)
        @tf.function(autograph=False)
        def train_step(args: Any, kwargs: Any) -> Any:
            runs.append(None)
            try:
                with autograph:
                    return strategy.run(fn, args, kwargs, options)
            finally:
                runs.pop()

        return train_step(args, kwargs or {})
