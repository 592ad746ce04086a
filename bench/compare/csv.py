"""The CSV of `slidesparse compare`: a line per workload and column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from slidesparse.bench.compare.align import describe
from slidesparse.bench.compare.record import ComparedLine, ComparisonRecord
from slidesparse.bench.result_file import as_cell, write_rows

CSV_COLUMNS = (
    *("workload", "metric", "unit", "better", "column", "machine", "file", "variant"),
    *("value", "spread", "provenance", "how", "ratio", "ratio_spread", "difference", "verdict"),
    *("tokens_per_s", "power_w", "joules_per_token", "tokens_per_joule"),
    *("cost_per_million_tokens", "job_hours", "job_cost", "job_kwh"),
)


def write_csv(record: ComparisonRecord, path: Path) -> None:
    """Write one line per workload and column.

    Raises:
        UsageError: the file cannot be written.
    """
    lines = (*record.lines, *record.alone)
    write_rows(path, CSV_COLUMNS, (text for line in lines for text in _texts(record, line)))


def _texts(record: ComparisonRecord, line: ComparedLine) -> Iterator[Sequence[str]]:
    for column, cell in zip(record.columns, line.cells, strict=True):
        if cell is None:
            continue
        row, cost, file = cell.row, cell.cost, record.files[column.file]
        figures: tuple[float | None, ...] = (None,) * 6
        if cost is not None:
            figures = (
                *(cost.joules_per_token, cost.tokens_per_joule, cost.per_million),
                *(cost.hours, cost.total, cost.kwh),
            )
        yield [
            *(describe(line.workload), line.metric, line.unit, row.better),
            *(column.label, file.machine, file.path, describe(row.variant)),
            *(as_cell(row.value), as_cell(row.spread), str(row.provenance), row.how),
            *map(as_cell, (cell.ratio, cell.ratio_spread, cell.difference)),
            cell.verdict,
            *(as_cell(row.tokens_per_s), as_cell(row.power_w), *map(as_cell, figures)),
        ]
