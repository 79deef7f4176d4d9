"""Measures what roles add to planning: the same graph planned by names and by roles, in turn.

The graph is that of ``rewriter.py``: it is built anew, parsed, searched for updates and planned; the search for roles
is a further walk through all of its nodes. Printed are the medians of CPU microseconds a node, and the median and the
quartiles of the ratio in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
from measuring import quartiles
from rewriter import build
from rich.console import Console
from rich.table import Table

from graphwd.analysis.updates import find_updates
from graphwd.garbage import collection_paused
from graphwd.graph.graph import Graph
from graphwd.planning.planner import make_plan
from graphwd.policy.rules import Policy

SELECTORS: dict[str, dict[str, Any]] = {"name": {"name": "*"}, "role": {"role": "kernel"}}


def planned(nodes: int, variables: int, selector: str) -> float:
    """CPU microseconds a node of parsing and planning one graph."""
    step, handles = build(nodes, variables)
    policy = Policy.from_dict({"version": 1, "rules": [{**SELECTORS[selector], "weight_decay": 0.01}]})
    with collection_paused():
        start = time.process_time()
        plan = make_plan(find_updates(Graph(step, [], handles, ["inputs"])), policy)
        seconds = time.process_time() - start
    assert len(plan.injections) == variables
    return seconds / len(step.node_def) * 1e6


def measure(nodes: int, variables: int, rounds: int) -> dict[str, float]:
    """Plans by names and by roles, in turn."""
    planned(nodes, variables, "role")  # what Python does once is not counted
    times = {selector: [0.0] * rounds for selector in SELECTORS}
    for turn in range(rounds):
        for selector, measured in times.items():
            measured[turn] = planned(nodes, variables, selector)
    ratios = [role / name for role, name in zip(times["role"], times["name"], strict=True)]
    low, middle, high = quartiles(np.array(ratios))
    medians = {f"{selector}_us_a_node": statistics.median(measured) for selector, measured in times.items()}
    return {"nodes": nodes, "variables": variables, **medians, "ratio": middle, "least": low, "most": high}


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(120_000, 2_000), metavar=("NODES", "VARIABLES"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    nodes, variables = options.size
    row = measure(nodes, variables, options.rounds)
    if options.json:
        print(json.dumps(row))
        return
    table = Table(title="planning by names and by roles")
    for column in row:
        table.add_column(column.replace("_", " "), justify="right")
    table.add_row(*(f"{value:,.0f}" if key in ("nodes", "variables") else f"{value:.2f}" for key, value in row.items()))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
