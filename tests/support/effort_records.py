"""Result files of scripts/compare_efforts.py that nobody measured."""

from __future__ import annotations

from slidesparse.bench.search.effort_record import EffortRecord, EffortRow
from slidesparse.devices import Fingerprint
from slidesparse.problem import DType, GemmProblem


def problem(m: int) -> GemmProblem:
    return GemmProblem(m, 64, 96, DType.FP8, DType.BF16)


def make_record() -> EffortRecord:
    """One winner at M=16, 3 % slower at 64, no race at 256."""
    rows = (
        EffortRow(problem(16), ("cublaslt id=1", "cublaslt id=1"), same=True, ratio=1.0),
        EffortRow(
            problem(64),
            ("cublaslt id=1", "torch"),
            same=False,
            us=((10.3, 10.0), (10.2, 10.0), (10.4, 10.0)),
            ratio=1.03,
        ),
        EffortRow(problem(256), ("torch", "cublaslt id=2"), same=False, failure="timeout"),
    )
    return EffortRecord.of(
        fingerprint=Fingerprint("NVIDIA H200", 90, 132, 143156, "580.1", "13.1.0", "0.8.1"),
        settings={"races": 3, "seed": 7},
        efforts=("normal", "full"),
        seconds=(130.5, 225.0),
        rows=rows,
    ).stamped()
