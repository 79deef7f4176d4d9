# pyright: basic
"""Weight decay under ``model.fit``, for models of Keras 3 and of tf_keras.

Keras compiles its training in ``make_train_function``, which runs ``train_step`` through the model's distribution
strategy. For an attached model a view of the model makes that function, and the strategy of the view adds decay to
whatever it runs. So there is one place for every strategy, compiled or not, for one step an execution or many, and only
for training.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
import wrapt

from graphwd.analysis.roles import Purpose
from graphwd.errors import GraphwdError, PlanError, StepError, UsageError
from graphwd.graph.graph import Variable
from graphwd.planning.plan import Plan
from graphwd.planning.problems import left_over, no_rule, shadowed
from graphwd.planning.suggest import suggestion
from graphwd.policy.rules import Policy, PolicyLike, Rule, as_policy
from graphwd.policy.selectors import Subject
from graphwd.steps.decorator import decorator
from graphwd.steps.keras_step import forward_purposes, training_step
from graphwd.steps.pipeline import plan as plan_step
from graphwd.steps.read import ROOT, held_by
from graphwd.steps.state import STATE, State
from graphwd.steps.watch import write_summaries

_LOG = logging.getLogger("graphwd")


def attach(model: Any, policy: PolicyLike, *, summaries: bool = False) -> None:
    """Gives a model weight decay: ``fit`` and ``train_on_batch`` train with it, whatever the model is compiled with.

    So does a ``tf.function`` of your own that calls ``train_step``. The decay is not saved with the model: attach it
    again to a loaded model.

    Args:
        model: a model of Keras 3 on TensorFlow, or of tf_keras; compiled, or to be compiled.
        policy: a `Policy`, the path of a policy file, or a mapping. If the model is built, it is checked against the
            weights at once. All other checks happen when the model first trains, which may raise a `GraphwdError`.
        summaries: whether training measures what decay does, for `graphwd.write_summaries`. A step then takes several
            more passes over the weights, and the memory of one more copy of those that it decays.

    Raises:
        PolicyError: the policy is malformed.
        PlanError: a rule matches no weight of the model, or no rule matches a weight.
        StepError: it is not such a model, it runs eagerly, or it has weight decay attached already.
    """
    loaded = as_policy(policy)
    _attach(model, loaded).watch(summaries=summaries)


def plan(model: Any, policy: PolicyLike, data: Any = None) -> Plan:
    """Decides what training would do with a model that a policy is attached to; the model need not be trained yet.

    Args:
        model: a built and compiled model of Keras 3 on TensorFlow, or of tf_keras. The variables of its optimizer are
            made, as ``fit`` would make them; nothing else is changed.
        policy: a `Policy`, the path of a policy file, or a mapping.
        data: a batch as ``fit`` gives it to ``train_step``, such as ``(x, y)``. Without it the mean of the outputs
            stands for the loss, which a policy does not depend on, and a ``train_step`` of the model's own is not seen.

    Returns:
        The plan; where training would be refused, its ``problems`` say why.

    Raises:
        PolicyError: the policy is malformed.
        StepError: it is not such a model, it is not built or compiled, or its inputs are not known.

    Examples:
        >>> import keras
        >>> model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> decided = plan(model, {"version": 1, "rules": [{"role": "bias", "weight_decay": 0}, {"weight_decay": 0.1}]})
        >>> [(d.variable.name.rpartition("/")[2], d.purpose.role.value, d.outcome.value) for d in decided.decisions]
        [('kernel', 'kernel', 'decay'), ('bias', 'bias', 'exempt')]
    """
    loaded = as_policy(policy)
    _refuse_untraced(model)
    attached = _attachment(model)
    return plan_step(training_step(model, data, attached and attached.train_step), loaded)


def suggest(model: Any, data: Any = None) -> str:
    """Writes a first policy for a model, as `graphwd.suggest` does for a step.

    Args:
        model: as for `plan`.
        data: likewise.

    Returns:
        The policy as YAML text, with every weight named in a comment: its shape, and the op that shows its role.

    Raises:
        StepError: it is not such a model, it is not built or compiled, or its inputs are not known.

    Examples:
        >>> import keras
        >>> model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1, name="out")], name="net")
        >>> model.compile("sgd", "mse")
        >>> [line.strip() for line in suggest(model).splitlines() if "role" in line]
        ['- role: bias', '- role: kernel']
    """
    _refuse_untraced(model)
    attached = _attachment(model)
    step = training_step(model, data, attached and attached.train_step)
    return suggestion(model.name, lambda policy: plan_step(step, policy))


def _attach(model: Any, policy: Policy, state: State | None = None) -> _Attachment:
    """Attaches a policy, with the variables that the model's step captures of graphwd's own, or new ones."""
    _refuse_untraced(model)
    if (attached := _attachment(model)) is not None:
        by = ", by a callback in a fit that did not end" if attached.by_callback else ""
        raise StepError(f"the model has weight decay attached already{by}: graphwd.keras.detach(model) takes it off")
    if "make_train_function" in vars(model):
        raise StepError(
            "the model has a make_train_function of its own, which would be lost; give it to the model's class"
        )
    if state is None:
        with model.distribute_strategy.scope():
            state = State(policy)
    made = _Attachment(model, policy, state)
    made.begin()
    return made


def detach(model: Any) -> None:
    """Detaches from a model the decay that `attach` gave it.

    Args:
        model: a model.

    Raises:
        StepError: nothing is attached to it.
    """
    attached = _attachment(model)
    if attached is None:
        raise StepError("the model has no weight decay attached, or a fit inside of another has detached it")
    attached.end()


class WeightDecay(keras.callbacks.Callback):
    """A callback that gives a model weight decay while it is fitted, in Keras 3 and in tf_keras.

    A ``fit`` that ends by an exception leaves the decay attached until the next ``fit``, or `detach`.

    Args:
        policy: a `Policy`, the path of a policy file, or a mapping. It is read at once.
        log_dir: a directory for TensorBoard, where `graphwd.write_summaries` writes what decay does; None for none.
        every: after how many batches it writes again; the first is written. Only these measure anything, in a second
            train function, which takes a second trace. It needs as much memory more as the weights that it decays.

    Raises:
        PolicyError: the policy is malformed.
        UsageError: ``every`` is no positive integer.

    Examples:
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

    def __init__(self, policy: PolicyLike, *, log_dir: str | os.PathLike[str] | None = None, every: int = 100) -> None:
        super().__init__()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise UsageError(f"every is a number of batches, at least 1, got {every!r}")
        self._policy = as_policy(policy)
        self._log_dir = log_dir
        self._every = every
        self._batches = 0  # trained, in all fits
        self._writer: Any = None
        self._functions: tuple[Any, Any] = (None, None)  # the train functions, without and with summaries
        self.state = State(self._policy)
        """What `graphwd.state` gives of a model that it decays; it lasts from one ``fit`` to the next."""

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Attaches the decay and replaces the train function, which Keras made before this call."""
        model: Any = self.model
        attached = _attach(model, self._policy, self.state)
        attached.by_callback = True
        model.make_train_function()
        if self._log_dir is not None:
            self._writer = tf.summary.create_file_writer(os.fspath(self._log_dir))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Has the next batch, or execution of several, measure what decay does, if its turn has come."""
        model: Any = self.model
        attached = _attachment(model)
        if self._writer is None or attached is None or model.train_function is None:
            return
        if not any(model.train_function is one for one in self._functions):  # a new one, as after a recompile
            quiet = model.train_function
            attached.make_train_function(summaries=True, force=True)
            self._functions = quiet, model.train_function
        model.train_function = self._functions[self._is_due]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Writes what was measured."""
        if self._writer is not None and self._is_due and _attachment(self.model) is not None:
            with self._writer.as_default():
                write_summaries(self.model, step=self._batches)
        self._batches += 1

    @property
    def _is_due(self) -> bool:
        return self._batches % self._every == 0

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Detaches it."""
        if self._writer is not None:
            self._writer.close()
            self._writer, self._functions = None, (None, None)
        detach(self.model)

    def _implements_train_batch_hooks(self) -> bool:
        """Whether it has hooks for batches; tf_keras asks each callback for this."""
        return self._log_dir is not None

    def _implements_test_batch_hooks(self) -> bool:
        """No: it has no other hooks."""
        return False

    _implements_predict_batch_hooks = _implements_test_batch_hooks


class _Attachment:
    """The state of an attached model: it puts attributes of the instance in the place of methods of its class.

    Attributes:
        by_callback: whether a callback attached it, for one fit.
        summaries: whether the steps that are traced measure what decay does.
        runs: one element for each ``run`` of a strategy, or call of ``train_step``, that is being traced.
    """

    def __init__(self, model: Any, policy: Policy, state: State) -> None:
        self.state = state
        self._model = model
        self._policy = policy
        self._own: dict[str, Any] = {}
        self._told = False
        self._saved = False
        self.by_callback = False
        self.summaries = False
        self.runs: list[None] = []
        self.train_step = model.train_step

    def begin(self) -> None:
        """Checks the policy as far as possible, and replaces the methods."""
        self.tell(compiled=getattr(self._model, "optimizer", None) is not None)
        places = {
            "make_train_function": _make_train_function,
            "train_step": _train_step,
            "fit": _fit,
            "train_on_batch": _train_on_batch,
            "save": _save,
        }
        for name, function in places.items():
            if name in vars(self._model):
                self._own[name] = vars(self._model)[name]
            setattr(self._model, name, functools.partial(function, self))
        vars(self._model)[STATE] = self.state  # past Keras, which would make it a part of the model
        self._model.train_function = None

    def end(self) -> None:
        """Restores the methods."""
        for name in ("make_train_function", "train_step", "fit", "train_on_batch", "save"):
            delattr(self._model, name)
        del vars(self._model)[STATE]
        for name, own in self._own.items():
            setattr(self._model, name, own)
        self._model.train_function = None

    def method(self, name: str) -> Any:
        """The method that an attribute replaces."""
        return self._own.get(name) or functools.partial(getattr(type(self._model), name), self._model)

    def tell(self, *, compiled: bool = False) -> None:
        """Checks the policy against the weights, once the model is built, and warns of doubled decay.

        Args:
            compiled: whether it is settled which weights are trained.

        Raises:
            PlanError: a rule matches no weight, or no rule matches one that is trained.
        """
        if self._told or not self._model.built or not self._model.weights:
            return
        self._told = True
        weights = _Weights(self._model, self._policy)
        # A custom step may train other variables than the model's weights, and may leave some weights out.
        if type(self._model).train_step in _train_steps() and "train_step" not in self._own:
            problems = [*weights.left_over(), *(weights.undecided() if compiled else ())]
            if problems:
                self._told = False
                raise PlanError("\n".join(problems))
        for note in weights.notes():
            _LOG.warning("%s", note)

    def watch(self, *, summaries: bool) -> None:
        """Sets whether the steps that are traced from now on measure what decay does."""
        self.summaries = summaries
        self.state.watched = self.state.watched or summaries

    def refuse_untraced(self) -> None:
        """Refuses a model that does not train by a TensorFlow graph."""
        _refuse_untraced(self._model)

    def make_train_function(self, *, summaries: bool, force: bool) -> Any:
        """Has Keras make the function that trains with decay; with ``summaries`` it measures what decay does."""
        self.state.watched = self.state.watched or summaries
        view = _DecayingModel(self._model, self, summaries=summaries)
        return type(self._model).make_train_function(view, force=force)

    def decayed(self, function: Callable[..., Any], *, summaries: bool) -> Any:
        """Traces a function and calls it with decay; with ``summaries`` it measures what decay does."""
        autograph = tf.__internal__.autograph.control_status_ctx()  # tf_keras has AutoGraph convert what a model calls

        @tf.function(autograph=False)
        def train_step(args: Any, kwargs: Any) -> Any:
            self.runs.append(None)
            try:
                with autograph:
                    result = function(*args, **kwargs)
            finally:
                self.runs.pop()
            self.tell()
            return result

        setattr(train_step, ROOT, weakref.ref(self._model))
        return decorator(self._policy, self.state, summaries=summaries)(train_step)

    def warn_of_saving(self) -> None:
        """Warns, once, that a loaded model has no decay."""
        if not self._saved and not self.by_callback:
            self._saved = True
            _LOG.warning(
                "the weight decay attached to '%s' is not part of the model that is saved: attach it again to the one "
                "that is loaded",
                self._model.name,
            )


class _Weights:
    """The check of a policy against the weights of a built model."""

    def __init__(self, model: Any, policy: Policy) -> None:
        trained = set(map(id, model.trainable_weights))
        self._policy = policy
        self._all = held_by(model, model.weights)
        self._trained = [
            variable for variable, weight in zip(self._all, model.weights, strict=True) if id(weight) in trained
        ]
        self._regularized = _regularized(model, dict(zip(map(id, model.weights), self._all, strict=True)))
        self._purposes = forward_purposes(model) if policy.by_use else None

    def left_over(self) -> Iterator[str]:
        """Rules that no weight can match."""
        for rule in self._policy.rules:
            if rule.selectors.any_given and not rule.optional and not self._may_match(rule, self._all):
                subjects = [] if self._purposes is None else [self._subject(variable) for variable in self._trained]
                yield left_over(rule, self._policy, self._trained, subjects)

    def undecided(self) -> Iterator[str]:
        """Trained weights that no rule can match."""
        missing = [
            variable.shown
            for variable in self._trained
            if not any(self._may(rule, variable) for rule in self._policy.rules)
        ]
        if missing and not self._policy.skip_unmatched:
            yield no_rule(missing, self._policy)

    def notes(self) -> Iterator[str]:
        """Notes on things that are allowed, but nearly always a mistake."""
        deciding = [
            next((rule for rule in self._policy.rules if self._may(rule, variable)), None) for variable in self._trained
        ]
        uses_known = not self._policy.by_use or self._purposes is not None
        certain = uses_known and all(rule.selectors.used_by is None for rule in self._policy.rules)
        for rule in self._policy.rules if certain else ():
            matches = self._may_match(rule, self._trained)
            if matches and rule.selectors.any_given and not any(rule is decider for decider in deciding):
                yield shadowed(rule, [variable.shown for variable in matches])
        twice = [
            f"'{each.shown}' ({self._regularized[each.id]})"
            for each, rule in zip(self._trained, deciding, strict=True)
            if rule is not None and not rule.exempts and each.id in self._regularized
        ]
        if twice:
            yield (
                f"a regularizer of the layer and the policy's decay both count for {', '.join(twice)}; take one of "
                "them away"
            )

    def _may_match(self, rule: Rule, variables: Iterable[Variable]) -> list[Variable]:
        return [variable for variable in variables if self._may(rule, variable)]

    def _may(self, rule: Rule, variable: Variable) -> bool:
        """Whether a rule matches a variable, as far as is known without a training step."""
        unknown: dict[str, None] = {"used_by": None}
        # What the forward pass does not use, the loss may.
        if self._purposes is None or not self._purposes.get(variable.key or 0, Purpose()).seen:
            unknown |= {"role": None, "followed_by": None}
        return dataclasses.replace(rule.selectors, **unknown).match(self._subject(variable))

    def _subject(self, variable: Variable) -> Subject:
        """A weight as selectors see it."""
        purpose = (self._purposes or {}).get(variable.key or 0, Purpose())
        return Subject(
            variable.name,
            variable.rank,
            variable.dtype,
            variable.path,
            key=variable.key,
            reached_by=variable.reached_by,
            role=purpose.role,
            followed_by=purpose.followed_by,
        )


def _regularized(model: Any, variables: Mapping[int, Variable]) -> dict[int, str]:
    """The regularizers of weights, by the number of the weight."""
    regularized = {
        variables[id(weight)].id: type(weight.regularizer).__name__
        for weight in model.weights
        if getattr(weight, "regularizer", None) is not None
    }
    for layer in model._flatten_layers():
        for name, regularizer in vars(layer).items():
            weight = getattr(layer, name.removesuffix("_regularizer"), None)
            if regularizer is not None and name.endswith("_regularizer") and id(weight) in variables:
                regularized[variables[id(weight)].id] = f"{name} of the layer '{layer.name}'"
    return regularized


def _train_steps() -> list[Any]:
    """The ``train_step`` methods of the libraries themselves."""
    tf_keras = sys.modules.get("tf_keras")
    return [library.Model.train_step for library in (keras, tf_keras) if library is not None]


def _attachment(model: Any) -> _Attachment | None:
    """The attachment of a model."""
    maker = vars(model).get("make_train_function")
    return maker.args[0] if isinstance(maker, functools.partial) and maker.func is _make_train_function else None


def _refuse_untraced(model: Any) -> None:
    """Refuses a model that does not train by a TensorFlow graph."""
    tf_keras = sys.modules.get("tf_keras")
    if isinstance(model, keras.Model):
        backend = keras.backend.backend()
        if backend != "tensorflow":
            raise StepError(f"Keras runs on {backend}: there is no TensorFlow graph to rewrite")
    elif tf_keras is None or not isinstance(model, tf_keras.Model):
        raise StepError(f"weight decay is attached to a Keras model, got a {type(model).__name__}")
    if model.run_eagerly:
        raise StepError("the model runs eagerly: there is no graph to rewrite; compile it without run_eagerly=True")


def _make_train_function(attached: _Attachment, force: bool = False) -> Any:
    """The replacement of ``model.make_train_function``."""
    attached.refuse_untraced()
    attached.tell()
    return attached.make_train_function(summaries=attached.summaries, force=force)


def _train_step(attached: _Attachment, *args: Any, **kwargs: Any) -> Any:
    """The replacement of ``model.train_step``: it also decays where a custom function calls it."""
    if attached.runs:
        return attached.train_step(*args, **kwargs)
    if tf.executing_eagerly():
        raise StepError(
            "train_step is called eagerly, where there is no graph for the weight decay that is attached; call it in a "
            "tf.function, or detach the decay"
        )
    return attached.decayed(attached.train_step, summaries=attached.summaries)(args, kwargs)


def _fit(attached: _Attachment, *args: Any, **kwargs: Any) -> Any:
    """The replacement of ``model.fit``."""
    fit = attached.method("fit")
    if attached.by_callback:  # left over from a fit that failed
        attached.end()
    return _told_plainly(fit, args, kwargs)


def _train_on_batch(attached: _Attachment, *args: Any, **kwargs: Any) -> Any:
    """The replacement of ``model.train_on_batch``."""
    return _told_plainly(attached.method("train_on_batch"), args, kwargs)


def _told_plainly(function: Any, args: Any, kwargs: Any) -> Any:
    """Calls a method of Keras; strips the frames of Keras and TensorFlow from the traceback of a refusal."""
    try:
        return function(*args, **kwargs)
    except GraphwdError as error:
        raise error.with_traceback(None) from None


def _save(attached: _Attachment, *args: Any, **kwargs: Any) -> Any:
    """The replacement of ``model.save``."""
    attached.warn_of_saving()
    return attached.method("save")(*args, **kwargs)


class _DecayingModel(wrapt.ObjectProxy):
    """A view of a model: its strategy adds decay, and only that strategy may run its ``train_step``."""

    def __init__(self, model: Any, attached: _Attachment, *, summaries: bool) -> None:
        super().__init__(model)
        self._self_attached = attached
        self._self_summaries = summaries  # which may be others when a function is traced that is made now

    @property
    def distribute_strategy(self) -> Any:
        """The strategy that runs ``train_step``."""
        strategy = self.__wrapped__.distribute_strategy
        return _DecayingStrategy(strategy, self._self_attached, summaries=self._self_summaries)

    @property
    def train_step(self) -> Any:
        """The model's ``train_step``; refused outside of the strategy's ``run``, where it would train without decay."""
        step, runs = self._self_attached.train_step, self._self_attached.runs

        @functools.wraps(step)
        def train_step(*args: Any, **kwargs: Any) -> Any:
            if not runs:
                raise StepError(
                    f"the make_train_function of {type(self.__wrapped__).__name__} calls self.train_step without "
                    "self.distribute_strategy.run, where weight decay would enter; call it through that, or decorate "
                    "train_step with graphwd.with_weight_decay instead"
                )
            return step(*args, **kwargs)

        return train_step

    def _make_function(self, step_function: Any) -> Any:
        """The function that ``make_train_function`` of Keras 3 calls."""
        return type(self.__wrapped__)._make_function(self, step_function)


class _DecayingStrategy(wrapt.ObjectProxy):
    """A distribution strategy that adds decay to the functions that it runs.

    The decay is added around ``run``, not inside: inside, replicas that merge their gradients cannot be traced alone.
    """

    def __init__(self, strategy: Any, attached: _Attachment, *, summaries: bool) -> None:
        super().__init__(strategy)
        self._self_attached = attached
        self._self_summaries = summaries

    def run(self, fn: Any, args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        """Runs a function in each replica, as ``tf.distribute.Strategy.run`` does, with decay."""
        strategy = self.__wrapped__

        def run(*args: Any, **kwargs: Any) -> Any:
            return strategy.run(fn, args, kwargs, options)

        return self._self_attached.decayed(run, summaries=self._self_summaries)(args, kwargs or {})
