"""A progress bar on standard error, for what takes longer than a second, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Generator

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

AFTER = 1.0
"""Seconds after which something is shown."""


class _Display:
    """All bars of the process: rich can show only one set of bars at a time."""

    def __init__(self) -> None:
        stages = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.console = Console(file=sys.stderr)
        self._progress = Progress(
            *stages, console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._lock = threading.Lock()
        self._shown = False

    def add(self, what: str, total: float | None) -> TaskID:
        return self._progress.add_task(what, total=total, visible=False)

    def show(self, task: TaskID) -> None:
        with self._lock:
            if task in self._progress.task_ids:  # it may have ended just before
                self._progress.update(task, visible=True)
                if not self._shown:
                    self._shown = True
                    self._progress.start()

    def advance(self, task: TaskID, by: float) -> None:
        self._progress.advance(task, by)

    def remove(self, task: TaskID) -> None:
        with self._lock:
            self._progress.remove_task(task)

    def close(self) -> None:
        with self._lock:
            if self._shown:
                self._progress.stop()


_display: _Display | None = None


@contextlib.contextmanager
def progress(
    what: str, total: float | None = None, *, after: float | None = None
) -> Generator[Callable[[float], None]]:
    """Shows a bar while the block runs, from one second after its start; nothing is left of it at the end.

    Nothing is shown where standard error is no terminal. Blocks may be nested; each has its own line.

    Args:
        what: what is done, in a word or two.
        total: how much of it there is; None where that is not known, and the bar only moves.
        after: seconds after which it is shown; None for `AFTER`.

    Yields:
        A function that is told how much more has been done.
    """
    global _display
    if not _is_terminal():
        yield lambda _: None
        return
    with contextlib.ExitStack() as stack:
        if _display is None:
            _display = _Display()
            stack.callback(_close)
            stack.enter_context(_above(_display.console))
        display = _display
        task = display.add(what, total)
        timer = threading.Timer(AFTER if after is None else after, display.show, [task])
        timer.daemon = True
        timer.start()
        stack.callback(display.remove, task)
        stack.callback(timer.cancel)
        yield lambda by: display.advance(task, by)


def _is_terminal() -> bool:
    """Whether a bar can be shown: standard error is a terminal, and no other thread may be showing one."""
    if threading.current_thread() is not threading.main_thread():
        return False
    try:
        return _display is not None or sys.stderr.isatty()
    except (AttributeError, ValueError):  # it is None, or closed
        return False


def _close() -> None:
    global _display
    display, _display = _display, None
    if display is not None:
        display.close()


@contextlib.contextmanager
def _above(console: Console) -> Generator[None]:
    """Prints what the user's code prints to a terminal above the bar, and not into it."""
    with contextlib.ExitStack() as stack:
        proxies = [FileProxy(console, stream) for stream in (sys.stdout, sys.stderr)]
        if sys.stdout.isatty():
            stack.enter_context(contextlib.redirect_stdout(proxies[0]))
            stack.callback(proxies[0].flush)
        stack.enter_context(contextlib.redirect_stderr(proxies[1]))
        stack.callback(proxies[1].flush)
        yield
