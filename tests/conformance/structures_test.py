"""Training steps of every shape, in lockstep: where the update hides, and what must not be taken for it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from graphwd.steps.read import variables_of
from tests.helpers import steps
from tests.helpers.lockstep import Case, assert_bit_equal, assert_within_ulps, check_adamw, check_lockstep, policy_for

RATE = 0.1
KERNELS = steps.KERAS_KERNELS


def keras_adam(**options):
    return keras.optimizers.Adam(0.01, **options)


def outcome_of(step, name, rates, *batch):
    plan = graphwd.plan(step, policy_for(rates), *batch)
    return next(decision.outcome.value for decision in plan.decisions if decision.variable.name == name)


# --- What Keras puts around the update --------------------------------------------------------------------------------


def test_gradient_accumulation_decays_when_it_updates():
    optimizer = keras_adam(gradient_accumulation_steps=2)
    step = steps.keras_step(optimizer)

    def expected(rate):
        # The count of runs, this one included, is even where this run updated.
        return lambda after: after if int(optimizer._iterations) % 2 else after * (1 - rate)

    for name, rate in KERNELS.items():
        check_lockstep(Case(step, steps.batches(6), {name: rate}), expected(rate))
    assert int(optimizer._iterations) == 12


def test_dynamic_loss_scaling_does_not_decay_in_a_run_that_overflowed():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    model = steps.keras_model()
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(model(inputs, training=True), targets)
            scaled = optimizer.scale_loss(loss)
        optimizer.apply_gradients(
            list(zip(tape.gradient(scaled, model.trainable_variables), model.trainable_variables, strict=True))
        )
        return loss

    rewritten = graphwd.rewrite(step, policy_for(KERNELS))
    (inputs, targets) = steps.batches(1)[0]
    kernel = model.trainable_variables[0]
    before = kernel.numpy()
    rewritten(inputs, targets * np.inf)
    assert_bit_equal(kernel.numpy(), before)
    check_lockstep(Case(step, steps.batches(), KERNELS))


@pytest.mark.parametrize("overwrite", [None, 2])
def test_averages_see_decayed_weights(overwrite):
    def make():
        model = steps.keras_model()
        optimizer = keras.optimizers.SGD(
            0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=overwrite, weight_decay=None
        )
        return model, optimizer, steps.keras_step(optimizer, model)

    (model, optimizer, step), (reference, plain, _) = make(), make()
    rewritten = graphwd.rewrite(step, policy_for(KERNELS))
    for inputs, targets in steps.batches(5):
        rewritten(inputs, targets)
        # By hand: the update, the decay, then what Keras does after an update.
        with tf.GradientTape() as tape:
            loss = steps.loss_of(reference(inputs, training=True), targets)
        gradients = tape.gradient(loss, reference.trainable_variables)
        for variable, gradient in zip(reference.trainable_variables, gradients, strict=True):
            variable.assign_sub(gradient * 0.1)
            variable.assign(variable * np.float32(1 - KERNELS.get(variable.path, 0)))
        plain._update_model_variables_moving_average(reference.trainable_variables)
        plain._iterations.assign_add(1)
        if overwrite and int(plain.iterations) % overwrite == 0:
            plain._overwrite_model_variables_with_average_value(reference.trainable_variables)
    for ours, theirs in zip(
        [*model.trainable_variables, *optimizer._model_variables_moving_average],
        [*reference.trainable_variables, *plain._model_variables_moving_average],
        strict=True,
    ):
        # The step is compiled as a whole, the reference op by op: the same sums in another order.
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_constraints_still_hold_after_the_decay():
    constraint = keras.constraints.UnitNorm(axis=0)
    model = steps.keras_model(kernel_constraint=constraint)
    step = steps.keras_step(keras.optimizers.SGD(0.5), model)
    plan = graphwd.plan(step, policy_for(KERNELS), *steps.batches()[0])
    kernel = next(decision for decision in plan.decisions if decision.variable.name == "net/hidden/kernel")
    assert len(kernel.writes.others) == 1
    rewritten = graphwd.rewrite(step, policy_for(KERNELS))
    for batch in steps.batches(3):
        rewritten(*batch)
        for layer in (model.get_layer("hidden"), model.get_layer("out")):
            np.testing.assert_allclose(np.linalg.norm(layer.kernel, axis=0), 1.0, rtol=1e-6)


@pytest.mark.parametrize("clip", [{"clipnorm": 0.01}, {"global_clipnorm": 0.01}, {"clipvalue": 0.01}], ids=str)
def test_clipping_does_not_clip_the_decay(clip):
    check_lockstep(Case(steps.keras_step(keras_adam(**clip)), steps.batches(), KERNELS))


def test_frozen_layers_are_left_alone():
    model = steps.keras_model()
    model.get_layer("hidden").trainable = False
    optimizer = keras_adam()
    step = steps.keras_step(optimizer, model)
    check_lockstep(Case(step, steps.batches(), {"net/out/kernel": RATE}))


def test_a_shared_layer_decays_once():
    keras.utils.set_random_seed(1)
    shared = keras.layers.Dense(steps.FEATURES, name="shared")
    inputs = keras.Input((steps.FEATURES,))
    model = keras.Model(inputs, keras.layers.Dense(steps.CLASSES, name="out")(shared(shared(inputs))))
    check_lockstep(Case(steps.keras_step(keras_adam(), model), steps.batches(), {"shared/kernel": RATE}))


def test_a_variable_without_a_gradient_is_not_decayed_and_the_plan_says_so():
    kernel, unused = tf.Variable(tf.ones([5, 3]), name="kernel"), tf.Variable(1.0, name="unused")
    optimizer = tf.keras.optimizers.SGD(0.1)
    optimizer.build([kernel, unused])

    @tf.function
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(inputs @ kernel, targets) + 0.0 * tf.stop_gradient(unused)
        pairs = zip(tape.gradient(loss, [kernel, unused]), [kernel, unused], strict=True)
        optimizer.apply_gradients([(gradient, w) for gradient, w in pairs if gradient is not None])
        return loss

    assert outcome_of(step, "unused", {"*": RATE}, *steps.batches()[0]) == "no update"
    check_lockstep(Case(step, steps.batches(), {"kernel": RATE}))


# --- Several updates, several optimizers ------------------------------------------------------------------------------


def sgd_loop(kernel, inputs, targets, count):
    for _ in range(count):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(inputs @ kernel, targets)
        kernel.assign_sub(0.1 * tape.gradient(loss, kernel))
    return loss


@pytest.mark.parametrize("updates", ["each", "last", "first"])
def test_a_double_step_decays_where_the_rule_says(updates):
    ours, reference = (tf.Variable(tf.ones([5, 3]), name="kernel") for _ in range(2))
    step = tf.function(lambda inputs, targets: sgd_loop(ours, inputs, targets, 2))
    with pytest.raises(graphwd.PlanError, match="'kernel': updated 2 times in one step"):
        graphwd.rewrite(step, policy_for({"kernel": RATE}))(*steps.batches()[0])
    rewritten = graphwd.rewrite(step, policy_for({"kernel": RATE}, updates=updates))
    single = tf.function(lambda inputs, targets: sgd_loop(reference, inputs, targets, 1))
    for batch in steps.batches(3):
        rewritten(*batch)
        for which in ("first", "last"):
            single(*batch)
            if updates in ("each", which):
                reference.assign(reference * np.float32(1 - RATE))
        assert_within_ulps(ours.numpy(), reference.numpy().astype(np.float64), 4)


def test_a_sharpness_aware_step_decays_after_the_real_update():
    model = steps.keras_model()
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    weights = [variable.value for variable in model.trainable_variables]

    @tf.function
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(model(inputs), targets)
        gradients = tape.gradient(loss, weights)
        ascents = [0.05 * gradient / (tf.linalg.global_norm(gradients) + 1e-12) for gradient in gradients]
        for weight, ascent in zip(weights, ascents, strict=True):
            weight.assign_add(ascent)
        with tf.GradientTape() as tape:
            sharp = steps.loss_of(model(inputs), targets)
        gradients = tape.gradient(sharp, weights)
        for weight, ascent in zip(weights, ascents, strict=True):
            weight.assign_sub(ascent)
        optimizer.apply_gradients(list(zip(gradients, model.trainable_variables, strict=True)))
        return loss

    with pytest.raises(graphwd.PlanError, match="'net/hidden/kernel': updated 2 times"):
        graphwd.rewrite(step, policy_for(KERNELS))(*steps.batches()[0])
    check_lockstep(Case(step, steps.batches(), KERNELS), updates="last")


def test_two_optimizers_of_a_gan():
    generator, critic = (tf.Variable(tf.fill([5, 5], 0.1 * k), name=name) for k, name in ((1, "g"), (2, "d")))
    optimizers = [keras_adam(), keras_adam()]
    for optimizer, variable in zip(optimizers, (generator, critic), strict=True):
        optimizer.build([variable])

    @tf.function
    def step(noise, real):
        with tf.GradientTape(persistent=True) as tape:
            fake = tf.tanh(noise @ generator)
            score = tf.reduce_mean(tf.square(fake @ critic)) - tf.reduce_mean(tf.square(real @ critic[:3]))
            loss = -tf.reduce_mean(tf.square(fake @ critic))
        optimizers[0].apply_gradients([(tape.gradient(loss, generator), generator)])
        optimizers[1].apply_gradients([(tape.gradient(score, critic), critic)])
        return loss, score

    check_lockstep(Case(step, steps.batches(), {"g": 0.01, "d": 0.2}))


@pytest.mark.parametrize("raw", [False, True], ids=["variable", "raw handle"])
def test_a_helper_called_once_for_each_variable(raw):
    weights = [tf.Variable(tf.fill([5, 3], 0.1), name=name) for name in ("a", "b", "c")]

    @tf.function
    def update(target, gradient):
        if raw:
            tf.raw_ops.AssignSubVariableOp(resource=target, value=0.1 * gradient)
        else:
            target.assign_sub(0.1 * gradient)

    @tf.function
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(inputs @ tf.add_n([w.read_value() for w in weights]), targets)
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            update(weight.handle if raw else weight, gradient)
        return loss

    check_lockstep(Case(step, steps.batches(), {"a": 0.1, "c": 0.2}))


# --- Where the data comes from ----------------------------------------------------------------------------------------


def test_data_as_constants():
    kernel = tf.Variable(tf.ones([5, 3]), name="kernel")
    inputs, targets = steps.batches(1)[0]
    step = tf.function(lambda: sgd_loop(kernel, inputs, targets, 1))
    check_lockstep(Case(step, [()] * 3, {"kernel": RATE}))


def test_an_iterator_as_argument_and_captured():
    kernel = tf.Variable(tf.ones([5, 3]), name="kernel")
    dataset = tf.data.Dataset.from_tensors(steps.batches(1)[0]).repeat()
    iterator = iter(dataset)

    @tf.function
    def step(source):
        sgd_loop(kernel, *next(source), 1)
        return sgd_loop(kernel, *next(iterator), 1)

    check_lockstep(Case(step, [(iter(dataset),)] * 3, {"kernel": RATE}), lambda after: after * 0.9, updates="last")


def kernel_and_twin():
    return (tf.Variable(tf.ones([5, 3]), name="kernel") for _ in range(2))


def test_a_loop_over_a_captured_dataset():
    ours, reference = kernel_and_twin()
    batches = steps.batches(3)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(tf.TensorSpec([6, 5]), tf.TensorSpec([6, 3])),
    )

    @tf.function
    def step():
        for inputs, targets in dataset:
            sgd_loop(ours, inputs, targets, 1)

    rewritten = graphwd.rewrite(step, policy_for({"kernel": RATE}))
    for _ in range(3):
        rewritten()
        for batch in batches:
            sgd_loop(reference, *batch, 1)
            reference.assign(reference * np.float32(1 - RATE))
    np.testing.assert_allclose(ours, reference, rtol=1e-5)


def test_a_while_loop_over_an_iterator():
    ours, reference = kernel_and_twin()
    batches = steps.batches(3)
    dataset = tf.data.Dataset.from_tensor_slices(tuple(map(tf.stack, zip(*batches, strict=True)))).repeat()
    iterator = iter(dataset)

    @tf.function
    def step(source):
        for _ in tf.range(3):
            sgd_loop(ours, *next(source), 1)

    rewritten = graphwd.rewrite(step, policy_for({"kernel": RATE}))
    for _ in range(3):
        rewritten(iterator)
        for batch in batches:
            sgd_loop(reference, *batch, 1)
            reference.assign(reference * np.float32(1 - RATE))
    np.testing.assert_allclose(ours, reference, rtol=1e-5)


# --- Nesting ----------------------------------------------------------------------------------------------------------


def test_three_functions_deep():
    kernel = tf.Variable(tf.ones([5, 3]), name="kernel")
    inner = tf.function(lambda inputs, targets: sgd_loop(kernel, inputs, targets, 1))
    middle = tf.function(lambda inputs, targets: inner(inputs, targets) + 0.0)
    step = tf.function(lambda inputs, targets: middle(inputs, targets) * 1.0)
    check_lockstep(Case(step, steps.batches(), {"kernel": RATE}))


def test_a_loop_in_a_branch_in_a_call():
    kernel = tf.Variable(tf.ones([5, 3]), name="kernel")

    @tf.function
    def inner(inputs, targets):
        total = tf.constant(0.0)
        if tf.reduce_sum(inputs) < 1e9:
            for _ in tf.range(1):
                total += sgd_loop(kernel, inputs, targets, 1)
        return total

    step = tf.function(lambda inputs, targets: inner(inputs, targets))
    plan = graphwd.plan(step, policy_for({"kernel": RATE}), *steps.batches()[0])
    (injection,) = plan.injections
    assert [frame.op for frame in injection.site.path] == ["StatefulPartitionedCall", "If", "While"]
    check_lockstep(Case(step, steps.batches(), {"kernel": RATE}))


@pytest.mark.parametrize("where", ["step", "inside"])
def test_jit_compiled(where):
    kernel = tf.Variable(tf.ones([5, 3]), name="kernel")
    inner = tf.function(lambda inputs, targets: sgd_loop(kernel, inputs, targets, 1), jit_compile=True)
    step = inner if where == "step" else tf.function(lambda inputs, targets: inner(inputs, targets))
    check_lockstep(Case(step, steps.batches(), {"kernel": RATE}))


def test_jit_compiled_keras_optimizer():
    check_lockstep(Case(steps.keras_step(keras_adam(), jit_compile=True), steps.batches(), KERNELS))


# --- Embeddings -------------------------------------------------------------------------------------------------------

ROWS = [tf.constant([1, 3, 1]), tf.constant([0, 0, 0]), tf.constant([2, 4, 5])]


def embedding_step(apply, dense):
    table = tf.Variable(tf.random.stateless_normal([6, 2], [1, 2]), name="table")

    @tf.function
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(table, rows) - 1.0))
        gradient = tape.gradient(loss, table)
        apply(tf.convert_to_tensor(gradient) if dense else gradient, table)
        return loss

    # As optimizers make their slot variables on the first call.
    apply(tf.zeros_like(table), table)
    return table, step


OPTIMIZERS = {
    "keras SGD": lambda: keras.optimizers.SGD(0.1),
    "keras SGD nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "keras Adam": lambda: keras.optimizers.Adam(0.1),
    "keras Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "tf_keras SGD": lambda: tf_keras.optimizers.SGD(0.1),
    "tf_keras SGD nesterov": lambda: tf_keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "tf_keras Adam": lambda: tf_keras.optimizers.Adam(0.1),
    "legacy SGD nesterov": lambda: tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9, nesterov=True),
    "legacy Adam": lambda: tf_keras.optimizers.legacy.Adam(0.1),
    "legacy Adagrad": lambda: tf_keras.optimizers.legacy.Adagrad(0.1),
    "v1 Adam": lambda: tf.compat.v1.train.AdamOptimizer(0.1),
    "v1 Momentum": lambda: tf.compat.v1.train.MomentumOptimizer(0.1, 0.9),
}


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "slices"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_embeddings(name, dense):
    optimizer = OPTIMIZERS[name]()
    table, step = embedding_step(lambda gradient, w: optimizer.apply_gradients([(gradient, w)]), dense)
    concrete = step.get_concrete_function(ROWS[0])
    rewritten = graphwd.rewrite(concrete, policy_for({"table": RATE}))
    (update,) = graphwd.plan(concrete, policy_for({"table": RATE})).decisions[0].writes.updates
    sparse = update.writes[-1].op.rows is not None
    assert not (dense and sparse)
    state = variables_of(concrete)
    for rows in ROWS:
        before = [variable.numpy() for variable in state]
        loss = concrete(rows)
        plain = [variable.numpy() for variable in state]
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        assert_bit_equal(rewritten(rows), loss)
        for variable, undecayed in zip(state, plain, strict=True):
            if variable is not table:
                assert_bit_equal(variable.numpy(), undecayed)
                continue
            factors = np.full([6, 1], 1 - RATE)
            if sparse:
                factors[[row for row in range(6) if row not in rows.numpy()]] = 1
            assert_within_ulps(variable.numpy(), undecayed.astype(np.float64) * factors, 1)


# --- Gradients by hand ------------------------------------------------------------------------------------------------


@tf.custom_gradient
def binarized(latent):
    """The sign, with the clipped straight-through gradient of a binary network."""

    def gradient(upstream):
        return tf.where(tf.abs(latent) <= 1.0, upstream, tf.zeros_like(upstream))

    return tf.sign(latent), gradient


def binary_step(optimizer):
    weight = keras.Variable(np.array([0.5, -0.25, 1.5], np.float32), name="latent")
    optimizer.build([weight])

    @tf.function
    def step(scale):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(binarized(weight) * scale)
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
        return loss

    return step


BINARY_BATCHES = [(tf.constant([0.5, 0.25, -1.0]) * scale,) for scale in (1.0, -2.0, 3.0)]


@pytest.mark.parametrize(
    "optimizer", [lambda: keras.optimizers.SGD(0.1, momentum=0.9), keras_adam], ids=["SGD", "Adam"]
)
def test_the_gradient_of_a_custom_gradient_is_not_taken_for_the_optimizer(optimizer):
    """It reads the weight outside of any gradient scope: a decay in it would be bent."""
    step = binary_step(optimizer())
    with pytest.raises(graphwd.PlanError, match=r"'Less.*made of the weight as the forward pass read it"):
        graphwd.rewrite(step.get_concrete_function(*BINARY_BATCHES[0]), policy_for({"latent": RATE}, semantics="l2"))


def test_decay_before_a_custom_gradient():
    """Nothing is read after the decay, whatever it is read for."""
    check_adamw(Case(binary_step(keras.optimizers.SGD(0.5)), BINARY_BATCHES, {"latent": RATE}), 0.5)


def test_decay_after_a_custom_gradient():
    check_lockstep(Case(binary_step(keras_adam()), BINARY_BATCHES, {"latent": RATE}))


def test_coupled_decay_of_a_custom_gradient_that_an_apply_op_takes():
    weight = tf.Variable([0.5, -0.25, 1.5], name="latent")
    optimizer = tf_keras.optimizers.legacy.SGD(0.5)

    @tf.function
    def step(scale):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(binarized(weight) * scale)
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])

    scale = tf.constant([0.5, 0.25, -1.0])
    graphwd.rewrite(step.get_concrete_function(scale), policy_for({"latent": 0.25}, semantics="l2"))(scale)
    # The gradient of the element above 1 is cut off, its decay is not.
    np.testing.assert_array_equal(
        weight.numpy(), [0.5 - 0.5 * (0.5 + 0.125), -0.25 - 0.5 * (0.25 - 0.0625), 1.5 * 0.875]
    )


def test_an_update_that_shares_the_read_of_the_forward_pass():
    """What the gradient is merely subtracted from is told from a custom gradient."""
    weight = tf.Variable([0.5, -0.25, 1.5], name="latent")

    @tf.function
    def step(scale):
        value = weight.read_value()
        with tf.GradientTape() as tape:
            tape.watch(value)
            loss = tf.reduce_sum(tf.square(value) * scale)
        weight.assign(value - 0.5 * tape.gradient(loss, value))

    scale = tf.constant([0.5, 0.25, -1.0])
    graphwd.rewrite(step.get_concrete_function(scale), policy_for({"latent": 0.25}, semantics="tfa"))(scale)
    np.testing.assert_array_equal(
        weight.numpy(), np.float32([0.5, -0.25, 1.5]) * (0.75 - np.float32([0.5, 0.25, -1.0]))
    )


class OwnAdam:
    """Adam by hand, as TensorFlow's guide to optimizers writes it."""

    learning_rate = 0.125

    def __init__(self) -> None:
        self.slots = [tf.Variable(tf.zeros(2, tf.float64), trainable=False) for _ in range(2)]

    def apply(self, gradient, weight, step):
        m, v = self.slots
        m.assign(0.875 * m + (1 - 0.875) * gradient)
        v.assign(0.75 * v + (1 - 0.75) * gradient**2)
        weight.assign_sub(0.125 * (m / (1 - 0.875**step)) / (tf.sqrt(v / (1 - 0.75**step)) + 0.5))

    @staticmethod
    def by_hand(slots, gradient, step):
        slots[0] = 0.875 * slots[0] + 0.125 * gradient
        slots[1] = 0.75 * slots[1] + 0.25 * gradient**2
        return 0.125 * slots[0] / (1 - 0.875**step) / (np.sqrt(slots[1] / (1 - 0.75**step)) + 0.5)


class OwnMomentum(OwnAdam):
    """A velocity that holds the learning rate."""

    learning_rate = 0.5

    def apply(self, gradient, weight, step):
        del step
        self.slots[0].assign(0.875 * self.slots[0] + 0.5 * gradient)
        weight.assign_sub(self.slots[0])

    @staticmethod
    def by_hand(slots, gradient, step):
        del step
        slots[0] = 0.875 * slots[0] + 0.5 * gradient
        return slots[0]


@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "adamw", "l2"])
@pytest.mark.parametrize("kind", [OwnAdam, OwnMomentum])
def test_several_updates_of_one_body_each_with_what_the_slots_have_of_the_last(kind, semantics):
    weight, optimizer = tf.Variable([1.0, -2.0], name="w", dtype=tf.float64), kind()

    @tf.function(autograph=False)
    def step():
        for number in (1, 2, 3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((weight - 0.5) ** 2)
            optimizer.apply(tape.gradient(loss, weight), weight, number)

    rule = {"name": "w", "weight_decay": 0.25, "semantics": semantics, "updates": "each"}
    rewritten = graphwd.rewrite(step.get_concrete_function(), {"version": 1, "rules": [rule]})
    w, slots = np.array([1.0, -2.0]), [np.zeros(2), np.zeros(2)]
    for _ in range(2):
        rewritten()
        for number in (1, 2, 3):
            gradient = 2 * (w - 0.5) + (0.25 * w if semantics == "l2" else 0)
            former, update = w, kind.by_hand(slots, gradient, number)
            w = former - update
            w = (
                w
                - {"decoupled": 0.25 * w, "tfa": 0.25 * former, "adamw": 0.25 * kind.learning_rate * former, "l2": 0}[
                    semantics
                ]
            )
    np.testing.assert_allclose(weight.numpy(), w, rtol=1e-12)


def test_a_learning_rate_of_each_update_by_one_pattern():
    weight = tf.Variable([1.0, -2.0], name="w", dtype=tf.float64)

    @tf.function(autograph=False)
    def step():
        for rate in (0.125, 0.5):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((weight - 0.5) ** 2)
            weight.assign_sub(tf.constant(rate, tf.float64, name="rate") * tape.gradient(loss, weight))

    rule = {"name": "w", "weight_decay": 0.25, "semantics": "adamw", "updates": "each", "learning_rate": "rate*"}
    graphwd.rewrite(step.get_concrete_function(), {"version": 1, "rules": [rule]})()
    w = np.array([1.0, -2.0])
    for rate in (0.125, 0.5):
        w = w - rate * 2 * (w - 0.5) - 0.25 * rate * w
    np.testing.assert_allclose(weight.numpy(), w, rtol=1e-12)
