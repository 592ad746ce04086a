"""The table that `slidesparse bench attention` writes for spreadsheets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.bench.attention.record import AttentionRecord, AttentionRow
from slidesparse.bench.result_file import write_rows

CSV_COLUMNS = (
    "batch",
    "heads",
    "kv_heads",
    "seq",
    "head_dim",
    "causal",
    "dtype",
    "backend",
    "how",
    "median_us",
    "spread_us",
    "us_per_head",
    "us_per_batch_head",
    "tflops",
    "compulsory_gbs",
    "bound_us",
    "bound_by",
    "percent_of_bound",
    "sustained_us",
    "tensor_percent",
    "dram_percent",
    "clock_mhz",
    "power_w",
    "error",
    "plain_error",
    "reason",
)


def write_csv(record: AttentionRecord, path: Path) -> None:
    """Write one line per problem and backend, then its bound where that is known.

    Raises:
        UsageError: the file cannot be written.
    """
    write_rows(path, CSV_COLUMNS, _lines(record))


def _lines(record: AttentionRecord) -> Iterator[Sequence[object]]:
    for known in record.bounds:
        it, bound = known.problem, known.bound
        given: dict[str, object] = {
            "batch": it.batch,
            "heads": it.heads,
            "kv_heads": it.kv_heads,
            "seq": it.seq,
            "head_dim": it.head_dim,
            "causal": int(it.causal),
            "dtype": it.dtype,
        }
        limits = {}
        if bound is not None:
            limits = {"bound_us": f"{bound.us:.3f}", "bound_by": bound.resource}
        for row in record.of(it):
            yield _line(given | limits | _figures(record, row))
        for left in record.left_out:
            if left.problem == it:
                failed = {"backend": left.backend, "reason": f"{left.kind}: {left.reason}"}
                yield _line(given | limits | failed)
        if bound is not None:
            yield _line(given | limits | {"backend": "bound"} | _rates(it, bound.us))


def _line(given: dict[str, object]) -> list[object]:
    return [given.get(column, "") for column in CSV_COLUMNS]


def _rates(problem: AttentionProblem, us: float) -> dict[str, object]:
    """The columns that follow from a problem and a time."""
    return {
        "median_us": f"{us:.3f}",
        "us_per_head": f"{problem.per_head(us):.4f}",
        "us_per_batch_head": f"{problem.per_batch_head(us):.4f}",
        "tflops": f"{problem.tflops(us):.3f}",
        "compulsory_gbs": f"{problem.gbs(us):.3f}",
    }


def _figures(record: AttentionRecord, row: AttentionRow) -> dict[str, object]:
    percent, long = record.percent_of_bound(row), row.sustained
    found = _rates(row.problem, row.median_us) | {
        "backend": row.backend,
        "how": row.how,
        "spread_us": f"{row.spread_us:.3f}",
        "percent_of_bound": _text(percent),
        "error": f"{row.error:.2e}",
        "plain_error": f"{row.plain_error:.2e}",
    }
    if long is not None:
        found |= {
            "sustained_us": _text(long.us),
            "tensor_percent": _text(long.counters.get("tensor_active")),
            "dram_percent": _text(long.counters.get("dram_active")),
            "clock_mhz": _text(long.clock_mhz),
            "power_w": _text(long.power_w),
        }
    return found


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
