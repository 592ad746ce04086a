"""The report's section on utilisation over concurrency: throughput, and how busy the GPU was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slidesparse.bench.counters.record import CountersRecord, LoadCell, LoadFigures
from slidesparse.bench.report.format import HUES, cell, number, slug
from slidesparse.bench.report.view import (
    Axis,
    Cell,
    Chart,
    Group,
    LineChart,
    Mark,
    Section,
    Series,
    Table,
)
from slidesparse.bench.rows import ResultFile
from slidesparse.bench.sweep.job import Mode
from slidesparse.problem import DType

TITLE = "Utilisation over concurrency"
REMEDY = "slidesparse bench decode --counters"

CURVES = {
    "sm_active": "SM active",
    "sm_occupancy": "SM occupancy",
    "tensor_active": "tensor active",
    "dram_active": "DRAM active",
    "kv_percent": "KV cache used",
}
"""Percentages that are drawn, by the record's name."""

COLUMNS = {
    **CURVES,
    "imma_active": "integer tensor",
    "power_w": "power, W",
    "temperature_c": "temperature, °C",
    "sm_mhz": "SM clock, MHz",
    "running": "running",
}

NOTES = (
    "Steady state: start and drain are cut off. Concurrency is the number of requests that are "
    "there all the time; where the KV cache is full, fewer run. Bars at throughputs are half the "
    "interquartile range of their samples to either side.",
    "SM active: SMs that had work; SM occupancy: resident warps over the most that fit; tensor "
    "active: cycles in which tensor cores worked; the integer ones do not count FP8.",
)


def counters_section(files: Sequence[ResultFile]) -> Section | None:
    """What load benchmarks say; None if no cell of any was measured."""
    groups: list[Group] = []
    findings: list[str] = []
    for file in files:
        if not isinstance(file.record, CountersRecord):
            continue
        kinds = dict.fromkeys((it.model, it.dtype) for it in file.record.measured)
        for model, dtype in kinds:
            cells = [it for it in file.record.measured if (it.model, it.dtype) == (model, dtype)]
            groups.append(_group(file, model, dtype, cells))
            findings += _findings(file, model, dtype, cells)
    if not groups:
        return None
    about = "How much of the GPU a served model uses, by the number of requests at a time."
    return Section("utilisation", TITLE, about, tuple(groups), NOTES, tuple(findings))


def _figures(it: LoadCell) -> LoadFigures:
    assert it.figures is not None
    return it.figures


def _group(file: ResultFile, model: str, dtype: DType, cells: Sequence[LoadCell]) -> Group:
    modes = dict.fromkeys(it.mode for it in cells)
    charts: list[Chart] = [_rates(file, model, dtype, cells)]
    for mode in modes:
        chart = _percents(file, model, dtype, mode, [it for it in cells if it.mode is mode])
        if chart is not None:
            charts.append(chart)
    missing = dict.fromkeys(_figures(it).why for it in cells if _figures(it).why)
    notes = tuple(f"Without hardware counters: {why}." for why in missing)
    title = f"{model} {dtype}, {file.machine}"
    return Group(title, notes, tuple(charts), (_table(file, model, dtype, cells),))


def _rates(file: ResultFile, model: str, dtype: DType, cells: Sequence[LoadCell]) -> Chart:
    series = []
    for mode, look in zip(dict.fromkeys(it.mode for it in cells), HUES, strict=False):
        marks = tuple(
            Mark(
                it.concurrency,
                _figures(it).tokens_per_s,
                tip=f"{mode}, C={it.concurrency}: {number(_figures(it).tokens_per_s)} tokens/s",
                error=_figures(it).spread / 2,
            )
            for it in sorted(cells, key=lambda it: it.concurrency)
            if it.mode is mode
        )
        series.append(Series(str(mode), look, marks))
    words = ". ".join(mark.tip for one in series for mark in one.marks)
    return LineChart(
        slug(f"utilisation {file.path.stem} {model} {dtype} rate"),
        f"Throughput, {model} {dtype}, {file.machine}",
        f"Tokens per second against concurrency on {file.machine}. {words}.",
        Axis("concurrency", "log2"),
        Axis("tokens per second", "log10"),
        tuple(series),
    )


def _percents(
    file: ResultFile, model: str, dtype: DType, mode: Mode, cells: Sequence[LoadCell]
) -> Chart | None:
    series = []
    ordered = sorted(cells, key=lambda it: it.concurrency)
    for (name, title), look in zip(CURVES.items(), HUES, strict=False):
        found = [(it.concurrency, _figures(it).mean(name)) for it in ordered]
        marks = tuple(
            Mark(c, value, tip=f"{title}, C={c}: {value:.1f} %")
            for c, value in found
            if value is not None
        )
        if marks:
            series.append(Series(title, look, marks))
    if not series:
        return None
    ends = ". ".join(f"{one.name}: {_range(one)}" for one in series)
    return LineChart(
        slug(f"utilisation {file.path.stem} {model} {dtype} {mode}"),
        f"Utilisation, {mode}, {model} {dtype}, {file.machine}",
        f"Percent of the GPU in use against concurrency, {mode}, on {file.machine}. {ends}.",
        Axis("concurrency", "log2"),
        Axis("percent", floor=0.0),
        tuple(series),
    )


def _range(series: Series) -> str:
    first, last = series.marks[0], series.marks[-1]
    return f"{first.y:.1f} % at C={first.x:g}, {last.y:.1f} % at C={last.x:g}"


def _table(file: ResultFile, model: str, dtype: DType, cells: Sequence[LoadCell]) -> Table:
    told = {name: t for name, t in COLUMNS.items() if any(_figures(it).mean(name) for it in cells)}
    rows = []
    for it in cells:
        found = _figures(it)
        rows.append(
            (
                Cell(str(it.mode)),
                cell(it.concurrency, str(it.concurrency)),
                cell(found.tokens_per_s),
                cell(found.spread),
                *(cell(found.mean(name)) for name in told),
                cell(found.preemptions, str(found.preemptions)),
                cell(found.joules_per_token),
            )
        )
    return Table(
        f"{model} {dtype}, {file.machine}: means over the steady state, percent where no unit is "
        f"given, measured, {file.path.name}",
        (
            *("mode", "concurrency", "tokens/s", "spread"),
            *told.values(),
            *("preemptions", "J/token"),
        ),
        tuple(rows),
    )


def _findings(
    file: ResultFile, model: str, dtype: DType, cells: Sequence[LoadCell]
) -> Iterator[str]:
    best = max(cells, key=lambda it: _figures(it).tokens_per_s)
    found = _figures(best)
    busy = [
        f"{title} {value:.0f} %"
        for name, title in CURVES.items()
        if (value := found.mean(name)) is not None
    ]
    yield (
        f"Serving {model} {dtype}, {file.machine}: at most {number(found.tokens_per_s)} tokens/s, "
        f"at C={best.concurrency}, {best.mode}: {', '.join(busy)}."
    )
