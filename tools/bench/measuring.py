"""Times several steps in turn, so that what else happens on the machine happens to all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

BLOCK = 0.02
"""Seconds that a block is meant to take."""
MOST_CALLS = 200


def interleaved(
    steps: Mapping[str, Callable[[], object]], rounds: int, budget: float
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Runs each of some steps in a short block in each round, beginning with another one each time.

    Args:
        steps: the steps by name, each of which has run before.
        rounds: how many rounds.
        budget: seconds; where the rounds would take longer there are fewer of them, but 3.

    Returns:
        Seconds a call, by name, one for each round; and the number of calls in a block, by name.
    """
    names = list(steps)
    calls = {name: _calls(steps[name]) for name in names}
    start = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > budget * number / (number + 1):
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            steps[name]()  # brings its own variables into the caches, as far as they fit
            times[name].append(_block(steps[name], calls[name]))
    return {name: np.array(each) for name, each in times.items()}, calls


def _calls(step: Callable[[], object]) -> int:
    """How many calls take about as long as a block is meant to."""
    return int(np.clip(BLOCK / min(_block(step, 1) for _ in range(3)), 1, MOST_CALLS))


def quartiles(values: np.ndarray) -> list[float]:
    """The lower quartile, the median and the upper one."""
    return np.percentile(values, [25, 50, 75]).tolist()


def _block(step: Callable[[], object], calls: int) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls
