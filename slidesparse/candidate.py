"""Candidate, Measurement and ProblemResult: what a search tries, sees and keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum

from slidesparse.problem import GemmProblem

Param = int | float | str | bool
"""What a candidate's parameter may be: plain data that JSON holds exactly."""


class Provenance(str, Enum):
    """Where a figure comes from; a table never mixes these silently."""

    MEASURED = "measured"
    CACHED = "cached"
    BUNDLED = "bundled"
    DERIVED = "derived"
    ESTIMATED = "estimated"
    PUBLISHED = "published"

    def __str__(self) -> str:
        """The word as tables print it."""
        return self.value


def timestamp() -> str:
    """The time in UTC as results and result files give it, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Candidate:
    """One way to run a problem: a backend and its parameters.

    Args:
        backend: name of the backend, for example "cublaslt".
        params: its parameters, plain data; together with `backend` they identify the candidate.
        sparse: whether it runs the slid 2:4 weight on K' (True) or the unexpanded one (False).
        fields: decoded, human-readable description; not part of the identity.
    """

    backend: str
    params: Mapping[str, Param] = field(default_factory=dict)
    sparse: bool = False
    fields: Mapping[str, Param] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The identity as one canonical string."""
        form = "sparse" if self.sparse else "dense"
        return f"{self.backend}:{form}:{json.dumps(dict(self.params), sort_keys=True)}"

    @property
    def label(self) -> str:
        """A short name for tables."""
        shown = self.fields or {k: v for k, v in self.params.items() if k != "algo"}
        inner = " ".join(f"{name}={value}" for name, value in shown.items())
        return f"{self.backend} {inner}".strip()

    def __hash__(self) -> int:
        """Hash of the identity."""
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        """Whether both run the same thing."""
        return isinstance(other, Candidate) and self.key == other.key


@dataclass(frozen=True)
class Measurement:
    """What one candidate did on one problem.

    Args:
        candidate: that ran.
        median_us: median time of one GEMM in microseconds.
        spread_us: interquartile range of the samples in microseconds.
        samples: how many samples the median is of.
        launches: GEMMs per sample; a sample's time is divided by it.
        error: relative error of the whole output, |out - ref| / |ref| (Frobenius), against float32.
        worst: largest error of one element over the root mean square of the reference.
        cold_l2: whether every launch found its operands outside the L2 cache.
        graph: whether launches were replayed from a CUDA graph.
        workspace: bytes of scratch memory that the candidate asks for.
        clock_mhz: SM clock while timed, where the driver tells.
        power_w: board power while timed, where the driver tells.
    """

    candidate: Candidate
    median_us: float
    spread_us: float
    samples: int
    launches: int
    error: float
    worst: float
    cold_l2: bool = True
    graph: bool = True
    workspace: int = 0
    clock_mhz: int | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why a candidate is out: it is remembered and not tried again.

    Args:
        candidate: that failed.
        kind: one of "crash", "timeout", "memory", "wrong", "refused".
        reason: one line with the values.
    """

    candidate: Candidate
    kind: str
    reason: str


@dataclass(frozen=True)
class ProblemResult:
    """The outcome of one problem, as the tuning cache keeps it.

    Args:
        problem: that was searched, with the M it was timed at.
        ranked: the finalists' measurements of one interleaved race, fastest first.
        defaults: what each backend would have run unasked, from the same race.
        baseline: the fastest dense way, from the same race and on the same pruned weight;
            for a dense problem, its own winner.
        failures: candidates that are out, and why.
        left_out: backends that do not support the problem, with their reason.
        backends: of the problem's kind that took part or said why not, sorted; "vllm 0.25.1" with
            its version where the Fingerprint does not have that.
        complete: whether every candidate was tried; False if a budget cut the search short.
        tried: how many candidates were verified and timed.
        tie: whether the first two of the problem's own kind could not be told apart.
        effort: "quick", "normal" or "full".
        seed: of the random operands.
        seconds: wall time that the problem took.
        searched_at: UTC time in ISO 8601.
    """

    problem: GemmProblem
    ranked: tuple[Measurement, ...]
    defaults: tuple[Measurement, ...] = ()
    baseline: Measurement | None = None
    failures: tuple[Failure, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    backends: tuple[str, ...] = ()
    complete: bool = True
    tried: int = 0
    tie: bool = False
    effort: str = "normal"
    seed: int = 0
    seconds: float = 0.0
    searched_at: str = ""

    @property
    def best(self) -> Measurement | None:
        """The winner, or None if nothing supports the problem."""
        return self.ranked[0] if self.ranked else None
