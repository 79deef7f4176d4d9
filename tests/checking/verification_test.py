"""The findings of a verification, as plain values."""

from __future__ import annotations

import json

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
