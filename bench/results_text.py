"""Any result file in words, as plain data and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slidesparse.bench.result_file import write_rows
from slidesparse.bench.rows import ResultFile, Row, Value

SIZES = ("m", "tokens", "batch", "concurrency")
"""Names in workloads whose range is told, the first one that is there."""

FIGURES = (
    *("metric", "unit", "value", "spread", "better", "provenance"),
    *("tokens_per_s", "joules_per_token", "power_w", "how"),
)


def describe(result: ResultFile) -> list[str]:
    """Lines that say what a file is and what it holds."""
    head, dash, dirty = result.commit.partition("-")
    source = f"commit {head[:12]}{dash}{dirty}" if head not in ("", "unknown") else "commit unknown"
    created = "time unknown" if result.created == "unknown" else result.created
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    lines = [
        f"{result.path}: {result.kind} ({result.command})",
        f"  {result.machine}, {created}, {source}",
        f"  {versions}" if versions else "",
    ]
    groups: dict[tuple[Value, str, str], list[Row]] = {}
    for row in result.rows:
        groups.setdefault((row.workload.get("what", ""), row.metric, row.unit), []).append(row)
    lines += [_group(what, metric, unit, rows) for (what, metric, unit), rows in groups.items()]
    count = len(result.rows)
    lines.append(f"  {count} {'row' if count == 1 else 'rows'}")
    return [line for line in lines if line]


def _group(what: Value, metric: str, unit: str, rows: Sequence[Row]) -> str:
    """One line: how many rows, their range, over which sizes, and where they come from."""
    values = [row.value for row in rows]
    span = _span(values, lambda it: f"{it:,.0f}" if abs(it) >= 1000 else f"{it:.4g}")
    parts = [f"{what}: {len(rows)} x {metric}, {span} {unit}".rstrip()]
    for name in SIZES:
        sizes = [row.workload[name] for row in rows if name in row.workload]
        if sizes and all(isinstance(size, int) for size in sizes):
            parts.append(f"{name} {_span(sizes, str)}")
            break
    parts.append(" and ".join(dict.fromkeys(str(row.provenance) for row in rows)))
    return "  " + ", ".join(parts)


def _span(values: Sequence[Any], text: Callable[[Any], str]) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def as_data(result: ResultFile) -> dict[str, Any]:
    """A file's heading and rows as plain data."""
    print_ = result.fingerprint
    return {
        "path": str(result.path),
        "kind": result.kind,
        "command": result.command,
        "machine": result.machine,
        "fingerprint": None if print_ is None else asdict(print_),
        "versions": dict(result.versions),
        "commit": result.commit,
        "created": result.created,
        "settings": dict(result.settings),
        "rows": [
            {
                "workload": dict(row.workload),
                "variant": dict(row.variant),
                **{name: _plain(getattr(row, name)) for name in FIGURES},
            }
            for row in result.rows
        ],
    }


def write_csv(results: Sequence[ResultFile], path: Path) -> None:
    """Write one line per row: file and machine, a column per name of a workload or variant.

    Raises:
        UsageError: the file cannot be written.
    """
    workload = _names(row.workload for result in results for row in result.rows)
    variant = _names(row.variant for result in results for row in result.rows)
    columns = [
        *("file", "kind", "machine"),
        *workload,
        *(f"variant_{name}" for name in variant),
        *FIGURES,
    ]
    write_rows(path, columns, _lines(results, workload, variant))


def _names(given: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(name for mapping in given for name in mapping))


def _lines(
    results: Sequence[ResultFile], workload: Sequence[str], variant: Sequence[str]
) -> Iterator[Sequence[object]]:
    for result in results:
        for row in result.rows:
            figures = (_plain(getattr(row, name)) for name in FIGURES)
            yield [
                *(result.path, result.kind, result.machine),
                *(row.workload.get(name, "") for name in workload),
                *(row.variant.get(name, "") for name in variant),
                *("" if value is None else value for value in figures),
            ]


def _plain(value: object) -> object:
    """A figure's field as JSON holds it: provenance is a word."""
    return str(value) if isinstance(value, str) else value
