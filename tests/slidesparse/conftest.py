"""What the tests of the cache and its commands share: a machine, and results measured on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Failure, Measurement, ProblemResult
from slidesparse.devices import Fingerprint
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales

MakeResult = Callable[..., ProblemResult]
MakeKernel = Callable[..., KernelResult]


def measurement(backend: str, us: float, sparse: bool = False) -> Measurement:
    candidate = Candidate(backend, {"algo": "00ff", "tile": 3, "fast": True}, sparse, {"tile": 3})
    return Measurement(candidate, us, 0.25, 30, 10, 1e-3, 2e-2, True, True, 1024, 1980, 512.5)


@pytest.fixture
def make_result() -> MakeResult:
    """Build the result of one problem; `us` is the winner's time."""

    def make(
        m: int = 16, n: int = 256, k: int = 512, pattern: str = "6:8", us: float = 8.0
    ) -> ProblemResult:
        kind = Pattern.parse(pattern)
        problem = GemmProblem(m, n, k, DType.FP8, DType.BF16, Scales.TENSOR, kind)
        dense = measurement("cublaslt", us * 1.25)
        best = measurement("cublaslt", us) if kind.dense else measurement("cusparselt", us, True)
        crash = Candidate("cusparselt", {"algo": 7}, not kind.dense)
        return ProblemResult(
            problem=problem,
            ranked=(best, dense),
            defaults=(dense,),
            baseline=best if kind.dense else dense,
            failures=(Failure(crash, "crash", "signal 11"),),
            left_out={"torchao": "not installed"},
            tried=12,
            effort="normal",
            seed=7,
            seconds=1.5,
            searched_at="2026-03-03T10:00:00+00:00",
        )

    return make


@pytest.fixture
def make_kernel() -> MakeKernel:
    """Build the result of one kernel problem; `us` is the winner's time."""

    def make(
        op: Op = Op.QUANTIZE, m: int = 16, k: int = 512, pattern: str = "6:8", us: float = 8.0
    ) -> KernelResult:
        out = DType.FP8 if op.quantizes else DType.BF16
        problem = KernelProblem(op, m, k, DType.BF16, out, Pattern.parse(pattern))
        return KernelResult(
            problem=problem,
            ranked=(measurement("triton", us), measurement("triton", us * 1.1)),
            default=measurement("triton", us * 1.25),
            failures=(Failure(Candidate("triton", {"num_warps": 32}), "memory", "too much"),),
            tried=12,
            seed=7,
            seconds=1.5,
            tuned_at="2026-03-03T10:00:00+00:00",
        )

    return make


@pytest.fixture
def fingerprint() -> Fingerprint:
    return Fingerprint(
        "NVIDIA H200", 90, 132, 143156, "580.159.03", "13.1.0", "0.8.1", "2.11.0", "3.6.0"
    )


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    folder = tmp_path / "bundled"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(tmp_path: Path, fingerprint: Fingerprint, bundled: Path) -> TuningCache:
    return TuningCache(tmp_path / "root", fingerprint, bundled=bundled)
