"""Measures what decay costs per step beside other ways to have it, in one run: `.venv/bin/python tools/bench`.

A case is a workload, an optimizer, and plain execution or XLA. In each round every contender of a case runs a short
block, beginning with another one each time; the ratios are of blocks of one round. Before anything is timed, contenders
that should agree are held against each other after one step; those that do not are not timed, and the exit status is 1.

Contenders, beside graphwd's: the undecayed step; the floor, which reads and writes once what is decayed; the
optimizer's own `weight_decay`; L2 in the loss; an assign loop, which multiplies each variable after the step; a second
optimizer, SGD with the weights for gradients; TensorFlow Addons. `more ms` is the median of what a step takes more than
the undecayed one of the same round. In the JSON, `ms`, `ratio`, `of_floor` and `extra_ms` are quartiles: lower, median,
upper. In the plot, whiskers are quartiles, and graphwd is orange.

Each case runs in a process of its own, for up to a minute and a half. The largest take about 5 GiB of memory.

Exit status: 0 done; 1 contenders disagree or a case failed; 2 the command line is malformed, or --plot finds no
matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import addons
import keras
import measuring
import tensorflow as tf
from checks import check
from contenders import ADDONS, FLOOR, UNDECAYED, CannotRunError, Case, Step, cases, contenders_of, make, why_not
from report import CaseReport, Row, plot, pyplot_or_exit, write_json, write_text
from rich.console import Console
from workloads import workloads

WIDTH = 170


def main() -> int:
    """Measures what was asked for and prints it."""
    options = parse()
    if options.plot:
        pyplot_or_exit()  # before everything is measured in vain
    tf.get_logger().setLevel("ERROR")
    every = ((case, contenders_of(case)) for case in cases(workloads(options.quick)))
    matching = ((case, [name for name in names if options.only in f"{case}, {name}"]) for case, names in every)
    chosen = [(case, names) for case, names in matching if names]
    if options.list:
        print_list(chosen)
        return 0
    if not chosen:
        print(f"no row's name holds {options.only!r}: see --list{' --quick' * options.quick}", file=sys.stderr)
        return 2
    if options.one is not None:
        case, names = chosen[options.one]
        print(json.dumps(asdict(run(case, names, options))))
        return 0
    return run_all(chosen, options)


def run_all(chosen: list[tuple[Case, list[str]]], options: argparse.Namespace) -> int:
    """Measures each case in a process of its own and prints the table; returns the exit status."""
    before = os.getloadavg()
    reports = []
    for number, (case, _) in enumerate(chosen):
        print(f"[{number + 1}/{len(chosen)}] {case}", file=sys.stderr, flush=True)
        reports.append(in_a_process(number, case))
        if options.json:
            write_json(
                reports, {"load before": f"{before[0]:.2f}"}, options.json
            )  # a long run that is cut off leaves it
    facts = {
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "CPUs": os.cpu_count(),
        "load before": f"{before[0]:.2f}",
        "load after": f"{os.getloadavg()[0]:.2f}",
        "quick": options.quick,
    }
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    write_text(reports, facts, console)
    if options.json:
        write_json(reports, facts, options.json)
    if options.plot:
        plot(reports, options.plot)
    wrong = [each for report in reports for each in report.checks if not each["holds"]]
    return 1 if wrong or not all(report.rows for report in reports) else 0


def in_a_process(number: int, case: Case) -> CaseReport:
    """Measures one case; its memory, which can be gigabytes, is free again for certain when the process ends."""
    command = [sys.executable, *sys.argv, "--one", str(number)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        ended = CaseReport(case.workload.name, case.optimizer, case.jit_compile, [])
        ended.remarks.append(f"FAILED: its process ended with {done.returncode}")
        return ended
    found = json.loads(done.stdout.splitlines()[-1])
    return CaseReport(**{**found, "rows": [Row(**row) for row in found["rows"]]})


def print_list(chosen: list[tuple[Case, list[str]]]) -> None:
    """Prints the names of the rows, with the reason where one cannot run."""
    for case, names in chosen:
        for name in names:
            reason = why_not(case, name)
            print(f"{case}, {name}" + (f": not run: {reason}" if reason else ""))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="rows whose name holds it, and what they are held against"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="by default 31, or 5 with --quick")
    parser.add_argument("--budget", type=float, default=60, metavar="SECONDS", help="for the rounds of one case")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, to see that it runs")
    parser.add_argument("--list", action="store_true", help="print the rows' names and measure nothing")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--tfa", type=Path, metavar="FOLDER", help="where TensorFlow Addons is, or is to be, installed")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (5 if options.quick else 31)
    return options


def run(case: Case, names: list[str], options: argparse.Namespace) -> CaseReport:
    """Makes, checks and times the contenders of a case; the undecayed step and the floor are always among them."""
    names = [name for name in contenders_of(case) if name in (UNDECAYED, FLOOR, *names)]
    rows = {name: Row(name, why_not(case, name)) for name in names}
    report = CaseReport(case.workload.name, case.optimizer, case.jit_compile, list(rows.values()))
    steps: dict[str, Step] = {}
    calls: dict[str, Any] = {}
    for name in names:
        if rows[name].why_not is None and name != ADDONS:
            try:
                steps[name], calls[name] = make(case, name)
                rows[name].remark = "; ".join(_brief(text) for text in steps[name].warnings)
            except CannotRunError as error:
                rows[name].why_not = str(error)
    for each in check(case, steps):
        report.checks.append({**each._asdict(), "holds": each.holds})
        if not each.holds:
            report.remarks.append(f"WRONG: {each}")
            rows[each.one].why_not = "its result is wrong"
            calls.pop(each.one, None)
    if UNDECAYED in calls:
        times, blocks = measuring.interleaved(calls, options.rounds, options.budget)
        report.rounds = len(times[UNDECAYED])
        if report.rounds < options.rounds:
            report.remarks.append(f"cut from {options.rounds} rounds, which would take more than {options.budget:g} s")
        for name, each in times.items():
            rows[name].measured(each, times[UNDECAYED], times.get(FLOOR)).calls = blocks[name]
    if ADDONS in rows and rows[ADDONS].why_not is None:
        _addons(case, rows[ADDONS], options)
    return report


def _addons(case: Case, row: Row, options: argparse.Namespace) -> None:
    """Measures TensorFlow Addons, against an undecayed step of its own process."""
    if options.tfa is None:
        row.why_not = "no folder for it was given: --tfa FOLDER"
        return
    try:
        found = addons.measure(addons.install(options.tfa), case, options.rounds, options.budget)
    except CannotRunError as error:
        row.why_not = str(error)
        return
    times = {name: measuring.np.array(each) for name, each in found["times"].items()}
    row.measured(times["decayed"], times["undecayed"], None).calls = found["calls"]["decayed"]
    undecayed = measuring.quartiles(times["undecayed"] * 1e3)[1]
    row.remark = (
        f"its undecayed step on TensorFlow {found['tensorflow']} takes {undecayed:.3f} ms; "
        f"its decay is right to {found['ulps']:.3g} ulp"
    )


def _brief(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."


if __name__ == "__main__":
    sys.exit(main())
