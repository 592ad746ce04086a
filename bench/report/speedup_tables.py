"""Tables of the report's section on speedup over M: in short, of whole models, of every linear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from slidesparse.bench.linear.record import LinearRecord
from slidesparse.bench.report.curves import Curves, Point
from slidesparse.bench.report.format import cell, ratio_cell
from slidesparse.bench.report.view import Cell, Table
from slidesparse.bench.rows import ResultFile
from slidesparse.bench.search.record import SearchRecord
from slidesparse.bench.search.totals import choice_of, planned_total
from slidesparse.candidate import Provenance
from slidesparse.pattern import DENSE, Pattern

MOST_OPEN = 40
"""Rows of a table of totals that a page shows unasked."""


class Told(NamedTuple):
    """Curves and the file that they are from."""

    file: ResultFile
    curves: Curves


def name_of(pattern: Pattern) -> str:
    """A series or column of a pattern; ours on dense weights is one, too."""
    return "ours, dense" if pattern.dense else str(pattern)


def digest_table(every: Sequence[Told]) -> Table:
    """What was timed, its best pattern, and how often patterns are faster and slower.

    What others published is there only if nothing was measured.
    """
    measured = [told for told in every if told.curves.provenance is not Provenance.PUBLISHED]
    rows = []
    for file, it in measured or every:
        points = [
            (point, curve.pattern)
            for curve in it.curves
            for point in curve.points
            if not curve.pattern.dense
        ]
        if not points:
            continue
        best, pattern = max(points, key=lambda pair: pair[0].value)
        faster = sum(point.clear and point.value > 1 for point, _ in points)
        slower = sum(point.clear and point.value < 1 for point, _ in points)
        rows.append(
            (
                Cell(f"{it.what}, {it.title}, {file.path.name}"),
                Cell(file.machine),
                ratio_cell(best.value, best.clear),
                Cell(str(pattern)),
                cell(best.m, str(best.m)),
                ratio_cell(float(pattern.bound)),
                _unpruned(it, best.m),
                *(cell(n, str(n)) for n in (faster, slower, len(points) - faster - slower)),
            )
        )
    return Table(
        "Largest speedup of a pattern over the dense way of its section, with the pattern's bound "
        "and what ours gains there without pruning, and in how many cases (patterns times M) a "
        "pattern is faster, slower or neither by more than the spread",
        (
            *("timed", "machine", "most", "pattern", "at M", "bound", "ours, dense"),
            *("faster", "slower", "neither"),
        ),
        tuple(rows),
    )


def _unpruned(it: Curves, m: int) -> Cell:
    point = it.at(DENSE, m)
    return ratio_cell(None) if point is None else ratio_cell(point.value, point.clear)


def totals_table(these: Sequence[Told], dense_time: str) -> Table:
    """One row per file's curves and M, one column per pattern, and one for what is planned.

    Args:
        these: of one thing that was timed.
        dense_time: what the dense way's time is.
    """
    patterns = sorted(
        {curve.pattern for _, it in these for curve in it.curves},
        key=lambda pattern: (not pattern.dense, -pattern.bound),
    )
    searched = any(isinstance(file.record, SearchRecord) for file, _ in these)
    names = [name_of(pattern) for pattern in patterns]
    heads = ["model", "M", "dense, ms", *names]
    heads += [f"{name}, planned" for name in names] if searched else []
    rows = []
    for told in these:
        for m in told.curves.ms:
            points = {pattern: told.curves.at(pattern, m) for pattern in patterns}
            dense = [point.dense_us for point in points.values() if point is not None]
            cells = [
                Cell(_title(told, these)),
                cell(m, str(m)),
                cell(sum(dense) / len(dense) / 1e3),
            ]
            for point in points.values():
                cells.append(ratio_cell(point.value, point.clear) if point else Cell(""))
            if searched:
                cells += [_planned(told, m, pattern, point) for pattern, point in points.items()]
            rows.append((*cells, Cell(told.file.path.name)))
    planned = " Planned: each layer runs what is faster, sparse or dense." if searched else ""
    bounds = ", ".join(f"{p} {float(p.bound):.2f}x" for p in patterns if not p.dense)
    machines = _joined(file.machine for file, _ in these)
    words = _joined(it.provenance for _, it in these)
    dense_ways = _joined(it.against for _, it in these)
    return Table(
        f"Speedup over {dense_ways}, {words} on {machines}; the dense time is {dense_time}. "
        f"Bounds: {bounds}.{planned}",
        (*heads, "file"),
        tuple(rows),
        folded=len(rows) > MOST_OPEN or words == Provenance.PUBLISHED,
    )


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(map(str, words)))


def _title(told: Told, these: Sequence[Told]) -> str:
    """The model, and the dense way where the table has several."""
    ways = {it.against for _, it in these}
    return told.curves.title + (f", over {told.curves.against}" if len(ways) > 1 else "")


def _planned(told: Told, m: int, pattern: Pattern, point: Point | None) -> Cell:
    if point is None or not isinstance(told.file.record, SearchRecord):
        return Cell("")
    planned = planned_total(told.file.record, m, pattern)
    return ratio_cell(point.dense_us / planned) if planned else Cell("")


def every_table(told: Told) -> Table | None:
    """Every linear or GEMM of a file; None where a step is not told apart."""
    record = told.file.record
    if isinstance(record, LinearRecord):
        return _linear_table(record, told.curves)
    return _search_table(record, told.curves) if isinstance(record, SearchRecord) else None


def _linear_table(record: LinearRecord, it: Curves) -> Table:
    rows = []
    for row in record.rows:
        if row.problem.dtype is not it.dtype:
            continue
        rows.append(
            (
                Cell(row.layer.name),
                cell(row.tokens, str(row.tokens)),
                Cell(str(row.problem.pattern)),
                cell(row.torch.median_us if row.torch else None),
                cell(row.ours.median_us if row.ours else None),
                cell(row.ours.spread_us if row.ours else None),
                ratio_cell(row.ratio, row.clear),
                Cell(row.plan.split()[0] if row.plan else "n/a"),
                Cell(row.torch_how or "n/a"),
            )
        )
    return Table(
        f"{it.title}: every linear, microseconds, measured",
        (
            *("linear", "M", "pattern", "torch, us", "ours, us", "spread, us", "speedup"),
            *("ours runs", "torch runs"),
        ),
        tuple(rows),
        folded=True,
    )


def _search_table(record: SearchRecord, it: Curves) -> Table:
    rows = []
    for item in record.layers:
        choice, held = choice_of(record, item), record.results.get(item.problem)
        if item.problem.pattern.dense or choice is None or held is None:
            continue
        rows.append(
            (
                Cell(item.layer.name),
                cell(item.tokens, str(item.tokens)),
                Cell(str(item.problem.pattern)),
                cell(choice.baseline.median_us if choice.baseline else None),
                cell(choice.sparse.median_us if choice.sparse else None),
                ratio_cell(choice.gain, choice.clear),
                Cell(choice.baseline.candidate.backend if choice.baseline else "n/a"),
                Cell(choice.sparse.candidate.backend if choice.sparse else "n/a"),
                Cell(str(held[1])),
            )
        )
    return Table(
        f"{it.title}: every GEMM, microseconds",
        (
            *("linear", "M", "pattern", "best dense, us", "best sparse, us", "speedup"),
            *("dense runs", "sparse runs", "provenance"),
        ),
        tuple(rows),
        folded=True,
    )
