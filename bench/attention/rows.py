"""What the result file of `slidesparse bench attention` says, as rows."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.bench.attention.record import FORM, AttentionRecord, ProblemBound, read_json
from slidesparse.bench.rows import Row, Value
from slidesparse.candidate import Provenance

__all__ = ["FORM", "read_json", "rows"]

BOUND = "bound"
"""The backend of rows that nothing ran for: the least time that the GPU could take."""


def rows(record: AttentionRecord) -> tuple[Row, ...]:
    """Time and TFLOP/s of each backend, and of the bound where it is known."""
    return tuple(row for known in record.bounds for row in _rows(record, known))


def _rows(record: AttentionRecord, known: ProblemBound) -> Iterator[Row]:
    problem = known.problem
    workload = _workload(problem)
    for it in record.of(problem):
        variant: dict[str, Value] = {"backend": it.backend}
        power = it.sustained.power_w if it.sustained is not None else None
        yield Row(
            workload=workload,
            variant=variant,
            metric="time",
            unit="us",
            value=it.median_us,
            better="lower",
            provenance=Provenance.MEASURED,
            spread=it.spread_us,
            power_w=power,
            how=it.how,
        )
        yield _throughput(workload, variant, it.tflops)
    if known.bound is not None:
        variant, us = {"backend": BOUND}, known.bound.us
        yield Row(workload, variant, "time", "us", us, "lower", Provenance.DERIVED)
        yield _throughput(workload, variant, problem.tflops(us))


def _workload(problem: AttentionProblem) -> dict[str, Value]:
    return {
        "what": "attention",
        "batch": problem.batch,
        "heads": problem.heads,
        "kv_heads": problem.kv_heads,
        "seq": problem.seq,
        "head_dim": problem.head_dim,
        "mask": problem.mask,
        "dtype": str(problem.dtype),
    }


def _throughput(workload: dict[str, Value], variant: dict[str, Value], tflops: float) -> Row:
    rate = Provenance.DERIVED
    return Row(workload, variant, "throughput", "TFLOP/s", tflops, "higher", rate)
