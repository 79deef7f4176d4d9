"""Counts the test cases of a Bazel run, for the closing line of tools/test.

Usage: tools/count_tests.py EVENTS STATUS, where EVENTS is the file that --build_event_json_file wrote and
STATUS is the exit status of bazel. Prints `N passed, N failed`; skipped cases are neither.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path


def main(events: str, status: str) -> None:
    """Prints the closing line.

    Args:
        events: the path of the build events.
        status: bazel's exit status. A run that failed without a failed case, such as one that does not
            build, counts as one failure.
    """
    path = Path(events)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    cases = [case for report in reports(lines) for case in ElementTree.parse(report).iter("testcase")]
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - failed - skipped
    if status != "0":
        failed = max(failed, 1)
    print(f"{passed} passed, {failed} failed")


def reports(events: Iterable[str]) -> list[Path]:
    """Returns the JUnit report of each target, shard and run; of several attempts, the last one's."""
    found = {}
    for event in map(json.loads, events):
        test = event["id"].get("testResult")
        if test is None:
            continue
        for output in event["testResult"].get("testActionOutput", []):
            if output["name"] == "test.xml":
                where = urllib.parse.urlparse(output["uri"]).path
                found[test["label"], test["run"], test.get("shard")] = Path(urllib.request.url2pathname(where))
    return list(found.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
