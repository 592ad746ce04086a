"""The report's section for result files that have no figure of their own: all of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from slidesparse.bench.report.format import cell
from slidesparse.bench.report.view import Cell, Group, Section, Table
from slidesparse.bench.rows import ResultFile, Row, Value

TITLE = "Further figures"

MOST_OPEN = 16
"""Rows of a table that a page shows unasked."""

MOST_ROWS = 1000
"""Of one file; a page with more is no longer read, and the file has them all."""


def rows_section(files: Sequence[ResultFile]) -> Section | None:
    """One table per file and metric; None if no file has rows.

    Args:
        files: those that no other section shows.
    """
    groups = tuple(_group(file) for file in files if file.rows)
    if not groups:
        return None
    about = "All that these files hold, one row per figure."
    return Section("rows", TITLE, about, groups)


def _group(file: ResultFile) -> Group:
    shown = file.rows[:MOST_ROWS]
    notes = [f"Written by {file.command}."]
    if len(shown) < len(file.rows):
        notes.append(f"The first {len(shown):,} of {len(file.rows):,} rows; the file has the rest.")
    metrics = dict.fromkeys((row.metric, row.unit) for row in shown)
    tables = tuple(
        _table(file, metric, unit, [r for r in shown if (r.metric, r.unit) == (metric, unit)])
        for metric, unit in metrics
    )
    return Group(f"{file.path.name}, {file.machine}", tuple(notes), tables=tables)


def _table(file: ResultFile, metric: str, unit: str, rows: Sequence[Row]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in (*row.workload, *row.variant)))
    extra = {
        "spread": [row.spread for row in rows],
        "tokens/s": [row.tokens_per_s for row in rows],
        "J/token": [row.joules_per_token for row in rows],
        "power, W": [row.power_w for row in rows],
    }
    filled = {name: values for name, values in extra.items() if any(v is not None for v in values)}
    ran = any(row.how for row in rows)
    value = f"{metric}, {unit}" if unit else metric
    lines = []
    for index, row in enumerate(rows):
        told = {**row.workload, **row.variant}
        lines.append(
            (
                *(_value(told.get(name)) for name in names),
                cell(row.value),
                *(cell(values[index]) for values in filled.values()),
                Cell(str(row.provenance)),
                *([Cell(row.how)] if ran else []),
            )
        )
    better = _better(rows)
    return Table(
        f"{value}{better}, {file.path.name}",
        (*names, value, *filled, "provenance", *(["ran"] if ran else [])),
        tuple(lines),
        folded=len(rows) > MOST_OPEN,
    )


def _better(rows: Iterable[Row]) -> str:
    ways = {row.better for row in rows}
    return f", {ways.pop()} is better" if len(ways) == 1 else ""


def _value(value: Value | None) -> Cell:
    if value is None:
        return Cell("")
    if isinstance(value, str):
        return Cell(value)
    return cell(value, str(value) if isinstance(value, int) else None)
