"""Finds the variables in which a step counts its updates, as optimizers do.

A counter is an integer that the step only adds 1 to, at one place, or at several of which a run meets one. It counts
the updates of a weight if each of them has such a place beside it, and each place such an update: both lie in one body,
or plain calls lead from one to the other. In a main graph a session must run both or neither, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graphwd.analysis.factors import number
from graphwd.analysis.flow import Flow
from graphwd.analysis.flows import Flows
from graphwd.analysis.sites import Path, Site
from graphwd.analysis.updates import Analysis
from graphwd.graph.edge import EdgeText, data_input, data_inputs, node_of
from graphwd.graph.graph import Variable
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, CallKind, Form
from graphwd.graph.traits import READ_OPS, SUM_OPS


@dataclass(frozen=True, slots=True)
class Counter:
    """A variable that counts.

    Attributes:
        variable: the variable, a scalar integer.
        sites: the writes that count up, of which a run meets one at most.
    """

    variable: Variable
    sites: tuple[Site, ...]

    def site_for(self, update: Site) -> Site | None:
        """The write that counts up whenever an update is done, in a body that the update lies in or below."""
        for site in self.sites:
            if home(site.path) == home(update.path) and update.path[: len(site.path)] == site.path:
                return site
        return None

    def counts(self, updates: Sequence[Site], flows: Flows) -> bool:
        """Whether it counts up whenever one of the updates of a variable is done, and at no other time.

        Args:
            updates: the updates.
            flows: the flow of data in the bodies of the step.
        """
        sites = {update: self.site_for(update) for update in updates}
        return set(sites.values()) == set(self.sites) and all(
            flows.run_together(site, update) for update, site in sites.items() if site is not None
        )


def home(path: Path) -> Path:
    """The calls that lead to the body that decides how often a site runs: all but the plain calls at the end."""
    end = len(path)
    while end and CALL_OPS[path[end - 1].op].kind is CallKind.CALL:
        end -= 1
    return path[:end]


def find_counters(analysis: Analysis, flows: Flows) -> tuple[Counter, ...]:
    """Finds every counter of a step.

    Args:
        analysis: what is known of the step.
        flows: the flow of data in its bodies.

    Returns:
        The counters, in the order of their variables.
    """
    return tuple(_counters(analysis, flows))


def _counters(analysis: Analysis, flows: Flows) -> Iterator[Counter]:
    for variable, written in analysis.integer_writes:
        sites = [site for site in written if not _is_apart(analysis, flows, site)]
        # Of a body that no weight is written in or below nothing is known, and nothing need be.
        apart = all(one.excludes(other) for one, other in itertools.combinations(sites, 2))
        # What counts in a branch of TensorFlow 1 cannot be read where another branch is taken.
        known = all(site.path in analysis.values and not flows.at(site.path).in_v1_branch(site.node) for site in sites)
        if sites and apart and known and all(_adds_one(flows.at(site.path), site, variable) for site in sites):
            yield Counter(variable, tuple(sites))


def _is_apart(analysis: Analysis, flows: Flows, site: Site) -> bool:
    """Whether a write is an initializer or a restore of a main graph, of which a session runs what it is asked for."""
    assert analysis.graph is not None
    if site.path or not analysis.graph.is_main or WRITE_OPS[site.op].form is not Form.ASSIGN:
        return False
    flow = flows.at(())
    value = data_input(flow.nodes[site.node].proto, WRITE_OPS[site.op].value)
    return not any(flow.nodes[name].op in READ_OPS for name in flow.reach.upstream([node_of(value)]))


def _adds_one(flow: Flow, site: Site, variable: Variable) -> bool:
    row, proto = WRITE_OPS[site.op], flow.nodes[site.node].proto
    if row.form is Form.ADD:
        return _is_one(flow, data_input(proto, row.value))
    if row.form is not Form.ASSIGN:
        return False
    total = flow.producer(flow.through_casts(data_input(proto, row.value)))
    if total is None or total.op not in SUM_OPS or total.op == "Sub" or len(total.inputs) != 2:
        return False
    first, second = (flow.through_casts(tensor) for tensor in data_inputs(total.proto)[:2])
    return any(flow.read(old) == variable and _is_one(flow, new) for old, new in ((first, second), (second, first)))


def _is_one(flow: Flow, tensor: EdgeText) -> bool:
    return number(flow.producer(flow.through_casts(tensor))) == 1
