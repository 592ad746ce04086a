"""Progress of a search on the terminal: problem i of n, candidate, best so far, time left."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from slidesparse.devices import Device
from slidesparse.problem import GemmProblem
from slidesparse.search.driver import Found, Listener
from slidesparse.search.strategy import Tick

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 10.0
"""Without a terminal one line per so many seconds keeps a log readable."""


class ProgressListener(Listener):
    """A bar on a terminal, a line now and then elsewhere.

    Args:
        total: problems.
        console: standard error.
    """

    def __init__(self, total: int, console: Console) -> None:
        """Make the bar; it shows inside `with`."""
        self._total, self._console = total, console
        self._done = 0
        self._start = self._last_line = time.monotonic()
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressListener:
        """Show the bar if this is a terminal."""
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def started(self, problem: GemmProblem, device: Device) -> None:
        """Show the problem in hand."""
        self._say(f"{problem} on {device}")

    def tick(self, tick: Tick) -> None:
        """Show the candidate in hand and the best so far."""
        best = "" if tick.best_us is None else f", best {tick.best_us:,.1f} us"
        self._say(f"{tick.problem}: {tick.done + 1}/{tick.total} {tick.candidate.label[:40]}{best}")

    def finished(self, problem: GemmProblem, found: Found | None, reason: str) -> None:
        """Count the problem; say why if it was skipped."""
        with self._lock:
            self._done += 1
            if self._bar is not None and self._task is not None:
                self._bar.advance(self._task)
        if found is None:
            self._console.print(f"skipped {problem}: {reason}", soft_wrap=True, markup=False)

    def _say(self, text: str) -> None:
        with self._lock:
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, description=text)
                return
            now = time.monotonic()
            if now - self._last_line < LINE_EVERY_S:
                return
            self._last_line = now
            left = self._left(now)
            self._console.print(
                f"{self._done}/{self._total} {text}{left}", soft_wrap=True, markup=False
            )

    def _left(self, now: float) -> str:
        if not self._done:
            return ""
        seconds = (now - self._start) / self._done * (self._total - self._done)
        return f", about {seconds:.0f} s left"
