"""KernelProblem: all that decides which configuration of a row kernel is best, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from slidesparse.candidate import Failure, Measurement
from slidesparse.errors import ProblemError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import INT32_MAX, DType, bucket_m

SMALLEST_K_BUCKET = 64
"""Rows narrower than this share one bucket: a warp reads them in one go."""

K_STEPS = 4
"""Buckets of K per power of two: 1, 1.25, 1.5 and 1.75 times it."""


class Op(str, Enum):
    """What a row kernel does with each row, in order; "lift" is part of every quantisation."""

    QUANTIZE = "quantize"
    RMSNORM_QUANTIZE = "rmsnorm_quantize"
    SILU_MUL_QUANTIZE = "silu_mul_quantize"
    DEQUANTIZE = "dequantize"
    DEQUANT_RMSNORM_QUANTIZE = "dequant_rmsnorm_quantize"
    DEQUANT_SILU_MUL_QUANTIZE = "dequant_silu_mul_quantize"

    @property
    def dequantizes(self) -> bool:
        """Whether it reads what a GEMM left: accumulators or unscaled products."""
        return self.value.startswith("dequant")

    @property
    def quantizes(self) -> bool:
        """Whether it ends with a quantised, lifted row."""
        return self is not Op.DEQUANTIZE

    def __str__(self) -> str:
        """The name as files and tables spell it."""
        return self.value


_FLOATS = (DType.BF16, DType.FP16, DType.FP32)
_ACCUMULATORS = (DType.INT32, DType.FP32, DType.BF16, DType.FP16)
_QUANTISED = (DType.FP8, DType.INT8)
_WITH_RESIDUAL = (Op.RMSNORM_QUANTIZE, Op.DEQUANTIZE, Op.DEQUANT_RMSNORM_QUANTIZE)


def bucket_k(k: int) -> int:
    """The K bucket of `k`: the next of 1, 1.25, 1.5, 1.75 times a power of two, at least 64.

    Tuning and run time use this one function, so what was tuned is what is found.

    Raises:
        ProblemError: k is not positive.
    """
    if not isinstance(k, int) or k <= 0:
        raise ProblemError(f"K={k} is not a positive row width")
    if k <= SMALLEST_K_BUCKET:
        return SMALLEST_K_BUCKET
    step = (1 << (k.bit_length() - 1)) // K_STEPS
    return -(-k // step) * step


@dataclass(frozen=True)
class KernelProblem:
    """One row kernel on [m, k] rows.

    Args:
        op: what is done.
        m: rows (tokens).
        k: width of a row before lifting: K of quantize, the hidden size of rmsnorm, F of silu_mul
            (which reads 2F), N of dequantize.
        source: dtype of what is read.
        out: dtype of what is written; the quantised one where `op` quantises.
        pattern: whose lift is applied; dense for none, and always dense for dequantize.
        residual: whether a residual is added to the row.

    Raises:
        ProblemError: a size is not positive, or a dtype, the pattern or the residual does not go
            with `op`.
    """

    op: Op
    m: int
    k: int
    source: DType
    out: DType
    pattern: Pattern = DENSE
    residual: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel does."""
        for name, size in (("M", self.m), ("K", self.k)):
            if not isinstance(size, int) or size <= 0:
                raise ProblemError(f"{name}={size} is not a positive whole number")
        sources = _ACCUMULATORS if self.op.dequantizes else _FLOATS
        if self.source not in sources:
            raise ProblemError(f"{self.op} cannot read {self.source}; use one of {_names(sources)}")
        outputs = _QUANTISED if self.op.quantizes else _FLOATS
        if self.out not in outputs:
            raise ProblemError(f"{self.op} cannot write {self.out}; use one of {_names(outputs)}")
        if not self.op.quantizes and not self.pattern.dense:
            raise ProblemError(f"{self.op} lifts nothing, so pattern {self.pattern} must be dense")
        if self.residual and self.op not in _WITH_RESIDUAL:
            raise ProblemError(
                f"{self.op} adds no residual; use residual=False or one of {_names(_WITH_RESIDUAL)}"
            )

    @property
    def width(self) -> int:
        """Columns that are read: 2F where gate and up lie side by side, else K."""
        halves = self.op in (Op.SILU_MUL_QUANTIZE, Op.DEQUANT_SILU_MUL_QUANTIZE)
        return 2 * self.k if halves else self.k

    @property
    def can_add(self) -> bool:
        """Whether the operation can add a residual."""
        return self.op in _WITH_RESIDUAL

    @property
    def passes_int32(self) -> bool:
        """Whether some tensor has more elements than a 32-bit offset can address."""
        return self.m * max(self.width, self.pattern.expanded_k(self.k)) > INT32_MAX

    @property
    def key(self) -> str:
        """The cache key: the problem with M and K replaced by their buckets."""
        return (
            f"{self.op}-m{bucket_m(self.m)}-k{bucket_k(self.k)}-{self.source}-{self.out}"
            f"-{self.pattern}-{'residual' if self.residual else 'plain'}"
        )

    def __str__(self) -> str:
        """One line for logs and messages."""
        return (
            f"{self.op} M={self.m} K={self.k} {self.source}->{self.out} {self.pattern}"
            f"{' +residual' if self.residual else ''}"
        )


@dataclass(frozen=True)
class KernelResult:
    """The outcome of tuning one kernel problem, as the tuning cache keeps it.

    Args:
        problem: that was tuned, with the M and K it was timed at.
        ranked: the finalists' measurements of one interleaved race, the winner first: the fastest,
            but an overlapped launch only if it is faster by more than the spread. Where the race
            failed, what a first, short look at each said.
        default: what would have run untuned, from the same race, if it took part.
        failures: configurations that are out, and why.
        tried: how many configurations were verified and timed.
        seed: of the random inputs.
        seconds: wall time that the problem took.
        tuned_at: UTC time in ISO 8601.
    """

    problem: KernelProblem
    ranked: tuple[Measurement, ...]
    default: Measurement | None = None
    failures: tuple[Failure, ...] = ()
    tried: int = 0
    seed: int = 0
    seconds: float = 0.0
    tuned_at: str = ""

    @property
    def best(self) -> Measurement | None:
        """The winner, or None if no configuration works."""
        return self.ranked[0] if self.ranked else None


def _names(members: tuple[Enum, ...]) -> str:
    return ", ".join(map(str, members))
