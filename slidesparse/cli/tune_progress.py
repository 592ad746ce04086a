"""Progress of tuning on the terminal: kernels compiled, problem i of n."""

from __future__ import annotations

from slidesparse.cli.progress import ProgressLine
from slidesparse.kernel_problem import KernelProblem
from slidesparse.kernels.tune import Tuned, TuneListener


class TuneProgress(ProgressLine, TuneListener):
    """A bar on a terminal, a line now and then elsewhere.

    Args:
        total: problems.
        console: standard error.
    """

    def compiling(self, done: int, total: int) -> None:
        """Show how many kernels are compiled."""
        self.say(f"compiling {done}/{total}")

    def started(self, problem: KernelProblem, configs: int) -> None:
        """Show the problem in hand."""
        self.say(f"{problem}: {configs} configurations")

    def overlapping(self, done: int, total: int) -> None:
        """Show how far the second pass is."""
        self.say(f"winners against their overlapped launch {done}/{total}")

    def finished(self, problem: KernelProblem, tuned: Tuned | None, reason: str) -> None:
        """Count the problem; say why if it was skipped."""
        self.advance()
        if tuned is None:
            self.note(f"skipped {problem}: {reason}")
