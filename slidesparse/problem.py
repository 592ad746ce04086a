"""GemmProblem: all that decides which algorithm is best for a GEMM, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from slidesparse.errors import ProblemError
from slidesparse.pattern import DENSE, Pattern

INT32_MAX = 2**31 - 1
"""Largest element count that a kernel with 32-bit offsets can address."""

SMALLEST_BUCKET = 16
"""M below this shares one bucket: every tensor-core tile is at least this tall."""

SEARCH_M = (16, 64, 256, 1024, 4096, 16384)
"""Tokens per batch that a search tunes unless told otherwise."""

SWEEP_M = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
"""Tokens per batch of the default prefill sweep."""


class DType(str, Enum):
    """Element types of operands and outputs."""

    FP8 = "fp8_e4m3"
    INT8 = "int8"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    INT32 = "int32"

    @property
    def bytes(self) -> int:
        """Size of one element in bytes."""
        return _BYTES[self]

    def __str__(self) -> str:
        """The name as files and tables spell it."""
        return self.value


class Scales(str, Enum):
    """How the product of the quantised operands is scaled back.

    TENSOR: one factor for the whole product (x scale times w scale).
    ROWCOL: one factor per row of x (token) times one per row of w (output channel).
    NONE: the raw accumulator is the output.
    """

    TENSOR = "tensor"
    ROWCOL = "rowcol"
    NONE = "none"

    def __str__(self) -> str:
        """The name as files and tables spell it."""
        return self.value


_BYTES = {
    DType.FP8: 1,
    DType.INT8: 1,
    DType.BF16: 2,
    DType.FP16: 2,
    DType.FP32: 4,
    DType.INT32: 4,
}
_OUTPUTS = {
    DType.FP8: (DType.BF16, DType.FP16, DType.FP32),
    DType.INT8: (DType.INT32, DType.BF16, DType.FP16, DType.FP32, DType.INT8),
}
_SPELLINGS = {"fp8": DType.FP8, "float8_e4m3fn": DType.FP8, "e4m3": DType.FP8}


def parse_dtype(text: str) -> DType:
    """Read an operand dtype: fp8 (E4M3) or int8.

    Raises:
        ProblemError: any other text.
    """
    name = text.strip().lower()
    dtype = _SPELLINGS.get(name)
    if dtype is None and name in _OUTPUTS:
        dtype = DType(name)
    if dtype is None:
        raise ProblemError(f"unknown dtype {text!r}; use fp8 or int8")
    return dtype


def default_output(dtype: DType, scales: Scales | None = None) -> DType:
    """The output unless told: BF16 where something is scaled, the exact INT32 sums of INT8 else."""
    scaled = dtype is DType.FP8 or scales not in (None, Scales.NONE)
    return DType.BF16 if scaled else DType.INT32


def default_scales(out: DType) -> Scales:
    """What a plain GEMM call can apply: nothing to INT32 sums, one factor to all else."""
    return Scales.NONE if out is DType.INT32 else Scales.TENSOR


def bucket_m(m: int) -> int:
    """The M bucket of `m`: the next power of two, at least 16.

    Tuning and run time use this one function, so what was tuned is what is found.

    Raises:
        ProblemError: m is not positive.
    """
    if not isinstance(m, int) or m <= 0:
        raise ProblemError(f"M={m} is not a positive number of tokens")
    return max(SMALLEST_BUCKET, 1 << (m - 1).bit_length())


@dataclass(frozen=True)
class GemmProblem:
    """D[m, n] = scale(X[m, k] @ W[n, k]^T) (+ bias[n]), W pruned to `pattern`.

    Args:
        m: tokens, rows of X and D.
        n: output channels, rows of W and columns of D.
        k: input channels before any expansion.
        dtype: of X and W.
        out: of D.
        scales: how the product is scaled back.
        pattern: that W satisfies; candidates for it run on K' = pattern.expanded_k(k).
        bias: whether bias[n] is added.

    Raises:
        ProblemError: a size is not positive or the output does not fit the operands.
    """

    m: int
    n: int
    k: int
    dtype: DType
    out: DType
    scales: Scales = Scales.TENSOR
    pattern: Pattern = DENSE
    bias: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes and dtypes that cannot exist."""
        for name, size in (("M", self.m), ("N", self.n), ("K", self.k)):
            if not isinstance(size, int) or size <= 0:
                raise ProblemError(f"{name}={size} is not a positive whole number")
        outputs = _OUTPUTS.get(self.dtype)
        if outputs is None:
            raise ProblemError(f"operands cannot be {self.dtype}; use fp8 or int8")
        if self.out not in outputs:
            names = ", ".join(map(str, outputs))
            raise ProblemError(f"{self.dtype} operands cannot give {self.out}; use one of {names}")
        if (self.out is DType.INT32) != (self.scales is Scales.NONE):
            raise ProblemError(
                f"{self.out} output does not go with scales {self.scales}: int32 holds the "
                "unscaled sums (scales none), every other output is scaled (tensor or rowcol)"
            )

    @property
    def key(self) -> str:
        """The cache key: the problem with M replaced by its bucket."""
        return (
            f"m{bucket_m(self.m)}-n{self.n}-k{self.k}-{self.dtype}-{self.out}-{self.scales}"
            f"-{'bias' if self.bias else 'nobias'}-{self.pattern}"
        )

    @property
    def k_run(self) -> int:
        """The K that a sparse candidate runs: K' of the pattern."""
        return self.pattern.expanded_k(self.k)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the dense product: 2 m n k."""
        return 2 * self.m * self.n * self.k

    def tflops(self, microseconds: float) -> float:
        """Dense-equivalent rate in TFLOP/s of a run that took `microseconds`."""
        return self.flops / microseconds / 1e6

    @property
    def largest_tensor(self) -> tuple[str, int]:
        """Name and element count of the operand or output with the most elements."""
        sizes = {"X": self.m * self.k_run, "W": self.n * self.k_run, "D": self.m * self.n}
        name = max(sizes, key=lambda key: sizes[key])
        return name, sizes[name]

    @property
    def passes_int32(self) -> bool:
        """Whether some tensor has more elements than a 32-bit offset can address."""
        return self.largest_tensor[1] > INT32_MAX

    def on_dense(self) -> GemmProblem:
        """The same product seen as a dense one: what sparse has to beat."""
        return replace(self, pattern=DENSE)

    def __str__(self) -> str:
        """One line for logs and messages."""
        return (
            f"M={self.m} N={self.n} K={self.k} {self.dtype}->{self.out} {self.scales} "
            f"{self.pattern}{' +bias' if self.bias else ''}"
        )
