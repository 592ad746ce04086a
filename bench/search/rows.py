"""What the result file of a search says, as rows: one GEMM each, and all GEMMs of the model."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.bench.rows import Row, Value, model_name
from slidesparse.bench.search.record import FORM, SearchRecord, read_json
from slidesparse.bench.search.totals import dense_total, planned_total, tokens_of, totals
from slidesparse.bench.workload import LayerProblem
from slidesparse.candidate import Measurement, ProblemResult, Provenance
from slidesparse.pattern import Pattern
from slidesparse.problem import GemmProblem

__all__ = ["FORM", "gemm_workload", "read_json", "rows"]

SPARSE, DENSE, DEFAULT, PLANNED = "best sparse", "best dense", "default", "planned"
"""Systems of the rows. The defaults, what a library runs unasked, have their backend beside it."""


def gemm_workload(model: str, layer: str, tokens: int, problem: GemmProblem) -> dict[str, Value]:
    """What must be equal for two GEMMs to be compared; the pattern is that of the weights."""
    return {
        "what": "gemm",
        "model": model,
        "layer": layer,
        "tokens": tokens,
        "m": problem.m,
        "n": problem.n,
        "k": problem.k,
        "dtype": str(problem.dtype),
        "out": str(problem.out),
        "scales": str(problem.scales),
        "pattern": str(problem.pattern),
    }


def rows(record: SearchRecord) -> tuple[Row, ...]:
    """Per layer, M and pattern the best candidates and the defaults; then sums over the model."""
    return (*_single(record), *_sums(record))


def _single(record: SearchRecord) -> Iterator[Row]:
    for item in record.layers:
        held = record.results.get(item.problem)
        if held is None:
            continue
        result, provenance = held
        workload = gemm_workload(
            model_name(record.model), item.layer.name, item.tokens, item.problem
        )
        for variant, measurement in _measurements(item, result):
            yield Row(
                workload=workload,
                variant=variant,
                metric="time",
                unit="us",
                value=measurement.median_us,
                better="lower",
                provenance=provenance,
                spread=measurement.spread_us,
                power_w=measurement.power_w,
                how=measurement.candidate.label,
            )


def _measurements(
    item: LayerProblem, result: ProblemResult
) -> Iterator[tuple[dict[str, Value], Measurement]]:
    """What rows are about: the best sparse and dense ones, and the default of each backend."""
    sparse = next((m for m in result.ranked if m.candidate.sparse), None)
    dense = result.baseline
    if item.problem.pattern.dense:
        # Its own race is the one that its baseline is from.
        dense = result.best
    if sparse is not None:
        yield {"system": SPARSE}, sparse
    if dense is not None:
        yield {"system": DENSE}, dense
    seen = set()
    for default in result.defaults:
        backend, form = default.candidate.backend, _form(default)
        if (backend, form) not in seen:
            seen.add((backend, form))
            yield {"system": DEFAULT, "backend": backend, "form": form}, default


def _form(measurement: Measurement) -> str:
    return "sparse" if measurement.candidate.sparse else "dense"


def _sums(record: SearchRecord) -> Iterator[Row]:
    """Times of all layers of the model, each as often as the model has it."""
    for tokens in tokens_of(record):
        for pattern in dict.fromkeys(item.problem.pattern for item in record.layers):
            workload = _sum_workload(record, tokens, pattern)
            for system, us in _totals(record, tokens, pattern).items():
                yield Row(
                    workload, {"system": system}, "time", "us", us, "lower", Provenance.DERIVED
                )


def _sum_workload(record: SearchRecord, tokens: int, pattern: Pattern) -> dict[str, Value]:
    # All problems of a search are made from one template.
    first = record.layers[0].problem
    return {
        "what": "gemms of the model",
        "model": model_name(record.model),
        "tp": record.tp,
        "tokens": tokens,
        "dtype": str(first.dtype),
        "out": str(first.out),
        "scales": str(first.scales),
        "pattern": str(pattern),
    }


def _totals(record: SearchRecord, tokens: int, pattern: Pattern) -> dict[str, float]:
    """Microseconds by system, where no layer is missing."""
    if pattern.dense:
        dense = dense_total(record, tokens)
        return {} if dense is None else {DENSE: dense}
    both, planned = totals(record, tokens, pattern), planned_total(record, tokens, pattern)
    found = {} if both is None else {DENSE: both[0], SPARSE: both[1]}
    return found if planned is None else {**found, PLANNED: planned}
