"""A result file of `slidesparse bench kernels` that nobody measured."""

from __future__ import annotations

from slidesparse.bench.kernels.record import AlternativeTime, Ceilings, KernelRecord, Row, Skipped
from slidesparse.devices import Fingerprint
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

SIX = Pattern.parse("6:8")
CONFIG = {"block": 2048, "warps": 4, "rows": 1, "per_sm": 0, "stages": 1, "overlap": False}
CEILINGS = Ceilings(copy_gbs=4000.0, copy_bytes=2**29, empty_us=1.5)


def alternative(name: str, us: float | None, how: str = "", reason: str = "") -> AlternativeTime:
    return AlternativeTime(name, how, us, None if us is None else 0.25, reason)


def make_row(
    op: Op, m: int, pattern: Pattern, us: float | None, *alternatives: AlternativeTime
) -> Row:
    out = DType.FP8 if op.quantizes else DType.BF16
    problem = KernelProblem(op, m, 3584, DType.BF16, out, pattern)
    size = 40_000 * m
    gbs = size / (us * 1e3) if us else None
    return Row(
        problem=problem,
        config=CONFIG,
        tuned=m > 16,
        bytes=size,
        median_us=us,
        spread_us=0.5 if us else None,
        gbs=gbs,
        percent_of_copy=100 * gbs / CEILINGS.copy_gbs if gbs else None,
        percent_of_copy_same_size=98.5 if us else None,
        floor_us=CEILINGS.floor_us(size),
        wide_us=us * 1.01 if us else None,
        alternatives=alternatives,
        error=None if us else "3.00% of the values differ",
    )


def make_record() -> KernelRecord:
    """Ours wins but in one cell (quantize 6:8, M = 16, vllm); one row is wrong, one was skipped."""
    small = make_row(
        Op.QUANTIZE,
        16,
        SIX,
        4.0,
        alternative("vllm", 3.5, "quant + index_select"),
        alternative("vllm", 3.0, "quant + unfold"),
        alternative("torch.compile", 6.0, "dynamic M"),
    )
    large = make_row(
        Op.QUANTIZE,
        4096,
        SIX,
        50.0,
        alternative("torch.compile", 60.0, "dynamic M"),
        alternative("vllm", None, reason="vLLM is not installed"),
    )
    wrong = make_row(Op.DEQUANTIZE, 16, DENSE, None)
    return KernelRecord(
        model="tiny",
        tp=2,
        fingerprint=Fingerprint("NVIDIA H200", 90, 132, 143156, "580.1", "13.1.0", "0.8.1"),
        settings={"dtype": "fp8_e4m3", "seed": 7, "compile": True},
        seconds=61.5,
        interrupted=False,
        ceilings=CEILINGS,
        rows=(small, large, wrong),
        skipped=(
            Skipped(KernelProblem(Op.DEQUANTIZE, 65536, 3584, DType.BF16, DType.BF16), "no memory"),
        ),
        commit="0123456789abcdef",
        created="2026-03-03T10:00:00+00:00",
    )
