"""Result files of `slidesparse bench attention`: every backend, what it took or why not.

One JSON form, versioned, written by the tool and never by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from slidesparse import __version__
from slidesparse.bench.attention.bound import Bound, Rates, Verdict
from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.bench.fields import STRICT, Amount, Duration, Machine, Name, Positive, Text
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind

KIND = FileKind("slidesparse-attention", 1, "slidesparse bench attention")


class Kind(str, Enum):
    """Why a backend has no time."""

    REFUSED = "refused"
    MEMORY = "memory"
    WRONG = "wrong"
    FAILED = "failed"

    def __str__(self) -> str:
        """The word as tables print it."""
        return self.value


@dataclass(frozen=True)
class Sustained:
    """What one backend did for a while without a pause, and what the GPU said of itself then.

    Args:
        seconds: that it ran.
        us: microseconds per call, the mean.
        clock_mhz: of the SMs, mean; None without NVML.
        power_w: mean; None without NVML.
        joules: per call; None without NVML.
        counters: hardware counters by name in percent, see slidesparse.counters.
        no_counters: why there are none; "" where there are.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    seconds: Duration
    us: Duration
    clock_mhz: Amount | None
    power_w: Amount | None
    joules: Amount | None
    counters: dict[Name, Amount]
    no_counters: Text


@dataclass(frozen=True)
class AttentionRow:
    """One backend on one problem, from one race with the others.

    Args:
        problem: that ran.
        backend: its name.
        how: what is special about the way it ran, "" for nothing.
        median_us: microseconds per call.
        spread_us: interquartile range of the samples.
        sets: of operands that the launches rotate through, so that the L2 cache is cold.
        error: of the worst checked row, over the root mean square of its reference.
        plain_error: the same of plain torch in the same dtype.
        checked: heads of sequences that were checked, of B H.
        sustained: None where it was not measured: on a CPU.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    problem: AttentionProblem
    backend: Name
    how: Text
    median_us: Duration
    spread_us: Amount
    sets: Positive
    error: Amount
    plain_error: Amount
    checked: Positive
    sustained: Sustained | None

    @property
    def tflops(self) -> float:
        """TFLOP/s at the median time."""
        return self.problem.tflops(self.median_us)

    @property
    def gbs(self) -> float:
        """GB/s of compulsory bytes at the median time."""
        return self.problem.gbs(self.median_us)


@dataclass(frozen=True)
class LeftOut:
    """A backend without a time for a problem."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    problem: AttentionProblem
    backend: Name
    kind: Kind
    reason: Text


@dataclass(frozen=True)
class ProblemBound:
    """What is known of a problem before anything runs.

    Args:
        problem: it is about.
        bound: of the GPU; None where its rates are not known.
        targets: that were asked for, and what they need.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    problem: AttentionProblem
    bound: Bound | None
    targets: tuple[Verdict, ...]


@dataclass(frozen=True)
class AttentionRecord(Stamped):
    """One run of the benchmark, as its result file holds it.

    Args:
        fingerprint: of the machine; None where bounds of another GPU were computed only.
        rates: of the GPU; None where they are not known, as on a CPU.
        settings: the options of the command, and how FLOP were counted.
        seconds: wall time.
        interrupted: whether it ended early, by hand or because the device was lost.
        bounds: one per problem.
        rows: by problem, in the order of the backends.
        left_out: what was not measured.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    fingerprint: Machine | None
    rates: Rates | None
    settings: dict[Name, Any]
    seconds: Amount
    interrupted: bool
    bounds: Annotated[tuple[ProblemBound, ...], Field(min_length=1)]
    rows: tuple[AttentionRow, ...]
    left_out: tuple[LeftOut, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    def __post_init__(self) -> None:
        """Refuse measurements of no machine, or of a problem that has no entry in `bounds`."""
        if self.rows and self.fingerprint is None:
            raise ValueError("rows were measured on no machine")
        known = {it.problem for it in self.bounds}
        for problem in (*(row.problem for row in self.rows), *(it.problem for it in self.left_out)):
            if problem not in known:
                raise ValueError(f"{problem} is not among the bounds")

    @property
    def machine(self) -> str:
        """For headings: where it ran, or the GPU whose bound it is."""
        if self.fingerprint is not None:
            return self.fingerprint.name
        return f"{self.rates.gpu if self.rates else 'unknown GPU'} (bound only)"

    def of(self, problem: AttentionProblem) -> list[AttentionRow]:
        """The rows of a problem."""
        return [row for row in self.rows if row.problem == problem]

    def bound_of(self, problem: AttentionProblem) -> Bound | None:
        """The bound of a problem, None where the GPU's rates are not known."""
        return next(it.bound for it in self.bounds if it.problem == problem)

    def percent_of_bound(self, row: AttentionRow) -> float | None:
        """The bound over the median time: 100 is as fast as the GPU could be."""
        bound = self.bound_of(row.problem)
        return None if bound is None else 100 * bound.us / row.median_us


FORM = RecordForm(KIND, AttentionRecord)
read_json, write_json = FORM.read, FORM.write
