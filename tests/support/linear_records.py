"""A result file of `slidesparse bench linear` that nobody measured."""

from __future__ import annotations

from slidesparse.bench.linear.record import (
    LinearRecord,
    LinearRow,
    LinearTime,
    SkippedLinear,
    Ways,
    WayTime,
)
from slidesparse.devices import Fingerprint
from slidesparse.models import LinearLayer
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem, Scales

SIX = Pattern.parse("6:8")
OUT = LinearLayer("o", 64, 64, 2)
DOWN = LinearLayer("down", 64, 96, 3, bias=True)
TUNED = "torch.compile max-autotune at M=4096"


def problem(layer: LinearLayer, m: int, pattern: Pattern, dtype: DType = DType.FP8) -> GemmProblem:
    sizes = (m, layer.n, layer.k, dtype, DType.BF16)
    return GemmProblem(*sizes, Scales.ROWCOL, pattern, bias=layer.bias)


def make_row(
    layer: LinearLayer,
    m: int,
    pattern: Pattern,
    ours: float | None,
    torch: float | None,
    dtype: DType = DType.FP8,
) -> LinearRow:
    sparse = not pattern.dense and bool(ours)
    return LinearRow(
        layer=layer,
        tokens=m,
        problem=problem(layer, m, pattern, dtype),
        plan="native tile 128x256" if sparse else "cublaslt id 66",
        sparse=sparse,
        ours=LinearTime(ours, 0.5, 2e-3) if ours else None,
        torch=LinearTime(torch, 2.0, 2e-3) if torch else None,
        torch_how="torch.compile" if torch else "",
        sets=12,
        error=None if ours else "wrong result: relative error 1.0e+00",
    )


def make_record() -> LinearRecord:
    """FP8: at M=16 6:8 wins in o and loses in down, at M=64 down was skipped; INT8: ours failed."""
    ways = (
        WayTime("torch.compile", 50.0, 1.0, ""),
        WayTime(TUNED, None, None, "RuntimeError: no valid triton configs"),
    )
    return LinearRecord(
        model="tiny",
        tp=1,
        fingerprint=Fingerprint("NVIDIA H200", 90, 132, 143156, "580", "13.1.0", "0.8.1", "2.11.0"),
        settings={
            "dtypes": ["fp8_e4m3", "int8"],
            "autotune": [4096],
            "seed": 7,
            "timed": "all of it",
        },
        seconds=123.4,
        compile_seconds=45.6,
        interrupted=False,
        rows=(
            make_row(OUT, 16, DENSE, 50.0, 50.5),
            make_row(OUT, 16, SIX, 40.0, 48.0),
            make_row(OUT, 64, DENSE, 100.0, 100.0),
            make_row(OUT, 64, SIX, 90.0, None),
            make_row(DOWN, 16, DENSE, 80.0, 80.0),
            make_row(DOWN, 16, SIX, 100.0, 75.0),
            make_row(OUT, 16, SIX, None, 60.0, DType.INT8),
        ),
        ways=(Ways(problem(OUT, 16, DENSE), ways), Ways(problem(OUT, 64, DENSE), ways)),
        skipped=(SkippedLinear(DOWN, 64, problem(DOWN, 64, DENSE), "it needs about 900 GiB"),),
        commit="0123456789abcdef",
        created="2026-03-03T10:00:00+00:00",
    )
