"""The least time that an attention can take on a GPU, and what a target would need.

Three resources have each their own floor, and a kernel that overlaps them perfectly takes as long
as the slowest one:

* tensor cores: FLOP / (SMs x clock x FLOP per clock and SM),
* exponentials, one per score: scores / (SMs x clock x EXPS_PER_CLOCK),
* memory: compulsory bytes / bandwidth.

Sources. Tensor cores: see `slidesparse.gpus.flops_per_clock`. Exponentials: CUDA C++ Programming
Guide, "Throughput of Native Arithmetic Instructions", 16 results per clock and SM of the base-2
exponential in float32 for compute capabilities 7.x to 12.x; FlashAttention-3 (arXiv 2407.08608,
section 3.2) gives the same as 3.9 TFLOP/s for an H100 SXM, which is 132 x 16 x 1.83 GHz. Code that
computes some of its exponentials with multiplications instead can pass that second floor, never the
others; a target between them is `Reach.MULTIPLIED`. Memory: see `slidesparse.gpus`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from pydantic import ConfigDict

from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.bench.fields import STRICT, Amount, Duration, Name, Positive
from slidesparse.problem import DType

EXPS_PER_CLOCK = 16
"""Base-2 exponentials in float32 per clock and SM, compute capability 7.0 to 12.x."""


@dataclass(frozen=True)
class Rates:
    """What a GPU can do at best.

    Args:
        gpu: its name.
        sm: compute capability as one integer, 90 for 9.0.
        sm_count: streaming multiprocessors.
        clock_mhz: the highest clock of the SMs.
        clock_source: who says so.
        dtype: that `flops_per_clock` is of.
        flops_per_clock: dense tensor FLOP per clock and SM, accumulated in float32.
        exps_per_clock: exponentials per clock and SM.
        bandwidth_gbs: of the memory, GB/s (1e9 bytes).
        bandwidth_source: who says so.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    gpu: Name
    sm: Positive
    sm_count: Positive
    clock_mhz: Duration
    clock_source: Name
    dtype: DType
    flops_per_clock: Positive
    exps_per_clock: Positive
    bandwidth_gbs: Duration
    bandwidth_source: Name

    @property
    def tflops(self) -> float:
        """TFLOP/s of all tensor cores: SMs x clock x FLOP per clock and SM."""
        return self.sm_count * self.clock_mhz * self.flops_per_clock / 1e6

    @property
    def texps(self) -> float:
        """Exponentials per second of all SMs, 1e12."""
        return self.sm_count * self.clock_mhz * self.exps_per_clock / 1e6

    def __str__(self) -> str:
        """The formula with its numbers, for one line below a table."""
        cycle = f"{self.sm_count} SMs x {self.clock_mhz:.0f} MHz"
        return (
            f"{self.gpu}: tensor cores {cycle} x {self.flops_per_clock} FLOP = "
            f"{self.tflops:,.0f} TFLOP/s ({self.dtype}), exponentials {cycle} x "
            f"{self.exps_per_clock} = {self.texps:.2f} T/s, memory {self.bandwidth_gbs:,.0f} GB/s. "
            f"Clock: {self.clock_source}; bandwidth: {self.bandwidth_source}"
        )


class Resource(str, Enum):
    """What bounds an attention."""

    TENSOR = "tensor cores"
    EXPONENTIAL = "exponentials"
    MEMORY = "memory"

    def __str__(self) -> str:
        """The words as tables print them."""
        return self.value


@dataclass(frozen=True)
class Bound:
    """The least time of each resource, in microseconds of the whole problem."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tensor_us: Duration
    exponential_us: Duration
    memory_us: Duration

    @property
    def us(self) -> float:
        """The bound: the longest of the three."""
        return max(self.tensor_us, self.exponential_us, self.memory_us)

    @property
    def hard_us(self) -> float:
        """Without the exponentials: no program whatever is faster."""
        return max(self.tensor_us, self.memory_us)

    @property
    def resource(self) -> Resource:
        """Which one that is."""
        times = {
            Resource.TENSOR: self.tensor_us,
            Resource.EXPONENTIAL: self.exponential_us,
            Resource.MEMORY: self.memory_us,
        }
        return max(times, key=lambda resource: times[resource])


def bound_of(problem: AttentionProblem, rates: Rates) -> Bound:
    """The bound of a problem on a GPU; the formulas are at the head of this module."""
    return Bound(
        tensor_us=problem.flops / (rates.tflops * 1e6),
        exponential_us=problem.scores / (rates.texps * 1e6),
        memory_us=problem.bytes / (rates.bandwidth_gbs * 1e3),
    )


class Unit(str, Enum):
    """Of which part of the problem a target gives the time.

    HEAD: total / H, all sequences of the batch inside.
    BATCH_HEAD: total / (B H), one head of one sequence.
    """

    HEAD = "head"
    BATCH_HEAD = "batch-head"

    def __str__(self) -> str:
        """The name as the command line takes it."""
        return self.value

    @property
    def text(self) -> str:
        """In words: "us per head (total / H)"."""
        how = "total / H" if self is Unit.HEAD else "total / (B H)"
        return f"us per {self} ({how})"

    def parts(self, problem: AttentionProblem) -> int:
        """How many of these the problem has."""
        return problem.heads * (1 if self is Unit.HEAD else problem.batch)


class Reach(str, Enum):
    """Whether a GPU can be as fast as a target.

    YES: the bound allows it.
    MULTIPLIED: only where some exponentials are computed with multiplications.
    NO: no program can.
    """

    YES = "yes"
    MULTIPLIED = "multiplied"
    NO = "no"

    def __str__(self) -> str:
        """The word as files spell it."""
        return self.value


@dataclass(frozen=True)
class Verdict:
    """What a target needs, and whether a GPU can give it.

    Args:
        target_us: as it was asked for, per `unit`.
        unit: that the target is for.
        total_us: of the whole problem at that rate.
        tflops: TFLOP/s that this needs.
        gbs: GB/s of compulsory bytes that this needs.
        bound_us: the GPU's bound, per `unit`; None where its rates are not known.
        reachable: whether the GPU can be as fast; None like the bound.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    target_us: Duration
    unit: Unit
    total_us: Duration
    tflops: Amount
    gbs: Amount
    bound_us: Duration | None
    reachable: Reach | None

    @property
    def factor(self) -> float | None:
        """The bound over the target: above 1 that many times out of reach, below 1 room is left."""
        return None if self.bound_us is None else self.bound_us / self.target_us


def judge(problem: AttentionProblem, bound: Bound | None, target_us: float, unit: Unit) -> Verdict:
    """Compare a target with the bound.

    Args:
        problem: that is to be computed.
        bound: of it; None where no GPU's rates are known.
        target_us: microseconds per `unit`.
        unit: a head, or a head of one sequence.
    """
    parts = unit.parts(problem)
    total = target_us * parts
    reachable = None
    if bound is not None:
        reachable = Reach.NO if bound.hard_us > total else Reach.MULTIPLIED
        if bound.us <= total:
            reachable = Reach.YES
    return Verdict(
        target_us=target_us,
        unit=unit,
        total_us=total,
        tflops=problem.tflops(total),
        gbs=problem.gbs(total),
        bound_us=None if bound is None else bound.us / parts,
        reachable=reachable,
    )
