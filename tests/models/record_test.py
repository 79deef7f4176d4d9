"""The record that graphwd leaves in what it injects: its version, and models that an earlier version wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphwd.errors import RewriteError
from graphwd.models.saved_model import describe_saved_model, read_model, rewrite_saved_model, strip

RECORD = "_graphwd_decay"
RECORD_01 = Path(__file__).parent / "corpus" / "written_by_0_1"
DECAYED = RECORD_01 / "decayed"
"""What graphwd 0.1 wrote of the model in original.pb: a variable for each of after, before and coupled."""


def records(model):
    nodes = [node for function in model.meta_graphs[0].graph_def.library.function for node in function.node_def]
    return [node for node in nodes if RECORD in node.attr]


def with_records(tmp_path: Path, **keys):
    """The same model with other keys in its records."""
    model = read_model(DECAYED)
    for node in records(model):
        node.attr[RECORD].s = json.dumps(json.loads(node.attr[RECORD].s) | keys).encode()
    target = tmp_path / "model"
    (target / "variables").mkdir(parents=True)
    for name in ("variables.index", "variables.data-00000-of-00001"):
        (target / "variables" / name).write_bytes((DECAYED / "variables" / name).read_bytes())
    (target / "saved_model.pb").write_bytes(model.SerializeToString(deterministic=True))
    return target


def test_a_model_written_by_0_1_gives_the_original_back(tmp_path):
    assert all("version" not in json.loads(node.attr[RECORD].s) for node in records(read_model(DECAYED)))
    assert strip(DECAYED, tmp_path / "stripped") == 3
    assert (tmp_path / "stripped" / "saved_model.pb").read_bytes() == (RECORD_01 / "original.pb").read_bytes()


def test_a_model_written_by_0_1_says_what_was_done_to_it():
    step = [each for each in describe_saved_model(DECAYED) if each["at"].startswith("step ")]
    assert [(each["variable"], each["where"], each["rate"], each["learning_rate"]) for each in step] == [
        ("a", "after", 0.25, None),
        ("b", "before", 0.25, "learning_rate"),
        ("c", "gradient", 0.25, None),
    ]


def test_a_model_written_by_0_1_is_not_rewritten_again(tmp_path):
    with pytest.raises(RewriteError, match="rewritten by graphwd before"):
        rewrite_saved_model(DECAYED, tmp_path / "twice", {"version": 1, "rules": [{"weight_decay": 0.1}]})


def test_what_is_written_today_carries_its_version(tmp_path):
    strip(DECAYED, tmp_path / "original")
    rewrite_saved_model(tmp_path / "original", tmp_path / "now", {"version": 1, "rules": [{"weight_decay": 0.1}]})
    found = [json.loads(node.attr[RECORD].s) for node in records(read_model(tmp_path / "now"))]
    assert [record["version"] for record in found] == [1, 1, 1]


def test_a_key_that_is_not_known_is_left_alone(tmp_path):
    assert strip(with_records(tmp_path, version=1, later={"a": [1]}), tmp_path / "stripped") == 3
    assert (tmp_path / "stripped" / "saved_model.pb").read_bytes() == (RECORD_01 / "original.pb").read_bytes()


@pytest.mark.parametrize("use", [describe_saved_model, lambda model: strip(model, model.parent / "stripped")])
def test_a_record_of_a_later_version_is_refused(tmp_path, use):
    # Whatever else that version may have changed.
    model = with_records(tmp_path, version=3, where="elsewhere", moved=None)
    with pytest.raises(RewriteError, match=r"was written by a newer graphwd: .* has version 3, .* up to 2; install"):
        use(model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("version", ["1", 0, -1, True, 1.5, [1]])
def test_a_version_that_is_none_is_damage(tmp_path, version):
    with pytest.raises(RewriteError, match="damaged record"):
        strip(with_records(tmp_path, version=version), tmp_path / "stripped")
