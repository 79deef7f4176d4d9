"""Which word was meant."""

from __future__ import annotations

import pytest

from graphwd.policy.words import did_you_mean, near

WORDS = ["decoupled", "coupled", "cuda-convnet", "float16", "float32", "other_word"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("couple", "coupled"),
        ("Decoupled", "decoupled"),
        ("CudaConvnet", "cuda-convnet"),
        ("other word", "other_word"),
        ("otherword", "other_word"),
        ("half", "float16"),
        ("float", None),  # which of the two?
        ("something", None),
        ("", None),
        ("--", None),
        (None, None),
    ],
)
def test_near(word, meant):
    assert near(word, WORDS, {"half": "float16"}) == meant
    assert did_you_mean(word, WORDS, {"half": "float16"}) == (f"; did you mean '{meant}'?" if meant else "")


def test_what_is_enormous_is_near_nothing():
    assert near(10**5000, WORDS) is None
    assert near("coupled" * 10**6, WORDS) is None


def test_nothing_is_near_in_an_empty_table():
    assert near("word", []) is None
