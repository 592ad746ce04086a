"""The tables at the end of a search: one per layer, the totals, what failed and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from slidesparse.bench.search.totals import dense_total, patterns_of, planned_total, totals
from slidesparse.candidate import Measurement, ProblemResult, Provenance
from slidesparse.pattern import DENSE
from slidesparse.plan import choose

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slidesparse.bench.search.record import SearchRecord
    from slidesparse.bench.workload import LayerProblem

_MARK = {Provenance.MEASURED: "", Provenance.CACHED: "*", Provenance.BUNDLED: "+"}
_LEGEND = {Provenance.CACHED: "* from the cache", Provenance.BUNDLED: "+ from the bundled cache"}


def print_record(record: SearchRecord, console: Console) -> None:
    """Print every table of a search."""
    names = dict.fromkeys(item.layer.name for item in record.layers)
    for name in names:
        console.print(_layer_table(record, [i for i in record.layers if i.layer.name == name]))
    if len(names) > 1:
        console.print(_totals_table(record))
    _print_notes(record, console)


def _layer_table(record: SearchRecord, items: list[LayerProblem]) -> Table:
    layer = items[0].layer
    experts = f", {layer.active} of {layer.experts} experts" if layer.experts else ""
    title = f"{layer.name}  N={layer.n} K={layer.k}  x{layer.count}{experts}"
    table = _table(title, record, ["best dense", "us", "TFLOP/s"])
    for tokens in dict.fromkeys(item.tokens for item in items):
        at = {i.problem.pattern: i for i in items if i.tokens == tokens}
        table.add_row(
            str(tokens),
            *_dense_cells(record, at.get(DENSE)),
            *(_sparse_cell(record, at.get(pattern)) for pattern in patterns_of(record)),
        )
    return table


def _dense_cells(record: SearchRecord, item: LayerProblem | None) -> list[str]:
    held = record.results.get(item.problem) if item is not None else None
    if item is None or held is None or held[0].best is None:
        return ["-", "-", "-"]
    best = held[0].best
    mark = _MARK[held[1]]
    rate = item.problem.tflops(best.median_us)
    return [
        _name(best),
        f"{_us(best.median_us)}{mark}",
        f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}",
    ]


def _sparse_cell(record: SearchRecord, item: LayerProblem | None) -> str:
    held = record.results.get(item.problem) if item is not None else None
    choice = choose(held[0]) if held is not None else None
    if held is None or choice is None or choice.sparse is None:
        return "-"
    time = f"{_us(choice.sparse.median_us)}{_MARK[held[1]]}"
    if choice.gain is None:
        return f"{choice.sparse.candidate.backend} {time}"
    sure = "" if choice.clear else "~"
    planned = choice.verdict[0].upper()
    return f"{time} {sure}{choice.gain:.2f}x {planned}\n{choice.sparse.candidate.backend}"


def _totals_table(record: SearchRecord) -> Table:
    table = _table("all layers, weighted by their count", record, ["best dense ms"])
    for tokens in dict.fromkeys(item.tokens for item in record.layers):
        dense = dense_total(record, tokens)
        cells = []
        for pattern in patterns_of(record):
            both, planned = totals(record, tokens, pattern), planned_total(record, tokens, pattern)
            if both is None or planned is None:
                cells.append("-")
                continue
            sparse = f"{both[1] / 1e3:.3f} ms {both[0] / both[1]:.2f}x"
            cells.append(f"{sparse}\nplanned {both[0] / planned:.2f}x")
        table.add_row(str(tokens), "-" if dense is None else f"{dense / 1e3:.3f}", *cells)
    return table


def _table(title: str, record: SearchRecord, dense_columns: list[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("M", justify="right", no_wrap=True)
    for column in dense_columns:
        left = column == "best dense"
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for pattern in patterns_of(record):
        bound = float(pattern.bound)
        table.add_column(f"{pattern}\nbound {bound:.2f}x", justify="right", overflow="fold")
    return table


def _print_notes(record: SearchRecord, console: Console) -> None:
    first = record.layers[0].problem
    console.print(
        f"GEMM only ({first.dtype} to {first.out}, scales {first.scales}), microseconds, medians "
        "of interleaved runs; ratio = best dense on the same pruned weights / best sparse; "
        "~ inside the spread; S or D: sparse or dense is planned. "
        "The dense columns are on full weights."
    )
    provenances = {provenance for _, provenance in record.results.values()}
    legend = [text for kind, text in _LEGEND.items() if kind in provenances]
    if legend:
        console.print("; ".join(legend))
    for line in default_gains(record):
        console.print(line)
    results = [result for result, _ in record.results.values()]
    _print_failures(results, console)
    for problem, reason in record.skipped.items():
        console.print("[yellow]skipped[/] ", end="")
        console.print(f"{problem}: {reason}", soft_wrap=True, markup=False)


def default_gains(record: SearchRecord) -> list[str]:
    """How much faster each library's best is than what it runs unasked, per backend."""
    ratios: dict[str, list[float]] = {}
    for result, _ in record.results.values():
        for default in result.defaults:
            backend = default.candidate.backend
            best = next((m for m in result.ranked if m.candidate.backend == backend), default)
            ratios.setdefault(backend, []).append(default.median_us / best.median_us)
    lines = []
    for backend, values in ratios.items():
        if max(values) > 1.0:
            mean = sum(values) / len(values)
            lines.append(
                f"search against {backend}'s own default: {mean:.2f}x on average, "
                f"{min(values):.2f}x to {max(values):.2f}x over {len(values)} problems"
            )
    return lines


def _print_failures(results: Iterable[ProblemResult], console: Console) -> None:
    left_out: dict[tuple[str, str], int] = Counter()
    failed: dict[tuple[str, str, str], int] = Counter()
    for result in results:
        for backend, reason in result.left_out.items():
            left_out[backend, reason] += 1
        for failure in result.failures:
            failed[failure.candidate.backend, failure.kind, failure.reason] += 1
    for (backend, reason), count in left_out.items():
        console.print(
            f"left out: {backend} in {count} problems: {reason}", soft_wrap=True, markup=False
        )
    for (backend, kind, reason), count in sorted(failed.items(), key=lambda kv: -kv[1])[:12]:
        console.print(
            f"failed: {count} x {backend} ({kind}): {reason}", soft_wrap=True, markup=False
        )
    if len(failed) > 12:
        console.print(f"failed: {len(failed) - 12} more kinds, all in the file of --json")


def _name(measurement: Measurement) -> str:
    """Backend and what tells its variants apart, short enough for a column."""
    candidate = measurement.candidate
    fields = candidate.fields
    detail = fields.get("function", fields.get("path", fields.get("tile", "")))
    return f"{candidate.backend} {detail}".strip()


def _us(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 1000 else f"{microseconds:.1f}"
