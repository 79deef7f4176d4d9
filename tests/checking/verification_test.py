"""The findings of a verification, as plain values."""

from __future__ import annotations

import json

import pytest

from graphwd.checking.verification import Checked, Kind, RateCheck, Verdict, Verification


def test_findings_as_json():
    right = Checked("w", True, 0.5, 1e6, Verdict.RIGHT, Kind.WHOLE, RateCheck.PROBED, "", "trace 1", "w (path net)")
    wrong = Checked("output 0", False, float("inf"), 0.0, Verdict.WRONG, reason="it moves")
    text = json.dumps(Verification((right,), ("a and b",), 5, (wrong,)).record(), allow_nan=False)
    assert json.loads(text) == {
        "version": 1,
        "ok": False,
        "runs": 5,
        "largest_error": None,
        "variables": [
            {
                "name": "w",
                "label": "w (path net)",
                "function": "trace 1",
                "decayed": True,
                "error": 0.5,
                "decay": 1e6,
                "verdict": "right",
                "held_against": "the whole step",
                "learning_rate": "probed",
                "reason": None,
            }
        ],
        "outputs": [
            {
                "name": "output 0",
                "label": "output 0",
                "function": None,
                "decayed": False,
                "error": None,
                "decay": 0.0,
                "verdict": "wrong",
                "held_against": "the plan's places only",
                "learning_rate": None,
                "reason": "it moves",
            }
        ],
        "races": ["a and b"],
    }


def blocks():
    for block in range(12):
        yield Checked(f"net/block_{block}/kernel", True, block / 8, 1e6 * (block + 1), Verdict.RIGHT, Kind.WHOLE)
        yield Checked(f"net/block_{block}/bias", False, 0.0, 0.0, Verdict.RIGHT, Kind.WHOLE)
        for slot in ("momentum", "velocity"):
            name = f"adam/net_block_{block}_kernel_{slot}"
            yield Checked(name, False, block / 16, 0.0, Verdict.RIGHT, Kind.WHOLE, counts=False)


OUTPUTS = tuple(Checked(f"output {number}", False, 0.0, 0.0, Verdict.RIGHT) for number in range(3))


def test_blocks_and_slot_variables_are_folded():
    whole = Verification(tuple(blocks()), (), 5, OUTPUTS)
    assert whole.to_text(width=100).splitlines() == [
        "right, decayed, held against the whole step                                    12 variables",
        "  net/block_{0…11}/kernel                 ×12  decay 1e+06 to 1.2e+07 ulp  error 1.375 ulp",
        "",
        "right, held against the whole step                                             36 variables",
        "  net/block_{0…11}/bias                   ×12                              error 0 ulp",
        "  what is not trained, as slot variables  ×24                              error 0.6875 ulp",
        "",
        "right, held against the plan's places only                                        3 outputs",
        "  output {0…2}                            ×3                               error 0 ulp",
        "",
        "right in 5 runs; largest error 1.375 ulp",
    ]
    assert str(whole) == whole.to_text()


def test_all_of_it_has_a_line_for_each():
    text = Verification(tuple(blocks()), (), 5, OUTPUTS).to_text(all=True)
    for checked in (*blocks(), *OUTPUTS):
        assert sum(line.strip().startswith(f"{checked.name}  ") for line in text.splitlines()) == 1


def test_what_is_wrong_has_a_line_of_its_own():
    moved = Checked("adam/iteration", False, 7.5, 0.0, Verdict.WRONG, Kind.WHOLE, counts=False)
    lines = Verification((*blocks(), moved), ("a and b",), 2).to_text(width=100).splitlines()
    assert lines[-5].split() == ["wrong,", "held", "against", "the", "whole", "step", "1", "variable"]
    assert lines[-4].split() == ["adam/iteration", "error", "7.5", "ulp"]
    assert lines[-2:] == ["WRONG in 2 runs; largest error 7.5 ulp", "race: a and b"]


def test_functions_and_learning_rates_are_told_in_the_head():
    one = Checked("w", True, 0.0, 9.0, Verdict.UNSEEN, Kind.PLAN, RateCheck.PLAN, "", "train")
    head = Verification((one,), (), 1).to_text(width=200).splitlines()[0]
    assert head.startswith(
        "too small to see in train, decayed, held against the plan's places only, learning rate taken from the plan "
    )


@pytest.mark.parametrize("all", [False, True])
@pytest.mark.parametrize("width", [20, 40, 64, 100])
def test_no_line_is_wider_than_the_terminal(width, all):
    long = Checked("scope/" * 40 + "kernel", True, 1.0, 1e6, Verdict.RIGHT, function="a_function_of_some_length")
    text = Verification((*blocks(), long), ("r " * 90,), 5, OUTPUTS).to_text(all=all, width=width)
    assert max(map(len, text.splitlines())) <= width
