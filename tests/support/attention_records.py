"""A result file of `slidesparse bench attention` that nobody measured."""

from __future__ import annotations

from slidesparse.bench.attention.bound import Unit, bound_of, judge
from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.bench.attention.rates import table_rates
from slidesparse.bench.attention.record import (
    AttentionRecord,
    AttentionRow,
    Kind,
    LeftOut,
    ProblemBound,
    Sustained,
)
from slidesparse.devices import Fingerprint
from slidesparse.gpus import find_gpu
from slidesparse.problem import DType

FULL = AttentionProblem(16, 96, 96, 4096, 128, False, DType.BF16)
"""Document C's attention."""

CAUSAL = AttentionProblem(16, 96, 96, 4096, 128, True, DType.BF16)


def make_row(
    problem: AttentionProblem, backend: str, us: float, sustained: bool = True
) -> AttentionRow:
    counters = {"tensor_active": 61.25, "dram_active": 7.5, "sm_active": 98.0}
    long = Sustained(1.5, 1.02 * us, 1755.0, 690.0, 14.0, counters, "")
    return AttentionRow(
        problem=problem,
        backend=backend,
        how="vllm.vllm_flash_attn" if backend == "fa3-vllm" else "",
        median_us=us,
        spread_us=us / 200,
        sets=1,
        error=1.2e-2,
        plain_error=2.5e-2,
        checked=8,
        sustained=long if sustained else None,
    )


def make_record(targets: tuple[float, ...] = (3.82, 200.0)) -> AttentionRecord:
    """Two backends without the mask and one with it; two refuse, one has no memory."""
    rates = table_rates(find_gpu("h200"), DType.BF16)
    assert rates is not None
    bounds = []
    for problem in (FULL, CAUSAL):
        bound = bound_of(problem, rates)
        judged = tuple(judge(problem, bound, target, Unit.HEAD) for target in targets)
        bounds.append(ProblemBound(problem, bound, judged))
    return AttentionRecord(
        fingerprint=Fingerprint(
            "NVIDIA H200", 90, 132, 143156, "580", "13.1.0", "0.8.1", "2.11.0", "3.6.0"
        ),
        rates=rates,
        settings={"seed": 7, "backends": ["flash", "cudnn", "efficient", "math", "fa3"]},
        seconds=42.1,
        interrupted=False,
        bounds=tuple(bounds),
        rows=(
            make_row(FULL, "flash", 21462.72),
            make_row(FULL, "fa3-vllm", 18000.0),
            make_row(CAUSAL, "flash", 11000.0, sustained=False),
        ),
        left_out=(
            LeftOut(FULL, "math", Kind.MEMORY, "it needs at least 192.0 GiB"),
            LeftOut(CAUSAL, "math", Kind.MEMORY, "it needs at least 192.0 GiB"),
            LeftOut(CAUSAL, "efficient", Kind.WRONG, "wrong result: a row is off by 1.0e+00"),
        ),
        commit="0123456789abcdef",
        created="2026-03-03T10:00:00+00:00",
    )
