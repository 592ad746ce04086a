"""What the result file of `slidesparse bench linear` says, as rows."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.bench.linear.record import FORM, LinearRecord, LinearRow, read_json
from slidesparse.bench.rows import Row, Value, model_name
from slidesparse.candidate import Provenance

__all__ = ["FORM", "read_json", "rows"]

OURS, TORCH = "ours", "torch"


def rows(record: LinearRecord) -> tuple[Row, ...]:
    """Ours and torch's per layer, M and pattern of the weights; then sums over the model."""
    single = (row for it in record.rows for row in _rows(record, it))
    return (*single, *_sums(record))


def _rows(record: LinearRecord, it: LinearRow) -> Iterator[Row]:
    problem = it.problem
    workload: dict[str, Value] = {
        "what": "linear",
        "model": model_name(record.model),
        "layer": it.layer.name,
        "tokens": it.tokens,
        "m": problem.m,
        "n": problem.n,
        "k": problem.k,
        "dtype": str(problem.dtype),
        "pattern": str(problem.pattern),
    }
    for system, time, how in ((OURS, it.ours, it.plan), (TORCH, it.torch, it.torch_how)):
        if time is not None:
            yield Row(
                workload=workload,
                variant={"system": system},
                metric="time",
                unit="us",
                value=time.median_us,
                better="lower",
                provenance=Provenance.MEASURED,
                spread=time.spread_us,
                how=how,
            )


def _sums(record: LinearRecord) -> Iterator[Row]:
    """Times of all linears of the model, each as often as the model has it."""
    measured = {(it.problem.dtype, it.tokens, it.problem.pattern): None for it in record.rows}
    for dtype, tokens, pattern in measured:
        both = record.totals(dtype, tokens, pattern)
        if both is None:
            continue
        workload: dict[str, Value] = {
            "what": "linears of the model",
            "model": model_name(record.model),
            "tp": record.tp,
            "tokens": tokens,
            "dtype": str(dtype),
            "pattern": str(pattern),
        }
        for system, us in zip((TORCH, OURS), both, strict=True):
            yield Row(workload, {"system": system}, "time", "us", us, "lower", Provenance.DERIVED)
