"""Which variable is meant, where several have one name: in steps of Keras 3, tf_keras, Sonnet and TensorFlow.

Each rule is judged by what training did: a step with a gradient of zero leaves a weight w at (1 - rate) * w, or at w.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import sonnet
import tensorflow as tf
import tf_keras

import graphwd
from graphwd.steps.read import variables_of

RATE = 0.125
ZEROS = tf.zeros([4, 3])  # no gradient for kernels, and none for biases where the loss is a product with them


class Block(keras.layers.Layer):
    """A layer of a layer, made when it is first called."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.inner = keras.layers.Dense(3, use_bias=False, name="inner")

    def call(self, inputs):
        return self.inner(inputs)


class Net(keras.Model):
    """A subclassed model: TensorFlow calls both of its weights ``net/kernel``."""

    def __init__(self) -> None:
        super().__init__(name="net")
        self.encoder, self.decoder = Block("encoder"), Block("decoder")

    def call(self, inputs):
        return self.decoder(self.encoder(inputs))


def built_by_a_call() -> Net:
    net = Net()
    net(ZEROS)
    assert [v.value.name for v in net.trainable_variables] == ["net/kernel:0"] * 2
    return net


def policy_of(*rules, **fields):
    return {"version": 1, "rules": [*rules, {"weight_decay": 0}], **fields}


def decaying(**selectors):
    return {**selectors, "weight_decay": RATE}


def training(variables, optimizer=None):
    """A step that updates variables by nothing."""

    @tf.function
    def step(factor):
        with tf.GradientTape() as tape:
            loss = tf.add_n([factor * tf.reduce_sum(tf.convert_to_tensor(v)) for v in variables])
        gradients = tape.gradient(
            loss, [getattr(v, "value", v) if isinstance(v, keras.Variable) else v for v in variables]
        )
        if optimizer is not None:
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        else:
            for variable, gradient in zip(variables, gradients, strict=True):
                variable.assign_sub(gradient)

    return step


def decayed(step, policy, variables):
    """Which of some variables a step decays: each is multiplied by 1 - RATE, or stays as it was, to the bit."""
    start = [v.numpy() for v in variables]
    graphwd.rewrite(step, policy)(tf.constant(0.0))
    return [_is_decayed(v.numpy(), then) for v, then in zip(variables, start, strict=True)]


def _is_decayed(now, then):
    assert np.all(then)
    if np.array_equal(now, then):
        return False
    np.testing.assert_array_equal(now, then * np.float32(1 - RATE))
    return True


def shown(step, policy, *args):
    """The names in the table of a plan."""
    return [v["label"] for v in graphwd.plan(step, policy, *(args or (tf.constant(0.0),))).record()["variables"]]


def test_a_step_that_holds_only_tensorflows_variables_goes_by_the_names_of_layers():
    """No path leads to the Keras variables that own them."""
    net = built_by_a_call()
    step = training([v.value for v in net.trainable_variables])
    policy = policy_of(decaying(name="*/encoder/*"))
    assert shown(step, policy) == ["net/encoder/inner/kernel", "net/decoder/inner/kernel"]
    assert decayed(step, policy, net.trainable_variables) == [True, False]


def test_slot_variables_and_learning_rates_go_by_the_names_that_keras_shows():
    net = built_by_a_call()
    optimizer = keras.optimizers.Adam(0.5, name="adam")
    optimizer.build(net.trainable_variables)
    step = training(net.trainable_variables, optimizer)
    graph = graphwd.plan(step, policy_of(decaying(rank=2)), tf.constant(0.0)).graph
    paths = {v.path for v in optimizer.variables} | {v.path for v in net.variables}
    assert {v.name for v in graph.variables} == paths
    adamw = decaying(name="*/encoder/*", semantics="adamw", learning_rate="adam/learning_rate")
    start = [v.numpy() for v in net.trainable_variables]
    graphwd.rewrite(step, policy_of(adamw))(tf.constant(0.0))
    np.testing.assert_allclose(net.trainable_variables[0].numpy(), start[0] * (1 - RATE * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(net.trainable_variables[1].numpy(), start[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(3, name="d")], name="s"),
        lambda: tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(3, name="d")], name="s"),
    ],
    ids=["keras", "tf_keras"],
)
def test_models_whose_names_are_equal_keep_them(make):
    model = make()
    name = "s/d" if isinstance(model, keras.Model) else "d"
    assert shown(training(model.trainable_variables), policy_of(decaying(rank=2))) == [f"{name}/kernel", f"{name}/bias"]


def network_and_average(library):
    def make():
        layers = library.layers
        return library.Sequential([layers.Input((3,)), layers.Dense(3, use_bias=False, name="d")], name="s")

    network = make()
    average = library.models.clone_model(network)
    average.set_weights([np.full([3, 3], 2.0, np.float32)])
    network.set_weights([np.full([3, 3], 2.0, np.float32)])

    @tf.function
    def step(factor):
        with tf.GradientTape() as tape:
            loss = factor * tf.reduce_sum(network(tf.ones([2, 3])))
        (gradient,) = tape.gradient(loss, network.trainable_variables)
        network.layers[0].kernel.assign_sub(gradient)
        average.layers[0].kernel.assign(average.layers[0].kernel * 0.5 + network.layers[0].kernel * 0.5)

    return step, network, average


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("by", ["variables", "tf.Variable", "path", "path of a method", "not trainable", "not_updated"])
def test_a_network_and_its_average_are_told_apart(library, by):
    step, network, average = network_and_average(library)
    kernel = network.layers[0].kernel
    policy = {
        "variables": policy_of(decaying(variables=[kernel])),
        "tf.Variable": policy_of(decaying(variables=[kernel.value if library is keras else kernel])),
        "path": policy_of({"path": "average.*", "weight_decay": 0}, decaying(name="*kernel")),
        "path of a method": policy_of(decaying(path="*.layers.0.kernel", rank=2), not_updated="leave"),
        "not trainable": policy_of(decaying(name="*kernel")),
        "not_updated": policy_of(decaying(name="*kernel"), not_updated="leave"),
    }[by]
    if by == "not trainable":
        average.trainable = False
    graphwd.rewrite(step, policy)(tf.constant(0.0))
    np.testing.assert_array_equal(network.get_weights()[0], np.full([3, 3], 2 * (1 - RATE), np.float32))
    np.testing.assert_array_equal(average.get_weights()[0], np.full([3, 3], 1 + 1 - RATE, np.float32))


def test_rows_and_messages_tell_variables_of_one_name_apart():
    step, network, _ = network_and_average(keras)
    policy = {"version": 1, "rules": [decaying()]}
    network_name, average_name = (f"s/d/kernel (path {each}.layers.0.kernel)" for each in ("network", "average"))
    assert shown(step, policy) == [network_name, average_name]
    with pytest.raises(graphwd.PlanError, match="average") as refused:
        graphwd.rewrite(step, policy)(tf.constant(0.0))
    assert f"'{average_name}'" in str(refused.value)
    assert network_name not in str(refused.value)
    assert (
        "(it shares its name with others, for which a rule by 'name' decides, too; a rule can select it alone by "
        "'path: PATH' or 'variables: [...]' in a policy made in Python)"
    ) in str(refused.value)
    assert kernel_of(network).path == kernel_of(network).value.name.removesuffix(":0")


def kernel_of(model):
    return model.layers[0].kernel


def test_every_valid_path_selects():
    module = tf.Module()
    module.first = tf.Variable([2.0], name="w")
    module.blocks = [{"kernel": module.first}, {"kernel": tf.Variable([2.0], name="w")}]

    class Trainer(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        @tf.function
        def step(self, factor):
            variables = [module.first, module.blocks[1]["kernel"]]
            with tf.GradientTape() as tape:
                loss = factor * tf.add_n(variables)
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(gradient)

    trainer = Trainer()
    both = [module.first, module.blocks[1]["kernel"]]
    for path, expected in (
        ("network.first", [True, False]),
        ("network.blocks.0.kernel", [True, False]),
        ("network.blocks.1.kernel", [False, True]),
        ("network.blocks.*", [True, True]),
        ("*.kernel", [True, True]),
        ("module.blocks.1.*", [False, True]),  # by the closure
    ):
        assert decayed(trainer.step, policy_of(decaying(path=path)), both) == expected, path
    with pytest.raises(graphwd.PlanError, match=r"'path: network\.frist' matches no .*'network\.first'"):
        graphwd.rewrite(trainer.step, policy_of(decaying(path="network.frist")))(tf.constant(0.0))


def test_paths_through_slots_and_objects_that_are_called():
    @dataclasses.dataclass(frozen=True, slots=True)
    class Pair:
        student: tf.Variable
        teacher: tf.Variable

    class Trainer:
        def __init__(self) -> None:
            self.pair = Pair(*(tf.Variable([2.0], name="w") for _ in range(2)))

        def __call__(self, factor):
            variables = [self.pair.student, self.pair.teacher]
            with tf.GradientTape() as tape:
                loss = factor * tf.add_n(variables)
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(gradient)

    trainer = Trainer()
    variables = [trainer.pair.student, trainer.pair.teacher]
    for step in (trainer, tf.function(trainer)):
        assert decayed(step, policy_of(decaying(path="pair.teacher")), variables) == [False, True]


def test_a_listed_variable_that_the_step_does_not_train_is_noted():
    variables = [tf.Variable([2.0], name=name) for name in ("first", "second", "third")]
    plan = graphwd.plan(
        training(variables[:2]), policy_of(decaying(variables=variables[1:], semantics="decoupled")), tf.constant(0.0)
    )
    assert plan.notes == ("policy: rules[0]: of the variables listed, 'third' is no trainable variable of this step",)
    assert [bool(decision.injections) for decision in plan.decisions] == [False, True]


def test_sonnet_layers_of_one_name():
    class Twice(sonnet.Module):
        def __init__(self) -> None:
            super().__init__(name="twice")
            self.left, self.right = (sonnet.Linear(3, with_bias=False, name="linear") for _ in range(2))

        def __call__(self, inputs):
            return self.right(self.left(inputs))

    network = Twice()
    network(ZEROS)
    optimizer = sonnet.optimizers.SGD(1.0)
    weights = [network.left.w, network.right.w]
    assert weights[0].name == weights[1].name

    @tf.function
    def step(factor):
        with tf.GradientTape() as tape:
            loss = factor * tf.reduce_sum(network(tf.ones([2, 3])))
        optimizer.apply(tape.gradient(loss, weights), weights)

    assert decayed(step, policy_of(decaying(path="network.right.w")), weights) == [False, True]
    assert decayed(step, policy_of(decaying(variables=[network.left.w])), weights) == [True, False]


def test_weights_of_mixed_precision_in_tf_keras():
    """Each is a wrapper of a variable."""
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = tf_keras.Sequential([tf_keras.layers.Dense(3, use_bias=False, name="d") for _ in range(1)])
        model(ZEROS)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    kernel = model.layers[0].kernel
    kernel.assign(tf.fill([3, 3], 2.0))
    step = training([kernel])
    for selectors in ({"variables": [kernel]}, {"path": "variables.0"}):
        assert decayed(step, policy_of(decaying(**selectors)), [kernel]) == [True]
    model.trainable = False

    @tf.function
    def frozen(factor):
        with tf.GradientTape() as tape:
            loss = factor * tf.cast(tf.reduce_sum(model(tf.ones([2, 3]))), tf.float32)
        kernel.assign_sub(tape.gradient(loss, kernel))

    assert model.layers
    assert "touches no trainable variable" in str(graphwd.plan(frozen, policy_of(decaying()), tf.constant(0.0)))


def test_the_copies_of_a_replica_are_one_variable():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        ours = [tf.Variable([2.0], name="w", aggregation=tf.VariableAggregation.SUM) for _ in range(2)]
        layer = keras.layers.Dense(1, use_bias=False, name="w")
        layer.build((None, 1))
    layer.kernel.assign([[2.0]])
    variables = [*ours, layer.kernel]

    @tf.function
    def step(factor):
        def replica():
            with tf.GradientTape() as tape:
                loss = factor * (ours[0][0] + ours[1][0] + layer.kernel.value[0, 0])
            listed = [*ours, layer.kernel.value]
            for variable, gradient in zip(listed, tape.gradient(loss, listed), strict=True):
                variable.assign_sub(gradient)

        strategy.run(replica)

    for i in (1, 2):
        assert decayed(step, policy_of(decaying(variables=[variables[i]])), variables) == [j == i for j in range(3)]


def test_a_model_in_a_file_has_paths_and_no_identities(tmp_path):
    net = built_by_a_call()
    module = tf.Module()
    module.net = net
    module.step = tf.function(
        training(net.trainable_variables).python_function, input_signature=[tf.TensorSpec([], tf.float32)]
    )
    tf.saved_model.save(module, str(tmp_path / "model"))
    source, target = tmp_path / "model", tmp_path / "target"
    with pytest.raises(graphwd.PlanError, match="a model in a file has none of the variables of this process"):
        graphwd.rewrite_saved_model(source, target, policy_of(decaying(variables=[net.encoder.inner.kernel])))
    assert not target.exists()
    graphwd.rewrite_saved_model(source, target, policy_of(decaying(path="net.decoder.inner.*kernel")))
    loaded = tf.saved_model.load(str(target))
    pairs = [(loaded.net.encoder.inner._kernel, False), (loaded.net.decoder.inner._kernel, True)]
    start = [v.numpy() for v, _ in pairs]
    loaded.step(tf.constant(0.0))
    assert [_is_decayed(v.numpy(), then) for (v, _), then in zip(pairs, start, strict=True)] == [e for _, e in pairs]


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_model_is_taken_for_no_step(library):
    model = library.Sequential([library.layers.Input((3,)), library.layers.Dense(3)])
    for take in (
        lambda: graphwd.rewrite(model, policy_of()),
        lambda: graphwd.with_weight_decay(policy_of())(model),
        lambda: graphwd.rewrite(tf.function(model), policy_of()),
        lambda: graphwd.plan(model, policy_of(), ZEROS),
    ):
        with pytest.raises(graphwd.StepError, match=r"got a Keras model; graphwd\.keras\.attach"):
            take()


def test_a_handle_that_the_step_takes_itself_is_that_of_a_variable_that_lives():
    for number in range(20):
        # Python gives the handle of one variable the identity of one that is gone.
        weight = tf.Variable(np.full(2, number, np.float32), name=f"w_{number}")
        concrete = adding_to(weight.handle)
        assert [each is weight for each in variables_of(concrete)] == [True]
        assert [each is weight for each in variables_of(concrete)] == [True]
        del weight, concrete


def adding_to(handle):
    def step():
        tf.raw_ops.AssignSubVariableOp(resource=handle, value=tf.ones(2))

    return tf.function(step, autograph=False).get_concrete_function()
