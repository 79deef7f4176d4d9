"""Clusters of real processes on the loopback, each of which runs tests/helpers/cluster_program.py."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

LIMIT_S = 900
"""How long one wait may take; none does unless something hangs."""

_PORT_TAKEN = re.compile(r"Could not start gRPC server|[Aa]ddress already in use")


class PortTakenError(Exception):
    """Another process took a port after it was picked."""


class Task:
    """One process of a cluster.

    Attributes:
        name: its job and its index.
    """

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._log = log
        self.start()

    def start(self) -> None:
        """Starts the process, for the first time or again."""
        with self._log.open("a") as log:
            self._begin = log.tell()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=self._environment
            )

    def output(self) -> str:
        """What the process has written since it was started last."""
        return self._log.read_bytes()[self._begin :].decode(errors="replace")

    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """Sends SIGKILL and waits for the end."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


class Cluster:
    """The processes of a cluster, by name such as ``worker0``."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = tasks

    def __getitem__(self, name: str) -> Task:
        return self._tasks[name]

    def wait_for_output(self, text: str, *names: str) -> None:
        """Waits until each of these has written a text."""
        self._wait(f"write {text!r}", lambda: all(text in self[name].output() for name in names), names)

    def wait_for_files(self, *files: Path) -> None:
        """Waits until each of these exists."""
        self._wait(f"make {files}", lambda: all(file.exists() for file in files), ())

    def wait_for_end(self, *names: str) -> None:
        """Waits until each of these has ended well."""
        self._wait("end", lambda: all(self[name].status() == 0 for name in names), names)

    def wait_for_failure(self, name: str) -> str:
        """Waits until a process has failed by itself; returns what it wrote."""
        self._wait("fail", lambda: self[name].status() is not None, ())
        assert self[name].status() not in (0, -signal.SIGKILL), self.report()
        return self[name].output()

    def report(self) -> str:
        """The state and the output of every process."""
        return "\n".join(
            f"--- {task.name}: {'running' if task.status() is None else f'exit status {task.status()}'}\n"
            f"{task.output()[-6000:]}"
            for task in self._tasks.values()
        )

    def _wait(self, what: str, fulfilled: Callable[[], bool], healthy: tuple[str, ...]) -> None:
        end = time.monotonic() + LIMIT_S
        while not fulfilled():
            if any(_PORT_TAKEN.search(task.output()) for task in self._tasks.values()):
                raise PortTakenError(self.report())
            failed = [name for name in healthy if self[name].status()]
            assert not failed, f"{', '.join(failed)} failed\n{self.report()}"
            assert time.monotonic() < end, f"{', '.join(self._tasks)}: did not {what} in {LIMIT_S} s\n{self.report()}"
            time.sleep(0.05)


@contextmanager
def cluster(jobs: Mapping[str, list[list[str]]], folder: Path) -> Iterator[Cluster]:
    """Starts the processes of a cluster, and kills what is left of them at the end.

    Args:
        jobs: for each job (worker, ps, chief) the arguments of the program of each of its tasks.
        folder: where their output goes.
    """
    ports = _free_ports(sum(map(len, jobs.values())))
    addresses = {job: [f"127.0.0.1:{ports.pop()}" for _ in tasks] for job, tasks in jobs.items()}
    with ExitStack() as stack:
        tasks: dict[str, Task] = {}
        for job, each in jobs.items():
            for index, arguments in enumerate(each):
                name = f"{job}{index}"
                command = [sys.executable, "-m", "tests.helpers.cluster_program", *arguments]
                tasks[name] = Task(name, command, _environment(addresses, job, index), folder / f"{name}.log")
                stack.callback(tasks[name].kill)
        yield Cluster(tasks)


def with_free_ports(test: Callable[[Path], None], folder: Path) -> None:
    """Runs a test in a folder of its own, and again where another process took one of its ports."""
    for attempt in range(3):
        own = folder / f"attempt{attempt}"
        own.mkdir()
        try:
            return test(own)
        except PortTakenError as error:
            failure = error
    raise failure


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _environment(addresses: Mapping[str, list[str]], job: str, index: int) -> dict[str, str]:
    return os.environ | {
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "TF_CONFIG": json.dumps({"cluster": addresses, "task": {"type": job, "index": index}}),
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }
