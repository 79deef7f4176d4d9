"""SavedModels rewritten as files: what stays equal, what trains, what is refused; models of real libraries."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tf_keras
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef
from tensorflow.python.saved_model.fingerprinting import Fingerprint
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

from graphwd.cli.main import main
from graphwd.errors import PlanError, RewriteError, StepError
from graphwd.models.saved_model import describe_saved_model, plan_saved_model, rewrite_saved_model, strip
from tests.helpers import steps
from tests.helpers.lockstep import assert_bit_equal, policy_for
from tests.helpers.saved_models import (
    BATCH,
    WAYS,
    InSession,
    Loaded,
    Plain,
    Trainable,
    arguments,
    check_trains,
    deterministic,
    graph_of,
    library,
    read,
    save,
    save_plain,
    snapshot,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # exporting makes TensorFlow and Keras warn of their own plans

RATES = {"kernel": 0.01}
UNKNOWN = b"\xfa\xff\x03\x03new"  # field 8191, three bytes


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_plain(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def decayed(plain, tmp_path_factory):
    target = tmp_path_factory.mktemp("decayed") / "model"
    rewrite_saved_model(plain, target, policy_for(RATES))
    return target


def fingerprint(folder: Path) -> str:
    return str(tf.saved_model.experimental.read_fingerprint(str(folder)))


def fingerprint_anew(folder: Path) -> str:
    """The fingerprint that TensorFlow computes of a folder."""
    return str(Fingerprint.from_proto(FingerprintDef.FromString(fingerprinting.CreateFingerprintDef(str(folder)))))


# What stays equal


def add_unknown_fields(folder: Path) -> None:
    """Adds a field that no TensorFlow knows yet to one message of each kind that a rewrite goes through."""
    model = read(folder)
    meta_graph = graph_of(model)
    graph = meta_graph.graph_def
    objects = meta_graph.object_graph_def
    messages: list[Any] = [model, meta_graph, meta_graph.meta_info_def, graph, graph.library, graph.versions, objects]
    for function in graph.library.function:
        messages += [function, function.signature, *function.signature.input_arg, *function.node_def]
        messages += [value for node in function.node_def for value in node.attr.values()]
    messages += [*graph.node, *objects.nodes, *objects.concrete_functions.values(), meta_graph.saver_def]
    messages += meta_graph.signature_def.values()
    for message in messages:
        message.MergeFromString(UNKNOWN)
    (folder / "saved_model.pb").write_bytes(deterministic(model))


@pytest.mark.parametrize("functions", [None, ["step"], ["fine_tune"], ["step", "fine_tune"]], ids=str)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"semantics": "tfa", "learning_rate": "mul_1/x"},
        {"semantics": "l2", "learning_rate": "mul_1/x"},
        {"semantics": "cuda-convnet", "learning_rate": "mul_1/x"},
        {"semantics": "adamw", "learning_rate": "mul_1/x"},
    ],
    ids=str,
)
def test_stripping_gives_the_original_back(plain, tmp_path, fields, functions):
    source = tmp_path / "model"
    subprocess.run(["cp", "-r", str(plain), str(source)], check=True)
    add_unknown_fields(source)
    before = (source / "saved_model.pb").read_bytes()
    plan = rewrite_saved_model(source, tmp_path / "decayed", policy_for(RATES, **fields), functions)
    assert plan.injections
    changed = (tmp_path / "decayed" / "saved_model.pb").read_bytes()
    assert changed != before
    assert changed.count(UNKNOWN) >= before.count(UNKNOWN)
    count = strip(tmp_path / "decayed", tmp_path / "back")
    assert count > 0
    assert (tmp_path / "back" / "saved_model.pb").read_bytes() == before
    assert fingerprint(tmp_path / "back") == fingerprint_anew(tmp_path / "back")


def test_all_but_the_steps_stays_equal(plain, decayed):
    before, after = graph_of(read(plain)), graph_of(read(decayed))
    old, new = library(read(plain)), library(read(decayed))
    kept = old.keys() & new.keys()
    # The two steps, their two signatures' two functions each, and the two traces of the update.
    lost = {name.rpartition("_")[0].removeprefix("__inference_") for name in old.keys() - kept}
    assert lost == {"step", "fine_tune", "_update", "call", "signature_wrapper_call"}
    assert {name.partition("__graphwd")[0] for name in new.keys() - kept} == old.keys() - kept
    assert any("save" in name for name in kept)
    assert any("restore" in name for name in kept)
    assert any("predict" in name for name in kept)
    for name in kept:
        assert deterministic(old[name]) == deterministic(new[name])
    callers = [pair for pair in zip(before.graph_def.node, after.graph_def.node, strict=True) if pair[0] != pair[1]]
    assert len(callers) == 2  # one for each signature that trains
    assert {node.op for node, _ in callers} == {"StatefulPartitionedCall"}
    assert before.signature_def == after.signature_def
    assert deterministic(before.saver_def) == deterministic(after.saver_def)
    assert before.collection_def == after.collection_def
    nodes = zip(before.object_graph_def.nodes, after.object_graph_def.nodes, strict=True)
    kinds = [a.WhichOneof("kind") for a, b in nodes if deterministic(a) != deterministic(b)]
    assert sorted(kinds) == ["bare_concrete_function"] * 4 + ["function"] * 2  # `_update` itself was not asked to train


@pytest.mark.parametrize("policy", [policy_for({}), policy_for({"kernel": 0.0})], ids=["no rule", "rate 0"])
def test_a_policy_that_decays_nothing_changes_nothing(plain, tmp_path, policy):
    rewrite_saved_model(plain, tmp_path / "out", policy)
    assert (tmp_path / "out" / "saved_model.pb").read_bytes() == (plain / "saved_model.pb").read_bytes()
    assert {n: s.content for n, s in snapshot(tmp_path / "out").items()} == {
        n: s.content for n, s in snapshot(plain).items()
    }


def test_the_source_and_all_other_files_stay_as_they_are(plain, tmp_path):
    before = snapshot(plain)
    rewrite_saved_model(plain, tmp_path / "out", policy_for(RATES))
    assert snapshot(plain) == before
    others = {"saved_model.pb", "fingerprint.pb"}
    after = snapshot(tmp_path / "out")
    assert after.keys() == before.keys()
    assert all(after[n][:2] == before[n][:2] for n in after.keys() - others)
    assert all(after[n].content != before[n].content for n in others)


def test_the_fingerprint_is_tensorflows_own(plain, decayed):
    # More than once: where two functions end in one number, TensorFlow hashes now this one, now that.
    assert {fingerprint_anew(decayed) for _ in range(20)} == {fingerprint(decayed)}
    assert fingerprint(decayed) != fingerprint(plain)


def test_a_function_that_an_untouched_step_shares_is_copied(plain, tmp_path):
    rewrite_saved_model(plain, tmp_path / "out", policy_for(RATES), ["step"])
    names = library(read(tmp_path / "out"))
    copied = {name.partition("__graphwd")[0] for name in names if "__graphwd" in name}
    (shared,) = (name for name in copied if "_update" in name)
    assert deterministic(names[shared]) == deterministic(library(read(plain))[shared])
    check_trains(Loaded(plain, "step"), Loaded(tmp_path / "out", "step"), RATES)
    check_trains(Loaded(plain, "fine_tune"), Loaded(tmp_path / "out", "fine_tune"), {})
    check_trains(InSession(plain, "fine_tune"), InSession(tmp_path / "out", "fine_tune"), {})


def test_a_second_rewrite_is_refused(decayed, tmp_path):
    for attempt in (
        lambda: rewrite_saved_model(decayed, tmp_path / "out", policy_for(RATES)),
        lambda: plan_saved_model(decayed, policy_for(RATES)),
    ):
        with pytest.raises(RewriteError, match="rewritten by graphwd before"):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_stripping_an_original_is_refused(plain, tmp_path):
    with pytest.raises(StepError, match="holds no decay of graphwd"):
        strip(plain, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_was_done_is_described(plain, decayed, tmp_path, capsys):
    assert describe_saved_model(plain) == []
    decays = describe_saved_model(decayed)
    assert len(decays) == 4  # a function and a signature for each of two steps
    assert {(d["variable"], d["where"], d["rate"], d["rows"]) for d in decays} == {("kernel", "after", 0.01, False)}
    assert main(["plan", str(decayed)]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1] == "rewritten by graphwd: 4 ways to a decay, by function or signature"
    )
    assert main(["plan", "--format", "json", str(decayed)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == {
        "version": 1,
        "fuse": None,
        "steps": [],
        "variables": [],
        "problems": [],
        "notes": [],
        "rewritten": [{**decay, "rows": "all"} for decay in decays],
    }
    assert main(["plan", "--format", "json", "--policy", policy_file(tmp_path), str(plain)]) == 0
    assert list(json.loads(capsys.readouterr().out)) == list(record)
    assert main(["plan", "--format", "html", str(decayed)]) == 0
    assert '<td class="name">kernel</td>' in capsys.readouterr().out


class OfOneName(tf.Module):
    """Two weights that are both named Variable."""

    def __init__(self):
        super().__init__()
        self.a, self.b = tf.Variable(tf.constant([1.0, 2.0])), tf.Variable(tf.constant([3.0, 4.0]))

    @tf.function(input_signature=[tf.TensorSpec([2])])
    def step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.a * self.b * x)
        for weight, gradient in zip((self.a, self.b), tape.gradient(loss, (self.a, self.b)), strict=True):
            weight.assign_sub(gradient)


def test_decays_of_variables_of_one_name_are_told_apart(tmp_path, capsys):
    tf.saved_model.save(OfOneName(), str(tmp_path / "plain"))
    rewrite_saved_model(tmp_path / "plain", tmp_path / "out", {"version": 1, "weight_decay": 0.01})
    names = {"Variable (path a)", "Variable (path b)"}
    assert {(decay["variable"], decay["label"]) for decay in describe_saved_model(tmp_path / "out")} == {
        ("Variable", name) for name in names
    }
    assert main(["plan", str(tmp_path / "out")]) == 0
    assert {line.strip().split("  ")[0] for line in capsys.readouterr().out.splitlines()} >= names
    assert main(["diff", str(tmp_path / "out"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "no difference: 2 variables alike\n"
    assert main(["plan", "--format", "html", str(tmp_path / "out")]) == 0
    assert '<td class="name">Variable (path b)</td>' in capsys.readouterr().out


# How it trains


@pytest.mark.parametrize("name", ["step", "fine_tune"])
@pytest.mark.parametrize("way", WAYS)
def test_it_trains_with_decay(plain, decayed, way, name):
    check_trains(WAYS[way](plain, name), WAYS[way](decayed, name), RATES)


@pytest.mark.parametrize("way", WAYS)
def test_inference_is_the_same(plain, decayed, way):
    inputs = {"inputs": steps.batches(1)[0][0]}
    for mine, theirs in zip(
        WAYS[way](plain, "predict").run(inputs), WAYS[way](decayed, "predict").run(inputs), strict=True
    ):
        assert_bit_equal(mine, theirs)


def test_a_function_of_several_traces(tmp_path):
    class Polymorphic(Plain):
        @tf.function
        def any_step(self, inputs, targets, training=True):
            with tf.GradientTape() as tape:
                loss = steps.loss_of(inputs @ self.kernel, targets)
            if training:
                self.kernel.assign_sub(tape.gradient(loss, self.kernel))
            return loss

    model = Polymorphic()
    batches = [steps.batches(1, size)[0] for size in (2, 3)]
    for batch in batches:
        for training in (True, False):
            model.any_step.get_concrete_function(*batch, training=training)
    tf.saved_model.save(model, str(tmp_path / "model"))
    for functions in (None, ["any_step"]):
        target = tmp_path / f"out_{functions is None}"
        rewrite_saved_model(tmp_path / "model", target, policy_for(RATES), functions)
        plain, decayed = tf.saved_model.load(str(tmp_path / "model")), tf.saved_model.load(str(target))
        for batch in batches:
            for training, factor in ((True, 0.99), (False, 1.0)):
                assert_bit_equal(plain.any_step(*batch, training=training), decayed.any_step(*batch, training=training))
                expected = plain.kernel.numpy() * np.float32(factor)
                assert_bit_equal(expected, decayed.kernel.numpy())
                plain.kernel.assign(decayed.kernel)
        strip(target, tmp_path / f"back_{functions is None}")
        back = (tmp_path / f"back_{functions is None}" / "saved_model.pb").read_bytes()
        assert back == (tmp_path / "model" / "saved_model.pb").read_bytes()


def test_a_step_below_an_attribute_and_under_two_names(tmp_path):
    class Holder(tf.Module):
        pass

    holder: Any = Holder()
    holder.inner = Plain()
    holder.other_name = holder.inner.step
    tf.saved_model.save(holder, str(tmp_path / "model"))
    rewrite_saved_model(tmp_path / "model", tmp_path / "out", policy_for(RATES))
    for attribute in ("inner.step", "other_name", "inner.fine_tune"):
        names = (tmp_path / "model", attribute), (tmp_path / "out", attribute)
        check_trains(Loaded(*names[0]), Loaded(*names[1]), RATES)
    strip(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "saved_model.pb").read_bytes() == (tmp_path / "model" / "saved_model.pb").read_bytes()


class WithTable(tf.Module):
    """Weights, and a lookup table that is tracked before, between or after them."""

    def __init__(self, place):
        self.weights = []
        for number in range(3):
            if number == place:
                self.weights.append(tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0], [2.0]), 0.0))
            self.weights.append(tf.Variable([8.0, 16.0], name=f"w{number}"))

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def step(self, key):
        tables = [each for each in self.weights if not isinstance(each, tf.Variable)]
        variables = [each for each in self.weights if isinstance(each, tf.Variable)]
        factor = tables[0].lookup(key) if tables else 2.0
        with tf.GradientTape() as tape:
            loss = factor * tf.add_n([tf.reduce_sum(each) for each in variables])
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.5 * gradient)


@pytest.mark.parametrize("place", [0, 1, 2, None])
def test_a_table_among_the_weights(tmp_path, place):
    """It is captured as the weights are, and has a number among the objects, but is none of them."""
    tf.saved_model.save(WithTable(place), str(tmp_path / "model"))
    plan = rewrite_saved_model(tmp_path / "model", tmp_path / "out", policy_for({"w0": 0.5, "w2": 0.25}))
    assert {each.variable.name: len(each.injections) for each in plan.decisions} == {"w0": 1, "w1": 0, "w2": 1}
    assert {(each["variable"], each["rate"]) for each in describe_saved_model(tmp_path / "out")} == {
        ("w0", 0.5),
        ("w2", 0.25),
    }
    model = tf.saved_model.load(str(tmp_path / "out"))
    model.step(tf.constant(0))
    found = {each.name: each.numpy().tolist() for each in model.weights if isinstance(each, tf.Variable)}
    assert found == {"w0:0": [3.5, 7.5], "w1:0": [7.0, 15.0], "w2:0": [5.25, 11.25]}
    strip(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "saved_model.pb").read_bytes() == (tmp_path / "model" / "saved_model.pb").read_bytes()


def test_aliases_custom_gradients_and_jit(tmp_path):
    @tf.custom_gradient
    def halved(x):
        return x, lambda upstream: 0.5 * upstream

    class Fancy(Plain):
        @tf.function(jit_compile=True)
        def _forward(self, inputs):
            return halved(inputs @ self.kernel + self.bias)

    model = Fancy()
    options = tf.saved_model.SaveOptions(
        function_aliases={"train": model.step, "serve": model.predict}, experimental_custom_gradients=True
    )
    source = save(model, tmp_path / "model", "step", options=options)
    rewrite_saved_model(source, tmp_path / "out", policy_for(RATES))
    aliases = graph_of(read(tmp_path / "out")).meta_info_def.function_aliases
    names = library(read(tmp_path / "out"))
    assert {alias for name, alias in aliases.items() if name in names} == {"train", "serve"}
    assert all(("__graphwd" in name) == (alias == "train") for name, alias in aliases.items())
    for way in WAYS.values():
        check_trains(way(source, "step"), way(tmp_path / "out", "step"), RATES)
    strip(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "saved_model.pb").read_bytes() == (source / "saved_model.pb").read_bytes()


def test_two_keys_of_one_signature_and_one_without_outputs(tmp_path):
    model = Plain()

    @tf.function(input_signature=BATCH)
    def silent(inputs, targets):
        model.step(inputs, targets)
        return {}

    signature = tf.function(lambda inputs, targets: {"output": model.step(inputs, targets)}, input_signature=BATCH)
    tf.saved_model.save(model, str(tmp_path / "model"), {"a": signature, "b": signature, "silent": silent})
    rewrite_saved_model(tmp_path / "model", tmp_path / "out", policy_for(RATES), ["a", "silent"])
    for name, rates in {"a": RATES, "b": {}, "silent": RATES}.items():
        for way in (WAYS["signature"], WAYS["session"]):
            if name == "silent" and way is WAYS["session"]:
                continue  # TensorFlow's session has nothing to fetch of it
            check_trains(way(tmp_path / "model", name), way(tmp_path / "out", name), rates)
    strip(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "saved_model.pb").read_bytes() == (tmp_path / "model" / "saved_model.pb").read_bytes()


class Sparse(tf.Module):
    """An embedding whose update touches some rows only."""

    def __init__(self):
        super().__init__()
        self.table = tf.Variable(tf.reshape(tf.range(1.0, 15.0), [7, 2]), name="table")
        self.optimizer = tf_keras.optimizers.legacy.SGD(0.25)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "rows")])
    def step(self, rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(self.table, rows)))
        self.optimizer.apply_gradients([(tape.gradient(loss, self.table), self.table)])
        return loss


@pytest.mark.parametrize("semantics", ["decoupled", "l2", "adamw", "tfa"])
@pytest.mark.parametrize("sparse", ["all", "touched"])
def test_sparse_updates_and_back(tmp_path, semantics, sparse):
    source = save(Sparse(), tmp_path / "model", "step")
    policy = policy_for({"table": 0.125}, semantics=semantics, sparse=sparse)
    if (semantics, sparse) == ("l2", "all"):
        with pytest.raises(PlanError, match="its gradient is sparse"):
            rewrite_saved_model(source, tmp_path / "out", policy)
        assert not (tmp_path / "out").exists()
        return
    rewrite_saved_model(source, tmp_path / "out", policy)
    assert {d["rows"] for d in describe_saved_model(tmp_path / "out")} == {sparse == "touched"}
    plain, decayed = Loaded(source, "step"), Loaded(tmp_path / "out", "step")
    start = plain.get()["0 table"]
    rows = {"rows": tf.constant([1, 5])}
    plain.run(rows)
    decayed.run(rows)
    lost = plain.get()["0 table"] != decayed.get()["0 table"]
    assert lost[[1, 5]].all()
    assert lost[[0, 2, 3, 4, 6]].all() == (sparse == "all")
    assert not np.array_equal(plain.get()["0 table"], start)
    strip(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "saved_model.pb").read_bytes() == (source / "saved_model.pb").read_bytes()


@pytest.mark.parametrize("semantics", ["decoupled", "l2", "adamw", "tfa"])
@pytest.mark.parametrize("library_name", ["tf_keras legacy", "keras"])
def test_adam_and_back(tmp_path, semantics, library_name):
    source = save(OPTIMIZED[library_name](), tmp_path / "model", "step")
    kernel = "hidden/kernel" if library_name.startswith("tf") else "net/hidden/kernel"
    rewrite_saved_model(source, tmp_path / "out", policy_for({kernel: 0.1}, semantics=semantics))
    plain, decayed = Loaded(source, "step"), Loaded(tmp_path / "out", "step")
    start = plain.get()
    for run in ({"inputs": i, "targets": t} for i, t in steps.batches(3)):
        plain.run(run)
        decayed.run(run)
    lost = {key for key, value in decayed.get().items() if not np.array_equal(value, plain.get()[key])}
    assert any(kernel in key for key in lost)
    assert all(not np.array_equal(value, start[key]) for key, value in decayed.get().items() if kernel in key)
    strip(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "saved_model.pb").read_bytes() == (source / "saved_model.pb").read_bytes()


# What is asked for


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        (["predict"], "'predict' is not a training step: it updates no trainable variable from a gradient"),
        (["step", "predict"], "'predict' is not a training step"),
        (["stp"], "no function or signature 'stp'; there is '_forward', '_update', "),
        ([], "no function or signature trains"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(plain, tmp_path, functions, message):
    with pytest.raises(StepError, match=message):
        rewrite_saved_model(plain, tmp_path / "out", policy_for(RATES), functions)
    assert list(tmp_path.iterdir()) == []


def test_inference_only(tmp_path):
    model = steps.keras_model()
    model.export(str(tmp_path / "model"), verbose=False)
    with pytest.raises(StepError, match="no function or signature trains; there is 'serve'"):
        rewrite_saved_model(tmp_path / "model", tmp_path / "out", policy_for(RATES))
    assert main(["rewrite", "--policy", policy_file(tmp_path), str(tmp_path / "model")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "policy.yaml"]


def policy_file(folder: Path) -> str:
    (folder / "policy.yaml").write_text(json.dumps(policy_for(RATES)), encoding="utf-8")
    return str(folder / "policy.yaml")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such directory"),
        (lambda folder: folder.mkdir(), "holds no saved_model.pb, so it is no SavedModel"),
        (lambda folder: folder.write_text(""), "no such directory"),
        (lambda folder: (folder.mkdir(), (folder / "saved_model.pbtxt").write_text("")), "in text form is not"),
        (lambda folder: (folder.mkdir(), (folder / "saved_model.cpb").write_text("")), "in chunks is not supported"),
        (lambda folder: (folder.mkdir(), (folder / "saved_model.pb").write_text("")), "is empty: it holds no graph"),
    ],
)
def test_what_is_no_saved_model(tmp_path, make, message):
    make(tmp_path / "model")
    before = sorted(tmp_path.iterdir())
    for attempt in (
        lambda: rewrite_saved_model(tmp_path / "model", tmp_path / "out", policy_for(RATES)),
        lambda: plan_saved_model(tmp_path / "model", policy_for(RATES)),
        lambda: describe_saved_model(tmp_path / "model"),
        lambda: strip(tmp_path / "model", tmp_path / "out"),
    ):
        with pytest.raises(StepError, match=message):
            attempt()
    assert sorted(tmp_path.iterdir()) == before


# Real libraries


def of_keras(model: Any = None, optimizer: Any = None, spec: Any = BATCH) -> Trainable:
    """Keras 3 objects in a tf.Module: TensorFlow saves two handles a weight."""
    model = steps.keras_model() if model is None else model
    optimizer = keras.optimizers.Adam(0.01) if optimizer is None else optimizer
    optimizer.build(model.trainable_variables)

    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(model(inputs, training=True), targets)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return Trainable({"model": model, "optimizer": optimizer}, step, spec, lambda inputs: model(inputs))


def of_tf_keras(optimizer: Any = None) -> Trainable:
    model = steps.tf_keras_model()
    optimizer = tf_keras.optimizers.Adam(0.01) if optimizer is None else optimizer
    optimizer.apply_gradients([(tf.zeros_like(variable), variable) for variable in model.trainable_variables])

    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(model(inputs), targets)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(list(zip(gradients, model.trainable_variables, strict=True)))
        return loss

    return Trainable({"model": model, "optimizer": optimizer}, step)


def of_sonnet() -> Trainable:
    module, optimizer = snt.nets.MLP([4, steps.CLASSES], name="net"), snt.optimizers.Adam(0.01)
    module(tf.zeros([1, steps.FEATURES]))
    variables = module.trainable_variables
    optimizer.apply([tf.zeros_like(variable) for variable in variables], variables)

    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = steps.loss_of(module(inputs), targets)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return Trainable({"module": module, "optimizer": optimizer}, step)


def accumulating() -> Trainable:
    made = steps.Accumulating()
    parts = {"kernel": made.kernel, "total": made.total, "count": made.count}
    return Trainable(parts, steps.Accumulating.step.python_function.__get__(made))


def over_a_dataset() -> Trainable:
    kernel = tf.Variable(tf.fill([steps.FEATURES, steps.CLASSES], 0.5), name="kernel")

    def step(inputs, targets):
        total = 0.0
        for x, y in tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(2):
            with tf.GradientTape() as tape:
                loss = steps.loss_of(x @ kernel, y)
            kernel.assign_sub(0.125 * tape.gradient(loss, kernel))
            total += loss
        return total

    return Trainable({"kernel": kernel}, step)


OPTIMIZED = {"keras": of_keras, "tf_keras legacy": lambda: of_tf_keras(tf_keras.optimizers.legacy.Adam(0.01))}

MODELS = {
    "keras": (of_keras, {"net/hidden/kernel": 0.01, "net/out/kernel": 0.2}),
    "tf_keras": (of_tf_keras, {"hidden/kernel": 0.01, "out/kernel": 0.2}),
    "tf_keras legacy": (OPTIMIZED["tf_keras legacy"], {"hidden/kernel": 0.01, "out/kernel": 0.2}),
    "sonnet": (of_sonnet, steps.SONNET_KERNELS),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A real model and its rewritten one, each made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("real")
            make, rates = MODELS[name]
            save(make(), folder / "model", "step")
            rewrite_saved_model(folder / "model", folder / "out", policy_for(rates))
            made[name] = folder / "model", folder / "out"
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_a_real_model(real, way, name, tmp_path):
    source, target = real(name)
    check_trains(WAYS[way](source, "step"), WAYS[way](target, "step"), MODELS[name][1])
    strip(target, tmp_path / "back")
    assert (tmp_path / "back" / "saved_model.pb").read_bytes() == (source / "saved_model.pb").read_bytes()


def test_gradient_accumulation(tmp_path):
    source = save(accumulating(), tmp_path / "model", "step")
    rewrite_saved_model(source, tmp_path / "out", policy_for(RATES))
    for way in WAYS.values():
        plain, decayed = way(source, "step"), way(tmp_path / "out", "step")
        for number, run in enumerate(arguments(4)):
            check_trains(plain, decayed, RATES if number % 2 else {}, [run])


def test_a_loop_over_a_dataset(tmp_path):
    source = save(over_a_dataset(), tmp_path / "model", "step")
    rewrite_saved_model(source, tmp_path / "out", policy_for(RATES))
    batches = [{"inputs": inputs, "targets": targets} for inputs, targets in steps.batches(3, size=2)]
    for way in WAYS.values():
        check_trains(way(source, "step"), way(tmp_path / "out", "step"), RATES, batches)
    # Three batches of two rows: three updates, each decayed.
    decayed = Loaded(tmp_path / "out", "step")
    (run,) = arguments(1)
    decayed.run(run)
    kernel = np.full([steps.FEATURES, steps.CLASSES], 0.5)
    for rows in np.split(np.arange(6), 3):
        inputs, targets = run["inputs"].numpy()[rows], run["targets"].numpy()[rows]
        kernel -= 0.125 * 2 / targets.size * inputs.T @ (inputs @ kernel - targets)
        kernel *= 1 - RATES["kernel"]
    np.testing.assert_allclose(decayed.get()["0 kernel"], kernel, rtol=1e-5)


def image_step(model: Any, optimizer: Any) -> Trainable:
    spec = [
        tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, "inputs"),
        tf.TensorSpec([None, *model.output_shape[1:]], tf.float32, "targets"),
    ]
    return of_keras(model, optimizer, spec)


def check_large(module: Any, folder: Path, pattern: str, batches: list[dict[str, tf.Tensor]]) -> None:
    """Rewrites a module by a pattern of names; checks training by the function, and that inference is the same."""
    source = save(module, folder / "model", "step")
    policy = {"version": 1, "rules": [{"name": pattern, "weight_decay": 0.01}, {"weight_decay": 0}]}
    plan = rewrite_saved_model(source, folder / "out", policy)
    rates = {injection.variable.name: injection.rate.number for injection in plan.injections}
    assert len(rates) > 10
    plain, decayed = Loaded(source, "step"), Loaded(folder / "out", "step")
    check_trains(plain, decayed, rates, batches)
    for name in ("predict",):
        first, second = Loaded(source, name), Loaded(folder / "out", name)
        inputs = {"inputs": batches[0]["inputs"]}
        for mine, theirs in zip(first.run(inputs), second.run(inputs), strict=True):
            assert_bit_equal(mine, theirs)
    strip(folder / "out", folder / "back")
    assert (folder / "back" / "saved_model.pb").read_bytes() == (source / "saved_model.pb").read_bytes()


def test_mobilenet(tmp_path):
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=4)
    random = np.random.default_rng(0)
    batches = [
        {
            "inputs": tf.constant(random.normal(size=(2, 32, 32, 3)), tf.float32),
            "targets": tf.constant(random.normal(size=(2, 4)), tf.float32),
        }
        for _ in range(2)
    ]
    check_large(image_step(model, keras.optimizers.Adam()), tmp_path, "*kernel", batches)


def test_bert(tmp_path):
    # Here, as it takes seconds.
    keras_hub = pytest.importorskip("keras_hub", reason="keras_hub is not installed: run tools/setup")

    bert = keras_hub.models.BertBackbone(
        vocabulary_size=50, num_layers=3, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=7
    )

    class Classifier:
        trainable_variables = bert.trainable_variables

        def __call__(self, inputs, training=False):
            features = {"token_ids": inputs, "segment_ids": tf.zeros_like(inputs)}
            return bert({**features, "padding_mask": tf.ones_like(inputs)}, training=training)["pooled_output"]

    spec = [tf.TensorSpec([None, 7], tf.int32, "inputs"), tf.TensorSpec([None, 8], tf.float32, "targets")]
    module: Any = of_keras(Classifier(), keras.optimizers.Adam(), spec)
    module.bert = bert
    random = np.random.default_rng(0)
    batches = [
        {
            "inputs": tf.constant(random.integers(0, 50, size=(2, 7)), tf.int32),
            "targets": tf.constant(random.normal(size=(2, 8)), tf.float32),
        }
        for _ in range(2)
    ]
    # Dropout draws other numbers in each run of either.
    for layer in bert._flatten_layers():
        if hasattr(layer, "rate"):
            layer.rate = 0.0
    check_large(module, tmp_path, "*kernel", batches)
