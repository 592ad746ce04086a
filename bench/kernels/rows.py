"""What the result file of `slidesparse bench kernels` says, as rows."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.bench.kernels.record import FORM, KernelRecord, read_json
from slidesparse.bench.kernels.record import Row as Measured
from slidesparse.bench.rows import Row, Value
from slidesparse.candidate import Provenance

__all__ = ["FORM", "read_json", "rows"]


def rows(record: KernelRecord) -> tuple[Row, ...]:
    """Our kernel and each alternative per problem, and what the machine can do at best.

    The model is no part of a workload: a kernel knows rows and their width only.
    """
    return (*_ceilings(record), *(row for it in record.rows for row in _rows(it)))


def _ceilings(record: KernelRecord) -> Iterator[Row]:
    found, measured = record.ceilings, Provenance.MEASURED
    copy: dict[str, Value] = {"what": "copy", "bytes": found.copy_bytes}
    system: dict[str, Value] = {"system": "torch"}
    yield Row(copy, system, "bandwidth", "GB/s", found.copy_gbs, "higher", measured)
    if found.empty_us:
        empty: dict[str, Value] = {"what": "empty kernel"}
        yield Row(empty, {"system": "ours"}, "time", "us", found.empty_us, "lower", measured)


def _rows(it: Measured) -> Iterator[Row]:
    problem = it.problem
    workload: dict[str, Value] = {
        "what": "kernel",
        "op": str(problem.op),
        "m": problem.m,
        "k": problem.k,
        "source": str(problem.source),
        "out": str(problem.out),
        "pattern": str(problem.pattern),
        "residual": int(problem.residual),
    }
    config = " ".join(f"{name}={value}" for name, value in (it.config or {}).items())
    ours: dict[str, Value] = {"system": "ours"}
    if it.median_us is not None:
        yield _time(workload, ours, it.median_us, it.spread_us, config or "reference")
    for other in it.alternatives:
        if other.median_us is not None:
            variant: dict[str, Value] = {"system": other.name, "way": other.how}
            yield _time(workload, variant, other.median_us, other.spread_us, other.how)


def _time(
    workload: dict[str, Value],
    variant: dict[str, Value],
    us: float,
    spread: float | None,
    how: str,
) -> Row:
    measured = Provenance.MEASURED
    return Row(workload, variant, "time", "us", us, "lower", measured, spread, how=how)
