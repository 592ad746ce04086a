"""Progress of a search on the terminal: problem i of n, candidate, best so far, time left."""

from __future__ import annotations

from slidesparse.cli.progress import ProgressLine
from slidesparse.devices import Device
from slidesparse.problem import GemmProblem
from slidesparse.search.driver import Found, Listener
from slidesparse.search.strategy import Tick


class ProgressListener(ProgressLine, Listener):
    """A bar on a terminal, a line now and then elsewhere.

    Args:
        total: problems.
        console: standard error.
    """

    def started(self, problem: GemmProblem, device: Device) -> None:
        """Show the problem in hand."""
        self.say(f"{problem} on {device}")

    def tick(self, tick: Tick) -> None:
        """Show the candidate in hand and the best so far."""
        best = "" if tick.best_us is None else f", best {tick.best_us:,.1f} us"
        self.say(f"{tick.problem}: {tick.done + 1}/{tick.total} {tick.candidate.label[:40]}{best}")

    def finished(self, problem: GemmProblem, found: Found | None, reason: str) -> None:
        """Count the problem; say why if it was skipped."""
        self.advance()
        if found is None:
            self.note(f"skipped {problem}: {reason}")
