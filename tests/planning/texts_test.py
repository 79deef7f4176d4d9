"""The phrases of a plan."""

from __future__ import annotations

import pytest

from graphwd.planning.texts import decay_text, elements, human, parameters_text, shape_text, summary
from tests.helpers.records import DECAYED


@pytest.mark.parametrize(
    ("changes", "decay"),
    [
        ({}, "0.0005 after update"),
        ({"order": "before"}, "0.0005 before update"),
        ({"scale": "lr", "order": "before"}, "0.0005 × lr before update"),
        ({"mode": "coupled"}, "0.0005 coupled"),
        ({"mode": "coupled", "formula": "huber(delta=0.5)"}, "0.0005 coupled, huber(delta=0.5)"),
        ({"formula": "cautious", "rows": "touched"}, "0.0005 after update, cautious, rows touched"),
        ({"scale": "relative", "peak_learning_rate": 1e-3}, "0.0005 × lr/0.001 after update"),
        ({"scale": "corrected", "peak_learning_rate": 1e-3}, "0.0005 × lr²/0.001 after update"),
        ({"rows": "touched"}, "0.0005 after update, rows touched"),
        ({"weight_decay": 1e-7}, "1e-07 after update"),
        ({"tunable": "body"}, "0.0005 (body) after update"),
        ({"schedule": {"name": "cosine(steps=9)"}}, "cosine(steps=9) after update"),
        ({"outcome": "no update"}, "no update"),
        ({"outcome": "refused"}, "refused"),
    ],
)
def test_decay(changes, decay):
    assert decay_text({**DECAYED, **changes}) == decay


@pytest.mark.parametrize(
    ("shape", "text", "count"),
    [(None, "?", None), ([], "scalar", 1), ([5], "5", 5), ([2, None, 3], "2×?×3", None), ([0, 3], "0×3", 0)],
)
def test_shape(shape, text, count):
    assert shape_text(shape) == text
    assert elements(shape) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (1234, "1.23k"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (109_482_240, "109M"),
        (1_750_000_000, "1.75G"),
        (5 * 10**12, "5T"),
        (10**400, "over 1000T"),
    ],
)
def test_a_count_for_people(count, text):
    assert human(count) == text


def test_parameters():
    assert parameters_text([]) == "0 parameters"
    assert parameters_text([1]) == "1 parameter"
    assert parameters_text([3000, 4]) == "3k parameters"
    assert parameters_text([6, None, None]) == "6 parameters and 2 of unknown shape"
    assert parameters_text([None]) == "of unknown shape"


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([(0, 0)], "0 of 0 trainable variables decayed"),
        ([(1, 1)], "1 of 1 trainable variable decayed"),
        ([(2, 3)], "2 of 3 trainable variables decayed"),
        ([(2, 3), (2, 3)], "2 of 3 trainable variables decayed in each of 2 traces or graphs"),
        ([(2, 3), (0, 3)], "2 of 3 or 0 of 3 trainable variables decayed in some of 2 traces or graphs"),
    ],
)
def test_summary(steps, text):
    record = {"steps": [{"decayed": decayed, "variables": count} for decayed, count in steps], "fuse": "none"}
    assert summary(record) == text
    fused = ", their updates fused with the decay as far as XLA can (fuse: xla)"
    assert summary({**record, "fuse": "xla"}) == text + fused
