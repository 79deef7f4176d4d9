"""Weight decay under ``model.fit``: attached to models of Keras 3 and tf_keras, for good or by a callback."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from tests.helpers.events import scalars
from tests.helpers.pages import blocks_in

RATE = 0.125
POLICY = {"version": 1, "rules": [{"regex": "kernel", "weight_decay": RATE}, {"weight_decay": 0}]}
LIBRARIES = [keras, tf_keras]
TRAINING = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
_RANDOM = np.random.default_rng(5)
INPUTS = _RANDOM.normal(size=(28, 6)).astype(np.float32)  # the last batch of four is a smaller one
TARGETS = _RANDOM.normal(size=(28, 2)).astype(np.float32)


@pytest.fixture(params=LIBRARIES, ids=["keras", "tf_keras"])
def library(request):
    return request.param


def model_of(library, optimizer, *, kind=None, **options):
    library.utils.set_random_seed(2)
    inputs = library.Input((6,))
    hidden = library.layers.Dense(5, activation="tanh", name="hidden")(inputs)
    model = (kind or library.Model)(inputs, library.layers.Dense(2, name="out")(hidden))
    model.compile(optimizer, "mse", **options)
    return model


def still(library, **options):
    """An optimizer that moves nothing, so that decay alone changes the weights."""
    return library.optimizers.SGD(0.0, **options)


def kernels(model):
    return [layer.kernel.numpy() for layer in model.layers[1:]]


def decays(model, start, rate=RATE):
    """How often each of the two kernels was decayed, if it was by ``1 - rate`` each time."""
    counts = [
        np.log(now.astype(np.float64) / then) / np.log(1 - rate)
        for now, then in zip(kernels(model), start, strict=True)
    ]
    for count in counts:
        np.testing.assert_allclose(count, np.rint(count.flat[0]), atol=1e-4)
    return [round(float(count.flat[0])) for count in counts]


def still_gradient(w, x):
    """The gradient of a loss, times a learning rate of 0."""
    with tf.GradientTape() as tape:
        loss = w * x
    return 0.0 * tape.gradient(loss, w)


def by_hand(library):
    """A model that decays its kernels after each step, in Python."""

    class ByHand(library.Model):
        def train_step(self, data):
            logs = super().train_step(data)
            for layer in self.layers[1:]:
                layer.kernel.assign(layer.kernel * (1 - RATE))
            return logs

    return ByHand


@pytest.mark.parametrize("steps_per_execution", [1, 3])
@pytest.mark.parametrize("jit_compile", ["auto", True, False])
def test_fit_trains_as_with_decay_by_hand(library, jit_compile, steps_per_execution):
    if library is tf_keras and jit_compile == "auto":
        jit_compile = None  # what tf_keras calls it
    options = {"jit_compile": jit_compile, "steps_per_execution": steps_per_execution}
    ours, theirs = (
        model_of(library, library.optimizers.Adam(0.01), kind=kind, **options) for kind in (None, by_hand(library))
    )
    graphwd.keras.attach(ours, POLICY)
    histories = [model.fit(INPUTS, TARGETS, **TRAINING).history for model in (ours, theirs)]
    # One unit of the largest weight a step: XLA may contract the products of one of them, not of the other.
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=8 * np.spacing(np.abs(other).max()))
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-6)


def test_evaluate_and_predict_train_nothing(library):
    model = model_of(library, still(library))
    plain = model.predict(INPUTS, verbose=0), model.evaluate(INPUTS, TARGETS, verbose=0)
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    np.testing.assert_array_equal(model.predict(INPUTS, verbose=0), plain[0])
    assert model.evaluate(INPUTS, TARGETS, verbose=0) == plain[1]
    assert decays(model, start) == [0, 0]
    model.fit(INPUTS, TARGETS, validation_data=(INPUTS, TARGETS), **TRAINING)
    assert decays(model, start) == [8, 8]


def test_train_on_batch(library):
    model = model_of(library, still(library))
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    for size in (4, 5, 4):
        model.train_on_batch(INPUTS[:size], TARGETS[:size])
    assert decays(model, start) == [3, 3]


def test_detached_it_trains_as_before(library):
    model = model_of(library, still(library))
    graphwd.keras.attach(model, POLICY)
    model.fit(INPUTS, TARGETS, **TRAINING)
    graphwd.keras.detach(model)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, **TRAINING)
    model.train_on_batch(INPUTS, TARGETS)
    assert decays(model, start) == [0, 0]
    assert "make_train_function" not in vars(model)


def test_recompiled_it_decays_with_the_new_optimizer(library):
    model = model_of(library, still(library))
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, **TRAINING)
    model.compile(library.optimizers.Adam(0.0), "mse", jit_compile=True)
    model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [16, 16]


def test_attached_before_it_is_compiled(library):
    inputs = library.Input((6,))
    hidden = library.layers.Dense(5, name="hidden")(inputs)
    model = library.Model(inputs, library.layers.Dense(2, name="out")(hidden))
    graphwd.keras.attach(model, POLICY)
    model.compile(still(library), "mse")
    start = kernels(model)
    model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [8, 8]


def test_saved_and_loaded_it_decays_when_attached_again(library, tmp_path):
    model = model_of(library, library.optimizers.Adam(0.01))
    graphwd.keras.attach(model, POLICY)
    model.fit(INPUTS, TARGETS, **TRAINING)
    model.save(tmp_path / "model.keras")
    loaded = library.models.load_model(tmp_path / "model.keras")
    assert "make_train_function" not in vars(loaded)
    graphwd.keras.attach(loaded, POLICY)
    for each in (model, loaded):
        each.fit(INPUTS, TARGETS, **TRAINING)
    for mine, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=4 * np.spacing(np.abs(theirs).max()))


def test_mixed_precision(library):
    """The update lies in the branch that is taken where all gradients are finite."""
    policy = library.mixed_precision
    policy.set_global_policy("mixed_float16")
    try:
        model = model_of(library, still(library))
    finally:
        policy.set_global_policy("float32")
    assert "LossScale" in type(model.optimizer).__name__
    assert {kernel.dtype for kernel in kernels(model)} == {np.dtype(np.float32)}
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [8, 8]
    broken = TARGETS.copy()
    broken[:8] = np.inf  # no update in the first step of each epoch, and so no decay
    model.fit(INPUTS, broken, **TRAINING)
    assert decays(model, start) == [14, 14]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradient_accumulation_decays_when_it_updates(jit_compile):
    model = model_of(keras, still(keras, gradient_accumulation_steps=4), jit_compile=jit_compile)
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [2, 2]


def test_a_train_step_of_ones_own(library):
    """That updates for full batches only."""

    class Own(library.Model):
        def train_step(self, data):
            inputs, targets = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(inputs, training=True) - targets))
            gradients = tape.gradient(loss, self.trainable_variables)

            def update():
                self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))

            tf.cond(tf.shape(inputs)[0] == 8, update, lambda: None)
            return {"own": loss}

    model = model_of(library, still(library), kind=Own, jit_compile=False)
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    history = model.fit(INPUTS, TARGETS, **TRAINING)
    assert list(history.history) == ["own"]
    assert decays(model, start) == [6, 6]  # three full batches of four an epoch


def test_a_train_function_of_ones_own(library):
    """One that calls Keras's, and then does something to what that made."""
    calls = []

    class Counting(library.Model):
        def make_train_function(self, force=False):
            super().make_train_function(force)
            made = self.train_function
            if made not in calls:
                calls.append(made)
            return made

    model = model_of(library, still(library), kind=Counting)
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [8, 8]
    assert calls == [model.train_function]


def test_a_train_function_without_the_strategy_is_refused(library):
    """It would train without decay."""

    class Plain(library.Model):
        def make_train_function(self, force=False):  # noqa: ARG002
            self.train_function = tf.function(lambda iterator: self.train_step(next(iterator)))
            return self.train_function

    model = model_of(library, still(library), kind=Plain)
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    with pytest.raises(graphwd.StepError, match=r"make_train_function of Plain calls self\.train_step without"):
        model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [0, 0]
    graphwd.keras.detach(model)
    model.fit(INPUTS, TARGETS, **TRAINING)


def test_autograph_converts_what_it_converts_without_decay():
    """In tf_keras the call of a model."""

    class Branching(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.out = tf_keras.layers.Dense(2, name="out")

        def call(self, inputs):
            if tf.reduce_sum(inputs) > 0:
                return self.out(inputs)
            return self.out(-inputs)

    model = Branching()
    model.compile(still(tf_keras), "mse")
    model(INPUTS)
    graphwd.keras.attach(model, POLICY)
    start = model.out.kernel.numpy()
    model.fit(INPUTS, TARGETS, **TRAINING)
    np.testing.assert_allclose(model.out.kernel.numpy(), start * (1 - RATE) ** 8, rtol=1e-6)


def test_a_learning_rate_schedule_by_callback(library):
    """``adamw`` reads the rate that the callback has set for the epoch."""
    policy = {"version": 1, "defaults": {"semantics": "adamw"}, "rules": POLICY["rules"]}
    model = model_of(library, library.optimizers.SGD(0.5))
    graphwd.keras.attach(model, policy)
    start = kernels(model)
    rates = [0.5, 0.25]
    zeros = np.zeros_like(INPUTS), np.zeros_like(TARGETS)  # no gradient
    schedule = library.callbacks.LearningRateScheduler(lambda epoch, _: rates[epoch])
    model.fit(*zeros, callbacks=[schedule], **TRAINING)
    factor = np.prod([(1 - RATE * rate) ** 4 for rate in rates])
    for now, then in zip(kernels(model), start, strict=True):
        np.testing.assert_allclose(now, then * factor, rtol=1e-6)


def test_the_callback_decays_in_its_fit_only(library):
    model = model_of(library, still(library))
    start = kernels(model)
    callback = graphwd.keras.WeightDecay(POLICY)
    counts = []
    for callbacks in ([], [callback], [], [callback]):
        model.fit(INPUTS, TARGETS, callbacks=callbacks, **TRAINING)
        counts.append(decays(model, start))
    assert counts == [[0, 0], [8, 8], [8, 8], [16, 16]]
    assert not {"fit", "make_train_function"} & set(vars(model))


def test_the_callback_beside_others(library, tmp_path):
    model = model_of(library, still(library))
    start = kernels(model)
    on_batch = []

    def train_once_more(epoch, _):
        model.train_on_batch(INPUTS[:8], TARGETS[:8])
        on_batch.append((epoch, *decays(model, start)))

    callbacks = [
        library.callbacks.EarlyStopping("loss", patience=0, mode="max"),
        graphwd.keras.WeightDecay(POLICY),
        library.callbacks.LambdaCallback(on_epoch_end=train_once_more),
        library.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras")),
    ]
    model.fit(INPUTS, TARGETS, callbacks=callbacks, **{**TRAINING, "epochs": 9})
    assert on_batch == [(epoch, 5 * epoch + 5, 5 * epoch + 5) for epoch in range(len(on_batch))]
    assert on_batch
    for epoch, saved in enumerate(sorted(tmp_path.iterdir()), start=1):
        assert decays(library.models.load_model(saved), start) == [5 * epoch] * 2


def test_a_fit_with_the_callback_that_fails(library):
    """The next fit is without decay."""

    def fail(*_):
        raise KeyboardInterrupt

    model = model_of(library, still(library))
    start = kernels(model)
    callback = graphwd.keras.WeightDecay(POLICY)
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            INPUTS, TARGETS, callbacks=[callback, library.callbacks.LambdaCallback(on_epoch_end=fail)], **TRAINING
        )
    assert decays(model, start) == [4, 4]
    model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [4, 4]
    model.fit(INPUTS, TARGETS, callbacks=[callback], **TRAINING)
    assert decays(model, start) == [12, 12]


def test_an_attached_model_refuses_a_second_decay(library):
    model = model_of(library, still(library))
    graphwd.keras.attach(model, POLICY)
    for second in (
        lambda: graphwd.keras.attach(model, POLICY),
        lambda: model.fit(INPUTS, TARGETS, callbacks=[graphwd.keras.WeightDecay(POLICY)], **TRAINING),
    ):
        with pytest.raises(graphwd.StepError, match=r"attached already: graphwd\.keras\.detach\(model\) takes it off"):
            second()
    graphwd.keras.detach(model)
    with pytest.raises(graphwd.StepError, match="the model has no weight decay attached"):
        graphwd.keras.detach(model)


def test_a_decorated_train_step_refuses_a_second_decay(library):
    class Decayed(library.Model):
        @graphwd.with_weight_decay(POLICY)
        def train_step(self, data):
            return super().train_step(data)

    model = model_of(library, still(library), kind=Decayed)
    start = kernels(model)
    graphwd.keras.attach(model, POLICY)
    with pytest.raises(graphwd.RewriteError, match="graphwd"):
        model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [0, 0]


def test_eager_models_are_refused(library):
    eager = model_of(library, still(library), run_eagerly=True)
    reason = "the model runs eagerly: there is no graph to rewrite; compile it without run_eagerly=True"
    with pytest.raises(graphwd.StepError, match=reason):
        graphwd.keras.attach(eager, POLICY)
    with pytest.raises(graphwd.StepError, match=reason):
        eager.fit(INPUTS, TARGETS, callbacks=[graphwd.keras.WeightDecay(POLICY)], **TRAINING)
    model = model_of(library, still(library))
    start = kernels(model)
    graphwd.keras.attach(model, POLICY)
    model.compile(still(library), "mse", run_eagerly=True)
    with pytest.raises(graphwd.StepError, match=reason):
        model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [0, 0]


def test_what_cannot_be_attached():
    own = model_of(keras, still(keras))
    own.make_train_function = lambda force=False: None
    with pytest.raises(graphwd.StepError, match="has a make_train_function of its own, which would be lost"):
        graphwd.keras.attach(own, POLICY)
    with pytest.raises(graphwd.StepError, match="attached to a Keras model, got a Dense"):
        graphwd.keras.attach(keras.layers.Dense(1), POLICY)
    with pytest.raises(graphwd.PolicyError, match="unknown key 'rule'"):
        graphwd.keras.attach(model_of(keras, still(keras)), {"version": 1, "rule": []})
    with pytest.raises(graphwd.PolicyError, match="unknown key 'rule'"):
        graphwd.keras.WeightDecay({"version": 1, "rule": []})


@pytest.mark.parametrize("compiled", [True, False])
def test_a_policy_that_does_not_fit_is_refused_at_once(library, compiled):
    model = model_of(library, still(library))
    if not compiled:
        model = library.Model(model.inputs, model.outputs)
    start = kernels(model)
    with pytest.raises(graphwd.PlanError, match="'name: typo' matches no trainable variable; there is 'hidden/kernel'"):
        graphwd.keras.attach(model, {"version": 1, "rules": [{"name": "typo", "weight_decay": 0.1}]})
    assert not {"fit", "make_train_function", "train_step", "save"} & set(vars(model))
    few = {"version": 1, "rules": [{"name": "*hidden/kernel", "weight_decay": 0.1}]}
    if compiled:
        with pytest.raises(graphwd.PlanError, match="policy: no rule matches 'hidden/bias', 'out/kernel', 'out/bias'"):
            graphwd.keras.attach(model, few)
    else:  # what is trained is said later
        graphwd.keras.attach(model, few)
    assert decays(model, start) == [0, 0]


def test_rules_are_shadowed_and_decays_meet(library, caplog):
    """What is allowed, and nearly always a mistake, is said when the policy is attached."""
    inputs = library.Input((6,))
    hidden = library.layers.Dense(5, name="hidden", kernel_regularizer="l2")(inputs)
    model = library.Model(inputs, library.layers.Dense(2, name="out", kernel_regularizer="l1")(hidden))
    rules = [{"regex": "hidden/kernel", "weight_decay": RATE}, {"weight_decay": 0}]
    graphwd.keras.attach(model, {"version": 1, "rules": [*rules, {"regex": "out", "weight_decay": RATE}]})
    assert caplog.messages == [
        "policy: rules[2]: the rule is shadowed: earlier rules decide all it matches ('out/kernel', 'out/bias')",
        "a regularizer of the layer and the policy's decay both count for 'hidden/kernel' (kernel_regularizer of the "
        "layer 'hidden'); take one of them away",
    ]


def test_a_refusal_comes_without_the_frames_of_keras(library):
    """Here the step decays already, which only its graph tells."""
    model = model_of(library, library.optimizers.AdamW(0.1, weight_decay=0.1))
    graphwd.keras.attach(model, POLICY)
    for train in (lambda: model.fit(INPUTS, TARGETS, **TRAINING), lambda: model.train_on_batch(INPUTS, TARGETS)):
        with pytest.raises(graphwd.PlanError, match="already decays") as error:
            train()
        files = [frame.path.name for frame in error.traceback]
        assert set(files) == {"keras_test.py", "keras.py"}
        assert error.value.__cause__ is None
        assert error.value.__suppress_context__
        assert "in user code" not in str(error.value)


def test_a_function_of_ones_own_over_train_step_decays(library):
    """And not twice under ``fit``; after it is detached it does not."""
    model = model_of(library, still(library))
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    batch = (tf.constant(INPUTS[:8]), tf.constant(TARGETS[:8]))

    @tf.function
    def own(batch):
        return model.train_step(batch)

    own(batch)
    own(batch)
    assert decays(model, start) == [2, 2]
    model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [10, 10]
    with pytest.raises(graphwd.StepError, match=r"train_step is called eagerly, .* call it in a tf\.function"):
        model.train_step(batch)
    graphwd.keras.detach(model)
    tf.function(model.train_step)(batch)
    assert decays(model, start) == [10, 10]


def test_that_a_saved_model_is_not_decayed_is_said_once(library, tmp_path, caplog):
    model = model_of(library, still(library))
    graphwd.keras.attach(model, POLICY)
    for _ in range(2):
        model.save(tmp_path / "model.keras")
    assert [message.partition(" attached to")[0] for message in caplog.messages] == ["the weight decay"]
    assert caplog.messages[0].endswith("attach it again to the one that is loaded")
    caplog.clear()
    graphwd.keras.detach(model)
    model.save(tmp_path / "model.keras")
    assert caplog.messages == []


def test_what_is_frozen_is_not_decayed(library):
    model = model_of(library, still(library))
    model.layers[1].trainable = False
    model.compile(still(library), "mse")
    graphwd.keras.attach(model, POLICY)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [0, 8]


def test_layers_by_the_names_and_paths_that_keras_shows():
    """Of a model that its first batch builds."""

    class Block(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.inner = keras.layers.Dense(6, use_bias=False, name="inner")

        def call(self, inputs):
            return self.inner(inputs)

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.encoder, self.decoder = Block(name="encoder"), Block(name="decoder")

        def call(self, inputs):
            return self.decoder(self.encoder(inputs))

    rules = [{"name": "net/encoder/*", "weight_decay": 0.5}, {"path": "decoder.inner.kernel", "weight_decay": 0.25}]
    model = Net()
    model.compile(still(keras), "mse")
    graphwd.keras.attach(model, {"version": 1, "rules": rules})
    model.train_on_batch(INPUTS[:4], INPUTS[:4])
    start = [weight.numpy() for weight in model.weights]
    model.train_on_batch(INPUTS[:4], INPUTS[:4])
    for weight, before, factor in zip(model.weights, start, (0.5, 0.75), strict=True):
        np.testing.assert_array_equal(weight.numpy(), before * np.float32(factor))


def test_other_backends_of_keras_are_refused():
    pytest.importorskip("jax", reason="the other backends of Keras need JAX or PyTorch, hundreds of megabytes each")
    program = """
import keras
import graphwd
model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
try:
    graphwd.keras.attach(model, {"version": 1, "rules": [{"weight_decay": 0.1}]})
except graphwd.StepError as error:
    print(error)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "KERAS_BACKEND": "numpy"}
    ran = subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True)
    assert ran.stdout == "Keras runs on numpy: there is no TensorFlow graph to rewrite\n"


SCHEDULE = {"schedule": "linear", "from": 0.0, "to": 0.5, "steps": 16}
CHANGING = {
    "version": 1,
    "rules": [{"regex": "kernel", "weight_decay": SCHEDULE, "tunable": "body"}, {"weight_decay": 0}],
}


def left(steps, factor=1.0):
    """What is left of a weight after some updates."""
    return np.prod([1 - factor * min(0.5 * t / 16, 0.5) for t in steps])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_schedule_and_a_rate_that_is_assigned(library, jit_compile):
    model = model_of(library, still(library), jit_compile=jit_compile)
    graphwd.keras.attach(model, CHANGING)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, **TRAINING)
    for now, then in zip(kernels(model), start, strict=True):
        np.testing.assert_allclose(now, then * left(range(8)), rtol=1e-5)
    graphwd.state(model).rates["body"].assign(0.5)
    model.fit(INPUTS, TARGETS, **TRAINING)
    for now, then in zip(kernels(model), start, strict=True):
        np.testing.assert_allclose(now, then * left(range(8)) * left(range(8, 16), 0.5), rtol=1e-5)


def test_a_schedule_counts_updates_and_not_accumulated_batches():
    model = model_of(keras, still(keras, gradient_accumulation_steps=4))
    decay = graphwd.keras.WeightDecay(CHANGING)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, callbacks=[decay], **TRAINING)
    model.fit(INPUTS, TARGETS, callbacks=[decay], **TRAINING)
    for now, then in zip(kernels(model), start, strict=True):
        np.testing.assert_allclose(now, then * left(range(4)), rtol=1e-5)
    assert decay.state.steps.numpy() == 4


def test_a_new_optimizer_begins_its_own_count_and_a_new_attachment_that_of_graphwd(library):
    """Keras 3 counts in the optimizer; under tf_keras, and with accumulation, graphwd counts."""
    model = model_of(library, still(library))
    graphwd.keras.attach(model, CHANGING)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, **TRAINING)
    model.compile(still(library), "mse")
    model.fit(INPUTS, TARGETS, **TRAINING)
    again = left(range(8)) if library is keras else left(range(8, 16))
    for now, then in zip(kernels(model), start, strict=True):
        np.testing.assert_allclose(now, then * left(range(8)) * again, rtol=1e-5)
    before = kernels(model)
    graphwd.keras.detach(model)
    graphwd.keras.attach(model, CHANGING)
    model.fit(INPUTS, TARGETS, **TRAINING)
    again = left(range(8, 16)) if library is keras else left(range(8))
    for now, then in zip(kernels(model), before, strict=True):
        np.testing.assert_allclose(now, then * again, rtol=1e-5)


def test_resumed_under_fit_it_goes_on_to_the_bit(library, tmp_path):
    def trained(epochs, restore=None):
        model = model_of(library, library.optimizers.Adam(0.01))
        decay = graphwd.keras.WeightDecay(CHANGING)
        decay.state.rates["body"].assign(0.75)
        if restore:
            model.train_on_batch(INPUTS[:8], TARGETS[:8])  # what makes the slot variables
        checkpoint = tf.train.Checkpoint(decay=decay.state, model=model, optimizer=model.optimizer)
        if restore:
            decay.state.rates["body"].assign(0.0)
            checkpoint.restore(restore)
        model.fit(INPUTS, TARGETS, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[decay])
        return model, checkpoint

    whole, _ = trained(4)
    _, checkpoint = trained(2)
    resumed, _ = trained(2, checkpoint.save(str(tmp_path / "checkpoint")))
    for mine, theirs in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_examples_of_the_documentation_run(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(
        f"version: 1\nrules:\n  - regex: kernel\n    weight_decay: {RATE}\n  - weight_decay: 0\n"
    )
    attached, by_callback, raising, watching, looping, resuming = blocks_in("training", "Keras: fit", "python")
    model = model_of(library, still(library))
    start = kernels(model)
    names = {"graphwd": graphwd, "tf": tf, "keras": library}
    names |= {"model": model, "inputs": INPUTS[:32], "targets": TARGETS[:32]}
    exec(attached, names)
    assert decays(model, start) == [2, 2]
    graphwd.keras.detach(model)
    exec(by_callback, names)
    assert decays(model, start) == [4, 4]
    exec(watching, names)
    assert decays(model, start) == [6, 6]
    assert {step for _, step in scalars(tmp_path / "logs")} == {0}
    w = tf.Variable(1.0, name="kernel")
    looped = {"step": tf.function(lambda x: w.assign_sub(still_gradient(w, x))), "data": [tf.constant(2.0)] * 3}
    exec(looping, names | looped)
    np.testing.assert_allclose(w.numpy(), (1 - RATE) ** 3)
    assert {step for _, step in scalars(tmp_path / "logs")} == {0, 1, 2}
    (tmp_path / "policy.yaml").write_text(
        "version: 1\nrules:\n  - regex: kernel\n    weight_decay: 0\n    tunable: body\n  - weight_decay: 0\n"
    )
    (tmp_path / "checkpoints").mkdir()
    exec(resuming, names)
    assert decays(model, start) == [6, 6]  # at a rate of 0
    exec(raising, names)
    before = kernels(model)
    model.fit(INPUTS, TARGETS, batch_size=28, epochs=2, verbose=0, callbacks=[names["Raise"]()])
    for now, then in zip(kernels(model), before, strict=True):
        np.testing.assert_allclose(now, then * 0.99 * 0.98, rtol=1e-6)
    path = tf.train.latest_checkpoint("checkpoints")
    assert {name for name, _ in tf.train.list_variables(path)} >= {"decay/rates/body/.ATTRIBUTES/VARIABLE_VALUE"}


# Only the optimizers of Keras 3 accumulate gradients.
@pytest.mark.parametrize(
    ("library", "accumulating"),
    [(keras, False), (keras, True), (tf_keras, False)],
    ids=["keras", "keras, accumulating", "tf_keras"],
)
def test_restored_after_attach_and_before_fit_it_goes_on_to_the_bit(library, accumulating, tmp_path):
    """What is made by fit alone is restored then: slot variables, graphwd's counter, first weights."""
    rules = [{"regex": "kernel", "weight_decay": SCHEDULE, "tunable": "body", "formula": "l2_sp"}, {"weight_decay": 0}]

    def trained(epochs, restore=None):
        options = {"gradient_accumulation_steps": 2} if accumulating else {}
        model = model_of(library, library.optimizers.Adam(0.01, **options))
        if restore:
            model.set_weights([weight + 1 for weight in model.get_weights()])
        graphwd.keras.attach(model, {"version": 1, "rules": rules})
        checkpoint = tf.train.Checkpoint(decay=graphwd.state(model), model=model, optimizer=model.optimizer)
        if restore:
            checkpoint.restore(restore)
        else:
            graphwd.state(model).rates["body"].assign(0.75)
        model.fit(INPUTS[:24], TARGETS[:24], batch_size=4, epochs=epochs, shuffle=False, verbose=0)
        return model, checkpoint

    whole, _ = trained(4)
    half, checkpoint = trained(2)
    resumed, _ = trained(2, checkpoint.save(str(tmp_path / "checkpoint")))
    for mine, theirs, other in zip(resumed.get_weights(), whole.get_weights(), half.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert not np.array_equal(mine, other)
    assert (graphwd.state(resumed).steps is None) != (accumulating or library is tf_keras)


ROLES = {"version": 1, "weight_decay": RATE, "exempt": ["bias"]}


def test_roles_need_no_names(library):
    model = model_of(library, still(library))
    start = kernels(model)
    biases = [layer.bias.numpy() for layer in model.layers[1:]]
    graphwd.keras.attach(model, ROLES)
    model.fit(INPUTS, TARGETS, **TRAINING)
    assert decays(model, start) == [8, 8]
    for layer, bias in zip(model.layers[1:], biases, strict=True):
        np.testing.assert_array_equal(layer.bias, bias)


def test_a_role_that_no_weight_has_is_told_at_once(library):
    rules = [{"role": "embedding", "weight_decay": RATE}, {"weight_decay": 0}]
    with pytest.raises(
        graphwd.PlanError, match="'role: embedding' matches no trainable variable; the roles here are kernel, bias"
    ):
        graphwd.keras.attach(model_of(library, still(library)), {"version": 1, "rules": rules})
    with pytest.raises(graphwd.PlanError, match=r"no rule matches '.*hidden/bias', '.*out/bias'"):
        graphwd.keras.attach(
            model_of(library, still(library)), {"version": 1, "rules": [{"role": "kernel", "weight_decay": RATE}]}
        )


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_a_plan_before_any_training_is_the_one_that_training_follows(library, optimizer):
    model = model_of(library, getattr(library.optimizers, optimizer)(0.25))
    policy = {"version": 1, "defaults": {"semantics": "adamw"}, "weight_decay": RATE, "exempt": ["bias"]}
    before = [weight.numpy() for weight in model.weights]
    plan = graphwd.keras.plan(model, policy)
    assert plan.problems == ()
    assert [(d.purpose.role.value, d.outcome.value) for d in plan.decisions] == [
        ("kernel", "decay"),
        ("bias", "exempt"),
    ] * 2
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    # With a batch it is the model's own step; the decisions are the same.
    told = graphwd.keras.plan(model, policy, data=(INPUTS[:8], TARGETS[:8]))
    assert [d.outcome for d in told.decisions] == [d.outcome for d in plan.decisions]
    graphwd.keras.attach(model, policy)
    assert str(graphwd.keras.plan(model, policy)) == str(plan)
    model.fit(INPUTS, TARGETS, **TRAINING)


def test_a_model_that_cannot_be_planned_says_why(library):
    policy = {"version": 1, "weight_decay": RATE}
    with pytest.raises(graphwd.StepError, match="has no optimizer: compile it first"):
        graphwd.keras.plan(library.Sequential([library.layers.Input((2,)), library.layers.Dense(1)]), policy)
    late = library.Sequential([library.layers.Dense(1)])
    late.compile(still(library), "mse")
    with pytest.raises(graphwd.StepError, match="is not built, so its weights are not known"):
        graphwd.keras.plan(late, policy)

    class Own(library.Model):
        def __init__(self):
            super().__init__()
            self.dense = library.layers.Dense(1)

        def call(self, inputs):
            return self.dense(inputs)

    own = Own()
    own.compile(still(library), "mse")
    own(INPUTS)
    with pytest.raises(graphwd.StepError, match=r"inputs of the model '.*' are not known.*data="):
        graphwd.keras.plan(own, policy)
    plan = graphwd.keras.plan(own, policy, data=(INPUTS, TARGETS[:, :1]))
    assert [d.outcome.value for d in plan.decisions] == ["decay", "decay"]


def test_a_plan_on_several_replicas(library):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = model_of(library, library.optimizers.SGD(0.25))
    plan = graphwd.keras.plan(model, ROLES)
    assert plan.problems == ()
    assert [d.outcome.value for d in plan.decisions] == ["decay", "exempt"] * 2


@pytest.mark.parametrize("steps_per_execution", [1, 2])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_fit_writes_what_decay_does(library, jit_compile, steps_per_execution, tmp_path):
    options = {"jit_compile": jit_compile, "steps_per_execution": steps_per_execution}
    model = model_of(library, still(library), **options)
    start = kernels(model)
    model.fit(INPUTS, TARGETS, callbacks=[graphwd.keras.WeightDecay(POLICY, log_dir=tmp_path, every=3)], **TRAINING)
    assert decays(model, start) == [8, 8]
    found = scalars(tmp_path)
    # Executions are counted: eight of one batch, or four of two. What is measured is the last batch of one.
    batches = {0: 1, 3: 4, 6: 7} if steps_per_execution == 1 else {0: 2, 3: 8}
    tags = ("decay_norm", "decay_rate", "decay_share", "weight_norm")
    names = ("hidden/kernel", "out/kernel")
    assert set(found) == {(f"{tag}/{name}", step) for tag in tags for name in names for step in batches}
    for name, kernel in zip(names, start, strict=True):
        for step, done in batches.items():
            before, after = (np.linalg.norm(kernel) * (1 - RATE) ** count for count in (done - 1, done))
            assert found[f"decay_rate/{name}", step] == RATE
            np.testing.assert_allclose(found[f"decay_share/{name}", step], 1, rtol=1e-5)
            np.testing.assert_allclose(found[f"decay_norm/{name}", step], RATE * before, rtol=1e-5)
            np.testing.assert_allclose(found[f"weight_norm/{name}", step], after, rtol=1e-5)


def test_summaries_change_no_bit_of_a_fit(library, tmp_path):
    trained = []
    for options in ({}, {"log_dir": tmp_path, "every": 2}):
        model = model_of(library, "adam")
        decay = graphwd.keras.WeightDecay(POLICY, **options)
        for _ in range(2):
            model.fit(INPUTS, TARGETS, callbacks=[decay], **TRAINING)
        trained.append(b"".join(weight.tobytes() for weight in model.get_weights()))
    assert trained[0] == trained[1]
    assert {step for _, step in scalars(tmp_path)} == set(range(0, 16, 2))


def test_summaries_change_nothing_where_a_fit_is_recompiled(library, tmp_path):
    class Unfreeze(library.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
            if epoch == 1:
                self.model.layers[1].trainable = True
                self.model.compile("sgd", "mse")
                self.model.make_train_function()

    trained = []
    for options in ({}, {"log_dir": tmp_path, "every": 3}):
        model = model_of(library, "sgd")
        model.layers[1].trainable = False
        model.compile("sgd", "mse")
        start = kernels(model)
        decay = graphwd.keras.WeightDecay(POLICY, **options)
        model.fit(INPUTS, TARGETS, callbacks=[decay, Unfreeze()], **TRAINING)
        assert not any(np.array_equal(*pair) for pair in zip(start, kernels(model), strict=True))
        trained.append(b"".join(weight.tobytes() for weight in model.get_weights()))
    assert trained[0] == trained[1]
    steps = {
        name: {step for each, step in scalars(tmp_path) if each.endswith(name)}
        for name in ("hidden/kernel", "out/kernel")
    }
    assert steps == {"hidden/kernel": {6}, "out/kernel": {0, 3, 6}}


def test_a_role_that_only_the_loss_shows():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)
            self.centers = self.add_weight(shape=(4, 3), name="centers")

        def call(self, inputs):
            return self.dense(inputs)

    model = Model()
    model(INPUTS)

    def center_loss(labels, outputs):
        return tf.reduce_sum(tf.square(outputs - tf.gather(model.centers, tf.cast(labels[:, 0], tf.int32))), -1)

    model.compile("sgd", center_loss)
    rules = [{"role": "embedding", "weight_decay": 0}, {"role": "kernel", "weight_decay": RATE}, {"weight_decay": 0}]
    graphwd.keras.attach(model, {"version": 1, "rules": rules})
    model.fit(INPUTS, np.zeros((28, 1)), verbose=0)


def test_summaries_of_an_attached_model(library, tmp_path):
    model = model_of(library, still(library))
    graphwd.keras.attach(model, POLICY, summaries=True)
    model.train_on_batch(INPUTS, TARGETS)
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        assert graphwd.write_summaries(model, step=3)
    assert scalars(tmp_path)["decay_rate/out/kernel", 3] == RATE


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "10"])
def test_batches_between_summaries_are_a_number(every):
    with pytest.raises(graphwd.UsageError, match="every is a number of batches, at least 1"):
        graphwd.keras.WeightDecay(POLICY, log_dir="logs", every=every)
