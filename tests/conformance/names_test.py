"""Variables by the names that their libraries show, by their paths, and by themselves: one and no other is decayed."""

from __future__ import annotations

import unicodedata

import keras
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tf_keras

import graphwd
from graphwd.checking.verify import verify_pairs
from graphwd.checking.verify_files import model_pairs
from graphwd.models.export import export, load_exported
from graphwd.models.saved_model import plan_saved_model
from graphwd.policy.rules import as_policy

RATE = 0.25
INPUTS = tf.constant([[1.0, -2.0, 0.5], [0.0, 1.0, 2.0]])


def policy_of(**selectors):
    return {"version": 1, "rules": [{**selectors, "weight_decay": RATE}, {"weight_decay": 0}]}


def step_of(forward, variables, optimizer=None, **options):
    """A step that updates variables by a gradient times 0, so that decay alone changes them."""

    @tf.function(input_signature=[tf.TensorSpec([2, 3])], **options)
    def step(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(forward(inputs)))
        gradients = tape.gradient(loss, variables)
        if optimizer is not None:
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return
        for gradient, variable in zip(gradients, variables, strict=True):
            variable.assign_sub(0.0 * gradient)

    return step


def decayed(variables, run):
    """For each variable, whether it was decayed, and by nothing else changed."""
    for variable in variables:
        variable.assign(tf.fill(variable.shape, 2.0))
    run()
    changes = []
    for variable in variables:
        value = variable.numpy()
        change = value.flat[0] / 2.0
        assert change in (1.0, 1 - RATE)
        np.testing.assert_array_equal(value, np.full(value.shape, 2.0 * change))
        changes.append(change < 1.0)
    return changes


class Block(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = keras.layers.Dense(3, use_bias=False, name="inner")

    def call(self, inputs):
        return self.inner(inputs)


class Net(keras.Model):
    """The commonest kind of model: its layers are built by its first call."""

    def __init__(self, **options):
        super().__init__(**options)
        self.encoder, self.decoder = Block(name="encoder"), Block(name="decoder")

    def call(self, inputs):
        return self.decoder(self.encoder(inputs))


def net_of():
    net = Net(name="net")
    net(INPUTS)
    return net


@pytest.fixture(scope="module")
def keras_step():
    net = net_of()
    return net, step_of(net, net.trainable_variables, keras.optimizers.SGD(0.0))


def names(step, policy=None):
    return [decision.variable.name for decision in graphwd.plan(step, policy or policy_of()).decisions]


def test_a_keras_variable_goes_by_its_path(keras_step):
    net, step = keras_step
    assert {weight.value.name for weight in net.weights} == {"net/kernel:0"}
    assert names(step) == ["net/encoder/inner/kernel", "net/decoder/inner/kernel"]
    assert names(step.get_concrete_function()) == names(step)
    policy = policy_of(name="net/encoder/*")
    weights = net.weights
    assert decayed(weights, lambda: graphwd.rewrite(step, policy)(INPUTS)) == [True, False]
    concrete = step.get_concrete_function()
    assert decayed(weights, lambda: graphwd.rewrite(concrete, policy)(INPUTS)) == [True, False]


def test_a_concrete_function_whose_function_is_gone_has_names_still():
    net = net_of()
    concrete = step_of(net, net.trainable_variables).get_concrete_function()
    assert names(concrete) == ["net/encoder/inner/kernel", "net/decoder/inner/kernel"]


def test_an_exported_step_goes_by_them(keras_step, tmp_path):
    net, step = keras_step
    plan = export(step, "step", as_policy(policy_of(name="net/decoder/*")), tmp_path / "decayed")
    assert [d.variable.name for d in plan.decisions] == ["net/encoder/inner/kernel", "net/decoder/inner/kernel"]
    loaded, variables = load_exported(tmp_path / "decayed", "step")
    assert decayed(variables[:2], lambda: loaded(INPUTS)) == [False, True]
    assert [weight.shape for weight in net.weights] == [variable.shape for variable in variables[:2]]


def test_what_tensorflow_calls_it_is_told(keras_step):
    problem = graphwd.plan(keras_step[1], policy_of(name="net/kernel")).problems[0]
    assert (
        "matches no trainable variable: 'net/kernel' is what TensorFlow calls 'net/encoder/inner/kernel', "
        "'net/decoder/inner/kernel', as Keras shows it"
    ) in problem


def test_slot_variables_are_keras_variables():
    """One that is trainable by oversight would be shown by Keras's path, too."""
    net = net_of()
    optimizer = keras.optimizers.SGD(0.0, momentum=0.5)
    optimizer.build(net.trainable_variables)
    momentum = optimizer.momentums[0]
    momentum.trainable = True
    step = step_of(net, net.trainable_variables, optimizer)
    assert momentum.path in names(step)


@pytest.mark.parametrize("kind", ["keras", "tf_keras", "sonnet"])
def test_two_networks_of_one_name(kind):
    """A network and its average: the table tells them apart, and so do path and identity."""
    if kind == "keras":
        net = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="out")], name="net")
        twin = keras.models.clone_model(net)
    elif kind == "tf_keras":
        net = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2, name="out")], name="net")
        twin = tf_keras.models.clone_model(net)
    else:
        net, twin = snt.Linear(2, name="out"), snt.Linear(2, name="out")
        net(INPUTS), twin(INPUTS)
    variables = [*net.trainable_variables, *twin.trainable_variables]
    step = step_of(lambda inputs: net(inputs) * twin(inputs), variables)
    plan = graphwd.plan(step, policy_of())
    labels = [variable["label"] for variable in plan.record()["variables"]]
    assert len(set(labels)) == 4
    assert len(set(names(step))) == 2
    assert all(label in plan.to_text(all=True, width=1000) for label in labels)
    mine = [variable is each for variable in variables for each in twin.trainable_variables[:1]]
    for selectors in (
        {"variables": [twin.trainable_variables[0]]},
        {"path": "*twin.*", "variables": [twin.trainable_variables[0]]},
    ):
        rewritten = graphwd.rewrite(step, policy_of(**selectors))
        assert decayed(variables, lambda rewritten=rewritten: rewritten(INPUTS)) == mine
    concrete = step.get_concrete_function()
    twice = graphwd.rewrite(concrete, policy_of(path="*twin.*"))
    assert decayed(variables, lambda: twice(INPUTS)) == [False, False, True, True]


def test_variables_without_a_path_are_numbered():
    variables = [tf.Variable(tf.ones([3, 3])) for _ in range(3)]

    def concrete():
        first, second, third = variables
        held = step_of(lambda inputs: inputs @ first @ second @ third, [first, second, third])
        return held.get_concrete_function()

    plan = graphwd.plan(concrete(), {"version": 1, "rules": [{"name": "x", "weight_decay": 0.1}]})
    assert "no rule matches 'Variable (1 of 3)', 'Variable (2 of 3)', 'Variable (3 of 3)'" in "\n".join(plan.problems)


class Trainer(tf.Module):
    """A step as a method: paths begin at the instance, as they do in a SavedModel of it."""

    def __init__(self):
        super().__init__()
        self.nets = {"body": [snt.Linear(3, with_bias=False)], "head": snt.Linear(3, with_bias=False)}
        self.nets["body"][0](INPUTS)
        self.nets["head"](INPUTS)
        self.alias = self.nets["head"]
        self.back = [self]

    @tf.function(input_signature=[tf.TensorSpec([2, 3])])
    def step(self, inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.alias(self.nets["body"][0](inputs)))
        for gradient, variable in zip(tape.gradient(loss, self.weights()), self.weights(), strict=True):
            variable.assign_sub(0.0 * gradient)

    def weights(self):
        return [self.nets["body"][0].w, self.nets["head"].w]


PATHS = [
    ("nets.body.0.w", [True, False]),
    ("nets.head.w", [False, True]),
    ("alias.w", [False, True]),
    ("*.alias.w", [False, True]),
    ("nets.*", [True, True]),
    ("nets.[bx]*.w", [True, False]),
    ("*.w", [True, True]),
]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    trainer = Trainer()
    folder = tmp_path_factory.mktemp("trainer") / "model"
    tf.saved_model.save(trainer, str(folder))
    return trainer, folder


@pytest.mark.parametrize(("path", "expected"), PATHS)
def test_any_path_will_do(trainer, path, expected):
    """In Python, and in the file that is saved of it."""
    module, folder = trainer
    rewritten = graphwd.rewrite(module.step, policy_of(path=path))
    assert decayed(module.weights(), lambda: rewritten(INPUTS)) == expected
    plan = _plan(folder, path)
    found = {decision.variable.path: bool(decision.injections) for decision in plan.decisions}
    assert [found["nets.body.0.w"], found["alias.w"]] == expected


def _plan(folder, path):
    return plan_saved_model(folder, policy_of(path=path))


@pytest.mark.parametrize("path", ["nets.x.w", "back.*", "w"])
def test_what_is_no_path(trainer, path):
    """Not one that comes back to where it began, either."""
    module, folder = trainer
    for plan in (graphwd.plan(module.step, policy_of(path=path)), _plan(folder, path)):
        assert f"the rule 'path: {path}' matches no trainable variable" in plan.problems[0]


def test_variables_are_not_found_in_files(trainer):
    module, folder = trainer
    plan = plan_saved_model(folder, policy_of(variables=module.weights()))
    assert "a model in a file has none of the variables of this process: select by path or name" in plan.problems[0]


def test_a_model_in_a_file_has_an_optimizer_that_lists_its_weights(tmp_path):
    """A rule for the optimizer's variables must not take in the weights."""
    net = net_of()
    module = tf.Module()
    module.net, module.optimizer = net, keras.optimizers.SGD(0.0)
    module.optimizer.build(net.trainable_variables)
    module.step = step_of(net, net.trainable_variables, module.optimizer)
    tf.saved_model.save(module, str(tmp_path / "model"))
    plan = _plan(tmp_path / "model", "optimizer.*")
    assert "matches no trainable variable" in plan.problems[0]
    found = {d.variable.path: d.rule.weight_decay for d in _plan(tmp_path / "model", "net.encoder.*").decisions}
    assert found == {"net.encoder.inner._kernel": RATE, "net.decoder.inner._kernel": 0}
    python = graphwd.rewrite(module.step, policy_of(path="forward.encoder.inner.kernel"))
    assert decayed(net.weights, lambda: python(INPUTS)) == [True, False]


@pytest.mark.parametrize("make", [keras.Variable, tf.Variable], ids=["keras", "tensorflow"])
def test_variables_by_identity_in_a_strategy(make):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        variables = [make(np.ones([3, 3], np.float32), name="w") for _ in range(2)]
    first, second = variables
    step = step_of(lambda inputs: inputs @ tf.convert_to_tensor(first) @ tf.convert_to_tensor(second), variables)
    rewritten = graphwd.rewrite(step, policy_of(variables=[second]))
    assert decayed(variables, lambda: rewritten(INPUTS)) == [False, True]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "policy: rules[0].variables: variables must list at least one variable"),
        (3, "policy: rules[0].variables: variables must be a list of variables, got a int; write [v]"),
        (["w"], "policy: rules[0].variables[0]: variables must list variables of TensorFlow or Keras, got a str"),
    ],
)
def test_malformed_variables(given, message):
    with pytest.raises(graphwd.PolicyError) as error:
        graphwd.Policy.from_dict(policy_of(variables=given))
    assert str(error.value) == message


def test_variables_in_a_file_of_yaml(tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\nrules:\n  - variables: [w]\n    weight_decay: 0.1\n")
    with pytest.raises(graphwd.PolicyError, match=r"policy\.yaml:3: variables lists the variables themselves, which"):
        graphwd.load_policy(file)


@pytest.mark.parametrize(
    ("name", "pattern", "matches"),
    [
        ("head/kernel", "*/head/kernel", True),
        ("net/head/kernel", "*/head/kernel", True),
        ("ahead/kernel", "*/head/kernel", False),
        ("kernel", "*/head/kernel", False),
        ("a_0_/w", "*/a_0_/w", True),
        (unicodedata.normalize("NFD", "netz/gewölbe"), unicodedata.normalize("NFC", "netz/gewölbe"), True),
        (unicodedata.normalize("NFC", "netz/gewölbe"), unicodedata.normalize("NFD", "*ö*"), True),
    ],
)
def test_names_and_patterns(name, pattern, matches):
    variable = tf.Variable(tf.ones([3, 3]), name=name)
    other = tf.Variable(tf.ones([3, 3]), name="other")
    step = step_of(lambda inputs: inputs @ variable @ other, [variable, other])
    if not matches:
        assert "matches no trainable variable" in graphwd.plan(step, policy_of(name=pattern)).problems[0]
        return
    rewritten = graphwd.rewrite(step, policy_of(name=pattern))
    assert decayed([variable, other], lambda: rewritten(INPUTS)) == [True, False]


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_what_is_not_trained_any_more(library):
    """Only its layer says so: the ``tf.Variable`` is as trainable as it was."""
    layers = [library.layers.Dense(3, use_bias=False, name=name) for name in ("base", "head")]
    net = library.Sequential([library.layers.Input((3,)), *layers])
    layers[0].trainable = False
    step = step_of(net, net.trainable_variables)
    rewritten = graphwd.rewrite(step, policy_of())
    assert [
        d.variable.name.rpartition("/")[0].rpartition("/")[2] for d in graphwd.plan(step, policy_of()).decisions
    ] == ["head"]
    assert decayed(net.weights, lambda: rewritten(INPUTS)) == [False, True]
    layers[0].trainable = True
    again = graphwd.rewrite(step_of(net, net.trainable_variables), policy_of())
    assert decayed(net.weights, lambda: again(INPUTS)) == [True, True]


class Exported(tf.Module):
    """A model to be saved, its variables in a list."""

    def __init__(self):
        super().__init__()
        self.state = [tf.Variable(tf.ones([2, 2]), name="kernel"), tf.Variable(tf.zeros([2]), name="bias")]

    @tf.function(input_signature=[tf.TensorSpec([4, 2], name="x")])
    def step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((x @ self.state[0] + self.state[1] - 1.0) ** 2)
        for variable, gradient in zip(self.state, tape.gradient(loss, self.state), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss


@pytest.mark.parametrize("name", [None, "step", "serving_default"])
def test_a_path_selects_in_a_saved_model_that_is_verified(tmp_path, name):
    tf.saved_model.save(Exported(), tmp_path / "model")
    by_name, by_path = (
        graphwd.Policy.from_dict({"version": 1, "rules": [{**select, "weight_decay": 0.1}, {"weight_decay": 0}]})
        for select in ({"name": "kernel"}, {"path": "state.0"})
    )
    graphwd.rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", by_name)
    pairs = model_pairs(str(tmp_path / "model"), name, tmp_path / "decayed")
    found = verify_pairs(pairs, by_path)
    found.check()
    assert {each.name for each in found.variables if each.decayed} == {"kernel"}
