"""TensorFlow 1 models: reference and resource variables, trained in a session, against decay by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import graphwd
from graphwd.checking.verify_files import model_pairs
from graphwd.errors import GraphError
from graphwd.models.saved_model import (
    describe_saved_model,
    plan_saved_model,
    read_model,
    rewrite_saved_model,
    strip,
)
from tests.helpers import v1_models
from tests.helpers.lockstep import assert_within_ulps

v1 = tf.compat.v1
RATE = 0.125

OPTIMIZERS = {
    "SGD": lambda: v1.train.GradientDescentOptimizer(0.1),
    "momentum": lambda: v1.train.MomentumOptimizer(0.1, 0.9),
    "Adam": lambda: v1.train.AdamOptimizer(0.01),
    "RMSprop": lambda: v1.train.RMSPropOptimizer(0.01),
}


def policy(semantics="decoupled", rate=RATE):
    rules = [{"name": "net/kernel", "weight_decay": rate, "semantics": semantics}, {"weight_decay": 0}]
    return {"version": 1, "rules": rules}


def check_decayed_by_hand(decayed, by_hand):
    for actual, target in zip(decayed.kernels, by_hand.kernels, strict=True):
        assert_within_ulps(actual, target.astype(np.float64), 4, "kernel")
    for actual, target in zip(decayed.biases, by_hand.biases, strict=True):
        assert_within_ulps(actual, target.astype(np.float64), 8, "bias")


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_saved_model_trains_with_decay(tmp_path, optimizer, resource):
    v1_models.save(tmp_path / "model", OPTIMIZERS[optimizer], resource=resource)
    plan = rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy())
    assert [d.variable.name for d in plan.decisions if d.injections] == ["net/kernel"]
    by_hand = v1_models.run(
        v1_models.from_saved_model(tmp_path / "model"), set_kernel=lambda kernel: kernel * np.float32(1 - RATE)
    )
    check_decayed_by_hand(v1_models.run(v1_models.from_saved_model(tmp_path / "decayed")), by_hand)


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
@pytest.mark.parametrize("semantics", ["tfa", "adamw", "l2"])
def test_every_meaning_in_a_session(tmp_path, semantics, resource):
    v1_models.save(tmp_path / "model", OPTIMIZERS["momentum"], resource=resource)
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy(semantics))
    decayed = v1_models.run(v1_models.from_saved_model(tmp_path / "decayed"))
    lr, mu = np.float64(np.float32(0.1)), np.float64(np.float32(0.9))
    w, b = v1_models.START.astype(np.float64), np.zeros(3)
    m, n = np.zeros_like(w), np.zeros_like(b)
    for batch, actual in zip(v1_models.batches(), decayed.kernels, strict=True):
        error = batch @ w + b - 1.0
        g, h = batch.T @ error * 2 / error.size, error.sum(axis=0) * 2 / error.size
        if semantics == "l2":
            g = g + RATE * w
        else:
            w = w * (1 - RATE * (lr if semantics == "adamw" else 1.0))
        m, n = mu * m + g, mu * n + h
        w, b = w - lr * m, b - lr * n
        np.testing.assert_allclose(actual, w, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
def test_an_update_in_a_branch_of_v1_control_flow(tmp_path, resource):
    v1_models.save(tmp_path / "model", OPTIMIZERS["SGD"], resource=resource, conditional=True)
    ops = {node.op for node in read_model(tmp_path / "model").meta_graphs[0].graph_def.node}
    assert {"Switch", "Merge"} <= ops
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy())
    plain = v1_models.run(v1_models.from_saved_model(tmp_path / "model"))
    decayed = v1_models.run(v1_models.from_saved_model(tmp_path / "decayed"))
    before = v1_models.START
    for batch, actual, undecayed in zip(v1_models.batches(), decayed.kernels, plain.kernels, strict=True):
        if batch.sum() <= 0:
            np.testing.assert_array_equal(actual, before)  # no update, no decay
        elif before is v1_models.START:
            assert_within_ulps(actual, undecayed.astype(np.float64) * (1 - RATE), 1)
        before = actual
    assert any(batch.sum() <= 0 for batch in v1_models.batches())


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
@pytest.mark.parametrize("semantics", ["adamw", "tfa", "l2"])
def test_a_learning_rate_in_a_variable(tmp_path, semantics, resource):
    """As with the same number in the graph, but for the rounding of 1 - rate, which then goes by the steps."""

    def momentum(learning_rate):
        return lambda: v1.train.MomentumOptimizer(learning_rate(), 0.9)

    def variable():
        return v1.get_variable("learning_rate", initializer=0.1, trainable=False, use_resource=resource)

    trained = []
    for kind, learning_rate in (("number", lambda: 0.1), ("variable", variable)):
        v1_models.save(tmp_path / kind, momentum(learning_rate), resource=resource)
        rewrite_saved_model(tmp_path / kind, tmp_path / f"decayed_{kind}", policy(semantics))
        trained.append(v1_models.run(v1_models.from_saved_model(tmp_path / f"decayed_{kind}")))
    for number, held in zip(*(each.kernels for each in trained), strict=True):
        assert np.abs(number - v1_models.START).max() > 0.01
        assert_within_ulps(held, number.astype(np.float64), 8, "kernel")


def test_verify_refuses_reference_variables(tmp_path):
    for name, resource in (("reference", False), ("resource", True)):
        v1_models.save(tmp_path / name, OPTIMIZERS["SGD"], resource=resource)
        rewrite_saved_model(tmp_path / name, tmp_path / f"decayed_{name}", policy())
    with pytest.raises(graphwd.StepError, match="reference variables of TensorFlow 1, such as 'net/kernel'"):
        model_pairs(str(tmp_path / "reference"), "train", tmp_path / "decayed_reference")
    assert len(model_pairs(str(tmp_path / "resource"), "train", tmp_path / "decayed_resource")) == 1


@pytest.mark.parametrize("counting", ["in a branch", "always"])
@pytest.mark.parametrize("semantics", ["adamw", "decoupled"])
def test_branches_of_v1_that_share_a_learning_rate(tmp_path, semantics, counting):
    """What is read in one branch, such as the counter that is counted up there, is not there in the other."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.disable_control_flow_v2()
        first, second = (v1.get_variable(name, initializer=[1.0, 2.0], use_resource=True) for name in ("a", "b"))
        rate = v1.get_variable("rate", initializer=0.25, use_resource=True, trainable=False)
        count = v1.get_variable("count", initializer=0, use_resource=True, trainable=False, dtype=tf.int32)
        chosen = v1.placeholder(tf.bool, [], "chosen")

        def update(w):
            move = w.assign_sub(rate * tf.gradients(w * 2.0, [w])[0], read_value=False)
            counted = [count.assign_add(1, read_value=False)] if w is first and counting == "in a branch" else []
            with tf.control_dependencies([move, *counted]):
                return tf.constant(0)

        always = [count.assign_add(1, read_value=False)] if counting == "always" else []
        updated = tf.cond(chosen, lambda: update(first), lambda: update(second))
        with tf.control_dependencies(always):
            done = tf.identity(updated)
        session.run(v1.global_variables_initializer())
        tensors = {"chosen": v1.saved_model.build_tensor_info(chosen)}
        results = {"done": v1.saved_model.build_tensor_info(done)}
        signature = v1.saved_model.build_signature_def(tensors, results, "train")
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        builder.add_meta_graph_and_variables(session, ["train"], {"train": signature})
        builder.save()
    rules = [{"weight_decay": 0.5, "semantics": semantics, "learning_rate": "rate"}]
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", {"version": 1, "rules": rules})
    nodes = read_model(tmp_path / "decayed").meta_graphs[0].graph_def.node
    assert any("graphwd/rounding" in node.name for node in nodes) == (semantics == "adamw" and counting == "always")
    with tf.Graph().as_default(), v1.Session() as session:
        v1.saved_model.load(session, ["train"], str(tmp_path / "decayed"))
        by_name = {variable.op.name: variable for variable in v1.global_variables()}
        expected = {"a": np.array([1.0, 2.0]), "b": np.array([1.0, 2.0])}
        for name in "abb":
            session.run(done.name, {"chosen:0": name == "a"})
            old = expected[name]
            expected[name] = old * (1 - 0.125) - 0.5 if semantics == "adamw" else (old - 0.5) * 0.5
            for each, value in expected.items():
                np.testing.assert_allclose(session.run(by_name[each]), value, rtol=1e-6)
        assert session.run(by_name["count"]) == (3 if counting == "always" else 1)


@pytest.mark.parametrize("trained", ["together", "apart"])
@pytest.mark.parametrize("schedule", [True, False], ids=["schedule", "rounding"])
def test_a_counter_of_another_train_op(tmp_path, schedule, trained):
    """A session runs what it is asked for: what counts up with one train op knows nothing of what the other updates."""
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("net", use_resource=True):
            weights = [v1.get_variable(name, initializer=tf.ones([4])) for name in ("uncounted", "counted")]
            learning_rate = v1.get_variable("learning_rate", initializer=0.5, trainable=False)
        counters = [None, v1.train.get_or_create_global_step()]
        optimizer = v1.train.GradientDescentOptimizer(learning_rate)
        train = [
            optimizer.minimize(tf.reduce_sum(weight), var_list=[weight], global_step=counter)
            for weight, counter in zip(weights, counters, strict=True)
        ]
        ops = [tf.group(*train)] * 2 if trained == "together" else train
        signatures = {}
        for weight, op in zip(weights, ops, strict=True):
            with tf.control_dependencies([op]):
                results = {"done": v1.saved_model.build_tensor_info(tf.identity(weight))}
            signatures[weight.op.name] = v1.saved_model.build_signature_def({}, results, "train")
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        builder.add_meta_graph_and_variables(session, ["train"], signatures)
        builder.save()
    rate = {"schedule": "linear", "from": 0.5, "to": 0, "steps": 4} if schedule else 0.5
    rules = {"version": 1, "rules": [{"weight_decay": rate, "semantics": "adamw"}]}
    plan = plan_saved_model(tmp_path / "model", rules)
    injections = {decision.variable.name: decision.injections[0] for decision in plan.decisions}
    by_counter = {
        name: next(injection.schedules).own is None if schedule else injection.rounding is not None
        for name, injection in injections.items()
    }
    assert by_counter == {"net/counted": True, "net/uncounted": trained == "together"}
    # A file gets no counter that the model does not have.
    assert bool(plan.problems) == (schedule and trained == "apart")


def test_who_asks_for_the_arithmetic_of_an_update_gets_no_decay(tmp_path):
    """A session runs what it is asked for, and a node of an update may be asked for by its name."""
    with tf.Graph().as_default(), v1.Session() as session:
        w = v1.get_variable("w", initializer=[4.0, 8.0], use_resource=True)
        update = tf.multiply(0.5, tf.gradients(tf.reduce_sum(2.0 * w), [w])[0], name="update")
        results = {"update": v1.saved_model.build_tensor_info(w.assign_sub(update, name="train"))}
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        signatures = {"train": v1.saved_model.build_signature_def({}, results, "train")}
        builder.add_meta_graph_and_variables(session, ["train"], signatures)
        builder.save()
    rules = {"version": 1, "rules": [{"weight_decay": 0.25, "order": "before"}]}
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", rules)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.saved_model.load(session, ["train"], str(tmp_path / "decayed"))
        assert session.run("update:0").tolist() == [1.0, 1.0]
        assert session.run("w/Read/ReadVariableOp:0").tolist() == [4.0, 8.0]
        session.run("train")
        assert session.run("w/Read/ReadVariableOp:0").tolist() == [2.0, 5.0]


def test_a_variable_that_is_there_twice_is_refused(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        v, w = (v1.get_variable(name, initializer=[4.0, 8.0], use_resource=True) for name in "vw")
        v1.train.GradientDescentOptimizer(0.5).minimize(tf.reduce_sum(v * w), name="train")
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        builder.add_meta_graph_and_variables(session, ["train"])
        builder.save()
    path = tmp_path / "model" / "saved_model.pb"
    model = SavedModel.FromString(path.read_bytes())
    nodes = model.meta_graphs[0].graph_def.node
    nodes.add().CopyFrom(next(node for node in nodes if node.name == "v"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="has two nodes named 'v'"):
        plan_saved_model(tmp_path / "model", {"version": 1, "weight_decay": 0.25})


def test_an_update_in_a_while_loop_is_refused(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        v1.disable_control_flow_v2()
        w = v1.get_variable("w", initializer=1.0, use_resource=True)
        x = v1.placeholder(tf.float32, [], "x")

        def body(i):
            gradient = tf.gradients(w * w * x, [w])[0]
            with tf.control_dependencies([w.assign_sub(0.1 * gradient)]):
                return i + 1

        v1.while_loop(lambda i: i < 3, body, [tf.constant(0)])
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        builder.add_meta_graph_and_variables(session, ["train"])
        builder.save()
    rules = {"version": 1, "rules": [{"weight_decay": 0.1}]}
    with pytest.raises(graphwd.GraphwdError, match=r"is updated in a while_loop of TensorFlow 1") as refused:
        rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", rules)
    plan = plan_saved_model(tmp_path / "model", rules)
    assert plan.problems == (str(refused.value),)
    assert [decision.outcome.value for decision in plan.decisions] == ["refused"]
    assert not (tmp_path / "decayed").exists()


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
@pytest.mark.parametrize("semantics", ["decoupled", "tfa", "l2"])
def test_stripping_gives_the_original_back(tmp_path, semantics, resource):
    v1_models.save(tmp_path / "model", OPTIMIZERS["Adam"], resource=resource)
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy(semantics))
    (decay,) = describe_saved_model(tmp_path / "decayed")
    assert (decay["variable"], decay["rate"]) == ("net/kernel", RATE)
    assert describe_saved_model(tmp_path / "model") == []
    with pytest.raises(graphwd.RewriteError, match="was rewritten by graphwd before"):
        rewrite_saved_model(tmp_path / "decayed", tmp_path / "twice", policy(semantics))
    assert strip(tmp_path / "decayed", tmp_path / "stripped") == 1
    original, stripped = (
        read_model(tmp_path / name).SerializeToString(deterministic=True) for name in ("model", "stripped")
    )
    assert original == stripped


def test_several_tagged_graphs(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        v1_models.build(OPTIMIZERS["SGD"], resource=True)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        builder.add_meta_graph_and_variables(session, ["train"])
        with tf.Graph().as_default():
            inputs = v1.placeholder(tf.float32, [None, 5], "inputs")
            tf.identity(inputs @ v1.get_variable("net/kernel", [5, 3], use_resource=True), "outputs")
            builder.add_meta_graph(["serve", "cpu"])
        builder.save()
    rewrite_saved_model(tmp_path / "model", tmp_path / "decayed", policy())
    before, after = (read_model(tmp_path / name).meta_graphs for name in ("model", "decayed"))
    (serving,) = (number for number, graph in enumerate(before) if "serve" in graph.meta_info_def.tags)
    assert before[serving] == after[serving]
    assert before[1 - serving] != after[1 - serving]
    with pytest.raises(graphwd.StepError, match="no graph with the tags 'nope'; there is 'train', '"):
        plan_saved_model(tmp_path / "model", policy(), ["nope"])


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
def test_a_meta_graph_with_its_checkpoint(tmp_path, resource):
    (tmp_path / "model").mkdir()
    v1_models.save_meta(tmp_path / "model" / "net", OPTIMIZERS["Adam"], resource=resource)
    (tmp_path / "model" / "other.index").write_bytes(b"of another checkpoint")
    plan = plan_saved_model(tmp_path / "model" / "net.meta", policy())
    assert [d.variable.name for d in plan.decisions if d.injections] == ["net/kernel"]
    rewrite_saved_model(tmp_path / "model" / "net.meta", tmp_path / "decayed", policy())
    assert sorted(path.name for path in (tmp_path / "decayed").iterdir()) == [
        "net.data-00000-of-00001",
        "net.index",
        "net.meta",
    ]
    by_hand = v1_models.run(
        v1_models.from_meta(tmp_path / "model" / "net"), set_kernel=lambda kernel: kernel * np.float32(1 - RATE)
    )
    check_decayed_by_hand(v1_models.run(v1_models.from_meta(tmp_path / "decayed" / "net")), by_hand)
    (decay,) = describe_saved_model(tmp_path / "decayed" / "net.meta")
    assert (decay["variable"], decay["rate"]) == ("net/kernel", RATE)
    assert strip(tmp_path / "decayed" / "net.meta", tmp_path / "stripped") == 1
    stripped, original = (
        MetaGraphDef.FromString((tmp_path / folder / "net.meta").read_bytes()) for folder in ("stripped", "model")
    )
    assert stripped == original
    assert (tmp_path / "stripped" / "net.index").read_bytes() == (tmp_path / "model" / "net.index").read_bytes()
    with pytest.raises(graphwd.StepError, match="holds the file that is read"):
        rewrite_saved_model(tmp_path / "model" / "net.meta", tmp_path / "model", policy(), overwrite=True)
    with pytest.raises(graphwd.StepError, match="holds one graph; name no function of it"):
        plan_saved_model(tmp_path / "model" / "net.meta", policy(), ["train"])
    (tmp_path / "model" / "net.meta").write_bytes(b"no proto")
    with pytest.raises(graphwd.StepError, match="does not parse as a MetaGraphDef"):
        plan_saved_model(tmp_path / "model" / "net.meta", policy())
