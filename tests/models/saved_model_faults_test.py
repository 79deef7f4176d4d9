"""Damaged and hostile SavedModels: one message each, or a rewrite; no other error, no half a target, no changed source.

GRAPHWD_FLIPS says how many damaged models are tried, GRAPHWD_EXAMPLES how many that hypothesis makes, GRAPHWD_KILLS how
often the command line is killed. The seeds in tests/models/corpus are small models and others that once failed; each
runs.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from graphwd.errors import GraphwdError
from graphwd.models.saved_model import describe_saved_model, plan_saved_model, rewrite_saved_model, strip
from graphwd.planning.terminal import as_table, decays_as_table
from tests.helpers.lockstep import policy_for
from tests.helpers.saved_models import (
    Loaded,
    check_trains,
    deterministic,
    graph_of,
    library,
    read,
    save_plain,
    snapshot,
)
from tests.helpers.small_models import MODELS, minimal

POLICY = policy_for({"kernel": 0.25})
FLIPS = int(os.environ.get("GRAPHWD_FLIPS", "1000"))
EXAMPLES = int(os.environ.get("GRAPHWD_EXAMPLES", "300"))
KILLS = int(os.environ.get("GRAPHWD_KILLS", "6"))
CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_plain(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def decayed(plain, tmp_path_factory):
    target = tmp_path_factory.mktemp("decayed") / "model"
    rewrite_saved_model(plain, target, POLICY)
    return target


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """What takes fifteen seconds to refuse takes a moment."""
    monkeypatch.setattr("graphwd.analysis.walk._MAX_NODES_VISITED", 2_000_000)


class Scratch:
    """A folder with a model in it whose graph is replaced again and again."""

    def __init__(self, folder: Path, model: Path | None = None) -> None:
        self.folder = folder
        self.model = folder / "model"
        if model is None:
            (self.model / "variables").mkdir(parents=True)  # of weights only the names are looked at
            for name in ("variables.index", "variables.data-00000-of-00001"):
                (self.model / "variables" / name).touch()
        else:
            subprocess.run(["cp", "-r", str(model), str(self.model)], check=True)

    def outcomes(self, content: bytes) -> dict[str, str]:
        """What each command makes of a graph: its message, or "" where it does it.

        Fails where a command raises anything but one of graphwd's errors, leaves anything behind or changes the model.
        """
        (self.model / "saved_model.pb").write_bytes(content)
        commands: dict[str, Callable[[], Any]] = {
            "plan": lambda: _shown(plan_saved_model(self.model, POLICY)),
            "rewrite": lambda: rewrite_saved_model(self.model, self.folder / "out", POLICY),
            "describe": lambda: decays_as_table(describe_saved_model(self.model)),
            "strip": lambda: strip(self.model, self.folder / "back"),
        }
        found = {}
        before = snapshot(self.model)
        for name, command in commands.items():
            written = {"rewrite": "out", "strip": "back"}.get(name)
            try:
                command()
                found[name] = ""
                expected = ["model", written] if written else ["model"]
            except GraphwdError as error:
                found[name] = str(error)
                assert found[name]
                expected = ["model"]
            there = sorted(path.name for path in self.folder.iterdir())
            assert there == sorted(expected), (name, found[name])
            if written in there:
                files = snapshot(self.folder / written).keys()
                assert files - {"fingerprint.pb"} == before.keys() - {"fingerprint.pb"}
                SavedModel.FromString((self.folder / written / "saved_model.pb").read_bytes())
                subprocess.run(["rm", "-r", str(self.folder / written)], check=True)
        assert snapshot(self.model) == before
        return found


def _shown(plan: Any) -> None:
    as_table(plan.record())
    plan.to_html()


@pytest.fixture
def scratch(tmp_path, plain):
    return Scratch(tmp_path, plain)


# Damage


def test_an_empty_file(scratch):
    assert set(scratch.outcomes(b"").values()) == {f"{scratch.model / 'saved_model.pb'}: is empty: it holds no graph"}


@pytest.mark.parametrize("which", ["plain", "decayed"])
def test_truncated(scratch, which, request):
    content = (request.getfixturevalue(which) / "saved_model.pb").read_bytes()
    for length in {*range(40), *range(0, len(content) - 1, len(content) // 160), len(content) - 1}:
        for message in scratch.outcomes(content[:length]).values():
            assert message
            assert "\n" not in message


@pytest.mark.parametrize("which", ["plain", "decayed"])
def test_flipped_bits(scratch, which, request):
    content = (request.getfixturevalue(which) / "saved_model.pb").read_bytes()
    names = [
        i for i in range(len(content)) if content.startswith((b"__graphwd", b'{"write"', b"AssignSub", b"f\x12"), i)
    ]
    numbers = random.Random(which)
    for _ in range(FLIPS // 2):
        damaged = bytearray(content)
        for _ in range(numbers.choice([1, 1, 1, 3, 10])):
            near = numbers.choice(names) + numbers.randrange(-8, 120)
            place = numbers.choice([near, numbers.randrange(len(content))]) % len(content)
            damaged[place] ^= 1 << numbers.randrange(8)
        scratch.outcomes(bytes(damaged))


@pytest.mark.parametrize("seed", sorted(CORPUS.glob("*.pb")), ids=lambda path: path.stem)
def test_a_seed_of_the_corpus(tmp_path, seed):
    Scratch(tmp_path).outcomes(seed.read_bytes())


def test_fuzz(tmp_path_factory):
    seeds = [path.read_bytes() for path in sorted(CORPUS.glob("*.pb"))]
    assert len(seeds) >= 5
    scratch = Scratch(tmp_path_factory.mktemp("fuzz"))

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(seed=st.sampled_from(seeds), data=st.data())
    def fuzz(seed: bytes, data: st.DataObject) -> None:
        content = bytearray(seed)
        for _ in range(data.draw(st.integers(1, 6))):
            start = data.draw(st.integers(0, len(content)))
            stop = data.draw(st.integers(start, min(len(content), start + 40)))
            donor = data.draw(st.sampled_from(seeds))
            begin = data.draw(st.integers(0, len(donor)))
            patch = data.draw(st.one_of(st.binary(max_size=8), st.just(donor[begin : begin + (stop - start)])))
            content[start:stop] = patch
        scratch.outcomes(bytes(content))

    fuzz()


# Malice


def body(model: SavedModel, part: str = "_update") -> Any:
    """A function that trains."""
    return next(f for name, f in library(model).items() if part in name and any("Assign" in n.op for n in f.node_def))


def node(model: SavedModel, op: str, part: str = "_update") -> Any:
    return next(n for n in body(model, part).node_def if n.op == op)


def call(model: SavedModel) -> Any:
    """A call of a function that trains, in the step."""
    step = next(f for name, f in library(model).items() if "inference_step" in name)
    return next(n for n in step.node_def if "_update" in n.attr["f"].func.name)


def missing_function(model):
    functions = graph_of(model).graph_def.library.function
    (place,) = (i for i, f in enumerate(functions) if f.signature.name == call(model).attr["f"].func.name)
    del functions[place]


def missing_entry(model):
    functions = graph_of(model).graph_def.library.function
    (place,) = (i for i, f in enumerate(functions) if "inference_step" in f.signature.name)
    del functions[place]


def recursive(model):
    call(model).attr["f"].func.name = next(name for name in library(model) if "inference_step" in name)


def mutually_recursive(model):
    callee = library(model)[call(model).attr["f"].func.name]
    back = callee.node_def.add()
    back.CopyFrom(call(model))
    name, step = next(pair for pair in library(model).items() if "inference_step" in pair[0])
    back.attr["f"].func.name = name
    back.input[:] = [callee.signature.input_arg[0].name for _ in step.signature.input_arg]
    back.attr["Tin"].list.type[:] = [1 for _ in back.input]


def dangling(model):
    node(model, "AssignSubVariableOp").input[1] = "nowhere:z:0"


def dangling_control(model):
    node(model, "AssignSubVariableOp").input.append("^nowhere")


def circle(model):
    node(model, "AssignSubVariableOp").input.append(f"^{node(model, 'AssignSubVariableOp').name}")


def too_few_inputs(model):
    for each in body(model).node_def:
        del each.input[1:]


def no_inputs(model):
    for function in library(model).values():
        for each in function.node_def:
            del each.input[:]


def too_many_inputs(model):
    write = node(model, "AssignSubVariableOp")
    write.input.extend([write.input[0]] * 1000)


def no_attributes(model):
    for each in body(model).node_def:
        each.attr.clear()


def wrong_attributes(model):
    for each in body(model).node_def:
        for name in list(each.attr):
            each.attr[name].s = b"text"


def no_callee(model):
    del call(model).attr["f"]


def empty_callee(model):
    call(model).attr["f"].func.name = ""


def callee_is_text(model):
    call(model).attr["f"].s = b"text"


def wrong_callee(model):
    call(model).attr["f"].func.name = next(name for name in library(model) if "traced_restore" in name)


def controlled(op: str, **attributes: list[str]) -> Callable[[SavedModel], None]:
    """Puts a branch or loop over functions of the model in place of its call."""

    def change(model: SavedModel) -> None:
        node_, callee = call(model), call(model).attr["f"].func.name
        other = next(name for name in library(model) if "traced_save" in name)
        names = {"good": callee, "other": other, "none": ""}
        node_.op = op
        inputs = [text for text in node_.input if not text.startswith("^")]
        if op in ("If", "Case"):
            node_.input.insert(0, inputs[0])
        node_.attr.clear()
        for name in ("Tin", "T"):
            node_.attr[name].list.type.extend([1] * len(inputs))
        node_.attr["Tout"].list.SetInParent()
        node_.attr["Tcond"].type = 10
        for name, functions in attributes.items():
            if name == "branches":
                node_.attr[name].list.SetInParent()
                for function in functions:
                    node_.attr[name].list.func.add(name=names[function])
            else:
                node_.attr[name].func.name = names[functions[0]]

    return change


def out_of_range(number: int) -> Callable[[SavedModel], None]:
    def change(model: SavedModel) -> None:
        for concrete in graph_of(model).object_graph_def.concrete_functions.values():
            concrete.bound_inputs.append(number)

    return change


def bound_twice(model):
    for concrete in graph_of(model).object_graph_def.concrete_functions.values():
        concrete.bound_inputs.extend([*concrete.bound_inputs] * 5)


def bound_to_root(model):
    for concrete in graph_of(model).object_graph_def.concrete_functions.values():
        concrete.bound_inputs[:] = [0 for _ in concrete.bound_inputs]


def child(number: int) -> Callable[[SavedModel], None]:
    def change(model: SavedModel) -> None:
        graph_of(model).object_graph_def.nodes[0].children.add(node_id=number, local_name="x")

    return change


def object_circle(model):
    objects = graph_of(model).object_graph_def
    for each in objects.nodes:
        each.children.add(node_id=0, local_name="root")
        each.children.add(node_id=len(objects.nodes) - 1, local_name="last")


def long_object_chain(model):
    objects = graph_of(model).object_graph_def
    for _ in range(10_000):
        objects.nodes[-1].children.add(node_id=len(objects.nodes), local_name="next")
        objects.nodes.add().user_object.SetInParent()


def unknown_function(model):
    for each in graph_of(model).object_graph_def.nodes:
        if each.WhichOneof("kind") == "function":
            each.function.concrete_functions.append("nowhere")


def no_concrete_functions(model):
    graph_of(model).object_graph_def.concrete_functions.clear()


def enormous_shapes(model):
    for each in graph_of(model).object_graph_def.nodes:
        if each.WhichOneof("kind") == "variable":
            for _ in range(1000):
                each.variable.shape.dim.add(size=2**62)


def negative_shapes(model):
    for each in graph_of(model).object_graph_def.nodes:
        if each.WhichOneof("kind") == "variable":
            each.variable.shape.dim.add(size=-(2**62))


def strange_dtypes(model):
    for each in graph_of(model).object_graph_def.nodes:
        if each.WhichOneof("kind") == "variable":
            each.variable.dtype = 2**31 - 1


def nameless_variables(model):
    for each in graph_of(model).object_graph_def.nodes:
        if each.WhichOneof("kind") == "variable":
            each.variable.name = ""


def long_chain_of_nodes(model, backwards=False):
    function, write = body(model), node(model, "AssignSubVariableOp")
    source = write.input[1]
    made = []
    for i in range(10_000):
        each = type(write)(name=f"chain_{i}", op="Identity", input=[source])
        each.attr["T"].type = 1
        source = f"chain_{i}:output:0"
        made.append(each)
    write.input[1] = source
    nodes = [*(reversed(made) if backwards else made), *function.node_def]
    del function.node_def[:]
    function.node_def.extend(nodes)


def long_chain_of_sums(model):
    function, write = body(model), node(model, "AssignSubVariableOp")
    source = write.input[1]
    for i in range(10_000):
        each = function.node_def.add(name=f"chain_{i}", op="AddV2", input=[source, source])
        each.attr["T"].type = 1
        source = f"chain_{i}:z:0"
    write.input[1] = source


def long_chain_of_calls(model):
    functions = graph_of(model).graph_def.library.function
    for i in range(10_000):
        added = functions.add()
        added.signature.name = f"deep_{i}"
        each = added.node_def.add(name="call", op="StatefulPartitionedCall")
        each.attr["f"].func.name = f"deep_{i + 1}" if i < 9_999 else call(model).attr["f"].func.name
        for name in ("Tin", "Tout"):
            each.attr[name].list.SetInParent()
    step = next(f for name, f in library(model).items() if "inference_step" in name)
    each = step.node_def.add(name="down", op="StatefulPartitionedCall")
    each.attr["f"].func.name = "deep_0"
    for name in ("Tin", "Tout"):
        each.attr[name].list.SetInParent()


def doubling_calls(model):
    """Each of sixty functions calls the next one twice."""
    functions = graph_of(model).graph_def.library.function
    for i in range(60):
        added = functions.add()
        added.signature.name = f"double_{i}"
        for name in ("one", "two"):
            each = added.node_def.add(name=name, op="StatefulPartitionedCall")
            each.attr["f"].func.name = f"double_{i + 1}" if i < 59 else "double_0"
            for attribute in ("Tin", "Tout"):
                each.attr[attribute].list.SetInParent()
    functions[-1].ClearField("node_def")
    step = next(f for name, f in library(model).items() if "inference_step" in name)
    each = step.node_def.add(name="down", op="StatefulPartitionedCall")
    each.attr["f"].func.name = "double_0"
    for attribute in ("Tin", "Tout"):
        each.attr[attribute].list.SetInParent()


def opaque_chain(model):
    """A variable goes into an op whose function is not followed, and which leads to ten thousand others."""
    long_chain_of_calls(model)
    step = next(f for name, f in library(model).items() if "inference_step" in name)
    each = step.node_def.add(name="strange", op="NobodyKnows", input=list(call(model).input))
    each.attr["f"].func.name = "deep_0"
    del next(n for n in step.node_def if n.name == "down").attr["f"]
    step.node_def.remove(next(n for n in step.node_def if n.name == "down"))


def duplicate_nodes(model):
    for each in body(model).node_def:
        each.name = "same"


def duplicate_functions(model):
    functions = graph_of(model).graph_def.library.function
    functions.add().CopyFrom(functions[0])


def strange_names(model):
    for each in body(model).node_def:
        each.name = "\x00^:;\n\u202e"


def our_names(model):
    function = graph_of(model).graph_def.library.function.add()
    function.signature.name = "graphwd_entry_point_0"


def no_results(model):
    for function in library(model).values():
        function.ret.clear()


def dangling_results(model):
    for function in library(model).values():
        for name in list(function.ret):
            function.ret[name] = "nowhere:output:0"


def dangling_control_results(model):
    for function in library(model).values():
        function.control_ret["x"] = "nowhere"


def enormous_output(model):
    write = node(model, "AssignSubVariableOp")
    write.input[1] = write.input[1].rpartition(":")[0] + ":" + "9" * 5000


def large_output(model):
    write = node(model, "AssignSubVariableOp")
    write.input[1] = write.input[1].rpartition(":")[0] + ":999999999"


def empty_edges(model):
    for each in body(model).node_def:
        each.input[:] = ["" for _ in each.input]


def colons(model):
    for each in body(model).node_def:
        each.input[:] = [":::" for _ in each.input]


def two_graphs(model):
    model.meta_graphs.add().CopyFrom(model.meta_graphs[0])


def no_objects(model):
    graph_of(model).object_graph_def.Clear()


def no_graph(model):
    graph_of(model).graph_def.Clear()


def moved_signature(model):
    for signature in graph_of(model).signature_def.values():
        for info in signature.outputs.values():
            info.name = "saver_filename:0"


def main_graph_without_attributes(model):
    """TensorFlow's fingerprint ends the process where a constant has no dtype."""
    for each in graph_of(model).graph_def.node:
        each.attr.clear()


CHANGES = {
    change.__name__: change
    for change in (
        missing_function, missing_entry, recursive, mutually_recursive, dangling, dangling_control, circle,
        too_few_inputs, no_inputs, too_many_inputs, no_attributes, wrong_attributes, no_callee, empty_callee,
        callee_is_text, wrong_callee, unknown_function, no_concrete_functions, duplicate_nodes, duplicate_functions,
        our_names, no_results, dangling_results, dangling_control_results, enormous_output, empty_edges, colons,
        two_graphs, no_objects, no_graph, moved_signature, main_graph_without_attributes, strange_dtypes,
        long_chain_of_calls, bound_twice, doubling_calls,
    )
}  # fmt: skip
CHANGES |= {f"bound to {number}": out_of_range(number) for number in (-1, 10**6, 2**31 - 1, -(2**31))}
CHANGES |= {f"child {number}": child(number) for number in (-1, 10**6, 2**31 - 1, -(2**31))}
CHANGES |= {
    "If without else": controlled("If", then_branch=["good"]),
    "If of others": controlled("If", then_branch=["good"], else_branch=["other"]),
    "If of nothing": controlled("If", then_branch=["none"], else_branch=["none"]),
    "Case of nothing": controlled("Case", branches=[]),
    "Case of others": controlled("Case", branches=["good", "other"]),
    "While without body": controlled("While", cond=["good"]),
    "While of others": controlled("While", cond=["other"], body=["good"]),
    "While that gives too little": controlled("While", cond=["good"], body=["good"]),
}

# What may be rewritten, or refused, but not fail.
ODD_CHANGES = {
    change.__name__: change
    for change in (
        bound_to_root, object_circle, long_object_chain, enormous_shapes, negative_shapes, nameless_variables,
        long_chain_of_nodes, long_chain_of_sums, opaque_chain, strange_names, large_output,
    )
}  # fmt: skip
ODD_CHANGES["a chain backwards"] = lambda model: long_chain_of_nodes(model, backwards=True)
ODD_CHANGES["Case of one"] = controlled("Case", branches=["good"])


@pytest.mark.parametrize("name", CHANGES)
def test_hostile_models_are_refused(scratch, plain, name):
    model = read(plain)
    CHANGES[name](model)
    found = scratch.outcomes(deterministic(model))
    assert found["rewrite"], name
    assert found["strip"]
    assert "\n" not in found["rewrite"]
    assert len(found["rewrite"]) < 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing_function", "calls the function '.*_update_.*', which its library does not hold"),
        ("missing_entry", "'step' is the function '__inference_step_.*', which the library does not hold"),
        ("recursive", "calls itself, or calls are nested deeper than"),
        ("mutually_recursive", "calls itself, or calls are nested deeper than"),
        ("long_chain_of_calls", "calls itself, or calls are nested deeper than"),
        ("doubling_calls", "following every call of the step visits more than"),
        ("dangling", "the node '.*' of '.*' has an input from 'nowhere', which does not exist"),
        ("circle", "wait for each other"),
        ("too_many_inputs", r"\(AssignSubVariableOp\) of '.*' has 100\d inputs; it needs 2"),
        ("no_attributes", "of '.*' has no attribute '"),
        ("wrong_attributes", "of '.*' has a wrong attribute '"),
        ("empty_callee", "does not name the functions that it calls"),
        ("duplicate_functions", "the library holds two functions named '"),
        ("no_results", "does not say where its result '.*' comes from"),
        ("dangling_results", "has a result from 'nowhere', which does not exist"),
        ("dangling_control_results", "waits for 'nowhere', which does not exist"),
        ("our_names", "a name that graphwd keeps for itself"),
        ("main_graph_without_attributes", r"of the main graph has no attribute '"),
        ("moved_signature", "the outputs of the signature '.*' do not come from its function"),
        ("no_concrete_functions", "the object graph is malformed: it says nothing of the function '"),
        ("bound to -1", "is bound to an object that does not exist"),
        ("child 2147483647", "the object graph is malformed: object 0 has a child 2147483647"),
        ("If of others", r"\(If\) do not fit together: one gives 1 results where 0 are needed"),
        ("wrong_callee", "gives .* arguments to '.*', which takes"),
        ("While that gives too little", r"\(While\) do not fit together: one gives 0 results where \d is|are needed"),
    ],
)
def test_the_message_says_what_is_wrong(scratch, plain, name, message):
    model = read(plain)
    CHANGES[name](model)
    assert re.search(message, scratch.outcomes(deterministic(model))["rewrite"])


@pytest.mark.parametrize("name", ODD_CHANGES)
def test_odd_models_do_not_fail(scratch, plain, name):
    model = read(plain)
    ODD_CHANGES[name](model)
    scratch.outcomes(deterministic(model))


@pytest.mark.parametrize("name", [*CHANGES, *ODD_CHANGES])
def test_hostile_changes_of_a_rewritten_model(scratch, decayed, name):
    model = read(decayed)
    {**CHANGES, **ODD_CHANGES}[name](model)
    assert scratch.outcomes(deterministic(model))["rewrite"]


def test_names_that_are_not_utf_8(scratch, plain):
    content = (plain / "saved_model.pb").read_bytes()
    for name in (b"AssignSubVariableOp", b"__inference_step", b"kernel", b"momentum", b"ReadVariableOp"):
        assert name in content
        messages = scratch.outcomes(content.replace(name, b"\xff" * len(name)))
        assert "does not parse" in messages["rewrite"]


@pytest.mark.parametrize(
    "record",
    [b"", b"{}", b"[]", b"1", b"null", b'"x"', b"\xff", b"[" * 100_000, b"{\"write\": 1}", b"NaN"],
    ids=lambda record: repr(record[:10]),
)  # fmt: skip
def test_damaged_records(scratch, decayed, record):
    model = read(decayed)
    for function in library(model).values():
        for each in function.node_def:
            if "_graphwd_decay" in each.attr:
                each.attr["_graphwd_decay"].s = record
    found = scratch.outcomes(deterministic(model))
    assert "damaged record" in found["strip"]
    assert "damaged record" in found["describe"]


@pytest.mark.parametrize("key", ["write", "decay", "where", "rate", "learning_rate", "rows", "moved"])
@pytest.mark.parametrize("value", ["null", "[]", '"nowhere"', "-1", "[[1, 2, 3]]", '[["x", 0, "y"]]', "{}", "true"])
def test_damaged_values_of_records(scratch, decayed, key, value):
    model = read(decayed)
    for function in library(model).values():
        for each in function.node_def:
            if "_graphwd_decay" in each.attr:
                record = json.loads(each.attr["_graphwd_decay"].s)
                record[key] = json.loads(value)
                each.attr["_graphwd_decay"].s = json.dumps(record).encode()
    scratch.outcomes(deterministic(model))


# Death


def run_and_kill(command, environment, folder, seconds):
    """Runs a command, kills it so long after it began to write; returns how long it wrote, and if it was killed."""

    def writing() -> bool:
        return any(folder.glob(".graphwd.*"))

    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not writing():
        time.sleep(0.0005)
    start = time.monotonic()
    while process.poll() is None and writing():
        if seconds is not None and time.monotonic() - start >= seconds:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.0005)
    wrote = time.monotonic() - start
    process.wait()
    return wrote, process.returncode == -signal.SIGKILL


def test_killed_at_any_moment(plain, tmp_path):
    (tmp_path / "policy.yaml").write_text("version: 1\nrules: [{name: kernel, weight_decay: 0.25}, {weight_decay: 0}]")
    source = tmp_path / "model"
    subprocess.run(["cp", "-r", str(plain), str(source)], check=True)
    # Enough to copy that some of the kills fall into it.
    (source / "assets" / "large").write_bytes(os.urandom(64 * 2**20))
    before = snapshot(source)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "graphwd", "rewrite", "--policy", str(tmp_path / "policy.yaml"), "--overwrite"]
    target = tmp_path / "to" / "out"
    command += ["--output", str(target), str(source)]

    killed: list[bool] = []

    def run(seconds: float | None) -> float:
        wrote, was_killed = run_and_kill(command, environment, tmp_path / "to", seconds)
        killed.append(was_killed)
        return wrote

    shortest = run(None)
    complete = {name: stat.content for name, stat in snapshot(target).items() if name != "fingerprint.pb"}
    numbers = random.Random(1)
    for number in range(10 * KILLS):
        if sum(killed) == KILLS:
            break
        there = number % 2 == 0  # overwritten, or new
        subprocess.run(["rm", "-rf", str(target)], check=True)
        if there:
            target.mkdir(parents=True)
            (target / "mine.meta").write_text("mine")
        for left in tmp_path.glob("to/.graphwd.*"):
            subprocess.run(["rm", "-rf", str(left)], check=True)
        wrote = run(numbers.uniform(0, 0.9 * shortest))
        if not killed[-1]:  # it was faster than any before
            shortest = min(shortest, wrote)
        if target.exists():
            found = {name: stat.content for name, stat in snapshot(target).items() if name != "fingerprint.pb"}
            assert found == complete or (there and found.keys() == {".", "mine.meta"})
        else:
            assert not there
        assert snapshot(source) == before
    assert any(killed)
    run(None)  # what the killed ones left is in nobody's way
    check_trains(Loaded(source, "step"), Loaded(target, "step"), {"kernel": 0.25})


@pytest.mark.parametrize("name", MODELS)
def test_the_smallest_models_are_rewritten(tmp_path, name):
    found = Scratch(tmp_path).outcomes(deterministic(minimal(name)))
    assert found["plan"] == found["rewrite"] == found["describe"] == ""
    assert (CORPUS / f"{name}.pb").read_bytes() == deterministic(minimal(name))
