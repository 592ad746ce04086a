"""A progress bar on a terminal, and a line now and then where there is none."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from typing_extensions import Self

LINE_EVERY_S = 10.0
"""Without a terminal one line per so many seconds keeps a log readable."""


class ProgressLine:
    """So many of so many, what is in hand, about how long it takes. Safe to use from threads.

    Args:
        total: steps.
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

    def __enter__(self) -> Self:
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

    def advance(self) -> None:
        """Count a step."""
        with self._lock:
            self._done += 1
            if self._bar is not None and self._task is not None:
                self._bar.advance(self._task)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, soft_wrap=True, markup=False)

    def say(self, text: str) -> None:
        """Show what is in hand."""
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
