"""What a backend is: a set of candidates for a problem, and the way to run each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from slidesparse.candidate import Candidate
from slidesparse.devices import Device
from slidesparse.problem import GemmProblem
from slidesparse.timing import Runner

if TYPE_CHECKING:
    from slidesparse.search.operands import Operands


class Effort(str, Enum):
    """How many candidates a search tries and how long it measures them."""

    QUICK = "quick"
    NORMAL = "normal"
    FULL = "full"

    def __str__(self) -> str:
        """The word as the command line spells it."""
        return self.value


@dataclass(frozen=True)
class Availability:
    """Whether a backend works on this machine and, if not, what mends it.

    Args:
        ok: it works.
        reason: one line saying why not, or which version works.
        remedy: the one command that mends it; empty where nothing can.
    """

    ok: bool
    reason: str = ""
    remedy: str = ""


class Backend(ABC):
    """One library's way to run a GemmProblem. Stateless between problems; lives in the worker."""

    name: str
    sparse: bool
    """Whether its candidates run the slid 2:4 weight on K' instead of the unexpanded weight."""
    on_gpu: bool = True
    """Whether it runs on CUDA devices; the others run on the CPU."""

    @property
    def installed(self) -> bool:
        """Whether it is there for a search that names no backends to take; True unless optional.

        An optional one that is not installed is passed over without a word.
        """
        return True

    @property
    def identity(self) -> str:
        """The name that results note: with what decides them and is not in the Fingerprint."""
        return self.name

    def current(self, candidate: Candidate) -> bool:
        """Whether a candidate of its own from an earlier search is one that it would run now."""
        return True

    @abstractmethod
    def availability(self, device: Device) -> Availability:
        """Say whether the library is here and works on `device`. Raises nothing."""

    @abstractmethod
    def refusal(self, problem: GemmProblem, device: Device) -> str | None:
        """Say why this backend cannot run `problem`, or None if it can, without touching a GPU."""

    @abstractmethod
    def candidates(self, problem: GemmProblem, effort: Effort) -> list[Candidate]:
        """List the candidates; the first is what the library would choose unasked.

        Raises:
            CandidateError: the library offers nothing for the problem, with its reason.
        """

    def neighbours(
        self, problem: GemmProblem, candidate: Candidate, effort: Effort
    ) -> list[Candidate]:
        """List variations of a candidate that did well; none unless the backend knows some."""
        return []

    @abstractmethod
    def prepare(self, problem: GemmProblem, candidate: Candidate, operands: Operands) -> Runner:
        """Make one candidate ready: plan, workspace, packed weights.

        Raises:
            CandidateError: the library refuses the candidate.
        """
